"""Frames in memory to normalised views; what both processors share lives here too."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
import torch
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import IMAGE_PROCESSOR_NAME, logging
from transformers.video_utils import convert_to_rgb

from .processor_type import forget_class, name_class


logger = logging.get_logger(__name__)

NUM_CROPS = (1, 3)


def is_source(video: object) -> bool:
    """Whether `video` is something to be opened (a path, URL, bytes or file object), not frames in memory."""
    return isinstance(video, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(video, "read")


def _is_frame(frame: object) -> bool:
    return isinstance(frame, PIL.Image.Image) or (
        isinstance(frame, (np.ndarray, torch.Tensor)) and frame.ndim in (2, 3)
    )


def split_videos(videos: Any) -> list:
    """One entry a video: a source, a 4D array or tensor, or a list of frames.

    `videos` is one video or any nesting of lists of them; a 5D array is a batch; one picture is a video of one frame;
    `{"path": ..., "bytes": ...}` is what `datasets` makes of a video that it does not decode.
    Raises `ValueError` for anything else, and for an empty list.
    """
    if _is_frame(videos):
        return [[videos]]
    if is_source(videos):
        return [videos]
    if isinstance(videos, Mapping) and (videos.get("bytes") or videos.get("path")):
        return [videos.get("bytes") or videos["path"]]
    if isinstance(videos, (np.ndarray, torch.Tensor)) and videos.ndim in (4, 5):
        return [videos] if videos.ndim == 4 else list(videos)
    if isinstance(videos, (list, tuple)) and len(videos) > 0:
        if all(_is_frame(frame) for frame in videos):
            return [list(videos)]
        return [video for item in videos for video in split_videos(item)]
    what = f"{type(videos).__name__} of shape {tuple(videos.shape)}" if hasattr(videos, "shape") else repr(videos)[:80]
    raise ValueError(
        "expected a video or a list of videos (each a list of PIL images, arrays or tensors, or one 4D array), "
        f"got {what}"
    )


def frames_to_tensor(video: Any, input_data_format: str | ChannelDimension | None = None) -> torch.Tensor:
    """Frames of one video, `(T, H, W, C)` or `(T, C, H, W)` or a list of pictures, as a tensor `(T, C, H, W)`.

    Where `input_data_format` is None the side of length 1, 3 or 4 is taken for the channels. Raises `ValueError` where
    there is none, for a video without frames, and for frames that differ in size.
    """
    if is_source(video):
        raise ValueError(
            f"expected frames in memory, got {str(video)[:80]!r} of type {type(video).__name__}: "
            "TimeSformerVideoProcessor opens files"
        )
    if len(video) == 0:
        raise ValueError("a video without frames cannot be processed")
    if isinstance(video, list):
        return _stack_frames([_frame_to_tensor(frame, input_data_format) for frame in video])
    return _channels_first(_array_to_tensor(video), input_data_format).contiguous()


def _stack_frames(frames: list[torch.Tensor]) -> torch.Tensor:
    """Frames `(C, H, W)` of one size to a video `(T, C, H, W)`."""
    for index, frame in enumerate(frames):
        if frame.shape != frames[0].shape:
            raise ValueError(
                "the frames of one video must have one size and as many channels: frame 0 has shape "
                f"{tuple(frames[0].shape)}, frame {index} has {tuple(frame.shape)}, channels first"
            )
    return torch.stack(frames)


def _frame_to_tensor(frame: Any, input_data_format: str | ChannelDimension | None) -> torch.Tensor:
    """One picture, array or tensor to `(C, H, W)`: each may have its channels elsewhere, a PIL image has them last."""
    if isinstance(frame, PIL.Image.Image):
        frame, input_data_format = _picture_to_array(frame), ChannelDimension.LAST
    frame = _array_to_tensor(frame)
    if frame.ndim == 2:  # grey: (h, w) -> (1, h, w)
        return frame[None]
    return _channels_first(frame, input_data_format)


def _picture_to_array(picture: PIL.Image.Image) -> np.ndarray:
    if picture.mode in ("LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    elif picture.mode not in ("RGB", "RGBA", "L"):
        picture = picture.convert("RGB")
    return np.array(picture)


def _channels_first(frames: torch.Tensor, input_data_format: str | ChannelDimension | None) -> torch.Tensor:
    """`(..., H, W, C)` or `(..., C, H, W)`, as `input_data_format` says or the sides tell, to `(..., C, H, W)`."""
    if input_data_format is None:
        input_data_format = _infer_data_format(frames)
    is_last = ChannelDimension(input_data_format) == ChannelDimension.LAST
    return frames.movedim(-1, -3) if is_last else frames


def _infer_data_format(frames: torch.Tensor) -> ChannelDimension:
    try:
        return infer_channel_dimension_format(frames, num_channels=(1, 3, 4))
    except ValueError as error:
        raise ValueError(
            f"no side of frames of shape {tuple(frames.shape[-3:])} has length 1, 3 or 4: where are the channels? "
            "Pass input_data_format='channels_first' or 'channels_last'"
        ) from error


def _array_to_tensor(array: np.ndarray | torch.Tensor) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))  # torch wants memory it may write to


def uniform_crops(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Three crops along the longer side: `(..., H, W)` -> `(3, ..., height, width)`.

    Left, centre and right; top, centre and bottom where frames are taller than wide (paper, 4; the official code).
    Square frames count as wide, so three crops of the crop's own size are the same crop three times.
    """
    room_y, room_x = frames.shape[-2] - height, frames.shape[-1] - width
    is_portrait = frames.shape[-2] > frames.shape[-1]
    y, x = room_y // 2, room_x // 2
    corners = [(0, x), (y, x), (room_y, x)] if is_portrait else [(y, 0), (y, x), (y, room_x)]
    return torch.stack([tvF.crop(frames, top, left, height, width) for top, left in corners])


class TimeSformerViewsMixin:
    """Settings and arithmetic from frames to views that the image and the video processor have in common."""

    resample = PILImageResampling.BILINEAR
    image_mean = [0.45, 0.45, 0.45]
    image_std = [0.225, 0.225, 0.225]
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    num_crops = 1
    model_input_names = ["pixel_values"]
    settings_file = IMAGE_PROCESSOR_NAME

    def __init__(self, **kwargs):
        # The type keys of other processors' files: `to_dict` says why none of them is kept.
        for key in ("image_processor_type", "video_processor_type", "feature_extractor_type"):
            kwargs.pop(key, None)
        super().__init__(**kwargs)
        self._check_crops(self.num_crops, self.do_center_crop)

    @staticmethod
    def _check_crops(num_crops: int, do_center_crop: bool | None) -> None:
        if num_crops not in NUM_CROPS:
            raise ValueError(f"num_crops must be 1 (the centre) or 3 (along the longer side), got {num_crops!r}")
        if num_crops > 1 and not do_center_crop:
            raise ValueError(f"num_crops={num_crops} cuts crops of crop_size: it needs do_center_crop=True")

    def _validate_preprocess_kwargs(self, num_crops: int = 1, do_center_crop: bool | None = None, **kwargs) -> None:
        self._check_crops(num_crops, do_center_crop)
        super()._validate_preprocess_kwargs(do_center_crop=do_center_crop, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The settings, without the name of the class: see `processor_type`."""
        settings = super().to_dict()
        for key in ("image_processor_type", "video_processor_type"):
            settings.pop(key, None)
        return settings

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Save the settings in `settings_file`; where no model's config lies, with the name of the class.

        So the Auto class opens a processor saved alone. A model that is saved there later takes the name out.
        """
        files = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        name_class(save_directory, self.settings_file)
        return files

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args, **kwargs):
        """Upload without the name of the class: a model may lie in the repository."""
        forget_class(working_dir, self.settings_file)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def convert_to_rgb(self, video: torch.Tensor) -> torch.Tensor:
        """Grey `(T, 1, H, W)` or RGBA `(T, 4, H, W)` frames to RGB `(T, 3, H, W)`; transparency becomes white."""
        if video.shape[-3] not in (1, 3, 4):
            raise ValueError(f"frames must have 1, 3 or 4 channels to become RGB, got {video.shape[-3]}")
        return convert_to_rgb(tvF.grayscale_to_rgb(video), input_data_format=ChannelDimension.FIRST)

    def _crop(self, frames: torch.Tensor, crop_size: SizeDict, num_crops: int) -> torch.Tensor:
        """`(T, C, H, W)` -> `(crops, T, C, h, w)`; frames smaller than the crop get a black border."""
        if num_crops == 1:
            return self.center_crop(frames, crop_size)[None]
        height, width = crop_size.height, crop_size.width
        at_least = SizeDict(height=max(frames.shape[-2], height), width=max(frames.shape[-1], width))
        return uniform_crops(self.center_crop(frames, at_least), height, width)

    def _preprocess(
        self,
        videos: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        do_center_crop: bool,
        crop_size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | tuple[float, ...] | None,
        image_std: float | tuple[float, ...] | None,
        num_crops: int,
        num_clips: int = 1,
        return_tensors: str | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Videos `(num_clips * T, C, H, W)` to `pixel_values`: a view is a crop of a clip, clips before crops."""
        pixel_values = []
        for frames in videos:
            if do_rescale and frames.is_floating_point() and frames.max() <= 1:
                logger.warning_once(
                    "frames with values of at most 1 are multiplied by rescale_factor as if they went to 255: pass "
                    "do_rescale=False where they go from 0 to 1"
                )
            if do_resize:
                frames = self.resize(frames, size=size, resample=resample)
            crops = self._crop(frames, crop_size, num_crops) if do_center_crop else frames[None]
            crops = self.rescale_and_normalize(
                crops, do_rescale, rescale_factor, do_normalize, image_mean, image_std
            )  # (crops, clips * t, c, h, w)
            views = crops.unflatten(1, (num_clips, -1)).transpose(0, 1).flatten(0, 1)  # (clips * crops, t, c, h, w)
            pixel_values.append(views[0] if len(views) == 1 else views)
        shapes = {tuple(views.shape) for views in pixel_values}
        if return_tensors is not None and len(shapes) > 1:
            raise ValueError(
                f"videos of one batch must become views of one shape, got {sorted(shapes)}: let the processor sample "
                "and crop (do_sample_frames=True with num_frames, do_center_crop=True), or leave out return_tensors"
            )
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)


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
