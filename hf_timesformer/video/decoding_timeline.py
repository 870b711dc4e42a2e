"""Which packet of a video gives which frame, and where decoding can start, without decoding anything."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import av

from .decoding_mpeg4 import split_mpeg4
from .decoding_source import LIBRARY_ERRORS, VideoDecodeError, VideoFile


# Containers that store a presentation time for each packet. Elsewhere FFmpeg infers it, and infers it wrongly.
TIMED_CONTAINERS = {"mov", "mp4", "matroska", "webm"}

# Decoders whose `skip_frame="NONREF"` leaves out exactly the pictures that no other picture is predicted from. HEVC is
# not here: its sub-layer non-reference pictures may serve pictures of higher sub-layers.
SKIPPING_CODECS = {"h264", "mpeg4", "mpeg1video", "mpeg2video"}


@dataclass(frozen=True)
class Timeline:
    """What the decoder can be fed, in decoding order, and the number of the frame that each unit gives.

    `numbers[k]` is the frame number of unit `k`, -1 where it shows none (cut away by an edit list, or hidden).
    `starts` are the units from which decoding can begin: no frame at or after theirs needs anything before them.
    """

    units: list[av.Packet]
    numbers: list[int]
    starts: list[int]
    can_skip: bool

    @property
    def num_frames(self) -> int:
        """How many frames a decoder makes of all units."""
        return max(self.numbers) + 1

    def best_start(self, unit: int) -> int:
        """The last unit at which a decode that wants the frame of `unit` can begin."""
        at = bisect_right(self.starts, unit) - 1
        while at > 0 and self.numbers[self.starts[at]] > self.numbers[unit]:
            at -= 1
        return self.starts[at]

    def stretches(self, wanted: Iterable[int]) -> list[tuple[int, int]]:
        """The runs of units `(first, last)` to decode for the frames `wanted`, in order and as few as possible."""
        runs: list[tuple[int, int]] = []
        unit_of = {number: unit for unit, number in enumerate(self.numbers)}
        for unit in (unit_of.get(number) for number in sorted(wanted)):
            if unit is None:
                return []  # counted, but never decoded
            start = self.best_start(unit)
            if not runs or start > runs[-1][1] + 1:
                runs.append((start, unit))
            else:
                runs[-1] = (runs[-1][0], max(runs[-1][1], unit))
        return runs


def decode_units(
    decoder: av.VideoCodecContext, timeline: Timeline, units: range, wanted: Collection[int]
) -> Iterator[av.VideoFrame]:
    """Decode a run of units, skipping unwanted non-reference pictures, then drain the decoder and reset it.

    Where a unit fails, the pictures before it still come out of the decoder, and then the error is raised.
    """
    failure, failed = None, None
    for k in units:
        if timeline.can_skip:
            decoder.skip_frame = "DEFAULT" if timeline.numbers[k] in wanted else "NONREF"
        try:
            yield from decoder.decode(timeline.units[k])
        except LIBRARY_ERRORS as error:
            failure, failed = error, timeline.units[k].pts
            break
    yield from (frame for frame in decoder.decode(None) if failure is None or frame.pts != failed)
    decoder.flush_buffers()
    if failure is not None:
        raise failure


def read_packets(container: av.container.InputContainer, stream: av.VideoStream, video: VideoFile) -> list[av.Packet]:
    """All packets of `stream` with data, in decoding order; a damaged end just ends the list."""
    packets: list[av.Packet] = []
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            packets.append(packet)
            if len(packets) > video.limits.max_frames:
                message = f"has more than the limit of {video.limits.max_frames} frames (DecodeLimits.max_frames)"
                raise VideoDecodeError(video.name, "limit", message)
            video.check()
    except VideoDecodeError:
        raise
    except LIBRARY_ERRORS as error:
        if not packets:
            raise VideoDecodeError(video.name, "damaged", f"has no readable video packet: {error}") from error
    if all(packet.is_discard for packet in packets):
        raise VideoDecodeError(video.name, "damaged", "has no video frames")
    return packets


def build_timeline(
    container: av.container.InputContainer, stream: av.VideoStream, packets: list[av.Packet]
) -> Timeline | None:
    """The timeline of a stream whose packets can be trusted to tell it; None where only decoding can."""
    if any(packet.is_corrupt for packet in packets[:-1]):
        return None
    codec = stream.codec_context.name
    if codec == "mpeg4":
        return _mpeg4_timeline(container, stream, packets)
    if not _is_timed(container) or codec not in START_TESTS:
        return None
    numbers = _numbers_by_time(packets, [packet.is_discard or _is_hidden(codec, packet) for packet in packets])
    if numbers is None:
        return None
    extradata = stream.codec_context.extradata or b""
    is_start = START_TESTS[codec]
    starts = [k for k, packet in enumerate(packets) if k == 0 or (packet.is_keyframe and is_start(packet, extradata))]
    return Timeline(packets, numbers, starts, codec in SKIPPING_CODECS)


def _is_timed(container: av.container.InputContainer) -> bool:
    return not TIMED_CONTAINERS.isdisjoint(container.format.name.split(","))


def _numbers_by_time(packets: list[av.Packet], without_frame: list[bool]) -> list[int] | None:
    """Frame numbers by rank of presentation time, -1 `without_frame`; None for missing, doubled or early times."""
    times = [packet.pts for packet in packets]
    if any(time is None for time in times) or not packets[0].is_keyframe or min(times) < times[0]:
        return None
    shown = sorted(time for time, is_without in zip(times, without_frame) if not is_without)
    rank = {time: number for number, time in enumerate(shown)}
    if len(rank) < len(shown) or not shown:
        return None
    return [-1 if is_without else rank[time] for time, is_without in zip(times, without_frame)]


def _mpeg4_timeline(
    container: av.container.InputContainer, stream: av.VideoStream, packets: list[av.Packet]
) -> Timeline | None:
    """MPEG-4 part 2: pictures and their order read from the bitstream, since AVI has no presentation times."""
    pictures = split_mpeg4(packets, stream.codec_context.extradata or b"")
    if pictures is None:
        return None
    if any(packet.is_discard for packet in packets) or _is_timed(container):
        # Times are at hand, and packets may be cut by an edit list: both accounts must agree, picture by picture.
        numbers = _numbers_by_time(packets, [packet.is_discard for packet in packets])
        if len(pictures) != len(packets) or numbers is None or any(picture.number < 0 for picture in pictures):
            return None
        order = sorted(range(len(packets)), key=lambda k: pictures[k].number)
        if [number for number in (numbers[k] for k in order) if number >= 0] != list(range(max(numbers) + 1)):
            return None
    else:
        numbers = [picture.number for picture in pictures]
    starts = [k for k, picture in enumerate(pictures) if k == 0 or (picture.kind == "I" and numbers[k] >= 0)]
    units = []
    for k, picture in enumerate(pictures):
        unit = av.Packet(len(picture.data))  # with the padding that decoders read into; Packet(bytes) has none
        unit.update(picture.data)
        unit.pts = unit.dts = k
        units.append(unit)
    return Timeline(units, numbers, starts, can_skip=True)


def _is_hidden(codec: str, packet: av.Packet) -> bool:
    """Whether a VP8 or VP9 packet holds only a picture that is never shown, so that it gives no frame."""
    if codec not in ("vp8", "vp9"):
        return False
    data = memoryview(packet)
    if codec == "vp8":
        return not data[0] >> 4 & 1
    if data[-1] & 0xE0 == 0xC0:  # a superframe: hidden pictures and the one that is shown
        return False
    _, show_existing, _, shown = _vp9_header(data[0], data[1] if len(data) > 1 else 0)
    return not (show_existing or shown)


def _vp9_header(first: int, second: int) -> tuple[int, bool, bool, bool]:
    """Profile, show_existing_frame, is-no-key-frame and show_frame of a VP9 uncompressed header."""
    bits = first << 8 | second
    profile = (bits >> 13 & 1) | (bits >> 12 & 1) << 1
    at = 11 - (profile == 3)
    return profile, bool(bits >> at & 1), bool(bits >> at - 1 & 1), bool(bits >> at - 2 & 1)


def _is_idr(packet: av.Packet, extradata: bytes) -> bool:
    """H.264: the first coded slice is of an IDR picture (an open GOP's I picture is not)."""
    data = memoryview(packet)
    for at in _nal_units(data, (extradata[4] & 3) + 1 if extradata[:1] == b"\x01" else 0):
        kind = data[at] & 31
        if 1 <= kind <= 5:
            return kind == 5
    return False


def _is_hevc_idr(packet: av.Packet, extradata: bytes) -> bool:
    """HEVC: the first coded slice is of an IDR picture (CRA and BLA pictures are not)."""
    data = memoryview(packet)
    for at in _nal_units(data, (extradata[21] & 3) + 1 if extradata[:1] == b"\x01" and len(extradata) > 21 else 0):
        kind = data[at] >> 1 & 63
        if kind < 32:
            return kind in (19, 20)
    return False


def _nal_units(data: memoryview, length_size: int):
    """Yield where each NAL unit begins: after length fields of `length_size` bytes, or (0) after start codes."""
    at = 0
    if length_size:
        while at + length_size < len(data):
            size = int.from_bytes(data[at : at + length_size], "big")
            yield at + length_size
            at += length_size + size
    else:
        raw = bytes(data)
        while 0 <= (at := raw.find(b"\0\0\1", at)) < len(raw) - 3:
            at += 3
            yield at


def _is_vp8_key(packet: av.Packet, extradata: bytes) -> bool:
    return not memoryview(packet)[0] & 1


def _is_vp9_key(packet: av.Packet, extradata: bytes) -> bool:
    data = memoryview(packet)
    _, show_existing, is_inter, _ = _vp9_header(data[0], data[1] if len(data) > 1 else 0)
    return not show_existing and not is_inter


# Per codec: does a packet that is marked as key frame really stand on its own? The mark alone is not enough.
START_TESTS: dict[str, Callable[[av.Packet, bytes], bool]] = {
    "h264": _is_idr,
    "hevc": _is_hevc_idr,
    "vp8": _is_vp8_key,
    "vp9": _is_vp9_key,
    "mjpeg": lambda packet, extradata: True,
}
