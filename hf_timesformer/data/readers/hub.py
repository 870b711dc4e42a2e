"""Any data set that `datasets` opens, from the Hub or a local folder: a column of videos, a column
of labels.

Nothing is decoded by `datasets`: videos are read as they lie there, by path or as bytes. Map-style
a data set is opened whole, as `load_dataset` does; streamed it is read shard by shard, as tar
shards are, through the same order.
"""

import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import (
    ClassLabel,
    Dataset,
    Features,
    IterableDataset,
    List,
    Value,
    Video,
    load_dataset_builder,
)
from datasets.utils.file_utils import xopen

from ..found_videos import FoundVideos
from ..labels import check_numbers
from ..record_video import video_of
from ..records import OPTIONAL_COLUMNS, video_features
from ..targets import LABEL_COLUMNS, REGRESSION
from .hub_columns import Columns, choose_columns, label_of
from .hub_opening import hub_splits, is_saved, open_split, own_name, with_clear_errors


logger = logging.getLogger(__name__)

HUB_OPTIONS = ("dataset_config", "video_column", "label_column", "streaming")


def find_hub_videos(
    data_dir: str,
    split: str,
    *,
    dataset_config: str | None = None,
    video_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
) -> FoundVideos:
    """One split of a data set that `datasets` opens, with the columns of `records.video_features`.

    Args:
        data_dir: `user/name` on the Hub, a local folder that `load_dataset` opens (videos in class folders, Parquet,
            ...), or one that `save_to_disk` wrote.
        split: the data set's own name of it, or train, validation or test for one with another usual name.
        dataset_config: which configuration, where there are several.
        video_column: what has the videos: a `Video`, bytes, or paths. If None, the only column that can be meant.
        label_column: what has the labels: a `ClassLabel`, names, numbers, a list of these (several classes), or
            floats (a regression). If None, the only `ClassLabel`, or a column of a usual name.
        streaming: read it as a stream of shards.

    Raises:
        ValueError: there is no such data set, split or column, or a label is missing.
    """
    opened = open_split(data_dir, dataset_config, split, streaming)
    columns = choose_columns(opened.features or Features(), video_column, label_column)
    opened = _undecoded(opened, columns.video)
    names = _class_names(
        data_dir, dataset_config, opened.features[columns.label], columns, streaming
    )
    if streaming:
        return _streamed(data_dir, dataset_config, split, opened, columns, names)
    videos = _as_records(opened, data_dir, split, columns, names)
    return FoundVideos(videos, names, len(videos), len(videos), problem_type=columns.problem_type)


def _undecoded(opened: Dataset | IterableDataset, column: str) -> Dataset | IterableDataset:
    """The data set with its videos as they lie there, by path or as bytes."""
    if not isinstance(opened.features[column], Video):
        return opened
    if isinstance(opened, IterableDataset):
        # A stream from the Hub decodes ahead in threads, in a step of its own, from datasets 5 on:
        # another type of the column alone would not keep it from that.
        opened = opened.decode(False)
    return opened.cast_column(column, Video(decode=False))


def _class_names(
    data_dir: str, config: str | None, feature: Any, columns: Columns, streaming: bool
) -> list[str]:
    """Names of the classes; where the data set has none, from the labels of all its splits, so that
    these agree.
    """
    if columns.problem_type == REGRESSION:
        return [columns.label]
    inner = feature.feature if isinstance(feature, List) else feature
    if isinstance(inner, ClassLabel):
        return list(inner.names)
    found: set[Any] = set()
    for split in hub_splits(data_dir, config):
        opened = open_split(data_dir, config, split, streaming)
        if columns.label not in (opened.features or {}):
            continue  # as a test split without labels
        for row in opened.select_columns([columns.label]):
            label = row[columns.label]
            found.update(label if isinstance(label, list) else [label])
    found.discard(None)
    if inner.dtype == "bool" or inner.dtype.endswith("string"):
        return sorted(map(str, found))
    check_numbers(sorted(found), f"column {columns.label!r} of {data_dir}")
    return [f"class {number}" for number in sorted(found)]


def _as_records(
    opened: Dataset, data_dir: str, split: str, columns: Columns, names: list[str]
) -> Dataset:
    """The data set with our columns. A video stays as its row has it: `clips` reads it when its
    turn comes.
    """
    number_of = {name: number for number, name in enumerate(names)}
    labels = [
        label_of(value, number_of, columns, f"row {row} of the {split} split of {data_dir}")
        for row, value in enumerate(opened[columns.label][:])
    ]
    kinds = video_features(names, problem_type=columns.problem_type, optional=columns.optional)
    label_column = LABEL_COLUMNS[columns.problem_type]
    ids = _video_ids(opened, columns.video, split, data_dir)
    videos = opened[columns.video][:] if _holds_paths(opened.features[columns.video]) else None
    opened = opened.select_columns([columns.video, *columns.optional])
    opened = opened.rename_column(columns.video, "video") if columns.video != "video" else opened
    if videos is not None:
        root = _root(data_dir)
        paths = [path if "://" in path else os.path.join(root, path) for path in videos]
        opened = opened.remove_columns("video").add_column("video", paths, feature=Value("string"))
    for name in columns.optional:
        opened = opened.cast_column(name, OPTIONAL_COLUMNS[name])
    added = Dataset.from_dict(
        {"video_id": ids, label_column: labels},
        features=Features({n: kinds[n] for n in ("video_id", label_column)}),
    )
    for name in added.column_names:
        opened = opened.add_column(name, added[name][:], feature=kinds[name])
    return opened


def _holds_paths(feature: Any) -> bool:
    return feature in (Value("string"), Value("large_string"))


def _root(data_dir: str) -> str:
    """The folder that paths are from; "" for a data set of the Hub, whose paths are whole."""
    return os.path.expanduser(data_dir) if Path(data_dir).expanduser().is_dir() else ""


def _video_ids(opened: Dataset, column: str, split: str, data_dir: str) -> list[str]:
    """Paths from the data folder where the rows have different ones, else the numbers of the rows."""
    numbers = [f"{split}/{row:07d}" for row in range(len(opened))]
    feature = opened.features[column]
    if not isinstance(feature, Video) and feature.dtype.endswith("binary"):
        return numbers
    # memory-mapped: no video is read
    found = opened.select_columns([column]).with_format("arrow")[:][column]
    paths = (pc.struct_field(found, "path") if isinstance(feature, Video) else found).to_pylist()
    if None in paths or len(set(paths)) < len(paths):
        return numbers
    root = os.path.abspath(os.path.expanduser(data_dir)) + os.sep
    return [path.removeprefix(root) for path in paths]


def _streamed(
    data_dir: str,
    config: str | None,
    split: str,
    opened: IterableDataset,
    columns: Columns,
    names: list[str],
) -> FoundVideos:
    sizes = _shard_sizes(data_dir, config, split, opened, columns)
    root = _root(data_dir)
    generate = partial(
        _generate, opened=opened, split=split, columns=columns, names=names, root=root
    )
    features = video_features(
        names, video_type="binary", problem_type=columns.problem_type, optional=columns.optional
    )
    shards = list(range(opened.num_shards))
    videos = IterableDataset.from_generator(
        generate, features=features, gen_kwargs={"shards": shards}
    )
    where = [f"{data_dir} ({split}, shard {shard})" for shard in shards]
    return FoundVideos(
        videos,
        names,
        sum(sizes),
        sum(sizes),
        where,
        sizes,
        columns.problem_type,
        describe=partial(_describe, opened, split, columns, names),
    )


def _describe(opened: IterableDataset, split: str, columns: Columns, names: list[str]) -> Dataset:
    """The label, and the `weight` where there is one, of each row, shard by shard."""
    number_of = {name: number for number, name in enumerate(names)}
    weight = [name for name in columns.optional if name == "weight"]
    features = video_features(names, problem_type=columns.problem_type, optional=weight)
    column = LABEL_COLUMNS[columns.problem_type]
    rows = []
    for number, row in enumerate(opened.select_columns([columns.label, *weight])):
        label = label_of(row[columns.label], number_of, columns, f"row {number} of {split}")
        rows.append({column: label} | {name: row[name] for name in weight})
    return Dataset.from_list(rows, Features({name: features[name] for name in (column, *weight)}))


def _shard_sizes(
    data_dir: str, config: str | None, split: str, opened: IterableDataset, columns: Columns
) -> list[int]:
    """Rows in each shard: of Parquet files as their footers say, else counted by reading the labels
    once.
    """
    if not is_saved(data_dir):
        builder = with_clear_errors(load_dataset_builder, data_dir, config)
        files_of = builder.config.data_files or {}
        files = files_of[own_name(split, list(files_of), data_dir)] if files_of else []
        is_parquet = files and all(str(file).endswith(".parquet") for file in files)
        if is_parquet and len(files) == opened.num_shards:
            return [_rows_of_parquet(str(file)) for file in files]
    logger.info(
        "%s: the rows of %d shards are counted by reading their labels", data_dir, opened.num_shards
    )
    labels = opened.select_columns([columns.label])
    shards = (
        labels.shard(opened.num_shards, index, contiguous=True)
        for index in range(opened.num_shards)
    )
    return [sum(1 for _ in shard) for shard in shards]


def _rows_of_parquet(file: str) -> int:
    with xopen(file, "rb") as content:
        return pq.read_metadata(content).num_rows


def _generate(
    shards: list[int],
    opened: IterableDataset,
    split: str,
    columns: Columns,
    names: list[str],
    root: str,
) -> Iterator[dict[str, Any]]:
    number_of = {name: number for number, name in enumerate(names)}
    for shard in shards:
        rows = opened.shard(opened.num_shards, shard, contiguous=True)
        # `iter`, since a plain loop in a DataLoader worker would split the shard between workers
        # once more.
        for number, batch in enumerate(rows.iter(batch_size=1)):
            row = {name: values[0] for name, values in batch.items()}
            video = video_of(row[columns.video])
            video = os.path.join(root, video) if isinstance(video, str) else video
            video_id = f"{split}-{shard:05d}/{number:07d}"
            record = {
                "video_id": video_id,
                "video": video if isinstance(video, bytes) else Path(video).read_bytes(),
            }
            where = f"row {number} of shard {shard} of the {split} split"
            record[LABEL_COLUMNS[columns.problem_type]] = label_of(
                row[columns.label], number_of, columns, where
            )
            yield record | {name: row[name] for name in columns.optional}
