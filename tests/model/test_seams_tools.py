"""Quantisers and adapters: they find every layer, and what they put there is what runs."""

import copy

import pytest
import torch
from tiny import SCHEMES, assert_close, clips, layer_by_layer, tiny_model

from hf_timesformer.conversion.onnx_export import OnnxClassifier, export_onnx, fold
from hf_timesformer.model.schemes import SCHEMES as STEPS
from hf_timesformer.video.video_processing_timesformer import TimeSformerVideoProcessor


def linear_names(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_layer_is_a_plain_linear(scheme):
    model = tiny_model(scheme)
    # qkv, projection, extra dense but in the last; MLP; classifier
    layers = 2 * (len(STEPS[scheme]) * 3 - 1 + 2) + 1
    assert len(linear_names(model)) == layers
    assert all(type(model.get_submodule(name)) is torch.nn.Linear for name in linear_names(model))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dynamic_quantisation_takes_every_layer(scheme):
    """torch.ao's, which matches types, against a network whose weights are those int8 numbers."""
    torch.backends.quantized.engine = (
        "fbgemm" if "fbgemm" in torch.backends.quantized.supported_engines else "qnnpack"
    )
    model, inputs = tiny_model(scheme), clips(2, 4, 3, 12, 8)
    quantised = torch.ao.quantization.quantize_dynamic(
        copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8
    )
    for name in linear_names(model):
        layer = quantised.get_submodule(name)
        assert "quantized" in type(layer).__module__, name
        model.get_submodule(name).weight.data = layer.weight().dequantize()
    with torch.no_grad():
        found, expected = quantised(inputs).logits, model(inputs).logits
    assert_close(found, expected, 0.1)  # activations are rounded to int8 as well
    assert not torch.equal(found, expected)


@pytest.mark.parametrize(
    "config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"]
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_torchao(scheme, config):
    quantization = pytest.importorskip("torchao.quantization")
    model, inputs = tiny_model(scheme, hidden_size=32, intermediate_size=64), clips(2, 4, 3, 12, 8)
    with torch.no_grad():
        expected = model(inputs).logits
        quantization.quantize_(model, getattr(quantization, config)())
        assert_close(model(inputs).logits, expected, 0.2)
        with layer_by_layer(model):
            plain = model(inputs).logits
        assert_close(model(inputs).logits, plain, 1e-5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bitsandbytes(scheme, bits, tmp_path):
    bnb = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    from hf_timesformer import TimeSformerForVideoClassification

    model, inputs = (
        tiny_model(scheme, hidden_size=128, intermediate_size=256, num_labels=32),
        clips(2, 4, 3, 12, 8),
    )
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    loaded = TimeSformerForVideoClassification.from_pretrained(
        tmp_path, quantization_config=config, device_map="cpu"
    )
    kinds = (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit)
    names = [name for name in linear_names(model) if name != "classifier"]
    assert all(isinstance(loaded.get_submodule(name), kinds) for name in names)
    with torch.no_grad():
        assert_close(
            loaded(inputs).logits.float(), model(inputs).logits, 0.35 if bits == 8 else 0.8
        )  # random weights; stock is as far off


# Adapters


def with_adapters(scheme: str, targets: str = "all-linear", **fields) -> torch.nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    return peft.get_peft_model(tiny_model(scheme, **fields), config).eval()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_adapters_on_every_layer_merge_and_come_off(scheme):
    tuned, inputs = with_adapters(scheme, r".*(qkv|dense)"), clips(2, 4, 3, 12, 8)
    adapted = {n.rpartition(".")[0] for n, _ in tuned.named_modules() if n.endswith("base_layer")}
    assert len(adapted) == len([n for n in linear_names(tiny_model(scheme)) if n != "classifier"])
    with torch.no_grad():
        before = tuned(inputs).logits
        with tuned.disable_adapter():
            assert_close(tuned(inputs).logits, tiny_model(scheme)(inputs).logits, 1e-5)
        tuned.merge_adapter()
        assert_close(tuned(inputs).logits, before, 1e-4)
        tuned.unmerge_adapter()
        assert_close(tuned(inputs).logits, before, 1e-4)
        assert_close(tuned.merge_and_unload()(inputs).logits, before, 1e-4)
    assert not torch.allclose(before, tiny_model(scheme)(inputs).logits, atol=1e-2)


def processor() -> TimeSformerVideoProcessor:
    sizes = {"size": {"shortest_edge": 8}, "crop_size": {"height": 12, "width": 8}}
    return TimeSformerVideoProcessor(num_frames=4, sampling_rate=2, **sizes)


@pytest.mark.parametrize("how", ["PeftModel", "injected", "switched off"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_folded_copy_has_the_adapters_in_it(scheme, how):
    peft = pytest.importorskip("peft")
    inputs = clips(2, 4, 3, 12, 8)
    config = peft.LoraConfig(r=2, target_modules=r".*(qkv|dense)", init_lora_weights=False)
    if how == "PeftModel":
        tuned = peft.get_peft_model(tiny_model(scheme), config).eval()
    else:
        # as `add_adapter` does
        tuned = peft.inject_adapter_in_model(config, tiny_model(scheme)).eval()
    if how == "switched off":
        for module in tuned.modules():
            if hasattr(module, "get_base_layer"):
                module.enable_adapters(False)
    with torch.no_grad():
        expected = tuned(inputs).logits
        copied = fold(tuned)
        assert_close(copied(inputs).logits, expected, 1e-4)
        assert_close(tuned(inputs).logits, expected, 1e-6)
    assert all(type(copied.get_submodule(name)) is torch.nn.Linear for name in linear_names(copied))
    steps = STEPS[scheme][:-1]
    assert not any(
        name.endswith(tuple(f"{s}_dense" for s in steps)) for name in linear_names(copied) if steps
    )


def test_adapters_are_in_the_exported_graph(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    tuned, inputs = with_adapters("divided_space_time", r".*(qkv|dense)"), clips(2, 4, 3, 12, 8)
    export_onnx(tuned, processor(), tmp_path)
    with torch.no_grad():
        assert_close(OnnxClassifier(tmp_path, threads=1)(inputs).logits, tuned(inputs).logits, 1e-4)


def test_a_hook_is_in_the_folded_copy():
    model, inputs = tiny_model("axial"), clips(2, 4, 3, 12, 8)
    name = "timesformer.encoder.layer.0.temporal_attention.output.dropout"
    model.get_submodule(name).register_forward_hook(lambda module, args, output: 3 * output)
    with torch.no_grad():
        assert_close(fold(model)(inputs).logits, model(inputs).logits, 1e-5)
        assert not torch.allclose(
            model(inputs).logits, tiny_model("axial")(inputs).logits, atol=1e-2
        )


def test_quantised_weights_are_not_exported():
    quantization = pytest.importorskip("torchao.quantization")
    model = tiny_model("axial", hidden_size=32, intermediate_size=64)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    with pytest.raises(ValueError, match="before it is quantised"):
        fold(model)
