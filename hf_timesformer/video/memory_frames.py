"""Frames in memory, in the forms in which people hold them, to one tensor a video."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torchvision.transforms.v2 import functional as tvF
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format
from transformers.utils import logging

from .decoded_readers import is_reader
from .frame_folder import FrameFiles, is_animated, is_picture


logger = logging.get_logger(__name__)

# PIL's modes with transparency, and those of grey pictures that are kept as they are: 8 bits, 16
# bits, whole numbers of 32 bits, floats. Every other mode (palettes, CMYK, bitmaps, ...) becomes
# RGB.
ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
GREY_MODES = ("L", "I;16", "I;16L", "I;16B", "I;16N", "I", "F")


def is_source(video: object) -> bool:
    """Whether `video` is something to be opened (a path, URL, bytes or file object), not frames in
    memory.
    """
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, FrameFiles)
    return isinstance(video, kinds) or hasattr(video, "read")


def is_frame(frame: object) -> bool:
    """Whether `frame` is one picture in memory: a PIL image, or an array or tensor of two or three
    dimensions.
    """
    return isinstance(frame, PIL.Image.Image) or (
        isinstance(frame, (np.ndarray, torch.Tensor)) and frame.ndim in (2, 3)
    )


def are_pictures(paths: Sequence) -> bool:
    """Whether all are paths of picture files, of which a list is one video; an animated picture is
    a video itself.
    """
    return all(is_picture(path) for path in paths) and not is_animated(paths[0])


def split_videos(videos: Any) -> list:
    """One entry a video: a source, an open reader, a 4D array or tensor, or a list of frames.

    `videos` is one video or any nesting of lists of them; a 5D array is a batch; one picture is a
    video of one frame, and a list of the paths of pictures one of as many. A mapping
    `{"path": ..., "bytes": ...}` is what `datasets` makes of a video that it does not decode.

    Raises:
        ValueError: anything else, and an empty list.
    """
    if is_frame(videos):
        return [[videos]]
    if is_source(videos) or is_reader(videos):
        return [videos]
    if isinstance(videos, Mapping) and (videos.get("bytes") or videos.get("path")):
        return [videos.get("bytes") or videos["path"]]
    if isinstance(videos, (np.ndarray, torch.Tensor)) and videos.ndim in (4, 5):
        return [videos] if videos.ndim == 4 else list(videos)
    if isinstance(videos, (list, tuple)) and len(videos) > 0:
        if are_pictures(videos):
            return [FrameFiles.from_list(videos)]
        if all(is_frame(frame) for frame in videos):
            return [list(videos)]
        return [video for item in videos for video in split_videos(item)]
    what = (
        f"{type(videos).__name__} of shape {tuple(videos.shape)}"
        if hasattr(videos, "shape")
        else repr(videos)[:80]
    )
    raise ValueError(
        "expected a video or a list of videos (each a list of PIL images, arrays or tensors, or one 4D array), "
        f"got {what}"
    )


def frames_to_tensor(
    video: Any,
    input_data_format: str | ChannelDimension | None = None,
    num_channels: int | None = None,
) -> torch.Tensor:
    """Frames of one video as one tensor.

    Args:
        video: `(T, H, W, C)`, `(T, C, H, W)`, or a list of pictures, arrays or tensors, one a
            frame.
        input_data_format: where arrays have their channels; None: the side of length 1, 3 or 4 is
            taken for them.
        num_channels: how many channels the network takes. Unless it takes 4, PIL pictures with
            transparency are laid on white. None: channels are kept as they are.

    Returns:
        `(T, C, H, W)`, values and type as given.

    Raises:
        ValueError: no side can be the channels, a video without frames, or frames that differ in
            size or type.
    """
    if is_source(video):
        raise ValueError(
            f"expected frames in memory, got {str(video)[:80]!r} of type {type(video).__name__}: "
            "TimeSformerVideoProcessor opens files"
        )
    if len(video) == 0:
        raise ValueError("a video without frames cannot be processed")
    if isinstance(video, list):
        return _stack_frames(
            [_frame_to_tensor(frame, input_data_format, num_channels) for frame in video]
        )
    return _channels_first(_array_to_tensor(video), input_data_format, num_channels).contiguous()


def _stack_frames(frames: list[torch.Tensor]) -> torch.Tensor:
    """Frames `(C, H, W)` of one size and type to a video `(T, C, H, W)`."""
    first = frames[0]
    for index, frame in enumerate(frames):
        if frame.shape != first.shape:
            raise ValueError(
                "the frames of one video must have one size and as many channels: frame 0 has shape "
                f"{tuple(first.shape)}, frame {index} has {tuple(frame.shape)}, channels first"
            )
        if frame.dtype != first.dtype:
            raise ValueError(
                f"the frames of one video must have one type: frame 0 has {_name(first.dtype)}, frame {index} has "
                f"{_name(frame.dtype)}; convert them to the same"
            )
    return torch.stack(frames)


def _frame_to_tensor(
    frame: Any, input_data_format: str | ChannelDimension | None, num_channels: int | None
) -> torch.Tensor:
    """One picture, array or tensor to `(C, H, W)`: each may have its channels elsewhere, a PIL
    image has them last.
    """
    if isinstance(frame, PIL.Image.Image):
        frame = _picture_to_array(frame, num_channels)
        input_data_format = ChannelDimension.LAST
    frame = _array_to_tensor(frame)
    if frame.ndim == 2:  # grey: (h, w) -> (1, h, w)
        return frame[None]
    return _channels_first(frame, input_data_format, num_channels)


def _picture_to_array(picture: PIL.Image.Image, num_channels: int | None) -> np.ndarray:
    """`(H, W, C)`, or `(H, W)` of a grey picture; transparency becomes white where the network has
    no place for it.
    """
    if picture.mode in GREY_MODES and "transparency" not in picture.info:
        return np.array(picture)
    if picture.mode in ALPHA_MODES or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        if num_channels not in (None, 4):
            white = PIL.Image.new("RGBA", picture.size, "white")
            picture = PIL.Image.alpha_composite(white, picture).convert("RGB")
    else:
        picture = picture.convert("RGB")
    return np.array(picture)


def _channels_first(
    frames: torch.Tensor, input_data_format: str | ChannelDimension | None, num_channels: int | None
) -> torch.Tensor:
    """`(..., H, W, C)` or `(..., C, H, W)`, as `input_data_format` says or the sides tell, to
    `(..., C, H, W)`.
    """
    if input_data_format is None:
        input_data_format = _infer_data_format(frames, num_channels)
    is_last = ChannelDimension(input_data_format) == ChannelDimension.LAST
    return frames.movedim(-1, -3) if is_last else frames


def _infer_data_format(frames: torch.Tensor, num_channels: int | None) -> ChannelDimension:
    """Where frames `(..., h, w, c)` or `(..., c, h, w)` have their channels, as the lengths of the
    sides tell; first where both fit.
    """
    usual = {1, 3, 4} if num_channels is None else {1, 3, 4, num_channels}
    try:
        return infer_channel_dimension_format(frames, num_channels=tuple(sorted(usual)))
    except ValueError as error:
        raise ValueError(
            f"no side of frames of shape {tuple(frames.shape[-3:])} has length 1, 3 or 4: where are the channels? "
            "Pass input_data_format='channels_first' or 'channels_last'"
        ) from error


def _array_to_tensor(array: np.ndarray | torch.Tensor) -> torch.Tensor:
    """An array of any shape as a tensor of the same, `(...) -> (...)`; a tensor stays as it is."""
    if isinstance(array, torch.Tensor):
        return array
    # torch knows only this machine's byte order
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    # and wants memory it may write to
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


# ---- values: 0 to 255, whatever the type


def to_levels(frames: torch.Tensor) -> torch.Tensor:
    """Frames of any type to values from 0 to 255, those that 8-bit frames have:
    `(t, c, h, w) -> (t, c, h, w)`.

    | type | what its values are | becomes |
    |---|---|---|
    | uint8 | 0 to 255 | stays |
    | bool | 0 or 1 | uint8, times 255 |
    | uint16 | 0 to 65535 | float32, divided by 257 |
    | other whole numbers | must lie from 0 to 255 | uint8 |
    | floats of at most 1.5 | 0 to 1, somewhat more where an interpolation overshoots | float32, times 255 |
    | floats up to 320 | 0 to 255, likewise | float32 |

    Raises `ValueError` for every other range: no scale is known that would make a picture of it.
    """
    if frames.dtype == torch.uint8:
        return frames
    if frames.dtype == torch.bool:
        return frames.to(torch.uint8) * 255
    if frames.dtype == torch.uint16:
        return frames.to(torch.float32) / 257
    if frames.is_complex():
        raise ValueError(f"frames of type {_name(frames.dtype)} are no pictures")
    low, high = (bound.item() for bound in frames.aminmax())
    if not frames.is_floating_point():
        if low < 0 or high > 255:
            raise ValueError(_range_error(frames, low, high))
        return frames.to(torch.uint8)
    # An interpolation overshoots by a part of the range; what is normalised already goes as far
    # below 0 as above.
    if not (-0.25 * high <= low and high <= 320):  # NaN fails too
        raise ValueError(_range_error(frames, low, high))
    if high > 1.5:
        return frames.to(torch.float32)
    if high > 0:
        logger.warning_once(
            f"float frames with values up to {high:g} are taken to go from 0 to 1, not from 0 to 255; "
            "pass uint8 frames if they are dark ones"
        )
    return frames.to(torch.float32) * 255


def to_numbers(frames: torch.Tensor) -> torch.Tensor:
    """Frames of any type with the values that they have, `(t, c, h, w) -> (t, c, h, w)`: uint8
    stays, anything else becomes float32.
    """
    return frames if frames.dtype == torch.uint8 else frames.to(torch.float32)


def _range_error(frames: torch.Tensor, low: float, high: float) -> str:
    """The message for frames `(t, c, h, w)` whose values, `low` to `high`, have no known scale."""
    return (
        f"frames of type {_name(frames.dtype)} have values from {low:g} to {high:g}: expected 0 to 255, for floats "
        "also 0 to 1 (unsigned frames of 8 and 16 bits are scaled by their type). Scale them, or pass "
        "do_rescale=False to have them normalised as they are, and do_normalize=False if they are normalised already"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- channels


def to_channels(frames: torch.Tensor, num_channels: int) -> torch.Tensor:
    """`(T, C, H, W)` to `(T, num_channels, H, W)`: grey to RGB by repeating it, RGB to grey by its
    BT.601 luminance.

    Raises `ValueError` for every other pair of numbers: whether a fourth channel is transparency,
    depth or infrared, only the caller knows.
    """
    found = frames.shape[1]
    if found == num_channels:
        return frames
    if (found, num_channels) == (1, 3):
        return tvF.grayscale_to_rgb(frames)
    if (found, num_channels) == (3, 1):
        return tvF.rgb_to_grayscale(frames)
    message = f"frames have {found} channels, image_mean of this processor has {num_channels}"
    if found == 4:
        message += (
            ": if the fourth is transparency, pass PIL images of mode 'RGBA' or leave it out; if the network takes "
            "four channels, pass four image_mean and image_std"
        )
    elif found == 3:
        message += ": a video file and RGB pictures hold red, green and blue; pass frames with all channels"
    raise ValueError(message)
