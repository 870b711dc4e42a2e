"""Attention as pictures: the patterns of the five schemes, and what a network looked at in a video."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional

from ..inference import MULTI_LABEL, REGRESSION, name_scores, problem_type_of, scores_of
from ..model.configuration_timesformer import TimeSformerConfig
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..model.schemes import SCHEMES, Grid
from ..video.encoding import write_video
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .rollout import attention_rollout, check_query, record_attention, visible_patches


QUERY_COLOUR = (40, 90, 220)
# of a scheme's first, second and third step
STEP_COLOURS = ((235, 90, 60), (60, 170, 90), (225, 175, 30))
STEP_NAMES = {"temporal": "time", "joint": "space-time"}
# Attention from none to most: clear, through violet and orange, to yellow.
HEAT = np.array(
    [(30, 0, 60), (120, 20, 110), (215, 70, 60), (250, 160, 30), (255, 250, 150)], np.float32
)
SHEET_COLUMNS = 8
MIN_WIDTH = 100  # pixels of a frame on a contact sheet


@dataclass
class Explanation:
    """What the network saw in one view of a video, what it said, and where it looked.

    `frames` uint8 `(t, height, width, 3)`; `seconds` `(t,)` their times, None where the rate is
    unknown; `scores` `(labels,)`, probabilities or a regression's numbers; `attention` `(t, h, w)`,
    the share of each patch, which with that of CLS, `cls_share`, sums to one; `title` says what it
    said and how sure it was.
    """

    frames: np.ndarray
    seconds: np.ndarray | None
    scores: np.ndarray
    attention: np.ndarray
    cls_share: float
    title: str


def explain(
    model: TimeSformerForVideoClassification,
    processor: TimeSformerVideoProcessor,
    video: Any,
    *,
    layers: Sequence[int] | None = None,
    head: int | None = None,
    query: Sequence[int] | None = None,
) -> Explanation:
    """Classify one centre view of a video and see what the network looked at, by attention
    rollout (Abnar and Zuidema 2020).

    Args:
        model: in eval mode.
        processor: that of the model.
        video: what the processor takes.
        layers: numbers of the blocks whose attention is shown; None is all.
        head: number of the head that is shown; None is their mean.
        query: a patch `(row, column, frame)` whose attention is shown in place of that of CLS.

    Returns:
        An `Explanation`, which `contact_sheet` and `write_attention_video` draw.

    Raises:
        VideoDecodeError: the video cannot be read.
        ValueError: there is no such layer, head or patch.
    """
    inputs = processor(
        videos=[video],
        num_clips=1,
        num_crops=1,
        do_center_crop=True,
        return_tensors="pt",
        return_metadata=True,
    )
    pixel_values, metadata = (
        inputs["pixel_values"].to(model.device, model.dtype),
        inputs["video_metadata"][0],
    )
    recorded = record_attention(model, pixel_values, head)
    cls, patches = attention_rollout(recorded, query=query, layers=layers)
    scores = scores_of(recorded.logits[0], model.config).cpu()
    return Explanation(
        frames=restore_frames(pixel_values[0], processor),
        seconds=np.array(metadata.frames_indices) / metadata.fps if metadata.fps else None,
        scores=scores.numpy(),
        attention=patches[0].permute(2, 0, 1).float().cpu().numpy(),  # (h, w, t) -> (t, h, w)
        cls_share=float(cls[0]),
        title=describe_scores(scores, model.config),
    )


def describe_scores(scores: torch.Tensor, config: TimeSformerConfig) -> str:
    """The answer on one line, from scores `(labels,)`: the best class, the classes from 50 % on, or
    the numbers.
    """
    if problem_type_of(config) == REGRESSION:
        return ", ".join(
            f"{row['label']} {row['value']:.4g}" for row in name_scores(scores, config)
        )
    rows = name_scores(scores, config)
    if problem_type_of(config) == MULTI_LABEL:
        rows = [row for row in rows if row["score"] >= 0.5] or rows[:1]
    else:
        rows = rows[:1]
    return ", ".join(f"{row['label']} {row['score']:.0%}" for row in rows)


def restore_frames(pixel_values: torch.Tensor, processor: TimeSformerVideoProcessor) -> np.ndarray:
    """The frames that the network saw, `(t, c, height, width)` normalised -> uint8
    `(t, height, width, 3)`.
    """
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (processor.image_mean, processor.image_std)
    )
    frames = (
        pixel_values.float().cpu() * std + mean
        if processor.do_normalize
        else pixel_values.float().cpu()
    )
    return (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def overlay(frames: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Frames with their attention over them: uint8 `(t, height, width, 3)`, `(t, h, w)` -> as the
    frames.

    One scale for the whole clip, so that frames can be compared: the half of the patches that
    matter least has the lowest colour, the top half percent the highest.
    """
    patches = torch.from_numpy(np.ascontiguousarray(attention, np.float32))[None]  # (1, t, h, w)
    heat = functional.interpolate(
        patches, size=frames.shape[1:3], mode="bilinear", align_corners=False
    )[0].numpy()
    low, high = np.quantile(attention, (0.5, 0.995))
    heat = np.clip((heat - low) / max(high - low, 1e-12), 0, 1)[..., None]
    place = heat[..., 0] * (len(HEAT) - 1)
    below = np.minimum(place.astype(int), len(HEAT) - 2)
    colour = HEAT[below] + (HEAT[below + 1] - HEAT[below]) * (place - below)[..., None]
    opacity = 0.25 + 0.5 * heat
    return (frames * (1 - opacity) + colour * opacity).round().astype(np.uint8)


def contact_sheet(explanation: Explanation) -> Image.Image:
    """All frames of an `explanation` in rows, each above its attention, with its time and share of
    the attention."""
    # (2, t, h, w, 3)
    pictures = np.stack((explanation.frames, overlay(explanation.frames, explanation.attention)))
    zoom = -(-MIN_WIDTH // pictures.shape[3])  # captions need room beside each other
    pictures = pictures.repeat(zoom, axis=2).repeat(zoom, axis=3)
    _, count, height, width, _ = pictures.shape
    columns, band, gap = min(count, SHEET_COLUMNS), 26, 6
    rows = -(-count // columns)
    row_height = 2 * height + band + gap
    sheet = Image.new(
        "RGB", (columns * (width + gap) + gap, rows * row_height + band + gap), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    draw.text((gap, gap), explanation.title, fill="black", font=font)
    shares = explanation.attention.sum(axis=(1, 2)) / explanation.attention.sum()
    for index, (frame, over) in enumerate(zip(*pictures)):
        left, top = gap + index % columns * (width + gap), band + index // columns * row_height
        sheet.paste(Image.fromarray(frame), (left, top + band))
        sheet.paste(Image.fromarray(over), (left, top + band + height))
        time = "" if explanation.seconds is None else f"{explanation.seconds[index]:.1f} s   "
        draw.text((left, top + 6), f"{time}{shares[index]:.0%}", fill="black", font=font)
    return sheet


def write_attention_video(
    path: str | Path, explanation: Explanation, *, fps: float | None = None
) -> Path:
    """Write the frames beside their attention as an `.mp4`.

    Args:
        path: the file.
        explanation: what `explain` gave.
        fps: frames a second; None makes the film last as long as the clip that it shows.

    Returns:
        The path.
    """
    frames = np.concatenate(
        (explanation.frames, overlay(explanation.frames, explanation.attention)), axis=2
    )
    odd = [side % 2 for side in frames.shape[1:3]]
    # yuv420p needs even sides
    frames = np.pad(frames, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
    if fps is None:
        seconds = explanation.seconds
        lasts = seconds[-1] - seconds[0] if seconds is not None and len(seconds) > 1 else 0
        fps = np.clip((len(frames) - 1) / lasts, 1, 30) if lasts > 0 else 4
    return write_video(
        path, frames, fps=Fraction(float(fps)).limit_denominator(1000), options={"crf": "16"}
    )


def pattern_frames(
    scheme: str,
    grid: Grid,
    query: Sequence[int],
    *,
    patch: int = 12,
    frames: np.ndarray | None = None,
) -> np.ndarray:
    """Each frame's patches coloured by the step that lets `query` see them: uint8
    `(t, h*patch, w*patch, 3)`.

    `frames` uint8 `(t, h*patch, w*patch, 3)` shine through where they are given. Raises ValueError
    for a query outside of the grid `(h, w, t)`.
    """
    check_query(grid, query)
    colours = np.full((grid[2], *grid[:2], 3), 238, np.float32)  # (t, h, w, 3)
    coloured = np.zeros((grid[2], *grid[:2], 1), np.float32)
    for step, colour in zip(SCHEMES[scheme], STEP_COLOURS):
        seen = visible_patches(step, grid, query).permute(2, 0, 1).numpy()  # (h, w, t) -> (t, h, w)
        both = seen & (coloured[..., 0] > 0)
        colours[seen & ~both] = colour
        colours[both] = (colours[both] + colour) / 2
        coloured[seen] = 1
    row, column, frame = query
    colours[frame, row, column], coloured[frame, row, column] = QUERY_COLOUR, 1
    picture = colours.repeat(patch, axis=1).repeat(patch, axis=2)
    if frames is not None:
        opacity = 0.15 + 0.45 * coloured.repeat(patch, axis=1).repeat(patch, axis=2)
        picture = frames * (1 - opacity) + picture * opacity
    picture[:, ::patch] = picture[:, :, ::patch] = 255  # lines between patches
    return picture.round().astype(np.uint8)


def pattern_figure(
    grid: Grid = (14, 14, 5),
    query: Sequence[int] | None = None,
    *,
    schemes: Sequence[str] = tuple(SCHEMES),
    patch: int = 12,
    frames: np.ndarray | None = None,
) -> Image.Image:
    """The paper's figure 2: for each scheme a column of frames, a query patch, and what each step
    lets it see.

    The query defaults to a patch near the middle of the middle frame. `frames` uint8
    `(t, h*patch, w*patch, 3)` shine through where they are given. Raises ValueError for a query
    outside of the grid `(h, w, t)`.
    """
    query = (grid[0] // 2, grid[1] // 2, grid[2] // 2) if query is None else tuple(query)
    width, height, gap, head = grid[1] * patch, grid[0] * patch, 14, 62
    column = max(width, 150) + gap
    figure = Image.new(
        "RGB", (len(schemes) * column + gap, head + grid[2] * (height + gap) + 20), "white"
    )
    draw, bold, small = (
        ImageDraw.Draw(figure),
        ImageFont.load_default(size=14),
        ImageFont.load_default(size=12),
    )
    for index, scheme in enumerate(schemes):
        left = gap + index * column
        draw.text((left, 8), scheme.replace("_", " "), fill="black", font=bold)
        x = left
        for step, colour in zip(SCHEMES[scheme], STEP_COLOURS):
            name = STEP_NAMES.get(step, step)
            draw.rectangle((x, 34, x + 10, 44), fill=colour)
            draw.text((x + 14, 32), name, fill="black", font=small)
            x += 22 + int(draw.textlength(name, font=small))
        for frame, picture in enumerate(
            pattern_frames(scheme, grid, query, patch=patch, frames=frames)
        ):
            figure.paste(Image.fromarray(picture), (left, head + frame * (height + gap)))
    y = figure.height - 22
    draw.rectangle((gap, y + 3, gap + 10, y + 13), fill=QUERY_COLOUR)
    text = "the query patch; frames from top to bottom; patches that two steps let it see have a mixed colour"
    draw.text((gap + 14, y), text, fill="black", font=small)
    return figure
