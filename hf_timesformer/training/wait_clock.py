"""How much of its time a run waits for data."""

import time


class WaitClock:
    """Seconds inside its `with` blocks, as a percentage of all seconds: since it was last asked,
    and in all.
    """

    def __init__(self):
        self.waited = self.waited_before = 0.0
        self.started = self.asked = time.perf_counter()

    def __enter__(self) -> None:
        self.entered = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.waited += time.perf_counter() - self.entered

    def percent_since_last(self) -> float:
        now = time.perf_counter()
        percent = 100 * (self.waited - self.waited_before) / max(now - self.asked, 1e-9)
        self.waited_before, self.asked = self.waited, now
        return round(percent, 1)

    def percent_in_all(self) -> float:
        return round(100 * self.waited / max(time.perf_counter() - self.started, 1e-9), 1)
