"""What the scripts share at their edge."""

import gc
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist


# Python puts a script's own folder first on the path, where our evaluate.py would hide the package `evaluate`.
if Path(sys.path[0], "evaluate.py").is_file():
    del sys.path[0]


logger = logging.getLogger(__name__)


@contextmanager
def user_errors() -> Iterator[None]:
    """Print a user's mistake (ValueError, OSError) as one line `error: ...` and leave with exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        # From a DataLoader's worker comes its whole traceback, with the message at its end.
        message = re.split(r"\n[\w.]*Error: ", str(error))[-1]
        print("error: " + " ".join(message.split()), file=sys.stderr)
        sys.exit(2)


def warn_of_lone_process(num_processes: int) -> None:
    """Say it where `accelerate launch --cpu --num_processes N` has started one process, as it does without mpirun."""
    if num_processes == 1 and "MASTER_PORT" in os.environ and "RANK" not in os.environ:
        logger.warning(
            "only one process was started: with --cpu, or where there is no GPU, `accelerate launch` starts more only "
            "by mpirun (--mpirun_hostfile). Type `torchrun --nproc_per_node N %s ...` or `accelerate launch "
            "--multi_gpu --num_processes N %s ...` instead, also on CPUs",
            sys.argv[0],
            sys.argv[0],
        )


def end_process_group() -> None:
    """Leave the group of processes, if this is one of several, and end the threads that served it.

    Call it once no trainer is in scope. The threads end with the last reference to the group, and a network wrapped by
    DDP or FSDP holds one. A thread of gloo that lets go of its last tensor only when Python ends aborts the process.
    """
    if dist.is_initialized():
        gc.collect()  # trainers, with the network that they wrapped, are cycles
        dist.destroy_process_group()
