"""The videos that the model got most wrong, as one picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..data.record_video import DEFAULT_READING, ReadSettings, decode_record
from ..data.targets import MULTI_LABEL, REGRESSION
from ..video.decoding import VideoDecodeError
from .predictions import Predictions


LIMIT = 16  # videos on the sheet
COLUMNS, FRAMES = 2, 3  # videos beside each other, frames of each
HEIGHT, BAND, GAP = 120, 40, 8  # pixels


def error_sizes(predictions: Predictions) -> np.ndarray:
    """How wrong the model was of each video, `(videos,)`: 0 where it was right.

    Of one class: how much more probable the model took its answer than the true class. Of several:
    the worst class's distance between label and probability, where that is beyond one half. Of a
    number: the absolute error.
    """
    logits, labels = (
        torch.from_numpy(predictions.logits).double(),
        torch.from_numpy(predictions.labels),
    )
    if predictions.problem_type == REGRESSION:
        return (logits[:, 0] - labels).abs().numpy()
    if predictions.problem_type == MULTI_LABEL:
        distance = (logits.sigmoid() - labels).abs().amax(dim=1)
        return torch.where(distance > 0.5, distance, 0.0).numpy()
    scores = logits.softmax(dim=1)
    return (scores.amax(dim=1) - scores.gather(1, labels[:, None])[:, 0]).numpy()


def describe_error(predictions: Predictions, index: int, class_names: list[str]) -> tuple[str, str]:
    """Two short lines: what is true of the video, what was said."""
    logits, label = torch.from_numpy(predictions.logits[index]), predictions.labels[index]
    if predictions.problem_type == REGRESSION:
        return f"true: {float(label):.4g}", f"said: {float(logits[0]):.4g}"
    if predictions.problem_type == MULTI_LABEL:
        true = [class_names[number] for number in np.flatnonzero(label)]
        said = [class_names[number] for number in np.flatnonzero(logits.numpy() > 0)]
        return f"true: {', '.join(true) or 'none'}", f"said: {', '.join(said) or 'none'}"
    scores = logits.softmax(dim=0)
    best = int(scores.argmax())
    return (
        f"true: {class_names[label]} {scores[label]:.0%}",
        f"said: {class_names[best]} {scores[best]:.0%}",
    )


def worst_indices(predictions: Predictions) -> list[int]:
    """Where the `LIMIT` worst errors stand in the predictions, the worst first."""
    sizes = error_sizes(predictions)
    return [int(index) for index in np.argsort(-sizes, kind="stable")[:LIMIT] if sizes[index] > 0]


def worst_videos(predictions: Predictions) -> list[str]:
    """The names of their videos."""
    return [predictions.video_ids[index] for index in worst_indices(predictions)]


def write_worst_errors(
    path: Path,
    predictions: Predictions,
    class_names: list[str],
    records: Mapping[str, Mapping[str, Any]],
    *,
    reading: ReadSettings = DEFAULT_READING,
) -> Path | None:
    """A contact sheet of the worst errors, a few frames of each; None where the model was right
    throughout.

    `records` has the record of each of `worst_videos`, whose files are read as `reading` says.
    """
    worst = worst_indices(predictions)
    if not worst:
        return None
    tiles = [
        _tile(
            records[predictions.video_ids[index]],
            describe_error(predictions, index, class_names),
            reading,
        )
        for index in worst
    ]
    width = max(tile.width for tile in tiles)
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new(
        "RGB",
        (min(COLUMNS, len(tiles)) * (width + GAP) + GAP, rows * (HEIGHT + BAND + GAP) + GAP),
        "white",
    )
    for number, tile in enumerate(tiles):
        left = GAP + number % COLUMNS * (width + GAP)
        sheet.paste(tile, (left, GAP + number // COLUMNS * (HEIGHT + BAND + GAP)))
    sheet.save(path)
    return path


def _tile(record: Mapping[str, Any], lines: tuple[str, str], reading: ReadSettings) -> Image.Image:
    """Frames of one video beside each other, the two lines over them."""

    def spread(metadata: Any) -> list[int]:
        count = metadata.total_num_frames
        return [int((number + 0.5) / FRAMES * count) for number in range(FRAMES)]

    try:
        frames, _ = decode_record(record, spread, short_side=HEIGHT, reading=reading)
        pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    except VideoDecodeError:  # it was read before: the disk has changed since
        pictures = [Image.new("RGB", (HEIGHT, HEIGHT), "grey")]
    pictures = [
        picture.resize((picture.width * HEIGHT // picture.height, HEIGHT)) for picture in pictures
    ]
    tile = Image.new("RGB", (sum(picture.width for picture in pictures), HEIGHT + BAND), "white")
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(size=13)
    for number, line in enumerate((f"{record['video_id']}", "   ".join(lines))):
        draw.text((2, 2 + 18 * number), line, fill="black", font=font)
    left = 0
    for picture in pictures:
        tile.paste(picture, (left, BAND))
        left += picture.width
    return tile
