"""Video data sets in their distributors' own layouts, as `datasets` objects: records first, decoding last.

Every data set has the columns `video_id` (str, unique), `video` (path, or bytes from tar shards; never decoded by
`datasets`) and `label` (`ClassLabel` with names).
"""

from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from .data_folder import find_split_folders, read_folder
from .data_records import VideoRecords, report_missing


RECORD_READERS = {"folder": read_folder}
DATASETS = (*RECORD_READERS,)


def list_videos(dataset: str, data_dir: str | Path, split: str, **options: Any) -> VideoRecords:
    """Videos, labels, class names and missing clips of one split of a data set on local disk; nothing is opened.

    Raises ValueError for an unknown data set or split, an empty folder, or annotations that cannot be read.
    """
    if dataset not in RECORD_READERS:
        raise ValueError(f"unknown dataset {dataset!r}: choose one of {', '.join(DATASETS)}")
    return RECORD_READERS[dataset](Path(data_dir).expanduser(), split, **options)


def load_videos(
    dataset: str,
    data_dir: str | Path,
    split: str,
    *,
    missing_file: str | Path | None = None,
    **options: Any,
) -> Dataset | IterableDataset:
    """One split of a data set with the columns `video_id`, `video` and `label`.

    `dataset` is one of `DATASETS`. Listed clips that are not on disk are left out, counted in the log, and named in
    `missing_file` where given. Raises ValueError as `list_videos` does.
    """
    records = list_videos(dataset, data_dir, split, **options)
    report_missing(records, missing_file)
    return records.to_dataset()


def available_splits(dataset: str, data_dir: str | Path) -> list[str]:
    """Names of the splits that `data_dir` has, of `train`, `validation` and `test`."""
    if dataset == "folder":
        return list(find_split_folders(Path(data_dir).expanduser()))
    raise ValueError(f"unknown dataset {dataset!r}: choose one of {', '.join(DATASETS)}")
