"""Video data sets in their distributors' own layouts, as `datasets` objects: records first, decoding last.

Every data set has the columns `video_id` (str, unique), `video` (path, or bytes from tar shards; never decoded by
`datasets`) and `label` (`ClassLabel` with names).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from .data_folder import find_split_folders, read_folder
from .data_records import report_missing


RECORD_READERS = {"folder": read_folder}
DATASETS = (*RECORD_READERS,)


@dataclass
class FoundVideos:
    """One split: its videos as a `datasets` object, its class names, and how many videos there are.

    `num_expected` counts what the annotations list, `num_found` what is on disk; both are None for tar shards that no
    manifest describes.
    """

    videos: Dataset | IterableDataset
    class_names: list[str]
    num_expected: int | None
    num_found: int | None


def find_videos(
    dataset: str,
    data_dir: str | Path,
    split: str,
    *,
    missing_file: str | Path | None = None,
    **options: Any,
) -> FoundVideos:
    """One split of a data set with the columns `video_id`, `video` and `label`, and its counts.

    `dataset` is one of `DATASETS`. Listed clips that are not on disk are left out, counted in the log, and named in
    `missing_file` where given. Raises ValueError for an unknown data set or split, a folder without clips, or
    annotations that cannot be read.
    """
    if dataset not in DATASETS:
        raise ValueError(f"unknown dataset {dataset!r}: choose one of {', '.join(DATASETS)}")
    records = RECORD_READERS[dataset](Path(data_dir).expanduser(), split, **options)
    report_missing(records, missing_file)
    return FoundVideos(records.to_dataset(), records.class_names, records.num_expected, len(records.videos))


def load_videos(dataset: str, data_dir: str | Path, split: str, **options: Any) -> Dataset | IterableDataset:
    """The data set of `find_videos` alone; same arguments, same errors."""
    return find_videos(dataset, data_dir, split, **options).videos


def available_splits(dataset: str, data_dir: str | Path) -> list[str]:
    """Names of the splits that `data_dir` has, of `train`, `validation` and `test`."""
    if dataset == "folder":
        return list(find_split_folders(Path(data_dir).expanduser()))
    raise ValueError(f"unknown dataset {dataset!r}: choose one of {', '.join(DATASETS)}")
