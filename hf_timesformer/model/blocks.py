"""A block as the paper has it: for each step of the scheme attend, then the MLP.

What stands here is the plain way, module by module; every other way (way.py) is held to what it
gives.
"""

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import TimeSformerSelfAttention
from .attention_functions import Sdpa
from .configuration_timesformer import TimeSformerConfig
from .drop_path import TimeSformerDropPath
from .efficient_inference import run_block_in_place
from .efficient_linear import call
from .efficient_training import run_block
from .schemes import SCHEMES, Grid
from .way import BY_MODULE, PLAIN, Way


class TimeSformerDense(nn.Module):
    """A linear layer, an activation where one is given, dropout."""

    def __init__(
        self,
        config: TimeSformerConfig,
        in_features: int,
        out_features: int,
        activation: str | None = None,
    ):
        super().__init__()
        self.dense = nn.Linear(in_features, out_features)
        self.activation = nn.Identity() if activation is None else ACT2FN[activation]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(..., in_features) -> (..., out_features)`."""
        return self.dropout(self.activation(call(self.dense, hidden_states)))


class TimeSformerAttention(nn.Module):
    """Attention of one step and its output projection."""

    def __init__(self, config: TimeSformerConfig, step: str, with_cls: bool):
        super().__init__()
        self.attention = TimeSformerSelfAttention(config, step, with_cls)
        self.output = TimeSformerDense(config, config.hidden_size, config.hidden_size)

    def forward(
        self,
        tokens: torch.Tensor,
        grid: Grid,
        with_weights: bool = False,
        sdpa: Sdpa = Sdpa.CALLED,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Patches `(b, n, d)`, in a last step CLS before them `(b, 1 + n, d)` -> their updates,
        and the weights (eager) in between."""
        context, weights = self.attention(tokens, grid, with_weights, sdpa)
        return self.output(context), weights


class TimeSformerLayer(GradientCheckpointingLayer):
    """A block: the scheme's attention steps one after the other, then the MLP."""

    def __init__(self, config: TimeSformerConfig, layer_index: int):
        super().__init__()
        *self.earlier_steps, self.last_step = SCHEMES[config.attention_type]
        size, eps = config.hidden_size, config.layer_norm_eps
        for step in self.earlier_steps:
            self.add_module(f"{step}_layernorm", nn.LayerNorm(size, eps=eps))
            self.add_module(f"{step}_attention", TimeSformerAttention(config, step, with_cls=False))
            extra: Any = nn.Linear(size, size)
            # for `_init_weights`; a class of its own would hide it from tools by type
            extra.starts_at_zero = True
            self.add_module(f"{step}_dense", extra)
        self.layernorm_before = nn.LayerNorm(size, eps=eps)
        self.attention = TimeSformerAttention(config, self.last_step, with_cls=True)
        self.layernorm_after = nn.LayerNorm(size, eps=eps)
        self.intermediate = TimeSformerDense(
            config, size, config.intermediate_size, config.hidden_act
        )
        self.output = TimeSformerDense(config, config.intermediate_size, size)
        self.drop_path = TimeSformerDropPath(
            config.drop_path_rate * layer_index / max(1, config.num_hidden_layers - 1)
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        grid: Grid,
        way: Way = PLAIN,
        cls_only: bool = False,
        with_weights: bool = False,
    ) -> torch.Tensor:
        """`(b, 1 + h*w*t, d)` -> the same; where `cls_only`, CLS alone `(b, 1, d)`, if `way` has
        that.

        A `way` that works in place overwrites `hidden_states`.
        """
        if way.in_place:
            return run_block_in_place(self, hidden_states, grid, cls_only)
        if way not in BY_MODULE:
            return run_block(self, hidden_states, grid, way, cls_only)
        hidden_states = self._attend_early(hidden_states, grid, way, with_weights)
        update, _ = self.attention(
            self.layernorm_before(hidden_states), grid, with_weights=with_weights, sdpa=way.sdpa
        )
        hidden_states = hidden_states + self.drop_path(update)
        update = self.output(self.intermediate(self.layernorm_after(hidden_states)))
        return hidden_states + self.drop_path(update)

    def _attend_early(
        self, hidden_states: torch.Tensor, grid: Grid, way: Way, with_weights: bool
    ) -> torch.Tensor:
        """The steps before the last, of patches only, each through one more linear layer: `(b, 1 +
        n, d)` -> the same."""
        if not self.earlier_steps:
            return hidden_states
        cls, patches = hidden_states.split((1, hidden_states.shape[1] - 1), dim=1)
        for step in self.earlier_steps:
            layernorm, attention, dense = self.early_modules(step)
            update, _ = attention(
                layernorm(patches), grid, with_weights=with_weights, sdpa=way.sdpa
            )
            patches = patches + self.drop_path(call(dense, update))
        return torch.cat((cls, patches), dim=1)

    def early_modules(self, step: str) -> tuple[nn.LayerNorm, TimeSformerAttention, nn.Linear]:
        """The LayerNorm, the attention and the extra linear layer of a step before the last."""
        return tuple(
            getattr(self, f"{step}_{name}") for name in ("layernorm", "attention", "dense")
        )


class TimeSformerEncoder(nn.Module):
    """The blocks one after the other."""

    def __init__(self, config: TimeSformerConfig):
        super().__init__()
        self.layer = nn.ModuleList(
            [TimeSformerLayer(config, index) for index in range(config.num_hidden_layers)]
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        grid: Grid,
        way: Way = PLAIN,
        cls_only: bool = False,
        with_weights: bool = False,
    ) -> torch.Tensor:
        """As `TimeSformerLayer.forward`, `(b, 1 + h*w*t, d)` -> the same; only the last block can
        give CLS alone `(b, 1, d)`."""
        cls_only = cls_only and way.cls_alone
        last = len(self.layer) - 1
        for index, layer in enumerate(self.layer):
            hidden_states = layer(
                hidden_states, grid, way, cls_only and index == last, with_weights
            )
        return hidden_states
