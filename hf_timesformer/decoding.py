"""Video files to RGB frames by exact frame number, with PyAV on one thread (DESIGN section 4)."""

from collections.abc import Callable, Sequence

import av
import numpy as np
import torch
from transformers.video_utils import VideoMetadata

from .decoding_source import (
    LIBRARY_ERRORS,
    DecodeLimits,
    Source,
    VideoDecodeError,
    deadline,
    describe_source,
    open_container,
    open_file,
)


__all__ = ["DecodeLimits", "VideoDecodeError", "decode_video", "probe_video"]


def probe_video(source: Source, *, limits: DecodeLimits = DecodeLimits(), allow_urls: bool = False) -> VideoMetadata:
    """Count the frames of a video from its packets and read its rate and size.

    Raises:
        VideoDecodeError: the source cannot be read as a video, or is over a limit.
    """
    name = describe_source(source)
    check = deadline(name, limits)
    with open_file(source, limits, allow_urls) as (file, size):
        with open_container(file, size, name, limits, check) as container:
            stream = _video_stream(container, name)
            return _metadata(stream, _read_packets(container, stream, name, limits), name)


def decode_video(
    source: Source,
    indices: Sequence[int] | Callable[[VideoMetadata], Sequence[int]],
    *,
    short_side: int | None = None,
    limits: DecodeLimits = DecodeLimits(),
    allow_urls: bool = False,
) -> tuple[torch.Tensor, VideoMetadata]:
    """Decode the frames with the given numbers (presentation order, from 0; any order, repeats allowed).

    Args:
        source: a path, the bytes of a file, or a binary file object (read from its beginning).
        indices: frame numbers, or a function from the video's `VideoMetadata` to frame numbers.
        short_side: scale so that the shorter side has this many pixels (antialiased); None keeps the pixels as they
            are, bit-equal to a full decode.

    Returns:
        uint8 RGB frames `(T, 3, H, W)` and the `VideoMetadata`, with `frames_indices` set.

    Raises:
        VideoDecodeError: the video cannot be read, is damaged before a frame asked for, or is over a limit.
    """
    name = describe_source(source)
    check = deadline(name, limits)
    with open_file(source, limits, allow_urls) as (file, size):
        with open_container(file, size, name, limits, check) as container:
            stream = _video_stream(container, name)
            packets = _read_packets(container, stream, name, limits)
            metadata = _metadata(stream, packets, name)
            numbers = np.asarray(indices(metadata) if callable(indices) else indices, dtype=np.int64).ravel()
            if len(numbers) and (numbers.min() < 0 or numbers.max() >= metadata.total_num_frames):
                raise VideoDecodeError(
                    name, "index", f"has frames 0 to {metadata.total_num_frames - 1}; asked for {numbers.tolist()}"
                )
            wanted = set(numbers.tolist())
            frames: dict[int, np.ndarray] = {}
            last = None
            position = 0
            try:
                for packet in packets + [None]:
                    for frame in stream.codec_context.decode(packet):
                        last = frame
                        if position in wanted:
                            frames[position] = _to_rgb(frame, short_side)
                        position += 1
                    check()
                    if len(frames) == len(wanted):
                        break
            except LIBRARY_ERRORS as error:
                if isinstance(error, VideoDecodeError):
                    raise
                failure: Exception | None = error
            else:
                failure = None
            missing = sorted(wanted - set(frames))
            if missing:
                gap = metadata.total_num_frames - position
                if last is None or gap > max(2, metadata.total_num_frames // 100):
                    raise VideoDecodeError(
                        name, "damaged", f"only {position} frames can be decoded; asked for {missing[0]}: {failure}"
                    )
                stand_in = _to_rgb(last, short_side)
                frames.update(dict.fromkeys(missing, stand_in))
    result = np.stack([frames[number] for number in numbers.tolist()])  # (t, h, w, 3)
    metadata.frames_indices = numbers.tolist()
    metadata.height, metadata.width = result.shape[1:3]
    return torch.from_numpy(result).permute(0, 3, 1, 2), metadata


def _video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context is None:
                raise VideoDecodeError(name, "codec", "has a video stream of a codec that FFmpeg cannot decode")
            stream.codec_context.thread_count = 1
            stream.codec_context.thread_type = "NONE"
            return stream
    raise VideoDecodeError(name, "no-video-stream", "has no video stream")


def _read_packets(container, stream, name: str, limits: DecodeLimits) -> list[av.Packet]:
    packets = []
    try:
        for packet in container.demux(stream):
            if packet.size:
                packets.append(packet)
                if len(packets) > limits.max_frames:
                    message = f"has more than the limit of {limits.max_frames} frames (DecodeLimits.max_frames)"
                    raise VideoDecodeError(name, "limit", message)
    except VideoDecodeError:
        raise
    except LIBRARY_ERRORS as error:
        if not packets:
            raise VideoDecodeError(name, "damaged", f"has no readable video packet: {error}") from error
    return packets


def _metadata(stream, packets, name: str) -> VideoMetadata:
    count = sum(not packet.is_discard for packet in packets)
    if not count:
        raise VideoDecodeError(name, "damaged", "has no video frames")
    rate = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate else None
    return VideoMetadata(
        total_num_frames=count,
        fps=fps,
        width=stream.codec_context.width,
        height=stream.codec_context.height,
        duration=count / fps if fps else None,
        video_backend="pyav",
    )


def _to_rgb(frame: av.VideoFrame, short_side: int | None) -> np.ndarray:
    height, width = frame.height, frame.width
    if short_side is not None:
        short, long = min(height, width), max(height, width)
        scaled = int(short_side * long / short)
        height, width = (short_side, scaled) if height <= width else (scaled, short_side)
    array = frame.reformat(width, height, format="rgb24", interpolation="BILINEAR", threads=1).to_ndarray()
    return np.rot90(array, round(frame.rotation / 90) % 4).copy()
