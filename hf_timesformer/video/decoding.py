"""Video files to RGB frames by exact frame number, with PyAV on one thread."""

import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import av
import numpy as np
import torch
from av.error import InvalidDataError
from transformers.video_utils import VideoMetadata

from .decoding_index import IndexedVideo
from .decoding_limits import LIBRARY_ERRORS, DecodeLimits, VideoDecodeError
from .decoding_pictures import decode_pictures, describe_pictures, open_pictures
from .decoding_pixels import FrameWriter
from .decoding_scan import ScannedVideo, allowed_gap
from .decoding_segment import TimedVideoMetadata, check_segment, known_times, segment_of_video
from .decoding_source import Source, VideoFile, open_source
from .decoding_timeline import DamagedUnit, Timeline, decode_units


__all__ = ["DecodeLimits", "VideoDecodeError", "decode_video", "probe_video"]


def probe_video(
    source: Source,
    *,
    limits: DecodeLimits | None = None,
    allow_urls: bool = False,
    start: float | None = None,
    end: float | None = None,
    frame_rate: float | None = None,
) -> VideoMetadata:
    """Count the frames of a video from its packets and read its rate and size, without decoding it.

    Args:
        source: a path, the bytes of a file, or a binary file object; also a folder of numbered
            pictures.
        limits: what the video may cost, by default `DecodeLimits()`.
        allow_urls: fetch an http(s) address.
        start, end: seconds; the part between them is described as a video of its own, as
            `decode_video` sees it.
        frame_rate: frames a second of a folder of pictures, which has none of its own.

    Returns:
        A `VideoMetadata`: frames, frames a second, seconds. Width and height are those that the
        container declares, before rotation.

    Raises:
        VideoDecodeError: the source cannot be read as a video, is over a limit, or has no frame in
            the segment.
        ValueError: `start` and `end` make no segment.
    """
    check_segment(start, end)
    with open_pictures(source, limits or DecodeLimits(), frame_rate) as pictures:
        if pictures is not None:
            return closed(describe_pictures(pictures, start, end)[0])
    with open_source(source, limits or DecodeLimits(), allow_urls) as video:
        with open_counted(video) as (stream, counted):
            metadata, _ = describe_segment(stream, counted, video, start, end)
            return closed(metadata)


def decode_video(
    source: Source,
    indices: Iterable[int] | Callable[[VideoMetadata], Iterable[int]],
    *,
    short_side: int | None = None,
    size_change: str = "scale",
    limits: DecodeLimits | None = None,
    allow_urls: bool = False,
    start: float | None = None,
    end: float | None = None,
    frame_rate: float | None = None,
) -> tuple[torch.Tensor, VideoMetadata]:
    """Decode the frames with the given numbers (presentation order, from 0; any order, repeats
    allowed).

    Args:
        source: a path, the bytes of a file, or a binary file object (read from its beginning). A
            folder of numbered pictures is a video, too, and so is a list of them
            (`FrameFiles.from_list`).
        indices: frame numbers, or a function from the video's metadata (`TimedVideoMetadata`) to
            frame numbers.
        short_side: scale so that the shorter side has this many pixels (antialiased bilinear); None
            keeps the pixels as they are, bit-equal to a full decode.
        size_change: what becomes of frames of another size than the first: "scale" them, or
            "refuse" the video.
        limits: what the video may cost in bytes, pixels, frames and seconds, by default
            `DecodeLimits()`.
        allow_urls: fetch an http(s) address.
        start, end: seconds; the video is then the part between them.
        frame_rate: frames a second of a folder or list of pictures, which has none of its own.

    Returns:
        uint8 RGB frames `(T, 3, H, W)`, as displayed (rotated), and the `VideoMetadata` with
        `frames_indices` set.

    Raises:
        VideoDecodeError: the video cannot be read, is damaged before a frame asked for, is over a
            limit, or has no frame in the segment.
        ValueError: `short_side`, or `start` and `end`, make no sense.
    """
    check_segment(start, end)
    if size_change not in ("scale", "refuse"):
        raise ValueError(f'size_change must be "scale" or "refuse"; got {size_change!r}')
    if short_side is not None and operator.index(short_side) < 1:
        raise ValueError(
            f"short_side must be at least 1 pixel, or None to keep the size; got {short_side}"
        )
    with open_pictures(source, limits or DecodeLimits(), frame_rate) as pictures:
        if pictures is not None:
            return decode_pictures(pictures, indices, short_side, start, end)
    with open_source(source, limits or DecodeLimits(), allow_urls) as video:
        with open_counted(video) as (stream, counted):
            metadata, segment = describe_segment(stream, counted, video, start, end)
            try:
                numbers = checked_numbers(
                    indices(metadata) if callable(indices) else indices, metadata, video
                )
            finally:  # whoever keeps the metadata must not ask a file that is closed
                closed(metadata)
            places = [segment[number] for number in numbers]
            writer = FrameWriter(places, short_side, size_change, video)
            if not decode_what_is_needed(stream, counted, writer, video):
                writer = FrameWriter(places, short_side, size_change, video)
        if writer.missing:
            # Not to be trusted, or damaged: a fresh decoder, from the first packet, everything in
            # between.
            with video.open_stream() as (container, stream):
                decode_in_sequence(container, stream, counted, writer, video)
    frames = writer.frames
    if frames is None:
        frames = torch.empty((0, metadata.height, metadata.width, 3), dtype=torch.uint8)
    metadata.frames_indices = numbers
    metadata.height, metadata.width = frames.shape[1:3]
    return frames.permute(0, 3, 1, 2), metadata  # (t, h, w, c) -> (t, c, h, w)


@contextmanager
def open_counted(video: VideoFile) -> Iterator[tuple[av.VideoStream, IndexedVideo | ScannedVideo]]:
    """Open a video and number its frames: from the container's index where that tells enough, else
    by a scan.
    """
    with video.open_stream() as (container, stream):
        has_index = IndexedVideo.has_index(container, stream, video)
        counted = (
            IndexedVideo.of(container, stream, video)
            if has_index
            else ScannedVideo(container, stream, video)
        )
        if counted is not None:
            yield stream, counted
            return
    # The index was not enough, and packets have been read to find that out: from the beginning
    # again.
    with video.open_stream() as (container, stream):
        yield stream, ScannedVideo(container, stream, video)


def describe_segment(
    stream: av.VideoStream,
    counted: IndexedVideo | ScannedVideo,
    video: VideoFile,
    start: float | None,
    end: float | None,
) -> tuple[TimedVideoMetadata, range]:
    """The metadata of a segment of a video, and the numbers that its frames have in the whole."""
    rate = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate else None
    numbers = segment_of_video(video.name, counted, start, end)
    metadata = TimedVideoMetadata(
        total_num_frames=len(numbers),
        fps=fps,
        width=stream.codec_context.width,
        height=stream.codec_context.height,
        duration=len(numbers) / fps if fps else None,
        video_backend="pyav",
    )

    def times_in_segment() -> np.ndarray:
        """Seconds of the segment's `n` frames since its first, float64 `(n,)`."""
        seconds = known_times(video.name, counted.times()).seconds
        return seconds[numbers.start : numbers.stop] - seconds[numbers.start]

    metadata._times = times_in_segment
    return metadata, numbers


def closed(metadata: TimedVideoMetadata) -> TimedVideoMetadata:
    """The metadata as it leaves this module: the file is closed, so nothing more can be asked of
    it.
    """
    metadata._times = None
    return metadata


def checked_numbers(indices: Iterable[int], metadata: VideoMetadata, video: VideoFile) -> list[int]:
    """`indices` as a list of ints. Raises TypeError for one that is no integer, VideoDecodeError for
    one that is no frame of the video.
    """
    numbers = [operator.index(index) for index in indices]
    count = metadata.total_num_frames
    for number in numbers:
        if not 0 <= number < count:
            raise VideoDecodeError(
                video.name, "index", f"has frames 0 to {count - 1}; frame {number} was asked for"
            )
    return numbers


def decode_what_is_needed(
    stream: av.VideoStream,
    counted: IndexedVideo | ScannedVideo,
    writer: FrameWriter,
    video: VideoFile,
) -> bool:
    """Decode only what the wanted frames need; where no timeline tells that, or decoding fails,
    frames stay missing.

    Returns False where the frames do not come in the order foretold: then nothing written so far is
    to be trusted.

    Raises:
        VideoDecodeError: a frame that is asked for is lost to damage.
    """
    decoder = stream.codec_context
    is_ready = False
    for timeline in counted.timelines(set(writer.missing)):
        if timeline is None:
            return True
        if timeline.is_whole:
            writer.clamp(timeline.stop)
        # Encoder versions stand in the first packet, and FFmpeg's decoders work around some of
        # them.
        is_ready = is_ready or timeline.begins_video(writer.missing)
        if not is_ready and not show_first_unit(decoder, counted.first_unit(), writer):
            return True
        is_ready = True
        if not decode_by_timeline(decoder, timeline, counted.num_frames, writer, video):
            return False
        timeline.refuse_lost(writer.missing, video)
    return True


def show_first_unit(
    decoder: av.VideoCodecContext, unit: av.Packet | None, writer: FrameWriter
) -> bool:
    """Decode the first unit of a video for what the decoder and the writer learn from it; False
    where it fails.
    """
    if unit is None:
        return False
    try:
        for frame in (*decoder.decode(unit), *decoder.decode(None)):
            writer.learn_size(frame)
    except LIBRARY_ERRORS:
        return False
    decoder.flush_buffers()
    return True


def decode_by_timeline(
    decoder: av.VideoCodecContext,
    timeline: Timeline,
    count: int,
    writer: FrameWriter,
    video: VideoFile,
) -> bool:
    """Decode what one timeline has of the missing frames; False where they do not come in the order
    foretold.

    Damage costs what may be predicted from it, up to the next start; decoding goes on there.
    """
    pending = set(writer.missing)
    while runs := timeline.stretches(pending):
        units = range(runs[0][0], runs[0][1] + 1)
        times = timeline.times[units.start : units.stop].tolist()
        unit_at = dict(zip(times, units))
        latest = -1
        reached = units.stop
        try:
            for frame in decode_units(decoder, timeline, units, writer.missing):
                unit = unit_at.get(frame.pts)
                number = -1 if unit is None else int(timeline.numbers[unit])
                if number <= latest:
                    return False
                latest = number
                assert unit is not None  # else its number were -1
                if frame.is_corrupt:
                    # In the tail it may be as good as it gets: a decode of the whole video decides.
                    is_in_tail = count - number <= allowed_gap(count)
                    (timeline.fail_from if is_in_tail else timeline.lose_from)(unit)
                    # Pictures that are shown before it, but decoded after it, have been written
                    # already.
                    writer.take_back(timeline.numbers_from(unit, units.stop))
                elif number >= timeline.numbers[units.start] and unit not in timeline.lost:
                    writer.see(number, frame)
        except DamagedUnit as damage:
            timeline.fail_from(damage.unit)
            reached = damage.unit
        # Each frame has one chance: what did not come by now will not come from this timeline.
        tried = {*timeline.numbers_from(units.start, reached), *timeline.lost_of(pending)}
        if pending.isdisjoint(tried):
            return True
        pending = (pending - tried) & writer.missing
        video.check()
    return True


def decode_in_sequence(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    counted: IndexedVideo | ScannedVideo,
    writer: FrameWriter,
    video: VideoFile,
) -> None:
    """Decode from the first packet on and count the frames that come out.

    A few frames may be missing at the end (`allowed_gap`): then the last one stands for them. A
    decoder that falls further behind the packets than it must to reorder has dropped pictures, and
    later frames would get wrong numbers.

    Raises:
        VideoDecodeError: a frame that is asked for lies behind damage.
    """
    count = counted.num_frames
    position, last, failure = 0, None, "the video ends there"
    is_damaged = False  # from a damaged frame up to the next key frame
    decoder = stream.codec_context
    fed, slack = 0, counted.num_packets - count + allowed_gap(count)
    num_before = counted.num_before
    try:
        for packet in container.demux(stream):
            if packet.size and num_before:
                num_before -= 1
                continue
            fed += packet.size > 0 and not packet.is_discard
            if fed - position - 1 > decoder.reorder_depth + slack:
                raise InvalidDataError(0, f"pictures are missing near frame {position}")
            for frame in decoder.decode(packet):
                is_in_tail = count - position <= allowed_gap(count)
                is_damaged = not is_in_tail and (
                    frame.is_corrupt or (is_damaged and not frame.key_frame)
                )
                if is_damaged and position in writer.missing:
                    raise InvalidDataError(0, f"frame {position} is damaged")
                writer.see(position, frame)
                position, last = position + 1, frame
            video.check()
            if not writer.missing:
                return
    except VideoDecodeError:
        raise
    except LIBRARY_ERRORS as error:
        failure = str(error)
    if last is None or count - position > allowed_gap(count):
        message = f"is damaged: {position} of {count} frames can be decoded ({failure}); frame {min(writer.missing)}"
        raise VideoDecodeError(video.name, "damaged", f"{message} was asked for")
    writer.clamp(position)
    if writer.missing:
        writer.write(position - 1, last)
