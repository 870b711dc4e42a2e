"""Gradients of every kind: recomputed, forward, under transforms, in float64; and what a pass
leaves behind.
"""

import copy
import pickle

import pytest
import torch
from tiny import SCHEMES, assert_close, clips, layer_by_layer, tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from hf_timesformer import TimeSformerForVideoClassification
from hf_timesformer.model.schemes import SCHEMES as STEPS


LABELS = torch.tensor([0, 3])
RANDOM = [
    {"hidden_dropout_prob": 0.3},
    {"attention_probs_dropout_prob": 0.3},
    {"drop_path_rate": 0.6},
]
EARLY = [scheme for scheme in SCHEMES if len(STEPS[scheme]) > 1]


def gradients_of(model: torch.nn.Module, forward=None) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    # reentrant recomputation wants an input with a gradient
    inputs = clips(2, 4, 3, 12, 8).requires_grad_()
    loss = (forward or (lambda inputs: model(inputs, labels=LABELS).loss))(inputs)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict, expected: dict, relative: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(found[name], gradient, relative) if gradient.abs().max() > 1e-5 else None


@pytest.mark.parametrize("whole", [False, True], ids=["each block", "whole network"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("fields", RANDOM, ids=lambda fields: next(iter(fields)))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_recomputed_is_what_ran(scheme, fields, reentrant, whole):
    """The same numbers are drawn in both passes, and they are those of a step without
    recomputation.
    """
    model = tiny_model(scheme, **fields).train()
    expected = gradients_of(model)
    if whole:
        found = gradients_of(
            model,
            lambda inputs: checkpoint(
                lambda x: model(x, labels=LABELS).loss, inputs, use_reentrant=reentrant
            ),
        )
    else:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        found = gradients_of(model)
    assert_same(found, expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradcheck_in_float64(scheme):
    fields = {
        "num_hidden_layers": 1,
        "num_frames": 2,
        "image_size": [4, 6],
        "position_interpolation": "bicubic",
    }
    model = tiny_model(scheme, hidden_size=4, intermediate_size=6, **fields).double()
    pixels = clips(1, 3, 3, 6, 4).double().requires_grad_()
    names = [
        name
        for name, _ in model.named_parameters()
        if name.endswith("bias") or "embeddings" in name
    ]
    names = [name for name in names if "projection" not in name]
    values = [model.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def logits(pixels, *values):
        given = {name.removeprefix("timesformer."): value for name, value in zip(names, values)}
        given = {f"timesformer.{n}" if "classifier" not in n else n: v for n, v in given.items()}
        return torch.func.functional_call(model, given, (pixels,)).logits

    assert torch.autograd.gradcheck(
        logits, (pixels, *values), eps=1e-6, atol=1e-9, rtol=1e-6, fast_mode=True
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_float64_has_its_digits(scheme):
    """A pass in eager attention against the same with every tensor widened: no float32 on the way."""
    model = tiny_model(scheme, attention="eager").double()
    pixels = clips(1, 3, 3, 10, 8).double()
    with torch.no_grad():
        eager = model(pixels).logits
        model.set_attn_implementation("sdpa")
        assert (model(pixels).logits - eager).abs().max() < 1e-12 * eager.abs().max()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_forward_mode_is_the_directional_derivative(scheme):
    """Along a weight of every kind, after a plain call, against the gradients of a backward pass."""
    model, inputs = tiny_model(scheme, attention="eager").eval(), clips(2, 4, 3, 12, 8)
    with torch.no_grad():
        model(inputs)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    directions = {name: torch.randn_like(p) for name, p in weights.items()}

    def total(weights):
        return torch.func.functional_call(model, weights, (inputs,)).logits[:, 1].sum()

    expected = torch.func.grad(total)(weights)
    for name in [n for n in weights if "layer.0" in n or "classifier" in n][::3]:
        only = {n: d if n == name else torch.zeros_like(d) for n, d in directions.items()}
        _, slope = torch.func.jvp(total, (weights,), (only,))
        torch.testing.assert_close(
            slope, (expected[name] * directions[name]).sum(), rtol=1e-3, atol=1e-4
        )
    name = "timesformer.encoder.layer.0.intermediate.dense.weight"
    with forward_ad.dual_level():
        dual = {name: forward_ad.make_dual(weights[name], directions[name])}
        slope = (
            forward_ad.unpack_dual(torch.func.functional_call(model, dual, (inputs,)).logits)
            .tangent[:, 1]
            .sum()
        )
    torch.testing.assert_close(
        slope, (expected[name] * directions[name]).sum(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_gradient_for_each_clip(scheme):
    model, inputs = tiny_model(scheme), clips(3, 4, 3, 12, 8)
    labels = torch.tensor([0, 3, 1])
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, clip, label):
        logits = torch.func.functional_call(model, weights, (clip[None],)).logits
        return torch.nn.functional.cross_entropy(logits, label[None])

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, inputs, labels)
    for index in range(3):
        model.zero_grad()
        model(inputs[index : index + 1], labels=labels[index : index + 1]).loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][index], parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_many_cotangents_at_once(scheme):
    """`is_grads_batched` runs the backward pass of an ordinary forward pass under vmap."""
    model, inputs = tiny_model(scheme), clips(2, 4, 3, 12, 8)
    logits = model(inputs).logits.flatten()
    parameters = list(model.timesformer.parameters())
    rows = torch.eye(logits.numel())[:3]
    batched = torch.autograd.grad(
        logits, parameters, rows, is_grads_batched=True, retain_graph=True
    )
    for index, row in enumerate(rows):
        for one, other in zip(
            batched, torch.autograd.grad(logits, parameters, row, retain_graph=True)
        ):
            torch.testing.assert_close(one[index], other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_of_ones_own_for_a_call(scheme):
    """As meta-learning does: the backward pass comes when the model has its own weights again."""
    model, inputs = tiny_model(scheme).train(), clips(2, 4, 3, 12, 8)
    other = tiny_model(scheme, seed=5).train()
    expected = gradients_of(other)
    weights = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    outputs = torch.func.functional_call(model, weights, (inputs,), {"labels": LABELS})
    outputs.loss.backward()
    assert_same({name: value.grad for name, value in weights.items()}, expected)


# What one pass leaves for the next


@pytest.mark.parametrize("scheme", EARLY)
def test_training_with_adapters_after_inference_mode(scheme):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
    tuned = peft.get_peft_model(tiny_model(scheme), config)
    inputs = clips(2, 4, 3, 12, 8)
    with torch.inference_mode():
        tuned(inputs)
    tuned(inputs, labels=LABELS).loss.backward()
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_after_inference_mode(scheme, frozen):
    """Also of the embeddings alone: then every block is frozen, and gradients go through it."""
    model = tiny_model(scheme)
    if frozen:
        model.timesformer.encoder.requires_grad_(False)
    expected = gradients_of(model)
    with torch.inference_mode():
        model(clips(2, 4, 3, 12, 8))
    assert_same(gradients_of(model), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_transforms_leave_the_model_as_it_was(scheme):
    model, inputs = tiny_model(scheme), clips(2, 4, 3, 12, 8)
    with torch.no_grad():
        before = model(inputs).logits
    stacked = torch.func.stack_module_state([tiny_model(scheme, seed=seed) for seed in (1, 2)])

    def call(parameters, buffers):
        return torch.func.functional_call(model, (parameters, buffers), (inputs,)).logits

    with torch.no_grad():
        members = torch.func.vmap(call)(*stacked)
        for index, seed in enumerate((1, 2)):
            assert_close(members[index], tiny_model(scheme, seed=seed)(inputs).logits, 1e-4)
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert model(inputs).logits.shape == (2, 5)
        assert torch.equal(model(inputs).logits, before)
    assert torch.isfinite(model(inputs, labels=LABELS).loss)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_stored_model_is_its_weights(scheme):
    model = tiny_model(scheme)
    size = len(pickle.dumps(model))
    with torch.no_grad():
        model(clips(2, 4, 3, 12, 8))
    assert abs(len(pickle.dumps(model)) - size) < 200
    twin = copy.deepcopy(model)
    assert isinstance(twin, TimeSformerForVideoClassification)


def test_numbers_swapped_where_their_sums_stay():
    """Two rows and two columns of a weight, written through `.data`: every row's and column's sum
    is what it was.
    """
    model, inputs = tiny_model("divided_space_time", image_size=[12, 8]), clips(1, 4, 3, 12, 8)
    weight = model.timesformer.encoder.layer[0].temporal_dense.weight
    weight.data[:2, :2] = torch.tensor([[5.0, -5.0], [-5.0, 5.0]])
    with torch.no_grad():
        before = model(inputs).logits
        weight.data[:2, :2] = torch.tensor([[-5.0, 5.0], [5.0, -5.0]])
        after = model(inputs).logits
        with layer_by_layer(model):
            assert_close(after, model(inputs).logits, 1e-5)
    assert not torch.allclose(before, after, atol=1e-2)
