"""LoRA: low-rank adapters learn in place of the network's own weights (Hu et al. 2021)."""

import logging
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..model.modeling_timesformer import TimeSformerForVideoClassification
from .arguments import ModelArguments, VideoTrainingArguments


logger = logging.getLogger(__name__)

BASE_FOLDER = "base"  # in the output folder: the network that the adapter is for


def add_adapter(
    network: TimeSformerForVideoClassification, model: ModelArguments, args: VideoTrainingArguments
) -> nn.Module:
    """The network with LoRA adapters that learn together with the classifier, or as it is without
    `--lora_r`.

    The network itself is saved to `base` in the output folder, which the adapter names as its base
    model. Blocks that `freeze_depth` freezes get no adapter. Raises ValueError where peft is
    missing or `--freeze` contradicts.
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
    if args.should_save:
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


def merge_adapter(adapted: Any, folder: str | Path) -> PreTrainedModel:
    """Merge an adapter into its network, and save that as a whole model in place of the adapter's
    files.
    """
    merged = adapted.merge_and_unload()
    for path in Path(folder).glob("adapter_*"):
        path.unlink()
    merged.save_pretrained(folder)
    return merged
