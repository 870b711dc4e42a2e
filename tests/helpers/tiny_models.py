"""A tiny saved model and clips for it, for tests of whole commands."""

from pathlib import Path

import numpy as np
import torch

from hf_timesformer import (
    TimeSformerConfig,
    TimeSformerForVideoClassification,
    TimeSformerVideoProcessor,
)
from hf_timesformer.data.synthetic import MOTIONS, motion_frames
from hf_timesformer.video.encoding import write_video


def write_clips(folder: Path) -> Path:
    """Two wide clips of each motion, and one text file."""
    rng = np.random.default_rng(0)
    for name in MOTIONS:
        for number in range(2):
            (folder / "test" / name).mkdir(parents=True, exist_ok=True)
            frames = motion_frames(name, rng, num_frames=10, size=48)
            # (10, 48, 96, 3): three crops differ
            wide = np.concatenate([frames, frames[:, :, ::-1] // 2], axis=2)
            write_video(folder / f"test/{name}/{number}.mp4", wide)
    (folder / "test/up/broken.mp4").write_text("no video")
    return folder


def write_model(folder: Path) -> Path:
    """A tiny model whose classes are in another order than the data set's."""
    names = sorted(MOTIONS, reverse=True)
    config = TimeSformerConfig(
        image_size=32,
        patch_size=16,
        num_frames=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    torch.manual_seed(0)
    TimeSformerForVideoClassification(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    TimeSformerVideoProcessor(num_frames=4, sampling_rate=2, **size).save_pretrained(folder)
    return folder
