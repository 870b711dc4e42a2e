"""Position and time embeddings for another grid or clip length than they were made for."""

import torch
from torch import nn


def resize_positions(
    embeddings: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int], mode: str
) -> torch.Tensor:
    """Resample `(1, 1 + rows*columns, d)` from `grid` to `new_grid`, CLS apart; `mode` is "nearest" or "bicubic"."""
    if tuple(grid) == tuple(new_grid):
        return embeddings
    cls, patches = embeddings[:, :1], embeddings[:, 1:].unflatten(1, grid)  # (1, rows, columns, d)
    patches = _resample(patches.permute(0, 3, 1, 2), new_grid, mode)
    return torch.cat((cls, patches.flatten(2).transpose(1, 2)), dim=1)


def resize_times(embeddings: torch.Tensor, num_frames: int, mode: str) -> torch.Tensor:
    """Resample `(1, frames, d)` to `num_frames`; linearly where `mode` is "bicubic", which has no form in one axis."""
    if embeddings.shape[1] == num_frames:
        return embeddings
    mode = "linear" if mode == "bicubic" else mode
    return _resample(embeddings.transpose(1, 2), (num_frames,), mode).transpose(1, 2)


def _resample(values: torch.Tensor, size: tuple[int, ...], mode: str) -> torch.Tensor:
    """`nn.functional.interpolate` in fp32, given back in the dtype of `values`."""
    return nn.functional.interpolate(values.float(), size=tuple(size), mode=mode).to(values.dtype)
