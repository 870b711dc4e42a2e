"""What an evaluation leaves behind: `eval_results.json`, `per_class.csv` and `confusion_matrix.png`."""

import csv
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .accuracy import classification_metrics
from .predictions import Predictions


logger = logging.getLogger(__name__)

CROPS = {1: "the centre crop", 3: "three crops (left, centre, right; in portrait top, centre, bottom)"}


def summarize(
    predictions: Predictions, class_names: list[str], *, expected: int | None, found: int | None
) -> dict[str, Any]:
    """The figures of one evaluation: metrics, counts of videos, failures with their reasons, throughput.

    `expected` is what the annotations list and `found` what is on disk; None (tar shards without a manifest) takes the
    number that was streamed. Raises ValueError where no video could be read.
    """
    read = len(predictions.video_ids) + len(predictions.failures)
    if not len(predictions.labels):
        first = predictions.failures[0]["message"] if predictions.failures else "the split is empty"
        raise ValueError(f"none of {read} videos could be evaluated; the first: {first}")
    results = classification_metrics(predictions.logits, predictions.labels)
    num_classes = predictions.logits.shape[1]
    if num_classes < 5:
        results["top5_note"] = f"the model has {num_classes} classes, so top-5 is top-{num_classes}: always 1"
    found = read if found is None else found
    return results | {
        "videos_expected": found if expected is None else expected,
        "videos_found": found,
        "videos_evaluated": len(predictions.video_ids),
        "videos_failed": len(predictions.failures),
        "failures": predictions.failures,
        "classes_evaluated": int(len(np.unique(predictions.labels))),
        "classes": len(class_names),
        "seconds": round(predictions.seconds, 2),
        "videos_per_second": round(read / max(predictions.seconds, 1e-9), 3),
    }


def describe_protocol(processor: TimeSformerVideoProcessor) -> str:
    """The protocol in one sentence, from the processor's settings."""
    frames, clips = processor.num_frames, processor.num_clips
    if processor.sampling == "segments":
        which = f"{frames} frames, one from each of {frames} equal segments of the video"
    else:
        rate = f" of {processor.target_fps:g} fps" if processor.target_fps else ""
        which = f"{frames} frames at a sampling rate of 1/{processor.sampling_rate}{rate}"
    clip = f"one clip in the middle of the video ({which})" if clips == 1 else f"{clips} clips spread evenly ({which})"
    crop = processor.crop_size
    return (
        f"For each video {clip}; frames resized to a short side of {processor.size['shortest_edge']} pixels; "
        f"{CROPS[processor.num_crops]} of {crop['height']}x{crop['width']} pixels; the logits averaged over the "
        f"{clips * processor.num_crops} views; the class of the largest mean logit is the top-1."
    )


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Counts `(classes, classes)`: rows are true classes, columns predicted ones."""
    matrix = np.zeros((predictions.logits.shape[1],) * 2, np.int64)
    np.add.at(matrix, (predictions.labels, predictions.logits.argmax(axis=1)), 1)
    return matrix


def write_report(
    folder: Path, results: dict[str, Any], predictions: Predictions, class_names: list[str]
) -> list[Path]:
    """Write the results, the per-class table and, where matplotlib is installed, the picture; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "eval_results.json", folder / "per_class.csv"]
    written[0].write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    matrix = confusion_matrix(predictions)
    _write_per_class(written[1], matrix, class_names)
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("no confusion_matrix.png: matplotlib is not installed (pip install hf-timesformer[viz])")
    else:
        written.append(folder / "confusion_matrix.png")
        draw_confusion_matrix(written[-1], matrix, class_names)
    return written


def _write_per_class(path: Path, matrix: np.ndarray, class_names: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "videos", "correct", "accuracy", "precision", "most_confused_with", "confused"])
        for index in _occurring(matrix):
            videos, correct, predicted = matrix[index].sum(), matrix[index, index], matrix[:, index].sum()
            wrong = matrix[index].copy()
            wrong[index] = 0
            other = class_names[int(wrong.argmax())] if wrong.any() else ""
            accuracy = f"{correct / videos:.4f}" if videos else ""
            precision = f"{correct / predicted:.4f}" if predicted else ""
            writer.writerow([class_names[index], videos, correct, accuracy, precision, other, wrong.max()])


def _occurring(matrix: np.ndarray) -> np.ndarray:
    """Classes that are some video's true or predicted one: the rest of a large model's classes says nothing."""
    return np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))


def draw_confusion_matrix(path: Path, matrix: np.ndarray, class_names: list[str]) -> None:
    """Draw row-normalised counts as a PNG; up to 40 classes are named on the axes, up to 15 have figures."""
    from matplotlib.figure import Figure  # optional dependency

    kept = _occurring(matrix)
    matrix, class_names = matrix[np.ix_(kept, kept)], [class_names[index] for index in kept]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    count = len(class_names)
    side = float(np.clip(2.5 + 0.32 * count, 5, 16))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, fraction=0.04, label="share of the class's videos")
    axes.set(xlabel="predicted", ylabel="true")
    if count <= 40:
        axes.set_xticks(range(count), class_names, rotation=90, fontsize=8)
        axes.set_yticks(range(count), class_names, fontsize=8)
    if count <= 15:
        for row, column in zip(*np.nonzero(matrix)):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, matrix[row, column], ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path, dpi=110)
