"""Top-1, top-5 and mean class accuracy as an `evaluate.Metric` that needs no network.

metric = VideoClassificationMetric()                     # or evaluate.load("<path of this file>")
metric.compute(predictions=logits, references=labels)    # logits (videos, classes)
"""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = "Top-1, top-5 and mean class accuracy of video classification, from logits."
_INPUTS = """
Args:
    predictions: logits or probabilities, one row of length `classes` for each video (views already averaged).
    references: the class index of each video.
Returns:
    `top1_accuracy`, `top5_accuracy` (top-`classes` where there are fewer than 5) and `mean_class_accuracy` (the mean,
    over the classes that occur in `references`, of the share of their videos whose top-1 is right), from 0 to 1.
"""


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


class VideoClassificationMetric(evaluate.Metric):
    """`evaluate.Metric` of `classification_metrics`; holds what it was given in memory unless told otherwise."""

    def __init__(self, config_name: str | None = None, keep_in_memory: bool | None = None, **kwargs):
        if keep_in_memory is None:  # `evaluate` can share between processes only through files
            keep_in_memory = kwargs.get("num_process", 1) == 1
        super().__init__(config_name=config_name, keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return classification_metrics(predictions, references)
