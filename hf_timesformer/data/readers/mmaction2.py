"""Lists in the format of mmaction2: of videos or of folders of frames, with one class or several."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..clip_index import ClipIndex
from ..media_files import is_video
from ..records import SPLIT_ALIASES, VideoRecords, canonical_split
from ..targets import MULTI_LABEL, SINGLE_LABEL
from .class_numbers import names_of_numbers


logger = logging.getLogger(__name__)

NAME_FILES = ("label_map.txt", "labels.txt", "labels.json", "classes.txt")


@dataclass(frozen=True)
class Line:
    """One line of a list: the path as it stands there, the frames that it tells of a folder, the
    classes.
    """

    name: str
    labels: list[int]
    num_frames: int | None = None


def read_mmaction2(
    data_dir: Path, split: str, *, fold: int = 1, extensions: Sequence[str] = ()
) -> VideoRecords:
    """One split of lists as mmaction2's tools write them.

        some/path/000.mp4 1             a video and its class         (..._list_videos.txt)
        some/directory-1 163 1          a folder of frames, how many there are, its class   (..._list_rawframes.txt)
        some/path/000.mp4 1 3 5         several classes (then all lists are multi-label)

    Lists are `train.txt`, `val.txt` or longer names such as `kinetics400_train_list_videos.txt` and
    `ucf101_val_split_1_rawframes.txt`, in `data_dir` or a folder in it. Paths are from `data_dir`
    or a folder in it (`videos`, `rawframes`, ...). Names of the classes come from `label_map.txt`
    or `labels.json`, else from the folders.

    Args:
        data_dir: the folder of lists and videos.
        split: train, validation or test.
        fold: which of the lists with `split_1`, `split_2`, ... in their names.
        extensions: suffixes of clips beyond the usual ones.

    Raises:
        ValueError: there is no list of that split, or several, or a line that cannot be read.
    """
    split = canonical_split(split)
    files = _lists_by_split(data_dir, fold)
    if split not in files:
        found = ", ".join(str(path) for path in files.values()) or "no list of any split"
        raise ValueError(
            f"{data_dir} has no list of its {split} split, such as {split}.txt; found: {found}"
        )
    lists = {name: list(_lines(path)) for name, path in files.items()}
    everything = [
        (line.name, label) for lines in lists.values() for line in lines for label in line.labels
    ]
    class_names = names_of_numbers(data_dir, everything, NAME_FILES)
    is_multi_label = any(len(line.labels) > 1 for lines in lists.values() for line in lines)
    if is_multi_label:
        logger.info(
            "%s: some clips have several classes, so all lists are read as multi-label", data_dir
        )
    index = ClipIndex(data_dir, extensions)
    records = VideoRecords(class_names, MULTI_LABEL if is_multi_label else SINGLE_LABEL)
    differing = []
    for line in lists[split]:
        label = sorted(set(line.labels)) if is_multi_label else line.labels[0]
        path = index.locate(line.name)
        records.add_listed(line.name, path, label)
        pictures = index.media.pictures
        if path is not None and path in pictures and pictures[path] != line.num_frames:
            differing.append(
                f"{line.name} ({pictures[path]} pictures, {line.num_frames} on the list)"
            )
    if differing:
        logger.warning(
            "%d folders do not hold as many frames as listed, such as %s",
            len(differing),
            differing[0],
        )
    index.report(data_dir)
    return records


def mmaction2_splits(data_dir: Path) -> list[str]:
    """Splits that have a list, of whatever fold."""
    names = [path.name for path in _all_lists(data_dir)]
    return [split for split in SPLIT_ALIASES if any(_split_of(name) == split for name in names)]


def _all_lists(data_dir: Path) -> list[Path]:
    if not data_dir.is_dir():
        raise ValueError(f"data folder {str(data_dir)!r} does not exist or is no folder")
    paths = [*sorted(data_dir.glob("*.txt")), *sorted(data_dir.glob("*/*.txt"))]
    return [path for path in paths if _split_of(path.name)]


def _split_of(name: str) -> str | None:
    """`kinetics400_val_list_videos.txt` -> `validation`; None for a file that names no split."""
    words = re.split(r"[_.\-]", name.lower())
    return next(
        (split for split, aliases in SPLIT_ALIASES.items() if set(aliases) & set(words)), None
    )


def _lists_by_split(data_dir: Path, fold: int) -> dict[str, Path]:
    """The list of each split. Of a list of videos and one of frames, the one of videos is taken,
    and said.
    """
    files: dict[str, Path] = {}
    for path in _all_lists(data_dir):
        split, of_fold = _split_of(path.name), re.search(r"split[_-]?(\d+)", path.name)
        assert split is not None  # `_all_lists` has no others
        if of_fold and int(of_fold[1]) != fold:
            continue
        other = files.get(split)
        if other is None:
            files[split] = path
        elif _lists_frames(path) != _lists_frames(other):
            files[split] = other if _lists_frames(path) else path
            logger.warning("%s and %s list the %s split: the videos are taken", other, path, split)
        else:
            raise ValueError(f"{other} and {path} both list the {split} split: keep one of them")
    return files


def _lists_frames(path: Path) -> bool:
    return "rawframes" in path.name or "videofolder" in path.name


def _lines(path: Path) -> Iterator[Line]:
    for number, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        match = re.fullmatch(r"\s*(\S.*?)((?:\s+\d+)+)\s*", text)
        if match is None and text.strip():
            raise ValueError(
                f"{path}, line {number}: expected a path and class numbers, got {text!r}"
            )
        if match is None:
            continue
        name, values = match[1], [int(value) for value in match[2].split()]
        if is_video(name):
            yield Line(name, values)
        elif len(values) > 1 and values[0] > 0:
            yield Line(name, values[1:], num_frames=values[0])
        else:
            raise ValueError(
                f"{path}, line {number}: a folder of frames needs their number and a class, as in '{name} 163 1', "
                f"got {text!r} (lists with offsets are not read: use --dataset csv, which has segments)"
            )
