"""What the network should answer for a record, and batches of such answers: a class, several
classes, or a number.

Which of the three it is follows from the columns of the records:

| column of a record | `problem_type`               | an item's `labels`    | a batch's `labels`              |
|--------------------|------------------------------|-----------------------|---------------------------------|
| `label`            | "single_label_classification"| class number          | int64 `(B,)`                    |
| `labels`           | "multi_label_classification" | list of class numbers | float32 `(B, num_classes)`, 0/1 |
| `target`           | "regression"                 | float                 | float32 `(B,)`                  |

A batch for evaluation may have places that no loss and no metric counts: a place without a clip,
which only fills up a batch, and a clip that cannot be read. `is_counted` and `is_unreadable` tell
them apart in batches of every kind.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch


SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
LABEL_COLUMNS = {SINGLE_LABEL: "label", MULTI_LABEL: "labels", REGRESSION: "target"}

# Labels of the places that do not count. In batches of float labels NaN and infinity stand for
# them.
NO_CLIP = -100
UNREADABLE = -101
_AS_FLOAT = {NO_CLIP: float("nan"), UNREADABLE: float("inf")}


def problem_type_of(columns: Iterable[str]) -> str:
    """The kind of problem that records with these columns pose.

    Raises:
        ValueError: they have none, or several, of `label`, `labels` and `target`.
    """
    kinds = {column: problem_type for problem_type, column in LABEL_COLUMNS.items()}
    found = [name for name in kinds if name in columns]
    if len(found) != 1:
        raise ValueError(
            f"records need one of the columns {', '.join(kinds)}; found: {', '.join(found) or 'none'}"
        )
    return kinds[found[0]]


def target_of(record: Mapping[str, Any], label_ids: Sequence[int]) -> int | list[int] | float:
    """What the network should answer for a record: the model's number of its class, of its classes,
    or its number.

    Args:
        record: one row of a data set.
        label_ids: the model's number for each class of the data set (`labels.match_labels`).
    """
    if "labels" in record:
        return [label_ids[label] for label in record["labels"]]
    if "target" in record:
        return float(record["target"])
    return label_ids[record["label"]]


def collate_targets(
    targets: Sequence[int | list[int] | float], num_classes: int, problem_type: str
) -> torch.Tensor:
    """The `labels` of a batch from those of its items: `(B,)`, or `(B, classes)` of several labels;
    the table at the top of this file has more.

    `NO_CLIP` and `UNREADABLE`, which are ints, stay themselves among class numbers, and become NaN
    and infinity in every element of a row of floats.
    """
    if problem_type == SINGLE_LABEL:
        return torch.tensor(targets)
    shape = (len(targets),) if problem_type == REGRESSION else (len(targets), num_classes)
    batch = torch.zeros(shape)
    for row, target in enumerate(targets):
        if isinstance(target, int):
            batch[row] = _AS_FLOAT[target]
        elif isinstance(target, float):
            batch[row] = target
        else:
            batch[row, target] = 1.0
    return batch


def is_counted(labels: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
    """Which places of a batch hold a clip that could be read: bool `(B,)`, a tensor or an array as
    `labels` is, whose shape `(B,)`, `(B, classes)` depends on the task.
    """
    if not _is_float(labels):
        return labels >= 0
    finite = torch.isfinite(labels) if isinstance(labels, torch.Tensor) else np.isfinite(labels)
    return finite if labels.ndim == 1 else finite.all(-1)


def is_unreadable(labels: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
    """Which places of a batch hold a clip that could not be read: bool `(B,)`, a tensor or an array
    as `labels` is, whose shape `(B,)`, `(B, classes)` depends on the task.
    """
    if not _is_float(labels):
        return labels == UNREADABLE
    infinite = torch.isinf(labels) if isinstance(labels, torch.Tensor) else np.isinf(labels)
    return infinite if labels.ndim == 1 else infinite.any(-1)


def _is_float(labels: torch.Tensor | np.ndarray) -> bool:
    """Whether the labels of a batch, `(b,)` or `(b, num_classes)`, are floats."""
    return (
        labels.is_floating_point() if isinstance(labels, torch.Tensor) else labels.dtype.kind == "f"
    )
