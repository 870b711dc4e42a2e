"""Frames and the times at which they are shown: sampling where the rate varies, segments of what
FFmpeg did not open.

A phone that records 60 frames a second in the light and 10 in the dark makes a file in which a
frame's number says little about its time. For example (x: a frame begins), 2 frames a second for
one second and 1 a second for two:

    time     0  .  .  .  1  .  .  .  2  .  .  .  3
    frame    0     1     2           3                  4 frames in 3 s

The middle by number is frame 2 of 4, but half the frames are gone after 1 s of 3. So positions are
worked out as if the frames were even, are taken for times (2 of 4 is 1.5 s of 3 s), and give the
frame that a player shows then: at 1.5 s that is frame 2, which lasts from 1 to 2 s.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from transformers.video_utils import VideoMetadata

from .decoding_limits import VideoDecodeError
from .decoding_segment import FrameTimes, TimedVideoMetadata
from .sampling import sample_indices


def cut_metadata(metadata: TimedVideoMetadata, times: FrameTimes | None, numbers: range) -> None:
    """Make `metadata` of a whole video that of its frames `numbers`, with their times while it is
    open.
    """
    metadata.total_num_frames = len(numbers)
    metadata.duration = len(numbers) / metadata.fps if metadata.fps else None
    if times is not None:
        metadata._times = lambda: (
            times.seconds[numbers.start : numbers.stop] - times.seconds[numbers.start]
        )


def choose_frames(
    name: str,
    metadata: VideoMetadata,
    indices: Iterable[int] | Callable[[VideoMetadata], Iterable[int]],
) -> list[int]:
    """`indices` (or what they answer for `metadata`) as ints. VideoDecodeError for one that is no
    frame.
    """
    chosen = [
        operator.index(index) for index in (indices(metadata) if callable(indices) else indices)
    ]
    count = metadata.total_num_frames
    for index in chosen:
        if not 0 <= index < count:
            raise VideoDecodeError(
                name, "index", f"has frames 0 to {count - 1}; frame {index} was asked for"
            )
    return chosen


# ---- by time where the rate varies


def uneven_times(metadata: VideoMetadata) -> np.ndarray | None:
    """Seconds at which the frames of a video begin, `(num_frames,)`; None where the rate is
    constant or unknown.

    It varies where some frame begins a whole frame or more from where an even rate would have it.
    May read through the file, so ask only where time matters.
    """
    has_times = isinstance(metadata, TimedVideoMetadata) and metadata._times is not None
    if not has_times or not metadata.fps or metadata.total_num_frames < 3:
        return None
    seconds = metadata.frame_times()
    step = seconds[-1] / (len(seconds) - 1)
    even = np.arange(len(seconds)) * step
    return seconds if np.abs(seconds - even).max() >= step else None


def length_of(seconds: np.ndarray) -> float:
    """How long a video is whose frames begin at `seconds`, `(t,)` with at least two: the last is
    shown as long as the one before it.
    """
    return float(2 * seconds[-1] - seconds[-2])


def shown_at(seconds: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The number of the frame that is shown at each of the times `asked`, of frames that begin at
    `seconds`, `(t,)`. The numbers are int64, in the shape of `asked`: `(...) -> (...)`.
    """
    numbers = np.searchsorted(seconds, asked + 1e-6, side="right") - 1
    return np.clip(numbers, 0, len(seconds) - 1)


def sample_video(
    metadata: VideoMetadata,
    policy: str,
    *,
    num_frames: int,
    sampling_rate: float = 32,
    num_clips: int = 1,
    target_fps: float | None = None,
    generator: np.random.Generator | None = None,
) -> np.ndarray:
    """`sample_indices` for a video of this metadata, by time where its frame rate varies.

    Segments are then equal parts of the time, and windows of `target_fps` are stretches of it.
    Windows without `target_fps` are so many frames of the source, whatever their times.

    Returns:
        int64 `(num_clips, num_frames)`, each in `[0, metadata.total_num_frames)`.

    Raises:
        ValueError: as `sample_indices`.
    """
    count, fps = metadata.total_num_frames, metadata.fps or None
    goes_by_time = policy == "segments" or target_fps is not None
    seconds = uneven_times(metadata) if goes_by_time else None
    if seconds is not None:
        fps = count / length_of(seconds)
    settings: dict[str, Any] = {
        "num_frames": num_frames,
        "sampling_rate": sampling_rate,
        "num_clips": num_clips,
    }
    settings |= {"fps": fps, "target_fps": target_fps, "generator": generator}
    # (clips, frames), frame numbers with their fractions
    positions = sample_indices(policy, count, **settings, rounded=False)
    if seconds is None:
        return np.floor(positions).astype(np.int64)
    return shown_at(seconds, positions * length_of(seconds) / count)


def frames_a_second(metadata: VideoMetadata, fps: float) -> np.ndarray:
    """Frame numbers `(n,)` of `fps` frames a second of the whole video, at least one; by time where
    its rate varies.

    Raises ValueError where nobody knows the video's own rate.
    """
    if not metadata.fps:
        raise ValueError(f"fps={fps} needs the video's own rate: pass video_metadata with its fps")
    total = metadata.total_num_frames
    seconds = uneven_times(metadata)
    if seconds is None:
        count = max(1, int(total / metadata.fps * fps))
        return np.arange(count) * total // count
    length = length_of(seconds)
    count = max(1, int(length * fps + 1e-6))
    return shown_at(seconds, np.arange(count) * length / count)
