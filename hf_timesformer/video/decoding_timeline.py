"""Which packet of a video gives which frame, and where decoding can start, without decoding
anything.

A worked example: an H.264 video with B pictures, two groups of pictures, 30 frames a second.

    unit (decoding order)    0   1   2   3   4   5   6   7
    picture                  I   P   B   B   I   P   B   B
    time (1/30 s)            0   3   1   2   4   7   5   6
    number                   0   3   1   2   4   7   5   6    the rank of its time
    start                    x               x                the first of a group

Frame 6 is unit 7. The last start at or before it is unit 4, so units 4 to 7 are decoded; the B
picture of unit 6 is not needed by any other and is left out. Had unit 2 been lost, units 2 and 3
would be `lost` (anything up to the next start may have been predicted from it), and frames 4 to 7
would be as good as ever.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import av
import numpy as np

from .decoding_codecs import SKIPPING_CODECS
from .decoding_limits import LIBRARY_ERRORS, VideoDecodeError
from .decoding_mpeg4 import PictureSplitter, PictureUnits
from .decoding_packets import CORRUPT, DISCARD, HIDDEN, KEY, NO_TIME, START, PacketTable
from .decoding_source import VideoFile


class Units(Protocol):
    """What a timeline reads its units from: a `PacketTable`, or single pictures cut from packets."""

    def read(self, start: int, stop: int) -> Iterator[av.Packet]: ...


@dataclass
class Timeline:
    """What the decoder can be fed, in decoding order, and the number of the frame that each unit
    gives.

    times: presentation time of each unit: int64 `(units,)` numbers: its frame number, -1 where it
    shows none (cut away by an edit list, or hidden): int64 `(units,)` starts: the units from which
    decoding can begin: no frame at or after theirs needs anything before them is_whole: it covers
    the whole video lost: the units that damage covers; `failed` are those among them at or after
    which the decoder gave up
    """

    units: Units
    times: np.ndarray
    numbers: np.ndarray
    starts: list[int]
    can_skip: bool
    is_whole: bool
    lost: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)

    def __post_init__(self):
        shown = np.flatnonzero(self.numbers >= 0)
        self._first = int(self.numbers[shown].min()) if len(shown) else 0
        self._unit_of = np.full(self.stop - self._first, -1)
        self._unit_of[self.numbers[shown] - self._first] = shown

    @property
    def stop(self) -> int:
        """One more than the highest frame number."""
        return int(self.numbers.max()) + 1

    def unit_of(self, number: int) -> int | None:
        """The unit that gives frame `number`; None where there is none."""
        at = number - self._first
        if not 0 <= at < len(self._unit_of) or self._unit_of[at] < 0:
            return None
        return int(self._unit_of[at])

    def best_start(self, unit: int) -> int:
        """The last unit at which a decode that wants the frame of `unit` can begin."""
        at = bisect_right(self.starts, unit) - 1
        while at > 0 and self.numbers[self.starts[at]] > self.numbers[unit]:
            at -= 1
        return self.starts[at]

    def stretches(self, wanted: Iterable[int]) -> list[tuple[int, int]]:
        """The runs of units `(first, last)` to decode for the frames `wanted`, in order and as few
        as possible.
        """
        runs: list[tuple[int, int]] = []
        for number in sorted(wanted):
            unit = self.unit_of(number)
            if unit is None or unit in self.lost:
                continue
            start = self.best_start(unit)
            if not runs or start > runs[-1][1] + 1:
                runs.append((start, unit))
            else:
                runs[-1] = (min(runs[-1][0], start), max(runs[-1][1], unit))
        return runs

    def begins_video(self, wanted: Iterable[int]) -> bool:
        """Whether the decode for the frames `wanted` begins with the first frame of the video."""
        runs = self.stretches(wanted)
        return bool(runs) and self.numbers[runs[0][0]] == 0

    def numbers_from(self, first: int, stop: int) -> list[int]:
        """The frame numbers of the units from `first` to `stop - 1`."""
        numbers = self.numbers[first:stop]
        return numbers[numbers >= 0].tolist()

    def lose_from(self, unit: int) -> range:
        """Note damage at `unit`: whatever is decoded after it may be predicted from it, up to the
        next start.
        """
        at = bisect_left(self.starts, unit + 1)
        stop = self.starts[at] if at < len(self.starts) else len(self.numbers)
        self.lost.update(range(unit, stop))
        return range(unit, stop)

    def fail_from(self, unit: int) -> None:
        """Note that the decoder gave up at `unit`; a decode of the whole video may know better."""
        self.failed.update(self.lose_from(unit))

    def lost_of(self, wanted: Iterable[int]) -> list[int]:
        """Those of the frames `wanted` that damage covers."""
        return [number for number in wanted if self.unit_of(number) in self.lost]

    def refuse_lost(self, wanted: Iterable[int], video: VideoFile) -> None:
        """Raise `VideoDecodeError` where a frame of `wanted` is lost for good."""
        for number in sorted(self.lost_of(wanted)):
            if self.unit_of(number) not in self.failed:
                lost = self.numbers_from(min(self.lost), max(self.lost) + 1)
                message = f"is damaged: of the frames {min(lost)} to {max(lost)}, {len(self.lost)} are lost"
                raise VideoDecodeError(
                    video.name, "damaged", f"{message}; frame {number} was asked for"
                )


def decode_units(
    decoder: av.VideoCodecContext, timeline: Timeline, units: range, wanted: Collection[int]
) -> Iterator[av.VideoFrame]:
    """Decode a run of units, skipping unwanted non-reference pictures, then drain the decoder and
    reset it.

    Raises:
        DamagedUnit: a unit fails; the pictures before it still come out first.
    """
    failure, failed = None, -1
    packets = timeline.units.read(units.start, units.stop)
    for k in units:
        try:
            packet = next(packets)
            if timeline.can_skip:
                decoder.skip_frame = "DEFAULT" if timeline.numbers[k] in wanted else "NONREF"
            yield from decoder.decode(packet)
        except VideoDecodeError:
            raise
        except (*LIBRARY_ERRORS, StopIteration) as error:
            failure, failed = error, k
            break
    try:
        for frame in decoder.decode(None):
            if failure is None or frame.pts != timeline.times[failed]:
                yield frame
        decoder.flush_buffers()
    except VideoDecodeError:
        raise
    except LIBRARY_ERRORS as error:  # a decoder that cannot even be opened
        if failure is None:
            failure, failed = error, units.stop - 1
    if failure is not None:
        raise DamagedUnit(failed) from failure


class DamagedUnit(Exception):
    """A unit that the decoder refuses."""

    def __init__(self, unit: int):
        super().__init__(f"unit {unit} cannot be decoded")
        self.unit = unit


def timeline_of_packets(
    table: PacketTable, codec: str, *, base: int = 0, is_whole: bool
) -> Timeline | None:
    """The timeline of a run of packets that begins with a start and tells it by its times; None
    where it does not.

    Args:
        base: how many frames of the video come before this run.
        is_whole: the run is the whole video, so nothing may be shown before its first picture.
    """
    flags = np.frombuffer(table.flags, dtype=np.uint8)
    times = np.frombuffer(table.pts, dtype=np.int64)
    numbers = numbers_by_time(times, (flags & (DISCARD | HIDDEN)) > 0)
    if numbers is None or not flags[0] & KEY or (is_whole and times.min() < times[0]):
        return None
    starts = np.flatnonzero(flags & START)
    if not len(starts) or starts[0] > 0:
        starts = np.insert(starts, 0, 0)
    if not starts_split_time(times, starts):
        return None
    numbers[numbers >= 0] += base
    timeline = Timeline(table, times, numbers, starts.tolist(), codec in SKIPPING_CODECS, is_whole)
    # Where a file breaks off, the last packet is short; what it still shows is taken.
    for unit in np.flatnonzero(flags[:-1] & CORRUPT):
        timeline.lose_from(int(unit))
    return timeline


def numbers_by_time(times: np.ndarray, is_without_frame: np.ndarray) -> np.ndarray | None:
    """Frame numbers by rank of presentation time, -1 `is_without_frame`; None for missing or
    doubled times. All are `(units,)`: times and numbers int64, `is_without_frame` bool.
    """
    shown = np.flatnonzero(~is_without_frame)
    if not len(shown) or times.min() == NO_TIME:
        return None
    order = shown[np.argsort(times[shown], kind="stable")]
    if len(order) > 1 and not np.all(np.diff(times[order]) > 0):
        return None
    numbers = np.full(len(times), -1)
    numbers[order] = np.arange(len(order))
    return numbers


def starts_split_time(times: np.ndarray, starts: np.ndarray) -> bool:
    """Whether all that comes before a start in the file also comes before it in time.

    `times` are those of all units, int64 `(units,)`; `starts` are numbers of units, int64 `(n,)`,
    ascending.
    """
    latest_before = np.maximum.accumulate(times)[starts[1:] - 1]
    return bool(np.all(latest_before < times[starts[1:]]))


def timeline_of_pictures(
    table: PacketTable, splitter: PictureSplitter, is_timed: bool
) -> Timeline | None:
    """MPEG-4 part 2: pictures and their order read from the bitstream, since AVI has no
    presentation times.
    """
    pictures = splitter.finish()
    if pictures is None:
        return None
    flags = np.frombuffer(table.flags, dtype=np.uint8)
    if np.any(flags[:-1] & CORRUPT):
        return None
    is_cut = (flags & DISCARD) > 0
    numbers = pictures.numbers
    if is_timed or np.any(is_cut):
        # Times are at hand, and packets may be cut by an edit list: both accounts must agree,
        # picture by picture.
        times = np.frombuffer(table.pts, dtype=np.int64)
        by_time = numbers_by_time(times, is_cut)
        is_one_to_one = len(pictures) == len(table) and numbers.min() >= 0
        if by_time is None or not is_one_to_one or not flags[0] & KEY or times.min() < times[0]:
            return None
        in_order = by_time[np.argsort(numbers)]
        if not np.array_equal(in_order[in_order >= 0], np.arange(by_time.max() + 1)):
            return None
        numbers = by_time
    is_start = (pictures.kinds == ord("I")) & (numbers >= 0)
    is_start[0] = True
    units = PictureUnits(table, pictures)
    times = np.arange(len(pictures))
    return Timeline(
        units, times, numbers, np.flatnonzero(is_start).tolist(), can_skip=True, is_whole=True
    )
