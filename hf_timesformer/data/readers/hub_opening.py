"""Opening a data set of the Hub or of a local folder by `datasets`, with errors that say what there
is.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    get_dataset_split_names,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetNotFoundError

from ..records import SPLIT_ALIASES


def hub_splits(data_dir: str, dataset_config: str | None = None) -> list[str]:
    """Splits of the data set: `train`, `validation` or `test` for a usual name, any other as it is."""
    if is_saved(data_dir):
        saved = load_from_disk(data_dir)
        names = list(saved) if isinstance(saved, DatasetDict) else ["train"]
    else:
        names = with_clear_errors(get_dataset_split_names, data_dir, dataset_config)
    return [_canonical_or_same(name) for name in names]


def _canonical_or_same(name: str) -> str:
    return next(
        (split for split, aliases in SPLIT_ALIASES.items() if name.lower() in aliases), name
    )


def is_saved(data_dir: str) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any(
        Path(data_dir).expanduser().joinpath(name).is_file()
        for name in ("dataset_dict.json", "state.json")
    )


def with_clear_errors(function: Any, data_dir: str, config: str | None, **options: Any) -> Any:
    """`function(data_dir, config, **options)`; ValueError where there is no such data set."""
    if not Path(data_dir).expanduser().exists() and (
        data_dir.startswith(("/", ".", "~")) or data_dir.count("/") != 1
    ):
        raise ValueError(f"{data_dir} is neither a folder nor, as user/name, a data set of the Hub")
    place = os.path.expanduser(data_dir)
    try:
        return function(place, config, **options)
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError) as error:
        raise ValueError(f"`datasets` cannot open {data_dir}: {error}") from error


def open_split(
    data_dir: str, config: str | None, split: str, streaming: bool
) -> Dataset | IterableDataset:
    """One split of a data set, as a stream or map-style; ValueError where there is none."""
    if is_saved(data_dir):
        saved = load_from_disk(os.path.expanduser(data_dir))
        splits = saved if isinstance(saved, DatasetDict) else {"train": saved}
        chosen = splits[own_name(split, list(splits), data_dir)]
        return (
            chosen.to_iterable_dataset(num_shards=max(1, min(64, len(chosen))))
            if streaming
            else chosen
        )
    names = with_clear_errors(get_dataset_split_names, data_dir, config)
    name = own_name(split, names, data_dir)
    return with_clear_errors(load_dataset, data_dir, config, split=name, streaming=streaming)


def own_name(split: str, names: Sequence[str], data_dir: str) -> str:
    """What the data set calls the split. Raises ValueError that names those that it has."""
    if split in names:
        return split
    known = [name for name in names if _canonical_or_same(name) == _canonical_or_same(split)]
    if len(known) != 1:
        raise ValueError(f"{data_dir} has no {split} split; it has: {', '.join(names)}")
    return known[0]
