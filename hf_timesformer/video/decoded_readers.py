"""Readers that somebody else opened: what `datasets` makes of a video column that it decodes
itself.

`torchcodec.decoders.VideoDecoder` (datasets 4 and later) and `torchvision.io.VideoReader`
(earlier), told by what they can do, so that neither package is imported here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.video_utils import VideoMetadata

from .decoding_limits import VideoDecodeError
from .decoding_segment import FrameTimes, TimedVideoMetadata, check_segment, frames_in_segment
from .timed_frames import choose_frames, cut_metadata


# What the two raise for files that they cannot decode.
READER_ERRORS = (RuntimeError, IndexError, ValueError, EOFError, OSError)


def is_reader(video: object) -> bool:
    """Whether `video` is a torchcodec decoder or a torchvision reader."""
    return _is_torchcodec(video) or _is_torchvision(video)


def _is_torchcodec(video: object) -> bool:
    return hasattr(video, "get_frames_at") and hasattr(video, "metadata")


def _is_torchvision(video: object) -> bool:
    return hasattr(video, "get_metadata") and hasattr(video, "seek") and hasattr(video, "__next__")


def file_of_reader(reader: Any) -> str | bytes | None:
    """The local file or the bytes that `datasets` opened a decoder on; None where that is not
    known.

    Then our own decoder reads it, as safely and exactly as any other file.
    """
    encoded = getattr(reader, "_hf_encoded", None) or {}
    if encoded.get("bytes"):
        return encoded["bytes"]
    path = encoded.get("path")
    return path if path and Path(path).is_file() else None


def read_frames(
    reader: Any,
    choose: Callable[[VideoMetadata], Sequence[int]],
    *,
    start: float | None = None,
    end: float | None = None,
) -> tuple[torch.Tensor, VideoMetadata]:
    """Frames of an open reader by number, as `decode_video` gives those of a file.

    Args:
        reader: `is_reader` is true of it.
        choose: from the video's metadata to frame numbers, in any order, repeats allowed.
        start, end: seconds; numbers then count within that segment.

    Returns:
        uint8 frames `(T, 3, H, W)` and the metadata.

    Raises:
        VideoDecodeError: the reader cannot decode the frames, or has none in the segment.
    """
    check_segment(start, end)
    name = f"<{type(reader).__name__}>"
    try:
        known = (
            _torchcodec_metadata(reader)
            if _is_torchcodec(reader)
            else _torchvision_metadata(reader)
        )
    except READER_ERRORS as error:
        raise VideoDecodeError(name, "damaged", f"cannot be read: {error}") from error
    metadata, times = known
    numbers = frames_in_segment(name, lambda: times, metadata.total_num_frames, start, end)
    cut_metadata(metadata, times, numbers)
    chosen = choose_frames(name, metadata, choose)
    wanted = [numbers[index] for index in chosen]
    try:
        frames = (
            _torchcodec_frames(reader, wanted)
            if _is_torchcodec(reader)
            else _torchvision_frames(reader, wanted)
        )
    except READER_ERRORS as error:
        raise VideoDecodeError(name, "damaged", f"cannot be decoded: {error}") from error
    metadata._times = None
    metadata.frames_indices = chosen
    metadata.height, metadata.width = frames.shape[-2:]
    return frames, metadata


def _torchcodec_metadata(decoder: Any) -> tuple[TimedVideoMetadata, FrameTimes | None]:
    about = decoder.metadata
    count, fps = about.num_frames, about.average_fps
    metadata = TimedVideoMetadata(
        total_num_frames=count, fps=fps, width=about.width, height=about.height
    )
    metadata.video_backend = "torchcodec"
    return metadata, FrameTimes.evenly(count, fps) if fps else None


def _torchcodec_frames(decoder: Any, numbers: list[int]) -> torch.Tensor:
    """The frames of these `n` numbers, `(n, 3, h, w)`."""
    frames = decoder.get_frames_at(numbers).data.cpu()
    # a decoder made with dimension_order="NHWC"
    is_last = frames.shape[-1] == 3 and frames.shape[1] != 3
    return frames.movedim(-1, 1) if is_last else frames


def _torchvision_metadata(reader: Any) -> tuple[TimedVideoMetadata, FrameTimes | None]:
    """By reading all of it once: this reader knows the number of its frames in no other way."""
    reader.seek(0)
    seconds = np.array([frame["pts"] for frame in reader])
    rates = reader.get_metadata().get("video", {}).get("fps") or [None]
    metadata = TimedVideoMetadata(
        total_num_frames=len(seconds), fps=rates[0], video_backend="torchvision"
    )
    return metadata, FrameTimes(seconds - seconds[:1].sum(), 1e-6) if len(seconds) else None


def _torchvision_frames(reader: Any, numbers: list[int]) -> torch.Tensor:
    """The frames of these `n` numbers, `(n, 3, h, w)`, by reading from the beginning."""
    reader.seek(0)
    missing, found = set(numbers), {}
    for number, frame in enumerate(reader):
        if number in missing:
            found[number] = frame["data"]  # (3, h, w)
            missing.discard(number)
        if not missing:
            break
    if missing:
        raise ValueError(
            f"frame {min(missing)} did not come again when it was read from the beginning"
        )
    return torch.stack([found[number] for number in numbers])
