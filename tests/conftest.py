"""Fixtures that several test modules use."""

import os
import random
import sys
from pathlib import Path

import numpy
import pytest
import torch


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# `import openvino` reports to Google Analytics by processes that it forks from a thread of this one,
# which holds torch's threads: neither has a place in a test. Without the package it uses its own stub.
sys.modules.setdefault("openvino_telemetry", None)

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that read the developers' folder of real clips, so that `-m "not shared"`
    leaves them out. The files that hold slow tests come first: where processes share the files,
    none is left alone with one of them at the end.
    """
    for item in items:
        if "shared_dir" in getattr(item, "fixturenames", ()):
            item.add_marker("shared")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def same_chance() -> None:
    """Each test draws the same numbers, whatever ran before it in the process."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The developers' folder of real clips and weights; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real clips is not beside this checkout")
    return SHARED
