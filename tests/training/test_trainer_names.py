"""What is private in Trainer and torch's wrappers still is what `training/upstream.py` says."""

import ast
import inspect
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_sharded_data_parallel
from transformers import Trainer

from hf_timesformer import VideoTrainer
from hf_timesformer.training import upstream


FOLDER = Path(upstream.__file__).parent
SOURCE = inspect.getsource(sys.modules[Trainer.__module__])


@pytest.mark.parametrize("name", upstream.TRAINER_METHODS)
def test_methods_of_trainer_are_still_called(name):
    assert callable(getattr(Trainer, name))
    assert f"self.{name}" in SOURCE


@pytest.mark.parametrize("name", upstream.TRAINER_ATTRIBUTES)
def test_attributes_of_trainer_are_still_read(name):
    assert f"self.{name}" in SOURCE


def test_nothing_else_private_is_used_of_trainer():
    """Whatever has an underscore and is Trainer's own is listed."""
    used = {
        node.attr
        for path in FOLDER.glob("trainer*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and not node.attr.startswith("__")
    }
    theirs = {name for name in vars(Trainer) if name.startswith("_") and not name.startswith("__")}
    own = [kind for kind in VideoTrainer.__mro__ if kind.__module__.startswith("hf_timesformer")]
    overridden = {name for kind in own for name in vars(kind)} & theirs
    assert used & theirs | overridden == set(upstream.TRAINER_METHODS)


def test_names_that_wrappers_put_in():
    compiled = torch.compile(nn.Linear(2, 2))
    wrapped = checkpoint_wrapper(nn.Linear(2, 2))
    parallel = nn.DataParallel(nn.Linear(2, 2))
    names = [name for module in (compiled, parallel) for name in module.state_dict()]
    names += [f"{name}.weight" for name, _ in wrapped.named_children()]
    assert len(names) == 5
    assert {upstream.WRAPPERS.sub("", name) for name in names} == {"weight", "bias"}
    fsdp = f"{fully_sharded_data_parallel.FSDP_WRAPPED_MODULE}.weight"
    assert upstream.WRAPPERS.sub("", fsdp) == "weight"
    assert fully_sharded_data_parallel.FLAT_PARAM == upstream.FLAT_PARAMETER
