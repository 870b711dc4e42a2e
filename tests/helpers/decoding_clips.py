"""Small clips of every awkward kind, made with PyAV, and the reference that the decoder is held to."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from hf_timesformer.data.synthetic import motion_frames
from hf_timesformer.video.decoding_source import FORGIVING


def picture_sequence(num_frames: int = 40, height: int = 48, width: int = 64) -> np.ndarray:
    """Moving test pictures, no two alike: uint8 `(num_frames, height, width, 3)`."""
    frames = motion_frames(
        "right", np.random.default_rng(3), num_frames=num_frames, size=max(height, width)
    )
    return np.ascontiguousarray(frames[:, :height, :width])


def encode(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    *,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
    rotation: tuple[int, bool, bool] | None = None,
    container_options: dict[str, str] | None = None,
    change: Callable[[int, av.Packet], list[av.Packet]] | None = None,
) -> Path:
    """Encode `frames`; `times` are presentation times in 1/30 s, `change` may rewrite a packet
    before it is muxed.
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        stream.codec_context.thread_count = 1
        if rotation is not None:
            stream.set_display_rotation(*rotation)
        packets = []
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number if times is None else times[number], Fraction(1, 30)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for index, packet in enumerate(packets):
            container.mux([packet] if change is None else change(index, packet))
    return path


def reference_frames(path: Path) -> list[np.ndarray]:
    """Every frame of a plain full decode, turned as its display matrix says: uint8 `(H, W, 3)`
    each.
    """
    frames = []
    with av.open(str(path), **FORGIVING) as container:
        stream = container.streams.video[0]
        stream.thread_count, stream.thread_type = 1, "NONE"
        try:
            for frame in container.decode(stream):
                frames.append(
                    np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                )
        except av.error.InvalidDataError:
            pass  # a damaged tail: what came before it is the reference
    return frames


def earlier(shift: int) -> Callable[[int, av.Packet], list[av.Packet]]:
    """Move all times back, so that the container cuts the first frames away (an edit list) or keeps
    negative times.
    """

    def change(index: int, packet: av.Packet) -> list[av.Packet]:
        packet.pts -= int(shift / 30 / packet.time_base)
        packet.dts -= int(shift / 30 / packet.time_base)
        return [packet]

    return change


def doubled(index: int, packet: av.Packet) -> list[av.Packet]:
    """Give the picture of packet 20 the time of the one before it: two frames of one time."""
    if index == 20:
        packet.pts -= int(1 / 30 / packet.time_base)
    return [packet]


def packed_avi(path: Path) -> Path:
    """MPEG-4 in AVI as DivX packs it: a B picture in the packet of the picture before it, then an
    empty packet.
    """
    held: list[av.Packet] = []

    def change(index: int, packet: av.Packet) -> list[av.Packet]:
        data = bytes(packet)
        at = data.index(b"\0\0\1\xb6")
        if index == 0:  # the mark by which decoders know
            data = data[:at] + b"\0\0\1\xb2DivX503b1393p" + data[at:]
        is_b = data[data.index(b"\0\0\1\xb6") + 4] >> 6 == 2
        held.append(copy_of(packet, data))
        if is_b:
            *rest, before, b_picture = held
            held[:] = []
            empty = copy_of(b_picture, b"\0\0\1\xb6\x50\x61\x7f")
            return [*rest, copy_of(before, bytes(before) + bytes(b_picture)), empty]
        ready, held[:] = held[:-1], held[-1:]
        return ready

    # no B picture so small that decoders overlook it
    options = {"bf": "1", "g": "12", "qmin": "1", "qmax": "2"}
    encode(path, picture_sequence(40, 96, 128), "mpeg4", options=options, change=change)
    return path


def copy_of(packet: av.Packet, data: bytes) -> av.Packet:
    """A packet with the times of `packet` and other bytes."""
    copy = av.Packet(data)
    copy.pts, copy.dts, copy.time_base = packet.dts, packet.dts, packet.time_base
    copy.is_keyframe, copy.stream = packet.is_keyframe, packet.stream
    return copy


B_FRAMES = {"bf": "3", "g": "12"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=8:bframes=3:scenecut=0"}
VP8 = {"g": "12", "cpu-used": "8", "deadline": "realtime"}
# negative times reach the file; Matroska's demuxer then reports none at all
KEPT = {"avoid_negative_ts": "disabled"}
GROWING_STEPS = [step * (step + 1) // 2 for step in range(40)]

# name -> (codec, keyword arguments of `encode`); the suffix chooses the container.
ENCODED: dict[str, tuple[str, dict]] = {
    "b-frames.mp4": ("libx264", {"options": B_FRAMES}),
    "b-pyramid.mkv": ("libx264", {"options": {"bf": "3", "g": "12", "b-pyramid": "normal"}}),
    "no-b-frames.mov": ("libx264", {"options": {"bf": "0", "g": "8"}}),
    "open-gop.mp4": ("libx264", {"options": OPEN_GOP}),
    "intra-refresh.mp4": ("libx264", {"options": {"x264-params": "intra-refresh=1:keyint=8"}}),
    "interlaced.mp4": ("libx264", {"options": {"x264-params": "interlaced=1:bframes=2"}}),
    "ten-bit.mp4": ("libx264", {"pix_fmt": "yuv420p10le", "options": B_FRAMES}),
    "full-chroma.mp4": ("libx264", {"pix_fmt": "yuv444p", "options": B_FRAMES}),
    "gray.mp4": ("libx264", {"pix_fmt": "gray", "options": B_FRAMES}),
    "stream.ts": ("libx264", {"options": B_FRAMES}),
    "flash.flv": ("libx264", {"options": B_FRAMES}),
    "no-times.avi": ("libx264", {"options": B_FRAMES}),
    "raw.h264": ("libx264", {"options": B_FRAMES}),
    "hevc.mp4": ("libx265", {"options": {"x265-params": "keyint=10:bframes=3"}}),
    "mpeg4.avi": ("mpeg4", {"options": {"g": "12"}}),
    "mpeg4-b.avi": ("mpeg4", {"options": {"bf": "2", "g": "12"}}),
    "mpeg4-b.mp4": ("mpeg4", {"options": {"bf": "2", "g": "12"}}),
    "mpeg2.mpg": ("mpeg2video", {"options": {"bf": "2", "g": "12"}}),
    "motion-jpeg.avi": ("mjpeg", {"pix_fmt": "yuvj420p"}),
    "vp8.webm": ("libvpx", {"options": VP8}),
    "vp9.webm": ("libvpx-vp9", {"options": {"g": "12", "cpu-used": "8", "lag-in-frames": "8"}}),
    "picture.gif": ("gif", {"pix_fmt": "rgb8"}),
    "uneven-times.mkv": ("libx264", {"options": B_FRAMES, "times": GROWING_STEPS}),
    "uneven-times.mp4": ("mpeg4", {"options": {"bf": "2", "g": "12"}, "times": GROWING_STEPS}),
    "doubled-times.mkv": ("libx264", {"options": B_FRAMES, "change": doubled}),
    "edit-list.mp4": ("libx264", {"options": B_FRAMES, "change": earlier(6)}),
    "edit-list-mpeg4.mp4": ("mpeg4", {"options": {"bf": "2", "g": "12"}, "change": earlier(6)}),
    "edit-list-open-gop.mp4": ("libx264", {"options": OPEN_GOP, "change": earlier(10)}),
    "negative-times.webm": (
        "libvpx",
        {"options": VP8, "change": earlier(6), "container_options": KEPT},
    ),
    "negative-times.ts": (
        "libx264",
        {"options": B_FRAMES, "change": earlier(6), "container_options": KEPT},
    ),
    "missing-times.mkv": (
        "libx264",
        {"options": B_FRAMES, "change": earlier(6), "container_options": KEPT},
    ),
    "raw.hevc": ("libx265", {"options": {"x265-params": "keyint=10:bframes=3"}}),
    "raw.m4v": ("mpeg4", {"options": {"bf": "2", "g": "12"}}),
    "turned-90.mp4": ("libx264", {"options": B_FRAMES, "rotation": (90, False, False)}),
    "turned-180.mov": ("libx264", {"options": B_FRAMES, "rotation": (180, False, False)}),
    "turned-270.mp4": ("libx264", {"options": B_FRAMES, "rotation": (-90, False, False)}),
}


def make_clip(folder: Path, name: str) -> Path:
    """Write the clip called `name` to `folder`."""
    path = folder / name
    if name == "packed.avi":
        return packed_avi(path)
    if name == "one-frame.mp4":
        return encode(path, picture_sequence(1))
    if name == "odd-size.webm":
        return encode(
            path,
            picture_sequence(20, 37, 51),
            "libvpx",
            options={"cpu-used": "8", "deadline": "realtime"},
        )
    if name == "odd-size.mp4":
        return encode(path, picture_sequence(20, 37, 51), pix_fmt="yuv444p", options=B_FRAMES)
    codec, arguments = ENCODED[name]
    return encode(path, picture_sequence(), codec, **arguments)


CLIPS = [*ENCODED, "packed.avi", "one-frame.mp4", "odd-size.webm", "odd-size.mp4"]
