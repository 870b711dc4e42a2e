"""A block in inference: in place, and on part of the tokens at a time, so that nothing wide is ever whole.

What it gives is what `TimeSformerLayer.forward` gives with gradients on, in a fraction of the memory: beside the
tokens themselves only the context of `local`, or the queries, keys and values of `joint`, are whole.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from .schemes import STRIDES, Grid


# Tokens taken at a time: on a CPU what they are widened to stays in the cache; elsewhere large products pay.
CPU_ROWS = 1024
CPU_AUTOCAST_ROWS = 2048  # autocast converts weights that do not learn for each part anew
DEVICE_ROWS = 65536
CPU_HEADS = 4  # of `local` at a time

QUERY, KEY_VALUE = slice(0, 1), slice(1, 3)


def run_block(layer: nn.Module, hidden_states: torch.Tensor, grid: Grid, cls_only: bool) -> torch.Tensor:
    """`(b, 1 + h*w*t, d)`, contiguous, which it overwrites -> the same, or `(b, 1, d)` where only CLS is asked for."""
    rows = _rows_at_a_time(hidden_states.device.type)
    cls, patches = hidden_states[:, :1], hidden_states[:, 1:].unflatten(1, grid)  # views
    for step in layer.earlier_steps:
        attend = _attend_in_windows if step == "local" else _attend_in_groups
        attend(layer, step, patches, rows)
    if cls_only:
        return layer.finish_cls(patches, cls)
    if math.prod(STRIDES[layer.last_step](*grid)) == 1:
        _attend_all(layer, hidden_states, rows)
    else:
        _attend_with_cls(layer, patches, cls, rows)
    for part in hidden_states.flatten(0, 1).split(rows):
        part += layer.feed_forward(part)
    return hidden_states


def _rows_at_a_time(device: str) -> int:
    if device != "cpu":
        return DEVICE_ROWS
    return CPU_AUTOCAST_ROWS if torch.is_autocast_enabled(device) else CPU_ROWS


def _attend_in_groups(layer: nn.Module, step: str, patches: torch.Tensor, rows: int) -> None:
    """A step before the last, but `local`."""
    layernorm, attention, project = layer.early_parts(step, patches)
    for _, part, stride in whole_groups(patches, step, rows):
        context, _, _ = attention.attend_in_groups(layernorm(part), None, stride)
        part += project(context)


def _attend_in_windows(layer: nn.Module, step: str, patches: torch.Tensor, rows: int) -> None:
    """`local`, some heads after the other: no more of the keys and values than theirs is ever there."""
    layernorm, attention, project = layer.early_parts(step, patches)
    heads = CPU_HEADS if patches.device.type == "cpu" else attention.num_heads
    for clips in patches.split(max(1, rows // math.prod(patches.shape[1:4]))):
        context = torch.empty_like(clips, memory_format=torch.contiguous_format).unflatten(
            -1, (attention.num_heads, -1)
        )
        for first in range(0, attention.num_heads, heads):
            some = slice(first, first + heads)
            for columns, part in _windows_of(attention, layernorm, clips, some, rows):
                context[:, :, columns, :, some] = part.unflatten(-1, (-1, attention.head_dim))
        for part, gathered in zip(_strips(clips, rows), _strips(context.flatten(-2), rows)):
            part += project(gathered)


def _windows_of(
    attention: nn.Module, layernorm: nn.LayerNorm, clips: torch.Tensor, heads: slice, rows: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The context of some heads, a column of tiles after the other."""
    to_query, to_keys_values = attention.projection_of(QUERY, heads), attention.projection_of(KEY_VALUE, heads)
    keys_values = torch.cat([to_keys_values(layernorm(part)) for part in _strips(clips, rows)], dim=1)
    return attention.attend_in_windows(lambda columns: to_query(layernorm(clips[:, :, columns])), keys_values)


def _strips(clips: torch.Tensor, rows: int) -> tuple[torch.Tensor, ...]:
    """Views of `(b, h, w, t, ...)` cut along its height, about `rows` tokens each."""
    return clips.split(max(1, rows // math.prod(clips.shape[2:4])), dim=1)


def _attend_all(layer: nn.Module, hidden_states: torch.Tensor, rows: int) -> None:
    """A last step of one group a clip."""
    attention = layer.attention
    for clips in hidden_states.split(max(1, rows // hidden_states.shape[1])):
        context = attention.attention.attend_all(layer.layernorm_before(clips))
        for part, gathered in zip(clips.flatten(0, 1).split(rows), context.flatten(0, 1).split(rows)):
            part += attention.output(gathered)


def _attend_with_cls(layer: nn.Module, patches: torch.Tensor, cls: torch.Tensor, rows: int) -> None:
    """A last step of several groups a clip: what CLS gathers is averaged over them."""
    attention = layer.attention
    cls_qkv = attention.attention.qkv(layer.layernorm_before(cls))
    cls_context = torch.zeros_like(cls_qkv[..., : cls.shape[-1]])
    groups = math.prod(STRIDES[layer.last_step](*patches.shape[1:4]))
    for clips, part, stride in whole_groups(patches, layer.last_step, rows):
        context, gathered, _ = attention.attention.attend_in_groups(
            layer.layernorm_before(part), cls_qkv[clips], stride
        )
        part += attention.output(context)
        cls_context[clips] += gathered * (math.prod(stride) / groups)
    cls += attention.output(cls_context)


def whole_groups(patches: torch.Tensor, step: str, rows: int) -> Iterator[tuple[slice, torch.Tensor, Grid]]:
    """Views of `patches (b, h, w, t, d)` that hold whole groups, about `rows` tokens each where groups are so small.

    Yields the clips, the view `(clips, h', w', t', d)`, and the stride that makes its groups.
    """
    grid = patches.shape[1:4]
    count = max(1, rows // math.prod(grid))
    for start in range(0, patches.shape[0], count):
        clips = slice(start, start + count)
        for (rows_of, columns, frames), stride in _places(grid, step, rows):
            yield clips, patches[clips, rows_of, columns, frames], stride


def _places(grid: Grid, step: str, rows: int) -> Iterator[tuple[tuple[slice, slice, slice], Grid]]:
    stride, whole = STRIDES[step](*grid), [slice(None)] * 3
    apart = [axis for axis in range(3) if 1 < stride[axis] == grid[axis]]
    if math.prod(grid) <= rows or not (apart or step == "global"):
        yield tuple(whole), stride
    elif step == "global":
        for residues in itertools.product(*map(range, stride)):
            yield tuple(slice(first, None, every) for first, every in zip(residues, stride)), (1, 1, 1)
    else:
        axis, side = apart[0], grid[apart[0]]
        count = max(1, rows * side // math.prod(grid))
        for start in range(0, side, count):
            length = min(count, side - start)
            yield _replace(whole, axis, slice(start, start + length)), _replace(stride, axis, length)


def _replace(values: Sequence, index: int, value: object) -> tuple:
    return (*values[:index], value, *values[index + 1 :])
