"""A pool of processes that survives what it is fed: an input that kills its process is named, the
others go on.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait as wait_for_sentinel
from typing import Any


# the result of an input whose process died (a crash of a native library, out of memory)
PROCESS_DIED = object()


def run_in_workers(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    num_workers: int,
    preload: Sequence[str] = (),
) -> Iterator[tuple[Any, Any]]:
    """`(item, function(item))` as they come from worker processes, in whichever order they are
    done.

    When this process is killed, the workers end too.

    Args:
        function: what is done to each item; it and the items must be picklable.
        items: read only as fast as the workers take them.
        num_workers: processes; with 0 all is done in this process, which a fatal item then ends.
        preload: names of modules that are imported once, in the process that all workers are forked
            from; without it each worker spends the seconds of `function`'s imports itself.

    Yields:
        Each item with its result, or with `PROCESS_DIED` where it killed its process.

    Raises:
        Exception: whatever `function` raises ends the run and is raised here.
    """
    items = iter(items)
    if num_workers == 0:
        yield from ((item, function(item)) for item in items)
        return
    while True:
        suspects = yield from _run_pool(function, items, num_workers, preload)
        if not suspects:
            return
        for item in suspects:  # one of these was fatal: each alone tells which
            if (yield from _run_pool(function, iter([item]), 1, preload)):
                yield item, PROCESS_DIED


def _run_pool(
    function: Callable, items: Iterator, num_workers: int, preload: Sequence[str]
) -> Generator[tuple[Any, Any], None, list]:
    """Run until `items` end (returns []) or a process dies (returns the items that were under way)."""
    context = multiprocessing.get_context(_start_method())
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(list(preload))
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_follow_parent)
    pending: dict[Future, Any] = {}
    refused = []
    try:
        while True:
            for item in islice(items, 2 * num_workers - len(pending)):
                refused = [item]
                pending[pool.submit(function, item)] = item
                refused = []
            if not pending:
                return []
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                result = future.result()
                yield pending.pop(future), result
    except BrokenProcessPool:
        return [*pending.values(), *refused]
    finally:
        pool.shutdown(cancel_futures=True)


def _start_method() -> str:
    """Plain fork would copy torch's threads in a broken state. Windows has only `spawn`: each
    worker imports anew.
    """
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it is gone, even by `kill -9`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("a worker is started by multiprocessing, and this process was not")
    wait_for_sentinel([parent.sentinel])
    os._exit(1)
