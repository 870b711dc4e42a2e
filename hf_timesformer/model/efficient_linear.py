"""Linear layers, each by the fastest exact way for its device and size, and two in a row as one."""

import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn.grad import conv2d_weight
from torch.overrides import TorchFunctionMode

from .upstream import (
    has_onednn_bfloat16,
    is_exact_gelu,
    is_exporting,
    is_plain_eager,
    is_transformed,
    maybe_autocast,
    onednn_linear,
)


# Multiply-adds, and rows, from which oneDNN beats MKL: below, what it does once a call weighs more
# than the product.
ONEDNN_PRODUCTS, ONEDNN_ROWS = 2**23, 32
SWITCH = "TIMESFORMER_ONEDNN"
CPUINFO = Path("/proc/cpuinfo")


def prefers_onednn(environment: Mapping[str, str] = os.environ, cpuinfo: Path = CPUINFO) -> bool:
    """Whether fp32 products on the CPU go to oneDNN in place of what PyTorch takes (MKL): decided
    once, here, for all of the network.

    By the processor's vendor: everywhere but on Intel's, whose own library MKL is. There linear
    layers as convolutions gave 1.10 times stock's speed where what is folded alone is worth 1.13,
    and compiled 0.97 (a Xeon with AMX, 2 threads, fp32). The environment variable
    `TIMESFORMER_ONEDNN`, 1 or 0, decides otherwise. It is not measured when a program starts: then
    two runs of one command could differ in the last bits.

    Raises:
        ValueError: for another value of the variable.
    """
    wish = environment.get(SWITCH, "")
    if wish not in ("", "0", "1"):
        raise ValueError(f"{SWITCH}={wish!r}: it is 1 (oneDNN) or 0 (what PyTorch takes, MKL)")
    if wish:
        return wish == "1"
    known = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else platform.processor()
    return "GenuineIntel" not in known


USES_ONEDNN = prefers_onednn()
ONEDNN_BFLOAT16 = has_onednn_bfloat16()
PLAIN_TENSORS = (torch.Tensor, nn.Parameter)


def linear(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`x W' + b`: `(..., d) -> (..., e)` by a weight `(e, d)` and a bias `(e,)`, what
    `torch.nn.functional.linear` gives.

    In fp32 on CPUs PyTorch leaves linear layers to MKL and convolutions to oneDNN. On AMD's
    processors MKL reaches half of what oneDNN does: the same map as a 1x1 convolution takes less
    than half the time, forward and backward (Zen 5, 2 threads, 1569 tokens, 768 to 2304: 462
    against 217 GFLOP/s; 16 tokens: 73 against 74).

    PyTorch takes a strided `(..., d)` times a weight that does not learn for a batch of small
    products: in bf16 on a CPU with AMX the output projection of a frozen block took 280 ms so, as
    one product 2 ms.

    In bf16 both go to oneDNN, but a linear layer of PyTorch copies the bias to all rows first, and
    lets oneDNN add to them. Where no gradients are taken, oneDNN adds the bias itself (Zen 4, 2
    threads, 1569 tokens, 768 to 3072: 22.4 against 21.2 ms).
    """
    if _straight_to_onednn(inputs, weight):
        return onednn_linear(inputs, weight, bias)
    if not _better_by_convolution(inputs, weight, weight.shape[0]):
        inputs = inputs.contiguous() if inputs.ndim > 2 else inputs
        return nn.functional.linear(inputs, weight, bias)
    outputs = nn.functional.conv2d(_as_pixels(inputs), weight[:, :, None, None], bias)
    return outputs.permute(0, 2, 3, 1).reshape(*inputs.shape[:-1], -1)


def activated_linear(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: nn.Module
) -> torch.Tensor:
    """`activation(x W' + b)`: `(..., d) -> (..., e)` by a weight `(e, d)` and a bias `(e,)`. In bf16
    without gradients GELU is taken of the sums before they are rounded, while they are at hand."""
    if is_exact_gelu(activation) and _straight_to_onednn(inputs, weight):
        return onednn_linear(inputs, weight, bias, gelu=True)
    return activation(linear(inputs, weight, bias))


def call(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """`layer(inputs)`, `(..., d) -> (..., e)`, of which plain linear layers multiply by [`linear`].

    `layer` is called as any module is: whatever is put around it, in it or on it runs, and sees
    what it would see.
    """
    if is_transformed() or not _may_convolve(inputs):
        return layer(inputs)
    with _ProductsByLinear():
        return layer(inputs)


class _ProductsByLinear(TorchFunctionMode):
    """While it is on, `torch.nn.functional.linear` is [`linear`]."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.linear and not kwargs and not types:
            return linear(*args)
        return function(*args, **(kwargs or {}))


def weight_gradient(outputs: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Gradient of [`linear`]'s weight, `(e, d)`, from that of its outputs `(..., e)` and its
    inputs `(..., d)`."""
    if not _better_by_convolution(inputs, outputs, outputs.shape[-1]):
        return outputs.flatten(0, -2).mT @ inputs.flatten(0, -2)
    shape = (outputs.shape[-1], inputs.shape[-1], 1, 1)
    return conv2d_weight(_as_pixels(inputs), shape, _as_pixels(outputs))[:, :, 0, 0]


def _as_pixels(tokens: torch.Tensor) -> torch.Tensor:
    """`(..., d)` as an image of one row, `(1, d, 1, n)`, channels last."""
    tokens = tokens.flatten(0, -2)
    if not torch.compiler.is_compiling():
        return tokens[None, None].permute(0, 3, 1, 2)
    # Inductor forgets the strides of axes of length 1, and without them takes this for channels
    # first.
    (count, channels), whole = tokens.shape, tokens.numel()
    return tokens.contiguous().as_strided((1, channels, 1, count), (whole, 1, whole, channels))


def _better_by_convolution(inputs: torch.Tensor, other: torch.Tensor, out_features: int) -> bool:
    """Whether a 1x1 convolution is faster for a map of `inputs (..., d)` to `(..., out_features)`.

    `other`: the weight `(out_features, d)`, or the gradient of the outputs `(..., out_features)`.
    """
    if not (_may_convolve(inputs) and _may_convolve(other)):
        return False
    rows, channels = math.prod(inputs.shape[:-1]), inputs.shape[-1]
    return rows >= ONEDNN_ROWS and rows * channels * out_features >= ONEDNN_PRODUCTS


def _may_convolve(tensor: torch.Tensor) -> bool:
    """Whether products of `tensor (..., d)` may go to oneDNN, here and in this call."""
    if not (USES_ONEDNN and tensor.device.type == "cpu" and tensor.dtype == torch.float32):
        return False
    if type(tensor) not in PLAIN_TENSORS:
        return False
    if is_exporting() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    # compilers cannot read these settings
    return torch.compiler.is_compiling() or _onednn_computes()


def _straight_to_onednn(inputs: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `inputs (..., d)` and a weight `(e, d)` are of the kind that `onednn_linear` takes,
    and nobody needs to know what it did."""
    if inputs.device.type != "cpu" or not inputs.dtype == weight.dtype == torch.bfloat16:
        return False
    return (
        ONEDNN_BFLOAT16
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_grad_enabled()
        and not is_exporting()
        and is_plain_eager()
        and type(inputs) in PLAIN_TENSORS
        and type(weight) in PLAIN_TENSORS
    )


def _onednn_computes() -> bool:
    """Whether oneDNN runs 1x1 convolutions (with one thread PyTorch takes MKL), and users want all
    24 bits."""
    if not torch.backends.mkldnn.enabled or torch.get_num_threads() <= 1:
        return False
    return torch.get_float32_matmul_precision() != "medium"


def fuse(first: nn.Linear, second: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight `(out, in)` and bias `(out,)` of `second(first(x))`: `W2 (W1 x + b1) + b2 = (W2 W1) x
    + (W2 b1 + b2)`."""
    with maybe_autocast(first.weight.device.type, enabled=False):  # in the weights' own precision
        weight = linear(second.weight, first.weight.mT)
        if first.bias is None:
            return weight, second.bias
        return weight, nn.functional.linear(first.bias, second.weight, second.bias)
