"""Small clips made on the spot: classes that only motion tells apart, written as real video files
by PyAV.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..video.encoding import write_video


# Where a shape goes from the first frame to the last: (dx, dy) in units of the free way, and its
# growth in size.
MOTIONS: dict[str, tuple[int, int, int]] = {
    "left": (-1, 0, 0),
    "right": (1, 0, 0),
    "up": (0, -1, 0),
    "down": (0, 1, 0),
    "growing": (0, 0, 1),
    "shrinking": (0, 0, -1),
}


def motion_frames(
    name: str, rng: np.random.Generator, *, num_frames: int = 32, size: int = 64
) -> np.ndarray:
    """One clip of a square or disc that moves as `MOTIONS[name]` says.

    Shape, colours, speed and place vary from clip to clip and tell nothing about the class: single
    frames of any two classes look alike, so only a model that compares frames can do better than
    chance.

    Args:
        name: one of `MOTIONS`: "left", "right", "up", "down", "growing", "shrinking".
        rng: draws shape, colours, speed and place.
        num_frames: frames of the clip.
        size: side of the frames in pixels.

    Returns:
        uint8 RGB `(num_frames, size, size, 3)`.
    """
    dx, dy, growth = MOTIONS[name]
    back, fore = rng.uniform(0, 100, 3), rng.uniform(140, 255, 3)
    is_disc = bool(rng.integers(2))
    radius = rng.uniform(0.12, 0.2) * size
    way = rng.uniform(0.3, 0.45) * size
    centre = rng.uniform(0.42, 0.58, 2) * size  # (x, y) at mid-clip
    rows, columns = np.mgrid[:size, :size] + 0.5
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    for index, phase in enumerate(np.linspace(-0.5, 0.5, num_frames)):
        x, y = centre[0] + dx * way * phase, centre[1] + dy * way * phase
        r = radius * 2.0 ** (1.2 * growth * phase)
        if is_disc:
            distance = np.hypot(columns - x, rows - y)
        else:
            distance = np.maximum(abs(columns - x), abs(rows - y))
        cover = np.clip(r - distance + 0.5, 0, 1)[..., None]  # (size, size, 1), soft edge
        picture = back + (fore - back) * cover + rng.normal(0, 4, (size, size, 1))
        frames[index] = np.clip(picture, 0, 255)
    return frames


def make_motion_dataset(
    folder: str | Path,
    *,
    splits: Mapping[str, int] | None = None,
    num_frames: int = 32,
    size: int = 64,
    seed: int = 0,
) -> Path:
    """Write clips of `motion_frames` as a data set of folders: `<split>/<class>/<clip>.mp4`.

    Args:
        folder: made where it is missing.
        splits: clips of each class in each split, such as `{"train": 20, "test": 8}`.
        num_frames: frames of each clip.
        size: side of the frames in pixels.
        seed: decides all clips.

    Returns:
        The folder.
    """
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    for split, count in (splits or {"train": 24, "test": 8}).items():
        for name in MOTIONS:
            target = folder / split / name
            target.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                frames = motion_frames(name, rng, num_frames=num_frames, size=size)
                write_video(target / f"{name}_{index:03d}.mp4", frames)
    return folder
