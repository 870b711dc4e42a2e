"""Checkpoints of the official code (`.pyth`) and of mmaction2 as models and processors of this
package.
"""

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from ..model.configuration_timesformer import TimeSformerConfig, pair
from ..model.modeling_timesformer import TimeSformerForVideoClassification, TimeSformerModel
from ..model.vit_weights import (
    TIMM_BLOCK,
    TIMM_BLOCK_NAMES,
    TIMM_NAMES,
    State,
    fields_of,
    rename_weights,
)
from ..video.released_sampling import released_sampling
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .mmaction2_names import MMACTION2_SETTINGS, is_from_mmaction2, rename_from_mmaction2


# What the official code adds to timm's names.
OFFICIAL_NAMES = {**TIMM_NAMES, "time_embed": "embeddings.time_embeddings"}
OFFICIAL_BLOCK_NAMES = {
    **TIMM_BLOCK_NAMES,
    "temporal_norm1": "temporal_layernorm",
    "temporal_attn.qkv": "temporal_attention.attention.qkv",
    "temporal_attn.proj": "temporal_attention.output.dense",
    "temporal_fc": "temporal_dense",
}
# a training checkpoint keeps the weights under one of these keys
WRAPPERS = ("model_state", "state_dict", "model")
PREFIXES = ("module.", "model.")  # of every name, where the network was wrapped
HEAD = ("head.weight", "head.bias")


def convert_checkpoint(
    path: str | os.PathLike,
    *,
    label_names: list[str] | None = None,
    num_attention_heads: int | None = None,
    sampling: str | None = None,
    sampling_rate: int | None = None,
) -> tuple[TimeSformerForVideoClassification | TimeSformerModel, TimeSformerVideoProcessor, str]:
    """A `.pyth`/`.pth` file as a model (fp32, eval mode), its processor, and a line on where
    sampling is from.

    Attention type, frames, size and labels are as the weights say. A file without a classifier
    gives a `TimeSformerModel`, which `--model ... --new_head` starts from.

    Args:
        path: a file that the official code or mmaction2 wrote, with or without wrappers
            (`model_state`, `state_dict`, `model`; `module.` and `model.` before every name).
        label_names: names of the classes, in order (`data.labels.read_class_names` reads them from
            a file).
        num_attention_heads: where they are not of 64 channels, as in all released files: weights do
            not tell.
        sampling, sampling_rate: "clip" or "segments", and one frame in how many. Where they are
            None: as the training configuration inside the file says, else as the released
            checkpoints with these labels and frames have it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds more than tensors and plain values, or no TimeSformer, or other labels
            than named.
    """
    content = read_checkpoint(path)
    weights = unwrap(content, str(path))
    from_mmaction2 = is_from_mmaction2(weights)
    if from_mmaction2:
        weights = rename_from_mmaction2(weights)
    fields, state = _config_and_weights(weights, str(path))
    _set_heads(fields, num_attention_heads)
    _set_labels(fields, label_names, str(path))
    config = TimeSformerConfig(**fields)
    model = _model_of(config, state, str(path))
    settings, origin = _sampling(content, config, sampling, sampling_rate, from_mmaction2)
    return model.eval(), *_processor(config, settings, origin)


def _set_heads(fields: dict[str, Any], num_attention_heads: int | None) -> None:
    if num_attention_heads is None:
        return
    if num_attention_heads < 1 or fields["hidden_size"] % num_attention_heads:
        raise ValueError(
            f"num_attention_heads={num_attention_heads} must divide the width {fields['hidden_size']}."
        )
    fields["num_attention_heads"] = num_attention_heads


def _set_labels(fields: dict[str, Any], label_names: list[str] | None, source: str) -> None:
    if label_names is None:
        return
    if "num_labels" not in fields:
        raise ValueError(
            f"{source} has no classifier ({', '.join(HEAD)}), so there is nothing to name: drop --labels."
        )
    if len(label_names) != fields["num_labels"]:
        raise ValueError(
            f"{len(label_names)} label names, but {source} has {fields['num_labels']} classes."
        )
    del fields["num_labels"]
    fields["id2label"] = dict(enumerate(label_names))
    fields["label2id"] = {name: index for index, name in enumerate(label_names)}


def _model_of(
    config: TimeSformerConfig, state: State, source: str
) -> TimeSformerForVideoClassification | TimeSformerModel:
    """The network that holds exactly these weights: with a classifier where they have one."""
    has_classifier = "classifier.weight" in state
    with torch.device("meta"):  # no weights are drawn: all of them are in `state`
        model = (
            TimeSformerForVideoClassification(config)
            if has_classifier
            else TimeSformerModel(config)
        )
    if not has_classifier:
        state = {name.removeprefix("timesformer."): value for name, value in state.items()}
    _check_shapes(model.state_dict(), state, source)
    model.load_state_dict(state, assign=True)
    return model


def _sampling(
    content: Any,
    config: TimeSformerConfig,
    sampling: str | None,
    sampling_rate: int | None,
    from_mmaction2: bool,
) -> tuple[dict[str, Any], str]:
    """Settings of the processor, and where its sampling is from."""
    if from_mmaction2:
        known, origin = dict(MMACTION2_SETTINGS), "mmaction2's configs, as are mean and std 0.5"
    else:
        known, origin = _recorded_sampling(content), "the training configuration in the file"
    if not known:
        known = released_sampling(config.num_labels, config.num_frames)
        origin = "the released checkpoints with these labels and frames"
    if not known:
        origin = "our defaults: neither the file nor the released checkpoints tell (--sampling, --sampling_rate)"
    if sampling_rate is not None:
        known, origin = (
            known | {"sampling": "clip", "sampling_rate": sampling_rate},
            "your arguments",
        )
    if sampling is not None:
        known, origin = known | {"sampling": sampling}, "your arguments"
    return known, origin


def _processor(
    config: TimeSformerConfig, settings: dict[str, Any], origin: str
) -> tuple[TimeSformerVideoProcessor, str]:
    height, width = pair(config.image_size)
    processor = TimeSformerVideoProcessor(
        num_frames=config.num_frames,
        size={"shortest_edge": min(height, width)},
        crop_size={"height": height, "width": width},
        **settings,
    )
    how = (
        "one frame of each equal part"
        if processor.sampling == "segments"
        else f"rate {processor.sampling_rate}"
    )
    return processor, f"sampling {processor.sampling}, {how}, from {origin}"


def read_checkpoint(path: str | os.PathLike) -> Any:
    """The content of a `.pyth`, by `torch.load(weights_only=True)` and nothing else: it runs no
    code of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = re.search(r"(?:global|GLOBAL|class)\s+`?([\w.]+)", str(error))
        detail = f" (it names {what[1]!r})" if what else ""
        raise ValueError(
            f"{str(path)!r} was not read: it is no checkpoint of tensors and plain values{detail}. Loading anything "
            "else could run code that the file brings along. If you trust it, save its state_dict alone and convert "
            "that."
        ) from None
    except (RuntimeError, EOFError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{str(path)!r} is damaged or no PyTorch checkpoint: {reason}") from None


def unwrap(content: Any, source: str) -> State:
    """The weights by the names that the code itself gave them, out of all wrappers that a
    checkpoint may have.

    `{"state_dict": {"module.model.cls_token": ...}}` -> `{"cls_token": ...}`.

    Raises:
        ValueError: no weights by name are in it.
    """
    while wrapper := _wrapper_of(content):
        content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ValueError(f"{source!r} holds a {type(content).__name__}, expected weights by name.")
    state = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    while prefix := _prefix_of(state):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _wrapper_of(content: Any) -> str | None:
    if not isinstance(content, Mapping):
        return None
    return next(
        (wrapper for wrapper in WRAPPERS if isinstance(content.get(wrapper), Mapping)), None
    )


def _prefix_of(state: State) -> str | None:
    """What stands before every name, of `PREFIXES`."""
    if not state:
        return None
    return next(
        (prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None
    )


def _config_and_weights(state: State, source: str) -> tuple[dict[str, Any], State]:
    """Config fields and weights with our full names; `num_labels` and a classifier only where the
    file has one.
    """
    needed = ["pos_embed", "cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"]
    if any(name in state for name in HEAD):  # all of a classifier, or none
        needed += HEAD
    missing = [name for name in needed if name not in state]
    complaint = f"{source!r} is no checkpoint of the official TimeSformer"
    if missing:
        raise ValueError(f"{complaint}: it lacks {', '.join(missing)}.")
    state = {name: value.float() for name, value in state.items()}
    head = {name.replace("head", "classifier"): state.pop(name) for name in HEAD if name in state}
    body = rename_weights(state, OFFICIAL_NAMES, TIMM_BLOCK, OFFICIAL_BLOCK_NAMES, complaint)
    times = body.get("embeddings.time_embeddings")
    if any(".temporal_" in name for name in body):
        attention_type = "divided_space_time"
    else:
        attention_type = "space_only" if times is None else "joint_space_time"
    config = fields_of(body, repr(source)) | {"attention_type": attention_type}
    if head:
        config["num_labels"] = head["classifier.weight"].shape[0]
    if times is not None:
        config["num_frames"] = times.shape[1]
    return config, {f"timesformer.{name}": value for name, value in body.items()} | head


def _check_shapes(expected: State, found: State, source: str) -> None:
    missing, unknown = (
        sorted(expected.keys() - found.keys()),
        sorted(found.keys() - expected.keys()),
    )
    if missing or unknown:
        raise ValueError(
            f"{source!r} is not whole: missing {missing[:5]}, without a place {unknown[:5]} (our names)."
        )
    for name, value in found.items():
        if value.shape != expected[name].shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(expected[name].shape)}"
            raise ValueError(f"{source!r}: {name} (our name) has the shape {shapes}.")


def _recorded_sampling(content: Any) -> dict[str, Any]:
    """Sampling as the training configuration says that the official code puts into its checkpoints;
    {} without one.
    """
    text = content.get("cfg") if isinstance(content, Mapping) else None
    if not isinstance(text, str):
        return {}
    try:
        recorded = yaml.safe_load(text)
        if recorded["TRAIN"]["DATASET"].lower() in ("ssv2", "something"):
            return {"sampling": "segments"}
        return {"sampling": "clip", "sampling_rate": int(recorded["DATA"]["SAMPLING_RATE"])}
    # written by another program
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError):
        return {}
