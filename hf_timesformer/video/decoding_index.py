"""A video whose container has an index of all its pictures (mp4, mov): only what wanted frames need is read.

The index lists each picture in decoding order with its place in the file and whether it is a key frame. A worked
example, 3 groups of pictures of 250, frame 300 wanted:

    index entry     0 ... 249    250 ... 499    500 ... 749
    key frame       x            x              x
    group           0            1              2

As many frames are shown before a key frame that begins a closed group as entries stand before it. So group 1 has the
frames 250 to 499. Its packets are read (and the first of group 2, which must be a start too), their times put in
order, and the 51st is frame 300. Where a key frame is no start (an open group of pictures), the group before it or
after it is read as well. HEVC's groups may begin with leading pictures, shown before their key frame: there the
neighbours of a group are read with it, which settles their order.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterator

import av
import numpy as np

from .decoding_codecs import LEADING_CODECS, judge_of
from .decoding_packets import HIDDEN, MAX_PASSED, START, PacketTable, packets_of, too_many_frames
from .decoding_scan import ScannedVideo
from .decoding_segment import FrameTimes
from .decoding_source import LIBRARY_ERRORS, VideoDecodeError, VideoFile
from .decoding_timeline import Timeline, timeline_of_packets


# Codecs with a frame for each picture of the index. VP8 and VP9 may have hidden ones; MPEG-4 can pack two in one.
INDEXED_CODECS = {"h264", "hevc", "libdav1d", "av1", "mjpeg"}


class IndexedVideo:
    """What the index of a video tells of it; `num_frames`, `num_packets`, `num_before` as in `ScannedVideo`."""

    num_before = 0

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream, video: VideoFile):
        self._container, self._stream, self._video = container, stream, video
        codec = stream.codec_context
        self._codec = codec.name
        self._judge = judge_of(codec.name, codec.extradata or b"")
        self._entries = stream.index_entries
        flags = np.frombuffer(bytes(entry.flags & 3 for entry in self._entries), dtype=np.uint8)
        self._keys = np.flatnonzero(flags & 1).tolist()
        # Entries that an edit list cuts away are decoded, but not shown.
        is_shown = flags & 2 == 0
        self._shown_before = None if is_shown.all() else np.concatenate([[0], np.cumsum(is_shown)])
        self.num_packets = int(np.count_nonzero(is_shown))
        self.num_frames = self.num_packets
        self._is_start: dict[int, bool] = {}

    @staticmethod
    def has_index(container: av.container.InputContainer, stream: av.VideoStream, video: VideoFile) -> bool:
        """Whether the container lists every picture of the stream; reads no packet.

        Raises:
            VideoDecodeError: the index has more entries than the limit of frames.
        """
        if "mov" not in container.format.name.split(",") or stream.codec_context.name not in INDEXED_CODECS:
            return False
        count = len(stream.index_entries)
        if count > video.limits.max_frames:
            raise too_many_frames(video)
        if not count or _is_fragmented(video):
            return False
        last = stream.index_entries[count - 1]
        return last.pos + last.size <= video.size  # else the file breaks off

    @classmethod
    def of(
        cls, container: av.container.InputContainer, stream: av.VideoStream, video: VideoFile
    ) -> "IndexedVideo | None":
        """The video as its index tells it; None where frames cannot be numbered by it."""
        indexed = cls(container, stream, video)
        if not indexed.num_frames or not indexed._keys or indexed._keys[0] != 0 or not indexed._begins_well():
            return None
        return indexed

    def _begins_well(self) -> bool:
        """Whether the first picture of the file is a start, and the first that is shown."""
        if not self._is_start_at(0):
            return False
        if self._codec not in LEADING_CODECS:
            return True
        table = self._read_groups(0, 1)
        return table is not None and min(table.pts) == table.pts[0]

    def timelines(self, wanted: Collection[int]) -> Iterator[Timeline]:
        """The timelines of the groups that hold the frames `wanted`, in order; None for one that cannot be told."""
        groups = sorted({self._group_of(number) for number in wanted})
        runs: list[tuple[int, int]] = []
        for group in groups:
            first, stop = self._closed_run(group)
            if runs and first <= runs[-1][1]:
                runs[-1] = (runs[-1][0], max(stop, runs[-1][1]))
            else:
                runs.append((first, stop))
        for first, stop in runs:
            yield self._timeline(first, stop)

    def first_unit(self) -> av.Packet | None:
        """The first packet of the file, from which a decoder learns the encoder's version and the frame size."""
        return next(self._packets_of_group(0), None)

    def times(self) -> FrameTimes | None:
        """When each frame is shown: from the index where it is evenly spaced, else by a scan of all packets.

        The index has decoding times. Where these are evenly spaced, so are the times of presentation (`confirms` holds
        single frames to that).
        """
        stamps = np.array([entry.timestamp for entry in self._entries], dtype=np.int64)
        steps = np.diff(stamps)
        # The last frame may be shown longer, which no later entry tells.
        if len(steps) and np.all(steps == steps[0]) and steps[0] > 0 and self._shown_before is None:
            return FrameTimes.from_ticks(stamps, self._stream.time_base)
        return self.scanned_times()

    def scanned_times(self) -> FrameTimes | None:
        """When each frame is shown, by a scan of all packets."""
        with self._video.open_stream() as (container, stream):
            return ScannedVideo(container, stream, self._video).times()

    def confirms(self, times: FrameTimes, numbers: Collection[int]) -> bool:
        """Whether the packets of these frames have the times that `times` says."""
        ticks = {}
        for timeline in self.timelines({0, *numbers}):
            if timeline is None:
                return False
            for number in {0, *numbers}:
                unit = timeline.unit_of(number)
                if unit is not None:
                    ticks[number] = int(timeline.times[unit])
        seconds = {number: (tick - ticks[0]) * float(self._stream.time_base) for number, tick in ticks.items()}
        return all(number in seconds and abs(seconds[number] - times.seconds[number]) < 1e-6 for number in numbers)

    def _group_of(self, number: int) -> int:
        """The group (number of its key frame) that holds frame `number`, leading pictures aside."""
        entry = number
        if self._shown_before is not None:
            entry = int(np.searchsorted(self._shown_before, number + 1)) - 1
        return bisect_right(self._keys, entry) - 1

    def _closed_run(self, group: int) -> tuple[int, int]:
        """The run of groups `[first, stop)` around `group` that begins with a start and ends before one."""
        margin = 1 if self._codec in LEADING_CODECS else 0
        first = max(group - margin, 0)
        while first > 0 and not self._is_start_at(first):
            first -= 1
        stop = min(group + 1 + margin, len(self._keys))
        while stop < len(self._keys) and not self._is_start_at(stop):
            stop += 1
        return first, stop

    def _is_start_at(self, group: int) -> bool:
        """Whether the key frame of `group` is one at which decoding can begin; reads that one packet."""
        if group not in self._is_start:
            packet = next(self._packets_of_group(group), None)
            self._is_start[group] = packet is not None and bool(self._judge(packet) & START)
        return self._is_start[group]

    def _timeline(self, first: int, stop: int) -> Timeline | None:
        table = self._read_groups(first, stop)
        if table is None or any(flags & HIDDEN for flags in table.flags):
            return None
        key = self._keys[first]
        base = key if self._shown_before is None else int(self._shown_before[key])
        return timeline_of_packets(table, self._codec, base=base, is_whole=False)

    def _read_groups(self, first: int, stop: int) -> PacketTable | None:
        """The packets of the groups `[first, stop)`; None where they are not those of the index."""
        begin = self._keys[first]
        end = self._keys[stop] if stop < len(self._keys) else len(self._entries)
        table = PacketTable(self._container, self._stream, self._video, self._judge)
        try:
            for entry, packet in zip(range(begin, end), self._packets_of_group(first)):
                if packet.pos != self._entries[entry].pos:
                    return None
                table.add(packet)
                if entry % 64 == 0:
                    self._video.check()
        except VideoDecodeError:
            raise
        except LIBRARY_ERRORS:
            return None
        return table if len(table) == end - begin else None

    def _packets_of_group(self, group: int) -> Iterator[av.Packet]:
        """The packets of the file from the key frame of `group` on; none where a seek does not find it."""
        entry = self._entries[self._keys[group]]
        passed = 0
        try:
            self._container.seek(entry.timestamp, stream=self._stream)
            packets = packets_of(self._container, self._stream)
            for packet in packets:
                if packet.pos == entry.pos:
                    yield packet
                    break
                passed += 1
                if passed > MAX_PASSED:
                    return
        except VideoDecodeError:
            raise
        except LIBRARY_ERRORS:
            return
        yield from packets


def _is_fragmented(video: VideoFile) -> bool:
    """Whether an mp4 has movie fragments (`moof` boxes), whose pictures are not in the index from the beginning.

    Goes from box to box at the top of the file: size (4 bytes), kind (4), and where the size is 1, a longer size (8).
    """
    at = 0
    while at + 8 <= video.size:
        head = video.read_at(at, 16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if kind == b"moof":
            return True
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8:  # 0: to the end of the file
            return False
        at += size
    return False
