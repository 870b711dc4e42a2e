"""MPEG-4 part 2 without its packing: single pictures with their kind and their place in
presentation order.

AVI has no presentation times, and many encoders pack a B picture into the packet of the picture
before it, with an empty placeholder packet later. FFmpeg's decoder undoes that on the fly, one
packet late; so does this, beforehand, and then pictures that are not needed can be left out.
Whatever is not understood fully gives None: then all is decoded.

A worked example, six packets as DivX packs them (`_` is the placeholder, `[..]` one packet):

    packets         [I]  [P B]  [_]  [P B]  [_]  [P]
    pictures         I    P B         P B         P     in decoding order, the placeholders gone
    picture number   0    1 2         3 4         5
    shown            I  B  P  B  P  P                   a B picture at once, any other when the next of its like comes
    frame number     0    2 1         4 3         5

So frame 3 is picture 4: the second half of packet 3. A picture marked as not coded (kind N) is fed
to the decoder, which keeps its clock by it, but gives no frame and has no number.
"""

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np

from .decoding_packets import PacketTable


VOP_START = b"\0\0\1\xb6"
# FFmpeg's decoder takes a packet of at most this many bytes for the placeholder of a packed
# picture.
PLACEHOLDER_SIZE = 19
# What DivX leaves where it dropped a picture: no picture, no error.
DROPPED = b"\x7f"
# The decoder overlooks a second picture of a few bytes; such packets are left to it.
MIN_PACKED_SIZE = 12
PACKED = re.compile(rb"DivX[0-9]+(?:Build|b)[0-9]+p")


@dataclass
class Found:
    """One coded picture in a packet: where it begins (with the headers before it) and ends, and its
    kind I, P, B, S.

    Kind N is a picture marked as not coded: it gives no frame, but the decoder must see it to keep
    its clock.
    """

    packet: int
    begin: int
    end: int
    kind: str


@dataclass
class Pictures:
    """All pictures in decoding order, integers `(pictures,)` each: places, kinds as character
    codes, frame numbers.
    """

    packets: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    kinds: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.kinds)


class PictureSplitter:
    """Fed packet by packet in decoding order, finds the pictures in them; keeps where they are, not
    their bytes.
    """

    def __init__(self, extradata: bytes):
        self._extradata = extradata
        self._is_packed = False
        self._clock_bits: int | None = None
        self._num_packets = 0
        self._stored: Found | None = None
        self._is_unusual = False
        # Packet, begin and end of each picture, and its kind.
        self._places = array("q")
        self._kinds = bytearray()

    def feed(self, data: bytes) -> None:
        """Take the next packet."""
        if self._num_packets == 0:
            headers = self._extradata + data
            self._is_packed = bool(PACKED.search(headers))
            self._clock_bits = _clock_bits(headers)
        if not self._is_unusual:
            self._is_unusual = not self._understand(data, _pictures_in(data, self._num_packets))
        self._num_packets += 1

    def finish(self) -> Pictures | None:
        """The pictures of all packets, numbered in presentation order; None for an unusual stream."""
        if self._is_unusual or not self._kinds:
            return None
        kinds = np.frombuffer(self._kinds, dtype=np.uint8)
        numbers = _number(self._kinds)
        if numbers is None:
            return None
        places = np.frombuffer(self._places, dtype=np.int64).reshape(-1, 3)
        return Pictures(places[:, 0], places[:, 1], places[:, 2], kinds, numbers)

    def _understand(self, data: bytes, found: list[Found] | None) -> bool:
        """Note the pictures that the decoder would take from this packet; False where that is not
        certain.
        """
        if found is None:
            return False
        if self._stored is not None:  # this packet's turn decodes what the last one brought along
            self._note(self._stored)
            self._stored = None
            if len(data) <= PLACEHOLDER_SIZE:
                return True
            if len(found) != 1 or found[0].kind not in "IB" or not self._is_packed:
                return False
            self._stored = found[0]
        elif len(data) <= PLACEHOLDER_SIZE and len(found) <= 1:
            if data == DROPPED:
                return True
            if not found or self._clock_bits is None:
                return False  # damage, perhaps: only the decoder can tell
            if not _is_coded(data, self._clock_bits):
                found[0].kind = "N"
            self._note(found[0])
        elif len(found) == 1:
            self._note(found[0])
        elif self._is_packed and len(found) == 2 and _can_be_packed(found[1]):
            self._note(found[0])
            self._stored = found[1]
        else:
            return False
        return True

    def _note(self, picture: Found) -> None:
        self._places.extend((picture.packet, picture.begin, picture.end))
        self._kinds.append(ord(picture.kind))


class PictureUnits:
    """The pictures of a table of packets as packets of their own; unit `k` is picture `k`, and so
    are its times.
    """

    def __init__(self, table: PacketTable, pictures: Pictures):
        self._table = table
        self._pictures = pictures

    def read(self, start: int, stop: int) -> Iterator[av.Packet]:
        """The pictures from `start` to `stop - 1`, cut from their packets."""
        pictures = self._pictures
        first, last = int(pictures.packets[start]), int(pictures.packets[stop - 1])
        k = start
        for number, packet in enumerate(self._table.read(first, last + 1), first):
            data = memoryview(packet)
            while k < stop and pictures.packets[k] == number:
                yield _unit(data[pictures.begins[k] : pictures.ends[k]], k)
                k += 1


def _unit(data: memoryview, number: int) -> av.Packet:
    unit = av.Packet(len(data))  # with the padding that decoders read into; Packet(bytes) has none
    unit.update(bytes(data))
    unit.pts = unit.dts = number
    return unit


def _can_be_packed(picture: Found) -> bool:
    return picture.kind == "B" and picture.end - picture.begin >= MIN_PACKED_SIZE


def _pictures_in(data: bytes, packet: int) -> list[Found] | None:
    """Cut a packet before each picture but the first; None where other headers stand between
    pictures.
    """
    found = []
    begin, at = 0, data.find(VOP_START)
    while at >= 0:
        after = data.find(VOP_START, at + 4)
        end = len(data) if after < 0 else after
        if at + 4 >= len(data) or (after >= 0 and data.find(b"\0\0\1", at + 4, after) >= 0):
            return None
        found.append(Found(packet, begin, end, "IPBS"[data[at + 4] >> 6]))
        begin, at = end, after
    return found


def _number(kinds: bytearray) -> np.ndarray | None:
    """Number in presentation order: B pictures come out at once, any other when the next of its
    like does.

    From the kinds of all pictures in decoding order, int64 `(pictures,)`, -1 where none is shown.
    None where a B picture lacks its references, or no picture is shown.
    """
    shown = array("q")
    held = -1  # the picture that waits for the next of its like
    num_references = 0
    for picture, kind in enumerate(kinds):
        if kind == ord("N"):
            continue
        if kind == ord("B"):
            if num_references < 2:
                return None  # the decoder drops it for want of a reference
            shown.append(picture)
            continue
        if held >= 0:
            shown.append(held)
        held = picture
        num_references += 1
    if held >= 0:
        shown.append(held)
    if not shown:
        return None
    numbers = np.full(len(kinds), -1)
    numbers[np.frombuffer(shown, dtype=np.int64)] = np.arange(len(shown))
    return numbers


def _clock_bits(headers: bytes) -> int | None:
    """How many bits a picture's time takes, from the video object layer header (ISO/IEC 14496-2,
    6.2.3).
    """
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
