"""`scripts/train.py` with witnesses, for tests: what each step took, what was decoded, and a death at a chosen moment.

Environment: TRAIN_LOG names a folder for one log a process; DIE_AT_STEP kills the process with that many steps done;
DIE_SAVING kills it halfway through the checkpoint of that step.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

import torch
import transformers

from hf_timesformer import loading, training


torch.set_num_threads(1)
rank = os.environ.get("RANK", "0")
log = Path(os.environ["TRAIN_LOG"])


def note(kind: str, text: str) -> None:
    with (log / f"{kind}-{rank}.txt").open("a") as file:
        file.write(f"{text}\n")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def watch(owner: type, name: str, before) -> None:
    original = getattr(owner, name)

    def watched(self, *args, **kwargs):
        before(self, *args)
        return original(self, *args, **kwargs)

    setattr(owner, name, watched)


def die_at_step(trainer, *args) -> None:
    if trainer.state.global_step == int(os.environ.get("DIE_AT_STEP", -1)):
        die()


def die_saving(trainer, *args) -> None:
    if trainer.state.global_step == int(os.environ.get("DIE_SAVING", -1)):
        die()


take_batches = transformers.Trainer.get_batch_samples


def watch_batches(self, *args):
    batches, count = take_batches(self, *args)
    for batch in batches:
        note("steps", " ".join(batch["video_ids"]))
    return batches, count


transformers.Trainer.get_batch_samples = watch_batches
watch(training.VideoTrainer, "training_step", die_at_step)
watch(training.VideoTrainer, "_save_optimizer_and_scheduler", die_saving)
watch(
    loading.TrainingClips, "__getitem__", lambda clips, key: note("decoded", f"{key.epoch} {key.index} {key.stream}")
)

script = Path(__file__).parents[1] / "scripts" / "train.py"
sys.argv[0] = str(script)
runpy.run_path(str(script), run_name="__main__")
