"""What every layout of videos on disk is read into: a list of records, before any decoding."""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value


logger = logging.getLogger(__name__)

# Suffixes without the dot, in lower case.
VIDEO_EXTENSIONS = frozenset(
    ("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "vob", "webm", "wmv")
)

SPLIT_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "validate", "dev"),
    "test": ("test", "testing"),
}


@dataclass
class VideoRecords:
    """Videos and labels of one split.

    `missing` names what the annotations list and the disk lacks, `repeated` what they list again (counted once).
    """

    class_names: list[str]
    video_ids: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set, repr=False)

    @property
    def num_expected(self) -> int:
        """Videos that the annotations list, found or not."""
        return len(self.videos) + len(self.missing)

    def add(self, video_id: str, path: Path | str, label: int) -> None:
        """Append one video that is on disk; one that was added before is only noted in `repeated`."""
        if video_id in self._seen:
            self.repeated.append(video_id)
            return
        self._seen.add(video_id)
        self.video_ids.append(video_id)
        self.videos.append(str(path))
        self.labels.append(label)

    def add_listed(self, video_id: str, path: Path | None, label: int) -> None:
        """Append one video that the annotations list, as missing where `path` is None."""
        if path is not None:
            self.add(video_id, path, label)
        elif video_id not in self._seen:
            self._seen.add(video_id)
            self.missing.append(video_id)

    def to_dataset(self) -> Dataset:
        """The records as a `datasets.Dataset`: `video_id` (str), `video` (path), `label` (ClassLabel with names)."""
        columns = {"video_id": self.video_ids, "video": self.videos, "label": self.labels}
        return Dataset.from_dict(columns, features=video_features(self.class_names))


def video_features(class_names: list[str], *, video_type: str = "string") -> Features:
    """Columns of every data set here. `video` is a plain path or bytes, which `datasets` does not try to decode."""
    return Features(
        {"video_id": Value("string"), "video": Value(video_type), "label": ClassLabel(names=list(class_names))}
    )


def class_names_of(features: Features) -> list[str]:
    """Names of the classes in the columns of a data set, in order; of a regression the name of its column."""
    if "label" in features:
        return features["label"].names
    return features["labels"].feature.names if "labels" in features else ["target"]


def canonical_split(split: str) -> str:
    """`train`, `validation` or `test` for any of their usual names; ValueError for another word."""
    for name, aliases in SPLIT_ALIASES.items():
        if split.lower() in aliases:
            return name
    raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLIT_ALIASES)}")


def is_video(name: str) -> bool:
    """Whether a file name has a video's suffix."""
    return name.rpartition(".")[2].lower() in VIDEO_EXTENSIONS and not name.startswith(".")


def walk_files(folder: Path) -> Iterator[Path]:
    """All files under `folder` in sorted order, hidden ones left out, links to folders followed."""
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def index_by_stem(data_dir: Path) -> dict[str, Path]:
    """Every video under `data_dir` by its name without folder and suffix."""
    if not data_dir.is_dir():
        raise ValueError(f"data folder {str(data_dir)!r} does not exist or is no folder")
    return {path.stem: path for path in walk_files(data_dir) if is_video(path.name)}


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
        raise ValueError(f"found none of {', '.join(names)} in {data_dir} or in a folder directly under it")
    return path


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file whose top level is of `kind`; ValueError that names the file otherwise."""
    return parse_json(path.read_text(encoding="utf-8"), str(path), kind)


def parse_json(text: str, source: str, *kinds: type) -> Any:
    """The content of a JSON text whose top level is of one of `kinds`; ValueError that names `source` otherwise."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source} is no readable JSON: {error}") from error
    if not isinstance(content, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{source} should hold a JSON {wanted}, not {type(content).__name__}")
    return content


def entry_field(entry: Any, name: str, path: Path) -> Any:
    """One field of an entry of annotations; ValueError that names the file where the entry lacks it."""
    if not isinstance(entry, dict) or name not in entry:
        raise ValueError(f"{path}: entry {str(entry)[:80]} has no field {name!r}")
    return entry[name]


def report_missing(records: VideoRecords, missing_file: str | Path | None) -> None:
    """Say how many listed videos are not on disk, and write their names to `missing_file`, one a line.

    Raises ValueError where not a single one is there.
    """
    if records.repeated:
        logger.warning(
            "%d videos are listed again and count once; the first: %s", len(records.repeated), records.repeated[0]
        )
    if not records.missing:
        return
    where = "pass missing_file to have them listed"
    if missing_file is not None:
        Path(missing_file).parent.mkdir(parents=True, exist_ok=True)
        Path(missing_file).write_text("".join(f"{name}\n" for name in records.missing), encoding="utf-8")
        where = f"listed in {missing_file}"
    logger.warning(
        "%d of %d listed videos are not on disk (%s); the first is %s",
        len(records.missing),
        records.num_expected,
        where,
        records.missing[0],
    )
    if not records.videos:
        raise ValueError(f"none of the {records.num_expected} listed videos is on disk, such as {records.missing[0]}")
