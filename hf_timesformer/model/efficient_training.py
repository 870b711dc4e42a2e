"""A linear layer after a cheap function, in training: kept for its gradients is what went into the function.

Plain autograd keeps what came out as well, of the MLP the wider part; here the backward pass computes it again.
"""

import torch
from torch import nn

from .efficient_linear import linear, weight_gradient
from .hooks import is_plain_linear, is_watched


def linear_after(function: nn.Module, layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """`layer(function(inputs))`, `(..., d) -> (..., e)`, for a `function` without randomness.

    Where nothing would be saved, and where hooks, wrappers or compilers want to see each module, that is what runs.
    """
    if not _saves_memory(function, layer):
        return layer(function(inputs))
    parameters = [parameter for parameter in function.parameters() if parameter.requires_grad]
    return _LinearAfter.apply(inputs, layer.weight, layer.bias, function, *parameters)


def _saves_memory(function: nn.Module, layer: nn.Module) -> bool:
    if not (torch.is_grad_enabled() and is_plain_linear(layer) and layer.weight.requires_grad):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    if not torch.amp.is_autocast_available(layer.weight.device.type):  # meta: shapes without numbers
        return False
    return not is_watched(function.modules())


class _LinearAfter(torch.autograd.Function):
    """`linear_after` with gradients of any order."""

    @staticmethod
    def forward(ctx, inputs, weight, bias, function, *parameters):
        device = inputs.device.type
        ctx.function = function
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        ctx.save_for_backward(inputs, weight, *parameters)
        return linear(function(inputs), weight, bias)

    @staticmethod
    def backward(ctx, grad):
        inputs, weight, *parameters = ctx.saved_tensors
        again = torch.is_grad_enabled()  # the gradients are to be differentiated in their turn
        with torch.autocast(**ctx.autocast):
            with torch.enable_grad():
                hidden = ctx.function(inputs)
            wanted = [tensor for tensor in (inputs, *parameters) if tensor.requires_grad]
            earlier = ()
            if wanted:
                grad_hidden = linear(grad, weight.mT).to(hidden.dtype)
                earlier = torch.autograd.grad(hidden, wanted, grad_hidden, create_graph=again)
            grad_weight = weight_gradient(grad, hidden).to(weight.dtype)
            grad_bias = grad.flatten(0, -2).sum(dim=0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        if not inputs.requires_grad:
            earlier = (None, *earlier)
        return earlier[0], grad_weight, grad_bias, None, *earlier[1:]
