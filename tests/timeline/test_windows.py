"""Windows over a long video, and segments from scores, held to plain loops and to examples worked
out by hand.
"""

import itertools
from itertools import islice, takewhile

import numpy as np
import pytest

from hf_timesformer.timeline.segments import (
    LEAST_SCORE,
    Segment,
    SegmentRules,
    find_segments,
    likeliest_classes,
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


@pytest.mark.parametrize("cost", [0.0, 0.4, 1.0, 5.0])
def test_the_likeliest_sequence_is_the_best_of_all(cost: float):
    scores = np.random.default_rng(3).dirichlet([0.5] * 3, size=6)

    def worth(classes: tuple[int, ...]) -> float:
        gains = np.log(np.maximum(scores[range(6), classes], LEAST_SCORE))
        return gains.sum() - cost * np.count_nonzero(np.diff(classes))

    best = max(itertools.product(range(3), repeat=6), key=worth)
    assert likeliest_classes(scores, cost).tolist() == list(best)
    if cost == 0:
        assert list(best) == scores.argmax(axis=1).tolist()


def test_an_unsure_window_does_not_interrupt_and_borders_stay_where_they_are():
    a = np.array([0.2, 0.9, 0.9, 0.4, 0.9, 0.05, 0.05, 0.45, 0.05])
    scores = np.stack([a, 1 - a], axis=1)
    found = find_segments(scores, np.arange(10.0), ["a", "b"], SegmentRules())
    assert spans(found) == [(0, 1, "b"), (1, 5, "a"), (5, 9, "b")]
    strict = SegmentRules(threshold=0.96)  # neither class is ever so sure
    assert find_segments(scores, np.arange(10.0), ["a", "b"], strict) == []


def test_one_class_at_a_time_or_several():
    scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.1, 0.9], [0.1, 0.2]])
    one = SegmentRules(smoothing=1)
    assert spans(find_segments(scores, np.arange(6.0), ["a", "b"], one)) == [
        (0, 2, "a"),
        (2, 4, "b"),
    ]
    several = SegmentRules(smoothing=1, exclusive=False)
    assert spans(find_segments(scores, np.arange(6.0), ["a", "b"], several)) == [
        (0, 3, "a"),
        (2, 4, "b"),
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
