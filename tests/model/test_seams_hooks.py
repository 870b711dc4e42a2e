"""Whoever watches a module sees what the paper's network gives there: as often, and of the same
shape.
"""

import pytest
import torch
from oracle import Oracle
from tiny import SCHEMES, assert_close, clips, layer_by_layer, tiny_model
from torch.nn.modules.module import register_module_forward_hook

from hf_timesformer.model.schemes import SCHEMES as STEPS
from hf_timesformer.model.way import why_plain


GRID, TOKENS = (6, 4, 4), 96  # of 4 frames of 12 x 8 pixels
LABELS = torch.tensor([0, 3])


def watched_names(model: torch.nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def shapes_of(output) -> list[tuple]:
    values = output if isinstance(output, tuple) else (output,)
    return [tuple(value.shape) for value in values if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_hook_on_any_module_is_called_once_with_the_plain_shapes(scheme, gradients):
    model, inputs = tiny_model(scheme), clips(2, 4, 3, 12, 8)
    tokens = {"space_only": (8, 25)}.get(scheme, (2, 97))
    with torch.set_grad_enabled(gradients):
        for name in watched_names(model):
            seen = []
            module = model.get_submodule(name)
            handle = module.register_forward_hook(
                lambda *call, seen=seen: seen.append(shapes_of(call[2]))
            )
            model(inputs)
            handle.remove()
            if not isinstance(module, torch.nn.ModuleList) and not name.endswith("drop_path"):
                assert len(seen) == 1, name
            if name.endswith(
                ("layernorm_before", "attention.output.dropout", "layernorm_after", "output.dense")
            ):
                early = any(f"{step}_" in name for step in STEPS[scheme][:-1])
                assert seen == [[(tokens[0], tokens[1] - early, 16)]], name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_backward_hook_on_any_layer_of_the_network_counts(scheme):
    """One that zeroes the gradient of what a module gives leaves no gradient to that module's
    parameters.
    """
    model, inputs = tiny_model(scheme).train(), clips(2, 4, 3, 12, 8)
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    parents = [name.rpartition(".")[0] for name in layers if name.endswith("output.dense")]
    for name in (*layers, *parents):
        module = model.get_submodule(name)
        handle = module.register_full_backward_pre_hook(
            lambda module, grad: (torch.zeros_like(grad[0]),)
        )
        model.zero_grad()
        model(inputs, labels=LABELS).loss.backward()
        handle.remove()
        for parameter in module.parameters():
            assert torch.all(parameter.grad == 0), name


@pytest.mark.parametrize(
    "kind", ["full_backward_hook", "full_backward_pre_hook", "forward_pre_hook"]
)
def test_hooks_of_every_kind_are_called_in_training(kind):
    model = tiny_model("divided_space_time").train()
    called = []
    for name in watched_names(model):
        module = model.get_submodule(name)
        getattr(module, f"register_{kind}")(lambda *_, name=name: called.append(name))
    model(clips(2, 4, 3, 12, 8).requires_grad_(), labels=LABELS).loss.backward()
    # a list; torch has no such hooks for what is no tuple
    uncalled = {"timesformer.encoder.layer", "timesformer"}
    assert set(called) >= set(watched_names(model)) - uncalled


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("name", ["layernorm_before", "layernorm_after", "output", "attention"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_grad_cam_gets_an_activation_and_its_gradient(scheme, name, layer):
    """As pytorch-grad-cam takes them, a forward hook and a tensor hook on what it saw, against
    finite differences.
    """
    model, inputs = tiny_model(scheme), clips(2, 4, 3, 12, 8)
    module = getattr(model.timesformer.encoder.layer[layer], name)
    activations, gradients = [], []

    def keep(module, args, output):
        output = output[0] if isinstance(output, tuple) else output
        activations.append(output)
        output.register_hook(lambda grad: gradients.insert(0, grad))

    handle = module.register_forward_hook(keep)
    score = model(inputs).logits[:, 2].sum()
    score.backward()
    handle.remove()
    assert len(activations) == len(gradients) == 1
    assert activations[0].shape == gradients[0].shape
    assert activations[0].shape[1] == (25 if scheme == "space_only" else 97)

    direction = clips(*activations[0].shape, seed=5)

    def shifted(size: float) -> torch.Tensor:
        def add(module, args, output):
            first = output[0] if isinstance(output, tuple) else output
            return (
                (first + size * direction, *output[1:])
                if isinstance(output, tuple)
                else first + size * direction
            )

        handle = module.register_forward_hook(add)
        with torch.no_grad():
            value = model(inputs).logits[:, 2].double().sum()
        handle.remove()
        return value

    slope = (shifted(1e-2) - shifted(-1e-2)) / 2e-2
    assert_close((gradients[0] * direction).sum(), slope, 2e-2)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_hook_on_the_backbone_gets_all_tokens(scheme):
    model, inputs, seen = tiny_model(scheme), clips(2, 4, 3, 12, 8), []
    model.timesformer.register_forward_hook(
        lambda module, args, output: seen.append(output.last_hidden_state)
    )
    with torch.no_grad():
        logits = model(inputs).logits
    expected = Oracle(model.config, model.state_dict())(inputs)
    assert_close(seen[0], expected["last_hidden_state"])
    assert_close(logits, expected["logits"])


def test_a_hook_on_all_modules_sees_them_all():
    model, names = tiny_model("axial"), []
    by_module = {module: name for name, module in model.named_modules()}
    handle = register_module_forward_hook(lambda module, *_: names.append(by_module[module]))
    with torch.no_grad():
        model(clips(1, 4, 3, 12, 8))
    handle.remove()
    called = {name for name in names if name}
    assert called == set(watched_names(model)) - {"timesformer.encoder.layer"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_forward_of_ones_own_is_called(scheme):
    """On the instance, as accelerate does; on the class, as a patch does; and a module in another's
    place.
    """
    model, inputs = tiny_model(scheme), clips(1, 4, 3, 12, 8)
    layer = model.timesformer.encoder.layer[-1]

    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args):
            return 2 * self.inner(*args)

    with layer_by_layer(model), torch.no_grad():
        ordinary = model(inputs).logits
    inner = layer.intermediate
    layer.intermediate = Doubled(inner)
    with torch.no_grad():
        replaced = model(inputs).logits
    layer.intermediate = inner
    forward = inner.forward
    inner.forward = lambda hidden_states: 2 * forward(hidden_states)
    with torch.no_grad():
        wrapped = model(inputs).logits
    del inner.forward
    with torch.no_grad():
        assert_close(model(inputs).logits, ordinary, 1e-5)
    assert_close(wrapped, replaced, 1e-6)
    assert not torch.allclose(wrapped, ordinary, atol=1e-3)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_class_with_another_forward(gradients, monkeypatch):
    model, inputs = tiny_model("divided_space_time"), clips(1, 4, 3, 12, 8)
    original = torch.nn.Linear.forward
    with torch.no_grad():
        ordinary = model.timesformer(inputs).last_hidden_state
    called = []
    monkeypatch.setattr(
        torch.nn.Linear, "forward", lambda self, x: called.append(self) or original(self, x)
    )
    with torch.set_grad_enabled(gradients):
        assert_close(model.timesformer(inputs).last_hidden_state, ordinary, 1e-5)
    assert len(called) == len(
        [m for m in model.timesformer.modules() if isinstance(m, torch.nn.Linear)]
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_attention_function_of_ones_own_is_never_left_out(scheme):
    from transformers import AttentionInterface

    calls = []

    def own(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        calls.append(query.shape)
        scores = query @ key.mT * scaling
        scores = scores if attention_mask is None else scores + attention_mask
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    AttentionInterface.register("own", own)
    model, inputs = tiny_model(scheme), clips(1, 4, 3, 12, 8)
    with torch.no_grad():
        expected = model(inputs).logits
        model.config._attn_implementation = "own"
        assert_close(model(inputs).logits, expected, 1e-5)
        plain = len(calls)
    model(inputs)
    assert plain >= 2 * len(STEPS[scheme])
    assert len(calls) == 2 * plain


def test_recorders_do_not_slow_later_passes():
    """transformers leaves its recording hooks on the modules after the first pass that asked for
    them.
    """
    model, inputs = tiny_model("axial"), clips(1, 4, 3, 12, 8)
    with torch.no_grad():
        model(inputs, output_hidden_states=True, output_attentions=True)
        assert any(module._forward_hooks for module in model.timesformer.modules())
        assert why_plain(model.timesformer, torch.zeros(1, 97, 16)) is None
