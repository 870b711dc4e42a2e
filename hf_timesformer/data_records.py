"""What every layout of videos on disk is read into: a list of records, before any decoding."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value


logger = logging.getLogger(__name__)

# Suffixes without the dot, in lower case.
VIDEO_EXTENSIONS = frozenset(
    ("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "vob", "webm", "wmv")
)


@dataclass
class VideoRecords:
    """Videos and labels of one split. `missing` names what the annotations list and the disk lacks."""

    class_names: list[str]
    video_ids: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def num_expected(self) -> int:
        """Videos that the annotations list, found or not."""
        return len(self.videos) + len(self.missing)

    def add(self, video_id: str, path: Path | str, label: int) -> None:
        """Append one video that is on disk."""
        self.video_ids.append(video_id)
        self.videos.append(str(path))
        self.labels.append(label)

    def to_dataset(self) -> Dataset:
        """The records as a `datasets.Dataset`: `video_id` (str), `video` (path), `label` (ClassLabel with names)."""
        columns = {"video_id": self.video_ids, "video": self.videos, "label": self.labels}
        return Dataset.from_dict(columns, features=video_features(self.class_names))


def video_features(class_names: list[str], *, video_type: str = "string") -> Features:
    """Columns of every data set here. `video` is a plain path or bytes, which `datasets` does not try to decode."""
    return Features(
        {"video_id": Value("string"), "video": Value(video_type), "label": ClassLabel(names=list(class_names))}
    )


def is_video(name: str) -> bool:
    """Whether a file name has a video's suffix."""
    return name.rpartition(".")[2].lower() in VIDEO_EXTENSIONS and not name.startswith(".")


def walk_files(folder: Path) -> Iterator[Path]:
    """All files under `folder` in sorted order, hidden ones left out, links to folders followed."""
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def report_missing(records: VideoRecords, missing_file: str | Path | None) -> None:
    """Say how many listed videos are not on disk, and write their names to `missing_file`, one a line."""
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
