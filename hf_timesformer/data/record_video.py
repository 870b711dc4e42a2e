"""The video of a record, read as the record says: where it lies, and which part of it is meant."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from datasets.utils.file_utils import xopen
from transformers.video_utils import VideoMetadata

from ..video.decoding import decode_video
from ..video.decoding_limits import DecodeLimits, VideoDecodeError
from ..video.frame_folder import rate_of_pictures
from ..video.video_processing_timesformer import TimeSformerVideoProcessor


@dataclass(frozen=True)
class ReadSettings:
    """How video files are read.

    Attributes:
        frame_rate: frames a second of folders of pictures, which tell none.
        limits: what one video may cost; None is the decoder's own.
    """

    frame_rate: float | None = None
    limits: DecodeLimits | None = None

    @classmethod
    def given(
        cls,
        frame_rate: float | None = None,
        limits: DecodeLimits | Mapping[str, Any] | None = None,
    ) -> "ReadSettings":
        """From what a person wrote.

        Args:
            frame_rate: frames a second of folders of pictures, which tell none.
            limits: what one video may cost, a `DecodeLimits` or a dict of some of them.

        Raises:
            ValueError: the dict has a name that is no limit.
        """
        return cls(frame_rate, DecodeLimits.of(limits))

    @classmethod
    def of(cls, processor: TimeSformerVideoProcessor) -> "ReadSettings":
        """Those of a processor."""
        return cls.given(processor.frame_rate, processor.limits)

    def for_video(self, video: Any) -> dict[str, Any]:
        """The same as keywords of `decode_video` and `probe_video` for this `video`: files have a
        frame rate of their own.
        """
        return {"frame_rate": rate_of_pictures(video, self.frame_rate), "limits": self.limits}


DEFAULT_READING = ReadSettings()


def decode_record(
    record: Mapping[str, Any],
    indices: Iterable[int] | Callable[[VideoMetadata], Iterable[int]],
    *,
    short_side: int | None = None,
    reading: ReadSettings = DEFAULT_READING,
) -> tuple[torch.Tensor, VideoMetadata]:
    """`decode_video` of the video of a record, or of the segment of it that the record is.

    Args:
        record: with `video`, and perhaps the columns of a segment.
        indices, short_side: as `decode_video` takes them; `indices` count within the segment.
        reading: of files.

    Returns:
        uint8 frames `(T, 3, H, W)` and the metadata.

    Raises:
        VideoDecodeError: it cannot be read.
    """
    video = video_of(record["video"])
    options = reading.for_video(video) | segment_of(record, reading)
    return decode_video(video, indices, short_side=short_side, **options)


def process_record(record: Mapping[str, Any], processor: TimeSformerVideoProcessor) -> torch.Tensor:
    """What a processor makes of the video, or the segment, of a record: float32 `(t, c, h, w)`, or
    `(views, t, c, h, w)` where it makes several views.

    Raises:
        VideoDecodeError: it cannot be read.
    """
    segment = segment_of(record, ReadSettings.of(processor))
    inputs = processor(video_of(record["video"]), return_tensors="pt", **segment)
    return inputs["pixel_values"][0]


def video_of(value: Any) -> str | bytes:
    """What a row of a data set has for a video, as `decode_video` takes it: a path, or bytes.

    A `Video` that `datasets` did not decode is `{"bytes": ..., "path": ...}`; what lies at an
    address of the Hub, or in an archive, is fetched.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value["path"]
    if isinstance(value, str) and ("://" in value or "::" in value) and not os.path.exists(value):
        with xopen(value, "rb") as file:
            return file.read()
    if isinstance(value, (str, bytes)):
        return value
    raise ValueError(
        f"a video column should hold paths or bytes, not {type(value).__name__}: "
        'cast it with data.cast_column("video", datasets.Video(decode=False))'
    )


def segment_of(
    record: Mapping[str, Any], reading: ReadSettings = DEFAULT_READING
) -> dict[str, Any]:
    """The `start` and `end` of a record in seconds, for `decode_video`; empty for a whole video.

    Where the record has `start_frame` and `end_frame`, the times of these frames are looked up in
    the file, so that the segment is exact whether or not the frame rate varies.

    Raises:
        VideoDecodeError: the file cannot be read, ends before the segment, or has no times.
    """
    edges = {name: record.get(name) for name in ("start", "end")}
    frames = {name: record.get(f"{name}_frame") for name in ("start", "end")}
    if any(frame is not None for frame in frames.values()):
        edges = _times_of_frames(video_of(record["video"]), frames, reading)
    return {name: float(edge) for name, edge in edges.items() if edge is not None}


def _times_of_frames(
    video: str | bytes, frames: Mapping[str, int | None], reading: ReadSettings
) -> dict[str, float | None]:
    name = video if isinstance(video, str) else f"<{len(video)} bytes>"
    times: list[float] = []

    def note_times(metadata: Any) -> list[int]:
        if not metadata.fps and os.path.isdir(video):
            message = "is a folder of pictures, which have no times: give their --frame_rate"
            raise VideoDecodeError(name, "segment", message)
        times.extend(metadata.frame_times())
        return []  # nothing is decoded

    decode_video(video, note_times, **reading.for_video(video))
    start, end = frames["start"] or 0, frames["end"]
    if start >= len(times):
        raise VideoDecodeError(
            name, "segment", f"has {len(times)} frames; a segment from frame {start} was asked for"
        )
    return {"start": times[start], "end": None if end is None or end >= len(times) else times[end]}
