"""One data set prepared by several machines: each takes a part of the videos, the last one to
finish joins the lists.

Part 2 of 4 takes every fourth video, from the second on, so that each has clips of all classes. All
parts write into one folder, each under names of its own (`scan-2of4.jsonl`,
`train-2of4-000000.tar`), and nobody waits for another.
"""

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from ..readers.shard_files import INDEX_FILE
from ..records import VideoRecords
from .scan import MANIFEST, written_whole


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of`; the whole if there is only one."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Part":
        """`2/4` -> part 2 of 4. Raises ValueError for anything else."""
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(
                f"--shard {text!r} is no part of a whole: write 1/4 to 4/4 on four machines"
            )
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def of_process(cls) -> "Part":
        """The part of this process where a launcher such as torchrun started several, else the
        whole.
        """
        return cls(int(os.environ.get("RANK", 0)) + 1, int(os.environ.get("WORLD_SIZE", 1)))

    @property
    def tag(self) -> str:
        """What stands in the names of its files; "" for the whole."""
        return f"-{self.number}of{self.of}" if self.of > 1 else ""

    def name(self, file: str) -> str:
        """`scan.jsonl` -> `scan-2of4.jsonl`."""
        path = Path(file)
        return f"{path.stem}{self.tag}{path.suffix}"

    def take(self, records: VideoRecords) -> VideoRecords:
        """Its videos of a split, and its share of those that are not on disk."""
        share = slice(self.number - 1, None, self.of)
        lists = ("video_ids", "videos", "labels", "extras", "missing")
        return replace(records, **{name: getattr(records, name)[share] for name in lists})

    def all(self) -> "list[Part]":
        """This part and all others, in order."""
        return [Part(number, self.of) for number in range(1, self.of + 1)]


def refuse_other_division(output_dir: Path, part: Part) -> None:
    """Raise ValueError where the folder holds a manifest of the same data in another number of
    parts.
    """
    for path in sorted(output_dir.glob(f"{Path(MANIFEST).stem}-*of*.parquet")):
        others = re.search(r"-\d+of(\d+)$", path.stem)
        if others and int(others[1]) != part.of:
            raise ValueError(
                f"{output_dir} was prepared in {others[1]} parts, not {part.of}: keep to that or take another folder"
            )
    in_parts = any((output_dir / other.name(MANIFEST)).exists() for other in part.all())
    if part.of > 1 and (output_dir / MANIFEST).exists() and not in_parts:
        raise ValueError(
            f"{output_dir} was prepared as a whole, not in parts: choose another folder"
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
