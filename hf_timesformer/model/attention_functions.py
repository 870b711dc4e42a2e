"""Softmax attention of queries to keys, written out, and where that is the fastest way to run it."""

from enum import Enum

import torch
from torch import nn

from .efficient_linear import ONEDNN_BFLOAT16, USES_ONEDNN


# Keys up to which attention written out beats SDPA on CPU (T+S 8x448: 19.7 against 33.5 ms; with
# 16 keys it loses).
SHORT_SEQUENCE = 8
# The same in bf16 without gradients, where the kernel that SDPA takes on CPUs multiplies by MKL, and
# the products written out go to oneDNN, which is faster on all but Intel's processors (Zen 4, one
# thread, 8 frames of 197, 257 and 401 tokens: 12.9 against 18.7, 18.1 against 31.2, 46 against 80
# ms). More keys than these were not faster.
SHORT_BFLOAT16_SEQUENCE = 512


class Sdpa(Enum):
    """How attention that the config names "sdpa" is run."""

    CALLED = "as PyTorch's function"
    # where there are few keys: written out on CPUs, many groups together on GPUs
    BRIEF = "as is fastest on the device"
    WRITTEN_OUT = "product by product"


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention written out: `(n, heads, l, c)` -> context `(n, l, heads, c)`, weights
    `(n, heads, l, l)`. The mask is added to the scores, and repeated to their shape."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=at_least_float32(query.dtype)).to(
        query.dtype
    )
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The precision to take a softmax or to interpolate in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def short_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """What `sdpa` runs on CPUs where there are few keys: the same, written out with as few passes
    over the scores as can be, `(n, heads, l, c)` -> `(n, l, heads, c)`. The mask is as there."""
    sequences = query.shape[:2]
    query, key, value = (tokens.flatten(0, 1) for tokens in (query, key, value))
    # beta = 0: what the scores are added to is not read
    scores = torch.baddbmm(query.new_empty(1), query, key.mT, beta=0.0, alpha=scaling)
    if attention_mask is not None:
        scores = (scores.unflatten(0, sequences) + attention_mask).flatten(0, 1)
    weights = scores.softmax(dim=-1)  # bf16 is summed in float32 inside
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).unflatten(0, sequences).transpose(1, 2), None


def is_short_for_cpu(key: torch.Tensor) -> bool:
    """Whether keys `(n, heads, l, c)` are on a CPU and so few that attention written out is
    fastest."""
    if key.device.type != "cpu":
        return False
    by_onednn = (
        key.dtype == torch.bfloat16
        and USES_ONEDNN
        and ONEDNN_BFLOAT16
        and not torch.is_grad_enabled()  # with gradients it would keep the weights
    )
    return key.shape[2] <= (SHORT_BFLOAT16_SEQUENCE if by_onednn else SHORT_SEQUENCE)
