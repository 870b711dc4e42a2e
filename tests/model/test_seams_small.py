"""The network among transformers' own habits: outputs, arguments, subclasses, losses, loading, grey
clips.
"""

import pytest
import torch
from tiny import SCHEMES, STOCK_SCHEMES, assert_close, clips, randomise, tiny_config, tiny_model
from transformers import (
    AutoModelForVideoClassification,
    TimesformerConfig,
    TimesformerForVideoClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTModel,
)
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput

from hf_timesformer import TimeSformerConfig, TimeSformerForVideoClassification
from hf_timesformer.model import modeling_timesformer


class Mine(TimeSformerForVideoClassification):
    """Somebody's own name for it."""


def test_a_renamed_subclass_has_its_loss():
    model = randomise(Mine(tiny_config("axial"))).eval()
    inputs, labels = clips(2, 4, 3, 12, 8), torch.tensor([4, 0])
    outputs = model(inputs, labels=labels)
    assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, labels), 1e-6)


def test_a_loss_of_ones_own():
    model = tiny_model("axial")
    model.loss_function = lambda labels, logits, config, **kwargs: logits.sum() * 0 + 7
    assert model(clips(2, 4, 3, 12, 8), labels=torch.tensor([4, 0])).loss == 7


@pytest.mark.parametrize("scheme", SCHEMES)
def test_outputs_are_transformers_own_kinds(scheme):
    model, inputs = tiny_model(scheme), clips(1, 4, 3, 12, 8)
    with torch.no_grad():
        assert isinstance(model(inputs), ImageClassifierOutput)
        assert isinstance(model.timesformer(inputs), BaseModelOutput)


def stock_and_ours(scheme: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    own = (
        "position_interpolation",
        "position_embedding_type",
        "classifier_hidden_size",
        "model_type",
    )
    fields = tiny_config(scheme, image_size=8).to_dict()
    config = TimesformerConfig(**{name: value for name, value in fields.items() if name not in own})
    stock = randomise(TimesformerForVideoClassification(config)).eval()
    ours = tiny_model(scheme, image_size=8, attention="eager")
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def test_a_config_may_ask_for_tuples():
    stock, ours = stock_and_ours("divided_space_time")
    inputs = clips(2, 4, 3, 8, 8)
    for model in (stock, ours):
        model.config.return_dict = False
    with torch.no_grad():
        (found,), (expected,) = ours(inputs), stock(inputs)
        assert_close(found, expected)
        assert_close(ours(inputs, return_dict=True).logits, expected)


@pytest.mark.parametrize("scheme", [scheme for scheme in STOCK_SCHEMES if scheme != "space_only"])
def test_tuples_begin_as_stocks(scheme):
    stock, ours = stock_and_ours(scheme)
    inputs, labels = clips(2, 4, 3, 8, 8), torch.tensor([1, 2])
    asked = {"output_attentions": True, "output_hidden_states": True, "return_dict": False}
    with torch.no_grad():
        for model, other, given in (
            (stock, ours, {"labels": labels}),
            (stock.timesformer, ours.timesformer, {}),
        ):
            expected, found = model(inputs, **asked, **given), other(inputs, **asked, **given)
            assert len(found) >= len(expected)
            for one, wanted in zip(found, expected):
                pairs = (
                    zip(one, wanted, strict=True) if isinstance(wanted, tuple) else [(one, wanted)]
                )
                for actual, value in pairs:
                    assert_close(actual, value)


@pytest.mark.parametrize("scheme", ["joint_space_time", "divided_space_time"])
def test_arguments_by_position_are_stocks(scheme):
    stock, ours = stock_and_ours(scheme)
    inputs, labels = clips(2, 4, 3, 8, 8), torch.tensor([1, 2])
    with torch.no_grad():
        for model, other, between in (
            (stock.timesformer, ours.timesformer, ()),
            (stock, ours, (labels,)),
        ):
            for flags in ((True, True, True), (False, True, False), (None, None, False)):
                expected, found = model(inputs, *between, *flags), other(inputs, *between, *flags)
                assert isinstance(found, tuple) == isinstance(expected, tuple)
                assert_close(found[0], expected[0])
                if not isinstance(found, tuple):
                    assert len(found.hidden_states) == len(expected.hidden_states)
                    assert len(found.attentions) == len(expected.attentions)


# Losses that several batches share


PROBLEMS = {
    "single_label_classification": lambda generator: torch.randint(5, (8,), generator=generator),
    "multi_label_classification": lambda generator: torch.randint(
        2, (8, 5), generator=generator
    ).float(),
    "regression": lambda generator: torch.randn(8, 5, generator=generator),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_accumulated_batches_give_the_update_of_one(problem, tmp_path):
    labels = PROBLEMS[problem](torch.Generator().manual_seed(0))
    data = [
        {"pixel_values": clip, "labels": label}
        for clip, label in zip(clips(8, 4, 3, 12, 8), labels)
    ]
    weights = []
    for batch, steps in ((8, 1), (2, 4)):
        model = tiny_model("divided_space_time", problem_type=problem)
        arguments = TrainingArguments(
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            max_steps=1,
            learning_rate=0.1,
            optim="sgd",
            max_grad_norm=1e9,
            lr_scheduler_type="constant",
            report_to="none",
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=data).train()
        weights.append(model.state_dict())
    start = tiny_model("divided_space_time").state_dict()
    for name, one in weights[0].items():
        torch.testing.assert_close(
            weights[1][name] - start[name], one - start[name], rtol=1e-3, atol=1e-5
        )
    assert any((weights[0][name] - start[name]).abs().max() > 1e-3 for name in start)


def test_one_number_for_each_clip_is_a_regression():
    model, labels = tiny_model("axial", num_labels=1), torch.tensor([0.5, -2.0])
    outputs = model(clips(2, 4, 3, 12, 8), labels=labels, num_items_in_batch=8)
    assert_close(outputs.loss, (outputs.logits[:, 0] - labels).square().sum() / 8, 1e-6)


# Loading


def test_embeddings_on_disk_are_not_resized_in_silence(tmp_path):
    pytest.importorskip("accelerate")
    tiny_model("divided_space_time").save_pretrained(tmp_path / "saved")
    devices = {
        "timesformer.embeddings": "disk",
        "timesformer.encoder": "cpu",
        "timesformer.layernorm": "cpu",
    }
    arguments = {
        "device_map": {**devices, "classifier": "cpu"},
        "offload_folder": tmp_path / "offload",
    }
    with pytest.raises(ValueError, match="device_map"):
        TimeSformerForVideoClassification.from_pretrained(
            tmp_path / "saved", num_frames=8, **arguments
        )
    kept = TimeSformerForVideoClassification.from_pretrained(tmp_path / "saved", **arguments).eval()
    inputs = clips(1, 4, 3, 12, 8)
    with torch.no_grad():
        assert_close(kept(inputs).logits, tiny_model("divided_space_time")(inputs).logits, 1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_other_embeddings_give_is_not_overwritten(scheme):
    model, stored = tiny_model(scheme), clips(2, 97, 16)

    class Stored(torch.nn.Module):
        def forward(self, pixel_values):
            return stored, (6, 4, 4)

        def absent_embeddings(self):
            return {}

    kept = stored.clone()
    model.timesformer.embeddings = Stored()
    with torch.no_grad():
        first, second = (
            model.timesformer.encoder(*model.timesformer.embeddings(None)) for _ in range(2)
        )
        if scheme != "space_only":
            logits = model(clips(2, 4, 3, 12, 8)).logits
            assert torch.equal(model(clips(2, 4, 3, 12, 8)).logits, logits)
    assert torch.equal(first, second)
    assert torch.equal(stored, kept)


def test_an_auto_class_reads_the_config_once(tmp_path, monkeypatch):
    tiny_model("divided_space_time").save_pretrained(tmp_path)
    read, original = [], TimeSformerConfig.get_config_dict

    def get_config_dict(*args, **kwargs):
        read.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(modeling_timesformer.TimeSformerConfig, "get_config_dict", get_config_dict)
    model = AutoModelForVideoClassification.from_pretrained(tmp_path, num_frames=6)
    assert model.config.num_frames == 6
    assert model.timesformer.embeddings.time_embeddings.shape[1] == 6
    assert len(read) <= 1
    assert "_stored_sizes" not in model.config.to_json_string()


def test_a_config_made_elsewhere_does_not_tell_the_weights_sizes(tmp_path):
    tiny_model("divided_space_time").save_pretrained(tmp_path / "four")
    other = tiny_config("divided_space_time", num_frames=7)
    other.save_pretrained(tmp_path / "seven")
    config = TimeSformerConfig.from_pretrained(tmp_path / "seven")
    model = TimeSformerForVideoClassification.from_pretrained(tmp_path / "four", config=config)
    assert model.timesformer.embeddings.time_embeddings.shape[1] == 7


# Other numbers of channels


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_networks_for_grey_and_four_channels(scheme, channels):
    model, inputs = tiny_model(scheme, num_channels=channels), clips(2, 4, channels, 12, 8)
    recorded = model(inputs, output_hidden_states=True).logits
    with torch.no_grad():
        assert_close(model(inputs).logits, recorded, 1e-5)


def test_a_vit_for_grey_clips():
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
    )
    vit, grey = randomise(ViTModel(config, add_pooling_layer=False)).eval(), clips(2, 3, 1, 8, 8)
    model = TimeSformerForVideoClassification.from_vit(
        vit, num_channels=1, attention_type="space_only"
    ).eval()
    colour = TimeSformerForVideoClassification.from_vit(vit, attention_type="space_only").eval()
    with torch.no_grad():
        expected = colour.timesformer(grey.expand(-1, -1, 3, -1, -1)).last_hidden_state
        assert_close(model.timesformer(grey).last_hidden_state, expected, 1e-5)
    with pytest.raises(ValueError, match="num_channels=4, but the ViT has 3"):
        TimeSformerForVideoClassification.from_vit(vit, num_channels=4)
