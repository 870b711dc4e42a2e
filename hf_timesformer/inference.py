"""A model with its processor from a folder or the Hub, and the views of one video."""

from pathlib import Path

import torch
from transformers import AutoConfig

from .model.configuration_timesformer import TimeSformerConfig
from .model.modeling_timesformer import TimeSformerForVideoClassification
from .video.video_processing_timesformer import TimeSformerVideoProcessor


def load_model_and_processor(
    model: str, **overrides: int | None
) -> tuple[TimeSformerForVideoClassification, TimeSformerVideoProcessor]:
    """The model of a folder or Hub id and its processor, with those of the processor's settings that are not None.

    Where the checkpoint's processor does not say how many frames it takes, the model's config does. Raises OSError for
    a place without a model, ValueError for a model of another type.
    """
    if model.startswith((".", "/", "~")) and not Path(model).is_dir():
        raise ValueError(f"there is no model folder {model!r}")
    config = AutoConfig.from_pretrained(model)
    if config.model_type != TimeSformerConfig.model_type:
        raise ValueError(f"{model} holds a model of type {config.model_type!r}, not a TimeSformer")
    settings, _ = TimeSformerVideoProcessor.get_video_processor_dict(model)
    overrides = {name: value for name, value in overrides.items() if value is not None}
    if "num_frames" not in settings:
        overrides.setdefault("num_frames", config.num_frames)
    processor = TimeSformerVideoProcessor.from_pretrained(model, **overrides)
    return TimeSformerForVideoClassification.from_pretrained(model), processor


def make_views(processor: TimeSformerVideoProcessor, source: str | bytes, *, allow_urls: bool = False) -> torch.Tensor:
    """Views of one video, `(views, frames, channels, height, width)`; raises VideoDecodeError."""
    pixel_values = processor(videos=[source], return_tensors="pt", allow_urls=allow_urls)["pixel_values"]
    return pixel_values if pixel_values.ndim == 5 else pixel_values[0]  # one view: (1, T, C, H, W) already
