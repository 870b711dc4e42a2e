"""A block in inference: in place, on part of the tokens at a time, so wide intermediates never
exist for all tokens.

What it gives is what `TimeSformerLayer.forward` gives, in a fraction of the memory: beside the
tokens themselves, only the context of `local`, or the queries, keys and values of `joint`, exist
for all tokens of a clip.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from .attention import TimeSformerSelfAttention
from .attention_functions import Sdpa
from .efficient_attention import (
    KEY_VALUE,
    QUERY,
    attend,
    attend_groups,
    early_projection,
    is_plain,
    project,
    projection_of,
)
from .efficient_training import (
    LARGE_GROUPS,
    Block,
    attend_with_cls,
    feed_forward,
    finish_cls,
)
from .schemes import STRIDES, Grid, group, sides_of, ungroup


# Tokens taken at a time: few enough that what they are widened to stays in a CPU's cache; large on
# a GPU, to keep it busy.
CPU_ROWS = 1024
# oneDNN reorders the weights of every product in bf16, whatever the number of tokens. Milliseconds
# of 4 blocks of the base network, batch 1 and 4, with 1,024 and 8,192 tokens a part, 2 threads: AMD
# Zen 4 402 -> 386 and 1,504 -> 1,436. Of an Intel Xeon with AMX, 12 blocks, batch 4: 3,534 ->
# 2,614.
CPU_LOW_PRECISION_ROWS = 8192
CPU_AUTOCAST_ROWS = 2048  # autocast converts weights that do not learn for each part anew
DEVICE_ROWS = 65536
CPU_HEADS = 4  # of `local` at a time


def run_block_in_place(
    layer: Block, hidden_states: torch.Tensor, grid: Grid, cls_only: bool
) -> torch.Tensor:
    """`(b, 1 + n, d)`, contiguous, which it overwrites -> the same, or `(b, 1, d)` where only CLS
    is asked for."""
    rows = _rows_at_a_time(hidden_states.device.type, hidden_states.dtype)
    cls = hidden_states[:, :1]  # views: (b, 1, d)
    patches = hidden_states[:, 1:].unflatten(1, grid)  # (b, h, w, t, d)
    for step in layer.earlier_steps:
        attend = _attend_in_windows if step == "local" else _attend_in_groups
        attend(layer, step, patches, rows)
    if cls_only:
        return finish_cls(layer, hidden_states[:, 1:], cls, grid)
    if math.prod(STRIDES[layer.last_step](*grid)) == 1:
        _attend_all(layer, hidden_states, grid, rows)
    else:
        _attend_with_cls(layer, patches, cls, rows)
    for part in hidden_states.flatten(0, 1).split(rows):  # (rows, d)
        part += feed_forward(layer, part)
    return hidden_states


def _rows_at_a_time(device: str, dtype: torch.dtype) -> int:
    if device != "cpu":
        return DEVICE_ROWS
    if dtype in (torch.bfloat16, torch.float16):
        return CPU_LOW_PRECISION_ROWS
    return CPU_AUTOCAST_ROWS if torch.is_autocast_enabled(device) else CPU_ROWS


def _early_parts(
    layer: Block, step: str, patches: torch.Tensor
) -> tuple[nn.LayerNorm, TimeSformerSelfAttention, Callable[[torch.Tensor], torch.Tensor]]:
    """What a step before the last does in turn to `patches (b, h, w, t, d)`: LayerNorm, attention,
    projection `(..., d) -> (..., d)`."""
    layernorm, attention, extra = layer.early_modules(step)
    tokens = math.prod(patches.shape[1:4])
    return (
        layernorm,
        attention.attention,
        early_projection(attention.output.dense, extra, tokens, fuses=True),
    )


def _attend_in_groups(layer: Block, step: str, patches: torch.Tensor, rows: int) -> None:
    """A step before the last, but `local`, of `patches (b, h, w, t, d)`."""
    layernorm, attention, to_update = _early_parts(layer, step, patches)
    for _, part, stride in whole_groups(patches, step, rows):
        # Tokens are grouped before anything is done to them: what is copied is d wide, not 3d.
        tokens = group(part, stride)  # (b, h, w, t, d) -> (b*g, l, d)
        context = attend_groups(attention, layernorm(tokens), sides_of(part), stride)
        part += ungroup(to_update(context), stride, sides_of(part))


def _attend_in_windows(layer: Block, step: str, patches: torch.Tensor, rows: int) -> None:
    """`local` for `patches (b, h, w, t, d)`, some heads after the other, so that keys and values
    of all heads never exist at once."""
    layernorm, attention, to_update = _early_parts(layer, step, patches)
    heads = CPU_HEADS if patches.device.type == "cpu" else attention.num_heads
    for clips in patches.split(max(1, rows // math.prod(patches.shape[1:4]))):
        if is_plain(attention.qkv):
            context = _gather_by_heads(attention, layernorm, clips, heads, rows)
        else:
            tokens = layernorm(clips).flatten(1, 3)
            context = attend(attention, tokens, sides_of(clips)).view_as(clips)
        for part, gathered in zip(_strips(clips, rows), _strips(context, rows)):
            part += to_update(gathered)


def _gather_by_heads(
    attention: TimeSformerSelfAttention,
    layernorm: nn.LayerNorm,
    clips: torch.Tensor,
    heads: int,
    rows: int,
) -> torch.Tensor:
    """What `local` gathers for `clips (b, h, w, t, d)`, of the same shape, `heads` after `heads`."""
    context = torch.empty_like(clips, memory_format=torch.contiguous_format)
    context = context.unflatten(-1, (attention.num_heads, -1))  # (b, h, w, t, heads, c)
    for first in range(0, attention.num_heads, heads):
        some = slice(first, first + heads)
        for columns, part in _windows_of(attention, layernorm, clips, some, rows):
            context[:, :, columns, :, some] = part.unflatten(-1, (-1, attention.head_dim))
    return context.flatten(-2)


def _windows_of(
    attention: TimeSformerSelfAttention,
    layernorm: nn.LayerNorm,
    clips: torch.Tensor,
    heads: slice,
    rows: int,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """A column of tiles after the other and its context of some heads, `(b, h, columns, t,
    heads*c)`."""
    to_query = projection_of(attention, QUERY, heads)
    to_keys_values = projection_of(attention, KEY_VALUE, heads)
    keys_values = torch.cat(
        [to_keys_values(layernorm(part)) for part in _strips(clips, rows)], dim=1
    )
    return attention.attend_in_windows(
        lambda columns: to_query(layernorm(clips[:, :, columns])), keys_values
    )


def _strips(clips: torch.Tensor, rows: int) -> tuple[torch.Tensor, ...]:
    """Views of `(b, h, w, t, ...)` cut along its height, about `rows` tokens each."""
    return clips.split(max(1, rows // math.prod(clips.shape[2:4])), dim=1)


def _attend_all(layer: Block, hidden_states: torch.Tensor, grid: Grid, rows: int) -> None:
    """A last step of one group a clip, of `hidden_states (b, 1 + n, d)`."""
    output = layer.attention.output.dense
    for clips in hidden_states.split(max(1, rows // hidden_states.shape[1])):
        context = attend(layer.attention.attention, layer.layernorm_before(clips), grid)
        for part, gathered in zip(
            clips.flatten(0, 1).split(rows), context.flatten(0, 1).split(rows)
        ):
            part += project(output, gathered)


def _attend_with_cls(layer: Block, patches: torch.Tensor, cls: torch.Tensor, rows: int) -> None:
    """A last step of several groups a clip: `patches (b, h, w, t, d)`, `cls (b, 1, d)`.

    The update of CLS is the mean over the groups: each part adds its share.
    """
    large = layer.last_step in LARGE_GROUPS
    cls_qkv = None if large else _qkv_of(layer, cls)
    total = torch.zeros_like(cls)
    groups = math.prod(STRIDES[layer.last_step](*patches.shape[1:4]))
    for clips, part, stride in whole_groups(patches, layer.last_step, rows):
        if cls_qkv is None:
            update, cls_update = attend_with_cls(layer, part, cls[clips], stride)
        else:
            update, cls_update = _update_small_groups(layer, part, cls_qkv[clips], stride)
        part += update
        total[clips] += cls_update * (math.prod(stride) / groups)
    cls += total


def _update_small_groups(
    layer: Block, patches: torch.Tensor, cls_qkv: torch.Tensor, stride: Grid
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `attend_with_cls`, given the queries, keys and values of CLS `(b, 1, 3d)`."""
    attention, output = layer.attention.attention, layer.attention.output.dense
    qkv = _qkv_of(layer, patches)
    context, gathered, _ = attention.attend_in_groups(qkv, cls_qkv, stride, Sdpa.BRIEF)
    assert gathered is not None  # CLS was given
    return project(output, context), project(output, gathered)


def _qkv_of(layer: Block, tokens: torch.Tensor) -> torch.Tensor:
    """`(..., d) -> (..., 3d)`, of the last step."""
    return project(layer.attention.attention.qkv, layer.layernorm_before(tokens))


def whole_groups(
    patches: torch.Tensor, step: str, rows: int
) -> Iterator[tuple[slice, torch.Tensor, Grid]]:
    """Views of `patches (b, h, w, t, d)` that hold whole groups, about `rows` tokens each where
    groups are so small.

    Yields the clips, the view `(clips, h', w', t', d)`, and the stride that makes its groups.
    """
    grid = sides_of(patches)
    count = max(1, rows // math.prod(grid))
    for start in range(0, patches.shape[0], count):
        clips = slice(start, start + count)
        for (rows_of, columns, frames), stride in _places(grid, step, rows):
            yield clips, patches[clips, rows_of, columns, frames], stride


def _places(grid: Grid, step: str, rows: int) -> Iterator[tuple[tuple[slice, slice, slice], Grid]]:
    """Cut one clip's grid into places that hold whole groups of `step`, each with the stride of
    its groups.

    Take a grid of h = 2, w = 3, t = 4, so 24 tokens, and `rows = 8`:

    * `"space"` has the stride (1, 1, 4): a group is a frame, of 6 tokens. The last axis keeps the
      groups apart, so the grid is cut along it, a frame at a time (two frames are 12 tokens, more
      than 8). Yielded are the frames 0:1, 1:2, 2:3, 3:4 of all rows and columns, each with the
      stride (1, 1, 1): a place is one group.
    * `"temporal"` has the stride (2, 3, 1): a group is one (row, column), of 4 tokens. The first
      axis that keeps groups apart is cut: row 0:1, then row 1:2, of 12 tokens each, which is as
      small as cutting that axis gets; the stride in each is (1, 3, 1), three groups.
    * `"global"` has the stride (2, 2, 2): no slice of an axis holds whole groups, but every second
      token of each axis does. Yielded are 8 places such as rows 0::2, columns 1::2, frames 0::2,
      of stride (1, 1, 1).
    * `"joint"` is one group: all of it, of stride (1, 1, 1), however few the rows are.
    """
    stride = STRIDES[step](*grid)
    whole = (slice(None), slice(None), slice(None))
    # axes whose places are in separate groups
    apart = [axis for axis in range(3) if 1 < stride[axis] == grid[axis]]
    if math.prod(grid) <= rows or not (apart or step == "global"):
        yield whole, stride
        return
    if step == "global":
        for residues in itertools.product(*map(range, stride)):
            h, w, t = (slice(first, None, every) for first, every in zip(residues, stride))
            yield (h, w, t), (1, 1, 1)
        return
    axis = apart[0]
    side = grid[axis]
    tokens_of_one = math.prod(grid) // side
    count = max(1, rows // tokens_of_one)
    for start in range(0, side, count):
        length = min(count, side - start)
        yield _replace(whole, axis, slice(start, start + length)), _replace(stride, axis, length)


def _replace(values: Sequence, index: int, value: object) -> tuple:
    return (*values[:index], value, *values[index + 1 :])
