"""What is private in torch and transformers still does what this package takes it to do.

A failure here means that a release has renamed or changed it: mend `model/upstream.py`, the one
place that names it.
"""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_modules
from torch.utils.module_tracker import ModuleTracker
from transformers import PreTrainedModel

import hf_timesformer
from hf_timesformer.model import upstream


FOLDER = Path(hf_timesformer.__file__).parent / "model"


def test_private_names_stand_in_one_file():
    """No other file of the folder reads `torch._C`, a module's hooks, or a module of transformers'
    own use.
    """
    theirs = {
        "_C",
        "_modules",
        "_parameters",
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
    }
    modules = [
        f"transformers.{name}"
        for name in ("utils.generic", "utils.output_capturing", "dynamic_module_utils")
    ]
    for path in FOLDER.glob("*.py"):
        if path.name == "upstream.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Attribute) and node.attr in theirs), (
                f"{path.name}: {node.attr}"
            )
            assert not (isinstance(node, ast.ImportFrom) and node.module in modules), (
                f"{path.name}: {node.module}"
            )


def test_modules_below_are_all_of_them():
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    network.register_module("none", None)
    assert set(upstream.modules_below(network)) == set(network.modules()) - {network}


@pytest.mark.parametrize("fields", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_lora_is_known_by_its_names(fields):
    """Else every pass with adapters would be a slow one."""
    peft = pytest.importorskip("peft")
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    before = upstream.modules_below(network)
    config = peft.LoraConfig(r=2, target_modules=["0", "2"], lora_dropout=0.1, **fields)
    peft.inject_adapter_in_model(config, network)
    modules, adapters = upstream.apart_from_adapters(network)
    assert modules == before
    assert set(adapters) == set(network.modules()) - {network, *before}


HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)


@pytest.mark.parametrize("register", HOOKS)
def test_hooks_are_seen(register):
    module = nn.Linear(2, 2)
    assert not upstream.is_watched(module)
    handle = getattr(module, register)(lambda *_: None)
    assert upstream.is_watched(module)
    handle.remove()
    assert not upstream.is_watched(module)


@pytest.mark.parametrize(
    "register", [name.replace("register_", "register_module_") for name in HOOKS]
)
def test_hooks_on_all_modules_are_seen(register):
    assert not upstream.is_everything_watched()
    handle = getattr(torch_modules, register)(lambda *_: None)
    assert upstream.is_everything_watched()
    handle.remove()
    assert not upstream.is_everything_watched()


def test_wrapped_and_compiled_modules_are_seen():
    accelerate_hooks = pytest.importorskip("accelerate.hooks")
    wrapped, compiled = nn.Linear(2, 2), nn.Linear(2, 2)
    accelerate_hooks.add_hook_to_module(wrapped, accelerate_hooks.ModelHook())
    compiled.compile(backend="eager")
    assert upstream.is_watched(wrapped)
    assert upstream.is_watched(compiled)


def test_counters_of_flops_only_take_notes():
    with ModuleTracker():
        assert torch_modules._global_forward_hooks
        assert not upstream.is_everything_watched()


def test_transforms_are_seen():
    seen = []

    def look(tensor):
        seen.append(upstream.is_transformed())
        return tensor.sum()

    assert not upstream.is_transformed()
    numbers = torch.ones(2, 3)
    torch.func.vmap(look)(numbers)
    torch.func.grad(look)(numbers)
    torch.func.jvp(look, (numbers,), (numbers,))
    with forward_ad.dual_level():
        look(numbers)
    assert seen == [True] * 4
    assert not upstream.is_transformed()


def test_many_gradients_at_once_are_seen():
    seen = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            return tensor.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(upstream.is_batched(grad))
            return grad

    tensor = torch.ones(3, requires_grad=True)
    torch.autograd.grad(Look.apply(tensor), tensor, torch.eye(3), is_grads_batched=True)
    torch.autograd.grad(Look.apply(tensor).sum(), tensor)
    assert seen == [True, False]


def test_weights_given_for_a_call_are_seen():
    module, seen = nn.Linear(2, 2), []
    module.register_forward_hook(lambda module, *_: seen.extend(upstream.parameters_of(module)))
    weights = {name: torch.ones_like(parameter) for name, parameter in module.named_parameters()}
    torch.func.functional_call(module, weights, (torch.ones(1, 2),))
    assert [any(one is given for given in weights.values()) for one in seen] == [True, True]


def test_names_are_where_transformers_looks_for_them():
    from transformers.models.auto import modeling_auto

    classifiers = modeling_auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES.values()
    assert "TimeSformerForVideoClassification" in classifiers
    assert "TimeSformerModel" in modeling_auto.MODEL_MAPPING_NAMES.values()


def test_recording_hooks_come_from_where_they_did():
    """Else every pass after the first that recorded something would be a slow one."""
    from tiny import clips, tiny_model

    model = tiny_model("divided_space_time")
    with torch.no_grad():
        model(clips(1, 4, 3, 12, 8), output_hidden_states=True)
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    assert len(hooks) >= 2
    assert all(hook.__module__ in upstream.NOTE_TAKERS for hook in hooks)


def test_class_attributes_are_those_that_transformers_reads():
    """`_no_split_modules`, `_can_record_outputs`, ...: nobody reads one under a name it had."""
    own = vars(hf_timesformer.TimeSformerPreTrainedModel)
    private = [name for name in own if name.startswith("_") and not name.startswith("__")]
    private.remove("_own_config")
    assert "_init_weights" in private
    for name in private:
        assert hasattr(PreTrainedModel, name), name


@pytest.mark.parametrize("instruction", [None, *upstream.BFLOAT16_INSTRUCTIONS])
def test_bfloat16_on_this_processor(instruction, monkeypatch):
    assert isinstance(upstream.cpu_computes_in_bfloat16(), bool)
    found = {"avx2": True, instruction: True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert upstream.cpu_computes_in_bfloat16() is (instruction is not None)


def test_the_versions_checked_are_named():
    for name, version in upstream.CHECKED.items():
        assert len(version.split(".")) == 3, name
