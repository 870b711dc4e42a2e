"""MPEG-4 part 2 without its packing: single pictures with their kind and their place in presentation order.

AVI has no presentation times, and many encoders pack a B picture into the packet of the picture before it, with an
empty placeholder packet later. FFmpeg's decoder undoes that on the fly, one packet late; so does this, beforehand, and
then pictures that are not needed can be left out. Whatever is not understood fully gives None: then all is decoded.
"""

import re
from dataclasses import dataclass

import av


VOP_START = b"\0\0\1\xb6"
# FFmpeg's decoder takes a packet of at most this many bytes for the placeholder of a packed picture.
PLACEHOLDER_SIZE = 19
# What DivX leaves where it dropped a picture: no picture, no error.
DROPPED = b"\x7f"
# The decoder overlooks a second picture of a few bytes; such packets are left to it.
MIN_PACKED_SIZE = 12
PACKED = re.compile(rb"DivX[0-9]+(?:Build|b)[0-9]+p")


@dataclass
class Picture:
    """One coded picture: its bytes (with the headers before it), its kind I, P, B or S, and its frame number.

    Kind N is a picture marked as not coded: it gives no frame, but the decoder must see it to keep its clock.
    """

    data: bytes
    kind: str
    number: int = -1


def split_mpeg4(packets: list[av.Packet], extradata: bytes) -> list[Picture] | None:
    """The pictures of `packets` in decoding order, numbered in presentation order; None for an unusual stream."""
    headers = extradata + bytes(packets[0])
    packed = bool(PACKED.search(headers))
    clock_bits = _clock_bits(headers)
    pictures: list[Picture] = []
    stored: Picture | None = None
    for packet in packets:
        data = bytes(packet)
        found = _pictures_in(data)
        if found is None:
            return None
        if stored is not None:  # this packet's turn decodes what the last one brought along
            pictures.append(stored)
            if len(data) <= PLACEHOLDER_SIZE:
                stored = None
                continue
            if len(found) != 1 or found[0].kind not in "IB" or not packed:
                return None
            stored = found[0]
        elif len(data) <= PLACEHOLDER_SIZE and len(found) <= 1:
            if data == DROPPED:
                continue
            if not found or clock_bits is None:
                return None  # damage, perhaps: only the decoder can tell
            if not _is_coded(data, clock_bits):
                found[0].kind = "N"
            pictures += found
        elif len(found) == 1:
            pictures.append(found[0])
        elif packed and len(found) == 2 and found[1].kind == "B" and len(found[1].data) >= MIN_PACKED_SIZE:
            pictures.append(found[0])
            stored = found[1]
        else:
            return None
    return _number(pictures)


def _pictures_in(data: bytes) -> list[Picture] | None:
    """Cut a packet before each picture but the first; None where other headers stand between pictures."""
    found = []
    begin, at = 0, data.find(VOP_START)
    while at >= 0:
        after = data.find(VOP_START, at + 4)
        end = len(data) if after < 0 else after
        if at + 4 >= len(data) or (after >= 0 and data.find(b"\0\0\1", at + 4, after) >= 0):
            return None
        found.append(Picture(data[begin:end], "IPBS"[data[at + 4] >> 6]))
        begin, at = end, after
    return found


def _number(pictures: list[Picture]) -> list[Picture] | None:
    """Number in presentation order: B pictures come out at once, any other when the next of its like does."""
    shown: list[Picture] = []
    held: list[Picture] = []
    for references, picture in enumerate(picture for picture in pictures if picture.kind != "N"):
        if picture.kind != "B":
            shown += held
            held = [picture]
        elif references < 2:
            return None  # the decoder drops it for want of a reference
        else:
            shown.append(picture)
    shown += held
    for number, picture in enumerate(shown):
        picture.number = number
    return pictures if shown else None


def _clock_bits(headers: bytes) -> int | None:
    """How many bits a picture's time takes, from the video object layer header (ISO/IEC 14496-2, 6.2.3)."""
    start = re.search(rb"\x00\x00\x01[\x20-\x2f]", headers)
    if start is None:
        return None
    bits = _bits(headers[start.end() : start.end() + 32].ljust(32, b"\0"))
    at = 9  # random access, type
    at += 8 if bits[at] == "1" else 1  # version and priority
    at += 20 if bits[at : at + 4] == "1111" else 4  # pixel aspect
    if bits[at] == "1":  # control parameters
        at += 4
        at += 80 if bits[at] == "1" else 1
    else:
        at += 1
    at += 3  # shape, marker
    return max(1, (int(bits[at : at + 16], 2) - 1).bit_length())


def _is_coded(data: bytes, clock_bits: int) -> bool:
    """The `vop_coded` bit of the first picture of `data` (ISO/IEC 14496-2, 6.2.5)."""
    bits = _bits(data[data.find(VOP_START) + 4 :])
    at = bits.find("0", 2) + 2 + clock_bits + 1  # kind, whole seconds, marker, time, marker
    return bits[at : at + 1] == "1"


def _bits(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)
