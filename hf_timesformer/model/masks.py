"""Additive masks of attention, kept where making them anew costs launches.

A mask depends on sizes alone, never on a model, so one is kept for all of a process's models and
blocks, by its sizes, dtype, device and stream. It is no part of a model: nothing of it is saved,
copied or moved with one.
"""

import functools
from collections.abc import Callable, Hashable

import torch

from .schemes import Grid, local_mask
from .upstream import is_plain_eager


Spans = tuple[tuple[int, int], ...]  # first and last but one of query rows, columns, key rows, ...

# A grid of 28 x 28 patches has 49 kinds of `local` tiles; of 16 frames, they take 35 MiB in bf16.
MASKS_KEPT = 128
# On CPUs a mask costs little beside the attention that it is for, and memory is what they lack.
KEEPING_DEVICES = ("cuda",)


def kept(
    make: Callable[..., torch.Tensor], *sizes: Hashable, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """`make(*sizes, dtype, device)` of any shape `(...)`, the same tensor each time where that is
    safe; nobody may write into it.

    It is made anew while anything but plain eager PyTorch runs: what compilers, exporters, fake
    tensors and function transforms make is theirs, and what a CUDA graph records has no numbers
    until it is replayed.
    """
    if device.type not in KEEPING_DEVICES or not is_plain_eager():
        return make(*sizes, dtype, device)
    return _remembered(make, sizes, dtype, device, _stream_of(device))


@functools.lru_cache(maxsize=MASKS_KEPT)
def _remembered(
    make: Callable[..., torch.Tensor],
    sizes: tuple[Hashable, ...],
    dtype: torch.dtype,
    device: torch.device,
    stream: int,
) -> torch.Tensor:
    # a tensor made in inference mode could not be used in training later
    with torch.inference_mode(False), torch.no_grad():
        return make(*sizes, dtype, device)


def _stream_of(device: torch.device) -> int:
    """The stream that work on `device` goes to: on another one, a mask may not be ready yet."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def blocks_mask(length: int, count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Additive mask `(1, 1, count*length, count*length)` of `count` groups in one sequence: each
    sees itself. For length = 2, count = 2:

        0 0 - -
        0 0 - -
        - - 0 0
        - - 0 0
    """
    group = torch.arange(count * length, device=device) // length
    return additive(group[:, None] == group, dtype)[None, None]


def window_mask(spans: Spans, grid: Grid, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Additive mask `(1, 1, queries*t, keys*t)` of a tile of `local`: `spans` are those of its
    rows, its columns, and the rows and columns of its keys."""
    rows, columns, key_rows, key_columns = (slice(*span) for span in spans)
    exists = local_mask((rows, columns), (key_rows, key_columns), *grid[:2], device)
    mask = additive(exists, dtype)
    if not isinstance(grid[2], int):  # an exported graph cannot order the strides of `expand`
        patches = [torch.arange(side * grid[2], device=device) // grid[2] for side in mask.shape]
        return mask[patches[0]][:, patches[1]][None, None]
    mask = mask[:, None, :, None]
    return mask.expand(-1, grid[2], -1, grid[2]).flatten(2).flatten(0, 1)[None, None]


def additive(exists: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where `exists`, the dtype's smallest number elsewhere: bool `(...)` -> the same shape."""
    return torch.zeros_like(exists, dtype=dtype).masked_fill(~exists, torch.finfo(dtype).min)
