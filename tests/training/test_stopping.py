"""SIGTERM while a run trains: it saves, leaves with a code that says so, and the same command goes
on exactly.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port
from train_processes import DRIVER, ENVIRONMENT, NETWORK, assert_same_weights, prepare

from hf_timesformer.training.checkpoints import EVALUATION_DUE


STOPPED = 143  # 128 + SIGTERM
AUTO = ("--resume_from_checkpoint", "auto")
DATA_STEPS = 8  # 24 clips in batches of 3


def history(run: Path) -> list[dict]:
    """Losses and evaluations of a run by step, without times."""
    entries = json.loads((run / "trainer_state.json").read_text())["log_history"]
    kept = ("step", "loss", "learning_rate", "eval_loss", "eval_top1_accuracy", "eval_videos")
    return [
        {name: entry[name] for name in kept if name in entry}
        for entry in entries
        if "train_loss" not in entry
    ]


@pytest.fixture(scope="module")
def options(folder) -> list[str]:
    return ["--data_dir", str(folder), "--learning_rate", "3e-3", *AUTO]


@pytest.fixture(scope="module")
def whole(train, options, tmp_path_factory) -> Path:
    """The same run, never stopped."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    run = train(output, *options)
    assert run.returncode == 0, run.output
    return output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal", "step"),
    [
        ({"TERM_AT_STEP": "2"}, 3),  # in the middle of an epoch
        # in the last step of the first epoch: its evaluation is still due
        ({"TERM_AT_STEP": "7"}, 8),
        ({"TERM_EVALUATING": "8"}, 8),  # within that evaluation
        ({"TERM_AT_STEP": "15"}, 16),  # in the very last step
    ],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    train, options, whole, signal, step, tmp_path
):
    output = tmp_path / "stopped"
    stopped = train(output, *options, **signal)
    assert stopped.returncode == STOPPED, stopped.output
    assert (
        f"stopped by SIGTERM after step {step}, saved in {output}/checkpoint-{step}: "
        in stopped.output
    )
    assert not (output / "model.safetensors").exists()
    assert not (output / "train_results.json").exists()
    assert (output / f"checkpoint-{step}" / EVALUATION_DUE).exists() == (step % DATA_STEPS == 0)
    resumed = train(output, *options)
    assert resumed.returncode == 0, resumed.output
    assert_same_weights(whole, output, tolerance=0)
    assert history(output) == history(whole)
    best = [
        json.loads((run / "trainer_state.json").read_text())["best_metric"]
        for run in (whole, output)
    ]
    assert best[0] == best[1]


@pytest.mark.slow
def test_two_processes_of_which_one_is_told_leave_together(train, options, tmp_path):
    output = tmp_path / "two"
    stopped = train(output, *options, processes=2, TERM_AT_STEP="1")
    assert stopped.returncode == STOPPED, stopped.output
    assert (output / "checkpoint-2" / "trainer_state.json").is_file()
    resumed = train(output, *options, "--max_steps", "3", processes=2)
    assert resumed.returncode == 0, resumed.output
    assert len(resumed.steps()) == 1


def two_nodes(output: Path, *arguments: str, **env: str) -> list[int]:
    """Two torchruns on this machine as two nodes of one process each, which meet at a port; their
    exit codes.
    """
    log, argv = prepare(output, list(arguments))
    meeting = [
        "--nnodes",
        "2",
        "--nproc_per_node",
        "1",
        "--rdzv_backend",
        "c10d",
        "--rdzv_id",
        log.name,
    ]
    meeting += ["--rdzv_endpoint", f"127.0.0.1:{free_port()}", "--local_addr", "127.0.0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", *meeting, str(DRIVER), *argv]
    environment = ENVIRONMENT | {"TRAIN_LOG": str(log)}
    nodes = [
        subprocess.Popen(command, env=environment | more, stderr=subprocess.PIPE)
        for more in (env, {})
    ]
    errors = [node.communicate(timeout=300)[1].decode() for node in nodes]
    (log / "errors.txt").write_text("\n".join(errors))
    return [node.returncode for node in nodes]


@pytest.mark.slow
def test_two_nodes_stop_and_go_on_to_the_weights_of_one_process(train, folder, tmp_path):
    """As `scripts/slurm.sbatch` starts them, the same command twice; only one node gets the signal."""
    options = [
        "--data_dir",
        str(folder),
        "--optim",
        "sgd",
        "--learning_rate",
        "0.1",
        "--mixup",
        "0",
        "--max_steps",
        "4",
    ]
    options += ["--config_overrides", f"{NETWORK},num_frames=2", "--eval_strategy", "no", *AUTO]
    one = train(tmp_path / "one", *options, "--per_device_train_batch_size", "6")
    assert one.returncode == 0, one.output
    output = tmp_path / "nodes"
    assert all(two_nodes(output, *options, TERM_AT_STEP="1"))
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-2"]
    assert two_nodes(output, *options) == [0, 0]
    assert_same_weights(tmp_path / "one", output, tolerance=1e-6)


@pytest.mark.slow
def test_before_the_first_step_there_is_nothing_to_save(train, folder, tmp_path):
    """Told to stop within the evaluation that comes first, or where nothing is ever saved."""
    options = ["--data_dir", str(folder), "--eval_on_start", "true", "--save_strategy", "no", *AUTO]
    stopped = train(tmp_path / "run", *options, TERM_EVALUATING="0")
    assert stopped.returncode == STOPPED, stopped.output
    assert "stopped by SIGTERM after step 0, nothing was to be saved" in stopped.output
    assert not list((tmp_path / "run").glob("checkpoint-*"))
