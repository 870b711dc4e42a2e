"""The models: the fast path, fused layers, hooks, recorded states, initialisation, views."""

import copy
import logging as python_logging
import pickle

import pytest
import torch
from oracle import Oracle
from safetensors.torch import load_file, save_file
from tiny import (
    SCHEMES,
    STOCK_SCHEMES,
    assert_close,
    clips,
    layer_by_layer,
    tiny_config,
    tiny_model,
)
from transformers.utils import logging

from hf_timesformer import TimeSformerConfig, TimeSformerForVideoClassification, TimeSformerModel
from hf_timesformer.model.schemes import SCHEMES as STEPS


EARLY = [scheme for scheme in SCHEMES if len(STEPS[scheme]) > 1]


def every_token(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Logits by the path that keeps all tokens of the last block."""
    return model.classifier(model.timesformer(inputs).last_hidden_state[:, 0])


# CLS alone in the last block


@pytest.mark.parametrize("shape", [(4, 12, 8), (3, 10, 14), (1, 2, 2)], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_cls_alone_gives_the_same_logits_and_gradients(scheme, training, shape):
    model, inputs = tiny_model(scheme).train(training), clips(2, shape[0], 3, *shape[1:])
    gradients = []
    for forward in (lambda: model(inputs).logits, lambda: every_token(model, inputs)):
        model.zero_grad()
        logits = forward()
        torch.nn.functional.cross_entropy(logits, torch.tensor([1, 3])).backward()
        gradients.append(
            {name: p.grad.clone() for name, p in model.named_parameters()} | {"logits": logits}
        )
    for name, wanted in gradients[1].items():
        assert_close(gradients[0][name], wanted)
    with torch.no_grad():
        assert_close(model(inputs).logits, every_token(model, inputs), relative=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_views_are_averaged(scheme):
    model, inputs = tiny_model(scheme), clips(2, 3, 4, 3, 12, 8)
    with torch.no_grad():
        each = torch.stack([model(inputs[:, view]).logits for view in range(3)])
        assert_close(model(inputs).logits, each.mean(dim=0), relative=1e-5)


def test_loss_is_that_of_the_logits():
    model, inputs = tiny_model("axial"), clips(2, 4, 3, 12, 8)
    labels = torch.tensor([4, 0])
    outputs = model(inputs, labels=labels)
    assert_close(
        outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, labels), relative=1e-6
    )
    assert_close(model(inputs, labels=labels, return_dict=False)[0], outputs.loss, relative=1e-6)


# The output projection and the extra dense layer as one


def fused_equals_unfused(
    model: torch.nn.Module, inputs: torch.Tensor, relative: float = 1e-5
) -> None:
    """What inference and training give (fused) against what the same weights give layer by layer."""
    with layer_by_layer(model):
        expected = model.timesformer(inputs).last_hidden_state
    assert_close(model.timesformer(inputs).last_hidden_state, expected, relative)
    with torch.no_grad():
        assert_close(model.timesformer(inputs).last_hidden_state, expected, relative)


def _optimizer_step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model(clips(2, 4, 3, 12, 8, seed=9), labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()


def _load_state_dict(model):
    model.load_state_dict(tiny_model(model.config.attention_type, seed=7).state_dict())


def _write_through_data(model):
    for parameter in model.parameters():
        parameter.data.mul_(0.9)


def _replace_data(model):
    for parameter in model.parameters():
        parameter.data = parameter.data.flip(0)


def _one_element(model):
    step = STEPS[model.config.attention_type][0]
    getattr(model.timesformer.encoder.layer[1], f"{step}_dense").weight.data[3, 5] += 0.5


def _new_layer(model):
    step = STEPS[model.config.attention_type][0]
    for layer in model.timesformer.encoder.layer:
        setattr(layer, f"{step}_dense", torch.nn.Linear(16, 16))


CHANGES = [
    _optimizer_step,
    _load_state_dict,
    _write_through_data,
    _replace_data,
    _one_element,
    _new_layer,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__[1:])
@pytest.mark.parametrize("scheme", EARLY)
def test_the_fused_layers_follow_every_change(scheme, change):
    model, inputs = tiny_model(scheme), clips(1, 4, 3, 12, 8)
    with torch.no_grad():
        before = model.timesformer(inputs).last_hidden_state  # now the product is kept
    change(model)
    fused_equals_unfused(model, inputs)
    with torch.no_grad():
        assert not torch.allclose(model.timesformer(inputs).last_hidden_state, before, atol=1e-3)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_fuse_their_own_weights(copied):
    model, inputs = tiny_model("axial"), clips(1, 4, 3, 12, 8)
    with torch.no_grad():
        model(inputs)
    twin = copied(model)
    _write_through_data(twin)
    fused_equals_unfused(twin, inputs)
    fused_equals_unfused(model, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_fused_layers_change_their_dtype_with_the_model(dtype):
    model, inputs = tiny_model("divided_space_time"), clips(1, 4, 3, 12, 8)
    with torch.no_grad():
        expected = model(inputs).logits
        assert_close(model.to(dtype)(inputs.to(dtype)).logits.float(), expected, relative=0.1)
    fused_equals_unfused(model.to(torch.float32), inputs)


def test_autocast_leaves_nothing_behind_in_the_fused_layers():
    model, inputs = tiny_model("divided_space_time"), clips(1, 4, 3, 12, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(inputs)
    fused_equals_unfused(model, inputs)
    with torch.inference_mode():
        model(inputs)
    fused_equals_unfused(model, inputs)


@pytest.mark.parametrize("scheme", EARLY)
def test_lora_counts_before_and_after_merging(scheme):
    peft = pytest.importorskip("peft")
    model, inputs = tiny_model(scheme), clips(1, 4, 3, 12, 8)
    step = STEPS[scheme][0]
    with torch.no_grad():
        plain = model(inputs).logits
    targets = ["qkv", f"{step}_attention.output.dense", f"{step}_dense"]
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    ).eval()
    wrapped = tuned.base_model.model
    fused_equals_unfused(wrapped, inputs)
    with torch.no_grad():
        adapted = wrapped(inputs).logits
        assert not torch.allclose(adapted, plain, atol=1e-3)
        merged = tuned.merge_and_unload()
        assert_close(merged(inputs).logits, adapted, relative=1e-4)
    fused_equals_unfused(merged, inputs)


# Hooks and recorded tensors


@pytest.mark.parametrize("scheme", SCHEMES)
def test_hooks_on_every_linear_layer_count_in_inference(scheme):
    """Each sees what it would see with gradients on, and can change the logits."""
    model, inputs = tiny_model(scheme), clips(1, 4, 3, 12, 8)
    linears = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    ]
    for name in linears:
        seen = []

        def record_and_change(module, args, output, seen=seen):
            seen.append(output.detach().clone())
            return output * 1.5

        handle = model.get_submodule(name).register_forward_hook(record_and_change)
        expected = model(inputs).logits
        reference = list(seen)
        seen.clear()
        with torch.no_grad():
            actual = model(inputs).logits
        handle.remove()
        assert_close(actual, expected, relative=1e-5)
        assert len(seen) == len(reference) > 0, name
        for one, other in zip(seen, reference):
            assert_close(one, other, relative=1e-5)
    with torch.no_grad():
        assert not torch.allclose(model(inputs).logits, actual, atol=1e-3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pre_hooks_count_in_inference(scheme):
    model, inputs = tiny_model(scheme), clips(1, 4, 3, 12, 8)
    for module in [module for module in model.modules() if isinstance(module, torch.nn.Linear)]:
        handle = module.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
        expected = model(inputs).logits
        with torch.no_grad():
            actual = model(inputs).logits
        handle.remove()
        assert_close(actual, expected, relative=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_captured_outputs_stay_as_they_were(scheme):
    """Inference works in place, never on a tensor that somebody else holds."""
    model, inputs = tiny_model(scheme), clips(2, 4, 3, 12, 8)
    held = []

    def hold(module, args, output):
        values = (*args, *(output if isinstance(output, tuple) else (output,)))
        held.extend((value, value.clone()) for value in values if isinstance(value, torch.Tensor))

    for module in model.modules():
        if type(module).__name__.startswith("TimeSformer") or isinstance(
            module, torch.nn.LayerNorm
        ):
            module.register_forward_hook(hold)
    with torch.no_grad():
        outputs = model(inputs, output_hidden_states=True)
        expected = Oracle(model.config, model.state_dict())(inputs)["hidden_states"]
    assert len(held) > 20
    for value, copied in held:
        assert torch.equal(value, copied)
    for actual, wanted in zip(outputs.hidden_states, expected):
        assert_close(actual, wanted)


def test_the_input_of_a_block_alone_is_left_as_it_was():
    model = tiny_model("divided_space_time")
    tokens = clips(2, 1 + 6 * 4 * 4, 16)
    kept = tokens.clone()
    with torch.no_grad():
        model.timesformer.encoder.layer[0](tokens, (6, 4, 4))
    assert torch.equal(tokens, kept)


def test_a_hook_on_the_mlp_sees_all_tokens_at_once():
    """Inference takes the MLP in pieces, but not where somebody looks."""
    model, inputs = tiny_model("joint_space_time"), clips(2, 30, 3, 12, 8)
    shapes = []
    for name in ("layernorm_after", "intermediate", "output"):
        model.get_submodule(f"timesformer.encoder.layer.0.{name}").register_forward_hook(
            lambda module, args, output: shapes.append(tuple(output.shape))
        )
    with torch.no_grad():
        model(inputs)
    tokens = 1 + 30 * 6 * 4
    assert shapes == [(2, tokens, 16), (2, tokens, 24), (2, tokens, 16)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_attentions_without_eager_are_empty_and_said_to_be(scheme):
    logging.warning_once.cache_clear()
    model = tiny_model(scheme, attention="sdpa")
    with torch.no_grad(), Warnings() as warnings:
        outputs = model(clips(1, 4, 3, 12, 8), output_attentions=True)
    assert outputs.attentions == ()
    assert any('set_attn_implementation("eager")' in text and "'sdpa'" in text for text in warnings)
    model.set_attn_implementation("eager")
    with torch.no_grad(), Warnings() as warnings:
        assert len(model(clips(1, 4, 3, 12, 8), output_attentions=True).attentions) == 2
    assert warnings == []


class Warnings(list):
    """What transformers and this package log meanwhile."""

    loggers = ("transformers", "hf_timesformer")

    def __enter__(self):
        self.handler = python_logging.Handler()
        self.handler.emit = lambda record: self.append(record.getMessage())
        for name in self.loggers:
            python_logging.getLogger(name).addHandler(self.handler)
        return self

    def __exit__(self, *_):
        for name in self.loggers:
            python_logging.getLogger(name).removeHandler(self.handler)


# What a network starts from


@pytest.fixture
def filled_memory():
    """Memory that nobody wrote to holds NaN, so that it shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("filled_memory")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_parameter_is_initialised(scheme, tmp_path):
    """In a new network, and where a checkpoint lacks it."""
    config = tiny_config(scheme, hidden_size=64, num_attention_heads=4)
    new = TimeSformerForVideoClassification(config)
    save_file(
        {"timesformer.layernorm.bias": torch.full((64,), 3.0)}, tmp_path / "model.safetensors"
    )
    config.save_pretrained(tmp_path)
    filled_up = TimeSformerForVideoClassification.from_pretrained(tmp_path)
    assert torch.all(filled_up.timesformer.layernorm.bias == 3)
    for model in (new, filled_up):
        for name, parameter in model.named_parameters():
            layer = name.split(".")[-2]
            zeros = name.endswith("bias") or "time_embeddings" in name or layer in ZERO_LAYERS
            if name == "timesformer.layernorm.bias":
                continue
            if "norm" in layer and name.endswith("weight"):
                assert torch.all(parameter == 1), name
            elif zeros:
                assert torch.all(parameter == 0), name
            else:
                assert 0.012 < parameter.std() < 0.028, name
                assert abs(parameter.mean()) < 0.01, name


ZERO_LAYERS = {"temporal_dense", "local_dense", "width_dense"}


@pytest.mark.usefixtures("filled_memory")
def test_time_embeddings_that_a_checkpoint_lacks_are_zero(tmp_path):
    """Stock leaves them as uninitialised memory."""
    model = tiny_model("divided_space_time")
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["timesformer.embeddings.time_embeddings"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = TimeSformerForVideoClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"timesformer.embeddings.time_embeddings"}
    assert torch.all(loaded.timesformer.embeddings.time_embeddings == 0)


@pytest.mark.parametrize("scheme", STOCK_SCHEMES)
@pytest.mark.parametrize("kind", ["space", "none"])
def test_the_ablations_zeros_are_written_and_read_in_silence(scheme, kind, tmp_path):
    model, inputs = tiny_model(scheme, position_embedding_type=kind), clips(1, 4, 3, 12, 8)
    model.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    embeddings = "timesformer.embeddings."
    if scheme != "space_only":
        assert torch.equal(written[embeddings + "time_embeddings"], torch.zeros(1, 4, 16))
    if kind == "none":
        assert torch.equal(written[embeddings + "position_embeddings"], torch.zeros(1, 25, 16))
    with Warnings() as warnings:
        loaded, info = TimeSformerForVideoClassification.from_pretrained(
            tmp_path, output_loading_info=True
        )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert warnings == []
    names = {name for name, _ in loaded.named_parameters()}
    assert embeddings + "time_embeddings" not in names
    assert (embeddings + "position_embeddings" in names) == (kind == "space")
    with torch.no_grad():
        assert_close(loaded.eval()(inputs).logits, model(inputs).logits, relative=1e-6)


# What is refused


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ((1, 4, 3, 13, 8), ["height", "13", "2"]),
        ((1, 4, 3, 12, 7), ["width", "7", "2"]),
        ((1, 4, 1, 12, 8), ["1 channels", "3"]),
        ((4, 3, 12, 8), ["(4, 3, 12, 8)", "batch, frames, channels, height, width"]),
        ((1, 0, 3, 12, 8), ["none of them 0"]),
        ((1, 2, 2, 4, 3, 12, 8), ["(1, 2, 2, 4, 3, 12, 8)"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("scheme", ["space_only", "divided_space_time"])
def test_shapes_that_do_not_fit_are_named(scheme, shape, named):
    model = tiny_model(scheme)
    with pytest.raises(ValueError) as error, torch.no_grad():
        model(torch.zeros(shape))
    for text in named:
        assert text in str(error.value)


def test_pixels_must_be_given():
    with pytest.raises(TypeError, match="pixel_values"):
        tiny_model("axial")()


def test_base_model_is_the_classifiers_own():
    config = TimeSformerConfig(**tiny_config("axial").to_dict())
    model, base = tiny_model("axial"), TimeSformerModel(config).eval()
    base.load_state_dict(
        {k.removeprefix("timesformer."): v for k, v in model.state_dict().items() if "timesf" in k}
    )
    inputs = clips(1, 4, 3, 12, 8)
    with torch.no_grad():
        assert_close(
            model.classifier(base(inputs, cls_only=True).last_hidden_state[:, 0]),
            model(inputs).logits,
        )


# Stochastic depth


def test_stochastic_depth_drops_whole_clips_of_a_branch():
    """Patches and CLS of a clip together, scaled so that the mean stays; nothing in the first
    block.
    """
    model = tiny_model("divided_space_time", drop_path_rate=0.5).train()
    first, last = model.timesformer.encoder.layer
    torch.manual_seed(0)
    update = last.drop_path(torch.ones(2000, 3, 4))
    assert set(update.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(update, update[:, :1, :1].expand_as(update))
    assert abs(update.mean() - 1) < 0.1
    tokens = clips(3, 1 + 6 * 4 * 2, 16)
    assert_close(first(tokens, (6, 4, 2)), first.eval()(tokens, (6, 4, 2)), relative=1e-6)
    assert not torch.allclose(last(tokens, (6, 4, 2)), last.eval()(tokens, (6, 4, 2)), atol=1e-3)
