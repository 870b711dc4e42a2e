"""A timeline as files: JSON, CSV, WebVTT subtitles, Label Studio's timeline labels, Parquet."""

import csv
import json
from pathlib import Path

import numpy as np

from .timeline import Timeline


# Label Studio counts frames at the rate that its labelling page is told (`<Video frameRate="25">`
# by default).
DEFAULT_RATE = 25.0
TOP = 5  # classes of a window that the JSON names


def write_json(path: Path, timeline: Timeline) -> Path:
    """Everything: how it was made, segments, and of each window the classes with the highest scores
    (all numbers).
    """
    content = {
        "video": timeline.video,
        "seconds": round(timeline.seconds, 3),
        **timeline.settings,
        "labels": timeline.labels,
        "segments": [segment.to_dict() for segment in timeline.segments],
        "not_decoded": [
            [round(begin, 3), None if end is None else round(end, 3)]
            for begin, end in timeline.gaps
        ],
        "windows": [
            {"start": round(start, 3), "end": round(end, 3), "scores": _named(timeline, scores)}
            for (start, end), scores in zip(timeline.window_rows(), timeline.scores)
        ],
    }
    # Whole or not at all: that it is there tells a later run that this one came to its end.
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def _named(timeline: Timeline, scores: np.ndarray) -> dict[str, float]:
    """The scores `(labels,)` of one window by name: the best `TOP`, or all numbers of a
    regression.
    """
    order = (
        np.arange(len(scores))
        if timeline.is_regression
        else np.argsort(-scores, kind="stable")[:TOP]
    )
    return {timeline.labels[index]: round(float(scores[index]), 6) for index in order}


def write_segments_csv(path: Path, timeline: Timeline) -> Path:
    """One row a segment: start, end, label, score."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["start", "end", "label", "score"])
        for segment in timeline.segments:
            row = segment.to_dict()
            writer.writerow(
                [f"{row['start']:.3f}", f"{row['end']:.3f}", row["label"], f"{row['score']:.6f}"]
            )
    return path


def write_scores_csv(path: Path, timeline: Timeline) -> Path:
    """One row a window: start, end, and a column for each class."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["start", "end", *timeline.labels])
        for (start, end), scores in zip(timeline.window_rows(), timeline.scores):
            writer.writerow([f"{start:.3f}", f"{end:.3f}", *(f"{score:.6f}" for score in scores)])
    return path


def write_webvtt(path: Path, timeline: Timeline) -> Path:
    """Write subtitles that any player shows: a cue for each segment; for a regression, the numbers
    of each window's cell.

    Args:
        path: the `.vtt` file.
        timeline: what `label_video` gave.

    Returns:
        The path.
    """
    cues = [
        (segment.start, segment.end, f"{segment.label} {segment.score:.0%}")
        for segment in timeline.segments
    ]
    if timeline.is_regression:
        cells = timeline.cells
        for begin, end, scores in zip(cells, cells[1:], timeline.scores):
            text = ", ".join(
                f"{label} {score:.4g}" for label, score in zip(timeline.labels, scores)
            )
            cues.append((float(begin), float(end), text))
    lines = ["WEBVTT", ""]
    for begin, end, text in cues:
        lines += [f"{_stamp(begin)} --> {_stamp(end)}", _cue_text(text), ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _stamp(seconds: float) -> str:
    """3723.5 -> 01:02:03.500"""
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _cue_text(text: str) -> str:
    """Text of a cue: one line, with what WebVTT takes for markup or for a time line written out."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(text.split())


def write_label_studio(path: Path, timeline: Timeline) -> Path:
    """Write a task with predictions for Label Studio's `<Video name="video">` with
    `<TimelineLabels name="timeline">`.

    Frames count from 1 and both ends are included. They are those of the video's own frame rate:
    the labelling page must say `frameRate` as the task's data does.

    Args:
        path: the JSON file.
        timeline: what `label_video` gave.

    Returns:
        The path.
    """
    rate = timeline.frame_rate or DEFAULT_RATE
    result = [
        {
            "id": f"segment-{number}",
            "from_name": "timeline",
            "to_name": "video",
            "type": "timelinelabels",
            "score": round(segment.score, 6),
            "value": {
                "ranges": [
                    {
                        "start": round(segment.start * rate) + 1,
                        "end": max(1, round(segment.end * rate)),
                    }
                ],
                "timelinelabels": [segment.label],
            },
        }
        for number, segment in enumerate(timeline.segments)
    ]
    scores = [segment.score for segment in timeline.segments]
    prediction = {
        "model_version": str(timeline.settings.get("model", "hf_timesformer")),
        "score": round(float(np.mean(scores)), 6) if scores else 0.0,
        "result": result,
    }
    task = {
        "data": {"video": timeline.video, "frameRate": round(rate, 6)},
        "predictions": [prediction],
    }
    path.write_text(json.dumps([task], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def write_features(path: Path, timelines: list[Timeline]) -> Path:
    """CLS features of every window of some videos as Parquet: `video`, `window`, `start`, `end`,
    `features`.
    """
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, list] = {"video": [], "window": [], "start": [], "end": [], "features": []}
    for timeline in timelines:
        assert timeline.features is not None
        for number, (start, end) in enumerate(timeline.window_rows()):
            columns["video"].append(timeline.video)
            columns["window"].append(number)
            columns["start"].append(start)
            columns["end"].append(end)
            columns["features"].append(timeline.features[number])
    width = len(columns["features"][0]) if columns["features"] else 0
    types = {"features": pyarrow.list_(pyarrow.float32(), width)}
    table = pyarrow.table(
        {name: pyarrow.array(rows, types.get(name)) for name, rows in columns.items()}
    )
    pyarrow.parquet.write_table(table, path)
    return path
