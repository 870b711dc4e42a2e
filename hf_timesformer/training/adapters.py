"""LoRA: low-rank adapters learn in place of the network's own weights (Hu et al. 2021)."""

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.utils import SAFE_WEIGHTS_NAME

from ..model.configuration_timesformer import TimeSformerConfig
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from .arguments import ModelArguments, VideoTrainingArguments
from .checkpoints import find_checkpoint


logger = logging.getLogger(__name__)

BASE_FOLDER = "base"  # in the output folder: the network that the adapter is for


def add_adapter(
    network: TimeSformerForVideoClassification, model: ModelArguments, args: VideoTrainingArguments
) -> nn.Module:
    """The network with LoRA adapters that learn together with the classifier, or as it is without
    `--lora_r`.

    The network itself is saved to `base` in the output folder, which the adapter names as its base
    model. A run that goes on has the base of its checkpoint. Blocks that `freeze_depth` freezes get
    no adapter. Raises ValueError where peft is missing, `--freeze` contradicts, or the base of the
    checkpoint is another network.
    """
    if model.lora_r is None:
        return network
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ValueError(
            "--lora_r needs the package peft: pip install peft (extra `peft`)"
        ) from error
    if args.freeze != "none":
        raise ValueError(
            f"--freeze {args.freeze} does not go with --lora_r, which freezes all but the adapters"
        )
    base = Path(args.output_dir) / BASE_FOLDER
    earlier = find_base(args)
    if earlier is not None:
        take_weights(network, earlier)
    # where a run goes on in its own folder the other processes read it now
    if args.should_save and (earlier is None or earlier.resolve() != base.resolve()):
        network.save_pretrained(base)
    network.name_or_path = str(base)
    network.config.name_or_path = str(base)
    num_blocks = network.config.num_hidden_layers
    config = LoraConfig(
        r=model.lora_r,
        lora_alpha=model.lora_alpha or 2 * model.lora_r,
        lora_dropout=model.lora_dropout,
        target_modules=model.lora_targets,
        layers_to_transform=list(range(round((args.freeze_depth or 0.0) * num_blocks), num_blocks)),
        layers_pattern="layer",
        modules_to_save=["classifier"],
    )
    adapted = get_peft_model(network, config)
    learning = sum(
        parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad
    )
    logger.info(
        "LoRA: %d parameters learn, the classifier's among them; the base model is in %s",
        learning,
        base,
    )
    return adapted


def find_base(args: VideoTrainingArguments) -> Path | None:
    """The base model of the checkpoint that the run goes on from; None where it starts."""
    if not args.resume_from_checkpoint:
        return None
    checkpoint = find_checkpoint(args.output_dir, str(args.resume_from_checkpoint))
    base = None if checkpoint is None else checkpoint.parent / BASE_FOLDER
    return base if base is not None and (base / SAFE_WEIGHTS_NAME).is_file() else None


def take_weights(network: nn.Module, base: Path) -> None:
    """Give the network the weights of `base`, and say so where it had others: with another seed,
    say, what starts at random does so differently. Raises ValueError where it is another network.
    """
    weights, own = load_file(base / SAFE_WEIGHTS_NAME), network.state_dict()
    shapes = [{name: w.shape for name, w in each.items()} for each in (weights, own)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the adapters of the checkpoint are for the network in {base}, and this one has other parameters: "
            "start from what that run started from, or choose another --output_dir"
        )
    changed = [name for name, weight in weights.items() if not torch.equal(own[name].cpu(), weight)]
    if changed:
        logger.warning(
            "the base model of the checkpoint, in %s, is taken: the start given now differs from it, such as in %s",
            base,
            changed[0],
        )
        network.load_state_dict(weights)


def merge_adapter(folder: str | Path, config: TimeSformerConfig) -> None:
    """Merge the adapter in an output folder into its base, and save that as a whole model with
    `config` in place of the adapter's files. Where there is none, it has been merged already.

    It takes what lies on disk: the network in training may be spread over the processes.
    """
    from peft import PeftModel

    folder = Path(folder)
    files = list(folder.glob("adapter_*"))
    if not files:
        return
    network = TimeSformerForVideoClassification.from_pretrained(folder / BASE_FOLDER, config=config)
    merged = PeftModel.from_pretrained(network, str(folder)).merge_and_unload()
    for path in files:
        path.unlink()
    merged.save_pretrained(folder)
