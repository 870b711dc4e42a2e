"""SIGTERM while a run trains: it saves where it stands and leaves, so that the same command can go
on.

Cluster schedulers and spot machines send SIGTERM some seconds before they kill. A run that is told
to stop neither evaluates, nor fits its classifier, nor writes a final model, nor publishes.
"""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator
from torch.utils.data import get_worker_info


EXIT_CODE = 128 + signal.SIGTERM  # what a shell shows for a process that SIGTERM has ended


class RunStopped(Exception):
    """SIGTERM has ended the training.

    Args:
        step: the last step that was done.
        checkpoint: what was saved last, None if nothing was to be saved.
    """

    def __init__(self, step: int, checkpoint: Path | None):
        self.step, self.checkpoint = step, checkpoint
        saved = f"saved in {checkpoint}" if checkpoint else "nothing was to be saved"
        super().__init__(
            f"stopped by SIGTERM after step {step}, {saved}: "
            "the same command with --resume_from_checkpoint auto goes on from there"
        )


class StopRequest:
    """Takes SIGTERM down instead of dying of it, inside its `with` block, in the main thread."""

    def __init__(self):
        self.received = False
        self.listens = False
        self._previous = None

    def __enter__(self) -> "StopRequest":
        self.received, self.listens = False, True
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._take_down)
        return self

    def _take_down(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def __exit__(self, *exception: object) -> None:
        self.listens = False
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None


def ignore_sigterm_in_worker(start: Callable[[int], None] | None, worker_id: int) -> None:
    """A DataLoader's `worker_init_fn`: the worker leaves SIGTERM to its parent, which still needs
    the worker's clips.

    A scheduler sends the signal to all processes of a job, and PyTorch's loader raises where a
    worker dies of it. `start`, if any, is the `worker_init_fn` that comes first.
    """
    if start is not None:
        start(worker_id)
    if get_worker_info() is not None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def any_process(flag: bool, accelerator: Accelerator) -> bool:
    """Whether the flag is up in any process; all of them must ask, and all get the same answer."""
    if accelerator.num_processes == 1:
        return flag
    count = torch.tensor(int(flag), device=accelerator.device)
    return bool(accelerator.reduce(count, "sum").item())
