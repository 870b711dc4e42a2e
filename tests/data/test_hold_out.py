"""Held-out clips: how many of each class, and which."""

import numpy as np
import pytest

from hf_timesformer.data.dataset_factory import hold_out
from hf_timesformer.data.records import VideoRecords


def test_hold_out_is_stratified_and_follows_the_seed():
    records = VideoRecords(["a", "b", "c"])
    for label, count in enumerate((20, 10, 1)):
        for number in range(count):
            records.add(f"{label}/{number}", "x", label)
    kept, held_out = hold_out(records.to_dataset(), 0.1, seed=0)
    assert np.bincount(held_out["label"], minlength=3).tolist() == [2, 1, 0]
    assert len(set(kept["video_id"]) | set(held_out["video_id"])) == len(kept) + len(held_out) == 31
    assert hold_out(records.to_dataset(), 0.1, seed=0)[1]["video_id"] == held_out["video_id"]
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        hold_out(records.to_dataset(), 1.5, seed=0)
