"""Where the windows of a long video lie and which moments each of them looks at: arithmetic alone.

Windows of 2 seconds every 1 second, 4 frames each (x), over a video of 4.5 seconds:

    seconds   0         1         2         3         4    :
    window 0  | x    x    x    x  |                        :
    window 1            | x    x    x    x  |              :
    window 2                      | x    x    x    x  |    :
    window 3                                | x    x    x  : x    the last one runs past the end; there the
                                                           :      last frame of the video stands for the rest
    cells     |    0         |    1    |    2    |    3    |

A window looks at the middle of each of its `num_frames` equal parts. Neighbouring windows whose
moments coincide, as here, share frames. A window speaks for its cell, the time around its middle
that no other window is nearer to.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil, isfinite

import numpy as np


# Moments closer than this are one: they differ only by rounding.
SAME = 1e-6


@dataclass(frozen=True)
class Windows:
    """Windows of `window` seconds every `stride` seconds with `num_frames` frames each, counted
    from 0.

    Raises ValueError for lengths that are not positive.
    """

    window: float
    stride: float
    num_frames: int

    def __post_init__(self):
        for name in ("window", "stride"):
            value = getattr(self, name)
            if not isfinite(value) or value <= 0:
                raise ValueError(f"{name} must be a positive number of seconds, got {value}")
        if self.num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {self.num_frames}")

    def start(self, number: int) -> float:
        """Where the window of that `number` begins, in seconds."""
        return number * self.stride

    def end(self, number: int) -> float:
        """Where the window of that `number` ends, in seconds."""
        return number * self.stride + self.window

    def moments(self, number: int) -> np.ndarray:
        """The times that the window of that `number` looks at: float64 `(num_frames,)`, in seconds."""
        return (
            self.start(number) + (np.arange(self.num_frames) + 0.5) * self.window / self.num_frames
        )

    def all_moments(self, first: int = 0) -> Iterator[float]:
        """The times that any window from `first` on looks at, ascending, each once, without end."""
        waiting: list[float] = []
        number, latest = first, -1.0
        while True:
            # No window from `number` on looks at anything earlier than its own first moment.
            for moment in self.moments(number):
                heappush(waiting, float(moment))
            number += 1
            horizon = self.moments(number)[0]
            while waiting and waiting[0] < horizon:
                moment = heappop(waiting)
                if moment > latest + SAME:
                    yield moment
                    latest = moment

    def count(self, seconds: float) -> int:
        """How many windows a video of so many `seconds` has: the last one is the first that reaches
        its end."""
        return 1 + max(0, ceil((seconds - self.window) / self.stride - SAME))

    def cells(self, seconds: float) -> np.ndarray:
        """The borders of the windows' cells in a video of so many `seconds`: float64
        `(windows + 1,)`, from 0 to its end.
        """
        middles = self.window / 2 + np.arange(self.count(seconds)) * self.stride
        borders = (middles[1:] + middles[:-1]) / 2
        return np.clip(np.concatenate(([0.0], borders, [seconds])), 0, seconds)
