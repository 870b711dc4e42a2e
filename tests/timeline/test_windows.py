"""Windows over a long video, and segments from scores, held to plain loops and to examples worked
out by hand.
"""

import itertools
from itertools import islice, takewhile

import numpy as np
import pytest

from hf_timesformer.timeline import segments
from hf_timesformer.timeline.segments import (
    Segment,
    SegmentRules,
    even_stretches,
    find_segments,
    merged,
    smoothed,
)
from hf_timesformer.timeline.windows import Windows


@pytest.mark.parametrize(
    ("window", "stride", "num_frames"), [(2, 1, 4), (2, 0.5, 8), (2, 0.3, 3), (1, 2.5, 2)]
)
@pytest.mark.parametrize("first", [0, 3])
def test_all_moments_are_those_of_the_windows_in_order(
    window: float, stride: float, num_frames: int, first: int
):
    windows = Windows(window, stride, num_frames)
    found = list(takewhile(lambda moment: moment < 20, windows.all_moments(first)))
    every = sorted(
        moment for number in range(first, 80) for moment in windows.moments(number) if moment < 20
    )
    expected = [moment for k, moment in enumerate(every) if k == 0 or moment - every[k - 1] > 1e-6]
    np.testing.assert_allclose(found, expected)


def test_neighbours_share_moments():
    windows = Windows(2, 1, 8)
    assert len(list(islice(windows.all_moments(), 40))) == 40
    assert list(islice(windows.all_moments(), 40))[-1] < 10  # 4 a second, whatever the overlap


@pytest.mark.parametrize(
    ("seconds", "count", "cells"),
    [
        (4.5, 4, [0, 1.5, 2.5, 3.5, 4.5]),
        (4.0, 3, [0, 1.5, 2.5, 4]),
        (2.0, 1, [0, 2]),
        (0.3, 1, [0, 0.3]),
        (0.0, 1, [0, 0]),
    ],
)
def test_the_last_window_is_the_first_that_reaches_the_end(
    seconds: float, count: int, cells: list[float]
):
    windows = Windows(2, 1, 4)
    assert windows.count(seconds) == count
    np.testing.assert_allclose(windows.cells(seconds), cells)


@pytest.mark.parametrize(
    "bad", [{"window": 0}, {"stride": -1}, {"window": float("inf")}, {"num_frames": 0}]
)
def test_windows_that_are_none(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Windows(**{"window": 2.0, "stride": 1.0, "num_frames": 4} | bad)


CELLS = np.arange(9.0)
WAVERING = np.array([0.1, 0.4, 0.6, 0.4, 0.55, 0.45, 0.2, 0.4])[:, None]


def spans(segments: list[Segment]) -> list[tuple[float, float, str]]:
    return [(segment.start, segment.end, segment.label) for segment in segments]


def test_hysteresis():
    rules = SegmentRules(threshold=0.5, low_threshold=0.3, smoothing=1, exclusive=False)
    (segment,) = find_segments(WAVERING, CELLS, ["a"], rules)
    assert spans([segment]) == [(2, 6, "a")]
    assert segment.score == pytest.approx(np.mean([0.6, 0.4, 0.55, 0.45]))
    without = SegmentRules(threshold=0.5, low_threshold=0.5, smoothing=1, exclusive=False)
    assert spans(find_segments(WAVERING, CELLS, ["a"], without)) == [(2, 3, "a"), (4, 5, "a")]


@pytest.mark.parametrize("cost", [0.0, 0.2, 0.5, 5.0])
def test_cuts_are_the_best_of_all(cost: float):
    scores = np.random.default_rng(3).dirichlet([0.5] * 3, size=9)

    def worth(cuts: tuple[int, ...]) -> float:
        total = cost * len(cuts)
        for begin, end in itertools.pairwise([0, *cuts, 9]):
            mean = scores[begin:end].mean(axis=0)
            total -= (end - begin) * (mean * np.log(mean)).sum()
        return total

    every = (cuts for number in range(9) for cuts in itertools.combinations(range(1, 9), number))
    best = min(every, key=worth)
    found = even_stretches(scores, cost)
    assert found == list(itertools.pairwise([0, *best, 9]))
    assert len(found) == {0.0: 9, 5.0: 1}.get(cost, len(found))


def test_long_stretches_are_put_together(monkeypatch):
    a = np.repeat([0.9, 0.2], 50)
    scores = np.stack([a, 1 - a], axis=1)
    monkeypatch.setattr(segments, "LONGEST", 8)
    assert max(end - begin for begin, end in even_stretches(scores, 0.5)) == 8
    found = find_segments(scores, np.arange(101.0), ["a", "b"], SegmentRules())
    assert spans(found) == [(0, 50, "a"), (50, 100, "b")]


def of_two(*scores_of_a: float) -> list[tuple[float, float, str]]:
    """The segments of windows of one second, by the rules as they are."""
    a = np.array(scores_of_a)
    scores = np.stack([a, 1 - a], axis=1)
    return spans(find_segments(scores, np.arange(len(a) + 1.0), ["a", "b"], SegmentRules()))


def test_an_unsure_window_does_not_interrupt_and_borders_stay_where_they_are():
    assert of_two(0.9, 0.9, 0.9, 0.4, 0.9, 0.9, 0.9) == [(0, 7, "a")]
    assert of_two(0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9) == [(0, 3, "a"), (3, 4, "b"), (4, 7, "a")]
    # what shows two clips at once goes to the one that it is more like
    assert of_two(0.95, 0.95, 0.95, 0.7, 0.3, 0.05, 0.05) == [(0, 4, "a"), (4, 7, "b")]


def test_what_no_class_is_sure_of_ends_a_segment_where_the_scores_change():
    scores = np.array([[0.96, 0.02, 0.02]] * 4 + [[0.4, 0.35, 0.25]] * 3 + [[0.02, 0.96, 0.02]] * 4)
    labels = ["a", "b", "c"]
    strict = SegmentRules(low_threshold=0.45)
    found = find_segments(scores, np.arange(12.0), labels, strict)
    assert spans(found) == [(0, 4, "a"), (7, 11, "b")]
    # at least the low threshold: as its neighbour of the same class, and by itself of none
    assert spans(find_segments(scores, np.arange(12.0), labels, SegmentRules()))[0] == (0, 7, "a")
    alone = find_segments(scores[4:7], np.arange(4.0), labels, SegmentRules())
    assert alone == []


def test_one_class_at_a_time_or_several():
    scores = np.array([[0.9, 0.1]] * 2 + [[0.6, 0.4], [0.4, 0.6]] + [[0.1, 0.9]] * 2)
    one = SegmentRules(smoothing=1)
    assert spans(find_segments(scores, np.arange(7.0), ["a", "b"], one)) == [
        (0, 3, "a"),
        (3, 6, "b"),
    ]
    several = SegmentRules(smoothing=1, exclusive=False)
    assert spans(find_segments(scores, np.arange(7.0), ["a", "b"], several)) == [
        (0, 4, "a"),
        (3, 6, "b"),
    ]


def test_smoothing_is_the_mean_over_neighbours():
    rng = np.random.default_rng(0)
    scores = rng.random((9, 3))
    for width in (1, 3, 5, 99):
        half = width // 2
        expected = [scores[max(0, k - half) : k + half + 1].mean(axis=0) for k in range(9)]
        np.testing.assert_allclose(smoothed(scores, width), expected)


def test_a_lone_window_is_smoothed_away():
    scores = np.zeros((9, 1))
    scores[4] = 0.9
    assert not find_segments(scores, np.arange(10.0), ["a"], SegmentRules(exclusive=False))


def test_merging_and_short_segments():
    segments = [
        Segment(0, 2, "a", 0.8),
        Segment(3, 4, "a", 0.5),
        Segment(3, 3.5, "b", 0.9),
        Segment(9, 10, "a", 0.6),
    ]
    assert spans(merged(segments, 1.0)) == [(0, 4, "a"), (3, 3.5, "b"), (9, 10, "a")]
    assert merged(segments, 1.0)[0].score == pytest.approx((2 * 0.8 + 0.5) / 3)
    assert spans(merged(segments, 0.0)) == spans(segments)
    rules = SegmentRules(
        threshold=0.5, low_threshold=0.5, smoothing=1, min_seconds=2, exclusive=False
    )
    assert find_segments(WAVERING, CELLS, ["a"], rules) == []
    rules = SegmentRules(
        threshold=0.5, low_threshold=0.5, smoothing=1, min_seconds=2, merge=1, exclusive=False
    )
    assert spans(find_segments(WAVERING, CELLS, ["a"], rules)) == [(2, 5, "a")]


@pytest.mark.parametrize(
    "bad",
    [
        {"threshold": 0},
        {"low_threshold": 0.9},
        {"smoothing": 2},
        {"merge": -1},
        {"threshold": 1.5},
        {"change_cost": -1},
    ],
)
def test_rules_that_contradict_themselves(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SegmentRules(**bad)
