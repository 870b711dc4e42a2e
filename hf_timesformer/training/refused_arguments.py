"""Arguments of `Trainer` and `TrainingArguments` that would do nothing, or something else, in
`VideoTrainer`.

Each is refused by name. All others are honoured; a test holds that every public argument is one or
the other.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from transformers import TrainingArguments


class Refusal(NamedTuple):
    """Which values of an argument are refused, and why."""

    applies: Callable[[Any], bool]
    reason: str


def _given(value: Any) -> bool:
    return bool(value)


REFUSED = {
    "neftune_noise_alpha": Refusal(
        _given, "it adds noise to the embeddings of text tokens, which a video has not"
    ),
    "use_liger_kernel": Refusal(_given, "there are no Liger kernels for TimeSformer"),
    "liger_kernel_config": Refusal(_given, "there are no Liger kernels for TimeSformer"),
    "use_cache": Refusal(_given, "nothing is generated token by token"),
    "batch_eval_metrics": Refusal(
        _given, "the metrics need all clips at once (their mean over classes)"
    ),
    "eval_do_concat_batches": Refusal(
        lambda value: not value, "the metrics need all clips at once"
    ),
    "parallelism_config": Refusal(
        _given, "context and tensor parallelism are not there for clips: take FSDP"
    ),
    "label_names": Refusal(
        lambda value: value not in (None, ["labels"]), "the labels of a batch are called 'labels'"
    ),
    "do_predict": Refusal(_given, "use `timesformer evaluate` or `predict()`"),
}
# Of data sets of clips only: their order follows from the seed and the epoch alone, so that a run
# can go on exactly.
REFUSED_FOR_CLIPS = {
    "train_sampling_strategy": Refusal(
        lambda value: value != "random",
        "clips come in an order of their own, from which a run resumes exactly",
    ),
}
REFUSED_ACCELERATOR = ("split_batches", "dispatch_batches")


def refuse(args: TrainingArguments, *, has_clips: bool) -> None:
    """Raise ValueError that names the first argument that would not do what it says, and why."""
    table = REFUSED | (REFUSED_FOR_CLIPS if has_clips else {})
    for name, refusal in table.items():
        if refusal.applies(getattr(args, name, None)):
            raise ValueError(
                f"--{name} {getattr(args, name)} does not go with VideoTrainer: {refusal.reason}"
            )
    for name in REFUSED_ACCELERATOR:
        if has_clips and getattr(args.accelerator_config, name, None):
            raise ValueError(
                f"accelerator_config {name} does not go with VideoTrainer: each process reads its own clips, in "
                "batches of its own"
            )
