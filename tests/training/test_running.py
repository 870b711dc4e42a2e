"""Every way to load, run and train the network that transformers users have, on one process."""

import logging

import pytest
import torch
from accelerate import dispatch_model, infer_auto_device_map
from tiny import SCHEMES, assert_close, clips, tiny_config, tiny_model
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoModelForVideoClassification
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_timesformer import TimeSformerForVideoClassification, TimeSformerModel


CLIPS, LABELS = clips(2, 4, 3, 12, 8), torch.tensor([1, 3])
# What a block of each scheme asks an attention function for; `local` asks once for each tile of the
# 6 x 4 grid.
CALLS = {
    "space_only": {"space"},
    "joint_space_time": {"joint"},
    "divided_space_time": {"temporal", "space"},
    "sparse_local_global": {"local", "global"},
    "axial": {"temporal", "width", "height"},
}


@torch.no_grad()
def logits_of(model: torch.nn.Module, pixel_values: torch.Tensor = CLIPS) -> torch.Tensor:
    return model(pixel_values).logits


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(CLIPS, labels=LABELS).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bf16_autocast(scheme):
    model = tiny_model(scheme)
    expected, gradients = logits_of(model), gradients_of(model)
    # Each in a context of its own: PyTorch before 2.11 gives no gradients to weights that it cast
    # without them before.
    with torch.autocast("cpu", torch.bfloat16):
        found = logits_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        low_gradients = gradients_of(model.train())
    assert found.dtype == torch.bfloat16
    assert_close(found, expected, 0.1)
    for name, gradient in gradients.items():
        assert low_gradients[name].dtype == torch.float32
        assert (low_gradients[name] - gradient).norm() <= 0.15 * gradient.norm() + 1e-3, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_half_precision_weights(scheme, dtype, tmp_path):
    """fp32 files load in half precision and run; half files load as they are, or in fp32 when asked
    to.
    """
    model = tiny_model(scheme)
    model.save_pretrained(tmp_path / "full")
    half = TimeSformerForVideoClassification.from_pretrained(
        tmp_path / "full", dtype=dtype, device_map="cpu"
    )
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    found = logits_of(half, CLIPS.to(dtype))
    assert found.dtype == dtype
    assert_close(found, logits_of(model), 0.1)
    half.save_pretrained(tmp_path / "half")
    for wanted, expected in (
        (None, dtype),
        ("auto", dtype),
        (torch.float32, torch.float32),
        ("float32", torch.float32),
    ):
        kwargs = {} if wanted is None else {"dtype": wanted}
        loaded = AutoModelForVideoClassification.from_pretrained(tmp_path / "half", **kwargs)
        assert {parameter.dtype for parameter in loaded.parameters()} == {expected}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradient_checkpointing(scheme, reentrant):
    model = tiny_model(scheme).train()
    expected = gradients_of(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert all(layer.gradient_checkpointing for layer in model.timesformer.encoder.layer)
    found = gradients_of(model)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    model.gradient_checkpointing_disable()
    assert not any(layer.gradient_checkpointing for layer in model.timesformer.encoder.layer)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_batch_of_any_size(scheme):
    """Clips of a batch do not see each other."""
    model, batch = tiny_model(scheme), clips(3, 4, 3, 12, 8)
    together = logits_of(model, batch)
    for index in range(3):
        assert_close(logits_of(model, batch[index : index + 1]), together[index : index + 1], 1e-5)


@pytest.mark.parametrize("auto", [False, True], ids=["class", "auto"])
@pytest.mark.parametrize("how", ["arguments", "config", "folder"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_loading_for_other_clips(scheme, how, auto, tmp_path, caplog):
    """`num_frames=` and `image_size=`: one logged line; what the checkpoint itself gives for such
    clips.
    """
    small = tiny_model(scheme)
    small.save_pretrained(tmp_path / "small")
    wanted = {"num_frames": 8, "image_size": [16, 8]}
    if how == "config":
        kwargs = {"config": AutoConfig.from_pretrained(tmp_path / "small", **wanted)}
    elif how == "folder":
        tiny_config(scheme, **wanted).save_pretrained(tmp_path / "wanted")
        kwargs = {"config": str(tmp_path / "wanted")}
        if auto:
            kwargs = {"config": AutoConfig.from_pretrained(tmp_path / "wanted")}
    else:
        kwargs = wanted
    cls = AutoModelForVideoClassification if auto else TimeSformerForVideoClassification
    with caplog.at_level(logging.WARNING):
        model = cls.from_pretrained(tmp_path / "small", **kwargs)
    lines = [record.getMessage() for record in caplog.records if "resized" in record.getMessage()]
    assert len(lines) == 1
    assert "4 frames of [12, 8] to 8 frames of [16, 8]" in lines[0]
    assert (model.config.num_frames, list(model.config.image_size)) == (8, [16, 8])
    embeddings = model.timesformer.embeddings
    assert embeddings.position_embeddings.shape[1] == 8 * 4 + 1
    if scheme != "space_only":
        assert embeddings.time_embeddings.shape[1] == 8
    batch = clips(2, 8, 3, 16, 8)
    assert_close(logits_of(model, batch), logits_of(small, batch), 1e-5)
    model.save_pretrained(tmp_path / "large")
    assert_close(
        logits_of(AutoModelForVideoClassification.from_pretrained(tmp_path / "large"), batch),
        logits_of(model, batch),
        1e-6,
    )


def test_loading_as_saved_logs_nothing(tmp_path, caplog):
    tiny_model("axial").save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        TimeSformerForVideoClassification.from_pretrained(
            tmp_path, num_frames=4, image_size=[12, 8]
        )
        AutoModelForVideoClassification.from_pretrained(tmp_path)
    assert "resized" not in caplog.text


def test_loading_for_clips_that_fit_no_patch(tmp_path):
    tiny_model("axial").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="image_size"):
        TimeSformerForVideoClassification.from_pretrained(tmp_path, image_size=[13, 8])


def test_weights_without_a_config(tmp_path):
    """A folder of weights alone, with a config object."""
    model = tiny_model("axial")
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    loaded = TimeSformerForVideoClassification.from_pretrained(
        tmp_path, config=tiny_config("axial")
    )
    assert_close(logits_of(loaded), logits_of(model), 1e-6)


@pytest.mark.parametrize("scheme", ["divided_space_time", "axial"])
def test_other_labels(scheme, tmp_path):
    """Another number of labels is an error unless the classifier may be made anew; all else is
    loaded.
    """
    model = tiny_model(scheme)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        TimeSformerForVideoClassification.from_pretrained(tmp_path, num_labels=3)
    loaded = AutoModelForVideoClassification.from_pretrained(
        tmp_path, num_labels=3, ignore_mismatched_sizes=True
    )
    assert logits_of(loaded).shape == (2, 3)
    assert torch.equal(loaded.classifier.bias, torch.zeros(3))
    assert 0 < loaded.classifier.weight.std() < 0.05
    for name, value in model.timesformer.state_dict().items():
        assert torch.equal(loaded.timesformer.state_dict()[name], value), name


def test_base_model_and_classifier_load_each_other(tmp_path):
    model = tiny_model("sparse_local_global")
    model.save_pretrained(tmp_path / "classifier")
    base = AutoModel.from_pretrained(tmp_path / "classifier")
    assert isinstance(base, TimeSformerModel)
    with torch.no_grad():
        assert_close(
            base(CLIPS).last_hidden_state, model.timesformer(CLIPS).last_hidden_state, 1e-6
        )
    base.save_pretrained(tmp_path / "base")
    again = TimeSformerForVideoClassification.from_pretrained(tmp_path / "base", num_labels=5)
    for name, value in model.timesformer.state_dict().items():
        assert torch.equal(again.timesformer.state_dict()[name], value), name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_meta_device(scheme):
    """Built without memory, filled afterwards: no buffer or constant is left behind on the meta
    device.
    """
    model = tiny_model(scheme)
    with torch.device("meta"):
        empty = TimeSformerForVideoClassification(tiny_config(scheme))
    assert all(tensor.is_meta for tensor in [*empty.parameters(), *empty.buffers()])
    empty.load_state_dict(model.state_dict(), assign=True)
    assert_close(logits_of(empty.eval()), logits_of(model), 1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_offloaded_to_disk(scheme, tmp_path):
    """accelerate's hooks bring a module's weights only for its own call: no shortcut may read them
    without it.
    """
    model = tiny_model(scheme)
    expected = logits_of(model)
    size = sum(parameter.nbytes for parameter in model.timesformer.encoder.layer[0].parameters())
    devices = infer_auto_device_map(
        model, max_memory={"cpu": 2 * size}, no_split_module_classes=model._no_split_modules
    )
    assert "disk" in devices.values()
    offloaded = dispatch_model(model, devices, main_device="cpu", offload_dir=tmp_path)
    assert_close(logits_of(offloaded), expected, 1e-6)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_attention_is_chosen_at_run_time(scheme, name):
    model = tiny_model(scheme)
    expected = logits_of(model)
    model.set_attn_implementation("eager" if name == "sdpa" else "sdpa")
    model.set_attn_implementation(name)
    assert model.config._attn_implementation == name
    assert {
        module.config._attn_implementation for module in model.modules() if hasattr(module, "step")
    } == {name}
    assert_close(logits_of(model), expected, 1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_own_attention_function_is_called(scheme):
    """A function that a user registers runs every step, with the step's own module and scaling."""
    seen = set()

    def counted(module, query, key, value, attention_mask, **kwargs):
        assert query.shape[1] == 2
        assert query.shape[-1] == 8
        assert kwargs["scaling"] == pytest.approx(8**-0.5)
        seen.add(module.step)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    model = tiny_model(scheme)
    expected = logits_of(model)
    AttentionInterface.register("counted", counted)
    try:
        model.set_attn_implementation("counted")
        assert_close(logits_of(model), expected, 1e-5)
        assert seen == CALLS[scheme]
    finally:
        del AttentionInterface._global_mapping["counted"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lora_on_qkv(scheme, tmp_path):
    """Trains the adapter alone, gives equal logits once merged, saves and loads as an adapter."""
    peft = pytest.importorskip("peft")
    model = tiny_model(scheme)
    before = logits_of(model)
    model.save_pretrained(tmp_path / "base")
    base = TimeSformerForVideoClassification.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["qkv"], modules_to_save=["classifier"]
    )
    adapted = peft.get_peft_model(base, config)
    assert_close(logits_of(adapted), before, 1e-5)  # a new adapter adds nothing
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "classifier" in name for name in trained)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        adapted.train()(CLIPS, labels=LABELS).loss.backward()
        optimizer.step()
    after = logits_of(adapted.eval())
    moved = {
        name
        for name, parameter in adapted.named_parameters()
        if "lora_B" in name and parameter.abs().max() > 0
    }
    # of both blocks: CLS's shortcut in the last one trains too
    assert len(moved) == 2 * len(CALLS[scheme])
    assert (after - before).abs().max() > 0.01
    adapted.save_pretrained(tmp_path / "adapter")
    assert_close(logits_of(adapted.merge_and_unload()), after, 1e-4)
    reopened = peft.PeftModel.from_pretrained(
        TimeSformerForVideoClassification.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    assert_close(logits_of(reopened.eval()), after, 1e-5)


def test_adapter_folder_opens_by_itself(tmp_path):
    """`from_pretrained` of an adapter's folder loads the base model that it names and puts the
    adapter on it.
    """
    peft = pytest.importorskip("peft")
    tiny_model("divided_space_time").save_pretrained(tmp_path / "base")
    base = TimeSformerForVideoClassification.from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(
        base, peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
    )
    expected = logits_of(adapted.eval())
    adapted.save_pretrained(tmp_path / "adapter")
    for cls in (TimeSformerForVideoClassification, AutoModelForVideoClassification):
        assert_close(logits_of(cls.from_pretrained(tmp_path / "adapter").eval()), expected, 1e-5)
