"""Who looks at a module or changes what it does: hooks, wrappers, other kinds of layers."""

from collections.abc import Iterable

from torch import nn

from .efficient_linear import Linear, ZeroLinear


RECORDERS = "transformers.utils.output_capturing"  # where hooks that record outputs come from


def is_watched(modules: Iterable[nn.Module]) -> bool:
    """Whether hooks or wrappers may hold or change what goes through; transformers' own recorders do not count."""
    return any(
        "forward" in module.__dict__  # accelerate's offloading, which moves weights at each call
        or module._forward_pre_hooks
        or any(getattr(hook, "__module__", "") != RECORDERS for hook in module._forward_hooks.values())
        for module in modules
    )


def is_plain_linear(module: nn.Module) -> bool:
    """Whether calling `module` does nothing but `x W' + b`: no LoRA, no quantisation, no hook, no offloading."""
    return (
        type(module) in (nn.Linear, Linear, ZeroLinear)
        and "forward" not in module.__dict__
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not module._backward_hooks
        and not module._backward_pre_hooks
    )
