"""What the first bytes of a packet tell of its picture: whether decoding can begin there, whether
it is shown.
"""

from collections.abc import Callable, Iterator

import av

from .decoding_packets import HIDDEN, START


# Decoders whose `skip_frame="NONREF"` leaves out exactly the pictures that no other picture is
# predicted from. HEVC is not here: its sub-layer non-reference pictures may serve pictures of
# higher sub-layers.
SKIPPING_CODECS = {"h264", "mpeg4", "mpeg1video", "mpeg2video"}

# Codecs in which pictures that follow a start in the file may be shown before it (HEVC's leading
# pictures).
LEADING_CODECS = {"hevc"}

# Codecs without any prediction between pictures: one picture a packet, shown in the file's order.
INTRA_CODECS = {"mjpeg", "prores"}

# Decoders that give nothing until the first key frame when a recording begins between two of them.
WAITING_CODECS = {"h264", "hevc"}


def judge_of(codec: str, extradata: bytes) -> Callable[[av.Packet], int]:
    """The function that marks a packet of this codec with `START` and `HIDDEN`; 0 for all where
    nothing is known.
    """
    is_start = START_TESTS.get(codec)
    is_hidden = HIDDEN_TESTS.get(codec)

    def judge(packet: av.Packet) -> int:
        marks = 0
        if is_start is not None and packet.is_keyframe and is_start(packet, extradata):
            marks |= START
        if is_hidden is not None and is_hidden(packet):
            marks |= HIDDEN
        return marks

    return judge


def is_idr(packet: av.Packet, extradata: bytes) -> bool:
    """H.264: the first coded slice is of an IDR picture (an open GOP's I picture is not)."""
    data = memoryview(packet)
    for at in _nal_units(
        data, (extradata[4] & 3) + 1 if extradata[:1] == b"\x01" and len(extradata) > 4 else 0
    ):
        kind = data[at] & 31
        if 1 <= kind <= 5:
            return kind == 5
    return False


def is_hevc_start(packet: av.Packet, extradata: bytes) -> bool:
    """HEVC: the first coded slice is of an IDR or a CRA picture.

    What follows a CRA picture in the file and in time never refers to anything before it (H.265,
    7.4.2.2). Only its leading pictures may: they are shown before it, and frames before a start are
    never taken from a decode that began there. BLA pictures stand where streams were joined and
    have lost theirs: they are not taken.
    """
    data = memoryview(packet)
    for at in _nal_units(
        data, (extradata[21] & 3) + 1 if extradata[:1] == b"\x01" and len(extradata) > 21 else 0
    ):
        kind = data[at] >> 1 & 63
        if kind < 32:
            return kind in (19, 20, 21)
    return False


def _nal_units(data: memoryview, length_size: int) -> Iterator[int]:
    """Yield where each NAL unit begins: after length fields of `length_size` bytes, or (0) after
    start codes.
    """
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


def is_vp8_start(packet: av.Packet, extradata: bytes) -> bool:
    """VP8: the frame header says key frame, which replaces all references."""
    return not memoryview(packet)[0] & 1


def is_vp9_start(packet: av.Packet, extradata: bytes) -> bool:
    """VP9: the (first) frame header says key frame, which replaces all references."""
    data = memoryview(packet)
    _, show_existing, is_inter, _ = _vp9_header(data[0], data[1] if len(data) > 1 else 0)
    return not show_existing and not is_inter


def is_vp8_hidden(packet: av.Packet) -> bool:
    """VP8: a picture that is never shown has a packet of its own, which gives no frame."""
    return not memoryview(packet)[0] >> 4 & 1


def is_vp9_hidden(packet: av.Packet) -> bool:
    """VP9: whether a packet holds only a picture that is never shown."""
    data = memoryview(packet)
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


def is_av1_start(packet: av.Packet, extradata: bytes) -> bool:
    """AV1: the first frame is a shown key frame, which replaces all references, with its sequence
    header before it.
    """
    has_sequence = False
    for kind, header in _av1_units(memoryview(packet)):
        if kind == AV1_SEQUENCE_HEADER:
            has_sequence = True
        elif kind in AV1_FRAMES:
            show_existing, frame_type, shown = header >> 7, header >> 5 & 3, header >> 4 & 1
            return has_sequence and not show_existing and frame_type == 0 and bool(shown)
    return False


def is_av1_hidden(packet: av.Packet) -> bool:
    """AV1: whether a packet shows no picture (a temporal unit that is whole shows exactly one)."""
    return not any(
        header >> 7 or header >> 4 & 1
        for kind, header in _av1_units(memoryview(packet))
        if kind in AV1_FRAMES
    )


AV1_SEQUENCE_HEADER = 1
AV1_FRAMES = (3, 6)  # a frame header alone, or with its data


def _av1_units(data: memoryview) -> Iterator[tuple[int, int]]:
    """Yield kind and first payload byte of each OBU (AV1 specification, 5.3); stop where the sizes
    make no sense.

    A frame's first byte: show_existing_frame (1 bit), frame_type (2), show_frame (1), unless the
    sequence is of still pictures, which no video is.
    """
    at = 0
    while at < len(data):
        head = data[at]
        at += 2 if head & 4 else 1  # with an extension byte
        size = len(data) - at
        if head & 2:  # has a size field, seven bits a byte, lowest first
            size, shift = 0, 0
            while at < len(data):
                byte = data[at]
                size |= (byte & 127) << shift
                at, shift = at + 1, shift + 7
                if byte < 128 or shift > 56:
                    break
        if at >= len(data):
            return
        yield head >> 3 & 15, data[at] if size else 0
        at += size


# Per codec: does a packet that is marked as key frame really stand on its own? The mark alone is
# not enough.
START_TESTS: dict[str, Callable[[av.Packet, bytes], bool]] = {
    "h264": is_idr,
    "hevc": is_hevc_start,
    "vp8": is_vp8_start,
    "vp9": is_vp9_start,
    "libdav1d": is_av1_start,
    "av1": is_av1_start,
    **{codec: lambda packet, extradata: True for codec in INTRA_CODECS},
}

HIDDEN_TESTS: dict[str, Callable[[av.Packet], bool]] = {
    "vp8": is_vp8_hidden,
    "vp9": is_vp9_hidden,
    "libdav1d": is_av1_hidden,
    "av1": is_av1_hidden,
}
