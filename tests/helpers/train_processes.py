"""`timesformer train` in processes of its own, for tests."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from ports import free_port
from safetensors.torch import load_file


DRIVER = Path(__file__).with_name("train_driver.py")
NETWORK = "image_size=32,patch_size=16,hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32"
ARGUMENTS = (
    f"--recipe none --config_overrides {NETWORK},num_frames=2,hidden_dropout_prob=0.1 --sampling_rate 2 "
    "--per_device_train_batch_size 3 --learning_rate 1e-3 --num_train_epochs 2 --logging_steps 1 --mixup 0.2 "
    "--color_jitter 0.2 --disable_tqdm true --dataloader_num_workers 1"
).split()
SHARD_SIZES = (9, 1, 7, 4)
# accelerate's barrier takes the rank of a process for a GPU's, with --use_cpu too: two processes
# need two GPUs or 0.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


class Run(NamedTuple):
    """How a process ended: negative for the signal that killed it."""

    returncode: int
    output: str
    log: Path

    def steps(self, rank: int = 0) -> list[list[str]]:
        """The clips that each step of a process took."""
        return [line.split() for line in (self.log / f"steps-{rank}.txt").read_text().splitlines()]


def prepare(output: Path, arguments: list[str]) -> tuple[Path, list[str]]:
    log = output.with_name(f"{output.name}-log-{len(list(output.parent.glob('*-log-*')))}")
    log.mkdir(parents=True)
    return log, [*ARGUMENTS, "--use_cpu", "--output_dir", str(output), *arguments]


def distributed(rank: int, processes: int, port: str) -> dict[str, str]:
    """What torchrun tells each process."""
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
    }
    return {name: str(value) for name, value in names.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def launch(output: Path, *arguments: str, processes: int) -> Run:
    """Run with `accelerate launch`, which with `--cpu` would start one process only, unless there
    is mpirun.
    """
    log, argv = prepare(output, list(arguments))
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        str(processes),
    ]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", str(DRIVER), *argv]
    environment = ENVIRONMENT | {"TRAIN_LOG": str(log), "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    return Run(done.returncode, done.stderr, log)


def assert_same_weights(
    left: Path,
    right: Path,
    *,
    tolerance: float,
    classifier: float | None = None,
    name: str = "model",
) -> None:
    """The same in two folders, within `tolerance`; those of the classifier within one of their own."""
    left, right = (load_file(folder / f"{name}.safetensors") for folder in (left, right))
    assert left.keys() == right.keys()
    for key, weight in left.items():
        limit = tolerance if classifier is None or "classifier" not in key else classifier
        torch.testing.assert_close(weight, right[key], rtol=0, atol=limit, msg=key)


@contextmanager
def train_server() -> Iterator[Callable[..., Run]]:
    """Run train.py in processes of its own, forked from one that has imported everything already."""
    command = [sys.executable, str(DRIVER), "--serve"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:

        def run(output: Path, *arguments: str, processes: int = 1, **env: str) -> Run:
            log, argv = prepare(output, list(arguments))
            env |= {"TRAIN_LOG": str(log)}
            port, envs = str(free_port()), [env]
            if processes > 1:
                envs = [env | distributed(rank, processes, port) for rank in range(processes)]
            request = {"argv": argv, "env": envs, "output": str(log / "output.txt")}
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            codes = json.loads(server.stdout.readline())
            return Run(
                min(codes, key=lambda code: (code == 0, code)),
                (log / "output.txt").read_text(),
                log,
            )

        yield run
        server.stdin.close()
