"""Which parameters learn, how fast, and with how much weight decay."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .upstream import FLAT_PARAMETER, WRAPPERS


FREEZE_CHOICES = ("none", "backbone", "spatial")

# What an image ViT does not have: the earlier attention steps of each block, and the time
# embeddings.
_VIDEO_PARAMETERS = re.compile(r"\.(temporal|local|width)_|time_embeddings")
_HEAD = re.compile(r"(^|\.)classifier\.")
_EMBEDDINGS = re.compile(r"cls_token|position_embeddings|time_embeddings")
_LAYER = re.compile(r"\.layer\.(\d+)\.")


def freeze_parameters(model: nn.Module, freeze: str, freeze_depth: float = 0.0) -> None:
    """Choose which parameters learn, by `requires_grad`.

    Args:
        model: a TimeSformer with a classifier.
        freeze: `none`: all learn. `backbone`: only the classifier does. `spatial`: the classifier,
            the time embeddings and the earlier attention steps of each block do; all that an image
            ViT brought is frozen (patch and position embeddings, its attention, MLPs, LayerNorms).
        freeze_depth: the share of the blocks, from the first on, that is frozen besides, together
            with the embeddings. Nothing is kept of them for the backward pass.

    Stochastic depth is off in frozen blocks. Raises ValueError for another word, or a share
    outside [0, 1].
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
        is_kept = (
            freeze_depth > 0 and _depth(name, num_layers) <= frozen_blocks and _is_below_norm(name)
        )
        learns = freeze == "none" or is_head or (freeze == "spatial" and is_video)
        parameter.requires_grad = learns and not is_kept
    for module in model.modules():
        drop_path: Any = getattr(module, "drop_path", None)
        learns = any(parameter.requires_grad for parameter in module.parameters())
        if drop_path is not None and not learns:
            # stochastic depth is for what learns; else it only blurs the features
            drop_path.rate = 0.0


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    head_learning_rate: float | None = None,
    temporal_learning_rate: float | None = None,
    weight_decay: float = 0.0,
    decay_all: bool = False,
    layer_decay: float = 1.0,
) -> list[dict]:
    """Optimizer groups of the trainable parameters, each with its own `lr` and `weight_decay`.

    Args:
        model: may be wrapped by DDP, FSDP or torch.compile.
        learning_rate: of all that has no rate of its own below. Layer `n` of `L` learns at
            `learning_rate * layer_decay ** (L - n)`, the embeddings below layer 1.
        head_learning_rate: of the classifier. A rate of 0 is a rate.
        temporal_learning_rate: of what an image ViT does not have (time embeddings and the earlier
            attention steps: those that `freeze="spatial"` lets learn), in place of `learning_rate`.
        weight_decay: of all parameters but those that `names_without_decay` lists.
        decay_all: of these, too, as the official code does.
        layer_decay: factor from each layer to the one below (Bao et al. 2022, BEiT); 1 is none.

    Returns:
        Groups as `torch.optim` takes them.

    Raises:
        ValueError: nothing learns, or FSDP has merged parameters that may need rates of their own.
    """
    exempt = set() if decay_all else names_without_decay(model)
    named = [(plain_name(name), parameter) for name, parameter in model.named_parameters()]
    if any(name.endswith(FLAT_PARAMETER) for name, _ in named):
        raise ValueError(
            "FSDP has merged parameters that learn at different rates: set use_orig_params to true in --fsdp_config"
        )
    num_layers = _count_layers([name for name, _ in named])
    head_rate = learning_rate if head_learning_rate is None else head_learning_rate
    video_rate = learning_rate if temporal_learning_rate is None else temporal_learning_rate
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        if _HEAD.search(name):
            rate = head_rate
        else:
            rate = video_rate if _VIDEO_PARAMETERS.search(name) else learning_rate
            rate *= layer_decay ** (num_layers - _depth(name, num_layers))
        decay = 0.0 if name in exempt else weight_decay
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    if not groups:
        raise ValueError("no parameter is left to train: choose another value for --freeze")
    # Trainer logs the rate of the first group: --learning_rate itself where anything learns at it.
    return sorted(groups.values(), key=lambda group: group["lr"] != learning_rate)


def names_without_decay(model: nn.Module) -> set[str]:
    """Plain names of the parameters that weight decay leaves alone.

    These are biases, the parameters of norms, CLS, position and time embeddings, and what the
    model's own `no_weight_decay()` names. Names and modules decide, never shapes: FSDP1 shows every
    parameter as a flat shard.
    """
    own_list: Any = getattr(model, "no_weight_decay", None)
    exempt: set[str] = set() if own_list is None else set(own_list())
    for prefix, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(prefix, recurse=False):
            name = plain_name(name)
            if is_norm or name.endswith("bias") or _EMBEDDINGS.search(name):
                exempt.add(name)
    return exempt


def plain_name(name: str) -> str:
    """The name of a parameter in the network itself, without what wrappers put into it.

    `_fsdp_wrapped_module.timesformer.encoder.layer.0._fsdp_wrapped_module.output.dense.weight` is
    `timesformer.encoder.layer.0.output.dense.weight`.
    """
    return WRAPPERS.sub("", name)


def _is_below_norm(name: str) -> bool:
    """Whether a parameter lies in the embeddings or a block, not in the final LayerNorm or the
    classifier.
    """
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
    optimizer: torch.optim.Optimizer,
    milestones: Sequence[int],
    *,
    factor: float,
    num_warmup_steps: int = 0,
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then every group's learning rate times `factor` at each of `milestones` (in
    steps).
    """

    def scale(step: int) -> float:
        warmup = min(1.0, (step + 1) / (num_warmup_steps + 1))
        return warmup * factor ** sum(step >= milestone for milestone in milestones)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
