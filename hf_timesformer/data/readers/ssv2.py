"""Something-Something-V2 as its distributor lays it out."""

from pathlib import Path

from ..labels import read_class_names
from ..records import (
    SPLIT_ALIASES,
    VideoRecords,
    canonical_split,
    entry_field,
    find_annotations,
    index_by_stem,
    read_json,
    require_annotations,
)


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
        template = entry_field(entry, "template", annotations).replace("[", "").replace("]", "")
        video_id = str(entry_field(entry, "id", annotations))
        if template not in index:
            raise ValueError(f"{annotations}: video {video_id} has the template {template!r}, not in labels.json")
        records.add_listed(video_id, found.get(video_id), index[template])
    return records


def ssv2_splits(data_dir: Path) -> list[str]:
    """Splits whose annotations are there."""
    return [
        split
        for split in ("train", "validation")
        if find_annotations(data_dir, [f"{p}{alias}.json" for alias in SPLIT_ALIASES[split] for p in SSV2_PREFIXES])
    ]
