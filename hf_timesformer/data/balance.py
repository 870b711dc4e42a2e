"""How often each clip is drawn in training: by its weight, and so that every class comes equally
often.
"""

import numpy as np
from datasets import Dataset


def draw_shares(records: Dataset, *, balanced: bool) -> np.ndarray | None:
    """The share of an epoch's draws that each record gets, or None where all get the same.

    A record of weight 2 is drawn twice as often as one of weight 1 (of the same class, where
    `balanced`).

    Args:
        records: with the columns of `records.video_features`; those without a `weight` weigh 1.
        balanced: every class gets the same share. A record of several labels gets the mean of what
            they would give it; records without a label are a class of their own.

    Returns:
        float64 `(records,)`, 1 in all.

    Raises:
        ValueError: all weights are zero, or `balanced` for numbers that are to be predicted.
    """
    weights = np.ones(len(records))
    if "weight" in records.column_names:
        weights = np.array([1.0 if weight is None else weight for weight in records["weight"]])
        if not weights.sum() > 0:
            raise ValueError("the weights of all clips are 0, so none would be drawn")
    if balanced:
        weights = _balance(weights, _labels_of(records))
    elif (weights == weights[0]).all():
        return None
    return weights / weights.sum()


def _labels_of(records: Dataset) -> list[list[int]]:
    if "target" in records.column_names:
        raise ValueError(
            "--balanced_sampling is for classes, but these clips have numbers (`target`)"
        )
    if "label" in records.column_names:
        return [[label] for label in records["label"]]
    return [labels or [-1] for labels in records["labels"]]


def _balance(weights: np.ndarray, labels: list[list[int]]) -> np.ndarray:
    """Weights `(records,) -> (records,)` with which every label has the same sum; of a record with
    several labels the mean of its weights. `labels` has a list for each record.
    """
    totals: dict[int, float] = {}
    for weight, present in zip(weights, labels):
        for label in present:
            totals[label] = totals.get(label, 0.0) + weight
    shares = [
        np.mean([1 / totals[label] if totals[label] else 0.0 for label in present])
        for present in labels
    ]
    return weights * np.array(shares)
