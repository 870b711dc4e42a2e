"""From the frames of a video to normalised views: the settings and arithmetic that both processors
share.
"""

import os
from collections.abc import Mapping, Sequence
from math import isclose
from typing import Any

import torch
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.utils import IMAGE_PROCESSOR_NAME
from transformers.video_utils import convert_to_rgb

from .memory_frames import frames_to_tensor, to_channels, to_levels, to_numbers
from .processor_type import forget_class, name_class


NUM_CROPS = (1, 3)
# The factors that take frames of 8 bits to 0..1, and to 0..2 for the kind that then subtracts 1.
LEVEL_FACTORS = (1 / 255, 1 / 127.5)
# What decides how frames in memory are read.
FRAME_SETTINGS = ("image_mean", "do_convert_rgb", "do_rescale", "rescale_factor")


def count_channels(image_mean: float | Sequence[float] | None) -> int:
    """How many channels a network takes: one for each mean; a bare number, or none, is for all
    three of RGB.
    """
    return len(image_mean) if isinstance(image_mean, (list, tuple)) else 3


def _check_means(frames: torch.Tensor, image_mean: float | Sequence[float] | None) -> None:
    """Raise `ValueError` where frames `(T, C, H, W)` have not as many channels as there are means."""
    if isinstance(image_mean, (list, tuple)) and len(image_mean) not in (1, frames.shape[1]):
        raise ValueError(
            f"frames have {frames.shape[1]} channels, image_mean has {len(image_mean)} numbers: pass as many, or "
            "do_convert_rgb=True"
        )


def uniform_crops(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Three crops along the longer side (paper, section 4; the official code).

    Left, centre and right; top, centre and bottom where frames are taller than wide. Square frames
    count as wide, so three crops of the crop's own size are the same crop three times. For 4 x 10
    frames and crops of 4 x 4, the crops begin in columns 0, 3 and 6.

    Args:
        frames: `(..., H, W)`, neither side smaller than the crop's.
        height, width: of the crops, in pixels.

    Returns:
        `(3, ..., height, width)`.
    """
    room_y = frames.shape[-2] - height
    room_x = frames.shape[-1] - width
    y = room_y // 2
    x = room_x // 2
    if frames.shape[-2] > frames.shape[-1]:
        corners = [(0, x), (y, x), (room_y, x)]
    else:
        corners = [(y, 0), (y, x), (y, room_x)]
    return torch.stack([tvF.crop(frames, top, left, height, width) for top, left in corners])


class TimeSformerViewsMixin:
    """Settings and arithmetic from frames to views that the image and the video processor have in
    common.
    """

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
            raise ValueError(
                f"num_crops must be 1 (the centre) or 3 (along the longer side), got {num_crops!r}"
            )
        if num_crops > 1 and not do_center_crop:
            raise ValueError(
                f"num_crops={num_crops} cuts crops of crop_size: it needs do_center_crop=True"
            )

    def _validate_preprocess_kwargs(
        self, num_crops: int = 1, do_center_crop: bool | None = None, **kwargs
    ) -> None:
        self._check_crops(num_crops, do_center_crop)
        super()._validate_preprocess_kwargs(do_center_crop=do_center_crop, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The settings, without the name of the class: see `processor_type`."""
        settings = super().to_dict()
        for key in ("image_processor_type", "video_processor_type"):
            settings.pop(key, None)
        return settings

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs
    ) -> list[str]:
        """Save the settings in `settings_file`; with the name of the class, if no model's config is
        in the folder.

        The Auto class needs that name to open a processor without a model. Saving a model there
        removes it.
        """
        files = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        name_class(save_directory, self.settings_file)
        return files

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args, **kwargs):
        """Upload without the name of the class, since there may be a model in the repository."""
        forget_class(working_dir, self.settings_file)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def convert_to_rgb(self, video: torch.Tensor) -> torch.Tensor:
        """Grey `(T, 1, H, W)` or RGBA `(T, 4, H, W)` frames to RGB `(T, 3, H, W)`; transparency
        becomes white.

        Raises:
            ValueError: frames of another number of channels.
        """
        if video.shape[-3] not in (1, 3, 4):
            raise ValueError(
                f"frames must have 1, 3 or 4 channels to become RGB, got {video.shape[-3]}"
            )
        return convert_to_rgb(tvF.grayscale_to_rgb(video), input_data_format=ChannelDimension.FIRST)

    def _frames_in_memory(
        self,
        video: Any,
        input_data_format: str | ChannelDimension | None,
        settings: Mapping[str, Any],
    ) -> torch.Tensor:
        """One video in memory to `(T, C, H, W)`: as many channels as means, values as
        `rescale_factor` expects them.

        `settings` are those of the call; the processor's own stand in for what they lack.
        """
        setting = {name: settings.get(name, getattr(self, name)) for name in FRAME_SETTINGS}
        num_channels = count_channels(setting["image_mean"]) if setting["do_convert_rgb"] else None
        frames = frames_to_tensor(video, input_data_format, num_channels)
        # Another factor, or none, is arithmetic of the caller's own: then values are left as they
        # come.
        factor = setting["rescale_factor"]
        is_for_levels = setting["do_rescale"] and any(
            isclose(factor, level) for level in LEVEL_FACTORS
        )
        frames = to_levels(frames) if is_for_levels else to_numbers(frames)
        return frames if num_channels is None else to_channels(frames, num_channels)

    def _crop(self, frames: torch.Tensor, crop_size: SizeDict, num_crops: int) -> torch.Tensor:
        """`(T, C, H, W)` -> `(crops, T, C, h, w)`; frames smaller than the crop get a black border."""
        if num_crops == 1:
            return self.center_crop(frames, crop_size)[None]
        height, width = crop_size.height, crop_size.width
        at_least = SizeDict(
            height=max(frames.shape[-2], height), width=max(frames.shape[-1], width)
        )
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
        """Videos to normalised views: scale the short side, crop, rescale and normalise.

        Args:
            videos: each `(num_clips * T, C, H, W)`, clip after clip; sizes may differ from video to
                video.
            num_crops: 1 or 3 of each clip.
            num_clips: clips of each video.
            return_tensors: `"pt"` makes one tensor of all; None a list, one entry a video.

        Returns:
            `pixel_values`: `(B, T, C, h, w)`, or `(B, num_clips * num_crops, T, C, h, w)` where
            that is more than one view: all crops of the first clip, then those of the second.

        Raises:
            ValueError: videos of one batch that become views of several shapes, and means that are
                not as many as channels.
        """
        pixel_values = []
        for frames in videos:
            if do_normalize:
                _check_means(frames, image_mean)
            if do_resize:
                frames = self.resize(frames, size=size, resample=resample)
            crops = self._crop(frames, crop_size, num_crops) if do_center_crop else frames[None]
            crops = self.rescale_and_normalize(
                crops, do_rescale, rescale_factor, do_normalize, image_mean, image_std
            )  # (crops, clips * t, c, h, w)
            # (clips, crops, t, c, h, w)
            by_clip = crops.unflatten(1, (num_clips, -1)).transpose(0, 1)
            views = by_clip.flatten(0, 1)  # (clips * crops, t, c, h, w)
            pixel_values.append(views[0] if len(views) == 1 else views)
        shapes = {tuple(views.shape) for views in pixel_values}
        if return_tensors is not None and len(shapes) > 1:
            raise ValueError(
                f"videos of one batch must become views of one shape, got {sorted(shapes)}: let the processor sample "
                "and crop (do_sample_frames=True with num_frames, do_center_crop=True), or leave out return_tensors"
            )
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)
