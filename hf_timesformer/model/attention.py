"""Attention within the groups of one step, through transformers' `AttentionInterface`."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_functions import (
    Sdpa,
    eager_attention_forward,
    is_short_for_cpu,
    short_attention_forward,
)
from .configuration_timesformer import TimeSformerConfig
from .efficient_linear import call
from .masks import additive, blocks_mask, kept, window_mask
from .schemes import (
    STRIDES,
    Grid,
    Tile,
    group,
    is_known,
    key_mask,
    lengths,
    local_tiles,
    sides_of,
    ungroup,
)
from .upstream import is_exporting


# The kernels of GPUs take keys by tiles of 64 or 128, and fill a smaller group up to one. So groups
# of few keys go there together, as many as one tile holds.
PACKING_DEVICES = ("cuda",)
PACKED_SEQUENCE = 128
MOST_PACKED_KEYS = 32  # of a group: at least four share a tile

# A launch on a GPU has no more blocks than this along the axis that kernels number sequences by.
MOST_SEQUENCES = 65535


class TimeSformerSelfAttention(nn.Module):
    """Multi-head attention within the groups of one step; CLS is there in the last step of a
    scheme alone."""

    def __init__(self, config: TimeSformerConfig, step: str, with_cls: bool):
        super().__init__()
        self.config = config
        self.step = step
        self.with_cls = with_cls
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.dropout = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)

    def forward(
        self,
        tokens: torch.Tensor,
        grid: Grid,
        with_weights: bool = False,
        sdpa: Sdpa = Sdpa.CALLED,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What `tokens (b, n, d)` attend to, of the same shape, and the weights (eager); with CLS
        `(b, 1 + n, d)`.

        CLS joins every group, and what it gathers there is averaged over the groups. The weights
        of `local`, a matrix of all tokens by all tokens, are made only `with_weights`.
        """
        return self.attend(call(self.qkv, tokens), grid, with_weights, sdpa)

    def attend(
        self,
        qkv: torch.Tensor,
        grid: Grid,
        with_weights: bool = False,
        sdpa: Sdpa = Sdpa.CALLED,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """All of `forward` after the projection: queries, keys and values `(b, [1 +] n, 3d)` ->
        `(b, [1 +] n, d)`."""
        if self.step == "local":
            return self._attend_locally(qkv.unflatten(1, grid), with_weights, sdpa)
        stride = STRIDES[self.step](*grid)
        if not self.with_cls:
            context, _, weights = self.attend_in_groups(qkv.unflatten(1, grid), None, stride, sdpa)
            return context.flatten(1, 3), weights
        if math.prod(stride) == 1:  # one group: all tokens as they lie
            return self._attend(*self._heads(qkv), None, sdpa)
        cls, patches = qkv.split((1, qkv.shape[1] - 1), dim=1)
        context, cls_context, weights = self.attend_in_groups(
            patches.unflatten(1, grid), cls, stride, sdpa
        )
        assert cls_context is not None  # CLS was given
        return torch.cat((cls_context, context.flatten(1, 3)), dim=1), weights

    def attend_in_groups(
        self,
        qkv: torch.Tensor,
        cls_qkv: torch.Tensor | None,
        stride: Grid,
        sdpa: Sdpa = Sdpa.CALLED,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """`qkv (b, h, w, t, 3d)` of whole groups, a clip or part of one, and `cls_qkv (b, 1, 3d)`
        or None -> the context `(b, h, w, t, d)`, that of CLS `(b, 1, d)` or None, the weights
        `(b*g, heads, l, l)` or None."""
        grid = sides_of(qkv)
        if not is_known(grid[2], stride[2]):
            return self._attend_in_open_frames(qkv, cls_qkv, stride)
        tokens = group(qkv, stride, cls_qkv)  # (b, h, w, t, 3d) -> (b*g, l, 3d)
        context, weights = self.attend_groups(tokens, grid, stride, sdpa)
        if cls_qkv is None:
            return ungroup(context, stride, grid), None, weights
        cls, context = context.split((1, context.shape[1] - 1), dim=1)
        cls = cls.unflatten(0, (-1, math.prod(stride))).mean(dim=1)  # (b*g, 1, d) -> (b, 1, d)
        return ungroup(context, stride, grid), cls, weights

    def _attend_in_open_frames(
        self, qkv: torch.Tensor, cls_qkv: torch.Tensor | None, stride: Grid
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """As `attend_in_groups`, where an exported graph leaves the number of frames open.

        Whether a stride divides that number is not known, so neither is the length of a group. So
        all frames are grouped together, and a mask keeps those apart that the stride does. With a
        stride of 2 a group is, c for CLS, `c0 c1` and then for every place `t0 t1 t2 t3 ...`; c0
        and the even frames see each other, c1 and the odd ones do.
        """
        grid, step, device = sides_of(qkv), stride[2], qkv.device
        apart = (stride[0], stride[1], 1)
        residues = torch.arange(math.prod(lengths(grid, apart)), device=device) % grid[2] % step
        exists = key_mask(grid, apart, device)  # (g, l)
        if cls_qkv is not None:
            residues = torch.cat((torch.arange(step, device=device), residues))
            exists = None if exists is None else nn.functional.pad(exists, (step, 0), value=True)
            cls_qkv = cls_qkv.expand(-1, step, -1)
        tokens = group(qkv, apart, cls_qkv)  # (b, h, w, t, 3d) -> (b*g, [step +] l, 3d)
        sees = (residues[:, None] == residues)[None]  # (1, l, l)
        if exists is not None:
            sees = (sees & exists[:, None]).repeat(qkv.shape[0], 1, 1)  # (b*g, l, l)
        context, _ = self._attend(*self._heads(tokens), additive(sees, tokens.dtype)[:, None])
        if cls_qkv is None:
            return ungroup(context, apart, grid), None, None
        cls, context = context.split((step, context.shape[1] - step), dim=1)
        cls = cls.unflatten(0, (-1, math.prod(apart))).mean(dim=(1, 2))  # (b*g, step, d) -> (b, d)
        return ungroup(context, apart, grid), cls[:, None], None

    def attend_groups(
        self, qkv: torch.Tensor, grid: Grid, stride: Grid, sdpa: Sdpa = Sdpa.CALLED
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Groups side by side, `qkv (b*g, l, 3d)` as `group` lays a `grid` out -> their context
        `(b*g, l, d)`, and the weights `(b*g, heads, l, l)` or None."""
        mask = self._mask(grid, stride, qkv)
        if sdpa is Sdpa.BRIEF and mask is None and self._packs(qkv):
            return self._attend_packed(qkv), None
        return self._attend(*self._heads(qkv), mask, sdpa)

    def _packs(self, qkv: torch.Tensor) -> bool:
        """Whether groups `(n, l, 3d)` are so small, on such a device, that many go together."""
        return (
            self.config._attn_implementation == "sdpa"
            and qkv.device.type in PACKING_DEVICES
            and qkv.shape[1] <= MOST_PACKED_KEYS
        )

    def _attend_packed(self, qkv: torch.Tensor) -> torch.Tensor:
        """`(n, l, 3d) -> (n, l, d)`: several groups as one sequence, in which each sees itself.

        Groups lie one after the other, so a sequence of them is a view. With groups of l = 8, 16
        make a sequence of 128. Of n = 588 groups 36 sequences are full, and the last has 12; four
        groups of zeros fill it up, and what they attend to is dropped.

        Others in a sequence have the weight 0, and 0 * NaN is NaN: numbers that are not finite reach
        the groups beside them, at most one tile into the next clip.
        """
        count, length, width = qkv.shape
        together = PACKED_SEQUENCE // length
        missing = -count % together
        if missing:
            qkv = nn.functional.pad(qkv, (0, 0, 0, 0, 0, missing))
        mask = kept(blocks_mask, length, together, dtype=qkv.dtype, device=qkv.device)
        sequences = qkv.reshape(-1, together * length, width)
        context, _ = self._attend(*self._heads(sequences), mask)
        context = context.reshape(-1, length, context.shape[-1])
        return context[:count] if missing else context

    def _attend_locally(
        self, qkv: torch.Tensor, with_weights: bool, sdpa: Sdpa
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(b, h, w, t, 3d) -> (b, n, d)`, and the weights, put together, where asked for and
        given."""
        batch, width, grid = qkv.shape[0], qkv.shape[-1], sides_of(qkv)
        queries, keys_values = qkv.split((width // 3, width - width // 3), dim=-1)
        numbers = torch.arange(math.prod(grid), device=qkv.device).view(grid)
        all_weights: list[torch.Tensor] = []

        def query_of(columns: slice) -> torch.Tensor:
            """Queries `(b, h, columns, t, d)`."""
            return queries[:, :, columns]

        def keep_weights(tile: Tile, region: Tile, weights: torch.Tensor) -> None:
            """Enter a tile's weights `(b, heads, queries, keys)` among those of all
            `(b, heads, n, n)`."""
            if not all_weights:
                all_weights.append(
                    weights.new_zeros(batch, self.num_heads, numbers.numel(), numbers.numel())
                )
            all_weights[0][:, :, numbers[tile].flatten()[:, None], numbers[region].flatten()] = (
                weights
            )

        windows = self.attend_in_windows(
            query_of, keys_values, keep_weights if with_weights else None, sdpa
        )
        context = torch.cat([context for _, context in windows], dim=2)
        return context.flatten(1, 3), all_weights[0] if all_weights else None

    def attend_in_windows(
        self,
        query_of: Callable[[slice], torch.Tensor],
        keys_values: torch.Tensor,
        keep_weights: Callable[[Tile, Tile, torch.Tensor], None] | None = None,
        sdpa: Sdpa = Sdpa.CALLED,
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """`local` attention, a column of tiles after the other, of as many heads as the arguments
        hold.

        `query_of` gives the queries of some columns `(b, h, columns, t, heads*c)`; `keys_values`
        is `(b, h, w, t, 2*heads*c)`. Yields the columns and their context, as wide as the queries.
        `keep_weights` is shown each tile, the region of its keys and, from eager, its weights `(b,
        heads, queries, keys)`.
        """
        grid = sides_of(keys_values)
        keys_values = keys_values.unflatten(-1, (2, -1, self.head_dim))
        all_rows, all_columns = local_tiles(*grid)
        for columns, key_columns in all_columns:
            tiles = [((rows, columns), (key_rows, key_columns)) for rows, key_rows in all_rows]
            query = query_of(columns).unflatten(-1, (-1, self.head_dim))
            # The regions of the tiles overlap: copied once a column, they are views.
            strip = keys_values[:, :, key_columns].contiguous()
            yield columns, self._attend_in_column(query, strip, tiles, grid, keep_weights, sdpa)

    def _attend_in_column(
        self,
        query: torch.Tensor,
        keys_values: torch.Tensor,
        tiles: list[tuple[Tile, Tile]],
        grid: Grid,
        keep_weights: Callable[[Tile, Tile, torch.Tensor], None] | None,
        sdpa: Sdpa,
    ) -> torch.Tensor:
        """Queries `(b, h, columns, t, heads, c)`, keys and values `(b, h, key columns, t, 2,
        heads, c)` -> context."""
        contexts, mask, known = [], None, None
        for queries, keys in tiles:
            rows, key_rows = queries[0], keys[0]
            shape = (
                rows.stop - rows.start,
                rows.start - key_rows.start,
                key_rows.stop - key_rows.start,
            )
            if shape != known:  # tiles away from the borders see alike
                spans = tuple((span.start, span.stop) for span in (*queries, *keys))
                mask = kept(window_mask, spans, grid, dtype=query.dtype, device=query.device)
                known = shape
            tile = query[:, rows]
            key, value = keys_values[:, key_rows].flatten(1, 3).permute(2, 0, 3, 1, 4)
            tokens = tile.flatten(1, 3).transpose(1, 2)
            context, weights = self._attend(tokens, key, value, mask, sdpa)
            contexts.append(context.unflatten(1, tile.shape[1:4]))
            if keep_weights is not None and weights is not None:
                keep_weights(queries, keys, weights)
        return torch.cat(contexts, dim=1)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        sdpa: Sdpa = Sdpa.CALLED,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(n, heads, l, c)` each -> context `(n, l, d)` and the weights where the interface has
        them."""
        if self._is_too_much_for_a_launch(query):
            return self._attend_in_launches(query, key, value, mask, sdpa)
        context, weights = self._interface(mask, key, sdpa)(
            self,
            query,
            key,
            value,
            mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
        )
        # flex attention gives its log-sum-exp instead
        is_matrix = weights is not None and weights.ndim == 4
        return context.flatten(2), weights if is_matrix else None

    def _is_too_much_for_a_launch(self, query: torch.Tensor) -> bool:
        """Whether `(n, heads, l, c)` are more sequences than one launch of a kernel takes."""
        # an exported graph must not depend on how many there are
        return (
            query.device.type in PACKING_DEVICES
            and not is_exporting()
            and query.shape[0] > MOST_SEQUENCES
        )

    def _attend_in_launches(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        sdpa: Sdpa,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `_attend`, so many sequences after the other as a launch takes."""
        contexts, all_weights = [], []
        for start in range(0, query.shape[0], MOST_SEQUENCES):
            some = slice(start, start + MOST_SEQUENCES)
            part = mask if mask is None or mask.shape[0] == 1 else mask[some]
            context, weights = self._attend(query[some], key[some], value[some], part, sdpa)
            contexts.append(context)
            all_weights += [] if weights is None else [weights]
        return torch.cat(contexts), torch.cat(all_weights) if all_weights else None

    def _heads(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`(n, l, 3d)` -> query, key and value `(n, heads, l, c)`, views."""
        tokens = tokens.unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = (part.transpose(1, 2) for part in tokens.unbind(2))
        return query, key, value

    def _interface(self, mask: torch.Tensor | None, key: torch.Tensor, sdpa: Sdpa) -> Callable:
        """The attention function that the config names, for keys `(n, heads, l, c)`; flash and flex
        take no masks `(b*g, 1, 1, l)` or `(1, 1, queries*t, keys*t)`: there sdpa."""
        name = self.config._attn_implementation
        if mask is not None and name is not None and ("flash" in name or "flex" in name):
            name = "sdpa"
        if name == "sdpa" and sdpa is Sdpa.WRITTEN_OUT:
            return eager_attention_forward
        if name == "sdpa" and sdpa is Sdpa.BRIEF and is_short_for_cpu(key):
            return short_attention_forward
        return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)

    def _mask(self, grid: Grid, stride: Grid, tokens: torch.Tensor) -> torch.Tensor | None:
        """Additive mask `(b*g, 1, 1, l)` that hides the tokens that only fill up uneven groups."""
        exists = key_mask(grid, stride, tokens.device)
        if exists is None:
            return None
        if self.with_cls:
            exists = nn.functional.pad(exists, (1, 0), value=True)  # CLS is there in every group
        batch = tokens.shape[0] // math.prod(stride)
        return additive(exists, tokens.dtype).repeat(batch, 1)[:, None, None]  # (g, l) a clip
