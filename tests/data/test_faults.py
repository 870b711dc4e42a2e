"""Clips that cannot be read: counted once each, over all processes, and too many of them stop a
run.
"""

import pytest

from hf_timesformer.data.faults import BadClipsError, FaultTally


def test_faults_are_counted_once_and_too_many_stop_the_run(tmp_path):
    tally = FaultTally(50, limit=0.1)
    for number in (0, 1, 1, 2):
        tally.add([(f"v{number}", "damaged" if number else "no-video-stream", "why")])
    tally.sync()
    assert tally.metrics() == {
        "bad_clips": 3,
        "bad_clips_by_reason": {"no-video-stream": 1, "damaged": 2},
        "bad_clip_names": ["v0", "v1", "v2"],
    }
    tally.save(tmp_path / "faults.json")
    resumed = FaultTally(50, limit=0.1)
    resumed.load(tmp_path / "faults.json")
    resumed.add([("v1", "damaged", "why"), ("v3", "damaged", "why"), ("v4", "damaged", "why")])
    resumed.sync()  # five of 50 are not more than a tenth
    resumed.add([("v5", "limit", "why")])
    with pytest.raises(
        BadClipsError,
        match=r"6 of 50 training clips .* 0\.1: v0: no-video-stream; .*v5: limit\. Repair",
    ):
        resumed.sync()
    handful = FaultTally(6, limit=0.1)
    handful.add([(f"v{number}", "damaged", "") for number in range(4)])
    handful.sync()


def test_faults_of_other_processes_count_too(monkeypatch):
    tally = FaultTally(10, limit=0.4)
    tally.add([("here", "damaged", "")])
    others = [(f"there{number}", "damaged", "") for number in range(4)]
    monkeypatch.setattr("hf_timesformer.data.faults.gather_object", lambda mine: mine + others)
    with pytest.raises(BadClipsError, match="5 of 10"):
        tally.sync()
