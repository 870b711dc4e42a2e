"""Results of several machines side by side in one JSON, and the README's table made from it.

    python scripts/benchmarks model --record          # this machine's results go into results/model.json
    python scripts/benchmarks results                 # the table in Markdown, one column a machine
    python scripts/benchmarks results --write         # all measured tables of README.md and docs/

Nothing stands under a machine that it did not run: its other cells stay empty.
"""

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

from machine import Machine, load_average


FOLDER = Path(__file__).resolve().parent / "results"
MODEL_FILE = FOLDER / "model.json"
PARTS = (", compiled", ", exported")  # of a work, recorded apart: ends of their names
BLOCKS = 12  # of the base network; a record of fewer says so in its name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmarks results`."""
    parser.add_argument("--file", type=Path, default=MODEL_FILE, help="what `model --record` wrote")
    parser.add_argument(
        "--write", action="store_true", help="the tables of README.md and docs/, from results/"
    )


def run(args: argparse.Namespace) -> None:
    """Print the table, or write those of the pages."""
    if args.write:
        from tables import write_tables  # which needs this file

        for page in write_tables():
            print(f"wrote {page}")
        return
    print(table(json.loads(args.file.read_text(encoding="utf-8"))))


def record(
    machine: Machine, threads: int, results: list[dict[str, Any]], path: Path = MODEL_FILE
) -> None:
    """Put this machine's results into the file, each in place of an older one of the same work and
    dtype.
    """
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    entry = stored.setdefault(machine.name, {"results": {}})
    entry["machine"] = machine.as_dict() | {"threads": threads}
    for result in results:
        key = f"{result['work']}, {result['dtype']}"
        if result.get("layers", BLOCKS) != BLOCKS:
            key += f", {result['layers']} blocks"
        part = f", {result.get('part')}"
        key += part if part in PARTS else ""
        entry["results"][key] = result | {"date": date.today().isoformat()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def keep(name: str, machine: Machine, report: dict[str, Any], folder: Path = FOLDER) -> None:
    """Put the report of another benchmark into results/<name>.json, beside those of other
    machines and in place of an older one of this.
    """
    path = folder / f"{name}.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    stored[machine.name] = {
        "machine": machine.as_dict(),
        "date": date.today().isoformat(),
        "load": load_average(),
        "report": report,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def keep_rows(
    name: str,
    machine: Machine,
    rows: list[dict[str, Any]],
    command: str,
    folder: Path = FOLDER,
) -> None:
    """Put rows, with today's date, into the table results/<name>.json, each in place of an older
    one with the same words. Rows of another machine make way.
    """
    path = folder / f"{name}.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content = {"machine": machine.as_dict() | {"instruction_sets": [*machine.instruction_sets]}}
    rows_by_words = {}
    if stored.get("machine") == content["machine"]:
        rows_by_words = {_words(row): row for row in stored.get("measured", [])}
    for row in rows:
        rows_by_words[_words(row)] = row | {"date": date.today().isoformat()}
    content |= {"command": command, "measured": list(rows_by_words.values())}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _words(row: dict[str, Any]) -> tuple[str, ...]:
    """What was measured: the texts of a row, not its numbers."""
    return tuple(value for key, value in row.items() if isinstance(value, str) and key != "date")


def table(stored: dict[str, Any]) -> str:
    """Rows are works and ways to run them, columns machines: times as fast as the baseline (times
    the ViT row).
    """
    machines = sorted(stored)
    works = sorted({key for name in machines for key in stored[name]["results"]}, key=_place)
    lines = ["| work | " + " | ".join(_heading(stored[name]) for name in machines) + " |"]
    lines.append("|---|" + "---:|" * len(machines))
    for work in works:
        results = {name: stored[name]["results"].get(work) for name in machines}
        ways = dict.fromkeys(
            way for result in results.values() if result for way in _ours(result["seconds"])
        )
        for way in ways:
            if way == "ours" and work.endswith(PARTS):
                continue  # the row of the eager run says it
            label = work if way == "ours" else f"the same, {way.removeprefix('ours ')}"
            cells = [_cell(results[name], way) for name in machines]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _place(key: str) -> tuple[str, str]:
    """To sort by: the parts of a work follow it at once."""
    for part in PARTS:
        if key.endswith(part):
            return key.removesuffix(part), part
    return key, ""


def _heading(entry: dict[str, Any]) -> str:
    machine, dates = (
        entry["machine"],
        sorted({result["date"] for result in entry["results"].values()}),
    )
    load = max(result.get("load", 0.0) for result in entry["results"].values())
    busy = f", others at work (load up to {load})" if load > machine["cores"] + 1 else ""
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return (
        f"{machine['name']}, {machine['threads']} threads, torch {machine['torch']}, {when}{busy}"
    )


def _ours(seconds: dict[str, float]) -> list[str]:
    return [name for name in seconds if name == "ours" or name.startswith("ours ")]


def _cell(result: dict[str, Any] | None, way: str) -> str:
    """`2.11 (0.89)`: 2.11 times as fast as the baseline, in 0.89 of the time of the frames through
    a ViT.
    """
    if result is None or way not in result["seconds"]:
        return ""
    seconds = result["seconds"]
    compiled = " compiled" if way.endswith("compiled") else ""
    baseline = min(seconds["baseline"], seconds.get(f"baseline{compiled}", seconds["baseline"]))
    text = f"{baseline / seconds[way]:.2f}"
    vit = seconds.get(f"ViT frames{compiled}")
    return text if vit is None else f"{text} ({seconds[way] / vit:.2f})"
