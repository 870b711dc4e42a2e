"""Every code block of the README, run in order in a folder that holds what it names; the Hub is one
on loopback.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_server import USER, Hub
from transformers import ViTConfig, ViTForImageClassification

from hf_timesformer import (
    TimeSformerConfig,
    TimeSformerForVideoClassification,
    TimeSformerVideoProcessor,
)
from hf_timesformer.data.synthetic import MOTIONS, make_motion_dataset, motion_frames
from hf_timesformer.video.encoding import write_video


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", README, re.M | re.S)
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the clips and, as local folders, the checkpoints that the README names."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    make_motion_dataset(folder / "clips", splits={"train": 3, "test": 1}, num_frames=12, size=32)
    frames = motion_frames("left", np.random.default_rng(0), num_frames=16, size=48)
    write_video(folder / "clip.mp4", frames)
    write_video(folder / "clip.webm", frames, codec="libvpx-vp9")
    for name in ("my-model", "facebook/timesformer-base-finetuned-k400"):
        labels = {
            "id2label": dict(enumerate(MOTIONS)),
            "label2id": {name: i for i, name in enumerate(MOTIONS)},
        }
        model = TimeSformerForVideoClassification(TimeSformerConfig(**TINY, **labels, num_frames=4))
        model.save_pretrained(folder / name)
        sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        TimeSformerVideoProcessor(num_frames=4, sampling_rate=2, **sizes).save_pretrained(
            folder / name
        )
    for name, patch in (
        ("google/vit-base-patch16-224", 8),
        ("google/vit-base-patch16-224-in21k", 32),
    ):
        ViTForImageClassification(ViTConfig(**TINY | {"patch_size": patch})).save_pretrained(
            folder / name
        )
    make_kinetics(folder / "k400")
    return folder


def make_kinetics(folder: Path) -> None:
    """Three clips of each of two classes, with the official annotation files."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for split, count in (("train", 2), ("validate", 1)):
        rows = ["label,youtube_id,time_start,time_end,split"]
        for label in ("left", "right"):
            for number in range(count):
                name = f"{label}-{split}{number}"
                write_video(
                    folder / f"{name}_000001_000011.mp4",
                    motion_frames(label, rng, num_frames=8, size=48),
                )
                rows.append(f"{label},{name},1,11,{split}")
        (folder / f"{split}.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.mark.parametrize(
    "number", range(len(BLOCKS)), ids=lambda number: f"{BLOCKS[number][0]}-{number}"
)
def test_code_block_runs(number: int, folder: Path, hub: Hub, tmp_path: Path) -> None:
    language, code = BLOCKS[number]
    code = code.replace("my-name/", f"{USER}/")
    python_folder = str(Path(sys.executable).parent)
    environment = os.environ | {
        "PATH": python_folder + os.pathsep + os.environ["PATH"],
        "GPUS": "1",
    }
    online = "timesformer publish" in code or "push_to_hub" in code
    environment |= {"HF_HUB_OFFLINE": str(int(not online))} | (
        hub.environment(tmp_path) if online else {}
    )
    command = (
        [sys.executable, "-c", code]
        if language == "python"
        else [shutil.which("bash"), "-euc", code]
    )
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_has_the_blocks_and_pictures_that_it_promises() -> None:
    assert len(BLOCKS) >= 9
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)
