"""A timeline as a picture: the scores of the classes over time, and under them the segments."""

import io
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

from .timeline import Timeline


MAX_CLASSES = 10  # lines that can still be told apart: one a colour
WIDTH = 12.0  # inches
DPI = 100


def class_colours(timeline: Timeline) -> dict[str, tuple[float, float, float]]:
    """A colour for each class that has a segment or is among the best, RGB from 0 to 1, the same in
    every picture.
    """
    palette = [
        (0.12, 0.47, 0.71), (1.00, 0.50, 0.05), (0.17, 0.63, 0.17), (0.84, 0.15, 0.16), (0.58, 0.40, 0.74),
        (0.55, 0.34, 0.29), (0.89, 0.47, 0.76), (0.50, 0.50, 0.50), (0.74, 0.74, 0.13), (0.09, 0.75, 0.81),
    ]  # fmt: skip
    return {
        label: palette[index % len(palette)] for index, label in enumerate(shown_classes(timeline))
    }


def shown_classes(timeline: Timeline) -> list[str]:
    """The classes that a picture shows: those with segments, the longest first, then those with the
    highest scores.
    """
    lengths: dict[str, float] = {}
    for segment in timeline.segments:
        lengths[segment.label] = lengths.get(segment.label, 0.0) + segment.end - segment.start
    with_segments = sorted(lengths, key=lambda label: -lengths[label])
    by_score = [
        timeline.labels[index] for index in np.argsort(-timeline.scores.max(axis=0), kind="stable")
    ]
    rest = [label for label in by_score if label not in lengths]
    room = (
        len(timeline.labels) if timeline.is_regression else max(0, MAX_CLASSES - len(with_segments))
    )
    return with_segments + rest[:room]


def draw_timeline(timeline: Timeline) -> Image.Image:
    """A `timeline` as a picture: scores over time, and segments. Needs matplotlib (extra `viz`).

    `seconds_at` maps a click on it to a time.
    """
    from matplotlib.figure import Figure  # optional dependency

    figure = Figure(figsize=(WIDTH, 4.2), dpi=DPI)
    lines = figure.add_axes((LEFT, 0.36, RIGHT - LEFT, 0.53))
    band = figure.add_axes((LEFT, 0.12, RIGHT - LEFT, 0.16), sharex=lines)
    cells = timeline.cells
    middles = (cells[1:] + cells[:-1]) / 2
    colours = class_colours(timeline)
    shown = shown_classes(timeline)
    for label in shown[:MAX_CLASSES]:
        scores = timeline.scores[:, timeline.labels.index(label)]
        lines.plot(middles, scores, color=colours[label], label=label, linewidth=1.2)
    lines.set_xlim(0, max(timeline.seconds, 1e-3))
    if not timeline.is_regression:
        lines.set_ylim(0, 1.02)
    lines.set_ylabel("value" if timeline.is_regression else "score")
    # at most five names a row, in rows of equal length: six names are two rows of three
    count = max(1, len(shown[:MAX_CLASSES]))
    columns = ceil(count / ceil(count / 5))
    above = (0.5, 0.98)
    lines.legend(loc="lower center", bbox_to_anchor=above, ncols=columns, fontsize=8, frameon=False)
    if len(shown) > MAX_CLASSES:
        hidden = f"{len(shown) - MAX_CLASSES} more classes have no line here: see the tables"
        lines.text(0.995, 0.97, hidden, transform=lines.transAxes, ha="right", va="top", fontsize=7)
    for segment in timeline.segments:
        width = segment.end - segment.start
        band.barh(
            0,
            width,
            left=segment.start,
            color=colours[segment.label],
            edgecolor="white",
            linewidth=0.5,
        )
        if width > 0.06 * timeline.seconds:
            band.text(
                segment.start + width / 2, 0, segment.label, ha="center", va="center", fontsize=7, clip_on=True,
                color="white",
            )  # fmt: skip
    for begin, end in timeline.gaps:
        band.axvspan(begin, timeline.seconds if end is None else end, color="0.8", hatch="//")
    band.set_yticks([])
    band.set_xlabel("seconds")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


LEFT, RIGHT = 0.07, 0.98  # where the axes begin and end, as shares of the picture's width


def seconds_at(timeline: Timeline, x: float, width: int) -> float:
    """The time that the column `x` of a picture of that width stands for, within the video."""
    share = (x / width - LEFT) / (RIGHT - LEFT)
    return float(np.clip(share, 0, 1) * timeline.seconds)


def write_picture(path: Path, timeline: Timeline) -> Path:
    """`draw_timeline` as a PNG."""
    draw_timeline(timeline).save(path)
    return path
