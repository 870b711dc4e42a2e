"""DDP and FSDP in two CPU processes do what one process does with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_driver import CLIPS, LABELS, WRAPPERS
from tiny import SCHEMES, assert_close, tiny_model


DRIVER = Path(__file__).parents[1] / "helpers" / "distributed_driver.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What the two processes saw."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, str(DRIVER), str(rank), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=600)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, error in zip(running, errors):
        assert process.returncode == 0, error[-3000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module", params=SCHEMES)
def single(request) -> tuple[str, dict]:
    """One process, the whole batch."""
    model = tiny_model(request.param)
    with torch.no_grad():
        before = model(CLIPS).logits
    loss = model.train()(CLIPS, labels=LABELS).loss
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.05).step()
    with torch.no_grad():
        after = model.eval()(CLIPS).logits
    return request.param, {"before": before, "loss": loss.detach(), "after": after}


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_two_processes_equal_one(wrapper, single, ranks):
    """Logits, the loss, and logits after a step: every gradient was there, and the mean of both
    halves'. What is written into the classifier afterwards is what the next pass runs with.
    """
    scheme, expected = single
    seen = [rank[scheme, wrapper] for rank in ranks]
    assert_close(torch.cat([rank["before"] for rank in seen]), expected["before"], 1e-5)
    assert_close(torch.stack([rank["loss"] for rank in seen]).mean(), expected["loss"], 1e-5)
    assert (expected["after"] - expected["before"]).abs().max() > 0.01
    assert_close(torch.cat([rank["after"] for rank in seen]), expected["after"], 1e-4)
    assert_close(torch.cat([rank["doubled"] for rank in seen]), 2 * expected["after"], 2e-4)
