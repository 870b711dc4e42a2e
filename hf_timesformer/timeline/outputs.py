"""All files of one timeline, under names that begin alike."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from .film import write_overlay
from .picture import write_picture
from .timeline import Timeline
from .writers import (
    write_features,
    write_json,
    write_label_studio,
    write_scores_csv,
    write_segments_csv,
    write_webvtt,
)


def write_outputs(base: Path, timeline: Timeline, features: Path | None = None) -> list[Path]:
    """Write every file but the film, `base` with a suffix each, and return their paths; the JSON
    comes last.

    So a JSON that is there means that all the others are. The picture is left out where matplotlib
    (extra `viz`) is not installed. `features` is the Parquet file for the CLS features.
    """

    def named(suffix: str) -> Path:
        return base.with_name(base.name + suffix)

    written = [
        write_segments_csv(named(".csv"), timeline),
        write_scores_csv(named(".scores.csv"), timeline),
        write_webvtt(named(".vtt"), timeline),
        write_label_studio(named(".label_studio.json"), timeline),
    ]
    if importlib.util.find_spec("matplotlib") is not None:
        written.append(write_picture(named(".png"), timeline))
    if features is not None:
        features.parent.mkdir(parents=True, exist_ok=True)
        written.append(write_features(features, [timeline]))
    return [*written, write_json(named(".json"), timeline)]


def write_film_of(
    base: Path,
    timeline: Timeline,
    short_side: int | None = None,
    progress: Callable[[float, float | None], None] = lambda seconds, length: None,
) -> Path:
    """The video with the answer drawn on it, as `base.overlay.mp4`."""
    path = base.with_name(f"{base.name}.overlay.mp4")
    return write_overlay(
        path,
        timeline,
        short_side=short_side,
        progress=lambda seconds: progress(seconds, timeline.seconds),
    )
