"""Something-Something-V2 as its distributor lays it out."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..clip_index import ClipIndex
from ..labels import read_class_names
from ..records import (
    SPLIT_ALIASES,
    VideoRecords,
    canonical_split,
    entry_field,
    find_annotations,
    read_json,
    require_annotations,
)


PREFIXES = ("", "something-something-v2-")  # of every file of annotations
TEST_ANSWERS = [f"{prefix}test-answers.csv" for prefix in PREFIXES]


def read_ssv2(data_dir: Path, split: str, *, extensions: Sequence[str] = ()) -> VideoRecords:
    """Something-Something-V2: `labels.json`, `train.json`, `validation.json`, `<id>.webm` (also
    with their prefix).

    The class index is that of `labels.json`; a video's class is its template without the brackets.
    The labels of the test split are those of `test-answers.csv` (lines `id;label`), which came with
    a later release of the labels.

    Raises:
        ValueError: a template is not in `labels.json`.
    """
    split = canonical_split(split)
    class_names = read_class_names(
        require_annotations(data_dir, [f"{prefix}labels.json" for prefix in PREFIXES])
    )
    number_of = {name: label for label, name in enumerate(class_names)}
    if split == "test":
        annotations = _require_test_answers(data_dir)
        entries = _test_entries(annotations)
    else:
        annotations = require_annotations(data_dir, _names_of(split))
        entries = _entries(annotations)
    index, records = ClipIndex(data_dir, extensions), VideoRecords(class_names)
    for video_id, template in entries:
        if template not in number_of:
            raise ValueError(
                f"{annotations}: video {video_id} has the template {template!r}, not in labels.json"
            )
        records.add_listed(video_id, index.find(video_id), number_of[template])
    index.report(data_dir)
    return records


def ssv2_splits(data_dir: Path) -> list[str]:
    """Splits whose annotations, with labels, are there."""
    names = {
        "train": _names_of("train"),
        "validation": _names_of("validation"),
        "test": TEST_ANSWERS,
    }
    return [split for split in names if find_annotations(data_dir, names[split])]


def _names_of(split: str) -> list[str]:
    return [f"{prefix}{alias}.json" for alias in SPLIT_ALIASES[split] for prefix in PREFIXES]


def _entries(annotations: Path) -> Iterator[tuple[str, str]]:
    """`(id, template without brackets)` of each video."""
    for entry in read_json(annotations, list):
        template = entry_field(entry, "template", annotations)
        yield str(entry_field(entry, "id", annotations)), template.replace("[", "").replace("]", "")


def _require_test_answers(data_dir: Path) -> Path:
    try:
        return require_annotations(data_dir, TEST_ANSWERS)
    except ValueError as error:
        raise ValueError(
            f"the test split of Something-Something-V2 has no labels here ({error}): use validation"
        ) from error


def _test_entries(answers: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(answers.read_text(encoding="utf-8-sig").splitlines(), start=1):
        video_id, separator, template = line.partition(";")
        if line.strip() and not separator:
            raise ValueError(f"{answers}, line {number}: expected 'id;label', got {line!r}")
        if line.strip():
            yield video_id.strip(), template.strip().strip('"').replace("[", "").replace("]", "")
