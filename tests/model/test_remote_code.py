"""Saved folders in processes that cannot import hf_timesformer: with trust_remote_code=True, and
without.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline
from transformers.dynamic_module_utils import get_imports, get_relative_imports

from hf_timesformer import (
    TimeSformerConfig,
    TimeSformerForVideoClassification,
    TimeSformerImageProcessor,
    TimeSformerModel,
    TimeSformerVideoProcessor,
)
from hf_timesformer.data.synthetic import MOTIONS, motion_frames
from hf_timesformer.model.configuration_timesformer import STOCK_SCHEMES
from hf_timesformer.model.remote_code import AUTO_MAP, code_files
from hf_timesformer.model.schemes import SCHEMES
from hf_timesformer.video.encoding import write_video


REGISTERED = (
    TimeSformerConfig,
    TimeSformerForVideoClassification,
    TimeSformerImageProcessor,
    TimeSformerModel,
    TimeSformerVideoProcessor,
)

# What both children begin with: this package is there (installed, or in the folder they run in) but
# not for them.
BLOCKER = """
import importlib.abc, os, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_timesformer":
            raise ModuleNotFoundError("No module named 'hf_timesformer' in this child process")

sys.meta_path.insert(0, Blocker())
import torch
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForVideoClassification, AutoVideoProcessor, pipeline,
)
folders, clip = sys.argv[1], sys.argv[2]
clips = torch.load(os.path.join(folders, "clips.pt"))
frames = torch.load(os.path.join(folders, "frames.pt"))
results = {}
"""

REMOTE = (
    BLOCKER
    + """
for scheme in sorted(os.listdir(folders)):
    folder = os.path.join(folders, scheme)
    if not os.path.isdir(folder):
        continue
    code = {"trust_remote_code": True}
    model = AutoModelForVideoClassification.from_pretrained(folder, **code)
    config = AutoConfig.from_pretrained(folder, **code)
    videos = AutoVideoProcessor.from_pretrained(folder, **code)
    images = AutoImageProcessor.from_pretrained(folder, **code)
    longer = AutoModelForVideoClassification.from_pretrained(folder, num_frames=8, **code)
    pipe = pipeline("video-classification", model=folder, **code)
    with torch.no_grad():
        result = {
            "logits": model(clips).logits,
            "features": AutoModel.from_pretrained(folder, **code)(clips).last_hidden_state,
            "from_config": sum(p.numel() for p in AutoModel.from_config(config, **code).parameters()),
            "longer": longer(clips.repeat_interleave(2, dim=1)).logits,
            "video_pixels": videos(clip, return_tensors="pt").pixel_values,
            "image_pixels": images(frames, return_tensors="pt").pixel_values,
            "pipeline": pipe(clip, top_k=5),
        }
    model.save_pretrained(folder + "/again")
    videos.save_pretrained(folder + "/again")
    again = AutoModelForVideoClassification.from_pretrained(folder + "/again", **code)
    result["again"] = again(clips).logits.detach()
    videos = AutoVideoProcessor.from_pretrained(folder + "/again", **code)
    result["again_pixels"] = videos(clip, return_tensors="pt").pixel_values
    objects = (model, config, videos, images, pipe.model, pipe.video_processor)
    result["classes"] = [(type(thing).__module__.split(".")[0], type(thing).__name__) for thing in objects]
    results[scheme] = result
torch.save(results, sys.argv[3])
"""
)

PLAIN = (
    BLOCKER
    + """
for scheme in sorted(os.listdir(folders)):
    folder = os.path.join(folders, scheme)
    if not os.path.isdir(folder):
        continue
    result = results[scheme] = {}
    try:
        model = AutoModelForVideoClassification.from_pretrained(folder)
    except ValueError as error:
        result["refusal"] = str(error)
        try:
            AutoModel.from_pretrained(folder)
        except ValueError as error:
            result["base_refusal"] = str(error)
        continue
    videos = AutoVideoProcessor.from_pretrained(folder)
    with torch.no_grad():
        result["logits"] = model(clips).logits
    result["pixels"] = videos(frames, return_tensors="pt")["pixel_values"]
    pipe = pipeline("video-classification", model=folder)
    objects = (model, model.config, videos, pipe.model, pipe.video_processor)
    result["classes"] = [(type(thing).__module__.split(".")[0], type(thing).__name__) for thing in objects]
torch.save(results, sys.argv[3])
"""
)


def small_config(scheme: str) -> TimeSformerConfig:
    return TimeSformerConfig(
        image_size=32,
        patch_size=8,
        num_frames=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        attention_type=scheme,
        num_labels=5,
    )


def random_model(scheme: str) -> TimeSformerForVideoClassification:
    torch.manual_seed(0)
    model = TimeSformerForVideoClassification(small_config(scheme)).eval()
    for parameter in model.parameters():  # also those that start at zero
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def video_processor() -> TimeSformerVideoProcessor:
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return TimeSformerVideoProcessor(num_frames=4, sampling_rate=2, **size)


@pytest.fixture
def registered():
    """All five classes registered for their Auto classes, until the test ends."""
    for cls in REGISTERED:
        cls.register_for_auto_class()
    yield
    for cls in REGISTERED:
        del cls._auto_class


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """One saved model with its processors for each scheme, a clip of frames and one of random
    pixels.
    """
    root = tmp_path_factory.mktemp("saved")
    for cls in REGISTERED:
        cls.register_for_auto_class()
    for scheme in SCHEMES:
        random_model(scheme).save_pretrained(root / scheme)
        video_processor().save_pretrained(root / scheme)
    for cls in REGISTERED:
        del cls._auto_class
    torch.save(
        torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1)), root / "clips.pt"
    )
    torch.save(
        torch.from_numpy(clip_frames()[:4]).permute(0, 3, 1, 2).contiguous(), root / "frames.pt"
    )
    return root


def clip_frames() -> np.ndarray:
    return motion_frames(next(iter(MOTIONS)), np.random.default_rng(0), num_frames=12, size=48)


@pytest.fixture(scope="module")
def children(folders: Path, tmp_path_factory) -> dict[str, dict]:
    """What the two child processes, which run side by side, saw."""
    root = tmp_path_factory.mktemp("children")
    write_video(root / "clip.mp4", clip_frames())
    running = {}
    for name, program in {"remote": REMOTE, "plain": PLAIN}.items():
        environment = {
            **os.environ,
            "HF_MODULES_CACHE": str(root / f"modules_{name}"),
            "HF_HUB_OFFLINE": "1",
        }
        arguments = [str(folders), str(root / "clip.mp4"), str(root / f"{name}.pt")]
        running[name] = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=root,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
    for name, child in running.items():
        _, errors = child.communicate(timeout=300)
        assert child.returncode == 0, f"{name}: {errors[-3000:]}"
    return {name: torch.load(root / f"{name}.pt") for name in running} | {
        "clip": str(root / "clip.mp4")
    }


@pytest.mark.parametrize("scheme", SCHEMES)
def test_trusted_code_opens_everything(scheme, folders, children):
    result, clip, clips = (
        children["remote"][scheme],
        children["clip"],
        torch.load(folders / "clips.pt"),
    )
    model, processor = random_model(scheme), video_processor()
    assert {module for module, _ in result["classes"]} == {"transformers_modules"}
    assert [name for _, name in result["classes"]] == [
        "TimeSformerForVideoClassification",
        "TimeSformerConfig",
        "TimeSformerVideoProcessor",
        "TimeSformerImageProcessor",
        "TimeSformerForVideoClassification",
        "TimeSformerVideoProcessor",
    ]
    with torch.no_grad():
        expected = model(clips).logits
        torch.testing.assert_close(result["logits"], expected)
        torch.testing.assert_close(result["again"], expected)
        torch.testing.assert_close(result["features"], model.timesformer(clips).last_hidden_state)
        torch.testing.assert_close(
            result["longer"], model(clips.repeat_interleave(2, dim=1)).logits
        )
    assert result["from_config"] == sum(p.numel() for p in model.timesformer.parameters())
    pixels = processor(clip, return_tensors="pt").pixel_values
    assert torch.equal(result["video_pixels"], pixels)
    assert torch.equal(result["again_pixels"], pixels)
    frames = torch.load(folders / "frames.pt")
    assert torch.equal(result["image_pixels"], processor(frames, return_tensors="pt").pixel_values)
    own = pipeline("video-classification", model=model, video_processor=processor)(clip, top_k=5)
    assert [entry["label"] for entry in result["pipeline"]] == [entry["label"] for entry in own]
    np.testing.assert_allclose(
        [e["score"] for e in result["pipeline"]], [e["score"] for e in own], rtol=1e-5
    )


@pytest.mark.parametrize("scheme", STOCK_SCHEMES)
def test_plain_transformers_runs_what_it_has(scheme, folders, children):
    result, clips = children["plain"][scheme], torch.load(folders / "clips.pt")
    assert {module for module, _ in result["classes"]} == {"transformers"}
    logits = result["logits"]
    if scheme == "space_only":  # stock gives every frame's logits
        logits = logits.view(2, 4, 5)
        frames = torch.stack(
            [random_model(scheme)(clips[:, i : i + 1]).logits for i in range(4)], dim=1
        )
        torch.testing.assert_close(logits, frames.detach(), rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(
            logits, random_model(scheme)(clips).logits.detach(), rtol=1e-5, atol=1e-5
        )
    frames = torch.load(folders / "frames.pt")
    expected = video_processor()(frames, return_tensors="pt").pixel_values
    torch.testing.assert_close(result["pixels"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme not in STOCK_SCHEMES])
def test_plain_transformers_refuses_the_others(scheme, children):
    result = children["plain"][scheme]
    for refusal in (result["refusal"], result["base_refusal"]):
        assert scheme in refusal
        assert "pip install hf-timesformer" in refusal
        assert "trust_remote_code=True" in refusal


@pytest.mark.parametrize(
    "cls", [TimeSformerForVideoClassification, TimeSformerModel, TimeSformerConfig]
)
def test_one_registered_class_ships_all(cls, tmp_path):
    """A `config.json` that names the code names all of it, and all of it lies there."""
    cls.register_for_auto_class()
    try:
        if cls is TimeSformerConfig:
            small_config("axial").save_pretrained(tmp_path)
        else:
            cls(small_config("axial")).save_pretrained(tmp_path)
    finally:
        del cls._auto_class
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {path.name for path in tmp_path.glob("*.py")} == {path.name for path in code_files()}


def test_nothing_registered_ships_nothing(tmp_path):
    random_model("axial").save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    assert not list(tmp_path.glob("*.py"))


def test_loaded_with_code_saved_with_code(folders, tmp_path):
    """A folder that this package opens because it is imported keeps its promise when it is saved
    elsewhere.
    """
    model = TimeSformerForVideoClassification.from_pretrained(folders / "axial")
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == {path.name for path in code_files()}


def test_processors_name_their_code(registered, tmp_path):
    video_processor().save_pretrained(tmp_path)
    for name, auto_class in (
        ("video_preprocessor", "AutoVideoProcessor"),
        ("preprocessor", "AutoImageProcessor"),
    ):
        settings = json.loads((tmp_path / f"{name}_config.json").read_text())
        assert settings["auto_map"] == {auto_class: AUTO_MAP[auto_class]}
        assert (tmp_path / (AUTO_MAP[auto_class].split(".")[0] + ".py")).is_file()


def test_references_to_other_code_stay(tmp_path):
    config = small_config("axial")
    config.auto_map = {
        "AutoConfig": AUTO_MAP["AutoConfig"],
        "AutoModel": "somebody/repo--modeling.Other",
    }
    config.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == AUTO_MAP | {"AutoModel": "somebody/repo--modeling.Other"}


def test_code_is_flat_and_needs_only_dependencies():
    """Every shipped file imports siblings by one dot at the top, and nothing that a user may not
    have.
    """
    allowed = {
        "av",
        "huggingface_hub",
        "numpy",
        "PIL",
        "safetensors",
        "torch",
        "torchvision",
        "transformers",
    }
    names = {path.stem for path in code_files()}
    for path in code_files():
        outside = set(get_imports(path)) - set(sys.stdlib_module_names)
        assert outside <= allowed, (path.name, outside - allowed)
        assert set(get_relative_imports(path)) <= names, path.name
