"""Which checkpoints are gone on from, and which are removed."""

from pathlib import Path

import pytest

from hf_timesformer.training.checkpoints import (
    DATA_ORDER,
    INCOMPLETE,
    find_checkpoint,
    list_checkpoints,
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
