"""Where clips come from, and when: the keys of an epoch, and rows of a map-style data set as their source."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler


MAX_STAND_INS = 64


class ClipKey(NamedTuple):
    """One place in one epoch. `index` is a row of a map-style data set, or a place in stream number `stream`."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nothing here needs
    stream: int = 0


class ClipSource(Protocol):
    """Where the records of a data set come from: rows on disk, or tar shards read in order."""

    @property
    def num_keys(self) -> int:
        """Places in an epoch."""

    def __len__(self) -> int: ...

    def make_sampler(self, seed: int) -> Sampler[ClipKey]: ...

    def candidates(self, key: ClipKey) -> Iterator[Mapping[str, Any]]:
        """The record of that key, then those that may stand in for it; `id` in each is unique in the data set."""


class RecordSource:
    """Rows of a map-style data set; the next rows stand in for one that cannot be read."""

    def __init__(self, records: Dataset):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_keys(self) -> int:
        """Places in an epoch."""
        return len(self.records)

    def make_sampler(self, seed: int) -> "EpochSampler":
        """Every row once an epoch in random order."""
        return EpochSampler(len(self), seed=seed)

    def candidates(self, key: ClipKey) -> Iterator[Mapping[str, Any]]:
        for offset in range(min(len(self), MAX_STAND_INS)):
            yield self.records[(key.index + offset) % len(self)]


class EpochSampler(Sampler[ClipKey]):
    """Every row once an epoch, in an order that follows from the seed and the epoch."""

    def __init__(self, num_clips: int, *, seed: int):
        self.num_clips, self.seed, self.epoch = num_clips, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Lay out that epoch from the next iteration on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_clips

    def __iter__(self) -> Iterator[ClipKey]:
        for index in np.random.default_rng([self.seed, self.epoch]).permutation(self.num_clips):
            yield ClipKey(self.epoch, int(index))
