"""Tar shards of `<key>.<video suffix>` + `<key>.cls` or `<key>.json`, on disk or remote, read as a
stream.
"""

import logging
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, cast

import aiohttp
from datasets import Dataset, Features, IterableDataset
from datasets.utils.file_utils import xopen

from ..labels import parse_class_names
from ..media_files import is_video
from ..records import parse_json, video_features
from ..targets import LABEL_COLUMNS, MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .shard_files import LABELS_FILE, read_text, shards_of_all_splits


logger = logging.getLogger(__name__)

LABEL_SUFFIXES = ("cls", "json")  # what tells the label of a video of the same name
READ_ERRORS = (OSError, EOFError, tarfile.TarError, zlib.error, aiohttp.ClientError)


def find_problem_type(shards: Sequence[str]) -> str:
    """What the first sample of shards without a manifest is labelled with: one class, several
    (`labels` in its `.json`), or a number (`target`).
    """
    for key, files in read_shard(shards[0]):
        if "cls" in files or "json" not in files:
            continue
        description = _description_of(files, f"{key} of {shards[0]}")
        for problem_type, column in LABEL_COLUMNS.items():
            if column in description:
                return problem_type
        break
    return SINGLE_LABEL


def find_class_names(
    shards: Sequence[str], location: str, problem_type: str = SINGLE_LABEL
) -> list[str]:
    """Class names from `labels.json` beside the shards or in the folder above, else from the
    shards' own labels.

    Without that file the names are the texts of all `.cls` (and `label` or `labels` of all `.json`)
    in the shards of every split at `location`, sorted; of a regression `target`.

    Raises:
        ValueError: these are numbers, or the shards are not on disk.
    """
    folder = shards[0].rpartition("/")[0] or "."
    for place in (folder, folder.rpartition("/")[0] or "."):
        text = read_text(f"{place}/{LABELS_FILE}")
        if text is not None:
            return parse_class_names(text, f"{place}/{LABELS_FILE}")
    if problem_type == REGRESSION:
        return [LABEL_COLUMNS[REGRESSION]]
    cure = f"write the class names there, in order, as a JSON list in {LABELS_FILE}"
    if "://" in shards[0]:
        raise ValueError(
            f"no {LABELS_FILE} in {folder}, and shards that are not on disk are not read for it: {cure}"
        )
    # so that labels of all splits agree
    everywhere = dict.fromkeys([*shards, *shards_of_all_splits(location)])
    names = {label for shard in everywhere for label in _labels_in(shard)}
    numbers = [name for name in names if isinstance(name, int) or name.isdigit()]
    if numbers or not names:
        found = (
            f"the shards hold numbers, such as {numbers[0]}"
            if numbers
            else "the shards hold no labels either"
        )
        raise ValueError(f"no {LABELS_FILE} in {folder}, and {found}: {cure}")
    logger.warning(
        "no %s in %s: the %d classes are named by the labels of %d shards",
        LABELS_FILE,
        folder,
        len(names),
        len(everywhere),
    )
    return sorted(cast("set[str]", names))  # a number has been refused


def _labels_in(shard: str) -> Iterator[str | int]:
    """The label of each video of a local shard; what is no label is skipped, not read."""
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                suffix = member.name.rpartition(".")[2].lower()
                if not member.isfile() or suffix not in LABEL_SUFFIXES:
                    continue
                content = _content(tar, member)
                where = f"{member.name} of {shard}"
                label = _label_of({suffix: content}, where)
                if label is not None:
                    yield label
                if suffix == "json":
                    yield from _description_of({suffix: content}, where).get("labels", ())
    except READ_ERRORS as error:
        raise ValueError(
            f"cannot read shard {shard} to its end ({error}): copy or pack it again"
        ) from error


def stream_shards(
    shards: list[str],
    class_names: list[str],
    counts: Mapping[str, int] | None = None,
    *,
    problem_type: str = SINGLE_LABEL,
    columns: Sequence[str] = (),
) -> IterableDataset:
    """Videos of the shards as an `IterableDataset` with `num_shards == len(shards)`; `video` holds
    the file's bytes.

    The order is that of the shards and, in them, of the files; `state_dict` and `load_state_dict`
    resume it.

    Args:
        shards: paths or addresses.
        class_names: in order.
        counts: shard name -> videos; lets a shard that ends too early be noticed even where it is
            cut between files.
        problem_type: what a `.json` tells: `label` (or a `.cls` does), `labels`, or `target`, as
            `targets` has it.
        columns: further columns of `records.OPTIONAL_COLUMNS` that the `.json` of each video tells.
    """
    index = {name: label for label, name in enumerate(class_names)}
    generate = partial(
        _generate,
        index=index,
        counts=dict(counts or {}),
        problem_type=problem_type,
        columns=list(columns),
    )
    features = video_features(
        class_names, video_type="binary", problem_type=problem_type, optional=columns
    )
    return IterableDataset.from_generator(
        generate, features=features, gen_kwargs={"shards": list(shards)}
    )


def _generate(
    shards: list[str],
    index: dict[str, int],
    counts: dict[str, int],
    problem_type: str,
    columns: list[str],
    with_videos: bool = True,
) -> Iterator[dict[str, Any]]:
    for shard in shards:
        name = PurePosixPath(shard).name
        number = 0
        for key, files in read_shard(shard, with_videos=with_videos):
            samples = split_sample(key, files, shard)
            if not samples:
                logger.warning("%s: sample %r holds no video (%s)", shard, key, ", ".join(files))
            for sample in samples:
                number += 1
                yield _record(shard, sample, index, problem_type, columns)
        if number != counts.get(name, number):
            raise ValueError(
                f"shard {shard} holds {number} videos, its manifest says {counts[name]}: copy it again"
            )


def describe_clips(
    shards: Sequence[str],
    class_names: list[str],
    *,
    problem_type: str = SINGLE_LABEL,
    columns: Sequence[str] = (),
) -> Dataset:
    """The label, and the `weight` where it is one of `columns`, of each clip, in the order of the
    shards and of the files in them. No video is read.

    Raises:
        ValueError: a shard is not on disk, where that would mean to fetch all of it, or it cannot
            be read.
    """
    remote = [shard for shard in shards if "://" in shard]
    if remote:
        raise ValueError(
            f"the labels of all clips are needed beforehand, and {remote[0]} is not on disk: copy the shards there"
        )
    weight = [name for name in columns if name == "weight"]
    features = video_features(class_names, problem_type=problem_type, optional=weight)
    kept = [LABEL_COLUMNS[problem_type], *weight]
    index = {name: label for label, name in enumerate(class_names)}
    records = _generate(list(shards), index, {}, problem_type, weight, with_videos=False)
    rows = [{name: record[name] for name in kept} for record in records]
    return Dataset.from_list(rows, Features({name: features[name] for name in kept}))


def read_shard(shard: str, *, with_videos: bool = True) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples of a tar file in order: the key and `{suffix: content}` of the neighbouring files
    that share it. Without videos (of a shard on disk) these are passed over, and empty.

    Raises ValueError that names the shard where it is absent, cut off or no tar file.
    """
    key = ""
    files: dict[str, bytes] = {}
    mode: Any = "r|*" if with_videos else "r:*"  # forward only, or with jumps over the videos
    try:
        with xopen(shard, "rb") as raw, tarfile.open(fileobj=raw, mode=mode) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                stem, _, suffix = path.name.partition(".")
                if not member.isfile() or not stem or not suffix:
                    continue
                member_key = str(path.parent / stem)
                if member_key != key and files:
                    yield key, files
                    files = {}
                key = member_key
                is_read = with_videos or not is_video(f"video.{suffix}")
                files[suffix.lower()] = _content(tar, member) if is_read else b""
    except READ_ERRORS as error:
        raise ValueError(
            f"cannot read shard {shard} to its end ({error}): copy or pack it again"
        ) from error
    if files:
        yield key, files


@dataclass(frozen=True)
class Sample:
    """One video of a shard, what it is called there, and its `cls` and `json` where it has them."""

    key: str
    video: bytes
    described_by: dict[str, bytes]


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """What a file of a tar holds."""
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name} is no file")
    return file.read()


def split_sample(key: str, files: dict[str, bytes], shard: str) -> list[Sample]:
    """The videos among neighbouring files that share the name before the first dot, each with its
    own label.

    A key ends at its first dot, but names of clips have dots, too. So where several videos share a
    key, each is called by its name up to the last dot, and its label is the file of that name:

        v_1.5.mp4 v_1.5.cls v_1.6.mp4 v_1.6.cls  -> v_1.5, v_1.6   (key `v_1`, two videos)
        4.seg.mp4 4.cls                          -> 4              (key `4`, one video)

    Raises ValueError where one of several videos has no label of its own.
    """
    videos = [suffix for suffix in files if is_video(f"video.{suffix}")]
    samples = []
    for video in videos:
        stem = video.rpartition(".")[0]  # what lies between the first and the last dot
        own = (
            {kind: files[f"{stem}.{kind}"] for kind in LABEL_SUFFIXES if f"{stem}.{kind}" in files}
            if stem
            else {}
        )
        shared = {kind: files[kind] for kind in LABEL_SUFFIXES if kind in files}
        if len(videos) > 1 and not (own if stem else shared):
            raise ValueError(
                f"sample {key!r} of {shard} holds {len(videos)} videos ({', '.join(videos)}), and {key}.{video} has "
                f"no label of its own: give each video a .cls or .json of the same name, next to it in the shard"
            )
        samples.append(Sample(f"{key}.{stem}" if own else key, files[video], own or shared))
    return samples


def _record(
    shard: str, sample: Sample, index: dict[str, int], problem_type: str, columns: list[str]
) -> dict[str, Any]:
    name = f"{sample.key} of {shard}"
    description = _description_of(sample.described_by, name)
    default_id = f"{PurePosixPath(shard).name.partition('.')[0]}/{sample.key}"
    column = LABEL_COLUMNS[problem_type]
    label: int | list[int] | float
    if problem_type == SINGLE_LABEL:
        label = _class_index(name, _label_of(sample.described_by, name), index)
    elif column not in description:
        raise ValueError(
            f"sample {name} has no {column!r} in its .json, as all of this data set have"
        )
    elif problem_type == MULTI_LABEL:
        label = [_class_index(name, one, index) for one in description[column]]
    else:
        label = float(description[column])
    record = {
        "video_id": str(description.get("video_id", default_id)),
        "video": sample.video,
        column: label,
    }
    return record | {other: description.get(other) for other in columns}


def _description_of(files: dict[str, bytes], name: str) -> dict[str, Any]:
    return (
        parse_json(files["json"].decode("utf-8"), f"the .json of {name}", dict)
        if "json" in files
        else {}
    )


def _label_of(files: dict[str, bytes], name: str) -> str | int | None:
    """The label as it is written, from `.cls`, else from `label` in `.json`."""
    if "cls" in files:
        return files["cls"].decode("utf-8").strip()
    return _description_of(files, name).get("label")


def _class_index(name: str, label: str | int | None, index: dict[str, int]) -> int:
    """A class index from a class name, or from a number (a name that happens to be digits wins)."""
    if label in index:
        return index[label]
    if isinstance(label, int) or (isinstance(label, str) and label.isdigit()):
        if 0 <= int(label) < len(index):
            return int(label)
        raise ValueError(
            f"sample {name} has label {label}, but {LABELS_FILE} names only {len(index)} classes"
        )
    if label is None:
        raise ValueError(
            f"sample {name} has label None: it needs a .cls, or 'label' in a .json, next to the video in the shard "
            "(tar --sort=name puts them there)"
        )
    raise ValueError(
        f"sample {name} has label {label!r} (from .cls, or 'label' in .json), which {LABELS_FILE} lacks"
    )
