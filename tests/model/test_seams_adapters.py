"""LoRA in the fast ways: what they give with adapters is what the plain way gives."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from tiny import SCHEMES, assert_close, clips, layer_by_layer, tiny_model

from hf_timesformer.model.way import why_plain


peft = pytest.importorskip("peft")

TOKENS = torch.zeros(1, 97, 16)
INPUTS, LABELS = clips(2, 4, 3, 12, 8), torch.tensor([0, 3])
EVERY = r".*(qkv|dense)"
# Which layers have one: none of two maps in a row, one of them, both; none of the MLP's, one, both.
KINDS = {
    "qkv": {"target_modules": ["qkv"]},
    "every layer": {"target_modules": EVERY},
    "DoRA": {"target_modules": EVERY, "use_dora": True},
    "half of each pair": {"target_modules": r".*(_attention\.output|intermediate)\.dense"},
    "other half": {"target_modules": r".*(_dense|layer\.\d\.output\.dense)"},
}


def adapt(model: torch.nn.Module, **fields) -> torch.nn.Module:
    torch.manual_seed(4)
    fields = {"r": 2, "init_lora_weights": False, "modules_to_save": ["classifier"], **fields}
    return peft.get_peft_model(model, peft.LoraConfig(**fields))


def network_of(tuned: torch.nn.Module) -> torch.nn.Module:
    return tuned.get_base_model().timesformer


def results_of(tuned: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The logits, all tokens, the loss and the gradients of a step, by name."""
    with torch.no_grad():
        yield "logits", tuned.eval()(INPUTS).logits
        yield "tokens", network_of(tuned)(INPUTS).last_hidden_state
    tuned.train().zero_grad()
    torch.manual_seed(3)
    # within one autocast torch 2.10 takes the weights that it cast without gradients again
    torch.clear_autocast_cache()
    loss = tuned(INPUTS.clone().requires_grad_(), labels=LABELS).loss
    loss.backward()
    yield "loss", loss.detach()
    for name, parameter in tuned.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad.clone()


def assert_as_plain(tuned: torch.nn.Module, relative: float = 1e-4) -> dict[str, torch.Tensor]:
    assert why_plain(network_of(tuned), TOKENS) is None
    found = dict(results_of(tuned))
    with layer_by_layer(tuned):
        assert "hooks" in why_plain(network_of(tuned), TOKENS)
        expected = dict(results_of(tuned))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        scale = max(values.abs().max().item(), 1e-3)
        assert (found[name] - values).abs().max().item() <= relative * scale, name
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_and_gradients(scheme, kind):
    found = assert_as_plain(adapt(tiny_model(scheme), **KINDS[kind]))
    if kind != "other half" or scheme not in SCHEMES[:2]:
        assert any("lora_A" in name for name in found)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_when_the_layers_below_learn_too(scheme):
    tuned = adapt(tiny_model(scheme, drop_path_rate=0.4), **KINDS["half of each pair"])
    tuned.requires_grad_(True)
    assert_as_plain(tuned)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_token_is_dropped_out_once_in_an_adapter(scheme, kind, monkeypatch):
    """With a dropout that goes by the numbers that it is given, in place of random ones."""

    def by_values(inputs, p=0.5, training=True, inplace=False):
        return inputs * (1 + p * torch.tanh(inputs)) if training else inputs

    monkeypatch.setattr(torch.nn.functional, "dropout", by_values)
    tuned = adapt(tiny_model(scheme), lora_dropout=0.4, **KINDS[kind])
    with_dropout = assert_as_plain(tuned)["loss"]
    without = dict(results_of(adapt(tiny_model(scheme), **KINDS[kind])))["loss"]
    if kind != "other half" or scheme not in SCHEMES[:2]:
        assert not torch.allclose(with_dropout, without, rtol=1e-3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_merged_off_and_two_at_once(scheme):
    tuned = adapt(tiny_model(scheme), **KINDS["every layer"])
    tuned.add_adapter(
        "second", peft.LoraConfig(r=3, target_modules=["qkv"], init_lora_weights=False)
    )
    one = assert_as_plain(tuned)["logits"]
    tuned.base_model.set_adapter(["default", "second"])
    two = assert_as_plain(tuned)["logits"]
    tuned.merge_adapter()
    assert_close(assert_as_plain(tuned)["logits"], two, 1e-3)
    tuned.unmerge_adapter()
    with tuned.disable_adapter():
        none = assert_as_plain(tuned)["logits"]
    assert not torch.allclose(one, two, atol=1e-2)
    assert not torch.allclose(one, none, atol=1e-2)


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_recomputed_is_what_ran(scheme, dropout, reentrant):
    tuned = adapt(tiny_model(scheme), lora_dropout=dropout, **KINDS["every layer"])
    expected = dict(results_of(tuned))
    assert why_plain(network_of(tuned), TOKENS) is None
    tuned.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for name, values in results_of(tuned):
        torch.testing.assert_close(values, expected[name], rtol=1e-4, atol=1e-5)
    tuned.eval()
    assert why_plain(network_of(tuned), TOKENS) is None


@pytest.mark.parametrize("scheme", SCHEMES)
def test_under_bf16_autocast(scheme):
    tuned = adapt(tiny_model(scheme), **KINDS["every layer"])
    exact = dict(results_of(tuned))
    with torch.autocast("cpu", torch.bfloat16):
        found = dict(results_of(tuned))
        with layer_by_layer(tuned):
            plain = dict(results_of(tuned))

    def error(results: dict) -> float:
        differences = [(results[n] - v).norm() / (v.norm() + 1e-3) for n, v in exact.items()]
        return torch.stack(differences).mean().item()

    assert all(found[name].dtype == plain[name].dtype for name in plain)
    assert error(found) <= 1.2 * error(plain) + 1e-3


def test_compiled_and_exported():
    tuned = adapt(tiny_model("divided_space_time", num_hidden_layers=1), **KINDS["qkv"])
    network = network_of(tuned.eval())
    with torch.no_grad():
        expected = network(INPUTS, cls_only=True).last_hidden_state
        torch._dynamo.reset()
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        assert_close(compiled(INPUTS, cls_only=True).last_hidden_state, expected)
        exported = torch.export.export(network, (INPUTS,), {"cls_only": True}).module()
        assert_close(exported(INPUTS, cls_only=True).last_hidden_state, expected)


def own_part(tuned):
    layer = network_of(tuned).encoder.layer[0].attention.attention.qkv.lora_A["default"]
    layer.__class__ = type("Own", (torch.nn.Linear,), {})


def own_adapter(tuned):
    layer = network_of(tuned).encoder.layer[0].attention.attention.qkv
    layer.__class__ = type("Own", (type(layer),), {})


def own_layer_below(tuned):
    layer = network_of(tuned).encoder.layer[0].attention.attention.qkv.base_layer
    layer.__class__ = type("Own", (torch.nn.Linear,), {})


def own_weight(tuned):
    layer = network_of(tuned).encoder.layer[0].attention.attention.qkv.lora_A["default"]
    kind = type("Quantised", (torch.Tensor,), {})
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(kind))


def hook_on_a_part(tuned):
    layer = network_of(tuned).encoder.layer[0].attention.attention.qkv.lora_B["default"]
    layer.register_forward_hook(lambda *_: None)


OTHERS = {
    own_part: "built of",
    own_adapter: "built of",
    own_layer_below: "built of",
    own_weight: "another kind of tensor",
    hook_on_a_part: "hooks",
}


@pytest.mark.parametrize(
    ("change", "reason"), OTHERS.items(), ids=lambda v: getattr(v, "__name__", "")
)
def test_what_is_not_lora_of_a_plain_layer_goes_the_plain_way(change, reason):
    tuned = adapt(tiny_model("axial"), **KINDS["every layer"])
    change(tuned)
    assert reason in why_plain(network_of(tuned), TOKENS)


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=["qkv"], feedforward_modules=[]),
        peft.LoKrConfig(target_modules=["qkv"]),
        peft.LoraConfig(target_modules=["qkv"], modules_to_save=["layernorm_after"]),
        peft.LoraConfig(target_modules=["qkv"], alora_invocation_tokens=[1]),
    ],
    ids=["IA3", "LoKr", "a LayerNorm to save", "a variant by token"],
)
def test_other_adapters_go_the_plain_way(config):
    tuned = peft.get_peft_model(tiny_model("divided_space_time"), config)
    assert "built of" in why_plain(network_of(tuned), TOKENS)
    values = dict(results_of(tuned))
    assert values["tokens"].shape == (2, 97, 16)


def test_a_quantised_base_goes_the_plain_way():
    quantization = pytest.importorskip("torchao.quantization")
    model = tiny_model("divided_space_time", hidden_size=32, intermediate_size=64)
    quantization.quantize_(model.timesformer, quantization.Int8WeightOnlyConfig())
    with contextlib.suppress(ImportError):  # PEFT knows some versions of torchao alone
        tuned = adapt(model, target_modules=["qkv"])
        assert why_plain(network_of(tuned), torch.zeros(1, 97, 32)) is not None


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_hooks_see_the_plain_shapes(scheme, gradients):
    """On an adapter, on its parts and on the layer below, in the block of which CLS alone is read."""
    tuned = adapt(tiny_model(scheme), **KINDS["every layer"]).train(gradients)
    block, seen = network_of(tuned).encoder.layer[-1], {}
    for name in ("attention.attention.qkv", "output.dense"):
        for part in ("", ".base_layer", ".lora_A.default"):
            block.get_submodule(name + part).register_forward_hook(
                lambda m, a, output, key=name + part: seen.setdefault(key, []).append(output.shape)
            )
    with torch.set_grad_enabled(gradients):
        tuned(INPUTS)
    tokens = (8, 25) if scheme == "space_only" else (2, 97)
    assert len(seen) == 6
    assert all(len(s) == 1 and s[0][:2] == tokens for s in seen.values())
