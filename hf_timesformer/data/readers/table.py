"""`--dataset csv`: clips, or segments of videos, that a table lists with their labels.

| column                     | what it holds                                                                  |
|----------------------------|--------------------------------------------------------------------------------|
| `path`                     | the clip, from the folder of the table or absolute (also `video`, `file_name`)   |
| `label`                    | its class: a name, or a number from 0                                            |
| `labels`                   | in place of `label`: several classes, a list or with `|` between; may be empty   |
| `target`                   | in place of `label`: a number, to be predicted itself                            |
| `split`                    | train, validation or test; all are train without it                              |
| `start`, `end`             | seconds, or `h:mm:ss.s`: the record is this segment of the video                 |
| `start_frame`, `end_frame` | the same in frames: from number `start_frame` on (the first is 0), without `end_frame` |
| `group`                    | clips of one group are not parted where some are held out                        |
| `weight`                   | how often the clip is drawn, beside the others                                   |

The table is a file, or there is one a split: `train.csv`, `validation.csv`, `test.csv`.
`metadata.csv` and `metadata.jsonl` of a VideoFolder are such tables. Names for class numbers, or
the order of the classes, come from `labels.json`, `labels.txt` or `classes.txt` beside it.
"""

import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..records import SPLIT_ALIASES, VideoRecords, canonical_split
from ..targets import SINGLE_LABEL
from .table_file import SUFFIXES, Row, Table, path_parts, read_table_file
from .table_labels import LabelReader, find_label_column, make_label_reader


logger = logging.getLogger(__name__)

METADATA = tuple(f"metadata.{suffix}" for suffix in ("csv", "jsonl", "parquet"))


def read_table(data_dir: Path, split: str, *, group_column: str | None = None) -> VideoRecords:
    """One split of the clips that a table lists; the docstring of this file has its columns.

    Args:
        data_dir: the table, or a folder with one a split, or with the `metadata.csv` of a
            VideoFolder.
        split: one of `table_splits`.
        group_column: header of the column of groups, if it is another than `group`.

    Raises:
        ValueError: there is no table, no such split, or a row that makes no sense; with the file
            and the line.
    """
    split = canonical_split(split)
    tables = _read_tables(data_dir, group_column)
    rows = _rows_by_split(tables)
    column = find_label_column(list(tables.values()))
    labelled = {
        name: listed
        for name, listed in rows.items()
        if any(row.get(column) is not None for row in listed)
    }
    if split not in labelled:
        without = " (its clips have no label)" if split in rows else ""
        raise ValueError(
            f"{data_dir} has no {split} split{without}; found: {', '.join(labelled) or 'none'}"
        )
    for table in tables.values():
        if table.unused:
            logger.info("%s: columns that are not used: %s", table.path, ", ".join(table.unused))
    every_row = [row for listed in labelled.values() for row in listed]
    labels = make_label_reader(column, every_row, _root(data_dir), str(data_dir))
    _warn_of_shared(labelled)
    return _make_records(labelled[split], labels, _root(data_dir, tables, split))


def table_splits(data_dir: Path) -> list[str]:
    """The splits whose clips have labels; one without any is left out with a line in the log."""
    tables = _read_tables(data_dir)
    column = find_label_column(list(tables.values()))
    splits = []
    for name, rows in _rows_by_split(tables).items():
        if any(row.get(column) is not None for row in rows):
            splits.append(name)
        else:
            logger.info("%s: the %s split has no labels and is left out", data_dir, name)
    return splits


# Finding the tables


def find_tables(data_dir: Path) -> dict[str | None, Path]:
    """The table of each split; one with a column `split`, or of training clips only, under None.

    Raises:
        ValueError: there is none, or several for one split.
    """
    if data_dir.is_file():
        return {None: data_dir}
    if not data_dir.is_dir():
        raise ValueError(
            f"{str(data_dir)!r} is no table and no folder: give the file, or a folder with train.csv"
        )
    tables: dict[str | None, Path] = {}
    for split, aliases in SPLIT_ALIASES.items():
        names = [f"{alias}.{suffix}" for alias in aliases for suffix in SUFFIXES]
        names += [f"{alias}/{name}" for alias in aliases for name in METADATA]
        path = _only_one(data_dir, names, f"the {split} split")
        if path is not None:
            tables[split] = path
    if tables:
        return tables
    path = _only_one(data_dir, METADATA, "all clips")
    if path is None:
        wanted = f"train.csv (or {', '.join(f'.{suffix}' for suffix in SUFFIXES[1:])}), metadata.csv or metadata.jsonl"
        raise ValueError(f"{data_dir} has no {wanted}: name the table itself in --data_dir")
    return {None: path}


def _only_one(folder: Path, names: Sequence[str], what: str) -> Path | None:
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(
            f"{folder} has several tables of {what}: {', '.join(path.name for path in found)}; keep one"
        )
    return found[0] if found else None


def has_column(data_dir: Path, name: str) -> bool:
    """Whether all tables of a data set have a column with that header."""
    return all("group" in table.columns for table in _read_tables(data_dir, name).values())


def _read_tables(data_dir: Path, group_column: str | None = None) -> dict[str | None, Table]:
    return {
        split: read_table_file(path, group_column) for split, path in find_tables(data_dir).items()
    }


def _root(
    data_dir: Path, tables: dict[str | None, Table] | None = None, split: str | None = None
) -> Path:
    """The folder that paths are from: that of the table."""
    if tables is None:
        return data_dir if data_dir.is_dir() else data_dir.parent
    table = tables.get(split) or tables[None]
    return table.path.parent


def _rows_by_split(tables: dict[str | None, Table]) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for split, table in tables.items():
        from_folders = split is None and _splits_are_folders(table)
        for row in table.rows:
            rows.setdefault(_split_of(row, split, from_folders), []).append(row)
    return {split: rows[split] for split in SPLIT_ALIASES if split in rows}


def _split_of(row: Row, of_file: str | None, from_folders: bool) -> str:
    named = row.get("split")
    if named is None and from_folders:
        named = path_parts(row.get("path"))[0]
    if named is None:
        return of_file or "train"
    try:
        split = canonical_split(str(named))
    except ValueError as error:
        raise ValueError(f"{row.place}: {error}") from error
    if of_file is not None and split != of_file:
        raise ValueError(
            f"{row.place}: a clip of the {split} split in the table of the {of_file} split"
        )
    return split


def _splits_are_folders(table: Table) -> bool:
    """Whether a VideoFolder's table has no column for it, but every path begins with the folder of
    a split.
    """
    aliases = {alias for names in SPLIT_ALIASES.values() for alias in names}
    paths = [row.get("path") for row in table.rows]
    are = "split" not in table.columns and all(
        p and path_parts(p)[0].lower() in aliases for p in paths
    )
    if are:
        logger.info("%s: splits are taken from the folders that the paths begin with", table.path)
    return are


# Records


def _make_records(rows: Sequence[Row], labels: LabelReader, root: Path) -> VideoRecords:
    records = VideoRecords(labels.class_names, labels.problem_type)
    first: dict[str, tuple[Any, str]] = {}  # label and place of each record
    for row in rows:
        if row.get("path") is None:
            raise ValueError(f"{row.place}: no path")
        extras = _extras(row)
        listed = str(row.get("path")).strip()
        video_id = listed.replace("\\", "/") + _segment_name(extras)
        label = labels.read(row)
        if video_id in first and first[video_id][0] != label:
            raise ValueError(
                f"{row.place}: {listed} has another label in {first[video_id][1]}: keep one of the rows, or list "
                "several classes in a column `labels`"
            )
        first.setdefault(video_id, (label, row.place))
        records.add_listed(video_id, _locate(str(row.get("path")), root, row), label, **extras)
    if labels.problem_type == SINGLE_LABEL:
        without = sorted(
            set(labels.class_names) - {labels.class_names[label] for label, _ in first.values()}
        )
        if without:
            logger.warning(
                "%s: %d classes have no clip in this split: %s",
                root,
                len(without),
                ", ".join(without[:20]),
            )
    return records


def _locate(listed: str, root: Path, row: Row) -> Path | None:
    """The file, or folder of frames, that a row means; also with Windows' separators or spaces
    around it.
    """
    if "://" in listed:
        raise ValueError(
            f"{row.place}: {listed} is an address: download the clips and list their files"
        )
    for name in dict.fromkeys((listed, listed.strip(), listed.strip().replace("\\", "/"))):
        path = root / name  # an absolute name stays as it is
        if os.path.exists(path):
            return path
    return None


def _extras(row: Row) -> dict[str, Any]:
    extras: dict[str, Any] = {name: _parsed(row, name, _seconds) for name in ("start", "end")}
    extras |= {name: _parsed(row, name, _frame_number) for name in ("start_frame", "end_frame")}
    extras["weight"] = _parsed(row, "weight", float)
    if row.get("group") is not None:
        extras["group"] = str(row.get("group"))
    extras = {name: value for name, value in extras.items() if value is not None}
    for unit in ("", "_frame"):
        start, end = extras.get(f"start{unit}"), extras.get(f"end{unit}")
        if end is not None and end <= (start or 0):
            raise ValueError(f"{row.place}: the segment from {start or 0} to {end} is empty")
    if {"start", "end"} & extras.keys() and {"start_frame", "end_frame"} & extras.keys():
        raise ValueError(f"{row.place}: a segment in seconds and in frames: give one of them")
    return extras


def _parsed(row: Row, name: str, parse: Callable[[Any], Any]) -> Any:
    """A number that is not negative, or None where the row has none."""
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        number = parse(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"{row.place}: {name} {value!r} should be a number from 0 on")
    return number


def _seconds(value: Any) -> float:
    """`83.5`, `1:23.5` and `0:01:23.5` -> 83.5."""
    if not isinstance(value, str):
        return float(value)
    seconds = 0.0
    for part in value.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds


def _frame_number(value: Any) -> int:
    if float(value) != int(float(value)):
        raise ValueError(value)
    return int(float(value))


def _segment_name(extras: dict[str, Any]) -> str:
    """What tells a segment from others of its video: `@2.5-4`, `@f30-f60`; empty for a whole video."""
    if "start_frame" in extras or "end_frame" in extras:
        end = extras.get("end_frame")
        return f"@f{extras.get('start_frame', 0)}-{'' if end is None else f'f{end}'}"
    if "start" in extras or "end" in extras:
        end = extras.get("end")
        return f"@{extras.get('start', 0.0):.10g}-{'' if end is None else f'{end:.10g}'}"
    return ""


def _warn_of_shared(labelled: dict[str, list[Row]]) -> None:
    """Say where two splits share a video: then what is measured on one was seen in the other."""
    videos = {
        split: {"/".join(path_parts(row.get("path") or "")) for row in rows}
        for split, rows in labelled.items()
    }
    names = list(videos)
    for number, split in enumerate(names):
        for other in names[number + 1 :]:
            shared = sorted(videos[split] & videos[other])
            if shared:
                logger.warning(
                    "%d videos are in the %s split and in the %s split, such as %s",
                    len(shared),
                    split,
                    other,
                    shared[0],
                )
