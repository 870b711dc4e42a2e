"""What a fine-tuning run starts from: its labels, its network, its processor."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, cached_file

from ..data.labels import has_no_names, match_labels
from ..data.targets import SINGLE_LABEL
from ..inference import no_folder_said
from ..model.configuration_timesformer import TimeSformerConfig, pair
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..video.released_sampling import complete_settings, read_model_config
from ..video.video_processing_timesformer import TimeSformerVideoProcessor


logger = logging.getLogger(__name__)


def load_network(
    class_names: Sequence[str],
    *,
    model: str | None = None,
    from_vit: str | None = None,
    new_head: bool = False,
    config_overrides: dict[str, Any] | None = None,
    problem_type: str = SINGLE_LABEL,
    **settings: Any,
) -> tuple[TimeSformerForVideoClassification, list[int]]:
    """The network to train, and the id that it gives to each class of the data.

    From a TimeSformer checkpoint (`model`), an image ViT (`from_vit`), or from scratch
    (`config_overrides` alone). Settings that are None are left as the checkpoint has them. Raises
    ValueError where the labels, or the kind of problem, do not match.
    """
    if model and from_vit:
        raise ValueError(
            "--model (a TimeSformer) and --from_vit (an image ViT) exclude each other: give one of them"
        )
    labels: dict[str, dict] = {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: i for i, name in enumerate(class_names)},
    }
    overrides = (config_overrides or {}) | {
        name: value for name, value in settings.items() if value is not None
    }
    # transformers takes one label for a regression
    if problem_type != SINGLE_LABEL or len(class_names) == 1:
        overrides["problem_type"] = problem_type
    identity = list(range(len(class_names)))
    if from_vit:
        return TimeSformerForVideoClassification.from_vit(from_vit, **labels, **overrides), identity
    if model is None:
        if not config_overrides:
            raise ValueError(
                "nothing to start from: give --model (such as facebook/timesformer-base-finetuned-k400, with "
                "--new_head), --from_vit (an image ViT), or --config_overrides for a network from scratch"
            )
        return TimeSformerForVideoClassification(TimeSformerConfig(**overrides, **labels)), identity
    return _load_checkpoint(model, labels, new_head, overrides)


def _load_checkpoint(
    model: str, labels: dict[str, dict], new_head: bool, overrides: dict[str, Any]
) -> tuple[TimeSformerForVideoClassification, list[int]]:
    class_names = list(labels["label2id"])
    with no_folder_said(model):
        config = TimeSformerConfig.from_pretrained(model)
    # The embeddings stay as long as the checkpoint has them; the network resizes them to the clips
    # that it sees.
    overrides = {
        name: value for name, value in overrides.items() if name not in ("num_frames", "image_size")
    }
    is_unnamed = (
        has_no_names(list(config.id2label.values())) and len(class_names) == config.num_labels
    )
    known = config.problem_type or SINGLE_LABEL
    wanted = overrides.get("problem_type", SINGLE_LABEL)
    if known != wanted and not new_head:
        raise ValueError(
            f"the checkpoint was trained for {known}, the data are for {wanted}: pass --new_head"
        )
    if wanted == SINGLE_LABEL and known != wanted:
        overrides["problem_type"] = wanted
    if not new_head and not is_unnamed:
        cure = "Pass --new_head to train a new classifier for the data"
        ids = match_labels(class_names, config.id2label, cure=cure)
        return TimeSformerForVideoClassification.from_pretrained(model, **overrides), ids
    network = TimeSformerForVideoClassification.from_pretrained(
        model, **labels, **overrides, ignore_mismatched_sizes=new_head
    )
    if new_head:
        fresh = TimeSformerForVideoClassification(network.config)
        fresh.timesformer = network.timesformer
        network = fresh
    return network, list(range(len(class_names)))


def make_processor(
    config: TimeSformerConfig,
    source: str | None,
    *,
    image_size: int | Sequence[int] | None = None,
    **settings: Any,
) -> TimeSformerVideoProcessor:
    """The processor of the run: the settings given, then those of the checkpoint or ViT at
    `source`, then what is known of the released checkpoints (`released_sampling`), then defaults.

    So a checkpoint is fine-tuned with the sampling that it is shown videos with elsewhere. Raises
    ValueError for a size that the patches of the network do not divide, and for a network whose
    channels no video file has.
    """
    size = pair(image_size or config.image_size)
    for side, patch in zip(size, pair(config.patch_size)):
        if side % patch:
            nearest = (side // patch * patch, (side // patch + 1) * patch)
            raise ValueError(
                f"image_size {side} is no multiple of the patch size {patch}: take {nearest[0]} or {nearest[1]}"
            )
    given = {name: value for name, value in settings.items() if value is not None}
    crop = {"height": size[0], "width": size[1]}
    saved = _saved_settings(source, given | {"crop_size": crop})
    names = (
        "num_frames",
        "sampling",
        "sampling_rate",
        "target_fps",
        "image_mean",
        "image_std",
        "resample",
    )
    values = {"num_frames": config.num_frames} | {
        name: saved[name] for name in names if saved.get(name) is not None
    }
    values |= given
    values |= _statistics_for(config.num_channels, values)
    return TimeSformerVideoProcessor(**values, size={"shortest_edge": min(size)}, crop_size=crop)


def _statistics_for(num_channels: int, values: dict[str, Any]) -> dict[str, list[float]]:
    """Mean and standard deviation for a network of so many channels, where `values` are for colours.

    A video file holds red, green and blue. A network of one channel sees their luminance (BT.601),
    normalised by the mean of the three.
    """
    if num_channels not in (1, 3):
        raise ValueError(
            f"the network takes {num_channels} channels, and video files hold 3: red, green and blue. Read frames of "
            f"{num_channels} channels with a data set of your own, and train with transformers' Trainer"
        )
    found: dict[str, list[float]] = {
        name: list(values.get(name, getattr(TimeSformerVideoProcessor, name)))
        for name in ("image_mean", "image_std")
    }
    if num_channels == 3 and len(found["image_mean"]) != 3:
        raise ValueError(
            f"the network takes 3 channels, the processor's image_mean is for {len(found['image_mean'])}: "
            f"{found['image_mean']}"
        )
    if num_channels == 1:
        logger.warning(
            "The network takes grey frames: those of a video become their luminance (BT.601)."
        )
        return {name: [sum(each) / len(each)] for name, each in found.items()}
    return {}


def read_size(values: int | Sequence[int] | None) -> int | list[int] | None:
    """`--image_size` as the config has it: one number, or `[height, width]`. ValueError for more
    than two numbers.
    """
    if values is None or isinstance(values, int):  # a recipe has one number
        return values
    if len(values) > 2:
        raise ValueError(
            f"--image_size takes one number, or height and width, got {' '.join(map(str, values))}"
        )
    return values[0] if len(values) == 1 else list(values)


def _saved_settings(source: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """Settings of the processor beside a checkpoint or an image ViT; empty where there is none.

    What the file of a TimeSformer checkpoint lacks is filled in as where it is used, and said in
    the log, except what is `given`.
    """
    if source is None or Path(source).is_file():
        return {}
    for name in (VIDEO_PROCESSOR_NAME, "preprocessor_config.json", PROCESSOR_NAME):
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            settings = json.loads(Path(path).read_text(encoding="utf-8"))
            settings = settings.get("video_processor", settings)
            break
    else:
        return {}
    missing, line = complete_settings(source, settings, read_model_config(source, {}), given)
    if line is not None:
        logger.info(line)
    return settings | missing


def parse_overrides(text: str | None) -> dict[str, Any]:
    """`hidden_size=96,drop_path_rate=0.1` as a dict with numbers as numbers. Raises ValueError for
    another form.
    """
    values = {}
    for part in (text or "").split(","):
        name, equals, value = part.partition("=")
        if not part.strip():
            continue
        if not equals:
            raise ValueError(
                f"config_overrides takes name=value pairs with commas between, got {part!r}"
            )
        try:
            values[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            values[name.strip()] = value.strip()
    return values
