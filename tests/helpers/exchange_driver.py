"""Pairs of CPU processes of test_rank_exchange.py: `exchange_driver.py FOLDER`. Writes
`<case>-<rank>.json`.

In each case rank 0 has one row and is done at once. Rank 1 has eight and is slow, or is killed or
hangs after two.
"""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from ports import free_port

from hf_timesformer.evaluation import rank_exchange as evaluation


ROWS = 8
TIMEOUTS = {"slow": 3, "killed": 60, "hung": 3}  # seconds; the slow rank needs 4.8


def one_rank(case: str, rank: int) -> list[str]:
    """The rows that this rank has in the end."""
    evaluation.ROUND_SECONDS, evaluation.RANK_TIMEOUT = 0.3, timedelta(seconds=TIMEOUTS[case])
    evaluation.make_accelerator(cpu=True)
    exchange = evaluation.ResultExchange()
    if rank == 0:
        exchange.add(["0"])
        return exchange.finish()
    for row in range(ROWS):
        if case != "slow" and row == 2:
            if case == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        time.sleep(0.6)
        exchange.add([f"1.{row}"])
    return exchange.finish()


def run(case: str, rank: int, port: int, folder: Path) -> None:
    places = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1")
    start = time.monotonic()
    try:
        outcome = {"rows": one_rank(case, rank)}
    except RuntimeError as error:
        outcome = {"error": str(error)}
    outcome["seconds"] = time.monotonic() - start
    (folder / f"{case}-{rank}.json").write_text(json.dumps(outcome))


def main() -> None:
    torch.set_num_threads(1)
    children = {}
    for case in TIMEOUTS:
        port = free_port()
        for rank in range(2):
            children[case, rank] = os.fork()
            if children[case, rank] == 0:
                run(case, rank, port, Path(sys.argv[1]))
                os._exit(0)
    hung = children.pop(("hung", 1))
    for child in children.values():
        os.waitpid(child, 0)
    os.kill(hung, signal.SIGKILL)


if __name__ == "__main__":
    main()
