"""Attention by [`linear`] from above the layers, two linear maps in a row as one, and CLS alone.

For ways other than the plain one (way.py): there each layer is a plain `nn.Linear`, whose weights
may be read, or such a layer with an adapter around it, which may only be called.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from .attention import TimeSformerSelfAttention
from .attention_functions import Sdpa, at_least_float32
from .efficient_linear import activated_linear, call, fuse, linear
from .schemes import STRIDES, Grid, group, is_known, key_mask, sides_of, ungroup
from .upstream import is_exporting


QUERY, KEY_VALUE = slice(0, 1), slice(1, 3)


def is_plain(layer: nn.Module) -> bool:
    """Whether `layer` is its weight and its bias. With an adapter around it, it is not, though the
    adapter has a `weight`, too: that of the layer alone."""
    return type(layer) is nn.Linear


def is_active_dropout(module: nn.Module) -> bool:
    """Whether `module` is dropout that draws."""
    return type(module) is nn.Dropout and module.training and module.p > 0


def has_dropout(layer: nn.Module) -> bool:
    """Whether an adapter around a linear layer has dropout that draws."""
    return not is_plain(layer) and any(map(is_active_dropout, layer.modules()))


def project(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """`layer(inputs)`, `(..., d) -> (..., e)`, by the faster product."""
    return linear(inputs, layer.weight, layer.bias) if is_plain(layer) else call(layer, inputs)


def project_activated(
    layer: nn.Linear, activation: nn.Module, inputs: torch.Tensor
) -> torch.Tensor:
    """`activation(layer(inputs))`, `(..., d) -> (..., e)`, by the faster product."""
    if is_plain(layer):
        return activated_linear(inputs, layer.weight, layer.bias, activation)
    return activation(project(layer, inputs))


def attend(attention: TimeSformerSelfAttention, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    """`attention(tokens, grid)` without the weights: `(b, [1 +] n, d)` -> the same."""
    # an exported graph must not depend on how many keys there are
    sdpa = Sdpa.CALLED if is_exporting() else Sdpa.BRIEF
    return attention.attend(project(attention.qkv, tokens), grid, sdpa=sdpa)[0]


def attend_groups(
    attention: TimeSformerSelfAttention, tokens: torch.Tensor, grid: Grid, stride: Grid
) -> torch.Tensor:
    """The attention of groups side by side, as `group` lays a `grid` out: `(b*g, l, d)` -> the
    same."""
    sdpa = Sdpa.CALLED if is_exporting() else Sdpa.BRIEF
    return attention.attend_groups(project(attention.qkv, tokens), grid, stride, sdpa)[0]


def early_projection(
    output: nn.Linear, extra: nn.Linear | nn.Identity, tokens: int, fuses: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The output projection of an early step and its extra linear layer, as one map
    `(..., d) -> (..., d)` where neither has an adapter.

    Two maps of `tokens` rows cost `2 * tokens * d^2` multiply-adds, making one of them and using
    it `d^3 + tokens * d^2`: less from `tokens == d` on. An exported network may have been folded
    already (`conversion/onnx_export.py`): then `extra` is an identity.
    """
    if isinstance(extra, nn.Identity):
        return lambda context: project(output, context)
    if fuses and is_plain(output) and is_plain(extra) and tokens >= output.in_features:
        weight, bias = fuse(output, extra)
        return lambda context: linear(context, weight, bias)
    return lambda context: project(extra, project(output, context))


def projection_of(
    attention: TimeSformerSelfAttention, parts: slice, heads: slice
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The map `(..., d) -> (..., parts*heads*c)` to some of query, key and value (0, 1, 2), of
    some heads."""

    def pick(values: torch.Tensor) -> torch.Tensor:
        """Rows `(3d, ...)` of qkv -> those of the parts and heads."""
        return values.unflatten(0, (3, attention.num_heads, attention.head_dim))[
            parts, heads
        ].flatten(0, 2)

    qkv = attention.qkv
    weight = pick(qkv.weight)
    bias = None if qkv.bias is None else pick(qkv.bias)
    return lambda tokens: linear(tokens, weight, bias)


def attend_from_cls(
    attention: TimeSformerSelfAttention, patches: torch.Tensor, cls: torch.Tensor, grid: Grid
) -> torch.Tensor:
    """What CLS alone gathers in a last step: patches `(b, n, d)`, `cls (b, 1, d)` -> `(b, 1, d)`."""
    if is_plain(attention.qkv):
        return _mix_tokens(attention, patches, cls, grid)
    return attend(attention, torch.cat((cls, patches), dim=1), grid)[:, :1]


def _mix_tokens(
    attention: TimeSformerSelfAttention, patches: torch.Tensor, cls: torch.Tensor, grid: Grid
) -> torch.Tensor:
    """As `attend_from_cls`, from the weights of the projection.

    With a single query neither keys nor values of the patches are needed. An example with one
    head, one group and `d = 2`:

        W_q = W_k = I,  W_v = [[0, 2], [1, 0]],  cls = (1, 0),  patches x_1 = (3, 0), x_2 = (1, 2)

    As written in the paper: the query is `q = W_q cls = (1, 0)`; keys are `W_k x`; the scores `q .
    W_k x` are 1 for CLS itself, 3 and 1 for the patches; suppose the softmax makes weights 0.2,
    0.6, 0.2 of them. Values `W_v x` are (0, 1), (0, 3), (4, 1), and their weighted mean is (0.8,
    2.2).

    Here: `q . W_k x = (W_k' q) . x`, so one vector `probe = W_k' q = (1, 0)`, made once, is
    multiplied with the tokens themselves: 1, 3, 1. And the mean of `W_v x` is `W_v` of the mean of
    `x`: mixed = 0.2 (1, 0) + 0.6 (3, 0) + 0.2 (1, 2) = (2.2, 0.4), `W_v mixed = (0.8, 2.2)`. Two
    products of all tokens with a matrix have become two with one vector a head. The keys' bias
    adds the same to all scores of a head, and so nothing to their softmax.
    """
    heads, dim = attention.num_heads, attention.head_dim
    stride = STRIDES[attention.step](*grid)
    groups = math.prod(stride)

    w_query, w_key, w_value = attention.qkv.weight.chunk(3)
    b_query, _, b_value = (
        (None, None, None) if attention.qkv.bias is None else attention.qkv.bias.chunk(3)
    )
    # (b, heads, c)
    query = nn.functional.linear(cls[:, 0], w_query, b_query).unflatten(-1, (heads, dim))
    w_key = w_key.unflatten(0, (heads, dim))  # (heads, c, d)
    probe = torch.einsum("bhe,hed->bhd", query, w_key) * attention.scaling  # (b, heads, d)

    scores = (patches @ probe.transpose(1, 2)).unflatten(1, grid)  # (b, h, w, t, heads)
    cls_scores = cls @ probe.transpose(1, 2)  # (b, 1, heads)
    weights, cls_weights = _weights_in_groups(scores, cls_scores, stride)

    # The weighted mean of the tokens in a group, summed over groups: each patch is in one, CLS in
    # all.
    patch_weights = weights.flatten(1, 3)  # (b, n, heads)
    mixed = patch_weights.transpose(1, 2) @ patches + cls_weights * cls  # (b, heads, d)

    # (b, heads, c)
    context = torch.einsum("bhd,hed->bhe", mixed, w_value.unflatten(0, (heads, dim)))
    context = context.flatten(1)[:, None] / groups  # (b, 1, d)
    return context if b_value is None else context + b_value  # weights of a group sum to one


def _weights_in_groups(
    scores: torch.Tensor, cls_scores: torch.Tensor, stride: Grid
) -> tuple[torch.Tensor, torch.Tensor]:
    """The softmax over each group's patches, `scores (b, h, w, t, heads)`, and CLS, which is there
    in each group, `(b, 1, heads)`: weights `(b, h, w, t, heads)`, and those of CLS summed over the
    groups `(b, heads, 1)`."""
    batch, grid, step = scores.shape[0], sides_of(scores), stride[2]
    least = torch.finfo(scores.dtype).min
    if not is_known(grid[2], step):  # see `TimeSformerSelfAttention._attend_in_open_frames`
        residues = torch.arange(grid[2], device=scores.device) % step
        parts = [
            _weights_in_groups(
                scores.masked_fill((residues != residue)[:, None], least),
                cls_scores,
                (*stride[:2], 1),
            )
            for residue in range(step)
        ]
        # each patch has a weight in one part, and 0 in the others
        weights, cls_weights = (torch.stack(each).sum(dim=0) for each in zip(*parts))
        return weights, cls_weights
    groups = math.prod(stride)
    grouped = group(scores, stride)  # (b*g, l, heads)
    mask = key_mask(grid, stride, scores.device)
    if mask is not None:
        grouped = grouped.masked_fill(~mask.repeat(batch, 1)[..., None], least)
    cls_scores = cls_scores[:, None].expand(-1, groups, -1, -1).flatten(0, 1)  # (b*g, 1, heads)
    grouped = torch.cat((cls_scores, grouped), dim=1)
    weights = grouped.softmax(dim=1, dtype=at_least_float32(scores.dtype)).to(scores.dtype)
    cls_weights = weights[:, 0].unflatten(0, (batch, groups)).sum(dim=1)[..., None]
    return ungroup(weights[:, 1:], stride, grid), cls_weights
