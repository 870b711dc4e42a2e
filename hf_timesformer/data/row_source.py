"""Where clips come from, and when: the keys of an epoch, and rows of a map-style data set as their
source.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler


MAX_STAND_INS = 64


class ClipKey(NamedTuple):
    """One place in one epoch.

    Attributes:
        epoch: from 0.
        index: a row of a map-style data set, or a place in a stream.
        stream: number of the stream; of a row that comes several times in an epoch, how often it
            has come before.
    """

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nothing here needs
    stream: int = 0


class ClipSource(Protocol):
    """Where the records of a data set come from: rows on disk, or tar shards read in order."""

    @property
    def num_keys(self) -> int:
        """Places in an epoch."""

    def __len__(self) -> int: ...

    def make_sampler(self, seed: int) -> Sampler[ClipKey]:
        """The keys of an epoch, in an order that follows from the `seed`."""
        ...

    def candidates(self, key: ClipKey) -> Iterator[Mapping[str, Any]]:
        """The record of that key, then those that may stand in for it; `id` in each is unique in
        the data set.
        """


class RecordSource:
    """Rows of a map-style data set; the next rows stand in for one that cannot be read.

    Args:
        records: the data set.
        shares: how often each row is drawn in training, as a share of all draws: float `(rows,)`, 1
            in all (`balance.draw_shares`). None: each once an epoch.
    """

    def __init__(self, records: Dataset, *, shares: np.ndarray | None = None):
        self.records, self.shares = records, shares

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_keys(self) -> int:
        """Places in an epoch."""
        return len(self.records)

    @property
    def fingerprint(self) -> str | None:
        """What tells these shares from others, for a run that resumes; None without any."""
        return None if self.shares is None else fingerprint_of(self.shares)

    def make_sampler(self, seed: int) -> "EpochSampler | ShareSampler":
        """Every row once an epoch in random order, or as often as its share says."""
        if self.shares is not None:
            return ShareSampler(self.shares, seed=seed)
        return EpochSampler(len(self), seed=seed)

    def candidates(self, key: ClipKey) -> Iterator[Mapping[str, Any]]:
        """The row of that key, then the rows after it, and past the end those from the beginning."""
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


def deal_by_shares(shares: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many places as there are rows, dealt to the rows by their shares.

    With `n` rows, one of share `s` comes `n * s` times in an epoch, rounded down or up by chance;
    so over many epochs its part is exactly its share, and no epoch is far from it. Rows lie one
    after another on a line of length `n`, in random order but those of one share together (with
    balanced classes the rows of one class), each as long as it should come often, and a comb with
    teeth at distance 1 is laid on it:

        row      1 |   2  |          0           |         lengths 0.4, 0.6 and 2.0: n = 3 rows
        line     0 0.4   1.0                    3.0
        comb          0.7       1.7       2.7              offset 0.7: rows 2, 0 and 0

    Args:
        shares: float `(rows,)`, 1 in all.

    Returns:
        The row of each place, those of one row beside each other: int64 `(rows,)`.
    """
    on_line = generator.permutation(np.flatnonzero(shares > 0))
    on_line = on_line[np.argsort(shares[on_line], kind="stable")]
    ends = np.cumsum(shares[on_line]) * len(shares)
    comb = generator.random() + np.arange(len(shares))
    # without the last end: rounding may leave it short
    return on_line[np.searchsorted(ends[:-1], comb, side="right")]


def fingerprint_of(shares: np.ndarray) -> str:
    """What tells these shares, `(rows,)`, from others."""
    return hashlib.sha256(shares.tobytes()).hexdigest()[:16]


class ShareSampler(EpochSampler):
    """As many places an epoch as there are rows, dealt to the rows by their shares.

    `deal_by_shares` says how often each comes, by `shares` `(rows,)`. Everything follows from the
    seed and the epoch, so that a run resumes at any step.
    """

    def __init__(self, shares: np.ndarray, *, seed: int):
        super().__init__(len(shares), seed=seed)
        self.shares = shares

    def __iter__(self) -> Iterator[ClipKey]:
        generator = np.random.default_rng([self.seed, self.epoch])
        rows = deal_by_shares(self.shares, generator)
        times_drawn: Counter[int] = Counter()
        for row in generator.permutation(rows).tolist():
            yield ClipKey(self.epoch, row, times_drawn[row])
            times_drawn[row] += 1
