"""From scores over time to segments: cuts where the scores change, smoothing, hysteresis, merging.
Plain arithmetic on arrays.

Where one class is on at a time, the time is cut first into stretches within which the scores stay
much the same, whatever they are. A cut is worth the uncertainty that it removes: a stretch of `n`
windows with mean scores `m` is worth `n` times the entropy of `m`, and every cut has a price, 0.5
by default. Eight windows of two classes, with a cut and without:

    score of a    0.9  0.9  0.9  0.9 | 0.4  0.4  0.4  0.4      4 * 0.33 + 0.5 + 4 * 0.67 = 4.5
    score of b    0.1  0.1  0.1  0.1 | 0.6  0.6  0.6  0.6      without:  8 * 0.65        = 5.2

So a clip that the network hardly knows is told from its neighbours by its scores being others, also
where no class is sure, and a window that shows parts of two clips goes to the one it is more like. A
lone window costs two cuts: it must differ much to interrupt what goes on around it.

    score of a    0.9  0.9  0.9  0.4  0.9  0.9  0.9     one stretch
    score of a    0.9  0.9  0.9 |0.1| 0.9  0.9  0.9     three

A stretch is of the class with the greatest mean score; neighbours of one class are joined.

Where several classes may be on, each goes by itself. Scores of one class, thresholds 0.5 and 0.3:
the segment begins where the score reaches 0.5 and goes on until it falls below 0.3, so a score that
wavers around 0.5 makes one segment and not four:

    score      0.1   0.4   0.6   0.4   0.55   0.45   0.2   0.4
    segment                 |------------------------|
"""

from dataclasses import asdict, dataclass
from itertools import groupby
from math import isfinite
from typing import Any

import numpy as np


# Longer stretches are put together from several, which bounds the work for a window.
LONGEST = 256


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
        change_cost: where classes exclude each other, the price of a cut, in nats (see above);
            0 takes the best class of each window.
        smoothing: windows that a score is averaged over before that, an odd number; 1 leaves scores
            alone, which is the default where classes exclude each other, else 3.
        merge: segments of one class that are at most so many seconds apart become one.
        min_seconds: segments that are shorter, after merging, are left out.
        exclusive: one class at a time, on stretches between cuts. One whose mean score is below
            the low threshold is of no class; neighbours of one class count where their score
            reaches the threshold somewhere. Else each class goes by itself: it begins where its
            score reaches the threshold.

    Raises ValueError for rules that contradict themselves.
    """

    threshold: float = 0.5
    low_threshold: float = 0.3
    change_cost: float = 0.5
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


def even_stretches(scores: np.ndarray, change_cost: float) -> list[tuple[int, int]]:
    """Scores `(windows, labels)` cut into stretches within which they stay much the same, as
    `(first, last + 1)`: those with the least sum of lengths times the entropy of mean scores, plus
    `change_cost` for each cut.

    For each window in turn, the best way to cut all up to it follows from the best ways to cut what
    lies before its stretch (Jackson and others 2005). A beginning of that stretch that is worse than
    a cut here, even without its price, will be so for all later windows and is dropped (Killick and
    others 2012).
    """
    count = len(scores)
    sums = np.concatenate(
        (np.zeros((1, scores.shape[1])), np.cumsum(scores, axis=0, dtype=np.float64))
    )
    best = np.zeros(count + 1)  # of the windows up to this one
    best[0] = -change_cost  # the first stretch needs no cut
    begin_of = np.zeros(count + 1, dtype=np.int64)  # of the stretch that ends here
    begins = np.zeros(0, dtype=np.int64)  # where it may begin
    for end in range(1, count + 1):
        begins = np.append(begins[begins >= end - LONGEST], end - 1)
        lengths = end - begins
        means = (sums[end] - sums[begins]) / lengths[:, None]  # (begins, labels)
        costs = best[begins] + lengths * _entropy(means)
        chosen = costs.argmin()
        best[end], begin_of[end] = costs[chosen] + change_cost, begins[chosen]
        begins = begins[costs < best[end]]
    stretches = []
    while count:
        stretches.append((int(begin_of[count]), count))
        count = int(begin_of[count])
    return stretches[::-1]


def _entropy(means: np.ndarray) -> np.ndarray:
    """Of distributions `(n, labels)`, in nats: `(n,)`."""
    return -(means * np.log(np.maximum(means, 1e-12))).sum(axis=1)


def _one_at_a_time(scores: np.ndarray, rules: SegmentRules) -> np.ndarray:
    """Where each class is on when at most one is: bool `(windows, labels)`.

    Neighbouring stretches of one class, each of at least the low threshold, whose score reaches the
    threshold somewhere.
    """
    active = np.zeros(scores.shape, bool)
    stretches = even_stretches(scores, rules.change_cost)

    def class_of(stretch: tuple[int, int]) -> int | None:
        mean = scores[slice(*stretch)].mean(axis=0)  # (labels,)
        return int(mean.argmax()) if mean.max() >= rules.low_threshold else None

    for label, group in groupby(stretches, class_of):
        neighbours = [*group]
        begin, end = neighbours[0][0], neighbours[-1][1]
        if label is not None and scores[begin:end, label].max() >= rules.threshold:
            active[begin:end, label] = True
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
