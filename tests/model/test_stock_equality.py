"""The three schemes that stock has: equal numbers both ways, and what plain `transformers` says of
the rest.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import SCHEMES, STOCK_SCHEMES, assert_close, clips, randomise, tiny_config, tiny_model
from transformers import TimesformerConfig, TimesformerForVideoClassification

from hf_timesformer import TimeSformerConfig, TimeSformerForVideoClassification


SIZES = {"image_size": 8, "num_frames": 4}


def stock_model(scheme: str, **fields) -> TimesformerForVideoClassification:
    """Stock's classifier with random weights, its time embeddings too."""
    config = tiny_config(scheme, **{**SIZES, **fields}).to_dict()
    own = (
        "position_interpolation",
        "position_embedding_type",
        "classifier_hidden_size",
        "model_type",
    )
    config = TimesformerConfig(**{name: value for name, value in config.items() if name not in own})
    return randomise(TimesformerForVideoClassification(config)).eval()


@pytest.fixture(scope="module")
def stock_folders(tmp_path_factory):
    """Stock's models as stock saves them."""
    folders = {scheme: tmp_path_factory.mktemp(scheme) for scheme in STOCK_SCHEMES}
    for scheme, folder in folders.items():
        stock_model(scheme).save_pretrained(folder)
    return folders


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("scheme", ["joint_space_time", "divided_space_time"])
def test_stocks_checkpoints_give_stocks_numbers(scheme, attention, stock_folders):
    stock, inputs = stock_model(scheme), clips(2, 4, 3, 8, 8)
    ours = TimeSformerForVideoClassification.from_pretrained(
        stock_folders[scheme], attn_implementation=attention
    )
    assert {n: tuple(p.shape) for n, p in ours.state_dict().items()} == {
        n: tuple(p.shape) for n, p in stock.state_dict().items()
    }
    with torch.no_grad():
        actual = ours.eval()(
            inputs, output_hidden_states=True, output_attentions=attention == "eager"
        )
        expected = stock(inputs, output_hidden_states=True, output_attentions=True)
        fast = ours(inputs).logits
    for logits in (actual.logits, fast):
        assert (logits - expected.logits).abs().max() <= 1e-4
    assert len(actual.hidden_states) == len(expected.hidden_states)
    for one, other in zip(actual.hidden_states, expected.hidden_states):
        assert_close(one, other)
    if attention == "eager":
        assert len(actual.attentions) == len(expected.attentions)
        for one, other in zip(actual.attentions, expected.attentions):
            assert_close(one, other)


def test_space_only_is_the_mean_of_stocks_frames(stock_folders):
    """Stock gives each frame its own logits. As in the official code: the mean of tokens, then the
    LayerNorm.
    """
    stock, inputs = stock_model("space_only"), clips(3, 5, 3, 8, 8)
    ours = TimeSformerForVideoClassification.from_pretrained(stock_folders["space_only"]).eval()
    with torch.no_grad():
        frames = stock(inputs, output_hidden_states=True)
        assert frames.logits.shape == (15, 5)
        tokens = frames.hidden_states[-1].unflatten(0, (3, 5)).mean(dim=1)
        expected = stock.classifier(stock.timesformer.layernorm(tokens)[:, 0])
        actual = ours(inputs, output_hidden_states=True)
        assert (actual.logits - expected).abs().max() <= 1e-4
        assert (ours(inputs).logits - expected).abs().max() <= 1e-4
        for one, other in zip(actual.hidden_states, frames.hidden_states):
            assert_close(one, other)
        one_frame = stock(inputs[:, :1]).logits
        assert (ours(inputs[:, :1]).logits - one_frame).abs().max() <= 1e-4


@pytest.mark.parametrize(("frames", "side"), [(7, 8), (2, 8), (4, 12), (6, 4)])
@pytest.mark.parametrize("scheme", ["joint_space_time", "divided_space_time"])
def test_other_lengths_and_sizes_are_stock_made_for_them(scheme, frames, side, stock_folders):
    """Stock is right where config and embeddings fit the clip: made to fit as the official code
    does, it agrees.
    """
    ours = TimeSformerForVideoClassification.from_pretrained(stock_folders[scheme]).eval()
    fitting = stock_model(scheme, num_frames=frames, image_size=side)
    state = ours.state_dict()
    space, time = (f"timesformer.embeddings.{name}_embeddings" for name in ("position", "time"))
    grid = state[space][:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(side // 2, side // 2), mode="nearest")
    state[space] = torch.cat((state[space][:, :1], grid.flatten(2).mT), dim=1)
    state[time] = torch.nn.functional.interpolate(state[time].mT, size=frames, mode="nearest").mT
    fitting.load_state_dict(state)
    inputs = clips(1, frames, 3, side, side)
    with torch.no_grad():
        assert (ours(inputs).logits - fitting(inputs).logits).abs().max() <= 1e-4


CHILD = """
import json, sys
sys.modules["hf_timesformer"] = None  # a machine without this package
import torch
from transformers import AutoConfig, AutoModelForVideoClassification
report = {}
for name, folder in json.load(open(sys.argv[1])).items():
    try:
        model, loading = AutoModelForVideoClassification.from_pretrained(folder, output_loading_info=True)
    except Exception as error:
        report[name] = {"error": f"{type(error).__name__}: {error}"}
        continue
    probe = torch.load(f"{folder}/probe.pt")
    with torch.no_grad():
        logits = model.eval()(probe["inputs"]).logits
    report[name] = {
        "class": type(model).__module__ + "." + type(model).__name__,
        "missing": sorted(loading["missing_keys"]), "unexpected": sorted(loading["unexpected_keys"]),
        "difference": (logits - probe["logits"]).abs().max().item(),
        "drop_path_rate": model.config.drop_path_rate,
    }
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def plain_transformers(tmp_path_factory):
    """What a process that cannot import this package makes of folders that we saved."""
    variants = {scheme: {} for scheme in SCHEMES}
    variants |= {
        "classifier with a hidden layer": {
            "attention_type": "divided_space_time",
            "classifier_hidden_size": 6,
        },
        "no time embeddings": {
            "attention_type": "divided_space_time",
            "position_embedding_type": "space",
        },
        "no embeddings": {"attention_type": "joint_space_time", "position_embedding_type": "none"},
        "drop path": {"attention_type": "divided_space_time", "drop_path_rate": 0.2},
    }
    folders = {}
    for name, fields in variants.items():
        folder = tmp_path_factory.mktemp("saved")
        scheme = fields.pop("attention_type", name)
        model, inputs = (
            tiny_model(scheme, **SIZES, **fields),
            clips(1 if scheme == "space_only" else 2, 4, 3, 8, 8),
        )
        if scheme == "space_only":
            inputs = inputs[:, :1]  # where stock's logits are right
        with torch.no_grad():
            torch.save({"inputs": inputs, "logits": model(inputs).logits}, folder / "probe.pt")
        model.save_pretrained(folder)
        folders[name] = str(folder)
    listing = tmp_path_factory.mktemp("listing") / "folders.json"
    listing.write_text(json.dumps(folders))
    child = subprocess.run(
        [sys.executable, "-c", CHILD, listing], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1]), folders


@pytest.mark.parametrize(
    "name", [*STOCK_SCHEMES, "no time embeddings", "no embeddings", "drop path"]
)
def test_plain_transformers_opens_what_it_has(name, plain_transformers):
    report = plain_transformers[0][name]
    assert "error" not in report, report
    assert (
        report["class"]
        == "transformers.models.timesformer.modeling_timesformer.TimesformerForVideoClassification"
    )
    assert report["missing"] == report["unexpected"] == []
    assert report["difference"] <= 1e-4


@pytest.mark.parametrize("name", ["sparse_local_global", "axial", "classifier with a hidden layer"])
def test_plain_transformers_refuses_the_rest(name, plain_transformers):
    error = plain_transformers[0][name]["error"]
    assert "pip install hf-timesformer" in error
    assert "trust_remote_code=True" in error
    assert {"classifier with a hidden layer": "hidden layer"}.get(name, name) in error


def test_a_float_drop_path_rate_survives_and_stock_reads_zero(plain_transformers):
    report, folders = plain_transformers
    assert report["drop path"]["drop_path_rate"] == 0
    stored = json.loads(Path(folders["drop path"], "config.json").read_text())
    assert (stored["drop_path_rate"], stored["stochastic_depth_rate"]) == (0, 0.2)
    config = TimeSformerConfig.from_pretrained(folders["drop path"])
    assert config.drop_path_rate == 0.2
    model = TimeSformerForVideoClassification.from_pretrained(folders["drop path"])
    assert [layer.drop_path.rate for layer in model.timesformer.encoder.layer] == [0.0, 0.2]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_saved_configs_note_is_not_the_loaded_scheme(scheme, plain_transformers):
    folder = plain_transformers[1][scheme]
    assert TimeSformerConfig.from_pretrained(folder).attention_type == scheme
    model = TimeSformerForVideoClassification.from_pretrained(folder).eval()
    probe = torch.load(f"{folder}/probe.pt")
    with torch.no_grad():
        assert_close(model(probe["inputs"]).logits, probe["logits"], relative=1e-6)
