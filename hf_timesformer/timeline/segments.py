"""From scores over time to segments: the likeliest sequence of classes, smoothing, hysteresis,
merging. Plain arithmetic on arrays.

Where one class is on at a time, the likeliest sequence comes first: each change of class has a
price, so that a single window does not interrupt what goes on around it unless it is sure, and yet
a border lies where the scores put it, which an average over windows would blur. With a price of 1,
two changes take a window that is more than e**2 = 7.4 times as sure of the other class:

    score of a    0.9   0.4   0.9         0.9   0.1   0.9
    score of b    0.1   0.6   0.1         0.1   0.9   0.1
    class          a     a     a           a     b     a        0.6 / 0.4 < 7.4 < 0.9 / 0.1

Where several may be on, each goes by itself. Scores of one class, thresholds 0.5 and 0.3: the
segment begins where the score reaches 0.5 and goes on until it falls below 0.3, so a score that
wavers around 0.5 makes one segment and not four:

    score      0.1   0.4   0.6   0.4   0.55   0.45   0.2   0.4
    segment                 |------------------------|
"""

from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isfinite
from typing import Any

import numpy as np


# What a class scores at least, so that one window that is all too sure does not outweigh all others.
LEAST_SCORE = 0.01


@dataclass
class Segment:
    """A stretch of the video, from `start` to `end` in seconds, with one class, `label`, and the
    mean of its scores there, `score`.
    """

    start: float
    end: float
    label: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values, times to the millisecond."""
        row = asdict(self)
        return row | {
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "score": round(self.score, 6),
        }


@dataclass(frozen=True)
class SegmentRules:
    """How scores become segments.

    Args:
        threshold: a segment counts where its score reaches this ...
        low_threshold: ... and ends where it is below this.
        change_cost: where classes exclude each other, what a change of class costs against the
            logarithms of the scores (see above); 0 takes the best class of each window.
        smoothing: windows that a score is averaged over before that, an odd number; 1 leaves scores
            alone, which is the default where classes exclude each other, else 3.
        merge: segments of one class that are at most so many seconds apart become one.
        min_seconds: segments that are shorter, after merging, are left out.
        exclusive: one class at a time, by the likeliest sequence. A stretch of one class counts
            where its score reaches the threshold somewhere; windows at its ends that are below the
            low threshold do not belong to it. Else each class goes by itself: it begins where its
            score reaches the threshold.

    Raises ValueError for rules that contradict themselves.
    """

    threshold: float = 0.5
    low_threshold: float = 0.3
    change_cost: float = 1.0
    smoothing: int | None = None
    merge: float = 0.0
    min_seconds: float = 0.0
    exclusive: bool = True

    def __post_init__(self):
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {self.threshold}")
        if not 0 <= self.low_threshold <= self.threshold:
            raise ValueError(
                f"low_threshold must lie between 0 and the threshold {self.threshold}, got {self.low_threshold}"
            )
        if self.smoothing is None:
            object.__setattr__(self, "smoothing", 1 if self.exclusive else 3)
        if not (isfinite(self.change_cost) and self.change_cost >= 0):
            raise ValueError(f"change_cost must be 0 or a positive number, got {self.change_cost}")
        assert self.smoothing is not None  # the lines above have seen to it
        if self.smoothing < 1 or self.smoothing % 2 == 0:
            raise ValueError(f"smoothing must be an odd number of windows, got {self.smoothing}")
        if self.merge < 0 or self.min_seconds < 0:
            raise ValueError(
                f"merge and min_seconds must not be negative, got {self.merge} and {self.min_seconds}"
            )


def find_segments(
    scores: np.ndarray, cells: np.ndarray, labels: list[str], rules: SegmentRules
) -> list[Segment]:
    """The segments of a video in order of time, from scores of any source.

    Args:
        scores: probabilities `(windows, labels)`.
        cells: the borders of the windows' cells `(windows + 1,)`, in seconds.
        labels: the names of the classes.
        rules: how scores become segments.

    Raises:
        ValueError: borders or labels do not fit the scores.
    """
    if len(cells) != len(scores) + 1 or scores.shape[1] != len(labels):
        raise ValueError(
            f"scores {scores.shape} do not fit {len(cells)} borders and {len(labels)} labels"
        )
    assert rules.smoothing is not None  # it is set where the rules are made
    smooth = smoothed(scores, rules.smoothing)
    active = _one_at_a_time(smooth, rules) if rules.exclusive else _each_alone(smooth, rules)
    segments = []
    for index, label in enumerate(labels):
        for begin, end in _runs(active[:, index]):
            mean = float(np.average(scores[begin:end, index], weights=_lengths(cells, begin, end)))
            segments.append(Segment(float(cells[begin]), float(cells[end]), label, mean))
    segments = merged(segments, rules.merge)
    kept = [segment for segment in segments if segment.end - segment.start >= rules.min_seconds]
    return sorted(kept, key=lambda segment: (segment.start, segment.end, segment.label))


def smoothed(scores: np.ndarray, width: int) -> np.ndarray:
    """The centred mean over `width` windows, `(windows, labels)`; at the ends over those that there
    are.
    """
    half = width // 2
    sums = np.concatenate(
        (np.zeros((1, scores.shape[1])), np.cumsum(scores, axis=0, dtype=np.float64))
    )
    numbers = np.arange(len(scores))
    begin, end = np.maximum(numbers - half, 0), np.minimum(numbers + half + 1, len(scores))
    return (sums[end] - sums[begin]) / (end - begin)[:, None]


def likeliest_classes(scores: np.ndarray, change_cost: float) -> np.ndarray:
    """The class of each window, `(windows, labels)` -> int64 `(windows,)`: the sequence with the
    greatest sum of logarithms of its scores, less `change_cost` for each change (Viterbi 1967).
    """
    gains = np.log(np.maximum(scores, LEAST_SCORE))
    best = gains[0].copy()  # of the sequences up to this window, by the class that they end with
    before = np.zeros(scores.shape, dtype=np.int64)  # the class of the window before, by the class
    for number in range(1, len(scores)):
        changed = best.max() - change_cost
        stays = best >= changed
        before[number] = np.where(stays, np.arange(len(best)), best.argmax())
        best = np.where(stays, best, changed) + gains[number]
    classes = np.empty(len(scores), dtype=np.int64)
    classes[-1] = best.argmax()
    for number in range(len(scores) - 1, 0, -1):
        classes[number - 1] = before[number, classes[number]]
    return classes


def _one_at_a_time(scores: np.ndarray, rules: SegmentRules) -> np.ndarray:
    """Where each class is on when at most one is: bool `(windows, labels)`.

    The stretches of the likeliest sequence whose score reaches the threshold somewhere, without the
    windows at their ends that lie below the low one.
    """
    classes = likeliest_classes(scores, rules.change_cost)
    active = np.zeros(scores.shape, bool)
    borders = np.flatnonzero(np.diff(classes)) + 1
    for begin, end in pairwise([0, *borders.tolist(), len(classes)]):
        own = scores[begin:end, classes[begin]]
        if own.max() >= rules.threshold:
            above = np.flatnonzero(own >= rules.low_threshold)
            active[begin + above[0] : begin + above[-1] + 1, classes[begin]] = True
    return active


def _each_alone(scores: np.ndarray, rules: SegmentRules) -> np.ndarray:
    """Where each class is on, whatever the others are: bool `(windows, labels)`."""
    active = np.zeros(scores.shape, bool)
    state = np.zeros(scores.shape[1], bool)
    for number, row in enumerate(scores):
        state = np.where(state, row >= rules.low_threshold, row >= rules.threshold)
        active[number] = state
    return active


def _runs(active: np.ndarray) -> list[tuple[int, int]]:
    """The runs of True of `(windows,)` as `(first, last + 1)`."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], active.astype(np.int8), [0]))))
    return [(int(begin), int(end)) for begin, end in zip(edges[::2], edges[1::2])]


def _lengths(cells: np.ndarray, begin: int, end: int) -> np.ndarray:
    """How long the cells from `begin` to before `end` are, or ones where none lasts any time:
    borders `(windows + 1,) -> (end - begin,)`.
    """
    lengths = np.diff(cells[begin : end + 1])
    # a video of one picture lasts no time
    return lengths if lengths.sum() > 0 else np.ones(end - begin)


def merged(segments: list[Segment], gap: float) -> list[Segment]:
    """Segments of one class that are at most `gap` seconds apart as one, its score their mean by
    length.
    """
    joined: list[Segment] = []
    latest: dict[str, Segment] = {}
    for segment in sorted(segments, key=lambda one: one.start):
        before = latest.get(segment.label)
        if before is not None and gap > 0 and segment.start - before.end <= gap:
            lengths = before.end - before.start, segment.end - segment.start
            before.score = float(np.average((before.score, segment.score), weights=lengths))
            before.end = segment.end
        else:
            latest[segment.label] = Segment(
                segment.start, segment.end, segment.label, segment.score
            )
            joined.append(latest[segment.label])
    return joined
