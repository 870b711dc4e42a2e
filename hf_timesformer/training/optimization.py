"""Which parameters learn, how fast, and with how much weight decay."""

import re
from collections.abc import Sequence

import torch
from torch import nn


FREEZE_CHOICES = ("none", "backbone", "spatial")

# What an image ViT does not have: the earlier attention steps of each block, and the time embeddings.
_VIDEO_PARAMETERS = re.compile(r"\.(temporal|local|width)_|time_embeddings")
_HEAD = re.compile(r"(^|\.)classifier\.")
_EMBEDDINGS = re.compile(r"cls_token|position_embeddings|time_embeddings")
_LAYER = re.compile(r"\.layer\.(\d+)\.")


def freeze_parameters(model: nn.Module, freeze: str, freeze_depth: float = 0.0) -> None:
    """Leave trainable all parameters (`none`), the classifier (`backbone`), or it and the temporal ones (`spatial`).

    `spatial` freezes everything that an image ViT brought: patch and position embeddings, the ViT's own attention,
    MLPs and LayerNorms; time embeddings and the earlier attention steps learn. `freeze_depth` freezes the embeddings
    and that share of the blocks besides, from the first on: nothing is kept of them for the backward pass. Of blocks
    that do not learn no branch is dropped. Raises ValueError for another word, or a share outside [0, 1].
    """
    if freeze not in FREEZE_CHOICES:
        raise ValueError(f"freeze {freeze!r} is unknown: choose one of {', '.join(FREEZE_CHOICES)}")
    names = [name for name, _ in model.named_parameters()]
    num_layers = _count_layers(names)
    if not 0 <= freeze_depth <= 1:
        raise ValueError(f"freeze_depth must lie between 0 and 1, got {freeze_depth}")
    frozen_blocks = round(freeze_depth * num_layers)
    for name, parameter in model.named_parameters():
        is_head = _HEAD.search(name) is not None
        is_video = _VIDEO_PARAMETERS.search(name) is not None
        is_kept = freeze_depth > 0 and _depth(name, num_layers) <= frozen_blocks and _is_below_norm(name)
        learns = freeze == "none" or is_head or (freeze == "spatial" and is_video)
        parameter.requires_grad = learns and not is_kept
    for module in model.modules():
        if hasattr(module, "drop_path") and not any(parameter.requires_grad for parameter in module.parameters()):
            module.drop_path.rate = 0.0  # stochastic depth is for what learns; else it only blurs the features


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    head_learning_rate: float | None = None,
    temporal_learning_rate: float | None = None,
    weight_decay: float = 0.0,
    layer_decay: float = 1.0,
) -> list[dict]:
    """Optimizer groups of the trainable parameters, each with its own `lr` and `weight_decay`.

    No weight decay on biases, norms, CLS, position and time embeddings, nor on what the model's own
    `no_weight_decay()` names. Layer `n` of `L` learns at `learning_rate * layer_decay ** (L - n)` (Bao et al. 2022,
    BEiT), the embeddings below layer 1; the classifier at `head_learning_rate` where given. What an image ViT does not
    have (time embeddings and the earlier attention steps: those that `freeze="spatial"` lets learn) starts from
    `temporal_learning_rate` where given, in place of `learning_rate`.
    """
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    names = [name for name, _ in model.named_parameters()]
    num_layers = _count_layers(names)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if _HEAD.search(name):
            rate = head_learning_rate or learning_rate
        else:
            is_video = _VIDEO_PARAMETERS.search(name) is not None
            rate = temporal_learning_rate if is_video and temporal_learning_rate else learning_rate
            rate *= layer_decay ** (num_layers - _depth(name, num_layers))
        is_exempt = parameter.ndim <= 1 or name in exempt or _EMBEDDINGS.search(name) is not None
        decay = 0.0 if is_exempt else weight_decay
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    if not groups:
        raise ValueError("no parameter is left to train: choose another value for --freeze")
    # Trainer logs the rate of the first group: --learning_rate itself where anything learns at it.
    return sorted(groups.values(), key=lambda group: group["lr"] != learning_rate)


def _is_below_norm(name: str) -> bool:
    """Whether a parameter lies in the embeddings or a block, not in the final LayerNorm or the classifier."""
    return ".embeddings." in name or _LAYER.search(name) is not None


def _count_layers(names: Sequence[str]) -> int:
    return 1 + max((int(match[1]) for match in map(_LAYER.search, names) if match), default=0)


def _depth(name: str, num_layers: int) -> int:
    """0 for the embeddings, 1 to `num_layers` for the blocks, `num_layers` for what follows them."""
    match = _LAYER.search(name)
    if match:
        return int(match[1]) + 1
    return 0 if ".embeddings." in name else num_layers


def step_schedule(
    optimizer: torch.optim.Optimizer, milestones: Sequence[int], *, factor: float, num_warmup_steps: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then every group's learning rate times `factor` at each of `milestones` (in steps)."""

    def scale(step: int) -> float:
        warmup = min(1.0, (step + 1) / (num_warmup_steps + 1))
        return warmup * factor ** sum(step >= milestone for milestone in milestones)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
