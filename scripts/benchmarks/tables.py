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

Where the rows come from several machines or days, `machine` or `date` is a column in its place.
"""

import json
import re
from pathlib import Path
from typing import Any

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
    path = folder / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"table {name}: there is no {path.name} in {folder}")
    stored = json.loads(path.read_text(encoding="utf-8"))
    # `model --record` names each machine and day in the heading of its column
    return plain_table(name, stored) if "rows" in stored else table(stored)


def plain_table(name: str, stored: dict[str, Any]) -> str:
    """The columns and rows of the file, numbers to the right."""
    columns, rows = stored["columns"], stored["rows"]
    for fact in ("machine", "date"):
        if fact not in stored and fact not in columns:
            raise ValueError(f"table {name}: neither the file nor a column says its {fact}")
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
    caption = f"\n\nMeasured {', '.join(facts)}." if facts else ""
    note = f" {stored['note']}" if "note" in stored else ""
    return "\n".join(lines) + caption + note


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
