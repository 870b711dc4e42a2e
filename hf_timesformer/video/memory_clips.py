"""Videos in memory and what a call says of each video: metadata, segments, and which of the frames
are taken.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.utils import logging
from transformers.video_utils import VideoMetadata, make_batched_metadata

from .decoding_segment import FrameTimes, check_segment, frames_in_segment


logger = logging.get_logger(__name__)


def metadata_of_each(videos: list, given: Any) -> list[VideoMetadata | None]:
    """One entry a video; None where nothing was given.

    Raises:
        ValueError: there are more or fewer entries than videos.
    """
    if given is None:
        return [None] * len(videos)
    metadata = make_batched_metadata(videos, given)
    if len(metadata) != len(videos):  # transformers 5.20 lets that pass
        raise ValueError(
            f"{len(videos)} videos but {len(metadata)} `video_metadata` entries: pass one for each video"
        )
    return metadata


def one_for_each(name: str, given: Any, num_videos: int) -> list[float | None]:
    """Seconds for each video, from one number for all or from as many as there are videos.

    Raises:
        ValueError: there are more or fewer numbers than videos.
    """
    if not isinstance(given, (list, tuple)):
        return [given] * num_videos
    if len(given) != num_videos:
        raise ValueError(
            f"{num_videos} videos but {len(given)} numbers in `{name}`: pass one for each video, or one"
        )
    return list(given)


def cut_in_memory(
    frames: torch.Tensor, metadata: VideoMetadata | None, start: float | None, end: float | None
) -> tuple[torch.Tensor, VideoMetadata | None]:
    """The frames of `(T, C, H, W)` with `start <= time < end` seconds, and the metadata of that
    segment.

    Raises:
        ValueError: `start` and `end` make no segment, no frame lies in it, or nobody knows when the
            frames are shown.
    """
    check_segment(start, end)
    if start is None and end is None:
        return frames, metadata
    if metadata is None or not metadata.fps or metadata.total_num_frames != len(frames):
        raise ValueError(
            f"start={start} and end={end} need the whole video and its rate: pass all frames, and video_metadata with "
            "total_num_frames and fps"
        )
    times = FrameTimes.evenly(len(frames), metadata.fps)
    numbers = frames_in_segment("the video in memory", lambda: times, len(frames), start, end)
    segment = replace(metadata, total_num_frames=len(numbers), frames_indices=None, duration=None)
    return frames[numbers.start : numbers.stop], segment


def sample_in_memory(
    frames: torch.Tensor,
    metadata: VideoMetadata | None,
    sample: partial[np.ndarray] | None,
    given: Mapping[str, Any],
) -> tuple[torch.Tensor, VideoMetadata]:
    """The frames of a video in memory that a call of the processor asks for; its docstring has the
    rules.

    Args:
        frames: `(T, C, H, W)`.
        metadata: what the caller says of the video, or None.
        sample: `sample_frames` with the settings of the call; None takes every frame.
        given: what the caller passed in this call.

    Returns:
        The frames chosen, `(T', C, H, W)`, and the metadata, `frames_indices` set.

    Raises:
        ValueError: more frames are asked for than there are, or the metadata is not that of these
            frames.
    """
    count = len(frames)
    whole = VideoMetadata(
        total_num_frames=count,
        height=frames.shape[2],
        width=frames.shape[3],
        frames_indices=list(range(count)),
    )
    if sample is None or _is_taken_already(count, metadata, sample, given):
        return frames, metadata or whole
    indices = sample(metadata=metadata or whole)
    if metadata is None and "do_sample_frames" not in given:
        _warn_of_repeats(indices, count)
    return frames[torch.from_numpy(indices)], replace(
        metadata or whole, frames_indices=indices.tolist()
    )


def _is_taken_already(
    count: int,
    metadata: VideoMetadata | None,
    sample: partial[np.ndarray],
    given: Mapping[str, Any],
) -> bool:
    """Whether `count` frames are a clip, not a whole video. Raises as `sample_in_memory` does.

    Only the settings of `sample`, which gives frame numbers `(n,)`, are read.
    """
    if metadata is None:
        asked = given.get("num_frames", 0)
        if asked > count and "do_sample_frames" not in given:
            raise ValueError(
                f"num_frames={asked} were asked of {count} frames in memory: pass do_sample_frames=True to repeat "
                "frames, or do_sample_frames=False to take them as they are"
            )
        return sample.keywords["num_clips"] == 1 and sample.keywords["num_frames"] == count
    if metadata.total_num_frames == count:
        return False
    if metadata.frames_indices is not None and len(metadata.frames_indices) == count:
        return True
    raise ValueError(
        f"video_metadata says total_num_frames={metadata.total_num_frames}, but the video has {count} frames: "
        "pass the whole video, or the frames_indices of those that were taken"
    )


def _warn_of_repeats(indices: np.ndarray, count: int) -> None:
    """Warn where frame numbers, int64 `(n,)`, repeat though some of `count` frames are left out."""
    if len(np.unique(indices)) < min(count, len(indices)):
        logger.warning_once(
            f"{count} frames in memory were sampled as a whole video, shorter than its sampling window, so that "
            "frames repeat. If they are a clip already, pass do_sample_frames=False"
        )
