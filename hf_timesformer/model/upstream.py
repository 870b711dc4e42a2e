"""What is private, or not promised, in torch and transformers, for all of the network's folder.

Names that may change with a release stand here and nowhere else in this folder. They were checked
with the versions in `CHECKED`; `tests/model/test_upstream.py` checks what each of them does, so a
release that renames one fails there, and does not turn into a wrong answer or a slow network here.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_modules
from transformers.activations import GELUActivation
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.utils.generic import can_return_tuple, maybe_autocast, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs


CHECKED = {"torch": "2.14.1", "transformers": "5.24.0"}

# Modules whose hooks only take notes. transformers' record outputs, and only while a forward pass
# asks for them; torch's tracker, which counters of FLOPs use, keeps the name of the module that
# runs.
NOTE_TAKERS = ("transformers.utils.output_capturing", "torch.utils.module_tracker")

# Tensors that stand for others while `torch.export` runs a network.
EXPORT_TENSORS = (FakeTensor, FunctionalTensor)

_GLOBAL_HOOKS = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
)


def modules_below(network: nn.Module) -> list[nn.Module]:
    """All modules of `network` but itself; `modules()` takes three times as long."""
    found = [network]
    for module in found:  # the list grows while it is walked
        found.extend([child for child in module._modules.values() if child is not None])
    return found[1:]


# PEFT's LoRA around a linear layer, and the parts of one: it maps token by token, as the layer does.
# Of its variants DoRA does so too; others choose by token, or draw.
LORA_LAYER = ("peft.tuners.lora.layer", "Linear")
LORA_VARIANTS = {("peft.tuners.lora.variants", "DoraLinearVariant")}
LORA_PARTS = {
    ("torch.nn.modules.linear", "Linear"),
    ("torch.nn.modules.linear", "Identity"),
    ("torch.nn.modules.dropout", "Dropout"),
    ("torch.nn.modules.container", "ModuleDict"),
    ("torch.nn.modules.container", "ParameterDict"),
    ("peft.tuners.lora.dora", "DoraLinearLayer"),
}


def apart_from_adapters(network: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """All modules of `network` but itself, as `modules_below` lists them, where in the place of a
    LoRA adapter is the layer that it was put around; and the adapters with all their parts."""
    found: list[Any] = [network]
    adapters: list[nn.Module] = []
    for module in found:  # the list grows while it is walked
        for child in module._modules.values():
            if child is None:
                continue
            parts = _parts_of_lora(child)
            if parts is not None:
                adapters.extend([child, *parts])
                child = child._modules["base_layer"]
            found.append(child)
    return found[1:], adapters


def _parts_of_lora(module: Any) -> list[nn.Module] | None:
    """The modules of a LoRA adapter, without the layer that it was put around; None where `module`
    is anything else, or does more than such an adapter does."""
    if _name_of(type(module)) != LORA_LAYER or type(module).forward.__module__ != LORA_LAYER[0]:
        return None
    if any(_name_of(type(v)) not in LORA_VARIANTS for v in module.lora_variant.values()):
        return None
    children = [child for name, child in module._modules.items() if name != "base_layer"]
    parts = [part for child in children for part in [child, *modules_below(child)]]
    return parts if all(_name_of(type(part)) in LORA_PARTS for part in parts) else None


def _name_of(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__


def is_watched(module: nn.Module) -> bool:
    """Whether a hook or a wrapper on `module` itself may see or change what goes through it.

    Wrappers put a `forward` of their own on the module (accelerate, when it moves weights at each
    call), or a compiled call (`module.compile()`).
    """
    if "forward" in module.__dict__ or module._compiled_call_impl is not None:
        return True
    if module._forward_pre_hooks or module._backward_pre_hooks or module._backward_hooks:
        return True
    return bool(module._forward_hooks) and not _take_notes(module._forward_hooks)


def is_everything_watched() -> bool:
    """Whether there are hooks on all modules, as
    `torch.nn.modules.module.register_module_forward_hook` adds them."""
    return not all(_take_notes(getattr(torch_modules, name)) for name in _GLOBAL_HOOKS)


def _take_notes(hooks: dict[int, Callable]) -> bool:
    """Whether all of the hooks only take notes."""
    return all(getattr(hook, "__module__", "") in NOTE_TAKERS for hook in hooks.values())


def is_transformed() -> bool:
    """Whether `torch.func` (vmap, grad, jvp, ...) or forward-mode differentiation runs this code."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_plain_eager() -> bool:
    """Whether an operation runs now, on its numbers, and nothing else sees it: no compiler, tracer,
    dispatch mode (fake tensors, counters), function transform or recording CUDA graph."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed():
        return False
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return False
    return torch._C._len_torch_dispatch_stack() == 0


def is_batched(tensor: torch.Tensor) -> bool:
    """Whether `tensor` `(...)` is many at once in a backward pass: `torch.autograd.grad(...,
    is_grads_batched=True)`."""
    return torch._C._functorch.is_legacy_batchedtensor(tensor) or is_transformed()


def is_exporting() -> bool:
    """Whether `torch.export` runs this code: `torch.compiler.is_exporting()`, for which
    `torch.compile` reads True in every graph up to torch 2.10."""
    return torch.compiler._is_exporting_flag


def parameters_of(module: nn.Module) -> Iterable[torch.Tensor | None]:
    """The module's own parameters, of any shape `(...)`, without those of its children.
    `torch.func.functional_call` puts tensors there."""
    return module._parameters.values()


# Instruction sets that multiply bfloat16 numbers, as `torch.cpu.get_capabilities` names them.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


def cpu_computes_in_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 numbers, and does not only store them."""
    get_capabilities = getattr(torch.cpu, "get_capabilities", None)  # torch 2.10 has none
    if get_capabilities is None:
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    capabilities = get_capabilities()
    return any(capabilities.get(name) for name in BFLOAT16_INSTRUCTIONS)


def has_onednn_bfloat16() -> bool:
    """Whether this build of torch, on this processor, gives bfloat16 products to oneDNN."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def onednn_linear(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False
) -> torch.Tensor:
    """oneDNN's own linear layer on a CPU, without gradients, what inductor takes for frozen
    weights: `(..., d)`, `(e, d)`, `(e,)` or None -> `(..., e)`; `gelu`: with the exact GELU
    applied before the result is rounded."""
    attributes: tuple[str, list, str] = ("gelu", [], "none") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, *attributes)


def is_exact_gelu(activation: nn.Module) -> bool:
    """Whether `activation` is transformers' "gelu": `torch.nn.functional.gelu`, and not by tanh."""
    return type(activation) is GELUActivation and activation.act is nn.functional.gelu


# Under what `AutoVideoProcessor.register` keeps stock's processor beside ours. The Auto class
# looks for the name in a saved file among all that is registered, and takes the one under
# "torchvision" where it is asked for no backend.
STOCK_BACKEND = "stock"


def make_names_known(base_model: str, classifier: str) -> None:
    """Put the classes' names where transformers looks names up: the stock pipeline logs an error
    for a name that it does not know; others tell by name which class is without a head. The key is
    no model type, so nothing else reads it."""
    MODEL_MAPPING_NAMES["hf_timesformer"] = base_model
    MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES["hf_timesformer"] = classifier


__all__ = [
    "CHECKED",
    "EXPORT_TENSORS",
    "ForSequenceClassificationLoss",
    "NOTE_TAKERS",
    "OutputRecorder",
    "STOCK_BACKEND",
    "apart_from_adapters",
    "can_return_tuple",
    "capture_outputs",
    "cpu_computes_in_bfloat16",
    "get_relative_import_files",
    "has_onednn_bfloat16",
    "is_batched",
    "is_everything_watched",
    "is_exact_gelu",
    "is_exporting",
    "is_plain_eager",
    "is_transformed",
    "is_watched",
    "make_names_known",
    "maybe_autocast",
    "merge_with_config_defaults",
    "modules_below",
    "onednn_linear",
    "parameters_of",
]
