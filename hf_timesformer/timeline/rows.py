"""Rows of numbers that come one after another over hours, kept in one block of memory."""

import numpy as np


FIRST_ROWS = 256


class Rows:
    """float32 rows of one width, appended one by one; `len` tells how many there are.

    One block, and not a list of small arrays: those would come to lie between the frames and
    batches that are taken and given back all the time, and the allocator could not join the room
    around them again. Over 10 minutes of video that cost 35 MiB, over an hour more.
    """

    def __init__(self) -> None:
        self._block: np.ndarray | None = None  # (room, width), the first `_count` rows in use
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, row: np.ndarray) -> None:
        """Copy a row `(width,)` to the end."""
        if self._block is None:
            self._block = np.empty((FIRST_ROWS, len(row)), np.float32)
        elif self._count == len(self._block):
            self._block = np.concatenate((self._block, np.empty_like(self._block)))
        self._block[self._count] = row
        self._count += 1

    def first(self, count: int) -> np.ndarray:
        """The first `count` rows, or all where there are fewer, `(count, width)`: a copy. Raises
        ValueError where there is none.
        """
        if self._block is None:
            raise ValueError("there is no row")
        return self._block[: min(count, self._count)].copy()
