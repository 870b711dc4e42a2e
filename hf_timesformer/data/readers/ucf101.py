"""UCF101 as its authors lay it out."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from ..clip_index import ClipIndex
from ..labels import check_numbers
from ..records import VideoRecords, canonical_split, find_annotations, require_annotations


FOLDS = (1, 2, 3)


def read_ucf101(
    data_dir: Path, split: str, *, fold: int = 1, extensions: Sequence[str] = ()
) -> VideoRecords:
    """UCF101: the folder that holds `UCF-101/` and `ucfTrainTestlist/`.

    Lists are `trainlist01.txt` (`Archery/v_Archery_g08_c01.avi 3`) and `testlist01.txt` (without
    the number), to 03; `classInd.txt` names the classes, counted from 1 (`3 Archery`). A video's id
    is its name without the suffix.

    Args:
        data_dir: the folder; the videos may lie anywhere in it, also converted to another format.
        split: train or test: the authors made no validation split.
        fold: which of the authors' three divisions into train and test; results are given as the
            mean of all three.
        extensions: suffixes of clips beyond the usual ones.

    Raises:
        ValueError: a file of annotations is missing or does not fit the others.
    """
    split = canonical_split(split)
    if split == "validation":
        raise ValueError(
            "UCF101 has no validation split: choose train or test (training holds some of train out)"
        )
    if fold not in FOLDS:
        raise ValueError(f"UCF101 is divided in three ways: choose --fold 1, 2 or 3, not {fold}")
    class_names = _read_class_names(require_annotations(data_dir, ["classInd.txt"]))
    number_of = {name: label for label, name in enumerate(class_names)}
    annotations = require_annotations(data_dir, [_list_name(split, fold)])
    index, records = ClipIndex(data_dir, extensions), VideoRecords(class_names)
    for name, number in _lines(annotations):
        class_name = PurePosixPath(name).parent.name
        if class_name not in number_of or number not in (None, number_of[class_name] + 1):
            raise ValueError(f"{annotations}: {name} {number or ''} does not fit classInd.txt")
        records.add_listed(PurePosixPath(name).stem, index.locate(name), number_of[class_name])
    index.report(data_dir)
    return records


def ucf101_splits(data_dir: Path) -> list[str]:
    """Splits whose lists are there."""
    names = {split: [_list_name(split, fold) for fold in FOLDS] for split in ("train", "test")}
    return [split for split, lists in names.items() if find_annotations(data_dir, lists)]


def _list_name(split: str, fold: int) -> str:
    return f"{split}list{fold:02d}.txt"


def _read_class_names(path: Path) -> list[str]:
    """`["1 ApplyEyeMakeup", "2 ApplyLipstick"]` -> the names in the order of the numbers, which
    begin at 1.
    """
    numbered = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        match = re.fullmatch(r"\s*(\d+)\s+(\S+)\s*", line)
        if match:
            numbered.append((int(match[1]) - 1, match[2]))
        elif line.strip():
            raise ValueError(f"{path}: expected 'number class', got {line!r}")
    numbered.sort()
    check_numbers([number for number, _ in numbered], f"{path} (numbers less 1)")
    return [name for _, name in numbered]


def _lines(path: Path) -> Iterator[tuple[str, int | None]]:
    """The path of each video, and its class number, counted from 1, where the list has it."""
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        match = re.fullmatch(r"\s*(\S+/\S+)(?:\s+(\d+))?\s*", line)
        if match:
            yield match[1], int(match[2]) if match[2] else None
        elif line.strip():
            raise ValueError(
                f"{path}, line {number}: expected '<class>/<video>' and perhaps a number, got {line!r}"
            )
