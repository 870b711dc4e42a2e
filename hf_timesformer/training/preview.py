"""Contact sheets of augmented training clips, so that one sees what the network sees."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..data.clips import ClipCollator, TrainingClips
from ..data.targets import SINGLE_LABEL


CAPTION = 14  # pixels above each row of frames
MOST_FRAMES = 16
CLIPS_A_SHEET = 16
PREVIEW_EPOCH = 2**31  # tar shards are read forward only, so the first epoch is left for training


def write_preview(
    clips: TrainingClips, collator: ClipCollator, count: int, folder: str | Path, *, names: Sequence[str],
    batch_size: int,
) -> list[Path]:  # fmt: skip
    """Write `preview_1.png` and so on: `count` clips of an epoch that training does not come to, a
    row of frames each.

    They are batches as the network gets them, mixed where batches are mixed, with the normalisation
    taken back. The caption tells the class, or the classes with their shares. Returns the files.
    """
    sampler: Any = clips.source.make_sampler(clips.seed)
    sampler.set_epoch(PREVIEW_EPOCH)
    keys = list(sampler)
    per_batch = max(1, batch_size // clips.repeats)
    rows = []
    for begin in range(0, len(keys), per_batch):
        items: list[Any] = [clips[key] for key in keys[begin : begin + per_batch]]
        batch = collator(items)
        for pixel_values, label, name in zip(
            batch["pixel_values"], batch["labels"], batch["video_ids"]
        ):
            rows.append(
                _draw_row(
                    pixel_values, f"{name}: {_caption(label, names, collator.problem_type)}", clips
                )
            )
        if len(rows) >= count:
            break
    paths: list[Path] = []
    for begin in range(0, min(count, len(rows)), CLIPS_A_SHEET):
        sheet = np.concatenate(rows[begin : min(begin + CLIPS_A_SHEET, count)])
        paths.append(Path(folder) / f"preview_{len(paths) + 1}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(paths[-1])
    return paths


def _caption(label: torch.Tensor, names: Sequence[str], problem_type: str) -> str:
    """What a clip's label says: a class number or a regression's number `()`, or the shares of the
    classes `(num_classes,)`.
    """
    if label.ndim == 0:
        return names[int(label)] if problem_type == SINGLE_LABEL else f"{label.item():g}"
    shares = [(share, names[number]) for number, share in enumerate(label.tolist()) if share > 0]
    return ", ".join(
        f"{name} {share:.2f}" if share < 1 else name for share, name in sorted(shares, reverse=True)
    )


def _draw_row(pixel_values: torch.Tensor, caption: str, clips: TrainingClips) -> np.ndarray:
    """A clip `(T, 3, H, W)` as one picture `(CAPTION + H, T * W, 3)`; of a long one 16 frames."""
    if len(pixel_values) > MOST_FRAMES:
        pixel_values = pixel_values[torch.linspace(0, len(pixel_values) - 1, MOST_FRAMES).long()]
    mean = torch.tensor(clips.augmentation.image_mean).view(3, 1, 1)
    std = torch.tensor(clips.augmentation.image_std).view(3, 1, 1)
    frames = (pixel_values * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
    row = frames.permute(2, 0, 3, 1).flatten(1, 2).numpy()  # (T, 3, H, W) -> (H, T * W, 3)
    picture = Image.new("RGB", (row.shape[1], CAPTION + row.shape[0]))
    picture.paste(Image.fromarray(row), (0, CAPTION))
    ImageDraw.Draw(picture).text((2, 1), caption, fill="white")
    return np.asarray(picture)
