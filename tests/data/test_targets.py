"""Targets of every kind: from a record to an item, from items to a batch, and which places of a
batch count.
"""

import numpy as np
import pytest
import torch

from hf_timesformer.data.clips import ClipCollator
from hf_timesformer.data.targets import (
    MULTI_LABEL,
    NO_CLIP,
    REGRESSION,
    SINGLE_LABEL,
    UNREADABLE,
    is_counted,
    is_unreadable,
    problem_type_of,
    target_of,
)


@pytest.mark.parametrize(
    ("record", "expected", "problem_type"),
    [
        ({"label": 1}, 7, SINGLE_LABEL),
        ({"labels": [2, 1]}, [5, 7], MULTI_LABEL),
        ({"labels": []}, [], MULTI_LABEL),
        ({"target": -100}, -100.0, REGRESSION),
    ],
)
def test_target_of_a_record(record, expected, problem_type: str):
    assert problem_type_of(record) == problem_type
    target = target_of(record, [9, 7, 5])
    assert target == expected
    assert type(target) is type(expected)


@pytest.mark.parametrize("columns", [["video"], ["label", "target"], ["labels", "label"]])
def test_records_pose_one_kind_of_problem(columns):
    with pytest.raises(
        ValueError, match=r"need one of the columns label, labels, target; found: (none|label)"
    ):
        problem_type_of(columns)


def batch_of(labels: list, problem_type: str | None, **options) -> dict:
    entropy = {"entropy": [0, 0, 7, 0]} if options else {}
    items = [
        {
            "pixel_values": torch.full((1, 3, 2, 2), float(row)),
            "labels": label,
            "video_id": "",
            "faults": [],
        }
        | entropy
        for row, label in enumerate(labels)
    ]
    return ClipCollator(3, problem_type=problem_type, **options)(items)


@pytest.mark.parametrize(
    ("labels", "problem_type", "expected"),
    [
        ([2, 0, UNREADABLE, NO_CLIP], None, torch.tensor([2, 0, UNREADABLE, NO_CLIP])),
        ([[0, 2], [], UNREADABLE, NO_CLIP], MULTI_LABEL,
         torch.tensor([[1.0, 0, 1], [0, 0, 0], [np.inf] * 3, [np.nan] * 3])),
        ([-100.0, 2.5, UNREADABLE, NO_CLIP], REGRESSION, torch.tensor([-100, 2.5, np.inf, np.nan])),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_numpy", [False, True])
def test_batches_and_what_counts_in_them(labels, problem_type, expected, as_numpy: bool):
    batch = batch_of(labels, problem_type)["labels"]
    torch.testing.assert_close(batch, expected, rtol=0, atol=0, equal_nan=True)
    batch = batch.numpy() if as_numpy else batch
    assert is_counted(batch).tolist() == [True, True, False, False]
    assert is_unreadable(batch).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("labels", "problem_type"),
    [([2, 0], None), ([[0, 2], [1]], MULTI_LABEL), ([4.0, -1.0], REGRESSION)],
)
def test_mixup_of_every_kind(labels, problem_type):
    plain, mixed = batch_of(labels, problem_type), batch_of(labels, problem_type, mixup_alpha=0.4)
    weight = 1 - float(mixed["pixel_values"][0].mean())  # the clips are all 0 and all 1
    target = plain["labels"]
    if problem_type is None:
        target = torch.nn.functional.one_hot(target, 3)
    torch.testing.assert_close(mixed["labels"], weight * target + (1 - weight) * target.flip(0))
    assert 0 < weight < 1
