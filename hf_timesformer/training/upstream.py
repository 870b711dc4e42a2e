"""What is private in Trainer and in torch's wrappers, for all of the folder of training.

As in `model/upstream.py`: checked with the versions in `CHECKED`, and
`tests/training/test_trainer_names.py` fails where a release renames one.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.integrations import deepspeed as integration


CHECKED = {"torch": "2.14.1", "transformers": "5.24.0"}

# Methods of `Trainer` that `VideoTrainer` puts something before or after, or calls. Where a release
# calls one by another name, ours is never called, and nothing else tells.
TRAINER_METHODS = (
    "_determine_best_metric",
    "_evaluate",
    "_finalize_training",
    "_get_dataloader",
    "_get_eval_sampler",
    "_get_num_items_in_batch",
    "_get_output_dir",
    "_get_train_sampler",
    "_inner_training_loop",
    "_prepare_for_training",
    "_push_from_checkpoint",
    "_save_checkpoint",
    "_set_signature_columns_if_needed",
)
# What it reads or sets of `Trainer`.
TRAINER_ATTRIBUTES = ("_created_lr_scheduler", "_signature_columns", "_train_batch_size")

# What wrappers put into the names of the parameters that they wrap: FSDP1, torch.compile,
# recomputation, DDP.
WRAPPERS = re.compile(
    r"(^|(?<=\.))(_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module|module)\."
)
FLAT_PARAMETER = "_flat_param"  # how FSDP1 names what it has merged


def shards_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """This process' share of each parameter that learns, by name; the network's own memory.

    Under FSDP1 a share is flat, `(n,)`; under FSDP2 it is some rows, `(rows, ...)`.
    """
    # only where it is needed: not every build of torch has it
    from torch.distributed.tensor import DTensor

    _let_go(model)
    shares = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            share = parameter.data
            shares[name] = share.to_local() if isinstance(share, DTensor) else share
    return shares


def _let_go(model: nn.Module) -> None:
    """Have FSDP forget the whole weights that a pass has gathered.

    A forward pass without a backward pass leaves the outermost unit gathered. Whoever then changes
    the shares would change nothing that the next pass sees.
    """
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
        elif isinstance(module, FullyShardedDataParallel):
            handle = module._handle
            # before the first pass there is nothing to let go of
            if handle is not None and hasattr(handle.flat_param, "_local_shard"):
                handle.reshard(True)


def read_part(model: nn.Module, part: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights of one part of a network, by name in that part; under FSDP, too, in their
    whole shapes `(rows, ...)`.

    All processes must call it.
    """
    if not _is_sharded(model):
        return {name: weight.detach().clone() for name, weight in part.named_parameters()}
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    found = {}
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        for name, weight in part.named_parameters():
            whole: Any = weight
            if isinstance(weight, DTensor):
                # with `cpu_offload` it lies where no process can gather it
                whole = whole.to(weight.device_mesh.device_type).full_tensor()
            found[name] = whole.detach().clone()
    return found


@torch.no_grad()
def write_part(model: nn.Module, part: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Give one part of a network the weights `values`, by name in that part and in their whole shapes
    `(rows, ...)`; under FSDP each process keeps its share.

    All processes must call it, with the same values.
    """
    if not _is_sharded(model):
        for name, weight in part.named_parameters():
            weight.copy_(values[name])
        return
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor, distribute_tensor

    _let_go(model)
    with FullyShardedDataParallel.summon_full_params(model):
        for name, weight in part.named_parameters():
            value = values[name].to(weight)
            if isinstance(weight, DTensor):
                weight.copy_(distribute_tensor(value, weight.device_mesh, weight.placements))
            else:
                weight.copy_(value)


def _is_sharded(model: nn.Module) -> bool:
    """Whether FSDP has spread the network over the processes."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return any(
        isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules()
    )


@contextmanager
def whole_weights() -> Iterator[None]:
    """Networks that are made inside this block have their weights whole, under ZeRO-3 too.

    There transformers deals each weight out while it loads it, and whoever then reads it, to make
    one network of another, finds it empty. DeepSpeed deals out what is whole later, when the
    training begins.
    """
    reference = integration._hf_deepspeed_config_weak_ref
    config = None if reference is None else reference()
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            integration.set_hf_deepspeed_config(config)
