"""The matrix products of a work alone: as fast as its machine can be."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from works import Work, build, device, make_clip

from hf_timesformer.model.efficient_linear import linear


def matrix_products(work: Work, layers: int) -> dict[str, Callable[[], None]]:
    """The matrix products that our logits or step need, at the same shapes: the machine's limit.

    A step has for each product of the forward pass two more, for the gradients of both factors.
    Once as plain `torch.matmul` into buffers that exist, and on CPU once more by the faster
    library, as our layers do.
    """
    shapes = ProductShapes()
    # in inference mode linear layers reach the recorder whole, not as products
    with torch.no_grad(), shapes:
        build(replace(work, training=False), "ours", layers)(make_clip(work))
    wanted = shapes.seen
    if work.training:
        # left (m, k), right (k, n), gradient (m, n)
        wanted = wanted + [(*batch, m, n, k) for *batch, m, k, n in shapes.seen]
        wanted = wanted + [(*batch, k, m, n) for *batch, m, k, n in shapes.seen]
    operands, place = {}, {"device": device(), "dtype": getattr(torch, work.dtype)}
    for shape in set(wanted):
        *batch, m, k, n = shape
        left, right = (torch.randn(size, **place) for size in ((*batch, m, k), (*batch, k, n)))
        operands[shape] = (left, right, left @ right)

    @torch.inference_mode()
    def plain() -> None:
        for shape in wanted:
            left, right, out = operands[shape]
            torch.matmul(left, right, out=out)

    @torch.inference_mode()
    def fastest() -> None:
        for shape in wanted:
            left, right, out = operands[shape]
            if len(shape) == 3:
                linear(left, right.mT)
            else:
                torch.matmul(left, right, out=out)

    return {"products": plain} | ({"products, oneDNN": fastest} if device() == "cpu" else {})


class ProductShapes(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the shapes `(..., m, k, n)` of all matrix products that run: of layers, attention,
    patches.
    """

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            left, right = args[-2:]
            self.seen.append((*left.shape[:-2], left.shape[-2], left.shape[-1], right.shape[-1]))
        elif name == "convolution":
            features, *window = args[1].shape
            self.seen.append((result.numel() // features, math.prod(window), features))
        elif name.startswith("_scaled_dot_product"):
            query, key = args[:2]
            batch = query.shape[0] * query.shape[1]
            (queries, channels), keys = query.shape[2:], key.shape[2]
            self.seen += [(batch, queries, channels, keys), (batch, queries, keys, channels)]
        return result
