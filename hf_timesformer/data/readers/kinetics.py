"""Kinetics-400/600/700: the official CSV files, and the `path label` lists of the official repository."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from ..labels import read_class_names
from ..records import (
    SPLIT_ALIASES,
    VideoRecords,
    canonical_split,
    find_annotations,
    index_by_stem,
)


OFFICIAL_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def read_kinetics(data_dir: Path, split: str) -> VideoRecords:
    """One split of Kinetics.

    Either official CSV files (`label,youtube_id,time_start,time_end,split`) with clips
    `<youtube_id>_<start:06d>_<end:06d>.<suffix>` anywhere under `data_dir`, flat or in class folders; classes are the
    sorted labels of all CSV files there. Or lists of `path label` lines, separated by a space or comma, with absolute
    paths or paths from `data_dir`; class names from `labels.json` (a list, or name -> index), else from the folders.
    """
    split = canonical_split(split)
    if not data_dir.is_dir():
        raise ValueError(f"data folder {str(data_dir)!r} does not exist or is no folder")
    files = kinetics_files(data_dir)
    if split not in files:
        looked_for = ", ".join(f"{name}.csv" for name in SPLIT_ALIASES[split])
        found = ", ".join(str(path) for path in files.values()) or "no CSV file of any split"
        raise ValueError(f"{data_dir} has no list of its {split} split (looked for {looked_for}); found: {found}")
    if _is_official(files[split]):
        return _read_official(data_dir, files, split)
    return _read_lists(data_dir, files, split)


def kinetics_files(data_dir: Path) -> dict[str, Path]:
    """The list of each split, in `data_dir` or a folder under it: `train.csv`, `kinetics-400_train.csv`, ..."""
    files = {}
    for split, aliases in SPLIT_ALIASES.items():
        exact = find_annotations(data_dir, [f"{alias}.{suffix}" for alias in aliases for suffix in ("csv", "txt")])
        longer = (path for alias in aliases for path in data_dir.glob(f"*_{alias}.csv"))
        path = exact or min(longer, default=None)
        if path is not None:
            files[split] = path
    return files


def _is_official(path: Path) -> bool:
    with path.open(encoding="utf-8-sig") as file:
        return set(OFFICIAL_COLUMNS) <= set(file.readline().strip().split(","))


def _read_official(data_dir: Path, files: dict[str, Path], split: str) -> VideoRecords:
    rows = {name: _official_rows(path) for name, path in files.items() if _is_official(path)}
    class_names = sorted({row["label"] for listed in rows.values() for row in listed})
    index = {name: label for label, name in enumerate(class_names)}
    found, records = index_by_stem(data_dir), VideoRecords(class_names)
    for row in rows[split]:
        stem = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
        records.add_listed(stem, found.get(stem), index[row["label"]])
    return records


def _official_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=2):
        times = row["time_start"], row["time_end"]
        if not row["label"] or not all(value and value.isdigit() for value in times):
            raise ValueError(f"{path}, line {number}: need a label and whole seconds, got {list(row.values())}")
    return rows


def _read_lists(data_dir: Path, files: dict[str, Path], split: str) -> VideoRecords:
    lists = {name: list(_list_lines(path)) for name, path in files.items()}
    class_names = _list_classes(data_dir, [line for lines in lists.values() for line in lines])
    records = VideoRecords(class_names)
    for name, label in lists[split]:
        path = data_dir / name  # an absolute name stays as it is
        records.add_listed(name, path if path.is_file() else None, label)
    return records


def _list_lines(path: Path) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"\s*(.+?)\s*[,\s]\s*(\d+)\s*", line)  # the path may hold spaces and commas itself
        if match is None:
            raise ValueError(f"{path}, line {number}: expected 'path label' with a class number, got {line!r}")
        yield match[1], int(match[2])


def _list_classes(data_dir: Path, lines: list[tuple[str, int]]) -> list[str]:
    """Names for the class numbers: from `labels.json`, else from the folders if one stands for each number."""
    count = max((label for _, label in lines), default=-1) + 1
    path = find_annotations(data_dir, ["labels.json"])
    if path is not None:
        names = read_class_names(path)
        if len(names) < count:
            raise ValueError(f"{path} names {len(names)} classes, the lists use numbers up to {count - 1}")
        return names
    folders = {label: set() for label in range(count)}
    for name, label in lines:
        folders[label].add(Path(name).parent.name)
    names = [next(iter(found)) if len(found) == 1 else "" for found in folders.values()]
    if all(names) and len(set(names)) == count:
        return names
    return [f"class {label}" for label in range(count)]
