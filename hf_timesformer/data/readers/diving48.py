"""Diving-48 as its distributor lays it out."""

from collections.abc import Sequence
from pathlib import Path

from ..clip_index import ClipIndex
from ..records import (
    VideoRecords,
    canonical_split,
    entry_field,
    find_annotations,
    read_json,
    require_annotations,
)


def read_diving48(data_dir: Path, split: str, *, extensions: Sequence[str] = ()) -> VideoRecords:
    """Diving-48: `Diving48_V2_train.json`, `Diving48_V2_test.json`, `Diving48_vocab.json`,
    `<vid_name>.mp4`.

    The class index is the place in the vocabulary; a class is named by its four attributes.

    Raises:
        ValueError: the split is validation, or a label is outside the vocabulary.
    """
    split = canonical_split(split)
    if split == "validation":
        raise ValueError("Diving-48 has no validation split: choose train or test")
    vocabulary = read_json(require_annotations(data_dir, ["Diving48_vocab.json"]), list)
    class_names = [entry if isinstance(entry, str) else " ".join(entry) for entry in vocabulary]
    annotations = require_annotations(data_dir, [f"Diving48_V2_{split}.json"])
    index, records = ClipIndex(data_dir, extensions), VideoRecords(class_names)
    for entry in read_json(annotations, list):
        video_id, label = (
            str(entry_field(entry, "vid_name", annotations)),
            entry_field(entry, "label", annotations),
        )
        if not isinstance(label, int) or not 0 <= label < len(class_names):
            raise ValueError(
                f"{annotations}: video {video_id} has label {label!r}, not 0..{len(class_names) - 1}"
            )
        records.add_listed(video_id, index.find(video_id), label)
    index.report(data_dir)
    return records


def diving48_splits(data_dir: Path) -> list[str]:
    """Splits whose annotations are there."""
    return [
        split
        for split in ("train", "test")
        if find_annotations(data_dir, [f"Diving48_V2_{split}.json"])
    ]
