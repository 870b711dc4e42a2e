"""One of two CPU processes of test_distributed.py: `python distributed_driver.py RANK FOLDER`.

Trains one step and evaluates under DDP, FSDP and FSDP2, each rank on its half of the batch, and
writes what it saw.
"""

import functools
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny import SCHEMES, clips, tiny_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.nn.parallel import DistributedDataParallel
from transformers.trainer_pt_utils import get_module_class_from_name

from hf_timesformer.training.upstream import read_part, shards_of, write_part


CLIPS, LABELS = clips(4, 4, 3, 12, 8), torch.tensor([0, 3, 1, 4])


def wrap_ddp(model):
    return DistributedDataParallel(model)


def wrap_fsdp(model):
    """As Trainer and accelerate do: a unit for each class that `_no_split_modules` names."""
    classes = {get_module_class_from_name(model, name) for name in model._no_split_modules}
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=classes)
    return FullyShardedDataParallel(
        model, auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=True
    )


def wrap_fsdp2(model):
    mesh = init_device_mesh("cpu", (2,))
    names = set(model._no_split_modules)
    for module in model.modules():
        if type(module).__name__ in names:
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPPERS = {"ddp": wrap_ddp, "fsdp": wrap_fsdp, "fsdp2": wrap_fsdp2}


def one_step(model, rank: int) -> dict:
    """Loss of this rank's half; its logits in evaluation, before and after a step, and with a
    classifier of twice the weights.
    """
    half = slice(2 * rank, 2 * rank + 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with torch.no_grad():
        before = model.eval()(CLIPS[half]).logits
    loss = model.train()(CLIPS[half], labels=LABELS[half]).loss
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        after = model.eval()(CLIPS[half]).logits
        classifier = getattr(model, "module", model).classifier
        weights = read_part(model, classifier)
        write_part(model, classifier, {name: 2 * weight for name, weight in weights.items()})
        shards_of(model)  # lets go of what the pass before has gathered: the shares count
        doubled = model(CLIPS[half]).logits
    return {"before": before, "loss": loss.detach(), "after": after, "doubled": doubled}


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2
    )
    seen = {}
    for scheme in SCHEMES:
        for name, wrap in WRAPPERS.items():
            seen[scheme, name] = one_step(wrap(tiny_model(scheme)), rank)
    torch.save(seen, folder / f"rank{rank}.pt")
    # FSDP2's caches keep the group; a thread of gloo that Python's end finds at work aborts the
    # process
    os._exit(0)


if __name__ == "__main__":
    main()
