"""Labels of a table's rows: a class by name or number, several classes, or a number to be
predicted.
"""

import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..labels import name_numbers, plain_label, read_class_names
from ..targets import LABEL_COLUMNS, MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .table_file import Row, Table, path_parts


logger = logging.getLogger(__name__)

CLASS_FILES = ("labels.json", "labels.txt", "classes.txt")


@dataclass(frozen=True)
class LabelReader:
    """The kind of problem that a table poses, its classes in order, and the label of each row as a
    record has it.
    """

    problem_type: str
    class_names: list[str]
    read: Callable[[Row], int | list[int] | float]


def find_label_column(tables: Sequence[Table]) -> str:
    """Which of `label`, `labels` and `target` the tables have.

    Raises:
        ValueError: none of them, or several.
    """
    columns = {column for table in tables for column in table.columns}
    found = [column for column in LABEL_COLUMNS.values() if column in columns]
    where = ", ".join(str(table.path) for table in tables)
    if not found:
        unused = ", ".join(header for table in tables for header in table.unused) or "none"
        raise ValueError(
            f"{where}: no column label, labels or target; columns that mean nothing here: {unused}"
        )
    if len(found) > 1:
        raise ValueError(
            f"{where}: columns {' and '.join(found)}: keep the one that is to be learned"
        )
    return found[0]


def make_label_reader(column: str, rows: Sequence[Row], root: Path, source: str) -> LabelReader:
    """The reader of a column of labels.

    Args:
        column: `label`, `labels` or `target`.
        rows: those of all splits that have labels, since the classes are theirs together.
        root: where a file of class names may lie (`CLASS_FILES`).
        source: name of the table, for error messages.

    Raises:
        ValueError: class numbers leave a gap, a name is not in the file of class names, or numbers
            are no classes.
    """
    if column == "target":
        return LabelReader(REGRESSION, ["target"], _read_number)
    given = [name for row in rows for name in _names_in(row, column)]
    names_file = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    if given and all(map(_is_whole, given)):
        listed = [
            (_folder_of(row), int(float(name))) for row in rows for name in _names_in(row, column)
        ]
        class_names = name_numbers(listed, names_file, source, folders_may_name=column == "label")
        number_of = {name: int(float(name)) for name in given}
    else:
        class_names = _order_names(given, names_file, rows, column, source)
        number_of = {name: number for number, name in enumerate(class_names)}

    def read_class(row: Row) -> int:
        return number_of[_names_in(row, column)[0]]

    def read_classes(row: Row) -> list[int]:
        return sorted({number_of[name] for name in _names_in(row, column)})

    if column == "label":
        return LabelReader(SINGLE_LABEL, class_names, read_class)
    return LabelReader(MULTI_LABEL, class_names, read_classes)


def _read_number(row: Row) -> float:
    value = row.get("target")
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{row.place}: target {value!r} is no number")
    return number


def _names_in(row: Row, column: str) -> list[str]:
    """The class, or the classes, of a row as text."""
    value = row.get(column)
    if column == "labels":
        if value is None:
            return []
        parts = value if isinstance(value, list | tuple) else str(value).split("|")
        return [str(part).strip() for part in parts if str(part).strip()]
    if value is None:
        raise ValueError(
            f"{row.place}: no label for {row.get('path')!r}, while other clips of the split have one"
        )
    if isinstance(value, list | tuple | dict):
        raise ValueError(
            f"{row.place}: label {value!r} is no single class: several go into a column `labels`"
        )
    return [str(value).strip()]


def _is_whole(name: str) -> bool:
    return re.fullmatch(r"\d+(\.0*)?", name) is not None


def _folder_of(row: Row) -> str:
    return ["", *path_parts(str(row.get("path")))][-2]


def _order_names(
    given: Iterable[str], names_file: Path | None, rows: Sequence[Row], column: str, source: str
) -> list[str]:
    """The class names in order: as a file beside the table lists them, else sorted."""
    counts = Counter(given)
    fractions = [name for name in counts if re.fullmatch(r"-?\d*\.\d+|-\d+", name)]
    if fractions and len(fractions) + sum(map(_is_whole, counts)) == len(counts):
        raise ValueError(
            f"{source}: label {fractions[0]} is no class number. To predict the numbers themselves (a regression) "
            "call the column `target`"
        )
    by_plain_name = defaultdict(list)
    for name in sorted(counts):
        by_plain_name[plain_label(name)].append(name)
    for alike in by_plain_name.values():
        if len(alike) > 1:
            shown = ", ".join(f"{name!r} ({counts[name]} clips)" for name in alike)
            logger.warning("%s: classes that differ only in case, `_` or quotes: %s", source, shown)
    if names_file is None:
        return sorted(counts)
    class_names = read_class_names(names_file)
    for row in rows:
        unknown = [name for name in _names_in(row, column) if name not in class_names]
        if unknown:
            raise ValueError(f"{row.place}: class {unknown[0]!r} is not in {names_file}")
    return class_names
