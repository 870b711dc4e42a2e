"""Kinetics-400/600/700 as people have it: the official CSV files, or lists of paths and class
numbers.
"""

import csv
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from ..clip_index import ClipIndex
from ..media_files import is_video
from ..records import SPLIT_ALIASES, VideoRecords, canonical_split, find_annotations
from .class_numbers import names_of_numbers


logger = logging.getLogger(__name__)

OFFICIAL_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
Line = tuple[str, int]  # of a list: the path, the class number


def read_kinetics(data_dir: Path, split: str, *, extensions: Sequence[str] = ()) -> VideoRecords:
    """One split of Kinetics.

    Either official CSV files (`label,youtube_id,time_start,time_end,split`; those of Kinetics-600
    and 700 have more columns) with clips `<youtube_id>_<start:06d>_<end:06d>.<suffix>` or
    `<youtube_id>.<suffix>` anywhere under `data_dir`, flat or in class folders; classes are the
    sorted labels of all CSV files there. Or lists of `path label` lines, separated by a space or
    comma, with absolute paths or paths from `data_dir`, with or without suffix; class names from
    `labels.json` (a list, or name -> index), else from the folders.

    A clip that cannot be read is taken from a folder `replacement_for_corrupted...` where that has
    it. A list without labels, as many have of the test split, is passed over.

    Raises:
        ValueError: there is no list of that split, or it has no labels.
    """
    split = canonical_split(split)
    files = kinetics_files(data_dir)
    if split not in files:
        raise ValueError(_why_no_split(data_dir, split, files))
    index = ClipIndex(data_dir, extensions)
    if _is_official(files[split]):
        records = _read_official(files, split, index)
    else:
        records = _read_lists(data_dir, files, split, index)
    index.report(data_dir)
    return records


def kinetics_files(data_dir: Path) -> dict[str, Path]:
    """The list of each split, in `data_dir` or a folder under it: `train.csv`,
    `kinetics-400_train.csv`, ...

    A list without labels is none that can be used: the log says so, and its split is not there.
    """
    files = _all_lists(data_dir)
    for split, path in list(files.items()):
        if not _has_labels(path):
            logger.warning("%s has no labels, so the %s split is left out", path, split)
            del files[split]
    return files


def _all_lists(data_dir: Path) -> dict[str, Path]:
    if not data_dir.is_dir():
        raise ValueError(f"data folder {str(data_dir)!r} does not exist or is no folder")
    files = {}
    for split, aliases in SPLIT_ALIASES.items():
        exact = find_annotations(
            data_dir, [f"{alias}.{suffix}" for alias in aliases for suffix in ("csv", "txt")]
        )
        longer = (path for alias in aliases for path in data_dir.glob(f"*_{alias}.csv"))
        path = exact or min(longer, default=None)
        if path is not None:
            files[split] = path
    return files


def _why_no_split(data_dir: Path, split: str, files: dict[str, Path]) -> str:
    unlabelled = _all_lists(data_dir).get(split)
    if unlabelled is not None:
        return f"{unlabelled} has no labels, so the {split} split can be neither trained on nor evaluated"
    looked_for = ", ".join(f"{name}.csv" for name in SPLIT_ALIASES[split])
    found = ", ".join(str(path) for path in files.values()) or "no CSV file of any split"
    return f"{data_dir} has no list of its {split} split (looked for {looked_for}); found: {found}"


def _header(path: Path) -> list[str]:
    """The first line of a CSV file, cut into its columns, without quotes."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [column.strip() for column in next(csv.reader(file), [])]


def _is_official(path: Path) -> bool:
    return set(OFFICIAL_COLUMNS) <= set(_header(path))


def _has_labels(path: Path) -> bool:
    """Whether a list tells classes: by a column `label`, or by a class number at the end of its
    first line.
    """
    header = _header(path)
    if "youtube_id" in header:
        return "label" in header and any(row["label"] for row in _rows(path))
    with path.open(encoding="utf-8-sig") as file:
        first = next((line.strip() for line in file if line.strip()), "")
    return not _is_bare_path(first)


def _is_bare_path(line: str) -> bool:
    """Whether a line is a clip's path and nothing after it. `a.mp4 zumba` is not: that label is
    complained about.
    """
    return not re.search(r"[\s,]", line) or is_video(line.strip('"'))


def _read_official(files: dict[str, Path], split: str, index: ClipIndex) -> VideoRecords:
    rows = {name: _official_rows(path) for name, path in files.items() if _is_official(path)}
    class_names = sorted({row["label"] for listed in rows.values() for row in listed})
    number_of = {name: label for label, name in enumerate(class_names)}
    clips_of_video = Counter(row["youtube_id"] for listed in rows.values() for row in listed)
    records = VideoRecords(class_names)
    for row in rows[split]:
        stem = (
            f"{row['youtube_id']}_{_seconds(row['time_start']):06d}_{_seconds(row['time_end']):06d}"
        )
        path = index.find(stem)
        if path is None and clips_of_video[row["youtube_id"]] == 1:
            # named by the video alone, which is clear where it has one clip
            path = index.find(row["youtube_id"])
        records.add_listed(stem, path, number_of[row["label"]])
    return records


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [
            {(name or "").strip(): value for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def _official_rows(path: Path) -> list[dict[str, str]]:
    rows = _rows(path)
    for number, row in enumerate(rows, start=2):
        is_whole = all(
            re.fullmatch(r"\d+(\.0*)?", row[name] or "") for name in ("time_start", "time_end")
        )
        if not row["label"] or not is_whole:
            raise ValueError(
                f"{path}, line {number}: need a label and whole seconds, got {list(row.values())}"
            )
    return rows


def _seconds(text: str) -> int:
    """`115` and `115.0` -> 115."""
    return int(float(text))


def _read_lists(
    data_dir: Path, files: dict[str, Path], split: str, index: ClipIndex
) -> VideoRecords:
    lists = {name: list(_list_lines(path)) for name, path in files.items()}
    class_names = names_of_numbers(data_dir, chain.from_iterable(lists.values()), ["labels.json"])
    records = VideoRecords(class_names)
    for name, label in lists[split]:
        records.add_listed(name, index.locate(name), label)
    return records


def _list_lines(path: Path) -> Iterator[Line]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        # the path may hold spaces and commas itself
        match = re.fullmatch(r"\s*(.+?)\s*[,\s]\s*(\d+)\s*", line)
        if match is None:
            raise ValueError(
                f"{path}, line {number}: expected 'path label' with a class number, got {line!r}"
            )
        yield match[1].strip('"'), int(match[2])
