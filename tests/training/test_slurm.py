"""`scripts/slurm.sbatch` with stand-ins for SLURM's programs: what it starts, and when it is requeued."""

import os
import signal
import subprocess
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm.sbatch"
# srun leaves its own options out and runs the rest; scancel signals all that runs in the step.
PROGRAMS = {
    "scontrol": 'if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "$@" >> scontrol.txt; fi',
    "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
    "scancel": "kill -TERM $(cat step.txt)",
    "torchrun": """
        echo "$@" > torchrun.txt
        if [ -n "$ENDS_WITH" ]; then exit $ENDS_WITH; fi
        sleep 60 > /dev/null &
        trap 'kill $!; exit 143' TERM  # as a run that has saved
        echo $$ > step.txt
        echo started
        wait
    """,
}


@pytest.fixture
def start(tmp_path):
    """Start the script in a folder of its own; `code` is how its step ends, None for not at all."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, lines in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{lines}\n")
        (programs / name).chmod(0o755)

    def run(code: int | None) -> subprocess.Popen:
        environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_JOB_NUM_NODES": "2",
            "ENDS_WITH": "" if code is None else str(code),
        }
        command = ["bash", str(SCRIPT), "--output_dir", "my run"]
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
        )

    return run


def requeued(folder: Path) -> bool:
    path = folder / "scontrol.txt"
    return path.exists() and path.read_text() == "requeue 123456\n"


@pytest.mark.parametrize(
    ("code", "ends_with", "again"), [(0, 0, False), (1, 1, False), (143, 0, True)]
)
def test_only_a_run_that_was_stopped_is_requeued(code, ends_with, again, start, tmp_path):
    assert start(code).wait(timeout=60) == ends_with
    assert requeued(tmp_path) == again
    words = (tmp_path / "torchrun.txt").read_text()
    assert "--nnodes 2 --nproc_per_node 8" in words
    assert "--rdzv_endpoint node7:23456 --rdzv_id 123456-0" in words
    train = "-m hf_timesformer.cli.train --resume_from_checkpoint auto --output_dir my run"
    assert words.rstrip().endswith(train)


def test_sigterm_goes_to_the_processes_of_every_node(start, tmp_path):
    job = start(None)
    assert job.stdout.readline() == "started\n"
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 0
    assert requeued(tmp_path)
