"""Something-Something-V2 and Diving-48 as their distributors lay them out."""

from pathlib import Path

from ..records import (
    VideoRecords,
    find_annotations,
    index_by_stem,
    read_class_names,
    read_json,
    require_annotations,
)
from .folder import SPLIT_ALIASES, canonical_split


SSV2_PREFIXES = ("", "something-something-v2-")


def read_ssv2(data_dir: Path, split: str) -> VideoRecords:
    """Something-Something-V2: `labels.json`, `train.json`, `validation.json`, `<id>.webm` (also with their prefix).

    The class index is that of `labels.json`; a video's class is its template without the brackets. The test split has
    no public labels.
    """
    split = canonical_split(split)
    if split == "test":
        raise ValueError("the test split of Something-Something-V2 has no public labels: use validation")
    class_names = read_class_names(require_annotations(data_dir, [f"{prefix}labels.json" for prefix in SSV2_PREFIXES]))
    names = [f"{prefix}{alias}.json" for alias in SPLIT_ALIASES[split] for prefix in SSV2_PREFIXES]
    annotations = require_annotations(data_dir, names)
    index = {name: label for label, name in enumerate(class_names)}
    found, records = index_by_stem(data_dir), VideoRecords(class_names)
    for entry in read_json(annotations, list):
        template = _field(entry, "template", annotations).replace("[", "").replace("]", "")
        video_id = str(_field(entry, "id", annotations))
        if template not in index:
            raise ValueError(f"{annotations}: video {video_id} has the template {template!r}, not in labels.json")
        records.add_listed(video_id, found.get(video_id), index[template])
    return records


def read_diving48(data_dir: Path, split: str) -> VideoRecords:
    """Diving-48: `Diving48_V2_train.json`, `Diving48_V2_test.json`, `Diving48_vocab.json`, `<vid_name>.mp4`.

    The class index is the place in the vocabulary; a class is named by its four attributes.
    """
    split = canonical_split(split)
    if split == "validation":
        raise ValueError("Diving-48 has no validation split: choose train or test")
    vocabulary = read_json(require_annotations(data_dir, ["Diving48_vocab.json"]), list)
    class_names = [entry if isinstance(entry, str) else " ".join(entry) for entry in vocabulary]
    annotations = require_annotations(data_dir, [f"Diving48_V2_{split}.json"])
    found, records = index_by_stem(data_dir), VideoRecords(class_names)
    for entry in read_json(annotations, list):
        video_id, label = str(_field(entry, "vid_name", annotations)), _field(entry, "label", annotations)
        if not isinstance(label, int) or not 0 <= label < len(class_names):
            raise ValueError(f"{annotations}: video {video_id} has label {label!r}, not 0..{len(class_names) - 1}")
        records.add_listed(video_id, found.get(video_id), label)
    return records


def ssv2_splits(data_dir: Path) -> list[str]:
    """Splits whose annotations are there."""
    return [
        split
        for split in ("train", "validation")
        if find_annotations(data_dir, [f"{p}{alias}.json" for alias in SPLIT_ALIASES[split] for p in SSV2_PREFIXES])
    ]


def diving48_splits(data_dir: Path) -> list[str]:
    """Splits whose annotations are there."""
    return [split for split in ("train", "test") if find_annotations(data_dir, [f"Diving48_V2_{split}.json"])]


def _field(entry: dict, name: str, path: Path):
    if not isinstance(entry, dict) or name not in entry:
        raise ValueError(f"{path}: entry {str(entry)[:80]} has no field {name!r}")
    return entry[name]
