"""Which checkpoints are gone on from, which are removed, and that a folder has one run at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

from hf_timesformer.training import checkpoints
from hf_timesformer.training.checkpoints import (
    DATA_ORDER,
    INCOMPLETE,
    RUN_LOCK,
    find_checkpoint,
    list_checkpoints,
    only_run_in,
    remove_half_written,
    remove_old_checkpoints,
)


def make_checkpoint(folder: Path, step: int, *, whole: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "trainer_state.json").write_text("{}")
    if not whole:
        (path / INCOMPLETE).touch()
    return path


def test_only_whole_checkpoints_are_gone_on_from(tmp_path):
    with pytest.raises(ValueError, match="no whole checkpoint"):
        find_checkpoint(tmp_path, "last")
    assert find_checkpoint(tmp_path, "auto") is None
    for step in (9, 10, 100):
        make_checkpoint(tmp_path, step, whole=step != 100)
    (tmp_path / "checkpoint-11").mkdir()  # killed before its first file, or somebody's own
    assert find_checkpoint(tmp_path, "last") == tmp_path / "checkpoint-10"
    assert find_checkpoint(tmp_path, "True") == tmp_path / "checkpoint-10"
    assert find_checkpoint(tmp_path, "auto") == tmp_path / "checkpoint-10"
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoint-9")) == tmp_path / "checkpoint-9"
    with pytest.raises(ValueError, match="checkpoint-100' is not whole"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-100"))
    with pytest.raises(ValueError, match="is no folder"):
        find_checkpoint(tmp_path, "nowhere")
    remove_half_written(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "checkpoint-10",
        "checkpoint-11",
        "checkpoint-9",
    ]
    assert list_checkpoints(tmp_path) == [tmp_path / "checkpoint-9", tmp_path / "checkpoint-10"]


def test_a_checkpoint_without_our_mark_is_never_removed(tmp_path):
    mine = tmp_path / "checkpoint-7"
    mine.mkdir()
    (mine / "model.safetensors").write_bytes(b"of another program")
    theirs = make_checkpoint(tmp_path, 8)  # of plain Trainer
    for step in (9, 10, 11, 12):
        (make_checkpoint(tmp_path, step) / DATA_ORDER).write_text("{}")
    remove_half_written(tmp_path)
    remove_old_checkpoints(tmp_path, 1, None)
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, theirs.name, "checkpoint-12"}


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (None, None, [1, 2, 3, 10]),
        (0, None, [1, 2, 3, 10]),
        (1, None, [10]),
        (1, 2, [2, 10]),
        (2, None, [3, 10]),
        (2, 1, [1, 10]),
        (3, 1, [1, 3, 10]),
        (9, 1, [1, 2, 3, 10]),
    ],
)
def test_the_last_and_the_best_checkpoints_stay(keep, best, left, tmp_path):
    for step in (1, 2, 3, 10):
        (make_checkpoint(tmp_path, step) / DATA_ORDER).write_text("{}")
    remove_old_checkpoints(tmp_path, keep, best and str(tmp_path / f"checkpoint-{best}"))
    assert list_checkpoints(tmp_path) == [tmp_path / f"checkpoint-{step}" for step in left]


def test_a_folder_has_one_run_at_a_time_and_a_kill_gives_it_back(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "run"
    folder.mkdir()
    path = str(folder / RUN_LOCK)
    hold = f"import filelock; lock = filelock.FileLock({path!r}); lock.acquire(); print('held', flush=True); input()"
    monkeypatch.setattr(checkpoints, "WAIT_SECONDS", 0)
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="another run is at work in"), only_run_in(folder):
            pass
        assert f"holds {folder}: waiting up to 0 s" in caplog.text
        other.kill()
    for _ in range(2):
        with only_run_in(folder), only_run_in(folder):  # the command and the trainer in it
            probe = f"import filelock; filelock.FileLock({path!r}).acquire(timeout=0)"
            refused = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
            assert "Timeout" in refused.stderr
