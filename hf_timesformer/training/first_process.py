"""What the first process of a run finds out for all of them."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list

from .arguments import VideoTrainingArguments


Result = TypeVar("Result")


def of_first_process(work: Callable[[], Result], args: VideoTrainingArguments) -> Result:
    """What `work()` gives in the first process, in every process; all of them must call it.

    Where it fails, no process goes on: the others would wait for the first one, until the launcher
    ends them without a word.

    Args:
        work: called in the first process only; what it gives must be picklable.
        args: of the run.

    Raises:
        Exception: in the first process, what `work` raised.
        ValueError: in the others, that it did, and what.
    """
    if args.world_size == 1:
        return work()
    if args.process_index == 0:
        try:
            result = work()
        except Exception as error:
            broadcast_object_list([None, f"{type(error).__name__}: {error}"])
            raise
        broadcast_object_list([result, None])
        return result
    told: list[Any] = [None, None]
    broadcast_object_list(told)
    result, failure = told
    if failure is not None:
        raise ValueError(
            f"process {args.process_index} ends, because the first one has failed: {failure}"
        )
    return result
