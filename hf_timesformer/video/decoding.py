"""Video files to RGB frames by exact frame number, with PyAV on one thread."""

import operator
from collections.abc import Callable, Sequence
from functools import partial

import av
import numpy as np
import torch
from av.error import InvalidDataError
from transformers.video_utils import VideoMetadata

from .decoding_pixels import FrameWriter
from .decoding_segment import FrameTimes, TimedVideoMetadata, check_segment, frames_in_segment
from .decoding_source import LIBRARY_ERRORS, DecodeLimits, Source, VideoDecodeError, VideoFile, open_source
from .decoding_timeline import Timeline, build_timeline, decode_units, read_packets


__all__ = ["DecodeLimits", "VideoDecodeError", "decode_video", "probe_video"]


def probe_video(
    source: Source,
    *,
    limits: DecodeLimits | None = None,
    allow_urls: bool = False,
    start: float | None = None,
    end: float | None = None,
) -> VideoMetadata:
    """Count the frames of a video from its packets and read its rate and size, without decoding it.

    Width and height are those that the container declares, before rotation. With `start` or `end` (seconds) the
    segment is described as a video of its own, as `decode_video` sees it.

    Raises:
        VideoDecodeError: the source cannot be read as a video, is over a limit, or has no frame in the segment.
        ValueError: `start` and `end` make no segment.
    """
    check_segment(start, end)
    with open_source(source, limits or DecodeLimits(), allow_urls) as video:
        with video.open_stream() as (container, stream):
            packets = read_packets(container, stream, video)
            timeline = build_timeline(container, stream, packets)
            metadata, _ = describe_segment(stream, packets, timeline, video, start, end)
            return closed(metadata)


def decode_video(
    source: Source,
    indices: Sequence[int] | Callable[[VideoMetadata], Sequence[int]],
    *,
    short_side: int | None = None,
    limits: DecodeLimits | None = None,
    allow_urls: bool = False,
    start: float | None = None,
    end: float | None = None,
) -> tuple[torch.Tensor, VideoMetadata]:
    """Decode the frames with the given numbers (presentation order, from 0; any order, repeats allowed).

    Args:
        source: a path, the bytes of a file, or a binary file object (read from its beginning).
        indices: frame numbers, or a function from the video's metadata (`TimedVideoMetadata`) to frame numbers.
        short_side: scale so that the shorter side has this many pixels (antialiased bilinear); None keeps the pixels
            as they are, bit-equal to a full decode.

    Returns:
        uint8 RGB frames `(T, 3, H, W)`, as displayed (rotated), and the `VideoMetadata` with `frames_indices` set.

    Raises:
        VideoDecodeError: the video cannot be read, is damaged before a frame asked for, is over a limit, or has no
            frame in the segment.
        ValueError: `short_side`, or `start` and `end`, make no sense.
    """
    check_segment(start, end)
    if short_side is not None and operator.index(short_side) < 1:
        raise ValueError(f"short_side must be at least 1 pixel, or None to keep the size; got {short_side}")
    with open_source(source, limits or DecodeLimits(), allow_urls) as video:
        with video.open_stream() as (container, stream):
            packets = read_packets(container, stream, video)
            timeline = build_timeline(container, stream, packets)
            metadata, segment = describe_segment(stream, packets, timeline, video, start, end)
            numbers = checked_numbers(indices(metadata) if callable(indices) else indices, metadata, video)
            places = [segment[number] for number in numbers]
            writer = FrameWriter(places, short_side, video)
            if timeline is not None and not decode_by_timeline(stream, timeline, writer, video):
                writer = FrameWriter(places, short_side, video)
        if writer.missing:
            # Not to be trusted, or damaged: a fresh decoder, from the first packet, everything in between.
            with video.open_stream() as (container, stream):
                num_packets = sum(not packet.is_discard for packet in packets)
                count = count_frames(packets, timeline)
                decode_in_sequence(container, stream, count, num_packets, writer, video)
    frames = writer.frames
    if frames is None:
        frames = torch.empty((0, metadata.height, metadata.width, 3), dtype=torch.uint8)
    metadata.frames_indices = numbers
    metadata.height, metadata.width = frames.shape[1:3]
    return frames.permute(0, 3, 1, 2), closed(metadata)  # (t, h, w, c) -> (t, c, h, w)


def describe_segment(
    stream: av.VideoStream,
    packets: list[av.Packet],
    timeline: Timeline | None,
    video: VideoFile,
    start: float | None,
    end: float | None,
) -> tuple[TimedVideoMetadata, range]:
    """The metadata of a segment of a stream with these packets, and the numbers that its frames have in the video."""
    count = count_frames(packets, timeline)
    rate = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate else None
    times = partial(frame_times, stream, packets, timeline)
    numbers = frames_in_segment(video.name, times, count, start, end)
    metadata = TimedVideoMetadata(
        total_num_frames=len(numbers),
        fps=fps,
        width=stream.codec_context.width,
        height=stream.codec_context.height,
        duration=len(numbers) / fps if fps else None,
        video_backend="pyav",
    )

    def times_in_segment() -> np.ndarray:
        known = times()
        if known is None:
            raise VideoDecodeError(video.name, "segment", "has neither frame times nor a frame rate")
        return known.seconds[numbers.start : numbers.stop] - known.seconds[numbers.start]

    metadata._times = times_in_segment
    return metadata, numbers


def closed(metadata: TimedVideoMetadata) -> TimedVideoMetadata:
    """The metadata as it leaves this module: the file is closed, so nothing more can be asked of it."""
    metadata._times = None
    return metadata


def count_frames(packets: list[av.Packet], timeline: Timeline | None) -> int:
    """As many frames as packets that are not marked as cut away."""
    count = sum(not packet.is_discard for packet in packets)
    if timeline is not None and count - timeline.num_frames > allowed_gap(count):
        count = timeline.num_frames  # MPEG-4 with many pictures marked as not coded: packets, but no frames
    return count


def frame_times(stream: av.VideoStream, packets: list[av.Packet], timeline: Timeline | None) -> FrameTimes | None:
    """When each frame is shown: by the packets' own times where all have one, else by the frame rate."""
    count = count_frames(packets, timeline)
    ticks = sorted({packet.pts for packet in packets if not packet.is_discard and packet.pts is not None})
    if len(ticks) == count and stream.time_base:
        return FrameTimes.from_ticks(ticks, stream.time_base)
    rate = stream.average_rate or stream.guessed_rate
    return FrameTimes.evenly(count, float(rate)) if rate else None


def checked_numbers(indices: Sequence[int], metadata: VideoMetadata, video: VideoFile) -> list[int]:
    """`indices` as a list of ints; an index that is no integer or no frame of the video is refused."""
    numbers = [operator.index(index) for index in indices]
    count = metadata.total_num_frames
    for number in numbers:
        if not 0 <= number < count:
            raise VideoDecodeError(video.name, "index", f"has frames 0 to {count - 1}; frame {number} was asked for")
    return numbers


def decode_by_timeline(stream: av.VideoStream, timeline: Timeline, writer: FrameWriter, video: VideoFile) -> bool:
    """Decode only what the wanted frames need; at damage, stop with frames missing.

    Returns False where the frames do not come in the order foretold: then nothing written so far is to be trusted.
    """
    numbers = timeline.numbers
    decoder = stream.codec_context
    writer.clamp(timeline.num_frames)
    number_at = {unit.pts: number for unit, number in zip(timeline.units, numbers) if number >= 0}
    try:
        for start, stop in timeline.stretches(writer.missing):
            if start > 0 and not decoder.is_open:
                # Encoder versions stand in the first packet, and FFmpeg's decoders work around some of them.
                list(decode_units(decoder, timeline, range(1), set()))
            latest = -1
            for frame in decode_units(decoder, timeline, range(start, stop + 1), writer.missing):
                number = number_at.get(frame.pts, -1)
                if number <= latest:
                    return False
                if frame.is_corrupt:
                    return True
                latest = number
                if number in writer.missing and number >= numbers[start]:
                    writer.write(number, frame)
            video.check()
    except VideoDecodeError:
        raise
    except LIBRARY_ERRORS:
        return True
    return True


def decode_in_sequence(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    count: int,
    num_packets: int,
    writer: FrameWriter,
    video: VideoFile,
) -> None:
    """Decode from the first packet on and count the frames that come out.

    A few frames may be missing at the end (`allowed_gap`): then the last one stands for them. A decoder that falls
    further behind the packets than it must to reorder has dropped pictures, and later frames would get wrong numbers.

    Raises:
        VideoDecodeError: a frame that is asked for lies behind damage.
    """
    position, last, failure = 0, None, "the video ends there"
    decoder = stream.codec_context
    fed, slack = 0, num_packets - count + allowed_gap(count)
    try:
        for packet in container.demux(stream):
            fed += packet.size > 0 and not packet.is_discard
            if fed - position - 1 > decoder.reorder_depth + slack:
                raise InvalidDataError(0, f"pictures are missing near frame {position}")
            for frame in decoder.decode(packet):
                if frame.is_corrupt and count - position > allowed_gap(count):
                    raise InvalidDataError(0, f"frame {position} is damaged")
                if position in writer.missing:
                    writer.write(position, frame)
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


def allowed_gap(count: int) -> int:
    """How many frames fewer than packets a healthy video may give (HMDB51's files: one fewer)."""
    return max(2, count // 100)
