"""What every layout of videos on disk is read into: a list of records, before any decoding."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Value

from .targets import LABEL_COLUMNS, MULTI_LABEL, REGRESSION, SINGLE_LABEL


logger = logging.getLogger(__name__)

SPLIT_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "validate", "dev"),
    "test": ("test", "testing"),
}


# Columns that a record may have beside `video_id`, `video` and its label.
OPTIONAL_COLUMNS = {
    # seconds from the first frame of the video; with `end` the record is a segment of it,
    "start": Value("float64"),
    # of the frames with start <= time < end. Null: from the beginning, to the end
    "end": Value("float64"),
    # the same in frame numbers from 0: start_frame <= number < end_frame
    "start_frame": Value("int64"),
    "end_frame": Value("int64"),
    "group": Value("string"),  # records of one group are never parted by `hold_out`
    # how often the record is drawn in training, beside the others; null: 1
    "weight": Value("float64"),
}
SEGMENT_COLUMNS = ("start", "end", "start_frame", "end_frame")


@dataclass
class VideoRecords:
    """Videos and labels of one split, as a reader of a data set collects them.

    Attributes:
        class_names: names of the classes in order; of a regression the name of what is predicted.
        problem_type: one of `targets`' three. It says what `labels` has for each video: a class
            number, a list of class numbers, or a float.
        video_ids, videos, labels, extras: one entry for each video that is on disk; `extras` are
            its entries in `OPTIONAL_COLUMNS`.
        missing: videos that the annotations list and the disk lacks.
        repeated: videos that the annotations list again; they count once.
    """

    class_names: list[str]
    problem_type: str = SINGLE_LABEL
    video_ids: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    labels: list[int | list[int] | float] = field(default_factory=list)
    extras: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set, repr=False)

    @property
    def num_expected(self) -> int:
        """Videos that the annotations list, found or not."""
        return len(self.videos) + len(self.missing)

    def add(
        self, video_id: str, path: Path | str, label: int | list[int] | float, **extras: Any
    ) -> None:
        """Append one video that is on disk; one that was added before is only noted in `repeated`.

        Args:
            video_id: unique in the split.
            path: where it is.
            label: as `problem_type` has it.
            **extras: its entries in `OPTIONAL_COLUMNS`; None is as good as none.
        """
        if video_id in self._seen:
            self.repeated.append(video_id)
            return
        self._seen.add(video_id)
        self.video_ids.append(video_id)
        self.videos.append(str(path))
        self.labels.append(label)
        self.extras.append({name: value for name, value in extras.items() if value is not None})

    def add_listed(
        self, video_id: str, path: Path | None, label: int | list[int] | float, **extras: Any
    ) -> None:
        """Append one video that the annotations list, as missing where `path` is None; arguments as
        of `add`.
        """
        if path is not None:
            self.add(video_id, path, label, **extras)
        elif video_id not in self._seen:
            self._seen.add(video_id)
            self.missing.append(video_id)

    def to_dataset(self) -> Dataset:
        """The records as a `datasets.Dataset` with the columns of `video_features`."""
        names = [name for name in OPTIONAL_COLUMNS if any(name in extras for extras in self.extras)]
        features = video_features(self.class_names, problem_type=self.problem_type, optional=names)
        columns: dict[str, list] = {
            "video_id": self.video_ids,
            "video": self.videos,
            LABEL_COLUMNS[self.problem_type]: self.labels,
        }
        for name in names:
            columns[name] = [extras.get(name) for extras in self.extras]
        return Dataset.from_dict(columns, features=features)


def video_features(
    class_names: list[str],
    *,
    video_type: str = "string",
    problem_type: str = SINGLE_LABEL,
    optional: Sequence[str] = (),
) -> Features:
    """Columns of every data set here: `video_id`, `video`, one for the label, and some of
    `OPTIONAL_COLUMNS`.

    `video` is a plain path or bytes, which `datasets` does not try to decode. The label is in
    `label` (`ClassLabel` with names), in `labels` (a list of them), or in `target` (float), as
    `targets` has it.
    """
    label = {
        SINGLE_LABEL: ClassLabel(names=list(class_names)),
        MULTI_LABEL: List(ClassLabel(names=list(class_names))),
        REGRESSION: Value("float64"),
    }
    columns = {"video_id": Value("string"), "video": Value(video_type)}
    columns[LABEL_COLUMNS[problem_type]] = label[problem_type]
    return Features(columns | {name: OPTIONAL_COLUMNS[name] for name in optional})


def class_names_of(features: Features) -> list[str]:
    """Names of the classes in the columns of a data set, in order; of a regression the name of its
    column.
    """
    if "label" in features:
        return features["label"].names
    return features["labels"].feature.names if "labels" in features else ["target"]


def canonical_split(split: str) -> str:
    """`train`, `validation` or `test` for any of their usual names; ValueError for another word."""
    for name, aliases in SPLIT_ALIASES.items():
        if split.lower() in aliases:
            return name
    raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLIT_ALIASES)}")


def find_annotations(data_dir: Path, names: Iterable[str]) -> Path | None:
    """The first of `names` in `data_dir` or in a folder directly under it, or None."""
    for name in names:
        for path in (data_dir / name, *sorted(data_dir.glob(f"*/{name}"))):
            if path.is_file():
                return path
    return None


def require_annotations(data_dir: Path, names: Sequence[str]) -> Path:
    """As `find_annotations`; ValueError with the names that were looked for where there is none."""
    if not data_dir.is_dir():
        raise ValueError(f"data folder {str(data_dir)!r} does not exist or is no folder")
    path = find_annotations(data_dir, names)
    if path is None:
        raise ValueError(
            f"found none of {', '.join(names)} in {data_dir} or in a folder directly under it"
        )
    return path


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file whose top level is of `kind`; ValueError that names the file
    otherwise.
    """
    return parse_json(path.read_text(encoding="utf-8"), str(path), kind)


def parse_json(text: str, source: str, *kinds: type) -> Any:
    """The content of a JSON text whose top level is of one of `kinds`; ValueError that names
    `source` otherwise.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source} is no readable JSON: {error}") from error
    if not isinstance(content, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{source} should hold a JSON {wanted}, not {type(content).__name__}")
    return content


def entry_field(entry: Any, name: str, path: Path) -> Any:
    """One field of an entry of annotations; ValueError that names the file where the entry lacks
    it.
    """
    if not isinstance(entry, dict) or name not in entry:
        raise ValueError(f"{path}: entry {str(entry)[:80]} has no field {name!r}")
    return entry[name]


def report_missing(records: VideoRecords, missing_file: str | Path | None) -> None:
    """Say how many listed videos are not on disk, and write their names to `missing_file`, one a
    line.

    Raises ValueError where not a single one is there.
    """
    if records.repeated:
        logger.warning(
            "%d videos are listed again and count once; the first: %s",
            len(records.repeated),
            records.repeated[0],
        )
    if not records.missing:
        return
    where = "pass missing_file to have them listed"
    if missing_file is not None:
        Path(missing_file).parent.mkdir(parents=True, exist_ok=True)
        Path(missing_file).write_text(
            "".join(f"{name}\n" for name in records.missing), encoding="utf-8"
        )
        where = f"listed in {missing_file}"
    logger.warning(
        "%d of %d listed videos are not on disk (%s); the first is %s",
        len(records.missing),
        records.num_expected,
        where,
        records.missing[0],
    )
    if not records.videos:
        raise ValueError(
            f"none of the {records.num_expected} listed videos is on disk, such as {records.missing[0]}"
        )
