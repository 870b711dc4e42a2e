"""One pass forward over a video of any length: frames with their times, in bounded memory.

`decode_video` jumps to the few frames that a clip takes. Here the whole video goes by once, and of
it only the frames that are asked for become pictures. They are asked for by time: the frame for
time `t` is the one that a player shows then, the last that has begun. Of a video with 5 frames a
second, for the times 0, 0.3, 0.5 and 0.55:

    frame       0     1     2     3            frame 1 is shown from 0.2 s until frame 2 begins at 0.4 s
    begins at  0.0   0.2   0.4   0.6           and frame 2 serves 0.5 and 0.55
    asked for   x        x     x x
    given       0     1     2     3            the last frame is always given: it tells how long the video is

Containers round times to their own tick, so a frame may begin half a millisecond after it is asked
for (`MAX_TOLERANCE`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import TypeVar

import av
import torch
from av.video.reformatter import VideoReformatter

from .decoding_limits import LIBRARY_ERRORS, Budget, DecodeLimits, VideoDecodeError
from .decoding_pictures import Pictures, open_pictures, picture_to_frame
from .decoding_pixels import FLAGS, display_matrix, orient, scaled_size
from .decoding_segment import MAX_TOLERANCE
from .decoding_source import Source, VideoFile, open_source


# Containers without times for pictures: FFmpeg makes them up from the order in the file, which is
# not the order in which pictures are shown.
UNTIMED_CONTAINERS = {"avi", "h264", "hevc", "m4v", "mpegvideo", "mjpeg", "obu"}

# A film of days is not refused for its length: memory does not grow with it, and `max_seconds`
# counts from frame to frame.
STREAM_LIMITS = DecodeLimits(max_bytes=1 << 62)


@dataclass
class StreamedFrame:
    """A frame and when it is shown: `seconds` from the video's first frame, for `duration` seconds.

    `pixels` uint8 RGB `(3, H, W)`, as displayed.
    """

    seconds: float
    duration: float
    pixels: torch.Tensor


@dataclass
class FrameStream:
    """The frames of one video for the times that are asked for, in order; iterate once.

    Args:
        source: a path, the bytes of a file, or a binary file object; also a folder of numbered
            pictures, which needs a `frame_rate`, or an animated WebP.
        times: seconds from the first frame, ascending, finitely many or not; None gives every
            frame.
        short_side: scale so that the shorter side has this many pixels; None keeps the pixels as
            they are. Either way a frame is what `decode_video` gives of the same frame.
        limits: what one video may cost; `max_seconds` of work from one frame to the next.

    `gaps` lists stretches that could not be decoded, as `(from, to)` in seconds; `to` is None where
    nothing follows. The last frame before a gap stands for what is missing. A picture of another
    size than the first frame is scaled to the first one's.

    `length` and `frame_rate` are what the container claims, in seconds and frames a second, once
    iterating has begun; None where it claims nothing. The last frame tells the true length. A
    `frame_rate` that is given is that of a folder of pictures.

    Iterating raises VideoDecodeError where the video cannot be opened, where not a single frame can
    be decoded, where a frame is over a limit, and for a picture of a folder that cannot be read or
    has another size than the first. ValueError: a `frame_rate` for a video that has its own.
    """

    source: Source
    times: Iterable[float] | None = None
    short_side: int | None = None
    limits: DecodeLimits = STREAM_LIMITS
    gaps: list[tuple[float, float | None]] = field(default_factory=list)
    length: float | None = None
    frame_rate: float | None = None

    def __iter__(self) -> Iterator[StreamedFrame]:
        with open_pictures(self.source, self.limits, self.frame_rate) as pictures:
            if pictures is not None:
                yield from self._show_pictures(pictures)
                return
        yield from self._show_video()

    def _show_pictures(self, pictures: Pictures) -> Iterator[StreamedFrame]:
        times = pictures.times()
        if times is None:
            message = "tells no frame times: give the frames a second, as in frame_rate=25"
            raise VideoDecodeError(pictures.name, "segment", f"{message} or --frame_rate 25")
        seconds = times.seconds.tolist()
        # Nothing tells how long the last picture is shown: as long as the one before it.
        step = seconds[-1] - seconds[-2] if len(seconds) > 1 else 0.0
        self.length = seconds[-1] + step
        if self.frame_rate is None and step:
            self.frame_rate = (len(seconds) - 1) / seconds[-1]
        numbered = ((moment, number) for number, moment in enumerate(seconds))
        size = None
        for moment, duration, number in _shown_at(self.times, numbered, lambda _: step):
            pixels = picture_to_frame(pictures.read(number), self.short_side)
            size = size or pixels.shape
            if pixels.shape != size:
                found, first = (f"{shape[2]}x{shape[1]}" for shape in (pixels.shape, size))
                message = f"changes its frame size: frame {number} is {found}, others are {first}"
                raise VideoDecodeError(pictures.name, "frame-size", message)
            yield StreamedFrame(moment, duration, pixels)

    def _show_video(self) -> Iterator[StreamedFrame]:
        with open_source(self.source, self.limits, allow_urls=False) as video:
            with video.open_stream() as (container, stream):
                self.length = container.duration / av.time_base if container.duration else None
                rate = stream.average_rate or stream.guessed_rate
                self.frame_rate = float(rate) if rate else None
                clock = _Clock(container, stream, video.name)
                pictures = _good_pictures(container, stream, clock, video.check, self.gaps)
                convert = _Converter(self.short_side, video)
                is_empty = True
                for seconds, duration, picture in _shown_at(self.times, pictures, clock.duration):
                    is_empty = False
                    yield StreamedFrame(seconds, duration, convert(picture))
                    video.check.restart()  # what the caller did with the frame is no work of ours
                if is_empty:
                    raise VideoDecodeError(
                        video.name, "damaged", "has no frame that can be decoded"
                    )


class _Clock:
    """The time of each picture in seconds since the first: by the container's own times, else by
    the frame rate.

    Where times jump back (recordings that were joined), the count goes on from the last picture.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream, name: str):
        rate = stream.average_rate or stream.guessed_rate
        self._step = float(1 / rate) if rate else None
        self._base, self._name = stream.time_base, name
        self._has_times = UNTIMED_CONTAINERS.isdisjoint(container.format.name.split(",")) and bool(
            self._base
        )
        self._count, self._shift = 0, 0.0
        self._first: int | None = None
        self.last = 0.0

    @property
    def step(self) -> float:
        """Seconds from picture to picture at the stream's rate. Raises VideoDecodeError where it
        has none.
        """
        if self._step is None:
            raise VideoDecodeError(
                self._name, "segment", "has neither frame times nor a frame rate"
            )
        return self._step

    def seconds(self, picture: av.VideoFrame) -> float:
        """The time of the next picture."""
        if self._has_times and picture.pts is not None:
            if self._first is None:
                self._first = picture.pts
            assert self._base is not None  # `_has_times` says so
            # Multiplied before it is divided, as in `FrameTimes.from_ticks`.
            now = (
                picture.pts - self._first
            ) * self._base.numerator / self._base.denominator + self._shift
            if now < self.last:
                missing = self.last + self.step - now
                self._shift, now = self._shift + missing, now + missing
        else:
            now = self._count * self.step
        self._count += 1
        self.last = now
        return now

    def duration(self, picture: av.VideoFrame) -> float:
        """How long the last picture of the video is shown, which no later one tells."""
        if self._has_times and picture.duration:
            assert self._base is not None  # `_has_times` says so
            return picture.duration * self._base.numerator / self._base.denominator
        return self._step or 0.0


def _good_pictures(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    clock: _Clock,
    budget: Budget,
    gaps: list[tuple[float, float | None]],
) -> Iterator[tuple[float, av.VideoFrame]]:
    """All undamaged pictures with their times; stretches without one go to `gaps`."""
    # where the stretch without a good picture begins, if we are in one
    gap_from: float | None = None
    is_first = True
    for picture in _decode_packets(container, stream):
        budget.restart()
        if picture is None or picture.is_corrupt:
            # What comes before the first good picture is no part of the video: its times begin
            # there.
            if not is_first and gap_from is None:
                gap_from = clock.last
            continue
        if gap_from is not None and not picture.key_frame:
            continue  # predicted from what is damaged
        is_first = False
        seconds = clock.seconds(picture)
        if gap_from is not None:
            gaps.append((gap_from, seconds))
            gap_from = None
        yield seconds, picture
    if gap_from is not None:
        gaps.append((gap_from, None))


def _decode_packets(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame | None]:
    """Every picture, and None where a packet is damaged; after that the next key frame is waited
    for.
    """
    decoder = stream.codec_context
    packets = container.demux(stream)
    is_waiting = False
    while True:
        packet = None
        try:
            packet = next(packets, None)
            if packet is None:
                return
            if is_waiting and packet.size and not packet.is_keyframe:
                continue
            is_waiting = False
            pictures = decoder.decode(None if packet.is_corrupt else packet)
        except VideoDecodeError:
            raise
        except LIBRARY_ERRORS:
            yield None
            if packet is None or not packet.size:
                return  # the container itself ends there
            pictures, is_waiting = [], True
        yield from pictures  # of a damaged packet, those before it, which the decoder still held
        if packet.is_corrupt:
            yield None
            is_waiting = True
        if is_waiting:
            decoder.flush_buffers()


Picture = TypeVar("Picture")


def _shown_at(
    times: Iterable[float] | None,
    pictures: Iterator[tuple[float, Picture]],
    last_duration: Callable[[Picture], float],
) -> Iterator[tuple[float, float, Picture]]:
    """Seconds, duration and picture of what is shown at `times` (None: of every picture), and of
    the last one, which no later one ends: `last_duration` tells how long it is shown.
    """
    wanted: Iterator[float] = iter(() if times is None else times)
    next_time = None if times is None else next(wanted, inf)
    held: tuple[float, Picture] | None = None
    for seconds, picture in pictures:
        if held is not None:
            ends = seconds - MAX_TOLERANCE
            if next_time is None or next_time < ends:
                yield held[0], seconds - held[0], held[1]
            while next_time is not None and next_time < ends:
                next_time = next(wanted, inf)
        held = seconds, picture
    if held is not None:
        yield held[0], last_duration(held[1]), held[1]


class _Converter:
    """Decoded pictures to uint8 RGB tensors `(3, H, W)` of one size, as displayed."""

    def __init__(self, short_side: int | None, video: VideoFile):
        self._short_side, self._video = short_side, video
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None  # height, width before it is turned

    def __call__(self, picture: av.VideoFrame) -> torch.Tensor:
        if self._size is None:
            self._size = scaled_size(picture.height, picture.width, self._short_side)
        height, width = self._size
        if height * width > self._video.limits.max_pixels:
            message = (
                f"has frames of {width}x{height} pixels, more than {self._video.limits.max_pixels}"
            )
            raise VideoDecodeError(
                self._video.name, "limit", f"{message} (DecodeLimits.max_pixels)"
            )
        scaled = self._reformatter.reformat(
            picture, width, height, format="rgb24", interpolation=FLAGS, threads=1
        )
        pixels = orient(scaled.to_ndarray(), display_matrix(picture))  # (h, w, 3)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())  # (h, w, 3) -> (3, h, w)
