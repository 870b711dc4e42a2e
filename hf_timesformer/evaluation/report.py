"""What an evaluation leaves behind: the figures, predictions of every video, tables and pictures.

| file                | one class a video | several classes | a number |
|---------------------|-------------------|-----------------|----------|
| eval_results.json   | x                 | x               | x        |
| predictions.parquet | x                 | x               | x        |
| per_class.csv       | x                 | x               |          |
| most_confused.csv   | x                 |                 |          |
| confusion_matrix.png| x                 |                 |          |
"""

import csv
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from ..data.targets import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .accuracy import (
    average_precision,
    classification_metrics,
    multi_label_metrics,
    regression_metrics,
)
from .prediction_file import FILE_NAME, write_predictions
from .predictions import Predictions


logger = logging.getLogger(__name__)

CROPS = {
    1: "the centre crop",
    3: "three crops (left, centre, right; in portrait top, centre, bottom)",
}


def summarize(
    predictions: Predictions,
    class_names: list[str],
    *,
    expected: int | None,
    found: int | None,
    threshold: float = 0.5,
) -> dict[str, Any]:
    """The figures of one evaluation: metrics, counts of videos, failures with their reasons,
    throughput.

    `expected` is what the annotations list and `found` what is on disk; None (tar shards without a
    manifest) takes the number that was streamed. `threshold` is the probability from which on a
    class counts as named, where a video has several. Raises ValueError where no video could be
    read.
    """
    read = len(predictions.video_ids) + len(predictions.failures)
    if not len(predictions.labels):
        first = predictions.failures[0]["message"] if predictions.failures else "the split is empty"
        raise ValueError(f"none of {read} videos could be evaluated; the first: {first}")
    results = metrics_of(predictions, threshold)
    num_classes = predictions.logits.shape[1]
    if predictions.problem_type == SINGLE_LABEL and num_classes < 5:
        results["top5_note"] = (
            f"the model has {num_classes} classes, so top-5 is top-{num_classes}: always 1"
        )
    found = read if found is None else found
    return results | {
        "videos_expected": found if expected is None else expected,
        "videos_found": found,
        "videos_evaluated": len(predictions.video_ids),
        "videos_failed": len(predictions.failures),
        "failures": predictions.failures,
        **_class_counts(predictions, class_names),
        "seconds": round(predictions.seconds, 2),
        "videos_per_second": round(read / max(predictions.seconds, 1e-9), 3),
    }


def metrics_of(predictions: Predictions, threshold: float = 0.5) -> dict[str, Any]:
    """The metrics of the kind of problem that the data set poses."""
    if predictions.problem_type == REGRESSION:
        return regression_metrics(predictions.logits[:, 0], predictions.labels)
    if predictions.problem_type == MULTI_LABEL:
        metrics = multi_label_metrics(predictions.logits, predictions.labels, threshold=threshold)
        return metrics | {"threshold": threshold}
    return classification_metrics(predictions.logits, predictions.labels)


def _class_counts(predictions: Predictions, class_names: list[str]) -> dict[str, int]:
    if predictions.problem_type == REGRESSION:
        return {}
    if predictions.problem_type == MULTI_LABEL:
        occurring = int(predictions.labels.any(axis=0).sum())
    else:
        occurring = len(np.unique(predictions.labels))
    return {"classes_evaluated": occurring, "classes": len(class_names)}


ANSWERS = {
    SINGLE_LABEL: "the class of the largest mean logit is the top-1",
    MULTI_LABEL: "the sigmoid of each class's mean logit is its probability",
    REGRESSION: "the mean is the number",
}


def describe_protocol(
    processor: TimeSformerVideoProcessor,
    *,
    whole_videos: bool = False,
    problem_type: str = SINGLE_LABEL,
) -> str:
    """The protocol in one sentence, from the processor's settings."""
    frames, clips = processor.num_frames, processor.num_clips
    if processor.sampling == "segments":
        which = f"{frames} frames, one from each of {frames} equal segments of the video"
    else:
        rate = f" of {processor.target_fps:g} fps" if processor.target_fps else ""
        which = f"{frames} frames at a sampling rate of 1/{processor.sampling_rate}{rate}"
    clip = (
        f"one clip in the middle of the video ({which})"
        if clips == 1
        else f"{clips} clips spread evenly ({which})"
    )
    if whole_videos:
        clip = f"as many clips as cover it, spread evenly ({which})"
    averaged = "all views" if whole_videos else f"the {clips * processor.num_crops} views"
    crop = processor.crop_size
    return (
        f"For each video {clip}; frames resized to a short side of {processor.size['shortest_edge']} pixels; "
        f"{CROPS[processor.num_crops]} of {crop['height']}x{crop['width']} pixels; the logits averaged over "
        f"{averaged}; {ANSWERS[problem_type]}."
    )


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """How many videos of each class were taken for which, from `predictions` of one label a video.

    Returns:
        Counts `(classes, classes)`: rows are the true classes, columns the predicted ones.
    """
    matrix = np.zeros((predictions.logits.shape[1],) * 2, np.int64)
    np.add.at(matrix, (predictions.labels, predictions.logits.argmax(axis=1)), 1)
    return matrix


def write_report(
    folder: Path, results: dict[str, Any], predictions: Predictions, class_names: list[str]
) -> list[Path]:
    """Write the files that go with the kind of problem (the table at the top of this file); return
    their paths.

    The picture is left out where matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "eval_results.json"]
    written[0].write_text(
        json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    written.append(write_predictions(folder / FILE_NAME, predictions, class_names))
    if predictions.problem_type == MULTI_LABEL:
        written.append(folder / "per_class.csv")
        _write_per_label(written[-1], predictions, class_names, results.get("threshold", 0.5))
    if predictions.problem_type != SINGLE_LABEL:
        return written
    matrix = confusion_matrix(predictions)
    written += [folder / "per_class.csv", folder / "most_confused.csv"]
    _write_per_class(written[-2], matrix, class_names)
    _write_most_confused(written[-1], matrix, class_names)
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning(
            "no confusion_matrix.png: matplotlib is not installed (pip install hf-timesformer[viz])"
        )
    else:
        written.append(folder / "confusion_matrix.png")
        draw_confusion_matrix(written[-1], matrix, class_names)
    return written


def _write_per_label(
    path: Path, predictions: Predictions, class_names: list[str], threshold: float
) -> None:
    """A row for each class that some video has or is said to have, where a video may have several."""
    labels = predictions.labels > 0.5  # (videos, classes)
    named = predictions.logits > np.log(threshold / (1 - threshold))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["class", "videos", "named", "right", "average_precision", "precision", "recall", "f1"]
        )
        for index in np.flatnonzero((labels | named).any(axis=0)):
            has, said = labels[:, index], named[:, index]
            right = int((has & said).sum())
            average = average_precision(predictions.logits[:, index], has) if has.any() else None
            precision = right / said.sum() if said.any() else None
            recall = right / has.sum() if has.any() else None
            f1 = 2 * right / (has.sum() + said.sum())
            figures = [
                f"{value:.4f}" if value is not None else ""
                for value in (average, precision, recall, f1)
            ]
            writer.writerow([class_names[index], has.sum(), said.sum(), right, *figures])


def most_confused(matrix: np.ndarray) -> list[tuple[int, int]]:
    """The pairs (true class, predicted class) that occur in a confusion matrix `(classes, classes)`,
    those with the most videos first."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    return [(int(row), int(column)) for row, column in zip(*np.unravel_index(order, wrong.shape))]


def _write_most_confused(path: Path, matrix: np.ndarray, class_names: list[str]) -> None:
    """Write the pairs of classes that counts `(classes, classes)` show confused as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true", "predicted", "videos", "share_of_true"])
        for row, column in most_confused(matrix):
            count = matrix[row, column]
            writer.writerow(
                [class_names[row], class_names[column], count, f"{count / matrix[row].sum():.4f}"]
            )


def _write_per_class(path: Path, matrix: np.ndarray, class_names: list[str]) -> None:
    """Write a line of CSV for each class that occurs in counts `(classes, classes)`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "class",
                "videos",
                "correct",
                "accuracy",
                "precision",
                "most_confused_with",
                "confused",
            ]
        )
        for index in _occurring(matrix):
            videos, correct, predicted = (
                matrix[index].sum(),
                matrix[index, index],
                matrix[:, index].sum(),
            )
            wrong = matrix[index].copy()
            wrong[index] = 0
            other = class_names[int(wrong.argmax())] if wrong.any() else ""
            accuracy = f"{correct / videos:.4f}" if videos else ""
            precision = f"{correct / predicted:.4f}" if predicted else ""
            writer.writerow(
                [class_names[index], videos, correct, accuracy, precision, other, wrong.max()]
            )


def _occurring(matrix: np.ndarray) -> np.ndarray:
    """Classes that are some video's true or predicted one, `(classes, classes) -> (occurring,)`:
    the rest of a large model's classes says nothing.
    """
    return np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))


def draw_confusion_matrix(path: Path, matrix: np.ndarray, class_names: list[str]) -> None:
    """Draw counts `(classes, classes)`, row-normalised, as a PNG; up to 40 classes are named on the
    axes, up to 15 have figures.
    """
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
            axes.text(
                column, row, matrix[row, column], ha="center", va="center", color=colour, fontsize=8
            )
    figure.savefig(path, dpi=110)
