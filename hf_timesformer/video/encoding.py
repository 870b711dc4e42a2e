"""Video files written with PyAV: frames in memory to a file, and a file to a smaller one."""

import io
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from transformers.video_utils import VideoMetadata

from .decoding import decode_video


CHUNK_FRAMES = 256  # decoded at a time while re-encoding, so that a long video fits into memory
UNKNOWN_RATE = 30  # frames a second, where nobody tells another
ENCODER_OPTIONS = {"crf": "20", "preset": "veryfast"}


def write_video(
    path: str | Path,
    frames: np.ndarray,
    *,
    fps: int | Fraction = 30,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] | None = None,
) -> Path:
    """Write frames as a video file.

    Args:
        path: the file; its suffix says which container.
        frames: uint8 RGB `(T, H, W, 3)`.
        fps: frames a second.
        codec: the encoder, by FFmpeg's name.
        pix_fmt: the pixel format, by FFmpeg's name.
        options: what the encoder is told, such as `{"crf": "18"}`.

    Returns:
        The path.
    """
    path = Path(path)
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps), options=dict(options or {}))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                )
            )
        container.mux(stream.encode(None))
    return path


def encode_video(
    path: str,
    metadata: VideoMetadata,
    short_side: int | None = None,
    *,
    key_frame_every: int = 64,
    fast_decode: bool = False,
    **reading: Any,
) -> bytes:
    """The video as H.264 in mp4: as many frames, at the mean rate (`UNKNOWN_RATE` where it is not
    known), as displayed, without sound.

    Args:
        path: the video, or a folder of numbered pictures.
        metadata: of it or of the segment, as `probe_video` gives it; its frames are encoded, and no
            more.
        short_side: size of the shorter side in pixels; None keeps the size.
        key_frame_every: frames from one key frame to the next: a reader that wants a frame decodes
            from the key frame before it, so that fewer make a file that is larger and cheaper to
            enter anywhere.
        fast_decode: leave out what makes decoding dear (x264's `fastdecode`: no deblocking, no
            CABAC, no weighted prediction), for a larger file.
        reading: settings of `decode_video`, such as `start` and `end`.

    Raises:
        VideoDecodeError: the video is damaged.
    """
    options = (
        ENCODER_OPTIONS
        | {"g": str(key_frame_every)}
        | ({"tune": "fastdecode"} if fast_decode else {})
    )
    buffer = io.BytesIO()
    rate = Fraction(metadata.fps or UNKNOWN_RATE).limit_denominator(65535)
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for first in range(0, metadata.total_num_frames, CHUNK_FRAMES):
            numbers = range(first, min(first + CHUNK_FRAMES, metadata.total_num_frames))
            # (t, 3, h, w)
            frames, _ = decode_video(path, numbers, short_side=short_side, **reading)
            height, width = (side - side % 2 for side in frames.shape[2:])  # 4:2:0 needs even sides
            if first == 0:
                stream.height, stream.width = height, width
            for frame in frames[:, :, :height, :width].permute(0, 2, 3, 1).numpy():
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return buffer.getvalue()
