"""Attention within the groups of one step, through transformers' `AttentionInterface`."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_timesformer import TimeSformerConfig
from .fused_linear import is_plain_linear
from .schemes import STRIDES, Grid, group, key_mask, local_mask, local_tiles, ungroup


# Keys up to which attention written out beats SDPA on CPU (T+S 8x448: 19.7 against 33.5 ms; with 16 keys it loses).
SHORT_SEQUENCE = 8


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
    """Softmax attention written out: `(n, heads, l, c)` -> context `(n, l, heads, c)`, weights `(n, heads, l, l)`."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


def short_attention_forward(*args, **kwargs) -> tuple[torch.Tensor, None]:
    """What `sdpa` runs where there are few keys: the same, written out."""
    return eager_attention_forward(*args, **kwargs)[0], None


class TimeSformerSelfAttention(nn.Module):
    """Multi-head attention of patch tokens, and of CLS in the last step, within the step's groups."""

    def __init__(self, config: TimeSformerConfig, step: str):
        super().__init__()
        self.config = config
        self.step = step
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.dropout = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)

    def forward(
        self, patches: torch.Tensor, cls: torch.Tensor | None = None, with_weights: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """`patches (b, h, w, t, d)`, `cls (b, 1, d)` -> the same of what they attended to, and the weights (eager).

        CLS joins every group, and what it gathers there is averaged over the groups. The weights of `local`, a matrix
        of all tokens by all tokens, are made only `with_weights`.
        """
        batch, *grid, _ = patches.shape
        qkv = self.qkv(patches)
        if self.step == "local":
            context, weights = self._attend_locally(qkv, with_weights)
            return context, None, weights
        stride = STRIDES[self.step](*grid)
        tokens = group(qkv, stride)  # (b, h, w, t, 3d) -> (b*g, l, 3d)
        del qkv  # where the groups are a copy, two of these wide tensors at a time are enough
        mask = self._mask(grid, stride, tokens)
        if cls is None:
            context, weights = self._attend(tokens, mask)
            return ungroup(context, stride, grid), None, weights

        groups = tokens.shape[0] // batch
        cls_qkv = self.qkv(cls)[:, None].expand(-1, groups, -1, -1).flatten(0, 1)  # (b, 1, 3d) -> (b*g, 1, 3d)
        tokens = torch.cat((cls_qkv, tokens), dim=1)
        del cls_qkv
        if mask is not None:
            mask = nn.functional.pad(mask, (1, 0))  # CLS is there in every group
        context, weights = self._attend(tokens, mask)
        cls = context[:, 0].unflatten(0, (batch, groups)).mean(dim=1, keepdim=True)  # (b*g, d) -> (b, 1, d)
        return ungroup(context[:, 1:], stride, grid), cls, weights

    def attend_from_cls(self, patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
        """What CLS alone gathers: `(b, h, w, t, d)` and `(b, 1, d)` -> `(b, 1, d)`, as `forward` would give it.

        With a single query neither keys nor values are needed: `q . (W_k x) = (W_k' q) . x`, the keys' bias shifts all
        scores of a head alike, and the weighted mean of `W_v x` is `W_v` of the weighted mean of `x`.
        """
        if not is_plain_linear(self.qkv):
            return self(patches, cls)[1]
        batch, *grid, dim = patches.shape
        stride = STRIDES[self.step](*grid)
        w_query, w_key, w_value = self.qkv.weight.chunk(3)
        b_query, _, b_value = (None, None, None) if self.qkv.bias is None else self.qkv.bias.chunk(3)
        query = nn.functional.linear(cls[:, 0], w_query, b_query).unflatten(-1, (self.num_heads, self.head_dim))
        w_key = w_key.unflatten(0, (self.num_heads, self.head_dim))
        probe = torch.einsum("bhe,hed->bhd", query, w_key) * self.scaling  # (b, heads, d)

        scores = patches.flatten(1, 3) @ probe.transpose(1, 2)  # (b, n, heads)
        scores = group(scores.unflatten(1, grid), stride)  # (b*g, l, heads)
        mask = key_mask(grid, stride, scores.device)
        if mask is not None:
            scores = scores.masked_fill(~mask.repeat(batch, 1)[..., None], torch.finfo(scores.dtype).min)
        groups = scores.shape[0] // batch
        cls_scores = (cls @ probe.transpose(1, 2))[:, None].expand(-1, groups, -1, -1).flatten(0, 1)  # (b*g, 1, heads)
        weights = torch.cat((cls_scores, scores), dim=1).softmax(dim=1, dtype=torch.float32).to(patches.dtype)
        weights = nn.functional.dropout(weights, p=self.dropout, training=self.training)

        cls_weights = weights[:, 0].unflatten(0, (batch, groups)).sum(dim=1)[..., None]  # (b, heads, 1)
        patch_weights = ungroup(weights[:, 1:], stride, grid).flatten(1, 3)  # (b, n, heads)
        mixed = patch_weights.transpose(1, 2) @ patches.flatten(1, 3) + cls_weights * cls  # (b, heads, d)
        w_value = w_value.unflatten(0, (self.num_heads, self.head_dim))
        context = torch.einsum("bhd,hed->bhe", mixed, w_value)
        if b_value is not None:
            total = patch_weights.sum(dim=1)[..., None] + cls_weights  # groups, but for dropout
            context = context + total * b_value.unflatten(0, (self.num_heads, self.head_dim))
        return context.flatten(1)[:, None] / groups

    def _attend(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, keys: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`tokens (n, l, 3d)` of query, key, value -> context `(n, l, d)`; keys and values from `keys` where given."""
        query = self._heads(tokens)[0]
        _, key, value = self._heads(tokens if keys is None else keys)
        context, weights = self._interface(mask, key)(
            self,
            query,
            key,
            value,
            mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
        )
        is_matrix = weights is not None and weights.ndim == 4  # flex attention gives its log-sum-exp instead
        return context.flatten(2), weights if is_matrix else None

    def _heads(self, qkv: torch.Tensor) -> torch.Tensor:
        """`(n, l, 3d) -> (3, n, heads, l, c)`, a view."""
        return qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)

    def _interface(self, mask: torch.Tensor | None, key: torch.Tensor) -> Callable:
        """The attention function that the config names; flash and flex take no such masks: there sdpa."""
        name = self.config._attn_implementation
        if mask is not None and name is not None and ("flash" in name or "flex" in name):
            name = "sdpa"
        if name == "sdpa" and key.shape[2] <= SHORT_SEQUENCE and key.device.type == "cpu":
            return short_attention_forward
        return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)

    def _mask(self, grid: Grid, stride: Grid, tokens: torch.Tensor) -> torch.Tensor | None:
        """Additive mask `(b*g, 1, 1, l)` that hides the tokens that only fill up uneven groups."""
        exists = key_mask(grid, stride, tokens.device)
        if exists is None:
            return None
        mask = _additive(exists, tokens.dtype)
        return mask.repeat(tokens.shape[0] // mask.shape[0], 1)[:, None, None]

    def _attend_locally(self, qkv: torch.Tensor, with_weights: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of each tile of queries to its region of keys: `(b, h, w, t, 3d) -> (b, h, w, t, d)`.

        The weights, where asked for and given, are put together as `(b, heads, h*w*t, h*w*t)`.
        """
        batch, *grid, _ = qkv.shape
        context = qkv.new_empty(batch, *grid, self.num_heads * self.head_dim)
        numbers = torch.arange(grid[0] * grid[1] * grid[2], device=qkv.device).view(grid)
        all_weights = None
        for queries, keys in local_tiles(*grid[:2]):
            mask = _additive(local_mask(queries, keys, grid).to(qkv.device), qkv.dtype)[None, None]
            tile, region = qkv[:, queries[0], queries[1]], qkv[:, keys[0], keys[1]]  # (b, rows, columns, t, 3d)
            attended, weights = self._attend(tile.flatten(1, 3), mask, region.flatten(1, 3))
            context[:, queries[0], queries[1]] = attended.unflatten(1, tile.shape[1:4])
            if with_weights and weights is not None:
                if all_weights is None:
                    all_weights = qkv.new_zeros(batch, self.num_heads, numbers.numel(), numbers.numel())
                rows, columns = numbers[queries].flatten(), numbers[keys].flatten()
                all_weights[:, :, rows[:, None], columns] = weights
        return context, all_weights


def _additive(exists: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where `exists`, the dtype's smallest number elsewhere."""
    return torch.zeros_like(exists, dtype=dtype).masked_fill(~exists, torch.finfo(dtype).min)
