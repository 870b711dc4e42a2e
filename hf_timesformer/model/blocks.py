"""The parts of a TimeSformer: attention with its projections, the MLP, blocks."""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import TimeSformerSelfAttention
from .configuration_timesformer import TimeSformerConfig
from .efficient_inference import run_block
from .efficient_linear import FusedLinear, Linear, ZeroLinear, linear
from .efficient_training import linear_after
from .hooks import is_plain_linear, is_watched
from .schemes import SCHEMES, Grid


class TimeSformerDense(nn.Module):
    """A linear layer, an activation where one is given, dropout."""

    def __init__(self, config: TimeSformerConfig, in_features: int, out_features: int, activation: str | None = None):
        super().__init__()
        self.dense = Linear(in_features, out_features)
        self.activation = nn.Identity() if activation is None else ACT2FN[activation]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.activation(self.dense(hidden_states)))


def _drops(module: TimeSformerDense) -> bool:
    return module.training and module.dropout.p > 0


class TimeSformerAttention(nn.Module):
    """Attention of one step and its output projection."""

    def __init__(self, config: TimeSformerConfig, step: str):
        super().__init__()
        self.attention = TimeSformerSelfAttention(config, step)
        self.output = TimeSformerDense(config, config.hidden_size, config.hidden_size)
        self.fused = FusedLinear()

    def forward(
        self,
        patches: torch.Tensor,
        cls: torch.Tensor | None = None,
        extra_dense: Callable[[], nn.Linear] | None = None,
        with_weights: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """`patches (b, h, w, t, d)`, `cls (b, 1, d)` -> their updates, with the weights (eager) in between.

        `extra_dense` gives the layer: hooks (accelerate's offloading) move every module that they find in arguments.
        """
        context, cls_context, weights = self.attention(patches, cls, with_weights)
        if cls is not None:
            return self.output(context), weights, self.output(cls_context)
        return self.projection(extra_dense(), math.prod(context.shape[1:4]))(context), weights, None

    def projection(self, extra_dense: nn.Linear, tokens: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The output projection and the extra dense layer, two linear maps in a row: one where that saves work."""
        first = self.output.dense
        one_map = is_plain_linear(first) and is_plain_linear(extra_dense) and not _drops(self.output)
        if one_map and tokens >= first.in_features:
            weight, bias = self.fused(first, extra_dense)
            return lambda context: linear(context, weight, bias)
        return lambda context: extra_dense(self.output(context))


class TimeSformerDropPath(nn.Module):
    """Stochastic depth: a residual branch is dropped for whole clips of the batch (Huang et al. 2016)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    @property
    def is_active(self) -> bool:
        return self.training and self.rate > 0.0

    def forward(self, update: torch.Tensor) -> torch.Tensor:
        if not self.is_active:
            return update
        keep = torch.rand(update.shape[0], *[1] * (update.ndim - 1), device=update.device) >= self.rate
        return update * keep / (1 - self.rate)


class TimeSformerLayer(GradientCheckpointingLayer):
    """A block: the scheme's attention steps one after the other, then the MLP."""

    def __init__(self, config: TimeSformerConfig, layer_index: int):
        super().__init__()
        *self.earlier_steps, self.last_step = SCHEMES[config.attention_type]
        size, eps = config.hidden_size, config.layer_norm_eps
        for step in self.earlier_steps:
            self.add_module(f"{step}_layernorm", nn.LayerNorm(size, eps=eps))
            self.add_module(f"{step}_attention", TimeSformerAttention(config, step))
            self.add_module(f"{step}_dense", ZeroLinear(size, size))
        self.layernorm_before = nn.LayerNorm(size, eps=eps)
        self.attention = TimeSformerAttention(config, self.last_step)
        self.layernorm_after = nn.LayerNorm(size, eps=eps)
        self.intermediate = TimeSformerDense(config, size, config.intermediate_size, config.hidden_act)
        self.output = TimeSformerDense(config, config.intermediate_size, size)
        self.drop_path = TimeSformerDropPath(
            config.drop_path_rate * layer_index / max(1, config.num_hidden_layers - 1)
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        grid: Grid,
        cls_only: bool = False,
        with_weights: bool = False,
        may_overwrite: bool = False,
    ) -> torch.Tensor:
        """`(b, 1 + h*w*t, d)` -> the same, or `(b, 1, d)` where only CLS is asked for.

        Where nobody looks inside and gradients are off it works in place: on what came in if it `may_overwrite` that.
        """
        if not with_weights and self._works_in_place():
            own = hidden_states if may_overwrite else hidden_states.clone(memory_format=torch.contiguous_format)
            return run_block(self, own, grid, cls_only)
        cls, patches = hidden_states.split((1, hidden_states.shape[1] - 1), dim=1)
        patches = patches.unflatten(1, grid)  # (b, h, w, t, d)
        for step in self.earlier_steps:
            patches = patches + self.drop_path(self.attend_early(step, patches, with_weights))
        if cls_only:
            return self.finish_cls(patches, cls)
        patch_update, _, cls_update = self.attention(self.layernorm_before(patches), self.layernorm_before(cls))
        patch_update, cls_update = self._drop_together(patch_update, cls_update)
        hidden_states = torch.cat((cls + cls_update, (patches + patch_update).flatten(1, 3)), dim=1)
        return hidden_states + self.drop_path(self.feed_forward(hidden_states))

    def attend_early(self, step: str, patches: torch.Tensor, with_weights: bool = False) -> torch.Tensor:
        """The update of a step before the last: of patches only, through one more linear layer."""
        layernorm, attention, dense = self._early_modules(step)
        return attention(layernorm(patches), extra_dense=lambda: dense, with_weights=with_weights)[0]

    def early_parts(
        self, step: str, patches: torch.Tensor
    ) -> tuple[nn.LayerNorm, TimeSformerSelfAttention, Callable[[torch.Tensor], torch.Tensor]]:
        """What `attend_early` does one after the other, for callers that take part of `patches` at a time."""
        layernorm, attention, dense = self._early_modules(step)
        return layernorm, attention.attention, attention.projection(dense, math.prod(patches.shape[1:4]))

    def _early_modules(self, step: str) -> tuple[nn.LayerNorm, TimeSformerAttention, nn.Linear]:
        return tuple(getattr(self, f"{step}_{name}") for name in ("layernorm", "attention", "dense"))

    def finish_cls(self, patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        """The last step and the MLP for CLS alone: `(b, h, w, t, d)`, `(b, 1, d)` -> `(b, 1, d)`."""
        attention = self.attention
        context = attention.attention.attend_from_cls(self.layernorm_before(patches), self.layernorm_before(cls))
        cls = cls + self.drop_path(attention.output(context))
        return cls + self.drop_path(self.feed_forward(cls))

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The update of the MLP, in training with what it keeps for the gradients halved."""
        parts = self.intermediate, self.output
        in_pieces = torch.is_grad_enabled() and not any(map(_drops, parts))
        if in_pieces and not is_watched(module for part in parts for module in part.modules()):
            wide = linear_after(self.layernorm_after, self.intermediate.dense, hidden_states)
            return linear_after(self.intermediate.activation, self.output.dense, wide)
        return self.output(self.intermediate(self.layernorm_after(hidden_states)))

    def _drop_together(
        self, patch_update: torch.Tensor, cls_update: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Drop the same clips' updates of patches and of CLS: they are one residual branch."""
        if not self.drop_path.is_active:
            return patch_update, cls_update
        keep = self.drop_path(torch.ones_like(cls_update[:, :, :1]))  # (b, 1, 1)
        return patch_update * keep[..., None, None], cls_update * keep

    def _works_in_place(self) -> bool:
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if torch.is_grad_enabled() or traced or self.drop_path.is_active:
            return False
        return not is_watched(module for module in self.modules() if module is not self)


class TimeSformerEncoder(nn.Module):
    """The blocks one after the other."""

    def __init__(self, config: TimeSformerConfig):
        super().__init__()
        self.layer = nn.ModuleList([TimeSformerLayer(config, index) for index in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden_states: torch.Tensor,
        grid: Grid,
        cls_only: bool = False,
        with_weights: bool = False,
        may_overwrite: bool = False,
    ) -> torch.Tensor:
        """As `TimeSformerLayer.forward`; nothing is overwritten that a hook on a block or a checkpoint may hold."""
        may_overwrite = may_overwrite and not (torch.is_grad_enabled() or is_watched([self, *self.layer]))
        last = len(self.layer) - 1
        for index, layer in enumerate(self.layer):
            hidden_states = layer(hidden_states, grid, cls_only and index == last, with_weights, may_overwrite)
        return hidden_states
