"""Attention within the groups of one step, through transformers' `AttentionInterface`."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_timesformer import TimeSformerConfig
from .efficient_linear import Linear, linear
from .hooks import is_plain_linear
from .schemes import STRIDES, Grid, Tile, group, key_mask, local_mask, local_tiles, ungroup


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
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)

    def forward(
        self, patches: torch.Tensor, cls: torch.Tensor | None = None, with_weights: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """`patches (b, h, w, t, d)`, `cls (b, 1, d)` -> the same of what they attended to, and the weights (eager).

        CLS joins every group, and what it gathers there is averaged over the groups. The weights of `local`, a matrix
        of all tokens by all tokens, are made only `with_weights`.
        """
        if self.step == "local":
            return self._attend_locally(self.qkv(patches), with_weights)
        stride = STRIDES[self.step](*patches.shape[1:4])
        return self.attend_in_groups(patches, None if cls is None else self.qkv(cls), stride)

    def attend_in_groups(
        self, patches: torch.Tensor, cls_qkv: torch.Tensor | None, stride: Grid
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """`forward` for `patches` that may be part of a clip, if only whole groups, with `cls_qkv (b, 1, 3d)`."""
        batch, *grid, _ = patches.shape
        tokens = group(self.qkv(patches), stride, cls_qkv)  # (b, h, w, t, 3d) -> (b*g, l, 3d)
        mask = self._mask(grid, stride, tokens)
        if cls_qkv is None:
            context, weights = self._attend(*self._heads(tokens), mask)
            return ungroup(context, stride, grid), None, weights

        if mask is not None:
            mask = nn.functional.pad(mask, (1, 0))  # CLS is there in every group
        context, weights = self._attend(*self._heads(tokens), mask)
        cls, context = context.split((1, context.shape[1] - 1), dim=1)
        cls = cls.unflatten(0, (batch, -1)).mean(dim=1)  # (b*g, 1, d) -> (b, 1, d)
        return ungroup(context, stride, grid), cls, weights

    def attend_all(self, tokens: torch.Tensor) -> torch.Tensor:
        """Every token to every token: `(n, l, d) -> (n, l, d)`, the case of one group with CLS among the tokens."""
        return self._attend(*self._heads(self.qkv(tokens)), None)[0]

    def projection_of(self, parts: slice, heads: slice) -> Callable[[torch.Tensor], torch.Tensor]:
        """The map `(..., d) -> (..., parts*heads*c)` to some of query, key and value (0, 1, 2), of some heads."""

        def pick(values: torch.Tensor) -> torch.Tensor:
            return values.unflatten(0, (3, self.num_heads, self.head_dim))[parts, heads].flatten(0, 2)

        if is_plain_linear(self.qkv):
            weight, bias = pick(self.qkv.weight), None if self.qkv.bias is None else pick(self.qkv.bias)
            return lambda tokens: linear(tokens, weight, bias)
        return lambda tokens: pick(self.qkv(tokens).movedim(-1, 0)).movedim(0, -1)

    def attend_in_windows(
        self,
        query_of: Callable[[slice], torch.Tensor],
        keys_values: torch.Tensor,
        keep_weights: Callable[[Tile, Tile, torch.Tensor], None] | None = None,
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """`local` attention, a column of tiles after the other, of as many heads as the arguments hold.

        `query_of` gives the queries of some columns `(b, h, columns, t, heads*c)`; `keys_values` is
        `(b, h, w, t, 2*heads*c)`. Yields the columns and their context, as wide as the queries. `keep_weights` is
        shown each tile, the region of its keys and, from eager, its weights `(b, heads, queries, keys)`.
        """
        grid = keys_values.shape[1:4]
        keys_values = keys_values.unflatten(-1, (2, -1, self.head_dim))
        all_rows, all_columns = local_tiles(*grid)
        for columns, key_columns in all_columns:
            tiles = [((rows, columns), (key_rows, key_columns)) for rows, key_rows in all_rows]
            query = query_of(columns).unflatten(-1, (-1, self.head_dim))
            # The regions of the tiles overlap: copied once a column, they are views.
            strip = keys_values[:, :, key_columns].contiguous()
            yield columns, self._attend_in_column(query, strip, tiles, grid, keep_weights)

    def _attend_in_column(
        self,
        query: torch.Tensor,
        keys_values: torch.Tensor,
        tiles: list[tuple[Tile, Tile]],
        grid: Grid,
        keep_weights: Callable[[Tile, Tile, torch.Tensor], None] | None,
    ) -> torch.Tensor:
        """Queries `(b, h, columns, t, heads, c)`, keys and values `(b, h, key columns, t, 2, heads, c)` -> context."""
        contexts, mask, known = [], None, None
        for queries, keys in tiles:
            rows, key_rows = queries[0], keys[0]
            shape = (rows.stop - rows.start, rows.start - key_rows.start, key_rows.stop - key_rows.start)
            if shape != known:  # tiles away from the borders see alike
                mask, known = self._window_mask(queries, keys, grid, query), shape
            tile = query[:, rows]
            key, value = keys_values[:, key_rows].flatten(1, 3).permute(2, 0, 3, 1, 4)
            context, weights = self._attend(tile.flatten(1, 3).transpose(1, 2), key, value, mask)
            contexts.append(context.unflatten(1, tile.shape[1:4]))
            if keep_weights is not None and weights is not None:
                keep_weights(queries, keys, weights)
        return torch.cat(contexts, dim=1)

    def _window_mask(self, queries: Tile, keys: Tile, grid: Grid, like: torch.Tensor) -> torch.Tensor:
        """Additive mask `(1, 1, queries*t, keys*t)`, made where `like` lies."""
        mask = _additive(local_mask(queries, keys, *grid[:2], like.device), like.dtype)[:, None, :, None]
        return mask.expand(-1, grid[2], -1, grid[2]).flatten(2).flatten(0, 1)[None, None]

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
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(n, heads, l, c)` each -> context `(n, l, d)` and the weights where the interface has them."""
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

    def _heads(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """`(n, l, 3d)` -> query, key and value `(n, heads, l, c)`, views."""
        tokens = tokens.unflatten(-1, (3, self.num_heads, self.head_dim))
        return [part.transpose(1, 2) for part in tokens.unbind(2)]

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

    def _attend_locally(self, qkv: torch.Tensor, with_weights: bool) -> tuple[torch.Tensor, None, torch.Tensor | None]:
        """`(b, h, w, t, 3d) -> (b, h, w, t, d)`, and the weights, put together, where asked for and given."""
        batch, *grid, width = qkv.shape
        queries, keys_values = qkv.split((width // 3, width - width // 3), dim=-1)
        numbers, all_weights = torch.arange(math.prod(grid), device=qkv.device).view(grid), []

        def query_of(columns: slice) -> torch.Tensor:
            return queries[:, :, columns]

        def keep_weights(tile: Tile, region: Tile, weights: torch.Tensor) -> None:
            if not all_weights:
                all_weights.append(weights.new_zeros(batch, self.num_heads, numbers.numel(), numbers.numel()))
            all_weights[0][:, :, numbers[tile].flatten()[:, None], numbers[region].flatten()] = weights

        windows = self.attend_in_windows(query_of, keys_values, keep_weights if with_weights else None)
        context = torch.cat([context for _, context in windows], dim=2)
        return context, None, all_weights[0] if all_weights else None


def _additive(exists: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where `exists`, the dtype's smallest number elsewhere."""
    return torch.zeros_like(exists, dtype=dtype).masked_fill(~exists, torch.finfo(dtype).min)
