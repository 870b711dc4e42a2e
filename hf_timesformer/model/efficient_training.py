"""A block in training (and compiled or exported): out of place, of the MLP's wide part only half
is kept.

A linear layer keeps its input for the gradients, and GELU and LayerNorm keep theirs. So of an MLP
four times as wide as the tokens, plain autograd keeps what GELU takes and what it gives, the two
widest tensors of a block. Here the second is computed again in the backward pass: a few operations
for each number, against thousands of the product after it.
"""

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import nn

from .attention import TimeSformerSelfAttention
from .drop_path import TimeSformerDropPath
from .efficient_attention import (
    attend,
    attend_from_cls,
    attend_groups,
    early_projection,
    has_dropout,
    is_plain,
    project,
    project_activated,
)
from .efficient_linear import linear, weight_gradient
from .schemes import STRIDES, Grid, group, is_known, sides_of, ungroup
from .upstream import is_batched
from .way import Way


# Last steps whose groups are so large (196 tokens of a frame) that CLS in each adds hardly any work.
LARGE_GROUPS = ("space", "global")


class Dense(Protocol):
    """What is read of a `TimeSformerDense`: its file imports this one."""

    @property
    def dense(self) -> nn.Linear: ...
    @property
    def activation(self) -> nn.Module: ...


class Attention(Protocol):
    """What is read of a `TimeSformerAttention`."""

    @property
    def attention(self) -> TimeSformerSelfAttention: ...
    @property
    def output(self) -> Dense: ...


class Block(Protocol):
    """What is read of a `TimeSformerLayer`."""

    earlier_steps: list[str]
    last_step: str
    layernorm_before: nn.LayerNorm
    layernorm_after: nn.LayerNorm

    @property
    def attention(self) -> Attention: ...
    @property
    def intermediate(self) -> Dense: ...
    @property
    def output(self) -> Dense: ...
    @property
    def drop_path(self) -> TimeSformerDropPath: ...

    def early_modules(self, step: str) -> tuple[nn.LayerNorm, Attention, nn.Linear]: ...


def run_block(
    layer: Block, hidden_states: torch.Tensor, grid: Grid, way: Way, cls_only: bool = False
) -> torch.Tensor:
    """What `TimeSformerLayer.forward` gives: `(b, 1 + n, d)` -> the same, or CLS alone `(b, 1,
    d)`."""
    drop_path = layer.drop_path
    if layer.earlier_steps or cls_only:
        cls, patches = hidden_states.split((1, hidden_states.shape[1] - 1), dim=1)
        for step in layer.earlier_steps:
            layernorm, attention, extra = layer.early_modules(step)
            to_update = early_projection(attention.output.dense, extra, patches.shape[1], way.fuses)
            patches = patches + drop_path(
                to_update(attend(attention.attention, layernorm(patches), grid))
            )
        if cls_only:
            return finish_cls(layer, patches, cls, grid, way.recomputes)
        hidden_states = _attend_last(layer, patches, cls, grid)
    else:
        hidden_states = _attend_as_they_lie(layer, hidden_states, grid)
    return hidden_states + drop_path(feed_forward(layer, hidden_states, way.recomputes))


def _attend_last(
    layer: Block, patches: torch.Tensor, cls: torch.Tensor, grid: Grid
) -> torch.Tensor:
    """The last step and its residual, after others: patches `(b, n, d)`, `cls (b, 1, d)` -> `(b,
    1 + n, d)`."""
    stride = STRIDES[layer.last_step](*grid)
    is_open = not is_known(grid[2], stride[2])
    attention = layer.attention
    # CLS in each group would be dropped out in each of its own
    drops_out = has_dropout(attention.attention.qkv) or has_dropout(attention.output.dense)
    if layer.last_step not in LARGE_GROUPS or math.prod(stride) == 1 or is_open or drops_out:
        return _attend_as_they_lie(layer, torch.cat((cls, patches), dim=1), grid)
    drop_path = layer.drop_path.draw(cls.shape[0], cls.device)
    patches = patches.unflatten(1, grid)
    update, cls_update = attend_with_cls(layer, patches, cls, stride)
    patches = patches + drop_path(update)  # (b, h, w, t, d), also where the update is strided
    return torch.cat((cls + drop_path(cls_update), patches.flatten(1, 3)), dim=1)


def _attend_as_they_lie(layer: Block, hidden_states: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The last step and its residual, of tokens that are grouped after the projection: `(b, 1 + n,
    d)` -> the same."""
    attention = layer.attention
    context = attend(attention.attention, layer.layernorm_before(hidden_states), grid)
    return hidden_states + layer.drop_path(project(attention.output.dense, context))


def attend_with_cls(
    layer: Block, patches: torch.Tensor, cls: torch.Tensor, stride: Grid
) -> tuple[torch.Tensor, torch.Tensor]:
    """The update of a last step for patches `(b, h, w, t, d)` of whole groups, and that of `cls (b,
    1, d)`: the mean over these groups.

    Tokens are grouped before anything is done to them, and taken apart after all is done: what is
    copied is `d` wide, not `3d`. CLS goes through the layers once a group, so this is for large
    groups.
    """
    grid, attention = sides_of(patches), layer.attention
    tokens = group(patches, stride, cls)  # (b*g, 1 + l, d)
    context = attend_groups(attention.attention, layer.layernorm_before(tokens), grid, stride)
    update = project(attention.output.dense, context)
    cls_update, update = update.split((1, update.shape[1] - 1), dim=1)
    cls_update = cls_update.unflatten(0, (-1, math.prod(stride))).mean(dim=1)
    return ungroup(update, stride, grid), cls_update


def finish_cls(
    layer: Block, patches: torch.Tensor, cls: torch.Tensor, grid: Grid, recomputes: bool = False
) -> torch.Tensor:
    """The last step and the MLP for CLS alone: patches `(b, n, d)`, `cls (b, 1, d)` -> `(b, 1,
    d)`."""
    attention, layernorm = layer.attention, layer.layernorm_before
    context = attend_from_cls(attention.attention, layernorm(patches), layernorm(cls), grid)
    cls = cls + layer.drop_path(project(attention.output.dense, context))
    return cls + layer.drop_path(feed_forward(layer, cls, recomputes))


def feed_forward(
    layer: Block, hidden_states: torch.Tensor, recomputes: bool = False
) -> torch.Tensor:
    """The update of the MLP, `(..., d) -> (..., d)`; `recomputes`: keep less for the gradients."""
    layernorm, activation = layer.layernorm_after, layer.intermediate.activation
    into, back = layer.intermediate.dense, layer.output.dense
    if not recomputes:
        return project(back, project_activated(into, activation, layernorm(hidden_states)))

    def normalise(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The LayerNorm of `inputs (..., d)`, of the same shape; weight and bias `(d,)`."""
        return nn.functional.layer_norm(
            inputs, layernorm.normalized_shape, weight, bias, layernorm.eps
        )

    wide = linear_after(normalise, into, hidden_states, layernorm.weight, layernorm.bias)
    # PReLU and the like learn: autograd keeps what they need
    if any(True for _ in activation.parameters()):
        return project(back, activation(wide))
    return linear_after(activation, back, wide)


def linear_after(
    function: Callable[..., torch.Tensor],
    layer: nn.Linear,
    inputs: torch.Tensor,
    *tensors: torch.Tensor,
) -> torch.Tensor:
    """`layer(function(inputs, *tensors))`, `(..., d) -> (..., e)`, keeping `inputs` and not
    `function`'s output.

    `function` must do nothing but compute: it is called again in the backward pass, and what it
    needs that may have a gradient must be among its arguments. A layer that does not learn needs
    no input for its gradients, so there is nothing to save; what an adapter keeps is its own affair.
    """
    if not (is_plain(layer) and layer.weight.requires_grad):
        return project(layer, function(inputs, *tensors))
    return _LinearAfter.apply(function, inputs, layer.weight, layer.bias, *tensors)


class _LinearAfter(torch.autograd.Function):
    """`linear_after` with gradients of any order."""

    @staticmethod
    def forward(ctx, function, inputs, weight, bias, *tensors):
        device = inputs.device.type
        ctx.function = function
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        ctx.save_for_backward(inputs, weight, *tensors)
        return linear(function(inputs, *tensors), weight, bias)

    @staticmethod
    def backward(ctx, grad):
        """The gradients of `y = W f(x) + b`, given that of `y`: `grad (..., e)` -> one for each
        argument of `forward`.

        By the chain rule, written for rows `x (n, d)`, `f(x) (n, d)`, `W (e, d)`, `grad (n, e)`:

            of b:     the sum of grad's rows                   (e,)
            of W:     grad' f(x)                               (e, d), so f(x) is computed again
            of f(x):  grad W                                   (n, d)
            of x:     what autograd makes of that through f    (n, d)

        For example f = square, x = (3), W = (2), b = 0: y = 18. With grad = 1 the gradient of b is
        1; of W it is f(3) = 9; of f(x) it is 2; of x it is 2 * 2 * 3 = 12.
        """
        inputs, weight, *tensors = ctx.saved_tensors
        if is_batched(grad):
            return _backward_by_autograd(ctx, grad)
        again = torch.is_grad_enabled()  # these gradients are to be differentiated in their turn
        with torch.autocast(**ctx.autocast):
            with torch.enable_grad():
                hidden = ctx.function(inputs, *tensors)
            arguments = (inputs, *tensors)
            learn = [tensor is not None and tensor.requires_grad for tensor in arguments]
            wanted = [tensor for tensor, learns in zip(arguments, learn) if learns]
            found: Iterator[torch.Tensor] = iter(())
            if wanted:
                grad_hidden = linear(grad, weight.mT).to(hidden.dtype)
                found = iter(torch.autograd.grad(hidden, wanted, grad_hidden, create_graph=again))
            grad_weight = weight_gradient(grad, hidden).to(weight.dtype)
            grad_bias = (
                grad.flatten(0, -2).sum(dim=0).to(weight.dtype) if ctx.needs_input_grad[3] else None
            )
        grad_inputs, *grad_tensors = [next(found) if learns else None for learns in learn]
        return None, grad_inputs, grad_weight, grad_bias, *grad_tensors


def _backward_by_autograd(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """As `_LinearAfter.backward`, of many `grad (..., e)` at once: only torch's own operations know
    what that means."""
    inputs, weight, *tensors = ctx.saved_tensors
    again = torch.is_grad_enabled()
    with torch.autocast(**ctx.autocast), torch.enable_grad():
        # its gradient does not depend on its values
        bias = weight.new_zeros(weight.shape[0], requires_grad=True)
        outputs = nn.functional.linear(ctx.function(inputs, *tensors), weight, bias)
    arguments = (inputs, weight, bias, *tensors)
    learn = [tensor is not None and tensor.requires_grad for tensor in arguments]
    learn[2] = ctx.needs_input_grad[3]
    wanted = [tensor for tensor, learns in zip(arguments, learn) if learns]
    found = iter(torch.autograd.grad(outputs, wanted, grad, create_graph=again))
    return None, *[next(found) if learns else None for learns in learn]
