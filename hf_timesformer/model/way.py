"""How a forward pass runs. It is decided here and nowhere else, once a pass, by [`choose_way`].

The plain way is the paper, module by module, and it is always right. A fast way gives the same
numbers from the same weights, but reads the weights itself where the plain way calls a module. So
it is entered only where nobody can tell the difference, but for the time and the memory:

| way       | last block | two maps in  | MLP widened | in    | sdpa is     | taken                              |
|           | CLS alone  | a row as one | twice       | place |             |                                    |
|-----------|------------|--------------|-------------|-------|-------------|------------------------------------|
| TRACED    | no         | no           | no          | no    | written out | by `torch.onnx`, `dynamo=False`    |
| PLAIN     | no         | no           | no          | no    | called      | if a line of `REASONS` holds; else |
| EXPORTED  | yes        | no           | no          | no    | called      | by `torch.export`                  |
| COMPILED  | yes        | yes          | no          | no    | as is best  | by `torch.compile`                 |
| TRAINING  | yes        | yes          | yes         | no    | as is best  | with gradients or random numbers   |
| INFERENCE | yes        | yes          | -           | yes   | as is best  | otherwise                          |

TRACED is the plain way, but for attention: of PyTorch's own, `torch.onnx` makes a graph that holds
for the traced batch alone.

LoRA adapters (PEFT's) keep no pass from a fast way: they map token by token, as the layers that
they were put around. Each way calls such a pair as the module that it is, and neither makes one map
of it and another layer nor computes it again. So dropout in an adapter runs as it does in PLAIN, on
each token that the way passes through it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import TimeSformerSelfAttention
from .attention_functions import Sdpa, eager_attention_forward
from .drop_path import TimeSformerDropPath
from .efficient_attention import is_active_dropout
from .upstream import (
    EXPORT_TENSORS,
    apart_from_adapters,
    is_everything_watched,
    is_exporting,
    is_transformed,
    is_watched,
    modules_below,
    parameters_of,
)


class Way(Enum):
    """A row of the table above, by its columns."""

    TRACED = (False, False, False, False, Sdpa.WRITTEN_OUT)
    PLAIN = (False, False, False, False, Sdpa.CALLED)
    EXPORTED = (True, False, False, False, Sdpa.CALLED)
    COMPILED = (True, True, False, False, Sdpa.BRIEF)
    TRAINING = (True, True, True, False, Sdpa.BRIEF)
    INFERENCE = (True, True, False, True, Sdpa.BRIEF)

    def __init__(self, cls_alone: bool, fuses: bool, recomputes: bool, in_place: bool, sdpa: Sdpa):
        self.cls_alone = cls_alone
        self.fuses = fuses
        self.recomputes = recomputes
        self.in_place = in_place
        self.sdpa = sdpa


TRACED, PLAIN, EXPORTED, COMPILED, TRAINING, INFERENCE = Way
BY_MODULE = (TRACED, PLAIN)

# float64 is for checking gradients: the plain way.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TENSORS = (torch.Tensor, nn.Parameter)


@dataclass(frozen=True)
class Pass:
    """What is known of a forward pass when its `tokens (b, 1 + n, d)` are embedded and its blocks
    have not run."""

    network: Any  # a TimeSformerModel, whose file imports this one
    tokens: torch.Tensor
    records: bool
    # All but the network itself: hooks there see the same in every way. Of an adapter and the layer
    # that it was put around, the layer is in `modules`, the rest in `adapters`.
    modules: list[nn.Module]
    adapters: list[nn.Module]


def _look_at(network: Any, tokens: torch.Tensor, records: bool) -> Pass:
    modules = modules_below(network)
    if len(modules) <= len(network.built_of):
        return Pass(network, tokens, records, modules, [])
    return Pass(network, tokens, records, *apart_from_adapters(network))


def choose_way(network: nn.Module, tokens: torch.Tensor, records: bool = False) -> Way:
    """How `tokens (b, 1 + n, d)` go through the blocks of `network`, a [`TimeSformerModel`].

    `records`: whether hidden states or attention weights are asked for.
    """
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
        return TRACED
    this = _look_at(network, tokens, records)
    if _first_reason(this) is not None:
        return PLAIN
    if is_exporting():
        return EXPORTED
    if torch.compiler.is_compiling():
        return COMPILED
    return TRAINING if torch.is_grad_enabled() or _draws(this) else INFERENCE


def why_plain(network: nn.Module, tokens: torch.Tensor, records: bool = False) -> str | None:
    """The first reason to run `tokens (b, 1 + n, d)` module by module, in words; None where there
    is none."""
    return _first_reason(_look_at(network, tokens, records))


def _first_reason(this: Pass) -> str | None:
    for reason, holds in REASONS:
        if holds(this):
            return reason
    return None


def structure_of(network: nn.Module) -> tuple[tuple[type, Callable], ...]:
    """The classes of all modules of `network` but itself, and their `forward`: what the fast ways
    were written for."""
    return tuple((type(module), type(module).forward) for module in modules_below(network))


def _is_rebuilt(this: Pass) -> bool:
    built_of = this.network.built_of
    if len(built_of) != len(this.modules):
        return True
    for module, (kind, forward) in zip(this.modules, built_of):
        if type(module) is not kind or kind.forward is not forward:
            return True
    return False


def _has_other_tensors(this: Pass) -> bool:
    kinds = TENSORS + EXPORT_TENSORS if is_exporting() else TENSORS
    if type(this.tokens) not in kinds:
        return True
    for module in (*this.modules, *this.adapters):
        for parameter in parameters_of(module):
            if parameter is not None and type(parameter) not in kinds:
                return True
    return False


def _drops_out(this: Pass) -> bool:
    for module in this.modules:
        if is_active_dropout(module):
            return True
        if type(module) is TimeSformerSelfAttention and module.training and module.dropout > 0:
            return True
    return False


def _draws(this: Pass) -> bool:
    """Whether blocks, or the dropout in adapters, draw random numbers. A recomputation whose first
    pass had no gradients must draw them in the order of that pass, so both go the same way."""
    return any(
        type(module) is TimeSformerDropPath and module.is_active for module in this.modules
    ) or any(map(is_active_dropout, this.adapters))


def _has_own_attention(this: Pass) -> bool:
    name = this.network.config._attn_implementation
    function = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
    return (
        function is not eager_attention_forward
        and function.__module__.split(".")[0] != "transformers"
    )


# Anything out of the ordinary: then the network runs module by module.
REASONS: tuple[tuple[str, Callable[[Pass], bool]], ...] = (
    ("hidden states or attention weights are recorded", lambda this: this.records),
    ("torch.jit traces the call", lambda this: torch.jit.is_tracing()),
    ("torch.func or forward-mode differentiation transforms it", lambda this: is_transformed()),
    # Adapters other than LoRA, layers of a quantiser, FSDP, parametrizations, a part of one's own, ...
    ("a module is not what the network was built of", _is_rebuilt),
    # ... on any module below the base model. Offloading and module.compile() count as well.
    (
        "a module has hooks or a forward of its own",
        lambda this: any(is_watched(module) for module in (*this.modules, *this.adapters)),
    ),
    ("all modules have hooks", lambda this: is_everything_watched()),
    # Quantised, sharded, fake: kinds of tensors whose products are their own. While exporting, all
    # are fake.
    ("the tokens or a weight are another kind of tensor", _has_other_tensors),
    ("the tokens have no numbers (meta)", lambda this: this.tokens.device.type == "meta"),
    # Who asks for so many digits wants each operation as it is written, gradients checked by
    # differences above all.
    ("the tokens are float64", lambda this: this.tokens.dtype not in DTYPES),
    # The fast ways leave the network's own dropout out; that in adapters runs as they do.
    ("dropout is active", _drops_out),
    ("the attention function is the user's own", _has_own_attention),
)
