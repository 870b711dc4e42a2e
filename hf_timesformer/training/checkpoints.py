"""Which checkpoints of a run are whole, and which may be removed.

A checkpoint of ours carries a mark: `incomplete` while it is being written, `data_order.json` from
then on. What carries neither is somebody else's, and is never removed.
"""

import logging
import re
import shutil
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME


logger = logging.getLogger(__name__)

INCOMPLETE = "incomplete"  # stands in a checkpoint for as long as it is being written
BAD_CLIPS = "bad_clips.json"
DATA_ORDER = "data_order.json"
# stands in a checkpoint that was saved when an evaluation was due, or was cut off
EVALUATION_DUE = "evaluation_due"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)$")


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The whole checkpoint folders of a run, by step."""
    return [path for path in _by_step(output_dir) if _is_whole(path)]


def _by_step(output_dir: str | Path) -> list[Path]:
    steps = {}
    for path in Path(output_dir).glob("checkpoint-*"):
        match = _CHECKPOINT.search(path.name)
        if match is not None:
            steps[path] = int(match[1])
    return sorted(steps, key=lambda path: steps[path])


def _is_whole(checkpoint: Path) -> bool:
    return (checkpoint / TRAINER_STATE_NAME).is_file() and not (checkpoint / INCOMPLETE).exists()


def find_checkpoint(output_dir: str | Path, wanted: str) -> Path | None:
    """The checkpoint folder to go on from.

    That is `wanted`; with `"last"` the last whole one in `output_dir`; with `"auto"` the same, or
    None where there is none yet, so that one command both starts a run and goes on with it. Raises
    ValueError where there is none, or where the run was killed while `wanted` was being written.
    """
    if wanted.lower() in ("auto", "last", "true"):
        found = list_checkpoints(output_dir)
        if not found and wanted.lower() != "auto":
            raise ValueError(
                f"{output_dir} holds no whole checkpoint to resume from: leave --resume_from_checkpoint out, "
                "or give it the value auto, which starts a run and goes on with it"
            )
        return found[-1] if found else None
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
    """Remove the checkpoints that a kill has left half-written; folders without our mark stay."""
    for path in _by_step(output_dir):
        if (path / INCOMPLETE).exists():
            logger.warning("%s was being written when the run was killed, and is removed", path)
            shutil.rmtree(path)


def remove_old_checkpoints(output_dir: str | Path, keep: int | None, best: str | None) -> None:
    """Remove all whole checkpoints of ours but the last `keep`; the best one stays and counts as
    one of them.

    Where `keep` is 1, the last one stays beside the best one, to resume from. None or 0 keeps all.
    """
    if not keep:
        return
    ours = [path for path in list_checkpoints(output_dir) if (path / DATA_ORDER).is_file()]
    kept = set(ours[-1:])
    if best is not None:
        kept |= {path for path in ours if path.resolve() == Path(best).resolve()}
    for path in reversed(ours):
        if len(kept) < keep:
            kept.add(path)
    for path in ours:
        if path not in kept:
            shutil.rmtree(path)
