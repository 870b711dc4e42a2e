"""What a page shows of a file in results/ that holds more than a table: its columns and rows.

Each function takes the file's content and gives `machine`, `date`, `columns`, `rows` and perhaps a
`command` and a `note`, as `tables.plain_table` writes them. `TABLES` names the file of each.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from machine import Machine


Content = dict[str, Any]

CLIPS_PER_SECOND = 195  # of one H100 in training, clips of 8 frames of 224 pixels: an assumption
GPUS = (1, 8, 64)
BEFORE, DEFAULT = "key 64", "key 32, fast_decode"  # what `prepare --pack` wrote, and writes
NAMES_OF_WAYS = {
    "new": "the recipe",
    "new, no training": "the recipe, untrained: the classifier alone is fitted",
    "parts": "`--temporal_start parts`",
    "parts, no training": "`--temporal_start parts`, untrained",
    "changes": "`--temporal_start changes`",
    "changes, no training": "`--temporal_start changes`, untrained",
    "comparisons": "`--temporal_start comparisons`",
    "comparisons, no training": "`--temporal_start comparisons`, untrained",
    "space only, no training": "space only, untrained",
    "divided, as it was": "the recipe as it was in 0.1.0",
}
NAMES_OF_PACKINGS = {BEFORE: "a key frame every 64, as before", DEFAULT: "the default"}


def packing(stored: Content) -> Content:
    """Bytes, quality and reading time of every way to pack."""
    columns = {
        "bytes_of_key_64": "bytes",
        "psnr": "PSNR, dB",
        "1 in 32, 1 view": "ms a clip, 1 frame in 32",
        "1 in 32, 2 views": "two views of each",
        "1 in 8, 1 view": "ms a clip, 1 in 8",
        "1 in 8, 2 views": "two views of each",
    }
    results = stored["milliseconds_a_view_and_core"]
    rows = [
        [_packing_in_words(name), *(row.get(column) for column in columns)]
        for name, row in results.items()
    ]
    return _facts(stored) | {"columns": ["clips", *columns.values()], "rows": rows}


def _packing_in_words(name: str) -> str:
    """`key 32, fast_decode` -> "a key frame every 32, `--fast_decode`"."""
    words = name.replace("key ", "a key frame every ")
    return words.replace("fast_decode", "`--fast_decode`")


def cluster(stored: Content, sampling: str = "1 in 32") -> Content:
    """What training on several GPUs needs of the processors and the storage, computed from
    `packing`.

    Every GPU takes `CLIPS_PER_SECOND`, decoding scales with the cores, and a whole file is read for
    each clip, once where two views are made of it.
    """
    rows = []
    for name in ("as downloaded", BEFORE, DEFAULT):
        row = stored["milliseconds_a_view_and_core"][name]
        for count in GPUS:
            rate = count * CLIPS_PER_SECOND
            cores = [rate * row[f"{sampling}, {views}"] / 1000 for views in ("1 view", "2 views")]
            reading = rate * row["bytes_a_clip"] / 1e6
            words = NAMES_OF_PACKINGS.get(name, name)
            numbers = [f"{value:.0f}" for value in (*cores, reading, reading / 2)]
            rows.append([words, count, rate, *numbers])
    columns = ["clips", "GPUs", "clips/s", "cores", "cores, two views of each"]
    columns += ["MB/s read", "MB/s, two views"]
    command = "python scripts/benchmarks packing --cluster"
    return _facts(stored) | {"columns": columns, "rows": rows, "command": command}


def small_set(stored: Content) -> Content:
    """Top-1 of every way on every small set, with the spread over the runs and how many these are."""
    sets = list(stored["results"])
    ways = list(dict.fromkeys(way for found in stored["results"].values() for way in found))
    rows = []
    for way in ways:
        cells = [stored["results"][name].get(way) for name in sets]
        texts = [c and _over_runs(c) for c in cells]
        rows.append([NAMES_OF_WAYS.get(way, way), *texts])
    return _facts(stored) | {"columns": ["way", *(f"{name}, %" for name in sets)], "rows": rows}


SHOWN = ("new", "space only", "probe of frames", "probe over time")


def small_set_shown(stored: Content) -> Content:
    """For the README: the recipe beside space-only attention and the probes, a row each small set
    that it was trained on."""
    rows = [
        [name, *(_over_runs(found[way]) if way in found else None for way in SHOWN)]
        for name, found in stored["results"].items()
        if "new" in found
    ]
    columns = ["clips", *(f"{NAMES_OF_WAYS.get(way, way)}, %" for way in SHOWN)]
    return _facts(stored) | {"columns": columns, "rows": rows}


def _over_runs(result: Content) -> str:
    """`95.7 ± 3.1 (9)`: mean, deviation and number of runs."""
    runs = result["runs"]
    count = runs if isinstance(runs, int) else len(runs)
    return f"{result['mean']:.1f} ± {result['deviation']:.1f} ({count})"


def formats(stored: Content) -> Content:
    """Milliseconds a clip of every form, the fastest first; several machines side by side."""
    machines = list(stored)
    reports = {name: stored[name]["report"] for name in machines}
    by_time = reports[machines[0]]["seconds"]
    names = sorted(
        dict.fromkeys(n for r in reports.values() for n in r["seconds"]),
        key=lambda name: by_time.get(name, float("inf")),  # what the first machine has not run
    )
    columns, rows = ["what runs"], [[name] for name in names]
    for machine in machines:
        report = reports[machine]
        columns += ["milliseconds a clip", "times as fast as torch in float32"]
        for row in rows:
            seconds = report["seconds"].get(row[0])
            row += [None, None] if seconds is None else [
                f"{1000 * seconds:.0f}", f"{report['times_as_fast'][row[0]]:.2f}"
            ]  # fmt: skip
    first = stored[machines[0]]
    load = max(stored[name].get("load", 0.0) for name in machines)
    note = (
        f"{first['report']['threads']} threads, medians of {first['report']['repeats']} in turn; "
        f"load up to {load}."
    )
    for machine, report in reports.items():
        if report.get("left_out"):
            note += f" Not run on {machine}: {', '.join(report['left_out'])}."
    return {
        "machine": "; ".join(_machine(stored[name]["machine"]) for name in machines),
        "date": ", ".join(stored[name]["date"] for name in machines),
        "command": "python scripts/benchmarks formats",
        "columns": columns,
        "rows": rows,
        "note": note,
    }


def exported(stored: Content) -> Content:
    """Top-1 of every format, and in how many videos it says what the model says."""
    (entry,) = stored.values()
    rows = [
        [row["format"], f"{100 * row['top1_accuracy']:.1f}", f"{100 * row['same_answer']:.1f}"]
        for row in entry["report"]["formats"]
    ]
    return {
        "machine": _machine(entry["machine"]),
        "date": entry["date"],
        "command": "python scripts/benchmarks exported",
        "columns": ["format", "top-1, %", "same answer as the model, %"],
        "rows": rows,
        "note": entry["report"]["note"].rstrip(".") + ".",
    }


def _machine(machine: Content | str) -> str:
    """In words, as `machine.Machine` says it."""
    if isinstance(machine, str):
        return machine
    return str(Machine(**{field.name: machine[field.name] for field in fields(Machine)}))


def _facts(stored: Content) -> Content:
    kept = {key: stored[key] for key in ("date", "command", "note") if key in stored}
    return kept | {"machine": _machine(stored["machine"])}


# name of a table -> the file that it is made from, and what makes it
TABLES: dict[str, tuple[str, Callable[[Content], Content]]] = {
    "packing": ("packing", packing),
    "cluster": ("packing", cluster),
    "small_set": ("small_set", small_set),
    "small_set_shown": ("small_set", small_set_shown),
    "small_set_112": ("small_set_112", small_set),
    "formats": ("formats", formats),
    "exported": ("exported", exported),
}
