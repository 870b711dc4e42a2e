"""A block in inference: in place, and on part of the tokens at a time, so that nothing wide is ever whole.

What it gives is what `TimeSformerLayer.forward` gives with gradients on, in a fraction of the memory: beside the
tokens themselves only the keys and values of `local`, or the queries, keys and values of `joint`, are whole.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from .schemes import STRIDES, Grid


# Tokens taken at a time: on a CPU what they are widened to stays in the cache; elsewhere large products pay.
CPU_ROWS = 512
DEVICE_ROWS = 65536
CPU_HEADS = 4  # of `local` at a time: what its tiles copy of keys and values is the largest tensor beside these

RECORDERS = "transformers.utils.output_capturing"  # where hooks that record outputs come from
QUERY, KEY_VALUE = slice(0, 1), slice(1, 3)


def run_block(layer: nn.Module, hidden_states: torch.Tensor, grid: Grid, cls_only: bool) -> torch.Tensor:
    """`(b, 1 + h*w*t, d)`, contiguous, which it overwrites -> the same, or `(b, 1, d)` where only CLS is asked for."""
    rows = CPU_ROWS if hidden_states.device.type == "cpu" else DEVICE_ROWS
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


def _attend_in_groups(layer: nn.Module, step: str, patches: torch.Tensor, rows: int) -> None:
    """A step before the last, but `local`."""
    layernorm, attention, project = layer.early_parts(step, patches)
    for _, part, stride in whole_groups(patches, step, rows):
        context, _, _ = attention.attend_in_groups(layernorm(part), None, stride)
        part += project(context)


def _attend_in_windows(layer: nn.Module, step: str, patches: torch.Tensor, rows: int) -> None:
    """`local`: keys and values first, then columns of tiles, whose queries nobody has changed yet."""
    layernorm, attention, project = layer.early_parts(step, patches)
    for clips in patches.split(max(1, rows // math.prod(patches.shape[1:4]))):
        keys_values = None
        count = max(1, rows // math.prod(clips.shape[2:4]))
        for start in range(0, clips.shape[1], count):
            part = attention.project(layernorm(clips[:, start : start + count]), KEY_VALUE)
            if keys_values is None:
                keys_values = part.new_empty(*clips.shape[:-1], part.shape[-1])
            keys_values[:, start : start + count] = part

        def query_of(columns: slice, clips: torch.Tensor = clips) -> torch.Tensor:
            return attention.project(layernorm(clips[:, :, columns]), QUERY)

        heads = CPU_HEADS if clips.device.type == "cpu" else attention.num_heads
        for columns, context in attention.attend_in_windows(query_of, keys_values, heads):
            clips[:, :, columns] += project(context)


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


def is_watched(modules: Iterable[nn.Module]) -> bool:
    """Whether hooks or wrappers may hold or change what goes through; transformers' own recorders do not count."""
    return any(
        "forward" in module.__dict__  # accelerate's offloading, which moves weights at each call
        or module._forward_pre_hooks
        or any(getattr(hook, "__module__", "") != RECORDERS for hook in module._forward_hooks.values())
        for module in modules
    )
