"""The classifier's loss."""

import torch
from transformers import PreTrainedConfig

from .upstream import ForSequenceClassificationLoss


def classification_loss(
    labels: torch.Tensor,
    logits: torch.Tensor,
    config: PreTrainedConfig,
    num_items_in_batch: torch.Tensor | int | None = None,
    **kwargs,
) -> torch.Tensor:
    """The mean loss of `logits (b, labels)` as transformers has it for `config.problem_type`, a
    scalar.

    `labels`: class numbers `(b,)`; `(b, labels)` of 0 and 1 for several labels at once; numbers
    `(b,)` or `(b, labels)` for a regression. With `num_items_in_batch`, the targets of all batches
    that are accumulated to one update (`Trainer` counts them), it is this batch's share of their
    mean: shares add up. transformers honours that only for a single label (5.24), and with four
    batches an update was four times as large as it should be.
    """
    mean = ForSequenceClassificationLoss(labels, logits, config)  # also settles config.problem_type
    if num_items_in_batch is None:
        return mean
    # some labels may be -100, which do not count
    if config.problem_type == "single_label_classification":
        return ForSequenceClassificationLoss(
            labels, logits, config, num_items_in_batch=num_items_in_batch
        )
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(mean.device)
    return mean * labels.numel() / num_items_in_batch
