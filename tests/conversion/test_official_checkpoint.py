"""Files in the official code's format: what is read from them, and the same logits as a forward
written here.
"""

import json
import pickle
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForVideoClassification, AutoVideoProcessor

from hf_timesformer import TimeSformerForVideoClassification, TimeSformerVideoProcessor
from hf_timesformer.conversion.official_checkpoint import convert_checkpoint, read_checkpoint
from hf_timesformer.model.modeling_timesformer import TimeSformerModel


KINDS = ("space_only", "joint_space_time", "divided_space_time")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "convert_checkpoint.py"


def official_weights(
    kind: str,
    *,
    width: int = 128,
    depth: int = 2,
    patch: int = 4,
    side: int = 3,
    frames: int = 3,
    labels: int = 5,
) -> dict[str, torch.Tensor]:
    """Random weights under the names that the official code gives them."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * (2 * shape[-1]) ** -0.5

    state = {
        "cls_token": draw(1, 1, width),
        "pos_embed": draw(1, side * side + 1, width),
        "patch_embed.proj.weight": draw(width, 3, patch, patch),
        "patch_embed.proj.bias": draw(width),
    }
    if kind != "space_only":
        state["time_embed"] = draw(1, frames, width)
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    norms = ["norm1", "norm2"]
    if kind == "divided_space_time":
        linear |= {f"temporal_{name}": linear[name] for name in ("attn.qkv", "attn.proj")}
        linear["temporal_fc"] = (width, width)
        norms.append("temporal_norm1")
    for block in range(depth):
        for name, shape in linear.items():
            state[f"blocks.{block}.{name}.weight"] = draw(*shape)
            state[f"blocks.{block}.{name}.bias"] = draw(shape[0])
        for name in norms:
            state[f"blocks.{block}.{name}.weight"] = 1 + draw(width)
            state[f"blocks.{block}.{name}.bias"] = draw(width)
    state |= {"norm.weight": 1 + draw(width), "norm.bias": draw(width)}
    state |= {"head.weight": draw(labels, width), "head.bias": draw(labels)}
    return state


def reference_logits(
    state: dict[str, torch.Tensor], kind: str, clips: torch.Tensor, heads: int
) -> torch.Tensor:
    """Logits of clips `(b, c, t, h, w)` in plain loops over places and frames; shares no code with
    the product.
    """
    width = state["cls_token"].shape[-1]

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, x):
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def attend(name, x):  # (l, d)
        query, key, value = (
            linear(f"{name}.qkv", x).reshape(len(x), 3, heads, -1).permute(1, 2, 0, 3)
        )
        weights = (query @ key.transpose(1, 2) / (width // heads) ** 0.5).softmax(-1)
        return linear(f"{name}.proj", (weights @ value).transpose(0, 1).reshape(len(x), width))

    def feed_forward(block, x):
        return linear(
            f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
        )

    def plain_block(block, x):
        x = x + attend(f"{block}.attn", norm(f"{block}.norm1", x))
        return x + feed_forward(block, x)

    def divided_block(block, cls, x):  # (d), (n, t, d)
        for place in range(x.shape[0]):
            update = attend(f"{block}.temporal_attn", norm(f"{block}.temporal_norm1", x[place]))
            x[place] = x[place] + linear(f"{block}.temporal_fc", update)
        cls_updates = []
        for frame in range(x.shape[1]):
            tokens = torch.cat((cls[None], x[:, frame]))
            update = attend(f"{block}.attn", norm(f"{block}.norm1", tokens))
            cls_updates.append(update[0])
            x[:, frame] = x[:, frame] + update[1:]
        cls = cls + torch.stack(cls_updates).mean(0)
        return cls + feed_forward(block, cls), x + feed_forward(block, x)

    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    blocks = [f"blocks.{index}" for index in range(depth)]
    stride = state["patch_embed.proj.weight"].shape[-1]
    logits = []
    for clip in clips:
        # (t, d, h, w)
        pictures = F.conv2d(clip.transpose(0, 1), state["patch_embed.proj.weight"], stride=stride)
        x = (
            pictures.flatten(2).permute(2, 0, 1)
            + state["patch_embed.proj.bias"]
            + state["pos_embed"][0, 1:, None]
        )
        cls = state["cls_token"][0, 0] + state["pos_embed"][0, 0]
        if kind == "space_only":
            frames = []
            for frame in range(x.shape[1]):
                tokens = torch.cat((cls[None], x[:, frame]))
                for block in blocks:
                    tokens = plain_block(block, tokens)
                frames.append(tokens[0])
            cls = torch.stack(frames).mean(0)
        else:
            x = x + state["time_embed"][0]
            for block in blocks:
                if kind == "divided_space_time":
                    cls, x = divided_block(block, cls, x)
                else:
                    tokens = plain_block(block, torch.cat((cls[None], x.flatten(0, 1))))
                    cls, x = tokens[0], tokens[1:].reshape(x.shape)
        logits.append(linear("head", norm("norm", cls)))
    return torch.stack(logits)


def wrapped(state: dict[str, torch.Tensor], wrapper: str) -> dict:
    if wrapper == "none":
        return state
    # as other programs save: also with the prefix of data parallelism
    if wrapper in ("model", "state_dict"):
        return {wrapper: {f"module.{name}": value for name, value in state.items()}, "epoch": 3}
    if wrapper == "nested":
        return {
            "model": {
                "state_dict": {f"module.model.{name}": value for name, value in state.items()}
            }
        }
    state = {f"model.{name}": value for name, value in state.items()}
    if wrapper == "model.":
        return state
    optimizer = {
        "state": {0: {"step": 3, "momentum_buffer": torch.zeros(2)}},
        "param_groups": [{"lr": 0.005}],
    }
    return {"epoch": 14, "model_state": state, "optimizer_state": optimizer, "cfg": "DATA: {}\n"}


@pytest.mark.parametrize(
    "wrapper", ["none", "model.", "model_state", "model", "state_dict", "nested"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_converted_files(kind, wrapper, tmp_path):
    """Converted, saved, opened through the Auto classes: the logits of the forward above."""
    state = official_weights(kind)
    torch.save(wrapped(state, wrapper), tmp_path / "official.pyth")
    model, processor, _ = convert_checkpoint(tmp_path / "official.pyth")
    config = model.config
    assert (config.attention_type, config.image_size, config.patch_size) == (kind, 12, 4)
    assert (config.num_labels, config.num_attention_heads, config.intermediate_size) == (5, 2, 512)
    assert config.num_frames == (8 if kind == "space_only" else 3)  # space-only weights do not tell
    model.save_pretrained(tmp_path / "converted")
    processor.save_pretrained(tmp_path / "converted")

    opened = AutoModelForVideoClassification.from_pretrained(tmp_path / "converted")
    assert isinstance(opened, TimeSformerForVideoClassification)
    clips = torch.randn(2, 3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    expected = reference_logits(state, kind, clips, heads=2)
    with torch.no_grad():
        found = opened(clips.transpose(1, 2)).logits
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "frames", "side", "sampling"),
    [
        (400, 8, 14, {"sampling": "clip", "sampling_rate": 32}),
        (600, 16, 28, {"sampling": "clip", "sampling_rate": 16}),
        (400, 96, 14, {"sampling": "clip", "sampling_rate": 4}),
        (1059, 32, 14, {"sampling": "clip", "sampling_rate": 32}),
        (174, 64, 14, {"sampling": "segments"}),
    ],
)
def test_released_kinds(labels, frames, side, sampling, tmp_path):
    """Sizes of the released files (narrow and shallow here), and the sampling they were trained
    with.
    """
    state = official_weights(
        "divided_space_time", width=64, depth=1, patch=16, side=side, frames=frames, labels=labels
    )
    torch.save(wrapped(state, "model_state"), tmp_path / "official.pyth")
    model, processor, origin = convert_checkpoint(tmp_path / "official.pyth")
    size = 16 * side
    assert (model.config.num_frames, model.config.image_size, model.config.num_labels) == (
        frames,
        size,
        labels,
    )
    assert processor.num_frames == frames
    assert dict(processor.crop_size) == {"height": size, "width": size}
    assert (dict(processor.size), processor.sampling) == (
        {"shortest_edge": size},
        sampling["sampling"],
    )
    assert processor.sampling_rate == sampling.get(
        "sampling_rate", TimeSformerVideoProcessor.sampling_rate
    )
    assert list(processor.image_mean) == [0.45] * 3
    assert list(processor.image_std) == [0.225] * 3
    assert "released checkpoints" in origin


@pytest.mark.parametrize(
    ("cfg", "arguments", "expected", "origin"),
    [
        (
            "DATA: {SAMPLING_RATE: 7}\nTRAIN: {DATASET: kinetics}\n",
            {},
            ("clip", 7),
            "training configuration",
        ),
        (
            "DATA: {SAMPLING_RATE: 7}\nTRAIN: {DATASET: Ssv2}\n",
            {},
            ("segments", 32),
            "training configuration",
        ),
        (
            "DATA: {SAMPLING_RATE: 7}\nTRAIN: {DATASET: kinetics}\n",
            {"sampling_rate": 3},
            ("clip", 3),
            "arguments",
        ),
        ("not: [yaml", {}, ("clip", 32), "defaults"),
        (None, {}, ("clip", 32), "defaults"),
        (None, {"sampling": "segments"}, ("segments", 32), "arguments"),
    ],
)
def test_where_sampling_is_from(cfg, arguments, expected, origin, tmp_path):
    state = official_weights("joint_space_time", depth=1)
    torch.save({"model_state": state, "cfg": cfg}, tmp_path / "official.pyth")
    _, processor, told = convert_checkpoint(tmp_path / "official.pyth", **arguments)
    assert (processor.sampling, processor.sampling_rate) == expected
    assert origin in told


class Payload:
    """Pickles to a call that leaves a trace where it is executed."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_malicious_pickle_is_refused_and_not_run(tmp_path):
    files = {name: tmp_path / f"{name}.pyth" for name in ("zip", "legacy", "bare")}
    harmful = {
        "model_state": official_weights("joint_space_time", depth=1),
        "cfg": Payload(tmp_path / "trace"),
    }
    torch.save(harmful, files["zip"])
    torch.save(harmful, files["legacy"], _use_new_zipfile_serialization=False)
    files["bare"].write_bytes(pickle.dumps(Payload(tmp_path / "trace")))
    for path in files.values():
        with pytest.raises(ValueError, match="no checkpoint of tensors and plain values"):
            convert_checkpoint(path)
        assert not (tmp_path / "trace").exists()
    torch.load(files["zip"], weights_only=False)
    assert (tmp_path / "trace").exists()  # it would have


def test_damaged_and_missing_files(tmp_path):
    whole = tmp_path / "whole.pyth"
    torch.save(official_weights("joint_space_time", depth=1), whole)
    for name, data in {
        "cut": whole.read_bytes()[:-5000],
        "empty": b"",
        "text": b"<html>404</html>",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=name):
            read_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        convert_checkpoint(tmp_path / "nowhere.pyth")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.pop("head.bias"), "lacks head.bias"),
        (lambda state: state.pop("blocks.1.mlp.fc2.bias"), "missing.*layer.1.output.dense.bias"),
        (
            lambda state: state.update({"blocks.1.mlp.fc3.bias": torch.zeros(2)}),
            "no place for blocks.1.mlp.fc3.bias",
        ),
        (
            lambda state: state.update({"pos_embed": torch.zeros(1, 8, 128)}),
            "7 patches, which make no square",
        ),
        (
            lambda state: state.update({"blocks.1.norm2.bias": torch.zeros(7)}),
            r"\(7,\), expected \(128,\)",
        ),
        (lambda state: state.clear(), "lacks pos_embed"),
    ],
)
def test_weights_that_are_no_timesformer(change, complaint, tmp_path):
    state = official_weights("divided_space_time")
    change(state)
    torch.save(state, tmp_path / "official.pyth")
    with pytest.raises(ValueError, match=complaint):
        convert_checkpoint(tmp_path / "official.pyth")


def test_a_file_without_a_classifier_gives_the_network_below_it(tmp_path):
    state = official_weights("divided_space_time")
    head = {kind: state.pop(f"head.{kind}") for kind in ("weight", "bias")}
    torch.save({"model": state}, tmp_path / "headless.pyth")
    model, processor, _ = convert_checkpoint(tmp_path / "headless.pyth")
    assert type(model) is TimeSformerModel
    model.save_pretrained(tmp_path / "converted")
    full, loading = TimeSformerForVideoClassification.from_pretrained(
        tmp_path / "converted", num_labels=5, output_loading_info=True
    )
    assert set(loading["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    full.classifier.load_state_dict(head)
    clips = torch.randn(1, 3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    whole = state | {f"head.{kind}": value for kind, value in head.items()}
    with torch.no_grad():
        found = full.eval()(clips.transpose(1, 2)).logits
    torch.testing.assert_close(
        found, reference_logits(whole, "divided_space_time", clips, 2), rtol=1e-4, atol=1e-5
    )


def test_tensor_alone_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "official.pyth")
    with pytest.raises(ValueError, match="holds a Tensor"):
        convert_checkpoint(tmp_path / "official.pyth")


@pytest.mark.parametrize("heads", [1, 4])
def test_heads_of_another_width(heads, tmp_path):
    state = official_weights("divided_space_time", depth=1)
    torch.save(state, tmp_path / "official.pyth")
    model = convert_checkpoint(tmp_path / "official.pyth", num_attention_heads=heads)[0]
    clips = torch.randn(1, 3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(clips.transpose(1, 2)).logits
    torch.testing.assert_close(
        found, reference_logits(state, "divided_space_time", clips, heads), rtol=1e-4, atol=1e-5
    )


def test_script(tmp_path, monkeypatch, capsys):
    """The program writes a folder that opens with its names, refuses to write over it, names wrong
    label counts.
    """
    torch.save(
        wrapped(official_weights("divided_space_time"), "model_state"), tmp_path / "official.pyth"
    )
    (tmp_path / "labels.json").write_text(json.dumps(list("abcde")))
    (tmp_path / "few.json").write_text(json.dumps(list("abc")))

    def run(folder: str, *arguments: str) -> None:
        files = [str(tmp_path / "official.pyth"), str(tmp_path / folder)]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *files, *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    run("out", "--labels", str(tmp_path / "labels.json"), "--sampling_rate", "4")
    told = capsys.readouterr().out
    assert (
        "divided_space_time, 3 frames of 12 pixels, 5 labels; sampling clip, rate 4, from your arguments"
        in told
    )
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == dict(enumerate("abcde"))
    processor = AutoVideoProcessor.from_pretrained(tmp_path / "out")
    assert (type(processor), processor.sampling_rate) == (TimeSformerVideoProcessor, 4)
    for folder, arguments, complaint in (
        ("out", [], "holds a model already"),
        ("new", ["--labels", str(tmp_path / "few.json")], "3 label names, but"),
        ("new", ["--num_attention_heads", "3"], "num_attention_heads=3"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(folder, *arguments)
        assert stopped.value.code == 2
        assert complaint in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
