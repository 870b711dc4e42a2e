"""Frames that are not FFmpeg's (pictures, readers, frames in memory): their segments, and checks of what is asked."""

import operator
from collections.abc import Callable, Sequence

from transformers.video_utils import VideoMetadata

from .decoding_segment import FrameTimes, TimedVideoMetadata, check_segment
from .decoding_source import VideoDecodeError


def segment_numbers(name: str, count: int, times: FrameTimes | None, start: float | None, end: float | None) -> range:
    """The numbers of the frames with `start <= time < end` of the `count` frames of the video called `name`.

    Raises:
        VideoDecodeError: no frame lies in the segment, or nobody knows when the frames are shown.
        ValueError: `start` and `end` make no segment.
    """
    check_segment(start, end)
    if start is None and end is None:
        return range(count)
    if times is None:
        message = f"has neither frame times nor a frame rate, so start={start} and end={end} cannot be found in it"
        raise VideoDecodeError(name, "segment", message)
    numbers = times.between(start, end)
    if not numbers:
        message = f"has no frame from start={start} to end={end} seconds: its frames lie from 0 to "
        raise VideoDecodeError(name, "segment", f"{message}{times.seconds[-1]:.3f} s")
    return numbers


def cut_metadata(metadata: TimedVideoMetadata, times: FrameTimes | None, numbers: range) -> None:
    """Make `metadata` of a whole video that of its frames `numbers`, with their times while it is open."""
    metadata.total_num_frames = len(numbers)
    metadata.duration = len(numbers) / metadata.fps if metadata.fps else None
    if times is not None:
        metadata._times = lambda: times.seconds[numbers.start : numbers.stop] - times.seconds[numbers.start]


def choose_frames(
    name: str, metadata: VideoMetadata, indices: Sequence[int] | Callable[[VideoMetadata], Sequence[int]]
) -> list[int]:
    """`indices` (or what they answer for `metadata`) as ints. VideoDecodeError for one that is no frame."""
    chosen = [operator.index(index) for index in (indices(metadata) if callable(indices) else indices)]
    count = metadata.total_num_frames
    for index in chosen:
        if not 0 <= index < count:
            raise VideoDecodeError(name, "index", f"has frames 0 to {count - 1}; frame {index} was asked for")
    return chosen
