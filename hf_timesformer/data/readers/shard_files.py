"""Where the tar shards of a data set lie: in a folder, by pattern, on disk or remote, and what their
manifest says.
"""

import os
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import fsspec
from datasets.utils.file_utils import xopen

from ..records import SPLIT_ALIASES, canonical_split, parse_json


LABELS_FILE = "labels.json"  # class names in order, beside the shards
# what `prepare_dataset` packed: each split's shards and their numbers of videos
INDEX_FILE = "shards.json"
PLAN_FILE = "packing_plan.json"  # written when packing begins


def find_shards(location: str, split: str) -> list[str]:
    """Paths or URLs of the shards of one split, in order.

    `location` is a folder (local or `hf://`) with `<split>*.tar` or `<split>/*.tar`; a folder URL
    with our `shards.json`; or shards by pattern: `{split}` stands for the split, `{000..123}` and
    `{a,b}` for a range and a choice, `*` for anything (not over http, which cannot list). Raises
    ValueError where nothing is found.
    """
    split = canonical_split(split)
    if not re.search(r"\.(tar|tgz|tar\.gz)$", location):
        return _shards_in_folder(location.rstrip("/"), split)
    patterns = expand_braces(location.replace("{split}", split))
    shards = [
        shard for pattern in patterns for shard in (_glob(pattern) if "*" in pattern else [pattern])
    ]
    absent = [shard for shard in shards if "://" not in shard and not os.path.isfile(shard)]
    if absent or not shards:
        raise ValueError(
            f"no shard at {absent[0] if absent else location} ({len(absent)} of {len(shards)} are absent)"
        )
    return shards


def expand_braces(pattern: str) -> list[str]:
    """`a-{00..02}.{x,y}` -> all its strings, in order; numbers keep their leading zeros."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)  # text, choice, text, choice, ..., text
    choices = [
        [piece] if place % 2 == 0 else _brace_choices(piece) for place, piece in enumerate(pieces)
    ]
    return ["".join(parts) for parts in product(*choices)]


def _brace_choices(body: str) -> list[str]:
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if bounds is None:
        return body.split(",")
    first, last = bounds.groups()
    if int(last) < int(first):
        raise ValueError(f"the range {{{body}}} is empty: write the smaller number first")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _glob(pattern: str) -> list[str]:
    if pattern.startswith(("http://", "https://")):
        raise ValueError(
            f"{pattern}: http cannot list files; name the shards as {{000000..000123}}"
        )
    filesystem, path = fsspec.url_to_fs(os.path.expanduser(pattern))
    return sorted(_with_protocol(pattern, found) for found in filesystem.glob(path))


def _with_protocol(pattern: str, path: str) -> str:
    return f"{pattern.partition('://')[0]}://{path}" if "://" in pattern else path


def _shards_in_folder(folder: str, split: str) -> list[str]:
    index = read_index(folder)
    if index is not None:
        if split not in index["splits"]:
            raise ValueError(
                f"{folder}/{INDEX_FILE} has no {split} split; it has: {', '.join(index['splits'])}"
            )
        names = index["splits"][split]["shards"]
        if not names:
            raise ValueError(f"{folder}/{INDEX_FILE} lists no shard of the {split} split")
        return [f"{folder}/{name}" for name in names]
    if folder.startswith(("http://", "https://")):
        raise ValueError(
            f"{folder} has no {INDEX_FILE} and http cannot list files; name the shards as {{000..123}}.tar"
        )
    if "://" not in folder and not Path(folder).expanduser().is_dir():
        raise ValueError(f"data folder {folder!r} does not exist or is no folder")
    if "://" not in folder and any(Path(folder).expanduser().glob(f"{Path(PLAN_FILE).stem}*.json")):
        raise ValueError(
            f"packing into {folder} is not finished: run prepare again, it goes on there (all its parts)"
        )
    found = {name: _split_shards(folder, name) for name in SPLIT_ALIASES}
    if not found[split]:
        others = (
            ", ".join(name for name, shards in found.items() if shards) or "no shards of any split"
        )
        raise ValueError(f"{folder} has no shards {split}*.tar or {split}/*.tar; found: {others}")
    return found[split]


def _split_shards(folder: str, split: str) -> list[str]:
    for alias in SPLIT_ALIASES[split]:
        shards = _glob(f"{folder}/{alias}[-_.0-9]*.tar") or _glob(f"{folder}/{alias}/*.tar")
        if shards:
            return shards
    return []


def webdataset_splits(location: str) -> list[str]:
    """Splits that a folder of shards has; for a pattern with `{split}` those that match; else
    `train`.
    """
    index = None if location.endswith(".tar") else read_index(location.rstrip("/"))
    if index is not None:
        return list(index["splits"])
    if location.endswith(".tar"):
        return [split for split in SPLIT_ALIASES if "{split}" in location] or ["train"]
    return [split for split in SPLIT_ALIASES if _split_shards(location.rstrip("/"), split)]


def read_index(folder: str) -> dict[str, Any] | None:
    """The content of `shards.json` in a local or remote folder, or None where there is none."""
    text = read_text(f"{folder}/{INDEX_FILE}")
    return None if text is None else parse_json(text, f"{folder}/{INDEX_FILE}", dict)


def read_text(path: str) -> str | None:
    """The text of a local or remote file, or None where there is none."""
    try:
        with xopen(os.path.expanduser(path), "rb") as file:
            return file.read().decode("utf-8")
    except FileNotFoundError:
        return None


def shards_of_all_splits(location: str) -> Iterator[str]:
    """Shards of every split that there is at a location."""
    for split in SPLIT_ALIASES:
        try:
            yield from find_shards(location, split)
        except ValueError:  # no shards of that split
            continue
