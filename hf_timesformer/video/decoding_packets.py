"""What is known of a run of packets, and their data on demand: packets are scanned once and need
not be kept.

A packet of a long video is remembered in about 40 bytes (time, size, position, marks). Its data are
read again, by seeking, when a frame needs them. Short videos are small enough to stay in memory,
which saves the second reading.
"""

from array import array
from collections.abc import Callable, Iterator

import av
import numpy as np

from .decoding_limits import LIBRARY_ERRORS, VideoDecodeError
from .decoding_source import VideoFile


# Marks of a packet, one bit each.
KEY = 1  # the container or its parser calls it a key frame
DISCARD = 2  # decoded, but cut away by an edit list
CORRUPT = 4  # the demuxer lost a part of it
HIDDEN = 8  # holds only pictures that are never shown
START = 16  # decoding can begin here: nothing from here on needs anything before

# Data are kept in memory up to this size, and read again beyond it.
KEEP_BYTES = 16 << 20
# Where a seek ends before the packet that is looked for, how many packets are passed over before
# another try.
MAX_PASSED = 2000
# A second try seeks to so many seconds earlier.
STEP_BACK = 10

NO_TIME = -(1 << 63)


class PacketTable:
    """A run of packets of one stream, in decoding order.

    `pts`, `sizes`, `positions` and `flags` have one entry a packet (`NO_TIME` for a missing time,
    -1 for an unknown position). `judge` looks at a packet's data once, while it is at hand, and
    returns `HIDDEN` and `START` as they apply.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        stream: av.VideoStream,
        video: VideoFile,
        judge: Callable[[av.Packet], int],
    ):
        self.pts = array("q")
        self.sizes = array("q")
        self.positions = array("q")
        self.flags = bytearray()
        self._seek_times = array("q")
        self._container, self._stream, self._video, self._judge = container, stream, video, judge
        self._kept: list[av.Packet] | None = []
        self._kept_bytes = 0
        self._num_dropped = 0

    def __len__(self) -> int:
        return len(self.flags)

    def add(self, packet: av.Packet) -> None:
        """Append what is to be known of `packet`, and its data as long as they are few."""
        pts, dts, size = packet.pts, packet.dts, packet.size
        flags = self._judge(packet)
        if packet.is_keyframe:
            flags |= KEY
        if packet.is_discard:
            flags |= DISCARD
        if packet.is_corrupt:
            flags |= CORRUPT
        self.pts.append(NO_TIME if pts is None else pts)
        self._seek_times.append((NO_TIME if pts is None else pts) if dts is None else dts)
        self.sizes.append(size)
        self.positions.append(-1 if packet.pos is None else packet.pos)
        self.flags.append(flags)
        if self._kept is not None:
            self._kept.append(packet)
            self._kept_bytes += size
            if self._kept_bytes > KEEP_BYTES:
                self._kept = None

    def drop_first(self, count: int) -> None:
        """Forget the first `count` packets; those after them are then numbered from 0."""
        if count:
            for column in (self.pts, self.sizes, self.positions, self._seek_times, self.flags):
                del column[:count]
            if self._kept is not None:
                del self._kept[:count]
            self._num_dropped += count

    def num_shown(self) -> int:
        """How many packets are not cut away by an edit list."""
        return len(self) - int(
            np.count_nonzero(np.frombuffer(self.flags, dtype=np.uint8) & DISCARD)
        )

    def read(self, start: int, stop: int) -> Iterator[av.Packet]:
        """The packets from `start` to `stop - 1`.

        Raises:
            EOFError: the file does not give the same packets a second time.
        """
        if self._kept is not None:
            yield from self._kept[start:stop]
            return
        packets = self._packets_from(start)
        for k in range(start, stop):
            packet = next(packets, None)
            if packet is None or not self._is(packet, k):
                raise EOFError(f"packet {k} is not found again")
            yield packet

    def _is(self, packet: av.Packet, k: int) -> bool:
        pts = NO_TIME if packet.pts is None else packet.pts
        position = -1 if packet.pos is None else packet.pos
        return (pts, packet.size, position) == (self.pts[k], self.sizes[k], self.positions[k])

    def _packets_from(self, start: int) -> Iterator[av.Packet]:
        """The stream's packets from number `start` on: by seeking, or from the beginning where that
        misses it.
        """
        time = self._seek_times[start]
        step = int(STEP_BACK / self._stream.time_base) if self._stream.time_base else 0
        for target in () if time == NO_TIME else (time, time - step):
            try:
                self._container.seek(target, stream=self._stream)
            except VideoDecodeError:
                raise
            except LIBRARY_ERRORS:
                continue
            packets = packets_of(self._container, self._stream)
            for passed, packet in enumerate(packets):
                if self._is(packet, start):
                    yield packet
                    yield from packets
                    return
                is_behind = packet.pos is not None and packet.pos > self.positions[start]
                if is_behind or passed > MAX_PASSED:
                    break
        with self._video.open_stream() as (container, stream):
            for k, packet in enumerate(packets_of(container, stream)):
                if k - self._num_dropped >= start:
                    yield packet


def packets_of(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.Packet]:
    """The packets of `stream` that hold data, from where the container stands."""
    for packet in container.demux(stream):
        if packet.size:
            yield packet


def scan_packets(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    video: VideoFile,
    judge: Callable[[av.Packet], int],
) -> PacketTable:
    """All packets of the stream; a damaged end just ends the table.

    Raises:
        VideoDecodeError: no packet can be read, none is shown, or there are more than the limit of
            frames.
    """
    table = PacketTable(container, stream, video, judge)
    try:
        for packet in packets_of(container, stream):
            table.add(packet)
            if len(table) > video.limits.max_frames:
                raise too_many_frames(video)
            if len(table) % 64 == 0:
                video.check()
    except VideoDecodeError:
        raise
    except LIBRARY_ERRORS as error:
        if not len(table):
            raise VideoDecodeError(
                video.name, "damaged", f"has no readable video packet: {error}"
            ) from error
    video.check()
    if all(flags & DISCARD for flags in table.flags):
        raise VideoDecodeError(video.name, "damaged", "has no video frames")
    return table


def too_many_frames(video: VideoFile) -> VideoDecodeError:
    """The error for a video of more frames than its limits allow."""
    message = (
        f"has more than the limit of {video.limits.max_frames} frames (DecodeLimits.max_frames)"
    )
    return VideoDecodeError(video.name, "limit", message)
