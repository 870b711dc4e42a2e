"""`timesformer train` with witnesses, for tests: what each step took, what was decoded, which
threads are left at its end, and a death at a chosen moment.

Environment: TRAIN_LOG names a folder for one log a process; DIE_AT_STEP kills the process with that
many steps done; DIE_SAVING kills it halfway through the checkpoint of that step; TERM_AT_STEP sends
SIGTERM to the process and to its workers, as a scheduler does, with that many steps done;
TERM_EVALUATING does so in the evaluation after that step.

`train_driver.py ARGUMENTS` is one run. `train_driver.py --serve` imports everything once. Then, for
each line `{"argv": [...], "env": [{...}, ...], "output": "..."}` that it reads, it forks a process
for each environment, and answers with the list of their exit codes.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import transformers
from accelerate.state import AcceleratorState, DistributedType, PartialState

from hf_timesformer.cli.train import main as main_of_train
from hf_timesformer.data import clips as loading
from hf_timesformer.training import trainer as training


GRACE = 60  # seconds that the other processes of a failed run have to end
take_batches = transformers.Trainer.get_batch_samples


def note(kind: str, text: str) -> None:
    with Path(os.environ["TRAIN_LOG"], f"{kind}-{os.environ.get('RANK', '0')}.txt").open(
        "a"
    ) as file:
        file.write(f"{text}\n")


def watch_batches(self, *args):
    batches, count = take_batches(self, *args)
    for batch in batches:
        note("steps", " ".join(batch["video_ids"]))
    return batches, count


def watch(owner: type, name: str, before) -> None:
    original = getattr(owner, name)

    def watched(self, *args, **kwargs):
        before(self, *args)
        return original(self, *args, **kwargs)

    setattr(owner, name, watched)


def die_if(variable: str):
    def maybe_die(trainer, *args) -> None:
        if trainer.state.global_step == int(os.environ.get(variable, -1)):
            os.kill(os.getpid(), signal.SIGKILL)

    return maybe_die


def terminate_if(variable: str):
    def maybe_terminate(trainer, *args) -> None:
        if trainer.state.global_step == int(os.environ.get(variable, -1)):
            del os.environ[variable]
            workers = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            for process in [*map(int, workers), os.getpid()]:
                os.kill(process, signal.SIGTERM)

    return maybe_terminate


def shard_on_cpus() -> None:
    """Accelerate leaves FSDP out where there are CPUs only, and says nothing: it is told that these
    are GPUs, just before it looks.
    """
    original = AcceleratorState.__init__

    def initialize(self, *args, **kwargs):
        if kwargs.get("fsdp_plugin") is not None:
            assert PartialState().distributed_type == DistributedType.MULTI_CPU
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        original(self, *args, **kwargs)
        if self.distributed_type == DistributedType.FSDP:
            # without the number that a GPU would have
            self.device = PartialState._shared_state["device"] = torch.device("cpu")

    AcceleratorState.__init__ = initialize


def run(argv: list[str]) -> None:
    main_of_train(argv)
    time.sleep(0.1)  # a thread that has just ended may be listed for a moment
    note(
        "threads",
        " ".join(file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")),
    )


def serve() -> None:
    for line in sys.stdin:
        request, children = json.loads(line), []
        for env in request["env"]:
            children.append(os.fork())
            if children[-1] == 0:
                os._exit(run_in_child(request["argv"], env, request["output"]))
        print(json.dumps(exit_codes(children)), flush=True)


def exit_codes(children: list[int]) -> list[int]:
    """How each ended; those that wait for one that failed are killed after a while, so that no test
    hangs.
    """
    codes, deadline = {}, float("inf")
    while len(codes) < len(children):
        for child in children:
            done, status = (0, 0) if child in codes else os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif child not in codes and time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        if any(codes.values()):
            deadline = min(deadline, time.monotonic() + GRACE)
        time.sleep(0.05)
    return [codes[child] for child in children]


def run_in_child(argv: list[str], env: dict[str, str], output: str) -> int:
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(env)
    try:
        run(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
    return 0


torch.set_num_threads(1)
shard_on_cpus()
transformers.Trainer.get_batch_samples = watch_batches
watch(training.VideoTrainer, "training_step", die_if("DIE_AT_STEP"))
watch(training.VideoTrainer, "training_step", terminate_if("TERM_AT_STEP"))
watch(training.VideoTrainer, "prediction_step", terminate_if("TERM_EVALUATING"))
watch(training.VideoTrainer, "_save_optimizer_and_scheduler", die_if("DIE_SAVING"))
watch(
    loading.TrainingClips,
    "__getitem__",
    lambda clips, key: note("decoded", f"{key.epoch} {key.index} {key.stream}"),
)

if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        run(sys.argv[1:])
