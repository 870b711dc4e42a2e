"""What each step lets a patch see, and what the network looked at: attention rollout over space and
time.

Rollout (Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020) reads every
attention step as a stochastic matrix `r*I + (1 - r)*A`, the identity standing for the residual
connection, and multiplies them from the last to the first. In a TimeSformer a block is a product of
several such matrices, one a step. `A` of a step before the last is block-diagonal over its groups
and leaves CLS alone; in the last step CLS joins every group, and its row is the mean of the groups'
rows, because its outputs are averaged over them.

No `(N, N)` matrix is built: a row vector passes through the steps, group by group.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch

from ..model.blocks import TimeSformerAttention
from ..model.configuration_timesformer import TimeSformerConfig, pair
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..model.schemes import SCHEMES, STRIDES, Grid, group, lengths, local_mask, local_tiles, ungroup


MAX_WEIGHTS = 2**31  # numbers in one step's attention weights, all heads

Layer = dict[str, torch.Tensor]  # step -> weights (batch*groups, l, l), (batch, n, n) for `local`


@dataclass
class Recorded:
    """One forward pass: `logits` `(batch, labels)`, the `scheme`, the `grid` of patches, and of each
    of the `layers` the attention weights by step.
    """

    logits: torch.Tensor
    grid: Grid
    scheme: str
    layers: list[Layer]


def visible_patches(step: str, grid: Grid, query: Sequence[int]) -> torch.Tensor:
    """Which patches the query patch `(row, column, frame)` may attend to in `step`: bool
    `(h, w, t)`.

    Asked of the functions that the network itself groups with. Raises ValueError for a query
    outside of the grid.
    """
    check_query(grid, query)
    row, column, _ = query
    if step == "local":
        seen = torch.zeros(grid, dtype=torch.bool)
        for (rows, key_rows), (columns, key_columns) in product(*local_tiles(*grid)):
            if rows.start <= row < rows.stop and columns.start <= column < columns.stop:
                index = (row - rows.start) * (columns.stop - columns.start) + column - columns.start
                near = local_mask((rows, columns), (key_rows, key_columns), *grid[:2])[index]
                region = seen[key_rows, key_columns]
                region[:] = near.view(region.shape[:2])[..., None]
        return seen
    stride = STRIDES[step](*grid)
    tokens = torch.zeros((1, *grid, 1))
    h, w, t = query
    tokens[0, h, w, t] = 1
    grouped = group(tokens, stride)  # (groups, l, 1)
    joined = grouped.amax(dim=1, keepdim=True).expand_as(grouped)
    return ungroup(joined, stride, grid)[0, ..., 0].bool()


def check_query(grid: Grid, query: Sequence[int]) -> None:
    """Raise ValueError unless `query` is a `(row, column, frame)` of `grid`."""
    if len(query) != 3 or any(not 0 <= place < side for place, side in zip(query, grid)):
        raise ValueError(
            f"query patch {tuple(query)} is not in the grid: (row, column, frame) must lie below {tuple(grid)}"
        )


@torch.no_grad()
def record_attention(
    model: TimeSformerForVideoClassification, pixel_values: torch.Tensor, head: int | None = None
) -> Recorded:
    """Run the model with eager attention and keep each step's weights: the mean over heads, or
    those of one.

    `pixel_values` float `(batch, frames, channels, height, width)`. Of each step that has run, no
    more is kept than one head's worth of weights; in `local` and joint steps that is `(n, n)` for
    the clip's `n` patches (10 MB a layer at 8 frames of 224x224). Raises ValueError for several
    views, for a head that there is not, and for clips so large that one step's weights would not
    fit in 8 GiB.
    """
    config = model.config
    if pixel_values.ndim != 5:
        raise ValueError(
            f"attention is recorded for one view, (batch, frames, channels, height, width), got {pixel_values.ndim} "
            "axes: set num_crops=1 and num_clips=1"
        )
    if head is not None and not 0 <= head < config.num_attention_heads:
        raise ValueError(
            f"head {head} is not one of the model's 0 to {config.num_attention_heads - 1}"
        )
    rows, columns = (
        pixels // patch for pixels, patch in zip(pixel_values.shape[-2:], pair(config.patch_size))
    )
    grid = (rows, columns, pixel_values.shape[1])
    _check_size(config, grid, pixel_values.shape[0])
    layers: list[Layer] = [{} for _ in range(config.num_hidden_layers)]

    def keep(
        layer: Layer, step: str, module: TimeSformerAttention, args: tuple, output: tuple
    ) -> None:
        layer[step] = output[1].mean(dim=1) if head is None else output[1][:, head].clone()

    handles = []
    for layer, block in zip(layers, model.timesformer.encoder.layer):
        for module in block.children():
            if isinstance(module, TimeSformerAttention):
                handles.append(module.register_forward_pre_hook(_ask_for_weights, with_kwargs=True))
                handles.append(
                    module.register_forward_hook(partial(keep, layer, module.attention.step))
                )
    implementation, was_training = config._attn_implementation, model.training
    model.set_attn_implementation("eager")
    model.eval()
    try:
        hidden = model.timesformer(pixel_values).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(implementation or "eager")
        model.train(was_training)
    logits = model.classifier(hidden[:, 0])
    return Recorded(logits, grid, config.attention_type, layers)


def _ask_for_weights(module: TimeSformerAttention, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return args, kwargs | {"with_weights": True}


def _check_size(config: TimeSformerConfig, grid: Grid, batch: int) -> None:
    """Raise ValueError where the weights of one step would take more than 8 GiB in float32."""
    for step in SCHEMES[config.attention_type]:
        side = math.prod(grid if step == "local" else lengths(grid, STRIDES[step](*grid)))
        groups = 1 if step == "local" else math.prod(STRIDES[step](*grid))
        numbers = batch * config.num_attention_heads * groups * (side + 1) ** 2
        if numbers > MAX_WEIGHTS:
            raise ValueError(
                f"the attention weights of one {step!r} step on a grid of {grid} patches take "
                f"{4 * numbers / 2**30:.1f} GiB, more than {4 * MAX_WEIGHTS // 2**30}: show fewer frames or pixels"
            )


def step_rows(
    cls: torch.Tensor, patches: torch.Tensor, weights: torch.Tensor, step: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row vectors times the attention matrix of one step: `cls (b,)`, `patches (b, h, w, t)` -> the
    same.

    `weights` as recorded: with CLS as token 0 in the last step of a scheme, without it in the
    others.
    """
    batch, h, w, t = patches.shape
    grid = h, w, t
    if step == "local":
        mixed = patches.flatten(1)[:, None] @ weights  # (b, 1, n) @ (b, n, n)
        return cls, mixed.reshape(patches.shape)
    stride = STRIDES[step](*grid)
    rows = group(patches[..., None], stride)[..., 0]  # (b, h, w, t) -> (b*g, l)
    groups = rows.shape[0] // batch
    has_cls = weights.shape[-1] == rows.shape[-1] + 1
    # CLS' output is the mean of what it gathers in each group, so 1/g of its row enters each
    if has_cls:
        rows = torch.cat(((cls / groups).repeat_interleave(groups)[:, None], rows), dim=1)
    mixed = (rows[:, None] @ weights)[:, 0]  # (b*g, 1, l) @ (b*g, l, l)
    if has_cls:
        cls, mixed = mixed[:, 0].reshape(batch, groups).sum(dim=1), mixed[:, 1:]
    return cls, ungroup(mixed[..., None], stride, grid)[..., 0]


def rollout_rows(
    layers: Sequence[Layer],
    scheme: str,
    cls: torch.Tensor,
    patches: torch.Tensor,
    residual: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row vectors `cls (b,)`, `patches (b, h, w, t)` -> the same, through all steps of `layers`,
    last layer and last step first: where what they hold came from.
    """
    for layer in reversed(layers):
        for step in reversed(SCHEMES[scheme]):
            seen_cls, seen = step_rows(cls, patches, layer[step], step)
            cls = residual * cls + (1 - residual) * seen_cls
            patches = residual * patches + (1 - residual) * seen
    return cls, patches


def attention_rollout(
    recorded: Recorded,
    *,
    query: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    residual: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of each input token is in CLS' final state, or in that of one patch: attention
    rollout (Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers").

    Args:
        recorded: what `record_attention` gave.
        query: a patch `(row, column, frame)` in place of CLS.
        layers: numbers of the blocks that count; None is all.
        residual: weight of the skip connection, from 0 to 1; 0.5 in their paper.

    Returns:
        The share of CLS itself, `(batch,)`, and those of the patches, `(batch, h, w, t)`; they sum
        to one.

    Raises:
        ValueError: there is no such patch or layer.
    """
    grid, count = recorded.grid, len(recorded.layers)
    chosen = range(count) if layers is None else sorted(set(layers))
    if not chosen or any(not 0 <= layer < count for layer in chosen):
        raise ValueError(f"layers {list(chosen)} are not among the model's 0 to {count - 1}")
    batch = recorded.logits.shape[0]
    start_cls, start = recorded.logits.new_zeros(batch), recorded.logits.new_zeros(batch, *grid)
    if query is None:
        start_cls[:] = 1
    else:
        check_query(grid, query)
        h, w, t = query
        start[:, h, w, t] = 1
    weights = [recorded.layers[index] for index in chosen]
    if recorded.scheme != "space_only":
        return rollout_rows(weights, recorded.scheme, start_cls, start, residual)
    # Each frame ran alone with a CLS of its own, and the result is the mean over frames.
    frames = grid[2]
    frame_cls = (start_cls / frames).repeat_interleave(frames)
    # (b, h, w, t) -> (b*t, h, w, 1)
    frame_rows = start.permute(0, 3, 1, 2).flatten(0, 1)[..., None]
    cls, patches = rollout_rows(weights, recorded.scheme, frame_cls, frame_rows, residual)
    # (b*t, h, w, 1) -> (b, h, w, t)
    patches = patches[..., 0].unflatten(0, (batch, frames)).permute(0, 2, 3, 1)
    return cls.reshape(batch, frames).sum(dim=1), patches
