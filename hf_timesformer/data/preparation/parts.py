"""One data set prepared by several machines: each takes a part of the videos, the last one to
finish joins the lists.

Part 1 of 4, counted from 0, takes every fourth video, from the second on, so that each has clips of
all classes. All parts write into one folder, each under names of its own (`scan-1-of-4.jsonl`,
`train-1-of-4-000000.tar`), and nobody waits for another.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from ..readers.shard_files import INDEX_FILE
from ..records import VideoRecords
from .scan import MANIFEST, SCAN_LOG, written_whole


@dataclass(frozen=True)
class Part:
    """Part `number` (from 0) of `of`; the whole if there is only one."""

    number: int = 0
    of: int = 1

    @property
    def tag(self) -> str:
        """What stands in the names of its files; "" for the whole."""
        return f"-{self.number}-of-{self.of}" if self.of > 1 else ""

    def name(self, file: str) -> str:
        """`scan.jsonl` -> `scan-1-of-4.jsonl`."""
        path = Path(file)
        return f"{path.stem}{self.tag}{path.suffix}"

    def take(self, records: VideoRecords) -> VideoRecords:
        """Its videos of a split, and its share of those that are not on disk."""
        share = slice(self.number, None, self.of)
        lists = ("video_ids", "videos", "labels", "extras", "missing")
        return replace(records, **{name: getattr(records, name)[share] for name in lists})

    def all(self) -> "list[Part]":
        """This part and all others, in order."""
        return [Part(number, self.of) for number in range(self.of)]


def refuse_other_division(output_dir: Path, part: Part) -> None:
    """Raise ValueError where the folder holds a manifest of the same data in another number of
    parts, or parts that were counted from 1.
    """
    _refuse_parts_from_1(output_dir)
    for path in sorted(output_dir.glob(f"{Path(MANIFEST).stem}-*-of-*.parquet")):
        others = re.search(r"-\d+-of-(\d+)$", path.stem)
        if others and int(others[1]) != part.of:
            raise ValueError(
                f"{output_dir} was prepared in {others[1]} parts, not {part.of}: keep to that or take another folder"
            )
    in_parts = any((output_dir / other.name(MANIFEST)).exists() for other in part.all())
    if part.of > 1 and (output_dir / MANIFEST).exists() and not in_parts:
        raise ValueError(
            f"{output_dir} was prepared as a whole, not in parts: choose another folder"
        )


def _refuse_parts_from_1(output_dir: Path) -> None:
    """Raise ValueError where an earlier version has left parts: it counted them from 1, and named
    them so (`scan-1of4.jsonl` is of 0/4).
    """
    for name in (SCAN_LOG, MANIFEST):
        stem, suffix = Path(name).stem, Path(name).suffix
        for path in sorted(output_dir.glob(f"{stem}-*of*{suffix}")):
            if re.fullmatch(rf"{stem}-\d+of\d+", path.stem):
                raise ValueError(
                    f"{path} is of an earlier version, which counted parts from 1 (now they count from 0): take "
                    "another --output_dir and prepare all parts anew. Shards that are joined can be read as before"
                )


def join_parts(output_dir: Path, part: Part) -> list[int]:
    """Write the manifest of all parts and, where all were packed, their `shards.json`; whole or not
    at all.

    Returns the numbers of the parts that are not ready; where there is one, nothing is written.
    Raises ValueError where the parts were packed with different settings.
    """
    with FileLock(output_dir / ".join.lock"):
        manifests = {other.number: output_dir / other.name(MANIFEST) for other in part.all()}
        waiting = [number for number, path in manifests.items() if not path.exists()]
        if waiting:
            return waiting
        tables = [pq.read_table(path) for path in manifests.values()]
        with written_whole(output_dir / MANIFEST) as file:
            pq.write_table(pa.concat_tables(tables), file)
        indexes = [output_dir / other.name(INDEX_FILE) for other in part.all()]
        packed = [path for path in indexes if path.exists()]
        if len(packed) < len(indexes):
            return (
                [other.number for other, path in zip(part.all(), indexes) if not path.exists()]
                if packed
                else []
            )
        joined = join_indexes([json.loads(path.read_text(encoding="utf-8")) for path in indexes])
        with written_whole(output_dir / INDEX_FILE) as file:
            file.write((json.dumps(joined, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    return []


def _add(one: list[int] | None, other: list[int] | None) -> list[int] | None:
    return [a + b for a, b in zip(one, other, strict=True)] if one and other else None


def join_indexes(indexes: list[dict[str, Any]]) -> dict[str, Any]:
    """The contents of several `shards.json` as one.

    Raises:
        ValueError: the parts were packed with different settings or classes.
    """
    first = indexes[0]
    for other in indexes[1:]:
        for name in ("settings", "classes", "problem_type"):
            if other[name] != first[name]:
                raise ValueError(
                    f"the parts were packed with different {name}: {first[name]} and {other[name]}"
                )
    splits: dict[str, dict[str, Any]] = {}
    for index in indexes:
        for split, found in index["splits"].items():
            joined = splits.setdefault(split, {"videos": 0, "expected": 0, "shards": {}})
            joined["videos"] += found["videos"]
            joined["expected"] += found["expected"]
            joined["shards"] |= found["shards"]
            counts = (joined.get("clips_of_class"), found.get("clips_of_class"))
            joined["clips_of_class"] = _add(*counts) if len(joined) > 3 else counts[1]
    columns = sorted({column for index in indexes for column in index["columns"]})
    return first | {"splits": splits, "columns": columns}
