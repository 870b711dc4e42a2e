"""Clips held out for validation, so that none of them shares its source video with a clip that is
trained on.

Clips that were cut from one recording look alike. Where some of them are trained on and others held
out, a network that has only learned what the recording looks like is measured as if it knew the
class.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np
from datasets import Dataset, Value


logger = logging.getLogger(__name__)

NO_GROUPS = "none"  # `group_by` that parts clips whatever their names say

# Names that tell which recording a clip was cut from, with the part of the name that stands for it.
SOURCE_IN_NAME = {
    "UCF101": re.compile(r"(.+_g\d+)_c\d+$"),  # v_Archery_g01_c02: group 1, clip 2
    # abcdefghijk_000010_000020: 10 to 20 s of that video
    "Kinetics": re.compile(r"([\w-]{11})_\d{6}_\d{6}$"),
}


def hold_out(
    records: Dataset, fraction: float, *, seed: int, group_by: str | None = None
) -> tuple[Dataset, Dataset]:
    """Split records into training and validation, class by class, and keep together what belongs
    together.

    Segments of one video are never parted, nor are records of one group. Of each class about
    `fraction` of the clips is held out, at least one where it has two groups, and never all.

    Args:
        records: one split with the columns of `records.video_features`.
        fraction: share to hold out, between 0 and 1.
        seed: which clips it is follows from this alone.
        group_by: what tells the group of a clip. `group`: the column of that name. `none`: nothing
            but the video itself. Otherwise a regular expression that is searched in `video_id`; its
            first group in parentheses, or else all that it matches, is the clip's group. None: the
            column `group` where there is one; otherwise names of UCF101's and Kinetics' kind are
            recognised, which is said in the log.

    Returns:
        The records to train on, and those held out; both in their order.

    Raises:
        ValueError: `fraction` is not between 0 and 1, or `group_by` does not fit the records.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction must lie between 0 and 1, got {fraction}")
    classes = _classes_of(records)
    groups = find_groups(records, group_by)
    held_out = set(_choose(groups, classes, fraction, np.random.default_rng(seed)))
    kept = [row for row in range(len(records)) if row not in held_out]
    return records.select(kept), records.select(sorted(held_out))


def find_groups(records: Dataset, group_by: str | None = None) -> list[list[int]]:
    """Rows that must stay together, as lists; arguments and errors as of `hold_out`."""
    names = _group_names(records, group_by)
    parents = list(range(len(records)))  # a forest: rows with one root belong together
    first: dict[tuple[str, str], int] = {}
    for row, (video, name) in enumerate(zip(_video_names(records), names)):
        for key in [("video", video), *([("group", name)] if name is not None else [])]:
            _join(parents, first.setdefault(key, row), row)
    groups = defaultdict(list)
    for row in range(len(records)):
        groups[_root(parents, row)].append(row)
    return list(groups.values())


def _video_names(records: Dataset) -> Sequence[str]:
    """What tells the video of each record from others, without reading any: its path, else the
    record's own id.
    """
    # the rows hold bytes: each is a video of its own
    if records.features["video"] != Value("string"):
        return records["video_id"]
    return records.with_format(None)["video"]  # as it is written, not what a transform makes of it


def _root(parents: list[int], row: int) -> int:
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = parents[row]
    return row


def _join(parents: list[int], one: int, other: int) -> None:
    roots = sorted((_root(parents, one), _root(parents, other)))
    parents[roots[1]] = roots[0]


def _group_names(records: Dataset, group_by: str | None) -> Sequence[str | None]:
    """The name of each record's group, None for one that is alone."""
    column = records["group"] if "group" in records.column_names else None
    if group_by == NO_GROUPS:
        return [None] * len(records)
    if group_by == "group" and column is None:
        raise ValueError("--group_by group: the clips have no column `group`")
    if group_by in (None, "group") and column is not None:
        logger.info("clips of one `group` are kept together: %d groups", len(set(column) - {None}))
        return column
    video_ids = records["video_id"]
    if group_by is None:
        return _recognise(video_ids)
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise ValueError(
            f"--group_by {group_by!r} is no column of the clips and no regular expression: {error}"
        ) from error
    matches = [pattern.search(video_id) for video_id in video_ids]
    without = [video_id for video_id, match in zip(video_ids, matches) if match is None]
    if without:
        raise ValueError(
            f"--group_by {group_by!r} is no column of the clips, and as a regular expression it does not match "
            f"{len(without)} of {len(video_ids)} names, such as {without[0]}"
        )
    names = [match[1] if pattern.groups else match[0] for match in matches if match is not None]
    logger.info(
        "clips are kept together by %r: %d groups, such as %s", group_by, len(set(names)), names[0]
    )
    return names


def _recognise(video_ids: Iterable[str]) -> list[str | None]:
    """Groups by names of a known kind, said in the log."""
    names: list[str | None] = []
    found: dict[str, str] = {}  # kind -> example
    for video_id in video_ids:
        stem = PurePosixPath(video_id.partition("@")[0]).stem
        name = None
        for kind, pattern in SOURCE_IN_NAME.items():
            match = pattern.fullmatch(stem)
            if match is not None:
                name = match[1]
                found.setdefault(kind, video_id)
                break
        names.append(name)
    sizes = Counter(names)
    if any(size > 1 for name, size in sizes.items() if name is not None):
        logger.info(
            "names such as %s tell which recording a clip is from (%s): clips of one are kept together, %d of them. "
            "--group_by none parts them",
            next(iter(found.values())),
            ", ".join(found),
            len(set(names) - {None}),
        )
    return names


def _classes_of(records: Dataset) -> list[list[int]]:
    """The classes of each record; of a regression all are one class, of several labels none is one
    of its own.
    """
    if "label" in records.column_names:
        return [[label] for label in records["label"]]
    if "labels" in records.column_names:
        return [labels or [-1] for labels in records["labels"]]
    return [[0]] * len(records)


def _choose(
    groups: list[list[int]],
    classes: list[list[int]],
    fraction: float,
    generator: np.random.Generator,
) -> list[int]:
    """The rows to hold out: groups in random order, each one that brings its classes nearer to
    their shares.

    With 10 clips of class a, in groups of 1, 3, 3 and 3, and a fraction of 0.2, two are wanted: one
    of 3 is taken (one too many is nearer than two too few), or the one alone and then none.
    """
    members = [Counter(label for row in group for label in classes[row]) for group in groups]
    clips: Counter[int] = sum(members, Counter())
    groups_left = Counter(label for counts in members for label in counts)
    wanted = {label: max(1, round(fraction * clips[label])) for label in clips}
    held: Counter[int] = Counter()
    taken: list[int] = []

    def take(number: int) -> None:
        held.update(members[number])
        groups_left.subtract(members[number].keys())
        taken.append(number)

    order = generator.permutation(len(groups)).tolist()
    for number in order:
        counts = members[number]
        gain = sum(
            abs(wanted[c] - held[c]) - abs(wanted[c] - held[c] - n) for c, n in counts.items()
        )
        if gain > 0 and all(groups_left[label] > 1 for label in counts):
            take(number)
    # A class whose groups are all much larger than its share still gets one, unless that is more
    # than half of it.
    for label in sorted(clips):
        if held[label]:
            continue
        fitting = [
            number
            for number in order
            if members[number][label]
            and all(
                groups_left[c] > 1 and 2 * (held[c] + n) <= clips[c]
                for c, n in members[number].items()
            )
        ]
        if fitting:
            take(min(fitting, key=lambda number: len(groups[number])))
    without = [label for label in clips if not held[label] and clips[label] > 1]
    if without:
        logger.warning(
            "of %d of %d classes no clip is held out: all of it, or more than half, is of one group",
            len(without),
            len(clips),
        )
    return [row for number in taken for row in groups[number]]
