"""HMDB51 as its authors lay it out."""

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from ..clip_index import ClipIndex
from ..records import VideoRecords, canonical_split


logger = logging.getLogger(__name__)

FOLDS = (1, 2, 3)
# what stands behind a video; 0: in neither split of this fold
MARKS = {"1": "train", "2": "test", "0": None}


def read_hmdb51(
    data_dir: Path, split: str, *, fold: int = 1, extensions: Sequence[str] = ()
) -> VideoRecords:
    """HMDB51: `<class>_test_split1.txt` for each class (to 3), and the videos in folders of their
    class.

    A list has a video and a mark on each line (`April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1`): 1
    for train, 2 for test, 0 for neither, which is most of the large classes. Classes are sorted by
    name.

    Args:
        data_dir: the folder; lists and videos may lie anywhere in it.
        split: train or test: the authors made no validation split.
        fold: which of the authors' three divisions into train and test; results are given as the
            mean of all three.
        extensions: suffixes of clips beyond the usual ones.

    Raises:
        ValueError: there are no lists of that fold, or one cannot be read.
    """
    split = canonical_split(split)
    if split == "validation":
        raise ValueError(
            "HMDB51 has no validation split: choose train or test (training holds some of train out)"
        )
    if fold not in FOLDS:
        raise ValueError(f"HMDB51 is divided in three ways: choose --fold 1, 2 or 3, not {fold}")
    lists = _find_lists(data_dir, fold)
    if not lists:
        raise ValueError(
            f"found no <class>_test_split{fold}.txt in {data_dir} or in a folder under it"
        )
    class_names = sorted(lists)
    index, records = ClipIndex(data_dir, extensions), VideoRecords(class_names)
    unused = 0
    for label, class_name in enumerate(class_names):
        for name, mark in _lines(lists[class_name]):
            unused += MARKS[mark] is None
            if MARKS[mark] == split:
                video_id = f"{class_name}/{PurePosixPath(name).stem}"
                records.add_listed(video_id, index.locate(f"{class_name}/{name}"), label)
    if unused:
        logger.info(
            "%d videos are in neither split of fold %d, as HMDB51's authors have it", unused, fold
        )
    index.report(data_dir)
    return records


def hmdb51_splits(data_dir: Path) -> list[str]:
    """Both splits where there are lists: each list tells both."""
    return ["train", "test"] if any(_find_lists(data_dir, fold) for fold in FOLDS) else []


def _find_lists(data_dir: Path, fold: int) -> dict[str, Path]:
    """The list of each class. The authors' archive has them in one folder."""
    if not data_dir.is_dir():
        raise ValueError(f"data folder {str(data_dir)!r} does not exist or is no folder")
    ending = f"_test_split{fold}.txt"
    paths = [
        path
        for pattern in ("", "*/", "*/*/")
        for path in sorted(data_dir.glob(f"{pattern}*{ending}"))
    ]
    return {path.name.removesuffix(ending): path for path in reversed(paths)}


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        match = re.fullmatch(r"\s*(\S.*?)\s+([012])\s*", line)
        if match:
            yield match[1], match[2]
        elif line.strip():
            raise ValueError(f"{path}, line {number}: expected a video and 0, 1 or 2, got {line!r}")
