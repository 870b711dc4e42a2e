"""Held-out clips: how many of each class, and none that shares its source with a clip that is
trained on.
"""

import logging
import re

import numpy as np
import pytest

from hf_timesformer.data.hold_out import hold_out
from hf_timesformer.data.records import VideoRecords
from hf_timesformer.data.targets import MULTI_LABEL, REGRESSION


def test_hold_out_is_stratified_and_follows_the_seed():
    records = VideoRecords(["a", "b", "c"])
    for label, count in enumerate((20, 10, 1)):
        for number in range(count):
            records.add(f"{label}/{number}", f"{label}/{number}", label)
    kept, held_out = hold_out(records.to_dataset(), 0.1, seed=0)
    assert np.bincount(held_out["label"], minlength=3).tolist() == [2, 1, 0]
    assert len(set(kept["video_id"]) | set(held_out["video_id"])) == len(kept) + len(held_out) == 31
    assert hold_out(records.to_dataset(), 0.1, seed=0)[1]["video_id"] == held_out["video_id"]
    assert hold_out(records.to_dataset(), 0.1, seed=1)[1]["video_id"] != held_out["video_id"]
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        hold_out(records.to_dataset(), 1.5, seed=0)


def ucf101(num_groups: int = 5, clips: int = 4, classes: int = 3) -> VideoRecords:
    records = VideoRecords([f"c{label}" for label in range(classes)])
    for label in range(classes):
        for group in range(num_groups):
            for clip in range(clips):
                name = f"c{label}/v_c{label}_g{group:02d}_c{clip:02d}.avi"
                records.add(name, name, label)
    return records


def groups_in(records, pattern: str) -> set[str]:
    return {re.search(pattern, name)[0] for name in records["video_id"]}


@pytest.mark.parametrize("seed", range(5))
def test_names_of_ucf101_are_recognised(caplog, seed: int):
    with caplog.at_level(logging.INFO):
        kept, held_out = hold_out(ucf101().to_dataset(), 0.2, seed=seed)
    assert not groups_in(kept, r"v_c\d_g\d+") & groups_in(held_out, r"v_c\d_g\d+")
    assert np.bincount(held_out["label"]).tolist() == [4, 4, 4]
    assert (
        "names such as c0/v_c0_g00_c00.avi tell which recording a clip is from (UCF101)"
        in caplog.text
    )
    assert "kept together, 15 of them" in caplog.text
    parted = [hold_out(ucf101().to_dataset(), 0.2, seed=s, group_by="none") for s in range(3)]
    assert any(groups_in(k, r"v_c\d_g\d+") & groups_in(h, r"v_c\d_g\d+") for k, h in parted)


def test_groups_by_a_regular_expression():
    records = VideoRecords(["a", "b"])
    for person in range(6):
        for take in range(3):
            for label, name in enumerate(records.class_names):
                records.add(f"{name}/person{person}-{take}.mp4", f"{name}{person}{take}", label)
    dataset = records.to_dataset()
    kept, held_out = hold_out(dataset, 0.2, seed=3, group_by=r"/(person\d)-")
    assert not groups_in(kept, r"person\d") & groups_in(held_out, r"person\d")
    assert np.bincount(held_out["label"]).tolist() == [3, 3]  # one person, in both classes
    with pytest.raises(
        ValueError, match=r"does not match 36 of 36 names, such as a/person0-0\.mp4"
    ):
        hold_out(dataset, 0.2, seed=0, group_by=r"subject\d")
    with pytest.raises(ValueError, match="no column of the clips and no regular expression"):
        hold_out(dataset, 0.2, seed=0, group_by="(")
    with pytest.raises(ValueError, match="no column `group`"):
        hold_out(dataset, 0.2, seed=0, group_by="group")


def test_a_column_of_groups_and_segments_of_one_video():
    records = VideoRecords(["a"])
    for number in range(40):
        # videos of two segments; groups of two videos, and the last ten videos in no group
        group = f"day {number // 4}" if number < 20 else None
        records.add(
            f"{number}",
            f"video {number // 2}",
            0,
            start=float(number % 2),
            end=number % 2 + 1.0,
            group=group,
        )
    for seed in range(5):
        kept, held_out = hold_out(records.to_dataset(), 0.3, seed=seed)
        assert not set(kept["video"]) & set(held_out["video"])
        assert not (set(kept["group"]) & set(held_out["group"])) - {None}
        assert 10 <= len(held_out) <= 14


def test_a_class_of_large_groups():
    """Of ten clips in groups of 5 and 5 one is held out; of a class with one group none is."""
    records = VideoRecords(["two", "one", "large"])
    for number in range(10):
        records.add(f"two{number}", f"v{number // 5}", 0, start=float(number))
        records.add(f"one{number}", "w", 1, start=float(number))
        records.add(f"large{number}", "x" if number < 8 else f"x{number}", 2, start=float(number))
    _, held_out = hold_out(records.to_dataset(), 0.1, seed=0)
    assert np.bincount(held_out["label"], minlength=3).tolist() == [5, 0, 1]


def test_several_labels_and_numbers():
    records = VideoRecords(["a", "b"], MULTI_LABEL)
    for number in range(40):
        records.add(str(number), f"v{number}", [[0], [1], [0, 1], []][number % 4])
    kept, held_out = hold_out(records.to_dataset(), 0.2, seed=0)
    counts = [sum(label in labels for labels in held_out["labels"]) for label in (0, 1)]
    assert all(3 <= count <= 5 for count in counts)
    assert sum(not labels for labels in held_out["labels"]) == 2
    numbers = VideoRecords(["target"], REGRESSION)
    for number in range(20):
        numbers.add(str(number), f"v{number}", float(number))
    assert len(hold_out(numbers.to_dataset(), 0.2, seed=0)[1]) == 4
