"""How a TimeSformer checkpoint is to be shown a video where its processor file does not say so.

The released checkpoints on the Hub come with the processor file of another model (VideoMAE), which
has means and sizes but nothing about frames. What they were trained with is known: it stands in the
authors' model zoo.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, cached_file


# Something-Something-V2, whose models take one frame of each of as many equal parts of the video as
# they have frames.
SSV2_LABELS = 174

# (labels, frames a clip) -> one frame in so many. Kinetics-400 and -600, then HowTo100M's 1059
# tasks.
RELEASED_RATES = {
    (400, 8): 32,
    (400, 16): 16,
    (400, 96): 4,
    (600, 8): 32,
    (600, 16): 16,
    (600, 96): 4,
    (1059, 8): 32,
    (1059, 32): 32,
    (1059, 64): 32,
    (1059, 96): 32,
}

# Hub id -> (labels, frames a clip): those that the authors' own account has.
RELEASED_ON_HUB = {
    "facebook/timesformer-base-finetuned-k400": (400, 8),
    "facebook/timesformer-hr-finetuned-k400": (400, 16),
    "facebook/timesformer-base-finetuned-k600": (600, 8),
    "facebook/timesformer-hr-finetuned-k600": (600, 16),
    "facebook/timesformer-base-finetuned-ssv2": (SSV2_LABELS, 8),
    "facebook/timesformer-hr-finetuned-ssv2": (SSV2_LABELS, 16),
}

SAMPLING_SETTINGS = ("sampling", "sampling_rate", "target_fps")
HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "token",
    "revision",
    "subfolder",
    "proxies",
)


def released_sampling(num_labels: int, num_frames: int) -> dict[str, Any]:
    """Sampling settings of the released checkpoints with so many labels and frames; empty where
    there is none.
    """
    if num_labels == SSV2_LABELS:
        return {"sampling": "segments"}
    rate = RELEASED_RATES.get((num_labels, num_frames))
    return {} if rate is None else {"sampling": "clip", "sampling_rate": rate}


def read_model_config(name: str | os.PathLike, options: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of a folder or Hub id as it is written there; empty where there is none.

    `options` may hold those of `from_pretrained` (`revision`, `token`, ...); others in it are
    passed over.
    """
    if os.path.isfile(name):  # a processor file by itself
        return {}
    options = {option: options[option] for option in HUB_OPTIONS if options.get(option) is not None}
    file = cached_file(
        str(name), CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **options
    )
    return {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def complete_settings(
    name: str, saved: Mapping[str, Any], config: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], str | None]:
    """What the processor file of a TimeSformer checkpoint lacks, and one line that says what was
    assumed.

    Frames and their size are those of the model's config, sampling is what is known of the released
    checkpoints; any other is sampled over the whole video, one frame of each of `num_frames` equal
    parts.

    Args:
        name: the folder or Hub id, for the line and for what is known by name.
        saved: the processor file's content.
        config: the model's `config.json`.
        given: settings of the caller, which win over all of these and are not assumed.

    Returns:
        Settings to put over `saved`, and the line; nothing and None where the file says how to
        sample, or where the model is no TimeSformer.
    """
    if config.get("model_type") != "timesformer" or any(
        saved.get(setting) for setting in SAMPLING_SETTINGS
    ):
        return {}, None
    num_frames = given.get("num_frames") or saved.get("num_frames") or config.get("num_frames", 8)
    settings: dict[str, Any] = {"num_frames": num_frames}
    assumed = []
    if not given.get("num_frames"):
        assumed.append(f"{num_frames} frames a clip")
    settings |= _sampling(name, config, given, assumed)
    if not (given.get("size") or given.get("crop_size")):
        settings |= _size(saved, config, assumed)
    if not assumed:
        return settings, None
    return (
        settings,
        f"{name}: its processor file does not say how to sample a video. Assumed: {'; '.join(assumed)}",
    )


def _sampling(
    name: str, config: Mapping[str, Any], given: Mapping[str, Any], assumed: list[str]
) -> dict[str, Any]:
    """The sampling settings that the caller leaves open; what they are from goes into `assumed`."""
    if given.get("sampling"):
        return {}
    # neither means anything but for a window
    if given.get("sampling_rate") or given.get("target_fps"):
        return {"sampling": "clip"}
    released = RELEASED_ON_HUB.get(name)
    if released is not None:
        origin = "as this released checkpoint was trained"
    else:
        released = _num_labels(config), config.get("num_frames", 8)
        origin = f"as the released checkpoints of {released[0]} labels and {released[1]} frames were trained"
    known = released_sampling(*released)
    if not known:
        assumed.append(
            "sampling='segments' over the whole video, since no released checkpoint is like it (pass sampling= and "
            "sampling_rate= if its card says otherwise)"
        )
        return {"sampling": "segments"}
    assumed.append(
        ", ".join(f"{setting}={value!r}" for setting, value in known.items()) + " " + origin
    )
    return known


def _num_labels(config: Mapping[str, Any]) -> int:
    return len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)


def _size(
    saved: Mapping[str, Any], config: Mapping[str, Any], assumed: list[str]
) -> dict[str, Any]:
    """Crops of the model's frame size, unless the processor file has them so; it then keeps its own
    short side.
    """
    size = config.get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    crop = saved.get("crop_size")
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    if crop == {"height": height, "width": width}:
        return {}
    assumed.append(f"frames of {height}x{width} pixels from the model's config")
    return {
        "size": {"shortest_edge": min(height, width)},
        "crop_size": {"height": height, "width": width},
    }
