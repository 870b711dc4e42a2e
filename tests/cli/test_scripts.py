"""scripts/evaluate.py, predict.py and prepare_dataset.py from the command line."""

import importlib
import itertools
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from ports import free_port
from tiny_models import write_clips, write_model

from hf_timesformer import TimeSformerConfig


ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(monkeypatch, capsys, script: str, *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a script, run in this process."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    code = 0
    try:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    streams = capsys.readouterr()
    return code, streams.out, streams.err


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def call(monkeypatch, capsys):
    return lambda script, *arguments: run(monkeypatch, capsys, script, *arguments)


def test_predict_reads_folders_of_pictures_and_keeps_to_limits(call, model_folder, tmp_path: Path):
    rng = np.random.default_rng(0)
    for number in range(20):
        picture = PIL.Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        picture.save(tmp_path / f"frame_{number:04d}.png")
    arguments = [tmp_path, "--model", model_folder, "--json", "--frame_rate", 10]
    code, out, _ = call("predict.py", *arguments)
    assert code == 0
    (answer,) = json.loads(out)
    assert len(answer["predictions"]) == 5
    assert "seconds" in json.dumps(answer)  # it has a rate, so how much was looked at is known
    code, _, err = call("predict.py", *arguments, "--limits", "max_frames=19")
    assert code == 1
    assert "has 20 pictures, more than 19" in err
    for limits, message in (
        ("max_frames", "--limits takes NAME=N"),
        ("max_frame=3", "limits has no 'max_frame'"),
    ):
        code, _, err = call("predict.py", *arguments, "--limits", limits)
        assert code == 2
        assert message in err


def test_evaluate_takes_the_sampling_that_it_is_told(call, clips, model_folder, tmp_path: Path):
    arguments = [
        "--model",
        model_folder,
        "--data_dir",
        clips,
        "--num_workers",
        0,
        "--cpu",
        "--output_dir",
        tmp_path,
    ]
    code, out, _ = call("evaluate.py", *arguments, "--sampling", "segments", "--num_crops", 1)
    assert code == 0
    assert "segment" in json.loads((tmp_path / "eval_results.json").read_text())["protocol"]
    code, _, err = call("evaluate.py", *arguments, "--target_fps", -3)
    assert code == 2
    assert "target_fps must be a positive number" in err


def test_evaluate(call, clips, model_folder, tmp_path: Path):
    arguments = [
        "--model",
        model_folder,
        "--data_dir",
        clips,
        "--num_workers",
        0,
        "--cpu",
        "--output_dir",
        tmp_path,
    ]
    code, out, _ = call("evaluate.py", *arguments)
    assert code == 0
    results = json.loads((tmp_path / "eval_results.json").read_text())
    assert (results["views"], results["num_clips"], results["num_crops"], results["split"]) == (
        3,
        1,
        3,
        "test",
    )
    assert (results["videos_expected"], results["videos_found"]) == (13, 13)
    assert (results["videos_evaluated"], results["videos_failed"]) == (12, 1)
    assert results["failures"][0]["video_id"] == "up/broken.mp4"
    assert f"{100 * results['top1_accuracy']:6.2f} %" in out
    assert f"failed: {clips}/test/up/broken.mp4: cannot be opened as a video" in out
    assert results["versions"]["python"] == sys.version.split()[0]


def test_a_lone_process_that_was_to_be_two_says_so(
    call, monkeypatch, caplog, model_folder, tmp_path: Path
):
    # as `accelerate launch --cpu --num_processes 2` leaves it
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("RANK", raising=False)
    call(
        "evaluate.py",
        "--model",
        model_folder,
        "--data_dir",
        "/nowhere",
        "--output_dir",
        tmp_path,
        "--cpu",
    )
    assert "only one process was started" in caplog.text
    assert f"torchrun --nproc_per_node N {SCRIPTS / 'evaluate.py'}" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--split": "validation"}, "has no validation split; found: test"),
        ({"--data_dir": "/nowhere"}, "data folder '/nowhere' does not exist"),
        ({"--model": "/nowhere"}, "there is no model folder '/nowhere'"),
        ({"--num_clips": 0}, "num_clips"),
    ],
)
def test_evaluate_mistakes_are_one_line(call, clips, model_folder, tmp_path, change, message):
    arguments = {
        "--model": model_folder,
        "--data_dir": clips,
        "--num_workers": 0,
        "--output_dir": tmp_path,
    } | change
    code, _, err = call(
        "evaluate.py", *[item for pair in arguments.items() for item in pair], "--cpu"
    )
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["folder", "webdataset"])
def test_evaluate_in_two_processes_counts_every_video_once(
    call,
    clips,
    model_folder,
    tmp_path: Path,
    dataset: str,
):
    data = clips
    if dataset == "webdataset":
        data = tmp_path / "shards"
        pack = [
            "--data_dir",
            clips,
            "--output_dir",
            data,
            "--pack",
            "--videos_per_shard",
            5,
            "--num_workers",
            0,
        ]
        assert call("prepare_dataset.py", *pack)[0] == 0
    arguments = [
        "--model",
        model_folder,
        "--data_dir",
        data,
        "--dataset",
        dataset,
        "--num_workers",
        1,
        "--cpu",
    ]
    assert call("evaluate.py", *arguments, "--output_dir", tmp_path / "one")[0] == 0
    # `accelerate launch --cpu` starts one process whatever it is asked for, unless there is mpirun
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    program = (
        [SCRIPTS / "evaluate.py"] if dataset == "folder" else ["-m", "hf_timesformer.cli.evaluate"]
    )
    command = [*launch, *program, *arguments, "--batch_size", 3, "--output_dir", tmp_path / "two"]
    done = subprocess.run(
        list(map(str, command)), env=ONE_THREAD, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        json.loads((tmp_path / name / "eval_results.json").read_text()) for name in ("one", "two")
    )
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    same = [
        name for name in one if name.startswith(("videos_e", "videos_f", "top", "mean", "failures"))
    ]
    assert {name: one[name] for name in same} == {name: two[name] for name in same}
    assert (tmp_path / "one/per_class.csv").read_text() == (
        tmp_path / "two/per_class.csv"
    ).read_text()


@pytest.mark.slow
def test_accelerate_launches_the_module_of_train(tmp_path: Path):
    """`accelerate launch -m`: both processes look for the clips, one writes down which are missing,
    and a network to start from is not given.
    """
    rows = ["path,label,split", "a.mp4,x,train", "b.mp4,y,train", "c.mp4,y,train"]
    rows += ["a.mp4,x,validation"]
    (tmp_path / "clips.csv").write_text("\n".join(rows))
    (tmp_path / "a.mp4").touch()
    launch = [
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--main_process_port",
        "0",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    missing = tmp_path / "lists/missing.txt"
    arguments = ["--dataset", "csv", "--data_dir", str(tmp_path / "clips.csv"), "--recipe", "none"]
    arguments += ["--output_dir", str(tmp_path), "--use_cpu", "--missing_file", str(missing)]
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *launch,
        "-m",
        "hf_timesformer.cli.train",
        *arguments,
    ]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=240)
    assert done.returncode != 0
    assert "error: nothing to start from" in done.stderr, done.stderr[-3000:]
    assert missing.read_text() == "b.mp4\nc.mp4\n"
    assert done.stderr.count("videos are not on disk") == 1
    assert f"2 of 3 listed videos are not on disk (listed in {missing})" in done.stderr


def test_predict_goes_on_after_a_broken_video(call, clips, model_folder):
    good, broken, last = (
        clips / "test" / name for name in ("up/0.mp4", "up/broken.mp4", "left/1.mp4")
    )
    code, out, err = call("predict.py", good, broken, last, "--model", model_folder, "--top_k", 2)
    assert code == 1
    lines = out.splitlines()
    assert [lines[0].split("  (")[0], lines[3].split("  (")[0], len(lines)] == [
        str(good),
        str(last),
        6,
    ]
    assert all(
        line.lstrip()[0].isdigit() and " %  " in line
        for line in (lines[1], lines[2], lines[4], lines[5])
    )
    assert next(line for line in err.splitlines() if "error" in line).startswith(
        f"error: {broken}: cannot be opened"
    )


def test_predict_json(call, clips, model_folder):
    code, out, _ = call(
        "predict.py", clips / "test/up/0.mp4", "--model", model_folder, "--json", "--top_k", 99
    )
    assert code == 0
    (answer,) = json.loads(out)
    scores = [row["score"] for row in answer["predictions"]]
    assert len(scores) == 6
    assert sum(scores) == pytest.approx(1, abs=1e-4)
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["https://example.com/clip.mp4"], 1, "addresses are refused"),
        (["clip.mp4", "--top_k", "0"], 2, "--top_k must be at least 1, got 0"),
        (["clip.mp4", "--device", "abacus"], 2, "--device abacus"),
    ],
)
def test_predict_mistakes(call, model_folder, arguments: list[str], code: int, message: str):
    found, out, err = call("predict.py", *arguments, "--model", model_folder)
    assert (found, out) == (code, "")
    assert message in err


def test_prepare_dataset(call, clips, tmp_path: Path):
    arguments = ["--data_dir", clips, "--output_dir", tmp_path, "--num_workers", 0]
    code, out, _ = call("prepare_dataset.py", *arguments)
    assert code == 0
    assert "test: 13 listed, 12 readable, 0 in part, 1 faulty, 0 missing" in out
    assert "1 x fault container: up/broken.mp4: cannot be opened as a video" in out
    assert (tmp_path / "manifest.parquet").exists()
    code, _, err = call("prepare_dataset.py", *arguments, "--pack", "--short_side", 4)
    assert (code, "error: short_side must be at least 16 pixels, got 4" in err) == (2, True)


@pytest.mark.slow
def test_compare_attention(call, tmp_path: Path):
    small = ["--steps", 2, "--train_clips", 16, "--test_clips", 8, "--width", 16, "--depth", 1]
    code, out, _ = call("benchmarks/compare_schemes.py", "--output_dir", tmp_path, *small)
    assert code == 0
    report = json.loads((tmp_path / "compare_attention.json").read_text())
    rows = {row["attention_type"]: row for row in report["results"]}
    # four orders of one bag of frames: exactly
    assert rows["space_only"]["accuracy"] == report["chance"] == 0.25
    parameters = [
        rows[name]["parameters"] for name in ("joint_space_time", "divided_space_time", "axial")
    ]
    assert parameters == sorted(parameters)
    assert (tmp_path / "compare_attention.png").exists()
    assert "| `axial` | T+W+H |" in out


def test_growth_benchmark_counts_as_the_paper_says(monkeypatch, tmp_path: Path):
    """Four times the frames are four times the work for divided attention, and more than that for
    joint.
    """
    monkeypatch.syspath_prepend(SCRIPTS / "benchmarks")
    growth = importlib.import_module("growth")
    monkeypatch.setattr(growth, "NAMES", {"divided_space_time": "T+S", "joint_space_time": "ST"})
    monkeypatch.setattr(growth, "LENGTHS", ((2, 128), (8, 128)))
    monkeypatch.setattr(growth, "SIZES", ((2, 128),))
    monkeypatch.setattr(growth, "measure_peak", lambda work, kind, args: 1.0)
    options = {
        "--layers": "1",
        "--threads": "1",
        "--json": str(tmp_path / "out.json"),
        "--png": str(tmp_path / "out.png"),
    }
    runpy.run_path(str(SCRIPTS / "benchmarks" / "__main__.py"))["main"](
        ["growth", *itertools.chain(*options.items())]
    )
    points = json.loads((tmp_path / "out.json").read_text())["points"]
    assert [(point["frames"], point["scheme"]) for point in points] == list(
        itertools.product([2, 8], growth.NAMES)
    )
    flops = {(point["scheme"], point["frames"]): point["TFLOPs"] for point in points}
    tokens, width = 64, 768
    # Two attentions of four maps, one of them followed by one more, and the MLP.
    block = tokens * 2 * (4 + 4 + 1 + 8) * width**2
    attention = tokens * 2 * 2 * width * (2 + 65)
    counted = flops["divided_space_time", 2] * 1e12
    # CLS and the patch embedding are the rest
    assert counted == pytest.approx(12 * (block + attention), rel=0.03)
    assert flops["divided_space_time", 8] == pytest.approx(
        4 * flops["divided_space_time", 2], rel=0.02
    )
    assert flops["joint_space_time", 8] > 4.1 * flops["joint_space_time", 2]
    assert (tmp_path / "out.png").stat().st_size > 10_000


def test_benchmarks_ask_for_sizes_that_networks_have(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS / "benchmarks")
    growth, works = importlib.import_module("growth"), importlib.import_module("works")
    suite = importlib.import_module("model").SUITE
    places = [(work.frames, work.size) for work in suite] + [*growth.LENGTHS, *growth.SIZES]
    for frames, size in places:
        for scheme in works.NAMES:
            TimeSformerConfig(
                **works.config_fields(works.Work(scheme, frames, size), scheme, layers=1)
            )
