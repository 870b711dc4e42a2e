"""Which frames of a video a clip takes: index arithmetic alone, no video is opened here."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real

import numpy as np


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What a policy sees: whole numbers that have been checked, and the length of a window in
    source frames.
    """

    total_num_frames: int
    num_frames: int
    num_clips: int
    window: float
    generator: np.random.Generator | None


def _sample_clip(request: _Request) -> np.ndarray:
    """`num_frames` frames spread over a window of consecutive source frames.

    12 frames, a window of 4, 2 frames a clip (x taken, f left):
    one clip, evaluation     ffffxffxffff   the window in the middle
    three clips, evaluation  xffxffffffff   evenly: the first clip starts with the video ...
                             ffffxffxffff
                             ffffffffxffx   ... and the last one ends with it
    """
    room = max(request.total_num_frames - request.window, 0)
    if request.generator is not None:
        starts = request.generator.uniform(0, room, size=request.num_clips)
    elif request.num_clips == 1:
        starts = np.array([room / 2])
    else:
        starts = np.linspace(0, room, request.num_clips)
    ends = starts + request.window - 1
    positions = np.linspace(starts, ends, request.num_frames, axis=1)  # (clips,) -> (clips, frames)
    return np.clip(positions, 0, request.total_num_frames - 1)


def _sample_segments(request: _Request) -> np.ndarray:
    """One frame of each of `num_frames` equal parts of the video; where in its part depends on the
    clip.

    12 frames, 4 a clip, evaluation (x taken, f left, | between parts):
    one clip   fxf|fxf|fxf|fxf   the middle frame of each part
    two clips  xff|xff|xff|xff   a quarter ...
               ffx|ffx|ffx|ffx   ... and three quarters of the way through each part
    """
    # How far through its part each frame lies, 0 to 1.
    if request.generator is not None:
        # (clips, frames)
        within = request.generator.random((request.num_clips, request.num_frames))
    else:
        # (clips, 1): alike in all parts
        within = (np.arange(request.num_clips)[:, None] + 0.5) / request.num_clips
    parts = np.arange(request.num_frames) + within  # (clips, frames), in parts of the video
    positions = parts * request.total_num_frames / request.num_frames
    # A draw next to 1 may round up to the next part's beginning, which after the last part is no
    # frame.
    return np.minimum(positions, np.nextafter(request.total_num_frames, 0))


SAMPLING_POLICIES: dict[str, Callable[[_Request], np.ndarray]] = {
    "clip": _sample_clip,
    "segments": _sample_segments,
}


def sample_indices(
    policy: str,
    total_num_frames: int,
    *,
    num_frames: int,
    sampling_rate: float = 32,
    num_clips: int = 1,
    fps: float | None = None,
    target_fps: float | None = None,
    generator: np.random.Generator | None = None,
    rounded: bool = True,
) -> np.ndarray:
    """Frame numbers of `num_clips` clips of a video.

    * `"clip"` (Kinetics, Diving48): a window of `num_frames * sampling_rate` source frames, times
      `fps / target_fps` where both are known, sampled evenly, by the arithmetic of the official
      code: `floor(clamp(linspace(start, start + window - 1), 0, total - 1))`. For evaluation one
      window lies in the middle of the video (paper, section 4), several are spread evenly from its
      first frame to its last; for training each start is uniformly random.
    * `"segments"` (Something-Something-V2): the video is cut in `num_frames` equal parts; for
      evaluation the middle frame of each (with several clips: clip `c` takes the point
      `(c + 1/2) / num_clips` of each part), for training a random frame of each. `sampling_rate`,
      `fps` and `target_fps` have no effect.

    A video shorter than the window repeats frames.

    Args:
        policy: `"clip"` or `"segments"`.
        total_num_frames: frames of the video.
        num_frames: frames of a clip.
        sampling_rate: one frame in so many.
        num_clips: clips of the video.
        fps: frames a second of the video, if known.
        target_fps: frames a second that `sampling_rate` counts in; None: it counts frames of the
            video.
        generator: where clips lie in training; None is the placement of evaluation, always the
            same.
        rounded: whether positions between two frames are rounded down to the earlier one.

    Returns:
        int64 `(num_clips, num_frames)`, each from 0 to below `total_num_frames`; float64 where they
        are not rounded.

    Raises:
        ValueError: an unknown policy, or a count or rate that is not positive.
    """
    check_sampling(
        policy,
        num_frames=num_frames,
        sampling_rate=sampling_rate,
        num_clips=num_clips,
        target_fps=target_fps,
    )
    _check_count("total_num_frames", total_num_frames)
    if fps is not None:
        _check_rate("fps", fps)
    speed = fps / target_fps if fps is not None and target_fps is not None else 1
    request = _Request(
        total_num_frames=int(total_num_frames),
        num_frames=int(num_frames),
        num_clips=int(num_clips),
        window=float(num_frames * sampling_rate * speed),
        generator=generator,
    )
    positions = SAMPLING_POLICIES[policy](request)
    return np.floor(positions).astype(np.int64) if rounded else positions


def check_sampling(
    policy: str,
    *,
    num_frames: int,
    sampling_rate: float = 32,
    num_clips: int = 1,
    target_fps: float | None = None,
) -> None:
    """Raise `ValueError` for settings that `sample_indices` would refuse, whatever the video."""
    if policy not in SAMPLING_POLICIES:
        known = ", ".join(repr(name) for name in SAMPLING_POLICIES)
        raise ValueError(f"sampling policy {policy!r} is unknown: choose one of {known}")
    _check_count("num_frames", num_frames)
    _check_count("num_clips", num_clips)
    _check_rate("sampling_rate", sampling_rate)
    if target_fps is not None:
        _check_rate("target_fps", target_fps)


def _check_count(name: str, count: object) -> None:
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}")


def _check_rate(name: str, rate: object) -> None:
    is_rate = (
        isinstance(rate, Real) and not isinstance(rate, bool) and isfinite(rate) and float(rate) > 0
    )
    if not is_rate:
        raise ValueError(f"{name} must be a positive number, got {rate!r}")
