"""Video files written with PyAV: frames in memory to a file, and a file to a smaller one."""

import io
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from transformers.video_utils import VideoMetadata

from .decoding import decode_video


CHUNK_FRAMES = 256  # decoded at a time while re-encoding, so that a long video fits into memory
ENCODER_OPTIONS = {"crf": "20", "preset": "veryfast", "g": "64"}  # a key frame every 64: cheap to enter anywhere


def write_video(
    path: str | Path,
    frames: np.ndarray,
    *,
    fps: int | Fraction = 30,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] | None = None,
) -> Path:
    """Write uint8 RGB `frames` of shape `(T, H, W, 3)` as a video file; the container follows from the suffix."""
    path = Path(path)
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps), options=dict(options or {}))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def encode_video(path: str, metadata: VideoMetadata, short_side: int) -> bytes:
    """The video as H.264 in mp4 with that short side: as many frames, at the mean rate, as displayed, no sound.

    Raises VideoDecodeError for a damaged video.
    """
    buffer = io.BytesIO()
    rate = Fraction(metadata.fps or 30).limit_denominator(65535)
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=ENCODER_OPTIONS)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for start in range(0, metadata.total_num_frames, CHUNK_FRAMES):
            numbers = range(start, min(start + CHUNK_FRAMES, metadata.total_num_frames))
            frames, _ = decode_video(path, numbers, short_side=short_side)  # (t, 3, h, w)
            height, width = (side - side % 2 for side in frames.shape[2:])  # 4:2:0 needs even sides
            if start == 0:
                stream.height, stream.width = height, width
            for frame in frames[:, :, :height, :width].permute(0, 2, 3, 1).numpy():
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return buffer.getvalue()
