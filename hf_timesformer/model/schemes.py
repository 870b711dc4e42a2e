"""The five space-time attention schemes of the paper (section 3, Figure 2) as ordered lists of
steps.

A step says which patch tokens see each other. All but `local` are partitions of the `(h, w, t)`
grid, and all of them the same one: tokens attend within the set of those whose coordinates are
congruent modulo a stride per axis. A stride of 1 joins an axis, a stride of the axis' length keeps
its positions apart, a stride of 2 is the paper's sparse one.
"""

import math
from collections.abc import Callable

import torch
from torch import nn


Grid = tuple[int, int, int]  # (h, w, t): rows, columns, frames
Tile = tuple[slice, slice]  # rows, columns
Span = tuple[slice, slice]  # rows (or columns) of queries, and of the keys that they see

# Queries of a tile of `local`.
TILE_QUERIES = 128
USUAL_FRAMES = 8  # to choose tiles for, where an exported graph takes any number of frames


def two(side: int) -> int:
    """A stride of 2, or 1 on a side of one token. A side that an exported graph leaves open has
    two at least."""
    return min(2, side) if isinstance(side, int) else 2


# Strides of a step along (h, w, t) on a grid of that size.
STRIDES: dict[str, Callable[[int, int, int], Grid]] = {
    "joint": lambda h, w, t: (1, 1, 1),
    "space": lambda h, w, t: (1, 1, t),  # same t
    "temporal": lambda h, w, t: (h, w, 1),  # same (h, w)
    "width": lambda h, w, t: (h, 1, t),  # same (t, h)
    "height": lambda h, w, t: (1, w, t),  # same (t, w)
    "global": lambda h, w, t: (two(h), two(w), two(t)),  # every second patch along each axis
}

# The steps of a block in order. The last one has the ViT's own parameters and CLS; the others'
# names begin theirs.
SCHEMES: dict[str, tuple[str, ...]] = {
    "space_only": ("space",),
    "joint_space_time": ("joint",),
    "divided_space_time": ("temporal", "space"),
    "sparse_local_global": ("local", "global"),
    "axial": ("temporal", "width", "height"),
}


def group(tokens: torch.Tensor, stride: Grid, cls: torch.Tensor | None = None) -> torch.Tensor:
    """Put tokens that attend to each other side by side: `(b, h, w, t, c) -> (b*groups, length,
    c)`.

    Groups are ordered by the residues of `(h, w, t)`, tokens in a group by `(h, w, t)`; before
    those of each goes `cls (b, 1, c)` if there is one. A side that the stride does not divide is
    filled up with zeros; `key_mask` tells those apart.
    """
    channels, grid = tokens.shape[-1], sides_of(tokens)
    tokens = _fill_up(tokens, stride)
    (sh, sw, st), (lh, lw, lt) = stride, lengths(grid, stride)
    tokens = tokens.reshape(-1, lh, sh, lw, sw, lt, st, channels)
    tokens = tokens.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4, 6)  # (b, sh, sw, st, lh*lw*lt, c)
    if cls is not None:
        tokens = torch.cat((cls[:, None, None, None].expand(-1, sh, sw, st, -1, -1), tokens), dim=4)
    return tokens.flatten(0, 3)


def ungroup(tokens: torch.Tensor, stride: Grid, grid: Grid) -> torch.Tensor:
    """The inverse of `group`: `(b*groups, length, c) -> (b, h, w, t, c)`."""
    (sh, sw, st), (lh, lw, lt) = stride, lengths(grid, stride)
    tokens = tokens.reshape(-1, sh, sw, st, lh, lw, lt, tokens.shape[-1])
    tokens = tokens.permute(0, 4, 1, 5, 2, 6, 3, 7)  # (b, lh, sh, lw, sw, lt, st, c)
    tokens = tokens.reshape(-1, lh * sh, lw * sw, lt * st, tokens.shape[-1])
    if all(is_known(side, step) and side % step == 0 for side, step in zip(grid, stride)):
        return tokens
    return tokens[:, : grid[0], : grid[1], : grid[2]]


def lengths(grid: Grid, stride: Grid) -> Grid:
    """How many tokens of a group lie along each axis (of the largest group, where sides are
    uneven)."""
    # A step that is no int is the side itself, which an exported graph leaves open.
    h, w, t = (
        (side + step - 1) // step if isinstance(step, int) else 1
        for side, step in zip(grid, stride)
    )
    return h, w, t


def is_known(side: int, step: int) -> bool:
    """Whether `side % step == 0` can be asked: an exported graph with any number of frames must
    not depend on it."""
    if isinstance(side, int):
        return True
    return step == 1 if isinstance(step, int) else side == step


def sides_of(tokens: torch.Tensor) -> Grid:
    """`(h, w, t)` of `tokens (b, h, w, t, ...)`. `torch.jit` gives tensors for sizes, and fixes
    these in its graph."""
    h, w, t = tokens.shape[1:4]
    return (int(h), int(w), int(t)) if torch.jit.is_tracing() else (h, w, t)


def key_mask(grid: Grid, stride: Grid, device: torch.device) -> torch.Tensor | None:
    """Which tokens of each group exist: bool `(groups, length)`, or None where all do."""
    if all(is_known(side, step) and side % step == 0 for side, step in zip(grid, stride)):
        return None
    exists = torch.ones((1, *grid, 1), dtype=torch.uint8, device=device)
    return group(exists, stride)[..., 0].bool()


def _fill_up(tokens: torch.Tensor, stride: Grid) -> torch.Tensor:
    """`(b, h, w, t, c)` with zeros at the end of each side that the stride does not divide, up to
    the next multiple."""
    sides = sides_of(tokens)
    filled = [length * step for length, step in zip(lengths(sides, stride), stride)]
    missing = [full - side for full, side in zip(filled, sides)]
    if all(
        is_known(side, step) and not lacking for side, step, lacking in zip(sides, stride, missing)
    ):
        return tokens
    return nn.functional.pad(tokens, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))


def local_reach(h: int, w: int) -> tuple[int, int]:
    """How many rows and columns away a `local` key may lie: half of half a side, 3 on a 14 x 14
    grid (7 x 7 keys)."""
    return h // 2 // 2, w // 2 // 2


def local_tiles(h: int, w: int, t: int) -> tuple[list[Span], list[Span]]:
    """Cut an `h x w` grid of `t` frames into tiles of queries: the rows and the columns of tiles,
    each with those of the keys that any of its queries sees.

    Larger tiles look at more keys in vain, smaller ones make less of a matrix product: about
    `TILE_QUERIES` queries.
    """
    t = t if isinstance(t, int) else USUAL_FRAMES
    length = math.isqrt(max(1, TILE_QUERIES // t) - 1) + 1  # the square root, rounded up
    rows, columns = (
        [
            (tile, slice(max(tile.start - reach, 0), min(tile.stop + reach, side)))
            for tile in _cut(side, length)
        ]
        for side, reach in zip((h, w), local_reach(h, w))
    )
    return rows, columns


def local_mask(
    queries: Tile, keys: Tile, h: int, w: int, device: torch.device | None = None
) -> torch.Tensor:
    """Which patches of its region each patch of a tile sees, in all frames alike: bool `(queries,
    keys)`."""
    rows, columns = (
        (
            torch.arange(q.start, q.stop, device=device)[:, None]
            - torch.arange(k.start, k.stop, device=device)
        ).abs()
        <= reach
        for q, k, reach in zip(queries, keys, local_reach(h, w))
    )
    # (q_h*q_w, k_h*k_w)
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)


def _cut(side: int, length: int) -> list[slice]:
    return [slice(start, min(start + length, side)) for start in range(0, side, length)]
