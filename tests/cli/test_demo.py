"""`timesformer demo`, with a few clips and steps in place of all."""

import importlib
import io
import json
import os
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest

from hf_timesformer.cli import demo


@pytest.mark.parametrize("live", [True, False])
def test_progress_bars_are_shown_and_all_else_is_logged(live: bool, capsys):
    """The first bar alone: that of an evaluation in between has another total."""
    read, write = os.pipe()
    text = (
        "Loading: 100%|##| 3/3 [00:01]\n12:00 a line\r  0%|  | 0/84 [00:00]\r 50%|# | 42/84 [00:09]"
    )
    text += "\r100%|##| 1/1 [00:00]\r100%|##| 84/84 [00:18]\nthe end"
    os.write(write, text.encode())
    os.close(write)
    log = io.StringIO()
    with os.fdopen(read, "rb") as stream:
        demo.show_bar(stream, log, live=live)
    assert log.getvalue().splitlines() == [
        "Loading: 100%|##| 3/3 [00:01]",
        "12:00 a line",
        "the end",
    ]
    shown = [line.strip() for line in capsys.readouterr().err.split("\r" if live else "\n")]
    bars = ["0%|  | 0/84 [00:00]", "50%|# | 42/84 [00:09]", "100%|##| 84/84 [00:18]"]
    assert shown == (["", *bars] if live else [*bars, ""])


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit) as end:
        demo.main(["--output_dir", str(tmp_path)])
    assert end.value.code == 2
    assert "is not empty and no demo made it" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    # made by one, made anew
    assert demo.new_folder(tmp_path / "new") == demo.new_folder(tmp_path / "new")


def in_this_process(name: str, *arguments: str, folder: Path, log: str) -> None:
    """What `demo.run_command` does, without a Python that starts."""
    with (folder / log).open("w", encoding="utf-8") as file, redirect_stdout(file):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            with suppress(SystemExit):  # of an error the files that are missing tell
                importlib.import_module(f"hf_timesformer.cli.{name}").main(list(arguments))


@pytest.mark.slow
def test_every_step_of_the_demo(tmp_path: Path, monkeypatch, capfd):
    """Training is a process of its own, as in the demo, for its progress bar; the other commands
    run here.
    """
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(demo, "SPLITS", {"train": 2, "validation": 1, "test": 1})
    monkeypatch.setattr(
        demo, "NETWORK", demo.NETWORK | {"hidden_size": 16, "intermediate_size": 32}
    )
    monkeypatch.setattr(
        demo, "TRAINING", ("--recipe", "demo", "--num_train_epochs", "1", "--use_cpu")
    )
    monkeypatch.setattr(demo, "ENOUGH", 1.1)
    run_command = demo.run_command
    monkeypatch.setattr(
        demo,
        "run_command",
        lambda name, *arguments, **where: (run_command if name == "train" else in_this_process)(
            name, *arguments, **where
        ),
    )
    folder = tmp_path / "out"
    with pytest.raises(
        SystemExit, match="below the 110% that this demonstration is meant to reach"
    ):
        demo.main(["--output_dir", str(folder)])
    out, err = capfd.readouterr()
    steps = [line[:3] for line in out.splitlines() if line[1:2] == "/"]
    assert steps == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    assert "1/1 [" in err  # the bar of training: one step of 12 clips
    results = json.loads((folder / "model/eval_test/eval_results.json").read_text())
    assert results["videos_evaluated"] == 6
    pictures = (
        "model/training_curve.png",
        "model/eval_test/confusion_matrix.png",
        "timeline/joined.png",
    )
    assert all((folder / picture).stat().st_size > 1000 for picture in pictures)
    assert {path.suffix for path in (folder / "attention").iterdir()} == {".png", ".mp4"}
    sheet = image.open(folder / "overview.png")
    assert sheet.width == demo.OVERVIEW_WIDTH
    assert len(sheet.getcolors(2**24)) > 1000  # no empty page
    next_steps = out.partition("Try next:")[2].strip().splitlines()
    assert [line.split()[:2] for line in next_steps] == [
        ["timesformer", name] for name in ("predict", "app", "train")
    ]
    for _, name, *arguments in map(str.split, next_steps):
        importlib.import_module(f"hf_timesformer.cli.{name}").parse_arguments(arguments)
