"""What is known of a long video once all of it has been looked at."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .segments import Segment
from .windows import Windows


@dataclass
class Timeline:
    """Scores over time of one video, and the segments that follow from them.

    `scores` float32 `(windows, labels)`, `features` `(windows, hidden)` or None, `seconds` the
    length of the video; `frame_rate` frames a second, None where unknown; `gaps` stretches that
    could not be decoded, `(from, to)` in seconds, `to` None for the end; `settings` is how it was
    made, for the files; `is_regression`, whether the scores are numbers and not probabilities.
    """

    video: str
    seconds: float
    windows: Windows
    labels: list[str]
    scores: np.ndarray
    is_regression: bool = False
    segments: list[Segment] = field(default_factory=list)
    features: np.ndarray | None = None
    frame_rate: float | None = None
    gaps: list[tuple[float, float | None]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def cells(self) -> np.ndarray:
        """The borders of the windows' cells, `(windows + 1,)`, in seconds."""
        return self.windows.cells(self.seconds)

    def window_rows(self) -> list[tuple[float, float]]:
        """Start and end of each window in seconds, the end no later than the video's."""
        return [
            (self.windows.start(number), min(self.windows.end(number), self.seconds))
            for number in range(len(self.scores))
        ]
