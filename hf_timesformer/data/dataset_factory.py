"""Video data sets in their distributors' own layouts, as `datasets` objects: records first,
decoding last.

Every data set has the columns `video_id` (str, unique), `video` (path, or bytes from tar shards;
never decoded by `datasets`) and `label` (`ClassLabel` with names).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, cast

from datasets import Dataset, IterableDataset

from .arguments import DATASETS
from .found_videos import FoundVideos
from .readers.diving48 import diving48_splits, read_diving48
from .readers.folder import find_split_folders, read_folder
from .readers.hmdb51 import hmdb51_splits, read_hmdb51
from .readers.hub import HUB_OPTIONS, find_hub_videos
from .readers.hub_opening import hub_splits
from .readers.kinetics import kinetics_files, read_kinetics
from .readers.mmaction2 import mmaction2_splits, read_mmaction2
from .readers.shard_files import find_shards, read_index, webdataset_splits
from .readers.ssv2 import read_ssv2, ssv2_splits
from .readers.table import read_table, table_splits
from .readers.ucf101 import read_ucf101, ucf101_splits
from .readers.webdataset import (
    describe_clips,
    find_class_names,
    find_problem_type,
    stream_shards,
)
from .records import VideoRecords, canonical_split, report_missing
from .targets import SINGLE_LABEL


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk: what reads one split, what finds the splits that are there,
    options of the reader.

    `read(data_dir, split, **options)` takes those options that stand in `options`, by keyword.
    """

    read: Callable[..., VideoRecords]
    find_splits: Callable[[Path], Iterable[str]]
    options: tuple[str, ...] = ("extensions",)


# A further data set is one line here, and its reader a file in `readers/`.
LAYOUTS = {
    "folder": Layout(read_folder, find_split_folders),
    "csv": Layout(read_table, table_splits, ("group_column",)),
    "kinetics": Layout(read_kinetics, kinetics_files),
    "ssv2": Layout(read_ssv2, ssv2_splits),
    "diving48": Layout(read_diving48, diving48_splits),
    "ucf101": Layout(read_ucf101, ucf101_splits, ("extensions", "fold")),
    "hmdb51": Layout(read_hmdb51, hmdb51_splits, ("extensions", "fold")),
    "mmaction2": Layout(read_mmaction2, mmaction2_splits, ("extensions", "fold")),
}


def find_videos(
    dataset: str,
    data_dir: str | Path,
    split: str,
    *,
    missing_file: str | Path | None = None,
    class_names: list[str] | None = None,
    **options: Any,
) -> FoundVideos:
    """One split of a data set with the columns `video_id`, `video` and `label`, and its counts.

    `dataset` is one of `DATASETS`. Listed clips that are not on disk are left out, counted in the
    log, and named in `missing_file` where given. `class_names` is for shards without a
    `labels.json`. `options` are those of the data set's reader; one that is None or empty is as
    good as not given. Raises ValueError for an unknown data set or split, an option that its reader
    does not have, a folder without clips, or annotations that cannot be read.
    """
    if dataset == "webdataset":
        refuse_unknown_options(dataset, options)
        return _find_shards(str(data_dir), split, class_names)
    if dataset == "hub":
        return find_hub_videos(str(data_dir), split, **refuse_unknown_options(dataset, options))
    records = read_records(dataset, data_dir, split, **options)
    report_missing(records, missing_file)
    return FoundVideos(
        records.to_dataset(),
        records.class_names,
        records.num_expected,
        len(records.videos),
        problem_type=records.problem_type,
    )


def read_records(dataset: str, data_dir: str | Path, split: str, **options: Any) -> VideoRecords:
    """The records of one split of a data set on disk, as `find_videos` takes them; same options,
    same errors.
    """
    layout = _layout(dataset)
    given = refuse_unknown_options(dataset, options)
    return layout.read(Path(data_dir).expanduser(), split, **given)


def refuse_unknown_options(dataset: str, options: dict[str, Any]) -> dict[str, Any]:
    """Those of `options` that are given; ValueError that names one which the data set's reader does
    not have.
    """
    given = {
        name: value for name, value in options.items() if value not in (None, [], (), False, "")
    }
    known = {name: layout.options for name, layout in LAYOUTS.items()} | {"hub": HUB_OPTIONS}
    for name in given:
        if name not in known.get(dataset, ()):
            having = [other for other in known if name in known[other]]
            where = f"only --dataset {', '.join(having)} has it" if having else "no data set has it"
            raise ValueError(f"--{name} does not go with --dataset {dataset}: {where}")
    return given


def _layout(dataset: str) -> Layout:
    if dataset not in LAYOUTS:
        raise ValueError(f"unknown dataset {dataset!r}: choose one of {', '.join(DATASETS)}")
    return LAYOUTS[dataset]


def _find_shards(location: str, split: str, class_names: list[str] | None) -> FoundVideos:
    shards = find_shards(location, split)
    counts, listed = {}, {}
    index = read_index(shards[0].rpartition("/")[0] or ".")
    if index is not None:
        listed = index["splits"].get(canonical_split(split), {})
        counts = listed.get("shards", {})
    known = [counts.get(PurePosixPath(shard).name) for shard in shards]
    sizes = None if None in known else cast("list[int]", known)
    num_found = None if sizes is None else sum(sizes)
    whole = len(known) == len(counts)  # a pattern may name only some of the shards
    num_expected = listed.get("expected") if whole else num_found
    if index is not None:
        problem_type = index.get("problem_type", SINGLE_LABEL)
    else:  # one that is not on disk is not opened for it
        problem_type = SINGLE_LABEL if "://" in shards[0] else find_problem_type(shards)
    class_names = class_names or find_class_names(shards, location, problem_type)
    columns = (index or {}).get("columns", ())
    options = {"problem_type": problem_type, "columns": columns}
    return FoundVideos(
        stream_shards(shards, class_names, counts, **options),
        class_names,
        num_expected,
        num_found,
        shards,
        sizes,
        problem_type,
        describe=partial(describe_clips, shards, class_names, **options),
        class_counts=listed.get("clips_of_class") if whole else None,
    )


def load_videos(
    dataset: str, data_dir: str | Path, split: str, **options: Any
) -> Dataset | IterableDataset:
    """The clips of one split as a `datasets` data set: one row a video, not yet decoded.

    Args:
        dataset: how the clips are laid out: "folder", "csv", "hub", "kinetics", ..., as
            `--dataset` of `timesformer train`.
        data_dir: the folder, the table, or the id on the Hub.
        split: "train", "validation" or "test".
        options: what the reader of that layout takes, such as `fold=2` for UCF101.

    Returns:
        A `Dataset`, or an `IterableDataset` for tar shards and what is streamed. It is the data
        set of `find_videos` alone.

    Raises:
        ValueError: there is no such layout, split or option, or the annotations make no sense.
        FileNotFoundError: a file that the layout needs is missing.
    """
    return find_videos(dataset, data_dir, split, **options).videos


def available_splits(dataset: str, data_dir: str | Path, **options: Any) -> list[str]:
    """Names of the splits that `data_dir` has, of `train`, `validation` and `test`; arguments as of
    `find_videos`.
    """
    if dataset == "webdataset":
        return webdataset_splits(str(data_dir))
    if dataset == "hub":
        return hub_splits(str(data_dir), options.get("dataset_config"))
    return list(_layout(dataset).find_splits(Path(data_dir).expanduser()))
