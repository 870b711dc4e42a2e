"""A linear classifier fitted to the frozen network, for fine-tuning to begin with, and to end with.

A random classifier sends gradients of no meaning through a network that was good already; a fitted one does not (Kumar
et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution").
"""

import copy
import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm

from ..data.clips import NO_CLIP, EvaluationClips


if TYPE_CHECKING:
    from .trainer import VideoTrainer

logger = logging.getLogger(__name__)

# How much of the covariance is replaced by that of independent features: of a few clips it is known poorly.
SHRINKAGE = 0.03
EVALUATION_CROPS = 3  # of the paper's protocol


def can_fit_classifier(trainer: "VideoTrainer") -> bool:
    """Whether `fit_new_classifier` can do its work; where it cannot, a warning says why."""
    classifier = trainer.model.classifier
    obstacle = None
    if not isinstance(classifier, nn.Linear):
        obstacle = f"it is a {type(classifier).__name__}, and only a linear one can be"
    elif trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        obstacle = "DeepSpeed and FSDP spread the network over the processes"
    if obstacle is not None:
        passes = trainer.args.probe_passes
        logger.warning("the classifier is not fitted to the frozen network (probe_passes=%d): %s", passes, obstacle)
    return obstacle is None


def fit_new_classifier(trainer: "VideoTrainer") -> None:
    """Fit the model's classifier to `probe_passes` augmented passes over the clips and to their evaluation views.

    All processes must call it; each ends with the same classifier.
    """
    classifier = trainer.model.classifier
    features, targets = collect_features(trainer, trainer.args.probe_passes)
    weight, bias = fit_classifier(features, targets, label_smoothing=trainer.args.label_smoothing_factor)
    right = (features.double() @ weight.T + bias).argmax(-1) == targets.argmax(-1)
    logger.info(
        "classifier fitted to %d views as the network sees them: %.1f %% of them are right",
        len(features),
        100 * right.double().mean(),
    )
    with torch.no_grad():
        classifier.weight.copy_(weight)
        if classifier.bias is not None:
            classifier.bias.copy_(bias)


@torch.no_grad()
def collect_features(trainer: "VideoTrainer", passes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the classifier gets `(N, d)` and should give `(N, classes)`, of all processes, on CPU.

    Where the trainer has a processor, they include the three crops of every clip that an evaluation would cut: objects
    look smaller there than in random crops of enlarged frames (Touvron et al. 2019, "Fixing the train-test resolution
    discrepancy"), and a classifier fitted to the latter alone is off for the former.
    """
    model, accelerator, found = trainer.model.eval(), trainer.accelerator, []
    for batch in _batches(trainer, passes):
        trainer.train_faults.add(batch["faults"])
        views = batch["pixel_values"].flatten(0, -5)  # (B, T, C, H, W), or (B, views, T, C, H, W)
        with accelerator.autocast():
            tokens = model.base_model(views, cls_only=True).last_hidden_state
        targets = _soft(batch["labels"], model.num_labels)
        targets = targets.repeat_interleave(len(views) // len(targets), dim=0)
        found.append([part.cpu() for part in accelerator.gather((tokens[:, 0].float(), targets))])
    features, targets = (torch.cat(parts) for parts in zip(*found))
    counts = targets.sum(dim=1) > 0
    return features[counts], targets[counts]


def _batches(trainer: "VideoTrainer", passes: int) -> Iterator[dict[str, Any]]:
    """The clips of the epochs after the last, which training itself does not see, then their evaluation views."""
    first = math.ceil(trainer.args.num_train_epochs)
    clips, processor = trainer.train_dataset, trainer.processing_class
    rounds = [(clips, range(first, first + passes))]
    if processor is not None:
        processor = copy.copy(processor)
        processor.num_crops = EVALUATION_CROPS
        rounds.append((EvaluationClips(clips.source, processor, label_ids=clips.label_ids), [first + passes]))
    hidden = trainer.args.disable_tqdm or not trainer.accelerator.is_main_process
    with tqdm(desc="features", total=0, disable=hidden) as bar:
        for dataset, epochs in rounds:
            loader = trainer.make_train_dataloader(dataset)
            bar.total += len(epochs) * len(loader)
            for epoch in epochs:
                loader.set_epoch(epoch)  # accelerate's own count, which it tells the sampler
                trainer.set_data_epoch(epoch)
                for batch in loader:
                    yield batch
                    bar.update()


def _soft(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Labels `(B,)` or `(B, classes)` as the latter; what no loss counts is zero."""
    if labels.ndim == 2:
        return labels.float()
    return functional.one_hot(labels.clamp(min=0), num_classes).float() * (labels > NO_CLIP)[:, None]


def fit_classifier(
    features: torch.Tensor, targets: torch.Tensor, *, label_smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight `(classes, d)` and bias `(classes,)` of the linear discriminants of `features (N, d)`, in float64.

    Clips of class `c` are taken as normally distributed about its mean, all classes with one covariance, shrunk by
    `SHRINKAGE` towards its mean variance (Friedman 1989, "Regularized Discriminant Analysis"): directions in which the
    views and clips of one class differ count for little. `targets (N, classes)` may be soft. The logits are scaled by
    the factor up to 1 that minimises the cross-entropy to the targets, smoothed by `label_smoothing`.
    """
    features, targets = features.double(), targets.double()
    counts = targets.sum(dim=0).clamp(min=0.5)  # a class without clips gets a mean, too: that of all
    priors = counts / counts.sum()
    center = features.mean(dim=0)
    centered = features - center
    means = targets.T @ centered / counts[:, None]
    within = centered.T @ centered / len(features) - means.T @ (priors[:, None] * means)
    variance = within.diagonal().mean().clamp(min=1e-6)
    identity = torch.eye(len(within), dtype=within.dtype)
    weight = torch.linalg.solve((1 - SHRINKAGE) * within + SHRINKAGE * variance * identity, means.T).T
    bias = priors.log() - (weight * means).sum(dim=1) / 2 - weight @ center
    scale = _best_scale(features @ weight.T + bias, targets.lerp(targets.new_tensor(1 / len(counts)), label_smoothing))
    return scale * weight, scale * bias


def _best_scale(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The factor on the logits, between 0 and 1, of the smallest mean cross-entropy: it is convex in the factor."""

    def slope(scale: float) -> float:
        return ((scale * logits).softmax(dim=-1) - targets).mul(logits).sum().item()

    low, high = 0.0, 1.0
    if slope(high) <= 0:
        return high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return high
