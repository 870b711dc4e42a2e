"""The numbers of an evaluation, as plain numbers: of one class a video, of several, or of a number.

`metric` offers those of one class as an `evaluate.Metric`.
"""

import numpy as np


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1 and top-5 accuracy, as in the paper's tables, and mean class accuracy.

    Args:
        logits: `(videos, classes)`, or anything in their order. Among equal ones the lower class
            number comes first.
        labels: class numbers `(videos,)`.

    Returns:
        `top1_accuracy`, `top5_accuracy` and `mean_class_accuracy`, from 0 to 1.

    Raises:
        ValueError: no videos, a label without a column, or logits that are not finite.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"need logits (videos, classes) and one label a video, got {logits.shape} and {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels {labels.min()}..{labels.max()} do not fit logits of {logits.shape[1]} classes"
        )
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        raise ValueError(
            f"the logits of {bad} of {len(logits)} videos are NaN or infinite; try --dtype float32"
        )
    order = np.argsort(-logits, axis=1, kind="stable")
    hits = order[:, :5] == labels[:, None]  # (videos, min(5, classes))
    right = hits[:, 0]
    per_class = [right[labels == label].mean() for label in np.unique(labels)]
    return {
        "top1_accuracy": float(right.mean()),
        "top5_accuracy": float(hits.any(axis=1).mean()),
        "mean_class_accuracy": float(np.mean(per_class)),
    }


def multi_label_metrics(
    logits: np.ndarray, labels: np.ndarray, *, threshold: float = 0.5
) -> dict[str, float]:
    """Mean average precision and F1, where a video may have several labels.

    Args:
        logits: `(videos, classes)`.
        labels: 0 or 1, `(videos, classes)`.
        threshold: the probability, from 0 to 1, above which a class counts as named in F1.

    Returns:
        `mean_average_precision`, the mean over the classes that some video has, and `f1_micro` and
        `f1_macro` over the same classes, from 0 to 1.

    Raises:
        ValueError: no videos, other shapes, logits that are not finite, or a threshold that is no
            probability.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels) > 0.5
    if logits.ndim != 2 or labels.shape != logits.shape or not len(labels):
        raise ValueError(
            f"need logits and labels (videos, classes), got {logits.shape} and {labels.shape}"
        )
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        raise ValueError(
            f"the logits of {bad} of {len(logits)} videos are NaN or infinite; try --dtype float32"
        )
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}")
    chosen = logits > np.log(threshold / (1 - threshold))
    present = labels.any(axis=0)
    right = (chosen & labels).sum(axis=0)  # (classes,), and so are the two below
    wrong = (chosen & ~labels).sum(axis=0)
    missed = (~chosen & labels).sum(axis=0)
    f1 = 2 * right / np.maximum(2 * right + wrong + missed, 1)
    precisions = [
        average_precision(logits[:, label], labels[:, label]) for label in np.flatnonzero(present)
    ]
    return {
        "mean_average_precision": float(np.mean(precisions)) if precisions else 0.0,
        "f1_micro": float(2 * right.sum() / max(2 * right.sum() + wrong.sum() + missed.sum(), 1)),
        "f1_macro": float(f1[present].mean()) if precisions else 0.0,
    }


def average_precision(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """The sum over all thresholds of precision times gained recall, from `scores` and bools, both
    `(videos,)`.

    Scores .9 .8 .7 of which the first and the last are positive: 1/1 * 1/2 + 2/3 * 1/2. Videos with
    equal scores pass a threshold together, as in scikit-learn's `average_precision_score`.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(is_positive[order])
    is_threshold = np.append(np.diff(scores[order]) != 0, True)
    precision = (hits / np.arange(1, len(hits) + 1))[is_threshold]
    recall = (hits / hits[-1])[is_threshold]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def regression_metrics(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Mean absolute error, and the root of the mean squared one, in the unit of the targets.

    Args:
        predictions: `(videos,)`.
        targets: `(videos,)`.

    Raises:
        ValueError: there are no videos.
    """
    predictions, targets = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    if predictions.shape != targets.shape or predictions.ndim != 1 or not len(targets):
        raise ValueError(
            f"need one number and one target a video, got {predictions.shape} and {targets.shape}"
        )
    error = predictions - targets
    return {
        "mean_absolute_error": float(np.abs(error).mean()),
        "root_mean_squared_error": float(np.sqrt((error**2).mean())),
    }
