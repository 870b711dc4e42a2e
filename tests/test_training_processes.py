"""Real processes: two of them on uneven shards, and runs killed with SIGKILL that go on as if nothing had happened."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_timesformer.synthetic import make_motion_dataset


DRIVER = Path(__file__).with_name("train_driver.py")
NETWORK = "image_size=32,patch_size=16,hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32"
ARGUMENTS = (
    f"--recipe none --config_overrides {NETWORK},num_frames=2,hidden_dropout_prob=0.1 --sampling_rate 2 "
    "--per_device_train_batch_size 3 --learning_rate 1e-3 --num_train_epochs 2 --logging_steps 1 --mixup 0.2 "
    "--color_jitter 0.2 --disable_tqdm true --dataloader_num_workers 1"
).split()
SHARD_SIZES = (9, 1, 7, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("clips")
    return make_motion_dataset(target, splits={"train": 4, "validation": 1}, num_frames=6, size=40)


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory) -> Path:
    """The clips of `folder` in tar shards of uneven size: 21 to train on, 5 for validation."""
    target = tmp_path_factory.mktemp("shards")
    names = sorted(path.name for path in (folder / "train").iterdir())
    (target / "labels.json").write_text(json.dumps(names))
    clips = sorted((folder / "train").glob("*/*.mp4"))
    sizes = dict(zip(("train-0", "train-1", "train-2", "train-3"), SHARD_SIZES))
    for shard, size in sizes.items():
        pack(target / f"{shard}.tar", clips[:size])
        clips = clips[size:]
    pack(target / "validation-0.tar", sorted((folder / "validation").glob("*/*.mp4"))[:5])
    return target


def pack(shard: Path, clips: list[Path]) -> None:
    with tarfile.open(shard, "w") as tar:
        for clip in clips:
            tar.add(clip, f"{clip.stem}.mp4")
            label = clip.parent.name.encode()
            info = tarfile.TarInfo(f"{clip.stem}.cls")
            info.size = len(label)
            tar.addfile(info, io.BytesIO(label))


def train(output: Path, *arguments: str, processes: int = 1, **environment: str) -> subprocess.CompletedProcess:
    log = output.with_name(f"{output.name}-log-{len(list(output.parent.glob('*-log-*')))}")
    log.mkdir(parents=True)
    launch = [sys.executable]
    if processes > 1:  # `accelerate launch --cpu` starts one process whatever it is asked for, unless there is mpirun
        launch += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launch += ["--main_process_port", "0"]
    command = [*launch, str(DRIVER), *ARGUMENTS, "--use_cpu", "--output_dir", str(output), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRAIN_LOG": str(log), **environment}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    run.log = log
    return run


def read_steps(run: subprocess.CompletedProcess, rank: int = 0) -> list[list[str]]:
    return [line.split() for line in (run.log / f"steps-{rank}.txt").read_text().splitlines()]


def assert_same_weights(left: Path, right: Path) -> None:
    left, right = load_file(left / "model.safetensors"), load_file(right / "model.safetensors")
    assert left.keys() == right.keys()
    for name, weight in left.items():
        torch.testing.assert_close(weight, right[name], rtol=0, atol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_killed_run_goes_on_with_the_clips_that_come_next(kind, folder, shards, tmp_path):
    data = ["--dataset", kind, "--data_dir", str(folder if kind == "folder" else shards)]
    options = [*data, "--save_strategy", "steps", "--save_steps", "3", "--eval_strategy", "no"]
    options += ["--load_best_model_at_end", "false", "--save_total_limit", "1"]
    whole = train(tmp_path / "whole", *options)
    assert whole.returncode == 0, whole.stderr
    # Saved after step 3 and after step 6: one kind dies before step 6, the other while it writes checkpoint 6.
    death = {"DIE_AT_STEP": "5"} if kind == "folder" else {"DIE_SAVING": "6"}
    killed = train(tmp_path / "killed", *options, **death)
    assert killed.returncode == -9, killed.stderr
    resumed = train(tmp_path / "killed", *options, "--resume_from_checkpoint")
    assert resumed.returncode == 0, resumed.stderr
    assert read_steps(whole)[:3] == read_steps(killed)[:3]
    assert read_steps(resumed) == read_steps(whole)[3:]
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    decoded = [tuple(map(int, line.split())) for line in (resumed.log / "decoded-0.txt").read_text().splitlines()]
    assert len(decoded) == len(set(decoded)) == sum(len(step) for step in read_steps(resumed))


@pytest.mark.slow
def test_two_processes_share_uneven_shards(shards, tmp_path):
    options = ["--dataset", "webdataset", "--data_dir", str(shards), "--dataloader_num_workers", "2"]
    run = train(tmp_path / "two", *options, processes=2)
    assert run.returncode == 0, run.stderr
    steps = [read_steps(run, rank) for rank in (0, 1)]
    assert [len(one) for one in steps] == [8, 8]  # 21 clips, 2 processes, batches of 3: 4 steps in each of 2 epochs
    for epoch in (slice(0, 4), slice(4, 8)):
        left, right = ({name for step in one[epoch] for name in step} for one in steps)
        assert not left & right
        assert len(left | right) == sum(SHARD_SIZES)
    assert [one[:4] for one in steps] != [one[4:] for one in steps]
    results = json.loads((tmp_path / "two" / "train_results.json").read_text())
    assert (results["train_samples"], results["bad_clips"]) == (21, 0)
    state = json.loads((tmp_path / "two" / "trainer_state.json").read_text())
    assert [entry["eval_videos"] for entry in state["log_history"] if "eval_videos" in entry] == [5, 5]
    assert "4 shards are fewer" not in run.stderr
