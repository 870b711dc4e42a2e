"""When the frames of a video are shown, and which of them lie in a segment given in seconds.

Times are seconds since the first frame of the video, whatever its container counts from. A segment
from `start` to `end` has the frames with `start <= time < end`, so neighbouring segments share no
frame and lose none:

    frame      0     1     2     3     4     5      10 frames a second
    time      0.0   0.1   0.2   0.3   0.4   0.5
    [0.1, 0.3)        1     2                       start=0.1, end=0.3
    [0.3, None)                   3     4     5     start=0.3
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from numbers import Real
from typing import Protocol

import numpy as np
from transformers.video_utils import VideoMetadata

from .decoding_limits import VideoDecodeError


# Containers round times to their own tick (Matroska: 1 ms), and 1/3 s has no exact float. So a
# frame may be earlier than its segment by half a tick, but never by more than this.
MAX_TOLERANCE = 0.0005


@dataclass
class FrameTimes:
    """The time of each frame in seconds since the first: float64 `(num_frames,)`, and how far off
    each may be.
    """

    seconds: np.ndarray
    tolerance: float

    @classmethod
    def from_ticks(cls, ticks: np.ndarray, time_base: Fraction) -> "FrameTimes":
        """From presentation times in units of `time_base` seconds: int64 `(num_frames,)`,
        ascending.
        """
        since_first = ticks - ticks[0]
        # Multiplied before it is divided: then frame 3 of 10 a second is 0.3 and not
        # 0.30000000000000004.
        seconds = since_first * time_base.numerator / time_base.denominator
        return cls(seconds, min(MAX_TOLERANCE, float(time_base) / 2))

    @classmethod
    def evenly(cls, count: int, fps: float) -> "FrameTimes":
        """As many times at a constant rate, for containers that store none."""
        return cls(np.arange(count) / fps, 1e-6)

    def between(self, start: float | None, end: float | None) -> range:
        """The numbers of the frames with `start <= time < end`; an open end takes all."""
        edges = self.seconds + self.tolerance
        first = 0 if start is None else int(np.searchsorted(edges, start))
        stop = len(edges) if end is None else int(np.searchsorted(edges, end))
        return range(first, stop)


class CountedVideo(Protocol):
    """What is asked of a `ScannedVideo` or an `IndexedVideo`."""

    num_frames: int

    def times(self) -> FrameTimes | None: ...

    def scanned_times(self) -> FrameTimes | None: ...

    def confirms(self, times: FrameTimes, numbers: Collection[int]) -> bool: ...


class TimedVideoMetadata(VideoMetadata):
    """`VideoMetadata` that also knows when each frame is shown, while the `indices` function is
    asked.
    """

    _times: Callable[[], np.ndarray] | None = None

    def frame_times(self) -> np.ndarray:
        """Seconds from the first frame of the video or segment to each of its frames: float64
        `(num_frames,)`.

        May read through the file, so it is there only while `decode_video` asks its `indices`
        function.

        Raises:
            ValueError: `decode_video` is over.
        """
        if self._times is None:
            raise ValueError(
                "frame_times() is only there while decode_video calls its `indices` function"
            )
        return self._times()


def check_segment(start: float | None, end: float | None) -> None:
    """Raise `ValueError` for a segment that no video can have."""
    for name, value in (("start", start), ("end", end)):
        if value is None:
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, Real)
            or not isfinite(value)
            or value < 0
        ):
            raise ValueError(
                f"{name} must be a number of seconds from 0 on, or None; got {value!r}"
            )
    if end is not None and end <= (start or 0):
        raise ValueError(
            f"end must be later than start: start={start!r} and end={end!r} hold no frame"
        )


def segment_of_video(
    name: str, video: CountedVideo, start: float | None, end: float | None
) -> range:
    """The frame numbers of a segment of `video`, called `name`; all of them where no segment is
    asked for.

    Raises:
        VideoDecodeError: the video has no frame in the segment, or no times at all.
    """
    if start is None and end is None:
        return range(video.num_frames)
    times = known_times(name, video.times())
    numbers = times.between(start, end)
    edges = {numbers.start - 1, numbers.start, numbers.stop - 1, numbers.stop} & set(
        range(video.num_frames)
    )
    if not video.confirms(times, edges):
        times = known_times(name, video.scanned_times())
    return frames_in_segment(name, lambda: times, video.num_frames, start, end)


def frames_in_segment(
    name: str,
    times: Callable[[], FrameTimes | None],
    count: int,
    start: float | None,
    end: float | None,
) -> range:
    """The frame numbers of a segment of the video called `name` with `count` frames; all where none
    is asked for.

    Raises:
        VideoDecodeError: the video has no frame in the segment, or no times at all.
    """
    if start is None and end is None:
        return range(count)
    known = known_times(name, times())
    numbers = known.between(start, end)
    if not numbers:
        message = f"has no frame from start={start} to end={end} seconds: its frames lie from 0"
        raise VideoDecodeError(name, "segment", f"{message} to {known.seconds[-1]:.3f} s")
    return numbers


def known_times(name: str, times: FrameTimes | None) -> FrameTimes:
    """`times`, or a `VideoDecodeError` where the video called `name` has none."""
    if times is None:
        raise VideoDecodeError(
            name, "segment", "has neither frame times nor a frame rate, so nothing goes by seconds"
        )
    return times
