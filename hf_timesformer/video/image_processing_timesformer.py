"""Frames in memory to normalised views."""

import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput
from transformers.processing_utils import ImagesKwargs, Unpack

from .memory_frames import frames_to_tensor, split_videos
from .views import TimeSformerViewsMixin


class TimeSformerImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings of `TimeSformerImageProcessor` beyond those that every image processor has."""

    num_crops: int | None


class TimeSformerImageProcessor(TimeSformerViewsMixin, TorchvisionBackend):
    """Frames in memory to `pixel_values`, pixel for pixel as `TimeSformerVideoProcessor` makes them.

    `processor(video)`: a video is a list of PIL images, arrays or tensors, or one 4D array, channels first or last,
    values 0 to 255; a batch is a list of such videos, or a 5D array. Every frame that is handed over is used: choosing
    them is left to the caller (`hf_timesformer.sampling`). Frames are scaled to `size`, cut to `crop_size`
    (`num_crops` 1: the centre; 3: left, centre, right, in portrait top, centre, bottom) and normalised.

    Returns `pixel_values`: float `(B, T, C, H, W)`, with three crops `(B, 3, T, C, H, W)`. Raises `ValueError` for
    input that is no video in memory, and for frames of several sizes in one video.
    """

    valid_kwargs = TimeSformerImageProcessorKwargs

    def __init__(self, **kwargs: Unpack[TimeSformerImageProcessorKwargs]):
        super().__init__(**kwargs)

    def preprocess(self, images: ImageInput, *args, **kwargs: Unpack[TimeSformerImageProcessorKwargs]) -> BatchFeature:
        """As the class's docstring says; a setting that is None in a call keeps its own value."""
        return super().preprocess(
            images, *args, **{name: value for name, value in kwargs.items() if value is not None}
        )

    def _prepare_image_like_inputs(
        self,
        images: ImageInput,
        *args,
        do_convert_rgb: bool | None = None,
        image_mean: float | tuple[float, ...] | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: str | torch.device | None = None,
        **kwargs,
    ) -> list[torch.Tensor]:
        videos = [frames_to_tensor(video, input_data_format) for video in split_videos(images)]
        if do_convert_rgb:
            # Four means (or one) are for frames of four channels (or one): these are not meant to become RGB.
            num_channels = len(image_mean) if isinstance(image_mean, tuple) else 3
            videos = [video if video.shape[1] == num_channels else self.convert_to_rgb(video) for video in videos]
        return [video.to(device) for video in videos]


__all__ = ["TimeSformerImageProcessor"]
