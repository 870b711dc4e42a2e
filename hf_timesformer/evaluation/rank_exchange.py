"""Results of all ranks brought together while they are made, so that a slow rank is never mistaken
for a dead one.
"""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object


ROUND_SECONDS = 60.0  # from one exchange of results between the ranks to the next
# how long a rank may be silent, beyond a round, before the others give up
RANK_TIMEOUT = timedelta(minutes=30)


def make_accelerator(*, cpu: bool = False) -> Accelerator:
    """An Accelerator whose ranks wait `RANK_TIMEOUT` for each other in a round of `ResultExchange`."""
    return Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=RANK_TIMEOUT)])


class ResultExchange:
    """Rows of all ranks, brought together every `ROUND_SECONDS` while they are made.

    Finished ranks keep joining exchanges, so a slow rank is never mistaken for a dead one: ranks
    may be unequally fast for hours, and still one that hangs or dies is noticed in the next round.
    """

    def __init__(self):
        self._gathered: list[Any] = []
        self._mine: list[Any] = []
        self._due = time.monotonic() + ROUND_SECONDS

    def add(self, rows: Sequence[Any]) -> None:
        """Take rows of this rank; raises RuntimeError where a round is due and another rank is
        lost.
        """
        self._mine += rows
        if time.monotonic() >= self._due:
            self._exchange(done=False)

    def finish(self) -> list[Any]:
        """All rows of all ranks, once every rank is here; raises RuntimeError where one is lost."""
        while not self._exchange(done=True):
            pass
        return self._gathered

    def _exchange(self, *, done: bool) -> bool:
        """One round, the same on all ranks; whether all of them are done."""
        try:
            shares = gather_object([(self._mine, done)])
        except RuntimeError as error:
            raise RuntimeError(
                f"another process of this evaluation has died, or was silent for {RANK_TIMEOUT}: see its own messages"
            ) from error
        self._gathered += [row for rows, _ in shares for row in rows]
        self._mine, self._due = [], time.monotonic() + ROUND_SECONDS
        return all(done for _, done in shares)
