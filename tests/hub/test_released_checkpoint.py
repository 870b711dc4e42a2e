"""A released checkpoint by its Hub id and nothing else, on a Hub on loopback that has tiny weights
under that name.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from hub_server import File, Hub, Repo
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    TimesformerVideoProcessor,
)

from hf_timesformer.video.decoding import decode_video
from hf_timesformer.video.encoding import write_video


NAME = "facebook/timesformer-hr-finetuned-k600"
CHILD = """
import json, sys
import hf_timesformer
from transformers import pipeline

classify = pipeline("video-classification", model=sys.argv[1], device="cpu")
processor = classify.video_processor
about = [type(processor).__name__, processor.sampling, processor.sampling_rate, dict(processor.crop_size)["height"]]
print(json.dumps([about, classify(sys.argv[2], top_k=3)]))
"""


def released_files(folder: Path) -> tuple[TimesformerForVideoClassification, dict[str, File]]:
    """A stock model of three classes and 6 frames, and the processor file that the released ones
    have.
    """
    torch.manual_seed(0)
    config = TimesformerConfig(
        image_size=32, patch_size=8, num_frames=6, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, initializer_range=0.5, num_labels=3,
    )  # fmt: skip
    model = TimesformerForVideoClassification(config).eval()
    model.save_pretrained(folder)
    settings = {
        "image_processor_type": "VideoMAEImageProcessor",
        "image_mean": [0.45] * 3,
        "image_std": [0.225] * 3,
        "size": {"shortest_edge": 24},
        "crop_size": {"height": 24, "width": 24},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model, {path.name: File(path.read_bytes()) for path in folder.iterdir()}


def test_the_pipeline_takes_a_hub_id_alone(tmp_path):
    (tmp_path / "model").mkdir()
    model, files = released_files(tmp_path / "model")
    frames = np.random.default_rng(0).integers(0, 256, (120, 4, 6, 3), dtype=np.uint8)
    frames = frames.repeat(10, axis=1).repeat(10, axis=2)
    clip = write_video(tmp_path / "clip.mp4", frames)
    with Hub() as hub:
        hub.repos[NAME] = Repo(private=False)
        hub.repos[NAME].commit("main", files, "released")
        environment = os.environ | hub.environment(tmp_path / "home") | {"HF_HUB_OFFLINE": "0"}
        child = subprocess.run(
            [sys.executable, "-c", CHILD, NAME, str(clip)],
            env=environment, capture_output=True, text=True, timeout=240, cwd=tmp_path,
        )  # fmt: skip
    assert child.returncode == 0, child.stderr
    about, answers = json.loads(child.stdout.splitlines()[-1])
    assert about == ["TimeSformerVideoProcessor", "clip", 16, 32]
    assert "sampling_rate=16 as this released checkpoint was trained" in child.stderr
    # 6 frames of a window of 96 in the middle of 120: from 12 to 107
    chosen, _ = decode_video(clip, [12, 31, 50, 69, 88, 107])
    stock = TimesformerVideoProcessor(
        image_mean=[0.45] * 3, image_std=[0.225] * 3, size={"shortest_edge": 32}, crop_size=32
    )
    with torch.no_grad():
        expected = model(**stock(chosen, return_tensors="pt")).logits.softmax(-1)[0]
    for answer in answers:
        np.testing.assert_allclose(
            answer["score"], expected[model.config.label2id[answer["label"]]], atol=1e-5
        )
