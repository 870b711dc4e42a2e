"""The measured tables of README.md and docs/, written from the files in results/.

A page says where a table goes, `python scripts/benchmarks results --write` puts it there, and
`tests/test_readme.py` fails where the two differ:

    <!-- table: against_stock -->
    ...
    <!-- end -->

The file is results/against_stock.json. It is what `benchmarks model --record` keeps of several
machines, or a table as it stands:

    {"machine": "AMD EPYC (Zen 4), 2 threads, torch 2.14.1", "date": "2026-11-27",
     "command": "python scripts/benchmarks model",
     "columns": ["work", "times as fast"], "rows": [["T+S 8x224, logits", 1.98]]}

Where the rows come from several machines or days, `machine` or `date` is a column in its place. Rows
that a person copied from what a program printed have `copied` in place of `command`: it says so.
A file of records, `{"machine": {...}, "date": ..., "growth": [{...}, ...]}`, has a row for each record
of its list and a column for each field, `ours, milliseconds` for one within another. What is shown of
other files is in `page_tables.py`.
"""

import json
import re
from pathlib import Path
from typing import Any

from page_tables import TABLES
from results import FOLDER, table


ROOT = Path(__file__).resolve().parents[2]
MARKED = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.S)


def pages() -> list[Path]:
    """The pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def with_tables(text: str, folder: Path = FOLDER) -> str:
    """A page's text with every marked table as its file has it. Raises ValueError for a table
    without a file, or one that does not say where and when it was measured.
    """
    return MARKED.sub(lambda found: f"{found[1]}\n{render(found[2], folder)}\n\n{found[4]}", text)


def render(name: str, folder: Path = FOLDER) -> str:
    """One table in Markdown, with the line that says where and when."""
    file, make = TABLES.get(name, (name, None))
    path = folder / f"{file}.json"
    if not path.is_file():
        raise ValueError(f"table {name}: there is no {path.name} in {folder}")
    stored = json.loads(path.read_text(encoding="utf-8"))
    if make is not None:
        return plain_table(name, make(stored))
    if "rows" in stored:
        return plain_table(name, stored)
    lists = [value for value in stored.values() if isinstance(value, list)]
    if len(lists) == 1:
        return plain_table(name, table_of_records(stored, lists[0]))
    # `model --record` names each machine and day in the heading of its column
    return table(stored)


def table_of_records(stored: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """A file of records as one of columns and rows."""
    flat = [_flat(record) for record in records]
    columns = list(dict.fromkeys(column for record in flat for column in record))
    machine = stored["machine"]
    if not isinstance(machine, str):
        sets = f" ({', '.join(machine['instruction_sets'])})" if machine["instruction_sets"] else ""
        machine = f"{machine['name']}{sets}, {machine['cores']} cores, torch {machine['torch']}"
    return {
        **{key: stored[key] for key in ("date", "command", "note") if key in stored},
        "machine": machine,
        "columns": [column.replace("_", " ") for column in columns],
        "rows": [[record.get(column) for column in columns] for record in flat],
    }


def _flat(record: dict[str, Any], before: str = "") -> dict[str, Any]:
    """`{"ours": {"ms": 3}}` -> `{"ours, ms": 3}`."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= (
            _flat(value, f"{before}{key}, ") if isinstance(value, dict) else {before + key: value}
        )
    return flat


def plain_table(name: str, stored: dict[str, Any]) -> str:
    """The columns and rows of the file, numbers to the right."""
    columns, rows = stored["columns"], stored["rows"]
    for fact in ("machine", "date"):
        if fact not in stored and fact not in columns:
            raise ValueError(f"table {name}: neither the file nor a column says its {fact}")
    if not {"command", "copied"} & stored.keys():
        raise ValueError(f"table {name}: the file does not say which command wrote it (`command`)")
    uneven = [row for row in rows if len(row) != len(columns)]
    if uneven:
        raise ValueError(f"table {name}: {uneven[0]} has not the {len(columns)} columns")
    numeric = [all(_is_figure(row[i]) for row in rows) for i in range(len(columns))]
    lines = ["| " + " | ".join(columns) + " |"]
    lines.append("|" + "".join("---:|" if right else "---|" for right in numeric))
    lines += [
        "| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in rows
    ]
    facts = [f"on {stored['machine']}"] if "machine" in stored else []
    facts += [stored["date"]] if "date" in stored else []
    facts += [f"by `{stored['command']}`"] if "command" in stored else []
    sentences = [f"Measured {', '.join(facts)}."] if facts else []
    sentences += [stored[key] for key in ("note", "copied") if stored.get(key)]
    return "\n".join([*lines, *(["", " ".join(sentences)] if sentences else [])])


def _is_figure(cell: object) -> bool:
    return cell is None or str(cell)[:1].isdigit()


def write_tables() -> list[Path]:
    """Write every table anew; returns the pages that changed."""
    changed = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := with_tables(text)) != text:
            page.write_text(new, encoding="utf-8")
            changed.append(page)
    return changed
