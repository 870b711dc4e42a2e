"""A video whose container has an index of all its pictures (mp4, mov): only what wanted frames need
is read.

The index lists each picture in decoding order with its place in the file and whether it is a key
frame. A worked example, 3 groups of pictures of 250, frame 300 wanted:

    index entry     0 ... 249    250 ... 499    500 ... 749
    key frame       x            x              x

As many frames are shown before a key frame that begins a closed group as entries stand before it.
So the group of entry 250 has the frames 250 to 499. Its packets are read (and the next key frame,
which must be a start too), their times put in order, and the 51st is frame 300. Where a key frame
is no start (an open group of pictures), the group before it or after it is read as well. HEVC's
groups may begin with leading pictures, shown before their key frame: there the neighbours of a
group are read with it, which settles their order.

An edit list may cut entries away (`discarded`). Had the first two entries been cut away in the
example, frame 300 would be entry 302.
"""

from collections.abc import Collection, Iterator
from fractions import Fraction

import av
import numpy as np

from .decoding_codecs import INTRA_CODECS, LEADING_CODECS, judge_of
from .decoding_limits import LIBRARY_ERRORS, VideoDecodeError
from .decoding_packets import HIDDEN, MAX_PASSED, START, PacketTable, packets_of, too_many_frames
from .decoding_scan import ScannedVideo
from .decoding_segment import FrameTimes
from .decoding_source import VideoFile
from .decoding_timeline import Timeline, timeline_of_packets


# Codecs with a frame for each picture of the index. VP8 and VP9 may have hidden ones; MPEG-4 can
# pack two in one.
INDEXED_CODECS = {"h264", "hevc", "libdav1d", "av1", *INTRA_CODECS}


class IndexedVideo:
    """What the index of a video tells of it; `num_frames`, `num_packets`, `num_before` as in
    `ScannedVideo`.
    """

    num_before = 0

    def __init__(
        self, container: av.container.InputContainer, stream: av.VideoStream, video: VideoFile
    ):
        self._container, self._stream, self._video = container, stream, video
        codec = stream.codec_context
        self._codec = codec.name
        self._judge = judge_of(codec.name, codec.extradata or b"")
        self._entries = stream.index_entries
        self._count = len(self._entries)
        self._discarded = discarded_entries(self._entries, has_plain_edits(video))
        # How many frames are shown before each of them.
        self._shown_before_discarded = self._discarded - np.arange(len(self._discarded))
        self.num_packets = self._count - len(self._discarded)
        self.num_frames = self.num_packets
        self._is_start: dict[int, bool] = {}

    @staticmethod
    def has_index(
        container: av.container.InputContainer, stream: av.VideoStream, video: VideoFile
    ) -> bool:
        """Whether the container lists every picture of the stream; reads no packet.

        Raises:
            VideoDecodeError: the index has more entries than the limit of frames.
        """
        if (
            "mov" not in container.format.name.split(",")
            or stream.codec_context.name not in INDEXED_CODECS
        ):
            return False
        count = len(stream.index_entries)
        if count > video.limits.max_frames:
            raise too_many_frames(video)
        if not count or is_fragmented(video):
            return False
        last = stream.index_entries[count - 1]
        return last.pos + last.size <= video.size  # else the file breaks off

    @classmethod
    def of(
        cls, container: av.container.InputContainer, stream: av.VideoStream, video: VideoFile
    ) -> "IndexedVideo | None":
        """The video as its index tells it; None where frames cannot be numbered by it."""
        indexed = cls(container, stream, video)
        return indexed if indexed.num_frames and indexed._begins_well() else None

    def _begins_well(self) -> bool:
        """Whether the first picture of the file is a start, and the first that is shown."""
        if not self._entries[0].is_keyframe or not self._is_start_at(0):
            return False
        if self._codec not in LEADING_CODECS:
            return True
        table = self._read_entries(0, self._key_after(0))
        return table is not None and min(table.pts) == table.pts[0]

    def timelines(self, wanted: Collection[int]) -> Iterator[Timeline | None]:
        """The timelines of the groups that hold the frames `wanted`, in order; None for one that
        cannot be told.
        """
        first = stop = 0  # the run of entries that is being put together
        settled = 0  # entries before this one lie in it, with the neighbours that they need
        for number in sorted(wanted):
            entry = self._entry_of(number)
            if entry < settled:
                continue
            settled = self._key_after(entry)
            next_first, next_stop = self._closed_run(entry)
            if stop and next_first > stop:
                yield self._timeline(first, stop)
                stop = 0
            first = min(first, next_first) if stop else next_first
            stop = max(stop, next_stop)
        if stop:
            yield self._timeline(first, stop)

    def first_unit(self) -> av.Packet | None:
        """The first packet of the file, from which a decoder learns the encoder's version and the
        frame size.
        """
        return next(self._packets_from(0), None)

    def times(self) -> FrameTimes | None:
        """When each frame is shown: from the index where it is evenly spaced, else by a scan of all
        packets.

        The index has decoding times. Where these are evenly spaced, so are the times of
        presentation (`confirms` holds single frames to that).
        """
        stamps = np.array([entry.timestamp for entry in self._entries], dtype=np.int64)
        steps = np.diff(stamps)
        # The last frame may be shown longer, which no later entry tells.
        if len(steps) and np.all(steps == steps[0]) and steps[0] > 0 and not len(self._discarded):
            return FrameTimes.from_ticks(stamps, self._time_base)
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
        seconds = {
            number: (tick - ticks[0]) * float(self._time_base) for number, tick in ticks.items()
        }
        return all(
            number in seconds and abs(seconds[number] - times.seconds[number]) < 1e-6
            for number in numbers
        )

    @property
    def _time_base(self) -> Fraction:
        time_base = self._stream.time_base
        assert time_base is not None  # FFmpeg's mov demuxer sets one for every stream
        return time_base

    def _entry_of(self, number: int) -> int:
        """The entry with as many shown ones before it: that of frame `number`, or one near it in
        the same group.
        """
        return number + int(np.searchsorted(self._shown_before_discarded, number, side="right"))

    def _key_before(self, entry: int) -> int:
        """The last key frame at or before `entry`."""
        while entry > 0 and not self._entries[entry].is_keyframe:
            entry -= 1
        return entry

    def _key_after(self, entry: int) -> int:
        """The first key frame behind `entry`, or the number of entries."""
        entry += 1
        while entry < self._count and not self._entries[entry].is_keyframe:
            entry += 1
        return entry

    def _closed_run(self, entry: int) -> tuple[int, int]:
        """The entries `[first, stop)` around `entry` that begin with a start and end before one."""
        first = self._key_before(entry)
        stop = self._key_after(entry)
        if self._codec in LEADING_CODECS:
            first = self._key_before(max(first - 1, 0))
            stop = self._key_after(min(stop, self._count - 1))
        while first > 0 and not self._is_start_at(first):
            first = self._key_before(first - 1)
        while stop < self._count and not self._is_start_at(stop):
            stop = self._key_after(stop)
        return first, stop

    def _is_start_at(self, key: int) -> bool:
        """Whether the key frame of entry `key` is one at which decoding can begin; reads that one
        packet.
        """
        if self._codec in INTRA_CODECS:
            return True
        if key not in self._is_start:
            packet = next(self._packets_from(key), None)
            self._is_start[key] = packet is not None and bool(self._judge(packet) & START)
        return self._is_start[key]

    def _timeline(self, first: int, stop: int) -> Timeline | None:
        table = self._read_entries(first, stop)
        if table is None or any(flags & HIDDEN for flags in table.flags):
            return None
        base = first - int(np.searchsorted(self._discarded, first))
        return timeline_of_packets(table, self._codec, base=base, is_whole=False)

    def _read_entries(self, first: int, stop: int) -> PacketTable | None:
        """The packets of the entries `[first, stop)`; None where they are not those of the index."""
        table = PacketTable(self._container, self._stream, self._video, self._judge)
        try:
            for entry, packet in zip(range(first, stop), self._packets_from(first)):
                if packet.pos != self._entries[entry].pos:
                    return None
                table.add(packet)
                if entry % 64 == 0:
                    self._video.check()
        except VideoDecodeError:
            raise
        except LIBRARY_ERRORS:
            return None
        return table if len(table) == stop - first else None

    def _packets_from(self, key: int) -> Iterator[av.Packet]:
        """The packets of the file from the key frame of entry `key` on; none where a seek does not
        find it.
        """
        # Taken out now: an entry is a view of FFmpeg's own memory, which reading may move.
        time, position = self._entries[key].timestamp, self._entries[key].pos
        packets = packets_of(self._container, self._stream)
        passed = 0
        try:
            self._container.seek(time, stream=self._stream)
            for packet in packets:
                if packet.pos == position:
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


# No picture is reordered over more than this many others (H.264 and HEVC: 16).
MAX_REORDER = 64


def discarded_entries(entries: av.index.IndexEntries, are_at_the_ends: bool) -> np.ndarray:
    """The numbers of the entries that an edit list cuts away: int64 `(discarded,)`, ascending.

    `are_at_the_ends`: one stretch is shown, so only the entries before and after it are looked at.
    """
    count = len(entries)
    if not are_at_the_ends:
        return np.flatnonzero(
            np.fromiter((entry.flags & 2 for entry in entries), dtype=np.uint8, count=count)
        )
    head = _discarded_until_shown(entries, range(count))
    tail = _discarded_until_shown(entries, range(count - 1, -1, -1))
    return np.array(sorted({*head, *tail}), dtype=np.int64)


def _discarded_until_shown(entries: av.index.IndexEntries, numbers: range) -> list[int]:
    """The discarded entries in this order, up to the first `MAX_REORDER` in succession that are
    shown.
    """
    found = []
    num_shown = 0
    for number in numbers:
        if entries[number].is_discard:
            found.append(number)
            num_shown = 0
        else:
            num_shown += 1
            if num_shown == MAX_REORDER:
                break
    return found


def is_fragmented(video: VideoFile) -> bool:
    """Whether an mp4 has movie fragments (`moof` boxes), whose pictures are not in the index from
    the beginning.
    """
    return any(kind == b"moof" for kind, _, _ in _boxes(video, 0, video.size))


def has_plain_edits(video: VideoFile) -> bool:
    """Whether no track of an mp4 is put together from more than one stretch, as its edit lists
    (`elst`) say.

    Edits that show nothing (media time -1) do not count. False where the boxes are not as they
    should be.
    """
    for kind, begin, end in _boxes(video, 0, video.size):
        if kind == b"moov":
            tracks = [inside for inside in _boxes(video, begin, end) if inside[0] == b"trak"]
            edits = [
                edit for track in tracks for edit in _boxes(video, *track[1:]) if edit[0] == b"edts"
            ]
            lists = [
                found for edit in edits for found in _boxes(video, *edit[1:]) if found[0] == b"elst"
            ]
            return bool(tracks) and all(_num_stretches(video, *found[1:]) <= 1 for found in lists)
    return False


def _num_stretches(video: VideoFile, begin: int, end: int) -> int:
    """How many entries of an `elst` box (ISO/IEC 14496-12, 8.6.6) show something; a long list is
    not read.
    """
    data = video.read_at(begin, min(end - begin, 256))
    # of an entry, and of its media time
    size, at, width = (20, 8, 8) if data[:1] == b"\1" else (12, 4, 4)
    count = int.from_bytes(data[4:8], "big")
    times = [data[8 + k * size + at :][:width] for k in range(min(count, 8))]
    return count if count > len(times) else sum(time != b"\xff" * width for time in times)


def _boxes(video: VideoFile, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, and begin and end of the content, of the boxes in a stretch of an mp4; ends where the
    sizes make no sense.

    A box begins with its size (4 bytes) and kind (4). Where the size is 1, a longer size follows
    (8); 0 means to the end of the file.
    """
    at = begin
    while at + 8 <= end:
        head = video.read_at(at, 16)
        size, kind, content = int.from_bytes(head[:4], "big"), head[4:8], at + 8
        if size == 1:
            size, content = int.from_bytes(head[8:16], "big"), at + 16
        size = size or end - at
        if size < 8:
            return
        yield kind, content, min(at + size, end)
        at += size
