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
# It overlooks a second picture of a few bytes; such packets are left to it.
MIN_PACKED_SIZE = 12
PACKED = re.compile(rb"DivX[0-9]+(?:Build|b)[0-9]+p")


@dataclass
class Picture:
    """One coded picture: its bytes (with the headers before it), its kind I, P, B or S, and its frame number."""

    data: bytes
    kind: str
    number: int = -1


def split_mpeg4(packets: list[av.Packet], extradata: bytes) -> list[Picture] | None:
    """The pictures of `packets` in decoding order, numbered in presentation order; None for an unusual stream."""
    packed = bool(PACKED.search(extradata) or PACKED.search(bytes(packets[0])))
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
        elif len(data) <= PLACEHOLDER_SIZE:
            if found:
                return None  # a picture that is marked as not coded, perhaps: only the decoder can tell
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
    for references, picture in enumerate(pictures):
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
