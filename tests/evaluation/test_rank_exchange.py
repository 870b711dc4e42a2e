"""The exchange of results between real processes: a slow rank is waited for, a lost one is not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


DRIVER = Path(__file__).parents[1] / "helpers" / "exchange_driver.py"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict]:
    """What each rank of each case ended with, by `<case>-<rank>`."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


def test_slow_rank_is_waited_for_longer_than_the_timeout(outcomes):
    expected = ["0", *(f"1.{row}" for row in range(8))]
    assert sorted(outcomes["slow-0"]["rows"]) == sorted(outcomes["slow-1"]["rows"]) == expected
    assert outcomes["slow-0"]["seconds"] > 4.5  # and the timeout is 3


@pytest.mark.parametrize("case", ["killed", "hung"])
def test_lost_rank_ends_the_evaluation(outcomes, case: str):
    seen = outcomes[f"{case}-0"]
    assert "another process of this evaluation has died, or was silent for" in seen["error"]
    # the killed rank long before the timeout of 60 s, the hung one soon after that of 3 s
    assert seen["seconds"] < 10
    assert f"{case}-1" not in outcomes
