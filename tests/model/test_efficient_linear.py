"""Linear layers by oneDNN: the same numbers and gradients, and only where they may."""

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from tiny import SCHEMES, assert_close, clips, layer_by_layer, tiny_model
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from hf_timesformer.model import efficient_linear as module
from hf_timesformer.model.efficient_linear import call, linear, weight_gradient


@pytest.fixture
def convolutions(monkeypatch):
    """Counts what goes to oneDNN, which takes any size here."""
    monkeypatch.setattr(module, "ONEDNN_PRODUCTS", 0)
    monkeypatch.setattr(module, "ONEDNN_ROWS", 0)
    monkeypatch.setattr(module, "USES_ONEDNN", True)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with mock.patch.object(functional, "conv2d", wraps=functional.conv2d) as calls:
        yield calls
    torch.set_num_threads(threads)


class Linear(torch.nn.Linear):
    """A layer that is nothing but `linear`."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return linear(inputs, self.weight, self.bias)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def derivatives(function: Callable, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs, gradients, and gradients of the gradients."""
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    outputs = function(*tensors)
    first = torch.autograd.grad(outputs.sin().sum(), tensors, create_graph=True)
    second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), tensors)
    return [outputs, *first, *second]


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 4, 8), (2, 3, 5, 16), (40, 1), (1, 1, 24)])
@pytest.mark.parametrize("features", [1, 9, 32])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_derivatives(convolutions, shape, features, bias):
    tensors = [numbers(*shape), numbers(features, shape[-1])] + [numbers(features)] * bias
    found = derivatives(linear, tensors)
    assert convolutions.call_count == 1
    for one, other in zip(
        found, derivatives(functional.linear, [tensor.double() for tensor in tensors])
    ):
        assert_close(one, other, 1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (6, 4), (2, 3, 5, 8), (9, 1)])
def test_weight_gradient(convolutions, shape):
    inputs, outputs = numbers(*shape), numbers(*shape[:-1], 7)
    with mock.patch.object(module, "conv2d_weight", wraps=module.conv2d_weight) as calls:
        found = weight_gradient(outputs, inputs)
    assert calls.call_count == 1
    assert_close(found, outputs.flatten(0, -2).T @ inputs.flatten(0, -2), 1e-5)


def test_strided_inputs_and_weights(convolutions):
    inputs, weight = numbers(6, 5, 8).transpose(0, 1), numbers(8, 12).T
    assert_close(linear(inputs, weight), functional.linear(inputs, weight), 1e-5)
    assert convolutions.call_count == 1


class Operators(TorchDispatchMode):
    """Notes the names of what runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__.split(".")[0])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_strided_inputs_are_one_product(dtype, learns, bias):
    """Also for frozen weights, where PyTorch makes a batch of products of it, slow in bf16 on CPUs."""
    inputs = numbers(2, 3, 4, 5, 8).permute(0, 2, 3, 1, 4).to(dtype)
    weight, bias = (
        numbers(6, 8).to(dtype).requires_grad_(learns),
        numbers(6).to(dtype) if bias else None,
    )
    with torch.backends.mkldnn.flags(enabled=False), Operators() as ran:
        found = linear(inputs, weight, bias)
    assert_close(
        found,
        functional.linear(inputs.contiguous(), weight, bias),
        0.05 if dtype == torch.bfloat16 else 1e-5,
    )
    assert "bmm" not in ran.names
    assert sum(name in ("mm", "addmm") for name in ran.names) == 1


def test_a_gradient_for_each_clip(convolutions):
    weight, inputs = numbers(6, 4), numbers(3, 5, 4)

    def loss(weight: torch.Tensor, clip: torch.Tensor) -> torch.Tensor:
        return linear(clip, weight).sin().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, inputs)
    assert_close(found, torch.stack([torch.func.grad(loss)(weight, clip) for clip in inputs]), 1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("frames", [3, 4])
def test_networks_are_the_same(convolutions, scheme, frames):
    """Logits in inference, the loss, and all gradients."""
    model, clip = tiny_model(scheme, num_frames=frames), clips(2, frames, 3, 12, 8)
    found, expected = (logits_and_gradients(model, clip, onednn) for onednn in (True, False))
    assert convolutions.call_count > 20
    for one, other in zip(found, expected):
        assert_close(one, other, 1e-4)


def logits_and_gradients(
    model: torch.nn.Module, clip: torch.Tensor, onednn: bool
) -> list[torch.Tensor]:
    with torch.backends.mkldnn.flags(enabled=onednn):
        with torch.inference_mode():
            logits = model(clip).logits
        model.zero_grad()
        loss = model(clip, labels=torch.tensor([1, 3])).loss
        loss.backward()
    return [logits, loss, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_left_alone(convolutions, dtype):
    linear(numbers(6, 4).to(dtype), numbers(3, 4).to(dtype))
    assert not convolutions.called


def test_autocast_is_left_alone(convolutions):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(numbers(6, 4), numbers(3, 4)).dtype == torch.bfloat16
    assert not convolutions.called


def test_one_thread_is_left_alone(convolutions):
    torch.set_num_threads(1)
    linear(numbers(6, 4), numbers(3, 4))
    assert not convolutions.called


def test_who_allows_less_precision_has_it(convolutions):
    torch.set_float32_matmul_precision("medium")
    try:
        linear(numbers(6, 4), numbers(3, 4))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not convolutions.called


def test_other_kinds_of_tensors_are_left_alone(convolutions):
    class Quantised(torch.Tensor):
        pass

    linear(numbers(6, 4), numbers(3, 4).as_subclass(Quantised))
    assert not convolutions.called


@pytest.mark.parametrize(
    ("vendor", "wish", "expected"),
    [
        ("AuthenticAMD", "", True),
        ("GenuineIntel", "", False),
        ("GenuineIntel", "1", True),
        ("AuthenticAMD", "0", False),
    ],
)
def test_the_vendor_or_the_switch_decides(vendor, wish, expected, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu\n")
    assert module.prefers_onednn({module.SWITCH: wish}, cpuinfo) is expected


def test_a_switch_that_says_neither():
    with pytest.raises(ValueError, match="TIMESFORMER_ONEDNN='yes': it is 1"):
        module.prefers_onednn({module.SWITCH: "yes"})


def test_what_goes_to_mkl_is_left_alone(convolutions, monkeypatch):
    monkeypatch.setattr(module, "USES_ONEDNN", False)
    linear(numbers(6, 4), numbers(3, 4))
    assert not convolutions.called


def test_small_products_are_left_alone():
    with mock.patch.object(functional, "conv2d") as calls:
        linear(numbers(64, 64), numbers(64, 64))
        linear(numbers(8, 1024), numbers(1024, 1024))
    assert not calls.called


def test_exported_graphs_hold_matrix_products(convolutions):
    """Converters and quantisers know a linear layer by its product."""
    graph = torch.export.export(Linear(4, 3), (numbers(6, 4),)).graph
    assert not convolutions.called
    assert not any("conv" in str(node.target) for node in graph.nodes)
    traced = torch.jit.trace(Linear(4, 3), numbers(6, 4))
    assert "convolution" not in str(traced.graph)


def test_compiled_without_graph_breaks():
    layer, tokens = Linear(512, 512), numbers(2, 40, 512)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = []
    for function in (compiled, layer):
        outputs = function(tokens)
        results.append([outputs, *torch.autograd.grad(outputs.sin().sum(), layer.parameters())])
    for one, other in zip(*results):
        assert_close(one, other, 1e-5)


# Modules that are called


def test_a_called_module_multiplies_by_linear(convolutions):
    """Also in what is around a layer; hooks see the call, and what it gives is the same."""
    seen = []
    module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.GELU(), torch.nn.Linear(6, 3))
    module[0].register_forward_hook(lambda *args: seen.append(args[2].shape))
    start = numbers(2, 5, 4)

    def gradients(function: Callable) -> list[torch.Tensor]:
        module.zero_grad()
        inputs = start.clone().requires_grad_()
        outputs = function(inputs)
        outputs.sin().sum().backward()
        return [outputs, inputs.grad, *(parameter.grad for parameter in module.parameters())]

    found = gradients(lambda inputs: call(module, inputs))
    assert convolutions.call_count == 2
    for one, other in zip(found, gradients(module)):
        assert_close(one, other, 1e-5)
    assert convolutions.call_count == 2
    assert seen == [(2, 5, 6)] * 2


def test_a_called_module_of_another_kind_is_left_alone(convolutions):
    class Quantised(torch.Tensor):
        pass

    call(torch.nn.Linear(4, 3, dtype=torch.float64), numbers(6, 4).double())
    layer = torch.nn.Linear(4, 3)
    torch.func.vmap(lambda inputs: call(layer, inputs))(numbers(2, 6, 4))
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Quantised))
    call(layer, numbers(6, 4))
    assert not convolutions.called


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_plain_way_is_the_same(convolutions, scheme):
    model, clip = tiny_model(scheme, num_frames=3), clips(2, 3, 3, 12, 8)
    with layer_by_layer(model):
        found, expected = (logits_and_gradients(model, clip, onednn) for onednn in (True, False))
    layers = [m for m in model.timesformer.modules() if isinstance(m, torch.nn.Linear)]
    patches = 4  # two passes, twice
    assert convolutions.call_count == 2 * len(layers) + patches
    for one, other in zip(found, expected):
        assert_close(one, other, 1e-4)
