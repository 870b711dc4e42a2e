"""Top-1, top-5 and mean class accuracy as plain numbers; `metric` offers them as an `evaluate.Metric`."""

import numpy as np


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1, top-5 and mean class accuracy from logits `(videos, classes)` and class indices `(videos,)`.

    Raises ValueError for no videos, a label without a column, or logits that are not finite. Among equal logits the
    lower class index comes first.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(f"need logits (videos, classes) and one label a video, got {logits.shape} and {labels.shape}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels {labels.min()}..{labels.max()} do not fit logits of {logits.shape[1]} classes")
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        raise ValueError(f"the logits of {bad} of {len(logits)} videos are NaN or infinite; try --dtype float32")
    order = np.argsort(-logits, axis=1, kind="stable")
    hits = order[:, :5] == labels[:, None]  # (videos, min(5, classes))
    right = hits[:, 0]
    per_class = [right[labels == label].mean() for label in np.unique(labels)]
    return {
        "top1_accuracy": float(right.mean()),
        "top5_accuracy": float(hits.any(axis=1).mean()),
        "mean_class_accuracy": float(np.mean(per_class)),
    }
