"""Which checkpoints of a run are whole, so that one that was cut off by a kill is never gone on from."""

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from transformers.trainer import TRAINER_STATE_NAME


logger = logging.getLogger(__name__)

INCOMPLETE = "incomplete"  # stands in a checkpoint for as long as it is being written
BAD_CLIPS = "bad_clips.json"
DATA_ORDER = "data_order.json"
RUN_LOCK = "_run.lock"  # the underscore keeps Trainer from pushing it to the Hub
WAIT_SECONDS = 20  # decoding workers outlive a killed run by some seconds, and hold its lock
_CHECKPOINT = re.compile(r"checkpoint-(\d+)$")


def list_checkpoints(output_dir: str | Path, *, whole: bool = True) -> list[Path]:
    """Checkpoint folders of a run by step: the whole ones, or those that a kill has left half-written."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if _CHECKPOINT.search(path.name)]
    folders = [path for path in folders if _is_whole(path) == whole]
    return sorted(folders, key=lambda path: int(_CHECKPOINT.search(path.name)[1]))


def _is_whole(checkpoint: Path) -> bool:
    return (checkpoint / TRAINER_STATE_NAME).is_file() and not (checkpoint / INCOMPLETE).exists()


def find_checkpoint(output_dir: str | Path, wanted: str) -> Path:
    """The checkpoint folder to go on from: `wanted`, or with `"last"` the last whole one in `output_dir`.

    Raises ValueError where there is none, or where the run was killed while `wanted` was being written.
    """
    if wanted.lower() in ("last", "true"):
        found = list_checkpoints(output_dir)
        if not found:
            raise ValueError(
                f"{output_dir} holds no whole checkpoint to resume from; leave --resume_from_checkpoint out"
            )
        return found[-1]
    path = Path(wanted)
    if not path.is_dir():
        raise ValueError(f"checkpoint {wanted!r} is no folder")
    if not _is_whole(path):
        raise ValueError(
            f"checkpoint {wanted!r} is not whole: the run was killed while saving it. "
            "Give --resume_from_checkpoint without a value to go on from the last whole one"
        )
    return path


def remove_half_written(output_dir: str | Path) -> None:
    """Remove what a kill has left half-written, which Trainer would take for the newest checkpoint."""
    for path in list_checkpoints(output_dir, whole=False):
        logger.warning("%s was being written when the run was killed, and is removed", path)
        shutil.rmtree(path)


@contextmanager
def only_run_in(output_dir: str | Path) -> Iterator[None]:
    """Keep other runs out of the folder while this one is alive; also a `kill -9` gives it back.

    The launchers of torch and accelerate start every process in a session of its own, so a kill may miss one, which
    trains and saves on. Raises ValueError where another run has the folder.
    """
    path = Path(output_dir) / RUN_LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        _acquire(lock, output_dir)
    except Timeout as error:
        raise ValueError(
            f"another run is at work in {output_dir}: end all of its processes, those too that outlived their "
            "launcher, or choose another --output_dir"
        ) from error
    except (OSError, NotImplementedError) as error:
        logger.warning("%s cannot be locked (%s): two runs in it would not notice each other", path, error)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, output_dir: str | Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning(
            "another run, or what is left of a killed one, holds %s: waiting up to %d s", output_dir, WAIT_SECONDS
        )
        lock.acquire(timeout=WAIT_SECONDS)
