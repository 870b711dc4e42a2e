"""`predictions.parquet`: what a model said of each video, for analysis and for fusing several runs."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from ..data.targets import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .predictions import Predictions


FILE_NAME = "predictions.parquet"
_TYPES = {
    SINGLE_LABEL: pyarrow.int64(),
    MULTI_LABEL: pyarrow.list_(pyarrow.int64()),
    REGRESSION: pyarrow.float32(),
}


def write_predictions(path: Path, predictions: Predictions, class_names: list[str]) -> Path:
    """One row a video: `video_id`, `label` (class number, class numbers, or the number), `logits`,
    `views`.

    Class names and the kind of problem stand in the schema's metadata.
    """
    labels = list(predictions.labels)
    if predictions.problem_type == MULTI_LABEL:
        labels = [np.flatnonzero(row) for row in labels]
    columns = {
        "video_id": pyarrow.array(predictions.video_ids, pyarrow.string()),
        "label": pyarrow.array(labels, _TYPES[predictions.problem_type]),
        "logits": pyarrow.array(list(predictions.logits), pyarrow.list_(pyarrow.float32())),
        "views": pyarrow.array(_views(predictions), pyarrow.int64()),
    }
    about = {"class_names": json.dumps(class_names), "problem_type": predictions.problem_type}
    pyarrow.parquet.write_table(pyarrow.table(columns).replace_schema_metadata(about), path)
    return path


def read_predictions(path: str | Path) -> tuple[Predictions, list[str]]:
    """What `timesformer evaluate` wrote to `predictions.parquet`.

    Args:
        path: the file, or a folder that holds one of that name.

    Returns:
        The predictions, and the names of the classes.

    Raises:
        ValueError: the file holds no predictions.
        OSError: there is no file.
    """
    path = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    table = pyarrow.parquet.read_table(path)
    about = table.schema.metadata or {}
    if not {b"class_names", b"problem_type"} <= about.keys():
        raise ValueError(
            f"{path} holds no predictions: give a predictions.parquet of `timesformer evaluate`"
        )
    names, problem = json.loads(about[b"class_names"]), about[b"problem_type"].decode()
    logits = np.array(table["logits"].to_pylist(), np.float32).reshape(table.num_rows, -1)
    labels = table["label"].to_pylist()
    if problem == MULTI_LABEL:
        array = np.zeros(logits.shape, np.float32)
        for row, classes in enumerate(labels):
            array[row, classes] = 1
    else:
        array = np.array(labels, np.int64 if problem == SINGLE_LABEL else np.float32)
    views = np.array(table["views"].to_pylist(), np.int64)
    found = Predictions(
        table["video_id"].to_pylist(), logits, array, problem_type=problem, views=views
    )
    return found, names


def fuse(runs: list[tuple[Predictions, list[str]]]) -> tuple[Predictions, list[str]]:
    """One answer a video from several runs over the same videos: the mean of their probabilities,
    or numbers.

    The result's logits are such that softmax, or sigmoid, gives the mean. Raises ValueError where
    the runs differ in their videos, classes or labels, naming the first difference.
    """
    (first, names), *others = runs
    order = np.argsort(first.video_ids, kind="stable")
    ids = [first.video_ids[index] for index in order]
    scores = [_scores(first)[order]]
    views = _views(first)[order]
    for number, (other, other_names) in enumerate(others, start=2):
        if other_names != names or other.problem_type != first.problem_type:
            raise ValueError(
                f"run {number} has other classes than run 1: {_difference(names, other_names)}"
            )
        other_order = np.argsort(other.video_ids, kind="stable")
        other_ids = [other.video_ids[index] for index in other_order]
        if other_ids != ids:
            raise ValueError(
                f"run {number} is of other videos than run 1: {_difference(ids, other_ids)}"
            )
        if not np.array_equal(other.labels[other_order], first.labels[order]):
            wrong = (
                (other.labels[other_order] != first.labels[order]).reshape(len(ids), -1).any(axis=1)
            )
            raise ValueError(
                f"run {number} has another label than run 1 for {ids[int(wrong.argmax())]}"
            )
        scores.append(_scores(other)[other_order])
        views = views + _views(other)[other_order]
    logits = _logits(np.mean(scores, axis=0), first.problem_type)
    return Predictions(
        ids, logits, first.labels[order], problem_type=first.problem_type, views=views
    ), names


def _views(predictions: Predictions) -> np.ndarray:
    """How many views each video's logits are the mean of, `(videos,)`; one where that was not
    noted.
    """
    return (
        np.ones(len(predictions.video_ids), np.int64)
        if predictions.views is None
        else predictions.views
    )


def _difference(one: list[str], other: list[str]) -> str:
    only_one, only_other = sorted(set(one) - set(other)), sorted(set(other) - set(one))
    if not only_one and not only_other:
        return "the same names in another order"
    parts = [f"{len(only_one)} only in run 1"] if only_one else []
    parts += [f"{len(only_other)} only in the other"] if only_other else []
    return f"{' and '.join(parts)}, such as {(only_one or only_other)[0]!r}"


def _scores(predictions: Predictions) -> np.ndarray:
    """Probabilities, or a regression's numbers: float64 `(videos, classes)`, as the logits."""
    logits = predictions.logits.astype(np.float64)
    if predictions.problem_type == REGRESSION:
        return logits
    if predictions.problem_type == MULTI_LABEL:
        return 1 / (1 + np.exp(-logits))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _logits(scores: np.ndarray, problem_type: str) -> np.ndarray:
    """Logits whose softmax, or sigmoid, is `scores`, both `(videos, classes)`."""
    if problem_type == REGRESSION:
        return scores.astype(np.float32)
    scores = np.clip(scores, 1e-12, 1 - 1e-12)
    logits = np.log(scores) - np.log1p(-scores) if problem_type == MULTI_LABEL else np.log(scores)
    return logits.astype(np.float32)
