"""Clips, shards, and a server of training processes for the tests of this folder."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shards import pack
from train_processes import SHARD_SIZES, Run, train_server
from transformers import ViTConfig, ViTModel, set_seed

from hf_timesformer.data.synthetic import make_motion_dataset
from hf_timesformer.training.arguments import DataArguments, ModelArguments, VideoTrainingArguments


NETWORK = (
    "image_size=32,patch_size=16,hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,"
    "num_frames=2,initializer_range=0.2"
)


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


@pytest.fixture(scope="session")
def vit(tmp_path_factory) -> Path:
    """An image ViT to start from, of 32 pixels."""
    set_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32,
        patch_size=16, initializer_range=0.2,
    )  # fmt: skip
    target = tmp_path_factory.mktemp("vit")
    ViTModel(config).save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def train() -> Iterator[Callable[..., Run]]:
    """Run `timesformer train` in processes of its own, forked from one that has imported everything
    already.
    """
    with train_server() as run:
        yield run


@pytest.fixture
def arguments(folder, tmp_path):
    """The three groups of arguments of a tiny run; a name goes to the group that has it."""

    def make(output: str = "run", **given):
        given = {
            "config_overrides": NETWORK,
            "sampling_rate": 2,
            "recipe": "none",
            "data_dir": str(folder),
        } | given
        given |= {
            "output_dir": str(tmp_path / output),
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
        }
        given = {
            "dataloader_num_workers": 0,
            "num_train_epochs": 1,
            "learning_rate": 0.01,
            "optim": "sgd",
        } | given
        groups = []
        for kind in (ModelArguments, DataArguments, VideoTrainingArguments):
            names = [name for name in given if name in kind.__dataclass_fields__]
            groups.append(kind(**{name: given.pop(name) for name in names}))
        assert not given
        return groups

    return make
