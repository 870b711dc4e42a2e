"""What training minimises, and the metrics of an evaluation, for each kind of problem in
`data.targets`.
"""

import math

import numpy as np
import torch
from torch.nn import functional
from transformers.trainer_utils import EvalPrediction

from ..data.targets import MULTI_LABEL, NO_CLIP, REGRESSION, SINGLE_LABEL, is_counted, is_unreadable
from ..evaluation.accuracy import classification_metrics, multi_label_metrics, regression_metrics


CLIP_LOSS = "clip_loss"  # of `ClipMetrics`, until it takes the place of Trainer's own
NON_FINITE = "videos_non_finite"

# The metric that says which model is the best, where none is named.
BEST_METRICS = {
    SINGLE_LABEL: "top1_accuracy",
    MULTI_LABEL: "mean_average_precision",
    REGRESSION: "mean_absolute_error",
}


def clip_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    problem_type: str = SINGLE_LABEL,
    num_items: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of a batch as a scalar, in float32: a sum over the clips that count, divided by
    their number.

    Cross-entropy to one class, binary cross-entropy (the mean over the classes) to several, the
    squared error to a number. Places that `targets.is_counted` leaves out add nothing.

    Args:
        logits: `(B, classes)`; `(B, 1)` for a number.
        labels: as `targets` has them: `(B,)` class numbers or numbers to predict, `(B, classes)`
            several labels; of one class also soft, float `(B, classes)`.
        problem_type: one of `targets`' three.
        num_items: the clips that count in the whole step, of which this batch may be a part; by
            default those here.
        label_smoothing: as in `torch.nn.functional.cross_entropy`; of one class only.
        class_weights: `(classes,)`, multiply each class' part of the sum.
    """
    counted = torch.as_tensor(is_counted(labels))
    logits = logits.float()
    if problem_type == MULTI_LABEL:
        targets = torch.where(counted[:, None], labels, 0.0)
        each = functional.binary_cross_entropy_with_logits(
            logits, targets, weight=class_weights, reduction="none"
        )
        total = (each.mean(dim=1) * counted).sum()
    elif problem_type == REGRESSION:
        error = logits[:, 0] - torch.where(counted, labels, 0.0)
        total = (error.square() * counted).sum()
    else:
        # UNREADABLE is below NO_CLIP, and just as little a class.
        labels = labels if labels.ndim == 2 else labels.clamp(min=NO_CLIP)
        total = functional.cross_entropy(
            logits,
            labels,
            weight=class_weights,
            label_smoothing=label_smoothing,
            ignore_index=NO_CLIP,
            reduction="sum",
        )
    return total / (counted.sum().clamp(min=1) if num_items is None else num_items)


def balanced_weights(counts: np.ndarray) -> torch.Tensor:
    """A weight for each class by its number of clips `(classes,)`: all classes then weigh the same
    in the loss. As float32 `(classes,)`.

    The mean weight over the clips is 1. Counts 30 and 10 give the weights 2/3 and 2. A class
    without clips gets 1.
    """
    counts = np.asarray(counts, np.float64)
    present = counts > 0
    weights = np.ones(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return torch.from_numpy(weights).float()


class ClipMetrics:
    """`compute_metrics` of a trainer: the metrics of a kind of problem (`problem_type`, as the
    config has it), one clip a video, and how many there were.

    One class: top-1, top-5 and mean class accuracy. Several: mean average precision, F1. A number:
    its mean absolute error. Clips that could not be read are counted apart. Where the network's
    answer is not finite, `videos_non_finite` says how often, the loss is infinite, and the clip
    counts as wrong. Raises ValueError where no clip could be read.
    """

    def __init__(self, problem_type: str = SINGLE_LABEL):
        self.problem_type = problem_type

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        logits = (
            prediction.predictions[0]
            if isinstance(prediction.predictions, tuple)
            else prediction.predictions
        )
        labels = prediction.label_ids
        counted = is_counted(labels)
        if not counted.any():
            raise ValueError(
                "no validation clip can be read, so nothing can be evaluated; see the warnings above"
            )
        counts = {
            "videos": int(counted.sum()),
            "videos_unreadable": int(is_unreadable(labels).sum()),
        }
        logits, labels = np.array(logits[counted], np.float64), labels[counted]
        is_finite = np.isfinite(logits).all(axis=1)
        loss = math.inf
        if is_finite.all():
            tensors = torch.from_numpy(logits), torch.from_numpy(labels)
            loss = clip_loss(*tensors, problem_type=self.problem_type).item()
        else:
            counts[NON_FINITE] = int((~is_finite).sum())
            logits[~is_finite] = self._wrong_answers(labels[~is_finite], logits.shape[1])
        return self._metrics(logits, labels) | counts | {CLIP_LOSS: loss}

    def _metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Of logits `(videos, classes)`, of a regression `(videos, 1)`, and the labels `(videos,)`,
        of several classes `(videos, classes)`."""
        if self.problem_type == MULTI_LABEL:
            return multi_label_metrics(logits, labels)
        if self.problem_type == REGRESSION:
            return regression_metrics(logits[:, 0], labels)
        return classification_metrics(logits, labels)

    def _wrong_answers(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Answers `(clips, classes)` to `labels` than which none is worse; of a number the error is
        infinite.
        """
        if self.problem_type == REGRESSION:
            return np.full((len(labels), 1), np.inf)
        if self.problem_type == MULTI_LABEL:
            return 1e9 * (1.0 - 2.0 * labels)
        wrong = np.zeros((len(labels), num_classes))
        wrong[np.arange(len(labels)), labels] = -1.0
        return wrong
