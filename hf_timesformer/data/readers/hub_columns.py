"""What the columns of a data set that `datasets` opens are to us, and its labels as our records have
them.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Features, List, Value, Video

from ..records import OPTIONAL_COLUMNS
from ..targets import MULTI_LABEL, REGRESSION, SINGLE_LABEL


logger = logging.getLogger(__name__)

USUAL_LABELS = ("label", "labels", "cls", "class", "target")
USUAL_VIDEOS = ("video", "mp4", "webm", "avi", "clip", "file_name", "path", "file")


@dataclass(frozen=True)
class Columns:
    """What the columns of a data set are to us."""

    video: str
    label: str
    problem_type: str
    optional: tuple[str, ...]


def choose_columns(features: Features, video: str | None, label: str | None) -> Columns:
    """The columns of videos and labels; ValueError that lists all columns where it is not clear
    which are meant.
    """
    video = video or _only(
        [name for name, feature in features.items() if isinstance(feature, Video)]
        or [
            name
            for name, feature in features.items()
            if feature in (Value("binary"), Value("large_binary"))
        ]
        or [
            name
            for name in USUAL_VIDEOS
            if features.get(name) in (Value("string"), Value("large_string"))
        ],
        features,
        "videos",
    )
    label = label or _only(
        [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        or [name for name in USUAL_LABELS if name in features],
        features,
        "labels",
    )
    for name in (video, label):
        if name not in features:
            raise ValueError(f"there is no column {name!r}; the data set has {_listed(features)}")
    optional = tuple(
        name for name in OPTIONAL_COLUMNS if name in features and name not in (video, label)
    )
    if optional:
        logger.info(
            "the columns %s are taken for what they mean in a CSV file of clips",
            ", ".join(optional),
        )
    return Columns(video, label, _problem_type(features[label], label), optional)


def _only(names: list[str], features: Features, what: str) -> str:
    if len(names) != 1:
        found = f"may be {', '.join(names)}" if names else "is not to be found"
        raise ValueError(
            f"the column of {what} {found}: give --{what[:-1]}_column; the data set has {_listed(features)}"
        )
    return names[0]


def _listed(features: Features) -> str:
    kinds = {
        name: getattr(feature, "dtype", None) or type(feature).__name__
        for name, feature in features.items()
    }
    return (
        ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        or "no columns that are known beforehand"
    )


def _problem_type(feature: Any, name: str) -> str:
    if isinstance(feature, List):
        return MULTI_LABEL
    if isinstance(feature, ClassLabel):
        return SINGLE_LABEL
    kind = getattr(feature, "dtype", "")
    if kind.startswith("float"):
        return REGRESSION
    if kind in ("string", "large_string", "bool") or kind.startswith(("int", "uint")):
        return SINGLE_LABEL
    raise ValueError(
        f"column {name!r} ({kind or type(feature).__name__}) has no labels: give --label_column"
    )


def label_of(value: Any, number_of: Mapping[str, int], columns: Columns, where: str) -> Any:
    """A label as our records have it: a class number, a list of them, or a float.

    Raises:
        ValueError: the row has no label.
    """
    # how the Hub writes a label that is not told
    is_withheld = columns.problem_type == SINGLE_LABEL and value == -1
    if value is None or is_withheld:
        raise ValueError(f"{where} has no label ({value}): choose another split")
    if columns.problem_type == REGRESSION:
        return float(value)
    if columns.problem_type == MULTI_LABEL:
        return [_class_number(one, number_of) for one in value]
    return _class_number(value, number_of)


def _class_number(value: Any, number_of: Mapping[str, int]) -> int:
    return number_of[str(value)] if isinstance(value, (str, bool)) else int(value)
