"""A linear classifier fitted to the frozen network, for fine-tuning to begin with, and to end with.

A random classifier sends gradients of no meaning through a network that was good already; a fitted
one does not (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution").
"""

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ..data.targets import NO_CLIP
from .upstream import write_part


logger = logging.getLogger(__name__)

Tensors = tuple[torch.Tensor, ...]
Gather = Callable[[Tensors], Tensors]

# How much of the covariance is replaced by that of independent features: of a few clips it is known
# poorly. Which of them suits some clips is tried on those left out (`best_shrinkage`); of many clips
# the covariance is known well, and what is usual does.
SHRINKAGES = (0.01, 0.03, 0.1, 0.3)
USUAL_SHRINKAGE = 0.03
MANY_VIEWS = 5_000
CLEARLY = 1e-3  # by that share the loss must fall

FOLDS = 5  # parts of the clips that `held_out_logits` leaves out in turn


def _keep(tensors: Tensors) -> Tensors:
    """The gather of one process alone."""
    return tensors


def find_classifier(model: nn.Module) -> Any:
    """The classifier of a network, with PEFT the copy of it that learns; None where there is none."""
    classifier: Any = getattr(model, "classifier", None)
    copies = getattr(classifier, "modules_to_save", None)
    return classifier if copies is None else copies[classifier.active_adapters[0]]


def fit_new_classifier(
    model: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    gather: Gather = _keep,
    label_smoothing: float = 0.0,
) -> None:
    """Fit `model.classifier`, which must be linear, to the frozen network's features of all clips
    in `batches`. The model may be wrapped by PEFT, or by FSDP.

    Every process gives its own batches, as many as the others; each ends with the same classifier.
    `gather` takes a tuple of tensors and gives those of all processes (`accelerator.gather`). A batch
    may say in which `round` over the clips it is, a number: how much covariances are shrunk is tried
    on the last round alone, as a clip that is left out must not be there in another view.
    Raises ValueError for another classifier.
    """
    classifier = find_classifier(model)
    if not isinstance(classifier, nn.Linear):
        raise ValueError(
            f"only a linear classifier can be fitted, not a {type(classifier).__name__}"
        )
    rounds = [
        collect_features(model, batches_of_one, gather=gather)
        for _, batches_of_one in groupby(batches, key=lambda batch: batch.get("round"))
    ]
    shrinkage = best_shrinkage(*(each.double() for each in rounds[-1]))
    features, targets = (torch.cat(parts) for parts in zip(*rounds))
    weight, bias = fit_classifier(
        features, targets, label_smoothing=label_smoothing, shrinkage=shrinkage
    )
    right = (features.double() @ weight.T + bias).argmax(-1) == targets.argmax(-1)
    logger.info(
        "classifier fitted to %d views as the network sees them (shrinkage %g): %.1f %% of them are right",
        len(features),
        shrinkage,
        100 * right.double().mean(),
    )
    write_part(model, classifier, {"weight": weight, "bias": bias})


@torch.no_grad()
def collect_features(
    model: Any, batches: Iterable[Mapping[str, Any]], *, gather: Gather = _keep
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the classifier gets, `(N, d)`, and what it should give, `(N, classes)`, of all
    processes, on the CPU.

    A batch has `pixel_values` `(B, T, C, H, W)` or `(B, views, T, C, H, W)` and `labels` `(B,)` or
    `(B, classes)`; N counts views. Clips whose label no loss counts are left out.
    """
    model.eval()
    found_features, found_targets = [], []
    for batch in batches:
        # (B, [views,] T, C, H, W) -> (B * views, T, C, H, W)
        views = batch["pixel_values"].flatten(0, -5)
        targets = soft_targets(batch["labels"], model.num_labels)
        # (B, classes) -> (B * views, classes)
        targets = targets.repeat_interleave(len(views) // len(targets), dim=0)
        features, targets = gather((_features_of(model, views), targets))
        found_features.append(features.cpu())
        found_targets.append(targets.cpu())
    features, targets = torch.cat(found_features), torch.cat(found_targets)
    counts = targets.sum(dim=1) > 0
    return features[counts], targets[counts]


def _features_of(model: nn.Module, views: torch.Tensor) -> torch.Tensor:
    """What the classifier gets, float32 `(N, d)`, of `views` `(N, T, C, H, W)`.

    It is taken on its way into the classifier, in a pass of the whole model: where FSDP has spread
    the network over the processes, no smaller part of it runs by itself.
    """
    found: list[torch.Tensor] = []

    def keep(classifier: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        found.append(arguments[0].float())

    with _without_compiling():
        hook = find_classifier(model).register_forward_pre_hook(keep)
        try:
            model(pixel_values=views)
        finally:
            hook.remove()
    (features,) = found
    return features


def _without_compiling() -> AbstractContextManager:
    """What torch.compile has compiled would not see a hook come and go: it runs as it is written."""
    # nothing is compiled without it, and it takes seconds to import
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def soft_targets(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Labels `(B,)` or `(B, classes)` as the latter; what no loss counts is zero."""
    if labels.ndim == 2:
        return labels.float()
    return (
        functional.one_hot(labels.clamp(min=0), num_classes).float() * (labels > NO_CLIP)[:, None]
    )


def fit_classifier(
    features: torch.Tensor,
    targets: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    shrinkage: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A linear classifier by arithmetic instead of by steps: linear discriminants.

    Clips of class `c` are taken as normally distributed about its mean, all classes with one
    covariance, shrunk towards its mean variance (Friedman 1989, "Regularized Discriminant
    Analysis"): directions in which the views and clips of one class differ count for little. The
    logits are scaled by the factor up to 1 that minimises the cross-entropy to the targets.

    Args:
        features: of the clips, `(N, d)`.
        targets: share of each class in each clip, `(N, classes)`; may be soft.
        label_smoothing: of the targets in that cross-entropy, a share from 0 to 1.
        shrinkage: from 0 to 1; None tries some (`best_shrinkage`), and features are of clips once each.

    Returns:
        Weight `(classes, d)` and bias `(classes,)`, in float64.
    """
    features, targets = features.double(), targets.double()
    if shrinkage is None:
        shrinkage = best_shrinkage(features, targets)
    weight, bias = _discriminants(_moments(features, targets), shrinkage)
    scale = _best_scale(
        features @ weight.T + bias,
        targets.lerp(targets.new_tensor(1 / targets.shape[1]), label_smoothing),
    )
    return scale * weight, scale * bias


def best_shrinkage(features: torch.Tensor, targets: torch.Tensor) -> float:
    """That of `SHRINKAGES` with which classifiers of the other clips find the classes of each clip
    likeliest; the usual one where this cannot be told, or need not.

    Args:
        features: of the clips, float64 `(N, d)`.
        targets: share of each class in each clip, float64 `(N, classes)`.
    """
    if len(features) > MANY_VIEWS:
        return USUAL_SHRINKAGE
    # every clip a group of its own, numbered by what it shows: processes may give them in any order
    direction = torch.randn(
        features.shape[1], generator=torch.Generator().manual_seed(0), dtype=features.dtype
    )
    numbers = (features @ direction).argsort().argsort()
    logits, told = held_out_logits(features, targets, numbers, SHRINKAGES)
    if not told.any():
        return USUAL_SHRINKAGE
    losses = [_scaled_loss(found[told], targets[told]) for found in logits]
    least = min(losses)
    # where features tell nothing all losses are the same, and last digits must not decide
    if least > (1 - CLEARLY) * losses[SHRINKAGES.index(USUAL_SHRINKAGE)]:
        return USUAL_SHRINKAGE
    return SHRINKAGES[losses.index(least)]


def _scaled_loss(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean cross-entropy of logits `(n, classes)` that are scaled by the best factor up to 1."""
    scaled = _best_scale(logits, targets) * logits
    return -(targets * scaled.log_softmax(dim=1)).sum(dim=1).mean().item()


class _Moments(NamedTuple):
    """Of clips: share `(classes,)` and mean `(classes, d)` of each class, the latter from the `center
    (d,)` of all, and their covariance within a class `(d, d)`."""

    priors: torch.Tensor
    means: torch.Tensor
    center: torch.Tensor
    within: torch.Tensor


def _moments(features: torch.Tensor, targets: torch.Tensor) -> _Moments:
    # a class without clips gets a mean, too: that of all
    counts = targets.sum(dim=0).clamp(min=0.5)
    priors = counts / counts.sum()
    center = features.mean(dim=0)
    centered = features - center
    means = targets.T @ centered / counts[:, None]
    within = centered.T @ centered / len(features) - means.T @ (priors[:, None] * means)
    return _Moments(priors, means, center, within)


def _discriminants(moments: _Moments, shrinkage: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight `(classes, d)` and bias `(classes,)` of `fit_classifier` before they are scaled."""
    priors, means, center, within = moments
    variance = within.diagonal().mean().clamp(min=1e-6)
    identity = torch.eye(len(within), dtype=within.dtype)
    weight = torch.linalg.solve(
        (1 - shrinkage) * within + shrinkage * variance * identity, means.T
    ).T
    bias = priors.log() - (weight * means).sum(dim=1) / 2 - weight @ center
    return weight, bias


def held_out_logits(
    features: torch.Tensor,
    targets: torch.Tensor,
    groups: torch.Tensor,
    shrinkages: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of every clip by classifiers that are fitted to others, none of its own group, and which
    clips have such.

    A clip has none where no other group has clips of its class.

    Args:
        features: float64 `(N, d)`.
        targets: float64 `(N, classes)`.
        groups: a number of each clip's group, `(N,)`.
        shrinkages: S numbers from 0 to 1, of the covariances.

    Returns:
        Logits `(S, N, classes)`, and bool `(N,)`.
    """
    logits = targets.new_zeros(len(shrinkages), *targets.shape)
    has_logits = torch.zeros(len(targets), dtype=torch.bool)
    labels, parts = targets.argmax(dim=1), _parts(targets, groups)
    for part in range(FOLDS):
        held_out = parts == part
        if held_out.all() or not held_out.any():
            continue
        moments = _moments(features[~held_out], targets[~held_out])
        for found, shrinkage in zip(logits, shrinkages):
            weight, bias = _discriminants(moments, shrinkage)
            found[held_out] = features[held_out] @ weight.T + bias
        has_logits |= held_out & torch.isin(labels, labels[~held_out])
    return logits, has_logits


def _parts(targets: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """The part, 0 to `FOLDS` - 1, in which each clip is held out, `(N,)`: one for a group, and every
    class is dealt out evenly.

    Two classes a and b, groups 1 to 7, and if there were three parts:

        class  a a a a b b b
        group  1 3 4 7 2 5 6
        part   0 1 2 0 1 2 0
    """
    names, rows = groups.unique(return_inverse=True)  # the group of each clip, (N,)
    sums = targets.new_zeros(len(names), targets.shape[1]).index_add(0, rows, targets)
    parts = torch.empty(len(names), dtype=torch.long)
    parts[sums.argmax(dim=1).argsort(stable=True)] = torch.arange(len(names)) % FOLDS
    return parts[rows]


def _best_scale(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The factor on the logits, between 0 and 1, of the smallest mean cross-entropy: it is convex
    in the factor. Logits and targets are `(N, classes)`.
    """

    def slope(scale: float) -> float:
        return ((scale * logits).softmax(dim=-1) - targets).mul(logits).sum().item()

    low, high = 0.0, 1.0
    if slope(high) <= 0:
        return high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return high
