"""Training: fused layers and what is computed again give the gradients of the layers run one by
one, and keep less.
"""

import copy

import pytest
import torch
from tiny import SCHEMES, assert_close, clips, layer_by_layer, tiny_model

from hf_timesformer.model.efficient_training import linear_after


LABELS = torch.tensor([0, 3])


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    torch.manual_seed(3)  # of dropout and drop path
    return model(clips(2, 4, 3, 12, 8), labels=LABELS).loss


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss_of(model).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_same_gradients(found: dict, expected: dict, relative: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(gradient.abs().max().item(), 1e-3)
        assert (found[name] - gradient).abs().max().item() <= relative * scale, name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_are_those_of_the_layers_one_by_one(scheme, attention, checkpointing):
    model = tiny_model(scheme, attention=attention).train()
    with layer_by_layer(model):
        expected = gradients_of(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same_gradients(gradients_of(model), expected)


@pytest.mark.parametrize(
    "fields", [{"hidden_dropout_prob": 0.3}, {"drop_path_rate": 0.6}], ids=lambda f: next(iter(f))
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_random_falls_as_it_does_layer_by_layer(scheme, fields):
    model = tiny_model(scheme, **fields).train()
    with layer_by_layer(model):
        expected = gradients_of(model)
    assert_same_gradients(gradients_of(model), expected)


@pytest.mark.parametrize(
    "frozen", ["layernorm_after", "intermediate", "output", "attention", "embeddings", "layer.0"]
)
def test_frozen_parts_stay_frozen(frozen):
    model = tiny_model("divided_space_time").train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    with layer_by_layer(model):
        expected = gradients_of(model)
    assert 0 < len(expected) < len(list(model.parameters()))
    assert_same_gradients(gradients_of(model), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_under_bf16_autocast(scheme):
    """As near to fp32's as those of the layers one by one."""
    model = tiny_model(scheme).train()
    exact = gradients_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients_of(model)
    with torch.autocast("cpu", torch.bfloat16), layer_by_layer(model):  # see test_bf16_autocast
        plain = gradients_of(model)

    def error(gradients: dict) -> torch.Tensor:
        differences = [
            (gradients[name] - exact[name]).norm() / (exact[name].norm() + 1e-3) for name in exact
        ]
        return torch.stack(differences).mean()

    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    assert error(found) <= 1.2 * error(plain) + 1e-3


def test_gradients_of_gradients():
    """A penalty on the gradient, as in some regularisers."""
    model = tiny_model("divided_space_time", attention="eager").train()

    def penalised() -> dict[str, torch.Tensor]:
        model.zero_grad()
        first = torch.autograd.grad(loss_of(model), list(model.parameters()), create_graph=True)
        sum(gradient.square().sum() for gradient in first).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    with layer_by_layer(model):
        expected = penalised()
    assert_same_gradients(penalised(), expected)


def test_function_transforms():
    model = tiny_model("divided_space_time", attention="eager").train()
    expected = gradients_of(model)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(values: dict) -> torch.Tensor:
        arguments = {"labels": LABELS, "return_dict": True}
        return torch.func.functional_call(model, values, (clips(2, 4, 3, 12, 8),), arguments).loss

    assert_same_gradients(torch.func.grad(loss)(parameters), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_shapes_alone_on_the_meta_device(scheme):
    """As flop counters and planners of memory run a network."""
    model = tiny_model(scheme).to("meta").train()
    loss = model(clips(2, 4, 3, 12, 8).to("meta"), labels=LABELS.to("meta")).loss
    loss.backward()
    assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())
    with torch.no_grad():
        assert model.eval()(clips(1, 4, 3, 12, 8).to("meta")).logits.shape == (1, 5)


def kept_for_the_gradients(model: torch.nn.Module) -> int:
    """Bytes of all tensors that the graph holds, the parameters left out."""
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(model)
    for parameter in model.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    loss.backward()
    return sum(storages.values())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_less_is_kept_for_the_gradients(scheme):
    """With an MLP four times as wide as the tokens, what it widens them to is kept once and not
    twice.
    """
    model = tiny_model(scheme, intermediate_size=64, num_hidden_layers=4).train()
    with layer_by_layer(model):
        plain = kept_for_the_gradients(model)
    assert kept_for_the_gradients(model) < 0.85 * plain


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 6), (0, 6)])
def test_linear_after_is_the_composition(shape, bias):
    torch.manual_seed(0)
    scale, linear = torch.randn(6, requires_grad=True), torch.nn.Linear(6, 4, bias=bias)
    inputs, weights = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], 4)
    twins = copy.deepcopy((scale, linear, inputs))
    expected = twins[1]((twins[2] * twins[0]).tanh())
    found = linear_after(lambda inputs, scale: (inputs * scale).tanh(), linear, inputs, scale)
    assert_close(found, expected, relative=1e-6) if expected.numel() else None
    for output in (found, expected):
        (output * weights).sum().backward()
    ours = [inputs, scale, *linear.parameters()]
    plain = [twins[2], twins[0], *twins[1].parameters()]
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
