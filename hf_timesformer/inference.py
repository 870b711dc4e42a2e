"""A model with its processor from a folder or the Hub, the views of one video, and what the model
says of them.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoConfig
from transformers.video_utils import VideoMetadata

from .data.targets import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .model.configuration_timesformer import TimeSformerConfig
from .model.modeling_timesformer import TimeSformerForVideoClassification
from .model.upstream import cpu_computes_in_bfloat16
from .video.video_processing_timesformer import TimeSformerVideoProcessor


# What `--dtype` takes.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model_and_processor(
    model: str, **overrides: Any
) -> tuple[TimeSformerForVideoClassification, TimeSformerVideoProcessor]:
    """A classifier with its processor.

    Args:
        model: a folder, or an id on the Hub.
        overrides: settings of the processor in place of the saved ones, such as `num_crops=3`;
            those that are None are left as saved.

    Returns:
        The model, in eval mode, and the processor. Where the saved processor does not say how many
        frames it takes, the model's config does.

    Raises:
        OSError: there is no model in that place.
        ValueError: it is a model of another type, or the folder does not exist.
    """
    if model.startswith((".", "/", "~")) and not Path(model).is_dir():
        raise ValueError(f"there is no model folder {model!r}")
    with no_folder_said(model):
        config = AutoConfig.from_pretrained(model)
    if config.model_type != TimeSformerConfig.model_type:
        raise ValueError(f"{model} holds a model of type {config.model_type!r}, not a TimeSformer")
    settings, _ = TimeSformerVideoProcessor.get_video_processor_dict(model)
    overrides = {name: value for name, value in overrides.items() if value is not None}
    if "num_frames" not in settings:
        overrides.setdefault("num_frames", config.num_frames)
    processor = TimeSformerVideoProcessor.from_pretrained(model, **overrides)
    return TimeSformerForVideoClassification.from_pretrained(model), processor


@contextmanager
def no_folder_said(model: str) -> Iterator[None]:
    """What transformers raises inside, and where `model` is no folder, that: of a name with a typing
    error it otherwise says, offline, that there is no connection.

    Raises:
        OSError: what transformers raised, with more words.
    """
    try:
        yield
    except OSError as error:
        if Path(model).exists() or "local folder" in str(error):
            raise
        raise OSError(
            f"there is no folder {model!r}, nor was it found on the Hub: {error}"
        ) from error


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name; without one the GPU if there is one. ValueError for a name that
    torch does not know.
    """
    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"--device {name}: {error}") from error


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; `"auto"` is bfloat16 where `device` computes in it, float32
    elsewhere.

    A CPU computes in bfloat16 if it has instructions for it (AVX512-BF16, AMX); one that only
    stores it is slower with it. Raises ValueError for another name.
    """
    if name != "auto":
        if name not in DTYPES:
            raise ValueError(f"--dtype {name} is unknown: choose auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type == "cuda":
        computes = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        computes = cpu_computes_in_bfloat16()
    else:
        computes = False
    return torch.bfloat16 if computes else torch.float32


def make_views(
    processor: TimeSformerVideoProcessor,
    source: str | bytes,
    *,
    allow_urls: bool = False,
    **settings: Any,
) -> torch.Tensor:
    """The views of one video, as `classify` takes them.

    Args:
        processor: says which frames and crops.
        source: a path, or the bytes of a file.
        allow_urls: take an http(s) address as well.
        settings: of the processor, for this call alone, such as `num_clips=3`.

    Returns:
        float `(views, frames, channels, height, width)`.

    Raises:
        VideoDecodeError: the video cannot be read.
    """
    return look_at(processor, source, allow_urls=allow_urls, **settings)[0]


def look_at(
    processor: TimeSformerVideoProcessor,
    source: str | bytes,
    *,
    allow_urls: bool = False,
    **settings: Any,
) -> tuple[torch.Tensor, VideoMetadata]:
    """As `make_views`, `(views, frames, channels, height, width)`, with the video's metadata:
    `frames_indices` names the frames that were taken, clip by clip.

    `settings` are those of the processor for this call (`num_clips=...`).
    """
    inputs = processor(
        videos=[source],
        return_tensors="pt",
        return_metadata=True,
        allow_urls=allow_urls,
        **settings,
    )
    pixel_values = inputs["pixel_values"]
    # One view: (1, t, c, h, w) already. Several: (1, views, t, c, h, w).
    views = pixel_values if pixel_values.ndim == 5 else pixel_values[0]
    return views, inputs["video_metadata"][0]


def seconds_looked_at(metadata: VideoMetadata, num_clips: int) -> tuple[float, float] | None:
    """How many seconds the clips of a video span, and how many it lasts; None where its frame rate
    is unknown.

    Clips that overlap count once. A clip spans from its first frame to the end of its last one:

        a video of 20 frames at 10 a second, clips of the frames 0, 4, 8 and 6, 10, 14: 0.0 to 1.5 s
            of 2 s
    """
    if not metadata.fps or not metadata.frames_indices:
        return None
    clips = np.asarray(metadata.frames_indices).reshape(num_clips, -1)
    seen = np.zeros(metadata.total_num_frames, bool)
    for clip in clips:
        seen[clip.min() : clip.max() + 1] = True
    return float(seen.sum() / metadata.fps), metadata.total_num_frames / metadata.fps


def problem_type_of(config: TimeSformerConfig) -> str:
    """What the model was trained to say: one class of many, several classes, or numbers.

    As transformers' losses take it where the config does not say: one output is a number.
    """
    return config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE_LABEL)


def scores_of(logits: torch.Tensor, config: TimeSformerConfig) -> torch.Tensor:
    """Logits `(..., labels)` as what they stand for, float32 of the same shape.

    Probabilities that sum to one for one class of many, a probability for each class where several
    may hold, the number itself for regression. The stock pipeline does the same.
    """
    logits = logits.float()
    problem = problem_type_of(config)
    if problem == REGRESSION:
        return logits
    return logits.sigmoid() if problem == MULTI_LABEL else logits.softmax(-1)


def name_scores(
    scores: torch.Tensor, config: TimeSformerConfig, top_k: int | None = None
) -> list[dict[str, Any]]:
    """Scores of one video `(labels,)` with their names: `{"label", "score"}`, the `top_k` largest
    first.

    A regression's numbers are `{"label", "value"}`, all of them, in the order of the model's
    outputs.
    """
    names = [str(config.id2label[index]) for index in range(len(scores))]
    if problem_type_of(config) == REGRESSION:
        return [
            {"label": name, "value": round(value, 6)} for name, value in zip(names, scores.tolist())
        ]
    count = len(scores) if top_k is None else min(top_k, len(scores))
    best, classes = scores.topk(count)
    return [
        {"label": names[index], "score": round(score, 6)}
        for score, index in zip(best.tolist(), classes.tolist())
    ]


def classify(
    model: torch.nn.Module, pixel_values: torch.Tensor, *, top_k: int | None = None
) -> list[dict[str, Any]]:
    """What the model says of one video.

    Args:
        model: in eval mode, on any device.
        pixel_values: the views of the video, float `(views, frames, channels, height, width)`;
            the logits are averaged over the views.
        top_k: how many classes, the likeliest first; None gives all.

    Returns:
        A dict for each class, `{"label": ..., "score": ...}`, as transformers' pipeline gives
        them. The scores are probabilities, or the numbers of a regression.
    """
    return answer_from(mean_logits(model, [pixel_values]), model.config, top_k)


def answer_from(
    logits: torch.Tensor, config: Any, top_k: int | None = None
) -> list[dict[str, Any]]:
    """Logits of one video `(labels,)` as scores with their names: `scores_of`, then `name_scores`."""
    return name_scores(scores_of(logits, config), config, top_k)


@torch.inference_mode()
def mean_logits(model: torch.nn.Module, pieces: Iterable[torch.Tensor]) -> torch.Tensor:
    """Logits averaged over all views of one video, float32 `(labels,)` on the CPU.

    `pieces` are views `(views, frames, channels, height, width)`, as many at a time as memory is
    there for. Raises ValueError for none.
    """
    parameter = next(model.parameters(), None)  # an exported graph has none
    config = cast(TimeSformerConfig, model.config)
    total, count = torch.zeros(config.num_labels), 0
    for views in pieces:
        if parameter is not None:
            views = views.to(parameter.device, parameter.dtype)
        # (views, ...) -> (1, views, ...) -> (labels,)
        logits = model(pixel_values=views[None]).logits[0]
        total += logits.float().cpu() * len(views)
        count += len(views)
    if not count:
        raise ValueError("a video without views has no logits")
    return total / count
