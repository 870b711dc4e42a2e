"""Rows of a table in a file: CSV, TSV, JSON lines or Parquet, or a list of `path label` lines
without a header.
"""

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..media_files import is_video
from ..records import parse_json


SUFFIXES = ("csv", "tsv", "txt", "jsonl", "json", "parquet")

# The columns that are read, each with the headers that stand for it (case and spaces around them do
# not count).
COLUMNS = {
    "path": ("path", "video", "file_name", "filename", "file", "video_path", "filepath", "clip"),
    "label": ("label", "class", "category", "action"),
    "labels": ("labels", "classes"),
    "target": ("target",),
    "split": ("split",),
    "start": ("start", "start_time", "start_sec", "start_timestamp"),
    "end": ("end", "end_time", "end_sec", "end_timestamp", "stop_timestamp"),
    "start_frame": ("start_frame",),
    "end_frame": ("end_frame", "stop_frame"),
    "group": ("group",),
    "weight": ("weight",),
}


@dataclass(frozen=True)
class Row:
    """One row: its values by the names of `COLUMNS` (an empty one is not there), and where it
    stands.
    """

    values: Mapping[str, Any]
    place: str  # for messages: `clips.csv, line 3`

    def get(self, name: str) -> Any:
        """The value of a column, or None."""
        return self.values.get(name)


@dataclass
class Table:
    """The rows of a file, the columns of `COLUMNS` that it has, and the headers that mean nothing
    here.
    """

    path: Path
    columns: list[str]
    rows: list[Row]
    unused: list[str] = field(default_factory=list)


def read_table_file(path: Path, group_column: str | None = None) -> Table:
    """The table in a file.

    Args:
        path: a file with one of `SUFFIXES`.
        group_column: header of the column of groups, if it is another than `group`.

    A CSV file has commas, semicolons or tabs between its fields, and quotes around fields that hold
    them. Without a header each line is a path and a label, with a comma, a semicolon, a tab or a
    space between.

    Raises:
        ValueError: the file cannot be read, holds no row, or has no column of paths. It names the
            file and the line.
    """
    suffix = path.suffix.lower().lstrip(".")
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} is no table: expected one of .{', .'.join(SUFFIXES)}")
    if suffix == "parquet":
        table = _from_records(path, _parquet_rows(path), group_column)
    elif suffix in ("jsonl", "json"):
        table = _from_records(path, _json_rows(path, suffix), group_column)
    else:
        table = _from_text(path, _read_text(path), suffix, group_column)
    if not table.rows:
        raise ValueError(f"{path} lists no clip")
    return table


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}): save it as UTF-8") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is no readable Parquet file: {error}") from error
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", row


def _json_rows(path: Path, suffix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    text = _read_text(path)
    if suffix == "json":
        for number, row in enumerate(parse_json(text, str(path), list)):
            if not isinstance(row, dict):
                raise ValueError(f"{path}, entry {number}: expected an object, got {str(row)[:80]}")
            yield f"{path}, entry {number}", row
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, parse_json(line, place, dict)


def _from_records(
    path: Path, records: Iterator[tuple[str, Mapping[str, Any]]], group_column: str | None
) -> Table:
    """A table of rows that name their own columns."""
    placed = list(records)
    headers = list(dict.fromkeys(name for _, row in placed for name in row))
    names, unused = _match_headers(headers, group_column)
    if "path" not in names.values():
        raise ValueError(
            f"{path} has no column {_alternatives()}; its columns: {', '.join(headers) or 'none'}"
        )
    rows = [
        Row(_without_empty({names[h]: value for h, value in row.items() if h in names}), p)
        for p, row in placed
    ]
    return Table(path, list(names.values()), rows, unused)


def _from_text(path: Path, text: str, suffix: str, group_column: str | None) -> Table:
    delimiters = ("\t",) if suffix == "tsv" else (",", "\t", ";")
    first = next((line for line in text.splitlines() if line.strip()), "")
    for delimiter in delimiters:
        headers = [header.strip() for header in next(csv.reader([first], delimiter=delimiter), [])]
        names, unused = _match_headers(headers, group_column)
        if "path" in names.values():
            rows = [
                Row(
                    _without_empty(
                        {names[h]: value for h, value in zip(headers, fields) if h in names}
                    ),
                    place,
                )
                for place, fields in _csv_rows(path, text, delimiter, len(headers))
            ]
            return Table(path, list(names.values()), rows, unused)
    _require_clip_in(first, path)
    return Table(path, ["path", "label"], list(_list_rows(path, text)))


def _csv_rows(path: Path, text: str, delimiter: str, width: int) -> Iterator[tuple[str, list[str]]]:
    """The rows after the header, each with the place where it ends."""
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
    is_header = True
    for fields in reader:
        if not any(value.strip() for value in fields):
            continue
        if is_header:
            is_header = False
            continue
        place = f"{path}, line {reader.line_num}"
        if len(fields) != width:
            raise ValueError(
                f"{place}: {len(fields)} fields, but the header has {width}: put quotes around a field that holds "
                f"{delimiter!r}, got {fields}"
            )
        yield place, fields


def _match_headers(
    headers: Sequence[str], group_column: str | None
) -> tuple[dict[str, str], list[str]]:
    """Which header stands for which column of `COLUMNS`, and those that stand for none."""
    columns = (
        COLUMNS if group_column is None else COLUMNS | {"group": (group_column.strip().lower(),)}
    )
    by_plain_name = {header.strip().lower(): header for header in reversed(headers)}
    names: dict[str, str] = {}
    for column, alternatives in columns.items():
        header = next(
            (by_plain_name[other] for other in alternatives if other in by_plain_name), None
        )
        if header is not None:
            names[header] = column
    return names, [header for header in headers if header not in names]


def _alternatives() -> str:
    return ", ".join(map(repr, COLUMNS["path"][:3]))


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """Text without spaces around it, and without what is empty. A path keeps its spaces: they may
    be the file's.
    """
    kept = {}
    for name, value in values.items():
        if isinstance(value, str) and name != "path":
            value = value.strip()
        is_nan = isinstance(value, float) and math.isnan(value)  # what pandas writes for nothing
        if value is not None and value != "" and not is_nan:
            kept[name] = value
    return kept


def path_parts(path: str) -> list[str]:
    """A listed path, with whichever separators, cut at them."""
    return re.split(r"[/\\]", path.strip())


def _require_clip_in(line: str, path: Path) -> None:
    """Raise ValueError where the first line is neither a header nor a clip: its header would be
    taken for a clip.
    """
    if not any(
        is_video(part.strip("\"' ")) for part in re.split(r"[,;\s]", line)
    ) and not re.search(r"\d\s*$", line):
        raise ValueError(
            f"{path}: the first line, {line[:80]!r}, has no column {_alternatives()} and lists no clip: "
            "add a header such as path,label"
        )


def _list_rows(path: Path, text: str) -> Iterator[Row]:
    """The lines of a list without a header, each a path and a label."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        found = _split_line(line.strip())
        if found is None:
            raise ValueError(f"{place}: expected a path and a label, got {line!r}")
        yield Row(_without_empty(dict(zip(("path", "label"), found))), place)


def _split_line(line: str) -> tuple[str, str] | None:
    """`a b.mp4 running fast` -> `a b.mp4` and `running fast`; a path may hold spaces and commas, a
    label too.

    The path ends at the first video suffix that a separator follows, or else where only a number
    follows it.
    """
    quoted = re.fullmatch(r'"((?:[^"]|"")+)"\s*[,;\s]\s*(.+)', line)
    if quoted is not None:
        return quoted[1].replace('""', '"'), quoted[2].strip('"')
    for separator in re.finditer(r"[,;\s]+", line):
        path, label = line[: separator.start()], line[separator.end() :]
        if is_video(path) and label:
            return path, label.strip('"')
    numbered = re.fullmatch(r"(.+?)\s*[,;\s]\s*(\d+)", line)
    return (numbered[1], numbered[2]) if numbered is not None else None
