"""Top-1, top-5 and mean class accuracy as an `evaluate.Metric` that needs no network.

metric = VideoClassificationMetric()                     # or evaluate.load("<path of this file>")
metric.compute(predictions=logits, references=labels)    # logits (videos, classes)
"""

import datasets
import evaluate
import numpy as np

from hf_timesformer.evaluation.accuracy import classification_metrics


_DESCRIPTION = "Top-1, top-5 and mean class accuracy of video classification, from logits."
_INPUTS = """
Args:
    predictions: logits or probabilities, one row of length `classes` for each video (views already averaged).
    references: the class index of each video.
Returns:
    `top1_accuracy`, `top5_accuracy` (top-`classes` where there are fewer than 5) and `mean_class_accuracy` (the mean,
    over the classes that occur in `references`, of the share of their videos whose top-1 is right), from 0 to 1.
"""


class VideoClassificationMetric(evaluate.Metric):
    """`classification_metrics` as an `evaluate.Metric` that needs no network.

    `metric.compute(predictions=..., references=...)` takes logits `(videos, classes)` and class
    numbers `(videos,)`.

    Args:
        config_name: as in `evaluate`; there is but one configuration.
        keep_in_memory: hold what was given in memory, in place of files. The default, unless
            several processes share the metric, which they can only through files.
    """

    def __init__(
        self, config_name: str | None = None, keep_in_memory: bool | None = None, **kwargs
    ):
        if keep_in_memory is None:  # `evaluate` can share between processes only through files
            keep_in_memory = kwargs.get("num_process", 1) == 1
        super().__init__(config_name=config_name, keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("float32")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """Metrics of logits `(videos, classes)` and class numbers `(videos,)`."""
        return classification_metrics(predictions, references)
