"""The video once more with what was seen written on it, and pieces of it that any browser plays."""

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..video.decoding import VideoDecodeError, decode_video
from ..video.decoding_segment import TimedVideoMetadata
from ..video.frame_stream import FrameStream, StreamedFrame
from .timeline import Timeline


TIME_BASE = Fraction(1, 90000)
CHUNK_SECONDS = 4.0  # decoded at a time, so that a long piece fits into memory
ENCODER_OPTIONS = {"crf": "23", "preset": "veryfast"}


def write_overlay(
    path: Path,
    timeline: Timeline,
    *,
    short_side: int | None = None,
    progress: Callable[[float], None] = lambda seconds: None,
) -> Path:
    """The video as H.264 with the classes of each moment, their scores and the time drawn on every
    frame.

    The scores are those of the window whose cell the frame lies in, and without segments there its
    best class in brackets; a regression's numbers stand there as they are. `short_side` scales the
    frames, None keeps their size. Raises VideoDecodeError.
    """
    is_folder = os.path.isdir(timeline.video)  # of pictures, which do not tell their rate
    rate = timeline.frame_rate if is_folder else None
    stream = FrameStream(timeline.video, short_side=short_side, frame_rate=rate)
    return write_film(
        path, (_drawn(frame, timeline, progress) for frame in stream), stream.frame_rate
    )


def cut_film(
    path: Path, source: str | os.PathLike, start: float, end: float, *, short_side: int = 360
) -> Path:
    """The frames of `source` from `start` to `end` seconds as H.264, whatever the source is encoded
    in, without sound.

    Raises VideoDecodeError for a source that cannot be read, and where no frame lies there.
    """
    return write_film(path, _piece(source, start, end, short_side))


def _piece(
    source: str | os.PathLike, start: float, end: float, short_side: int
) -> Iterator[tuple[float, np.ndarray]]:
    """Frames, uint8 `(h, w, 3)`, with their seconds since `start`, decoded a few seconds at a time
    from the key frame before each.
    """
    begin = start
    while begin < end:
        times: list[float] = []

        def every(metadata: TimedVideoMetadata, times: list[float] = times) -> range:
            times.extend(metadata.frame_times())
            return range(metadata.total_num_frames)

        until = min(begin + CHUNK_SECONDS, end)
        try:
            frames, _ = decode_video(source, every, short_side=short_side, start=begin, end=until)
        except VideoDecodeError as error:
            if error.reason == "segment" and begin > start:
                return  # the video ends within the last stretch
            raise
        for seconds, frame in zip(times, frames):
            yield begin - start + seconds, frame.permute(1, 2, 0).numpy()  # (3, h, w) -> (h, w, 3)
        begin = until


def write_film(
    path: Path, frames: Iterator[tuple[float, np.ndarray]], rate: float | None = None
) -> Path:
    """Frames `(seconds, uint8 (h, w, 3))` in order as H.264 with these times; ValueError where
    there is none.
    """
    path = Path(path)
    with av.open(str(path), "w") as container:
        whole_rate = Fraction(rate or 30).limit_denominator(65535)
        stream = container.add_stream("libx264", rate=whole_rate, options=ENCODER_OPTIONS)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = TIME_BASE
        stream.codec_context.thread_count = 1
        latest = -1
        for seconds, pixels in frames:
            height, width = (side - side % 2 for side in pixels.shape[:2])  # 4:2:0 needs even sides
            if latest < 0:
                stream.height, stream.width = height, width
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(pixels[:height, :width]), format="rgb24"
            )
            picture.pts = max(round(seconds / TIME_BASE), latest + 1)
            picture.time_base = TIME_BASE
            latest = picture.pts
            container.mux(stream.encode(picture))
        if latest < 0:
            raise ValueError(f"{path}: there is no frame to write")
        container.mux(stream.encode(None))
    return path


def _drawn(
    frame: StreamedFrame, timeline: Timeline, progress: Callable[[float], None]
) -> tuple[float, np.ndarray]:
    """A frame with a dark band at its foot and the answer on it: its seconds and its pixels, uint8
    `(3, h, w) -> (h, w, 3)`.
    """
    picture = Image.fromarray(frame.pixels.permute(1, 2, 0).numpy())  # (3, h, w) -> (h, w, 3)
    size = max(10, picture.height // 16)
    font = ImageFont.load_default(size=size)
    band = Image.new("RGB", (picture.width, size + size // 2), (0, 0, 0))
    top = picture.height - band.height
    picture.paste(Image.blend(picture.crop((0, top, *picture.size)), band, 0.6), (0, top))
    draw = ImageDraw.Draw(picture)
    draw.text(
        (size // 3, top + size // 6), caption(timeline, frame.seconds), fill="white", font=font
    )
    stamp = f"{int(frame.seconds // 60)}:{frame.seconds % 60:04.1f}"
    draw.text(
        (picture.width - draw.textlength(stamp, font) - size // 3, top + size // 6),
        stamp,
        "white",
        font,
    )
    progress(frame.seconds)
    return frame.seconds, np.array(picture)


def caption(timeline: Timeline, seconds: float) -> str:
    """What is said of that moment: the classes whose segments it lies in, else the best class in
    brackets.
    """
    cell = int(np.searchsorted(timeline.cells, seconds, side="right")) - 1
    scores = timeline.scores[min(max(cell, 0), len(timeline.scores) - 1)]
    if timeline.is_regression:
        return "  ".join(f"{label} {score:.4g}" for label, score in zip(timeline.labels, scores))
    now = [segment.label for segment in timeline.segments if segment.start <= seconds < segment.end]
    if now:
        return "  ".join(f"{label} {scores[timeline.labels.index(label)]:.0%}" for label in now)
    best = int(scores.argmax())
    return f"({timeline.labels[best]} {scores[best]:.0%})"
