"""Tar shards in an exact order: which clip each process and each worker reads when, planned before
reading.

The clips of an epoch lie on a line, shard after shard in shuffled order. The line is cut into one
interval for each worker of each process, in proportion to the batches it has to make, whatever the
sizes of the shards: every clip goes to exactly one worker, and all processes take equally many
steps. Within its interval a worker shuffles through a buffer, also on paper: so a resumed run knows
which shards it can leave closed and which clips it can drop unread.

A clip's place is counted in three ways. Ten clips in shards A (4 clips), B (3) and C (3), shuffled
to the order C, A, B, for one process with two workers and batches of two, which makes five batches,
three of them by worker 0:

    shard and clip  C0 C1 C2 A0 A1 A2 | A3 B0 B1 B2    where the clip lies on disk (`cut_line`)
    line            0  1  2  3  4  5  | 6  7  8  9     `StreamLayout.bounds` is [0, 6, 10]
    stream          0  1  2  3  4  5  | 0  1  2  3     the line again, counted from where the worker's part begins

Worker 0 reads its six clips in this order, and gives them out in the order of a shuffle buffer,
here 1 3 2 5 0 4:

    index of ClipKey  0  1  2  3  4  5
    `order`           1  3  2  5  0  4    the place in the stream of the clip that comes then
    clip              C1 A0 C2 A2 C0 A1   so its batches are (C1, A0), (C2, A2) and (C0, A1)
    `due`             4  0  2  1  5  3    the other way round: the clip at place 0 of the stream comes at index 4

A run that resumes at index 4 needs C0 and A1, at places 0 and 4 of the stream, and keeps the batch
before (C2 and A2), which may have to fill up the last one. So it reads from place 0 on, and drops
C1 and A0, which were due earlier.
"""

import logging
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, repeat
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from datasets import IterableDataset
from torch.utils.data import Sampler

from .media_files import is_video
from .row_source import MAX_STAND_INS, ClipKey, deal_by_shares, fingerprint_of


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamLayout:
    """How clips are dealt to streams, one for each worker of each process.

    Stream `rank * num_workers + worker` makes every `num_workers`-th batch of its process, as a
    `DataLoader` asks its workers in turn.

    Args:
        num_clips: of all shards together.
        batch_size: clips in a batch of one process.
        num_processes: of the run.
        num_workers: of each process' `DataLoader`, at least 1.

    Raises:
        ValueError: there are fewer clips than processes.
    """

    num_clips: int
    batch_size: int
    num_processes: int = 1
    num_workers: int = 1

    def __post_init__(self):
        if self.num_clips < self.num_processes:
            raise ValueError(
                f"{self.num_clips} clips are too few for {self.num_processes} processes"
            )

    @property
    def steps(self) -> int:
        """Batches that every process makes in an epoch."""
        clips = -(-self.num_clips // self.num_processes)
        return -(-clips // self.batch_size)

    @property
    def num_keys(self) -> int:
        """Places in all batches of an epoch: the clips, and repeats that fill the last batches."""
        return self.steps * self.batch_size * self.num_processes

    @cached_property
    def bounds(self) -> np.ndarray:
        """Where on the line of clips each stream begins, and the last one ends: `(streams + 1,)`."""
        batches = [
            len(range(worker, self.steps, self.num_workers)) for worker in range(self.num_workers)
        ]
        places = np.cumsum([0] + batches * self.num_processes) * self.batch_size
        return places * self.num_clips // self.num_keys

    def keys(self, epoch: int) -> Iterator[ClipKey]:
        """All keys of an epoch in the order of the batches: a batch for each process in turn."""
        for step in range(self.steps):
            turn, worker = divmod(step, self.num_workers)
            for rank in range(self.num_processes):
                for place in range(self.batch_size):
                    yield ClipKey(
                        epoch, turn * self.batch_size + place, rank * self.num_workers + worker
                    )


class StreamSampler(Sampler[ClipKey]):
    """The keys of `StreamLayout` as a sampler that accelerate deals to the processes batch by
    batch.
    """

    def __init__(self, layout: StreamLayout):
        self.layout, self.epoch = layout, 0

    def set_epoch(self, epoch: int) -> None:
        """Lay out that epoch from the next iteration on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.layout.num_keys

    def __iter__(self) -> Iterator[ClipKey]:
        return self.layout.keys(self.epoch)


class ShardSource:
    """Clips of tar shards by `ClipKey`, each stream read forward only.

    `videos` has one `datasets` shard for each of `sizes`. `shuffle_buffer` clips are shuffled at a
    time, and the shards with them; 0 keeps the order of the files, for evaluation, and leaves
    places without a clip empty where training repeats the clips of the batch before.

    `shares`, float `(num_clips,)` in the order of the shards and 1 in all, says how often each clip
    comes in an epoch, as in `row_source.deal_by_shares`. How often that is, is drawn on paper, too:
    a clip that comes three times has three places beside each other on the line of clips, one that
    does not come has none, and the shuffle buffer takes them apart.

    Raises:
        ValueError: the shards, their sizes and the layout do not fit each other.
    """

    def __init__(
        self,
        videos: IterableDataset,
        sizes: Sequence[int],
        layout: StreamLayout,
        *,
        shuffle_buffer: int = 0,
        seed: int = 0,
        shares: np.ndarray | None = None,
    ):
        if videos.num_shards != len(sizes) or sum(sizes) != layout.num_clips:
            raise ValueError(
                f"{videos.num_shards} shards with {layout.num_clips} clips do not fit the sizes {sizes}"
            )
        self.videos, self.sizes, self.layout = videos, np.asarray(sizes), layout
        self.shuffle_buffer, self.seed, self.shares = shuffle_buffer, seed, shares
        self._readers: dict[int, _StreamReader] = {}
        self._epoch = -1
        self._times: list[np.ndarray] = []

    def __len__(self) -> int:
        return self.layout.num_clips

    @property
    def num_keys(self) -> int:
        """Places in an epoch, those without a clip included."""
        return self.layout.num_keys

    @property
    def fingerprint(self) -> str | None:
        """What tells these shares from others, for a run that resumes; None without any."""
        return None if self.shares is None else fingerprint_of(self.shares)

    def make_sampler(self, seed: int) -> StreamSampler:
        """The sampler whose keys this source understands; the order follows from the source's own
        seed.
        """
        return StreamSampler(self.layout)

    def candidates(self, key: ClipKey) -> Iterator[Mapping[str, Any]]:
        """The record of that key, then the next ones of its stream, which may stand in for it."""
        reader = self._reader(key)
        if not self.shuffle_buffer:
            if key.index < len(reader):
                reader.forget_before(key.index)
                yield reader.record(key.index)
            return
        reader.forget_before(self._repeat(key.index, len(reader)))
        for index in range(key.index, key.index + min(len(self), MAX_STAND_INS)):
            yield reader.record(self._repeat(index, len(reader)))

    def _repeat(self, index: int, length: int) -> int:
        """Places past the end of a stream take the clips of the batch before."""
        past = max(0, index - length + 1)
        index -= -(-past // self.layout.batch_size) * self.layout.batch_size
        return index if index >= 0 else index % length

    def _reader(self, key: ClipKey) -> "_StreamReader":
        if key.epoch != self._epoch:
            self._readers, self._epoch = {}, key.epoch
            self._times = self._deal(key.epoch)
        if key.stream not in self._readers:
            self._readers[key.stream] = self._open(key)
        return self._readers[key.stream]

    def _deal(self, epoch: int) -> list[np.ndarray]:
        """How often each clip comes in an epoch: int64 `(clips,)` for each shard."""
        times = np.ones(self.layout.num_clips, np.int64)
        if self.shares is not None:
            # four numbers: unlike all other draws of this seed
            generator = np.random.default_rng([self.seed, epoch, 0, 1])
            places = deal_by_shares(self.shares, generator)
            times = np.bincount(places, minlength=self.layout.num_clips)
        return np.split(times, np.cumsum(self.sizes)[:-1])

    def _open(self, key: ClipKey) -> "_StreamReader":
        entropy = [self.seed, key.epoch]
        shards = np.arange(len(self.sizes))
        if self.shuffle_buffer:
            shards = np.random.default_rng(entropy).permutation(shards)
        begin, end = self.layout.bounds[key.stream : key.stream + 2]
        if begin == end:  # more places than clips: borrow the neighbour's
            begin, end = (begin - 1, begin) if begin else (0, 1)
        sizes = np.array([times.sum() for times in self._times])
        pieces = cut_line(sizes, shards, int(begin), int(end))
        order = np.arange(end - begin)
        if self.shuffle_buffer:
            order = buffered_order(
                len(order), self.shuffle_buffer, np.random.default_rng([*entropy, key.stream])
            )
        back = self.layout.batch_size
        return _StreamReader(self._read_shard, pieces, order, first=key.index - back, back=back)

    def _read_shard(self, shard: int) -> Iterator[Mapping[str, Any]]:
        # `iter`, since a plain loop in a DataLoader worker would split the shard between workers
        # once more.
        videos = self.videos.shard(num_shards=len(self.sizes), index=shard, contiguous=True)
        for times, batch in zip(self._times[shard], videos.iter(batch_size=1)):
            yield from repeat({name: values[0] for name, values in batch.items()}, times)


class _StreamReader:
    """The clips of one stream, read in the order of its shards and given out in another one.

    Args:
        read_shard: from the number of a shard to its records, from the first one on.
        pieces: what of each shard the stream has, as `cut_line` returns it.
        order: for each index of a key, the place in the stream of the clip that comes then.
        first: index from which on clips will be asked for; those before are dropped as they are
            read.
        back: how many indices before the latest one may still be asked for.
    """

    def __init__(
        self,
        read_shard: Any,
        pieces: list[tuple[int, int, int]],
        order: np.ndarray,
        *,
        first: int,
        back: int,
    ):
        self.order = order
        self.back = back
        self.due = np.argsort(order)  # place in the stream -> index at which its clip comes
        self.oldest = max(0, min(first, len(order) - back))  # index before which nothing is kept
        # by place in the stream: read, and not given out for good
        self.held: dict[int, Mapping[str, Any]] = {}
        # place in the stream before which nothing need be read
        self.start = int(order[self.oldest :].min())
        self.records = self._read(read_shard, pieces)

    def __len__(self) -> int:
        return len(self.order)

    def forget_before(self, index: int) -> None:
        """Say that indices more than `back` before this one will not be asked for again."""
        self.oldest = max(self.oldest, index - self.back)
        for place in [place for place in self.held if self.due[place] < self.oldest]:
            del self.held[place]

    def record(self, index: int) -> Mapping[str, Any]:
        """The clip that comes at that index; the stream is read up to where it lies."""
        wanted = int(self.order[index])
        while wanted not in self.held:
            place, record = next(self.records)
            if self.due[place] >= self.oldest:
                self.held[place] = record
        return self.held[wanted]

    def _read(
        self, read_shard: Any, pieces: list[tuple[int, int, int]]
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The records from place `start` of the stream on, each with its place; shards before it
        stay closed.
        """
        place = 0
        for shard, begin, end in pieces:
            skipped = min(max(self.start - place, 0), end - begin)
            place += skipped
            if skipped < end - begin:
                for record in islice(read_shard(shard), begin + skipped, end):
                    yield place, record
                    place += 1


def cut_line(
    sizes: np.ndarray, shards: np.ndarray, begin: int, end: int
) -> list[tuple[int, int, int]]:
    """What of each shard lies in `[begin, end)` where the shards follow each other in the order
    `shards`.

    Returns `(shard, first clip, clip after the last)`; sizes 4 and 3 in the order 1, 0 and [2, 5):
    `(1, 2, 3)`, `(0, 0, 2)`.
    """
    pieces, start = [], 0
    for shard in map(int, shards):
        size = int(sizes[shard])
        first, stop = max(begin - start, 0), min(end - start, size)
        if first < stop:
            pieces.append((shard, first, stop))
        start += size
    return pieces


def buffered_order(length: int, buffer_size: int, generator: np.random.Generator) -> np.ndarray:
    """The order in which a shuffle buffer gives out `length` clips that arrive one after another:
    int64 `(length,)`.
    """
    buffer = list(range(min(length, buffer_size)))
    slots = generator.integers(len(buffer), size=max(length - buffer_size, 0))
    order = []
    for arriving, slot in enumerate(slots, start=len(buffer)):
        order.append(buffer[slot])
        buffer[slot] = arriving
    return np.concatenate([np.array(order, dtype=np.int64), generator.permutation(buffer)])


def count_clips(shards: Sequence[str]) -> list[int]:
    """Clips in each of some local tar shards, from the names of the files in them.

    Raises ValueError for a shard that cannot be read, or is not on disk: then only a manifest can
    tell.
    """
    return [_count_clips(shard) for shard in shards]


def _count_clips(shard: str) -> int:
    if "://" in shard:
        raise ValueError(
            f"how many clips {shard} holds is not known: put the shards.json of `timesformer prepare` beside it"
        )
    try:
        with tarfile.open(shard) as tar:
            names = [PurePosixPath(member.name).name for member in tar if member.isfile()]
    except (OSError, EOFError, tarfile.TarError) as error:
        raise ValueError(f"cannot read shard {shard}: {error}") from error
    # each video is a sample, even where several share a key
    return sum(is_video(name) for name in names)


def warn_of_few_shards(num_shards: int, layout: StreamLayout) -> None:
    """Warn, and suggest a fix, where several workers must read one shard."""
    streams = layout.num_processes * layout.num_workers
    if num_shards < streams:
        logger.warning(
            "%d shards are fewer than %d processes x %d workers = %d readers, so some shards are read more than once: "
            "pack more shards (`timesformer prepare`), or lower --dataloader_num_workers to %d",
            num_shards,
            layout.num_processes,
            layout.num_workers,
            streams,
            max(num_shards // layout.num_processes, 1),
        )
