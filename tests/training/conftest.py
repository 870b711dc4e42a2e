"""Clips, shards, and a server of training processes for the tests of this folder."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shards import pack
from train_processes import SHARD_SIZES, Run, train_server

from hf_timesformer.data.synthetic import make_motion_dataset


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("clips")
    return make_motion_dataset(target, splits={"train": 4, "validation": 1}, num_frames=6, size=40)


@pytest.fixture(scope="session")
def shards(folder, tmp_path_factory) -> Path:
    """The clips of `folder` in tar shards of uneven size: 21 to train on, 5 for validation."""
    target = tmp_path_factory.mktemp("shards")
    names = sorted(path.name for path in (folder / "train").iterdir())
    (target / "labels.json").write_text(json.dumps(names))
    clips = sorted((folder / "train").glob("*/*.mp4"))
    sizes = dict(zip(("train-0", "train-1", "train-2", "train-3"), SHARD_SIZES))
    for shard, size in sizes.items():
        pack(target / f"{shard}.tar", clips[:size])
        clips = clips[size:]
    pack(target / "validation-0.tar", sorted((folder / "validation").glob("*/*.mp4"))[:5])
    return target


@pytest.fixture(scope="module")
def train() -> Iterator[Callable[..., Run]]:
    """Run `timesformer train` in processes of its own, forked from one that has imported everything
    already.
    """
    with train_server() as run:
        yield run
