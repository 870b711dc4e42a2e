"""The clips of `benchmarks small_set`, and how they are parted."""

import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from hf_timesformer.data.synthetic import MOTIONS, motion_frames
from hf_timesformer.video.decoding import decode_video


SIZE = 224  # pixels
FRAMES = 8
FOLDS = 3
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

# Which of 16 frames, evenly spread over a video, the two classes of a set show.
ORDERS = {
    "direction": (list(range(0, 16, 2)), list(range(14, -1, -2))),
    "halves": ([0, 2, 4, 6, 8, 10, 12, 14], [8, 10, 12, 14, 0, 2, 4, 6]),
    "speed": (list(range(4, 12)), list(range(0, 16, 2))),
}
SETS = (*ORDERS, "motion", "classes")


@dataclass
class Clips:
    """A small set: frames `(clips, FRAMES, 3, SIZE, SIZE)` uint8, classes and groups `(clips,)`."""

    frames: torch.Tensor
    labels: torch.Tensor
    groups: np.ndarray = field(default_factory=lambda: np.zeros(0, int))

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1


def read_videos(folder: Path) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """16 frames of every video, evenly spread, `(videos, 16, 3, SIZE, SIZE)`, groups and classes."""
    frames, groups, classes = [], [], []
    for path in sorted(folder.glob("*/*.avi")):
        picked, _ = decode_video(
            str(path),
            lambda video: np.linspace(0, video.total_num_frames - 1, 16).round().astype(int),
            short_side=SIZE,
        )
        frames.append(center(torch.as_tensor(picked)))
        groups.append(int(re.search(r"_g(\d+)_", path.name)[1]))
        classes.append(path.parent.name)
    _, numbers = np.unique(classes, return_inverse=True)
    return torch.stack(frames), groups, torch.from_numpy(numbers)


def center(frames: torch.Tensor) -> torch.Tensor:
    """The square in the middle: `(t, 3, height, width) -> (t, 3, SIZE, SIZE)`."""
    top, left = ((side - SIZE) // 2 for side in frames.shape[-2:])
    return frames[..., top : top + SIZE, left : left + SIZE]


def make_set(name: str, videos: torch.Tensor, groups: list[int], classes: torch.Tensor) -> Clips:
    """One of `SETS` from videos. In those of `ORDERS` every video gives a clip of each class, so
    that pictures tell nothing; `classes` are UCF101's own, to see what is lost of the pictures."""
    if name == "classes":
        return Clips(videos[:, ::2], classes, np.array(groups))
    orders = ORDERS[name]
    frames = torch.cat([videos[:, order] for order in orders])
    labels = torch.arange(len(orders)).repeat_interleave(len(videos))
    return Clips(frames, labels, np.tile(groups, len(orders)))


def make_motions(count: int = 40) -> Clips:
    """`count` generated clips of each motion."""
    rng = np.random.default_rng(0)
    frames, labels, groups = [], [], []
    for label, name in enumerate(MOTIONS):
        for number in range(count):
            clip = motion_frames(name, rng, num_frames=FRAMES, size=SIZE)
            frames.append(torch.from_numpy(clip).permute(0, 3, 1, 2))
            labels.append(label)
            groups.append(number)
    return Clips(torch.stack(frames), torch.tensor(labels), np.array(groups))


def spread(frames: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of clips, from all over the set."""
    return frames[:: max(1, len(frames) // count)][:count]


def folds(groups: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Clips to train on and to test, `FOLDS` times; no group is in both."""
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    for part in np.array_split(names, FOLDS):
        held_out = np.isin(groups, part)
        yield np.flatnonzero(~held_out), np.flatnonzero(held_out)


def mean_class_accuracy(answers: torch.Tensor, labels: torch.Tensor) -> float:
    """In percent."""
    right = (answers == labels).double()
    return 100 * statistics.mean(right[labels == c].mean().item() for c in labels.unique())
