"""Frames in memory, in the forms in which people hold them, to one tensor a video."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format


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
