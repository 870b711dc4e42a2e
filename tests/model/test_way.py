"""Each reason for the plain way, and each fast way where there is none: what runs is what `way.py`
says.
"""

import copy
import io
import pickle

import pytest
import torch
from tiny import SCHEMES, assert_close, clips, layer_by_layer, tiny_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils import prune as pruning
from torch.utils.flop_counter import FlopCounterMode

from hf_timesformer.model import modeling_timesformer
from hf_timesformer.model.way import (
    COMPILED,
    EXPORTED,
    INFERENCE,
    PLAIN,
    TRACED,
    TRAINING,
    choose_way,
    why_plain,
)


TOKENS = torch.zeros(1, 97, 16)


@pytest.fixture
def ways(monkeypatch):
    """The ways that passes took."""
    taken = []

    def choose(*args):
        taken.append(choose_way(*args))
        return taken[-1]

    monkeypatch.setattr(modeling_timesformer, "choose_way", choose)
    return taken


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ordinary_passes_take_the_fast_ways(scheme, ways):
    model, inputs = tiny_model(scheme), clips(1, 4, 3, 12, 8)
    with torch.no_grad():
        model(inputs)
        model.train()(inputs)
    model(inputs)
    copy.deepcopy(model)(inputs)
    pickle.loads(pickle.dumps(model))(inputs)
    assert ways == [INFERENCE, INFERENCE, TRAINING, TRAINING, TRAINING]


def test_exported_and_compiled(ways):
    model, inputs = tiny_model("axial"), clips(1, 4, 3, 12, 8)
    torch.export.export(model, (inputs,))
    assert ways == [EXPORTED]

    def numbered(tokens):
        return tokens + [PLAIN, EXPORTED, COMPILED].index(choose_way(model.timesformer, tokens))

    assert torch.compile(numbered, backend="eager", fullgraph=True)(TOKENS).max() == 2
    assert torch.compile(torch.func.vmap(numbered), backend="eager")(TOKENS[None]).max() == 0


def test_traced(ways):
    class Logits(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            return self.model(pixel_values).logits

    model, inputs = tiny_model("axial"), clips(1, 4, 3, 12, 8)
    torch.jit.trace(Logits(model), inputs, check_trace=False)
    assert set(ways) == {PLAIN}
    pytest.importorskip("onnx")
    ways.clear()
    torch.onnx.export(Logits(model), (inputs,), io.BytesIO(), dynamo=False, opset_version=17)
    assert set(ways) == {TRACED}


def test_counted_and_autocast_passes_are_ordinary(ways):
    model, inputs = tiny_model("axial"), clips(1, 4, 3, 12, 8)
    with torch.no_grad():
        with FlopCounterMode(display=False):
            model(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            model(inputs)
        model.bfloat16()(inputs.bfloat16())
    assert ways == [INFERENCE] * 3


def test_stochastic_depth_draws_the_same_with_and_without_gradients(ways):
    model, inputs = tiny_model("axial", drop_path_rate=0.5).train(), clips(2, 4, 3, 12, 8)
    with torch.no_grad():
        model(inputs)
    model(inputs)
    assert ways == [TRAINING, TRAINING]


def replace_a_module(model):
    model.timesformer.encoder.layer[1].layernorm_after = nn.Identity()


def subclass_a_layer(model):
    model.timesformer.encoder.layer[0].attention.attention.qkv.__class__ = type(
        "Own", (nn.Linear,), {}
    )


def add_a_module(model):
    model.timesformer.encoder.layer[0].own = nn.Linear(2, 2)


def parametrise(model):
    nn.utils.parametrizations.weight_norm(model.timesformer.encoder.layer[0].intermediate.dense)


def prune(model):
    pruning.random_unstructured(model.timesformer.encoder.layer[0].output.dense, "weight", 0.5)


def hook(model):
    model.timesformer.encoder.layer[0].output.dropout.register_forward_hook(lambda *_: None)


def backward_hook(model):
    model.timesformer.encoder.layer[0].register_full_backward_hook(lambda *_: None)


def own_forward(model):
    model.timesformer.embeddings.forward = model.timesformer.embeddings.forward


def compile_a_block(model):
    model.timesformer.encoder.layer[0].compile(backend="eager")


def subclass_a_weight(model):
    layer = model.timesformer.encoder.layer[0].output.dense
    kind = type("Quantised", (torch.Tensor,), {})
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(kind))


def drop_out(model):
    model.train()
    model.timesformer.encoder.layer[0].output.dropout.p = 0.1


def drop_weights(model):
    model.train()
    model.timesformer.encoder.layer[0].attention.attention.dropout = 0.1


CHANGES = {
    replace_a_module: "built of",
    subclass_a_layer: "built of",
    add_a_module: "built of",
    parametrise: "built of",
    prune: "hooks",
    hook: "hooks",
    backward_hook: "hooks",
    own_forward: "hooks",
    compile_a_block: "hooks",
    subclass_a_weight: "another kind of tensor",
    drop_out: "dropout",
    drop_weights: "dropout",
}


@pytest.mark.parametrize(
    ("change", "reason"), CHANGES.items(), ids=lambda value: getattr(value, "__name__", None)
)
def test_what_is_out_of_the_ordinary_is_named(change, reason):
    model = tiny_model("axial")
    assert why_plain(model.timesformer, TOKENS) is None
    change(model)
    assert reason in why_plain(model.timesformer, TOKENS)
    assert choose_way(model.timesformer, TOKENS) is PLAIN


def test_calls_that_are_out_of_the_ordinary():
    network = tiny_model("axial").timesformer
    reasons = [why_plain(network, TOKENS, records=True), why_plain(network, TOKENS.double())]
    reasons += [why_plain(network, TOKENS.to("meta"))]
    with forward_ad.dual_level():
        reasons.append(why_plain(network, TOKENS))
    torch.func.vmap(lambda tokens: reasons.append(why_plain(network, tokens)) or tokens)(
        TOKENS[None]
    )
    with FakeTensorMode() as mode:
        reasons.append(why_plain(network, mode.from_tensor(TOKENS)))
    expected = ["recorded", "float64", "meta", "forward-mode", "torch.func", "another kind"]
    assert all(word in reason for word, reason in zip(expected, reasons, strict=True))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_adapters_come_and_go(scheme, ways):
    peft = pytest.importorskip("peft")
    model, inputs = tiny_model(scheme), clips(1, 4, 3, 12, 8)
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
    ).eval()
    with torch.no_grad():
        before = tuned(inputs).logits
        merged = tuned.merge_and_unload()
        assert_close(merged(inputs).logits, before, 1e-4)
        with layer_by_layer(merged):
            assert_close(merged(inputs).logits, before, 1e-4)
    assert ways == [INFERENCE, INFERENCE, PLAIN]
