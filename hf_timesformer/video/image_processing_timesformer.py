"""Frames in memory to normalised views."""

import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput
from transformers.processing_utils import ImagesKwargs, Unpack

from .memory_frames import split_videos
from .views import TimeSformerViewsMixin


class TimeSformerImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Settings of `TimeSformerImageProcessor` beyond those that every image processor has."""

    num_crops: int | None


class TimeSformerImageProcessor(TimeSformerViewsMixin, TorchvisionBackend):
    """Frames in memory to `pixel_values`, pixel for pixel as `TimeSformerVideoProcessor` makes
    them.

    `processor(video)`: a video is a list of PIL images, arrays or tensors, or one 4D array,
    channels first or last, of any type (`memory_frames.to_levels` has the table of their ranges); a
    batch is a list of such videos, or a 5D array. Every frame that is handed over is used: choosing
    them is left to the caller (`hf_timesformer.video.sampling`). Frames are scaled to `size`, cut
    to `crop_size` (`num_crops` 1: the centre; 3: left, centre, right, in portrait top, centre,
    bottom) and normalised.

    As many channels as `image_mean` has numbers: with three, grey frames become RGB and PIL
    pictures with transparency are laid on white; with one, colour becomes grey; with another
    number, frames must have that many channels.

    Returns:
        `pixel_values`: float `(B, T, C, H, W)`, with three crops `(B, 3, T, C, H, W)`.

    Raises:
        ValueError: input that is no video in memory, frames of several sizes or types in one video,
            values of no known range, or channels that do not fit.
    """

    valid_kwargs = TimeSformerImageProcessorKwargs

    def __init__(self, **kwargs: Unpack[TimeSformerImageProcessorKwargs]):
        super().__init__(**kwargs)

    def preprocess(
        self, images: ImageInput, *args, **kwargs: Unpack[TimeSformerImageProcessorKwargs]
    ) -> BatchFeature:
        """As the class's docstring says; a setting that is None in a call keeps its own value."""
        return super().preprocess(
            images, *args, **{name: value for name, value in kwargs.items() if value is not None}
        )

    def _prepare_image_like_inputs(
        self,
        images: ImageInput,
        *args,
        input_data_format: str | ChannelDimension | None = None,
        device: str | torch.device | None = None,
        **kwargs,
    ) -> list[torch.Tensor]:
        """Videos in memory to tensors `(t, c, h, w)`, one a video, on `device`.

        `images` may be one video or several: 4D arrays `(t, h, w, c)` or `(t, c, h, w)`, 5D arrays
        of such videos, or lists of frames.
        """
        videos = split_videos(images)
        return [
            self._frames_in_memory(video, input_data_format, kwargs).to(device) for video in videos
        ]


__all__ = ["TimeSformerImageProcessor"]
