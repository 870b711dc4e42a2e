"""Pretrained image ViTs as the weights of a TimeSformer."""

import os
import re
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging


VitSource: TypeAlias = str | os.PathLike | PreTrainedModel
State = dict[str, torch.Tensor]

# Our names (below `timesformer.`) by timm's, which are the official code's too (`conversion.py`).
TIMM_NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
TIMM_BLOCK = r"blocks\.(\d+)\."
TIMM_BLOCK_NAMES = {
    "norm1": "layernorm_before",
    "attn.qkv": "attention.attention.qkv",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
# The same by transformers' names, once q, k and v are one. DINOv2 has a layout of its own.
VIT_BLOCK = r"(?:encoder\.)?layers?\.(\d+)\."
VIT_BLOCK_NAMES = {
    "layernorm_before": "layernorm_before",
    "attention.qkv": "attention.attention.qkv",
    "attention.o_proj": "attention.output.dense",
    "layernorm_after": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
}
# What LayerScale multiplies: the output of these layers.
SCALED = {
    "ls1.gamma": "attention.output.dense",
    "ls2.gamma": "output.dense",
    "layer_scale1.lambda1": "attention.output.dense",
    "layer_scale2.lambda1": "output.dense",
}
# What the ViT's weights settle.
SETTLED = (
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
)
# The parts of a block that its earlier steps start from.
STEP = r"(encoder\.layer\.\d+\.)(attention|layernorm)(?:_before)?\.(.*)"
# Of a ViT, what a TimeSformer does not take.
UNUSED = r"pooler\.|embeddings\.mask_token"
HEADS_OF = 64  # channels of a head in every ViT that timm has, which its files do not tell


def load_vit(vit: VitSource) -> tuple[dict, State]:
    """Config fields of a TimeSformer and the weights that it shares with `vit`, fp32, named as
    below `timesformer.`.

    Raises:
        ValueError: if `vit` is no plain ViT, DeiT or DINOv2, or its checkpoint lacks weights.
    """
    if isinstance(vit, PreTrainedModel):
        return from_transformers(vit)
    if str(vit).endswith(".safetensors"):
        if not Path(vit).is_file():
            raise ValueError(f"from_vit: there is no file {str(vit)!r}.")
        return from_timm(load_file(vit), str(vit))
    return from_transformers(_load(vit))


def _load(vit: str | os.PathLike) -> PreTrainedModel:
    """A ViT of transformers without its head, whichever its checkpoint has.

    transformers would list that head, and the pooler that no TimeSformer has, as findings.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, found = AutoModel.from_pretrained(vit, output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    missing = [name for name in found["missing_keys"] if not re.match(UNUSED, name)]
    if missing:
        raise ValueError(
            f"from_vit: {str(vit)!r} lacks weights of its {model.config.model_type}, such as {min(missing)}."
        )
    return model


def from_timm(state: State, source: str) -> tuple[dict, State]:
    """Weights with timm's names.

    Raises:
        ValueError: the names are not timm's.
    """
    if "pos_embed" not in state or "blocks.0.attn.qkv.weight" not in state:
        raise ValueError(
            f"from_vit: {source!r} has no ViT's weights under timm's names (blocks.0.attn.qkv.weight, ...)."
        )
    state = {
        name: value.float()
        for name, value in state.items()
        if not name.startswith(("head", "fc_norm"))
    }
    renamed = rename_weights(
        state, TIMM_NAMES, TIMM_BLOCK, TIMM_BLOCK_NAMES, f"from_vit: {source!r} is no plain ViT"
    )
    return fields_of(renamed, f"from_vit: {source!r}"), renamed


def fields_of(renamed: State, source: str) -> dict:
    """The config fields that weights with timm's names, renamed, tell. Raises ValueError for a
    grid that is no square.

    Heads are not among what they tell: `HEADS_OF` channels each.
    """
    hidden, channels, *patch = renamed["embeddings.patch_embeddings.projection.weight"].shape
    patches = renamed["embeddings.position_embeddings"].shape[1] - 1
    rows = round(patches**0.5)
    if rows * rows != patches:
        raise ValueError(
            f"{source}: position embeddings of {patches} patches, which make no square grid."
        )
    image = [rows * patch[0], rows * patch[1]]
    return {
        "image_size": image[0] if image[0] == image[1] else image,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "num_channels": channels,
        "hidden_size": hidden,
        "num_hidden_layers": 1
        + max(int(name.split(".")[2]) for name in renamed if name.startswith("encoder.layer.")),
        "num_attention_heads": max(1, hidden // HEADS_OF),
        "intermediate_size": renamed["encoder.layer.0.intermediate.dense.weight"].shape[0],
        "qkv_bias": "encoder.layer.0.attention.attention.qkv.bias" in renamed,
        "layer_norm_eps": 1e-6,
    }


def from_transformers(model: PreTrainedModel) -> tuple[dict, State]:
    """Weights of a ViT, DeiT or DINOv2 of transformers, with or without a head.

    Raises:
        ValueError: it is no plain ViT, DeiT or DINOv2.
    """
    config, model = model.config, model.base_model
    if config.model_type not in ("vit", "deit", "dinov2") or getattr(
        config, "use_swiglu_ffn", False
    ):
        raise ValueError(
            f"from_vit: a {config.model_type!r} model with this config is no plain ViT, DeiT or DINOv2."
        )
    state = {name: value.detach().float() for name, value in model.state_dict().items()}
    for name in ("pooler.dense.weight", "pooler.dense.bias", "embeddings.mask_token"):
        state.pop(name, None)
    # DeiT: CLS, distillation token, patches
    if state.pop("embeddings.distillation_token", None) is not None:
        positions = state["embeddings.position_embeddings"]
        state["embeddings.position_embeddings"] = torch.cat(
            (positions[:, :1], positions[:, 2:]), dim=1
        )
    outside = (
        "embeddings.cls_token",
        "embeddings.position_embeddings",
        "embeddings.patch_embeddings.projection",
    )
    names = {name: name for name in (*outside, "layernorm")}
    complaint = f"from_vit: this {config.model_type!r} model is no plain ViT"
    renamed = rename_weights(_join_qkv(state), names, VIT_BLOCK, VIT_BLOCK_NAMES, complaint)
    fields = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.num_channels,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": renamed["encoder.layer.0.intermediate.dense.weight"].shape[0],
        "hidden_act": config.hidden_act,
        "qkv_bias": config.qkv_bias,
        "layer_norm_eps": config.layer_norm_eps,
    }
    return fields, renamed


def _join_qkv(state: State) -> State:
    joined = {}
    for name, value in state.items():
        if ".q_proj." in name:
            parts = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            joined[name.replace("q_proj", "qkv")] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            joined[name] = value
    return joined


def rename_weights(
    state: State, names: dict, block: str, block_names: dict, complaint: str
) -> State:
    """Give weights our names and multiply LayerScale into the projections.

    `block` matches how a block's names begin and captures its number. Raises ValueError, which
    begins with `complaint`, for names that neither table has.
    """
    renamed, scales, unknown = {}, {}, []
    for name, value in state.items():
        match = re.match(block, name)
        rest = name[match.end() :] if match else name
        place = f"encoder.layer.{match[1]}." if match else ""
        if match and rest in SCALED:
            scales[place + SCALED[rest]] = value
            continue
        table = block_names if match else names
        stem, _, kind = rest.rpartition(".")
        if rest in table:
            renamed[place + table[rest]] = value
        elif stem in table and kind in ("weight", "bias"):
            renamed[f"{place}{table[stem]}.{kind}"] = value
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"{complaint}: no place for {', '.join(sorted(unknown)[:5])}.")
    for name, scale in scales.items():
        renamed[f"{name}.weight"] = renamed[f"{name}.weight"] * scale[:, None]
        renamed[f"{name}.bias"] = renamed[f"{name}.bias"] * scale
    return renamed


def fold_colours(fields: dict, state: State, num_channels: int | None) -> None:
    """Make the patch embedding one for grey clips where `num_channels` is 1: for equal colours it
    gives the same.

    A grey pixel `x` is the colour `(x, x, x)`, and `w_r x + w_g x + w_b x = (w_r + w_g + w_b) x`.
    """
    name = "embeddings.patch_embeddings.projection.weight"
    if num_channels == 1 < fields["num_channels"]:
        # (d, 3, height, width) -> (d, 1, height, width)
        state[name] = state[name].sum(dim=1, keepdim=True)
        fields["num_channels"] = 1


def refuse_contradictions(fields: dict, overrides: dict) -> None:
    """Raise ValueError for config fields that say something else than the ViT's weights."""
    for name in SETTLED:
        if overrides.get(name, fields[name]) != fields[name]:
            raise ValueError(
                f"from_vit: {name}={overrides[name]!r}, but the ViT has {fields[name]!r}."
            )


def start_steps(state: State, earlier_steps: tuple[str, ...]) -> State:
    """`state`, and each of `earlier_steps` as a copy of its block's own attention and LayerNorm."""
    copies = {}
    for name, value in state.items():
        match = re.match(STEP, name)
        if match is None:
            continue
        for step in earlier_steps:
            copies[f"{match[1]}{step}_{match[2]}.{match[3]}"] = value
    return state | copies


def load_shared(model: nn.Module, state: State) -> None:
    """Load `state`, in which only what no ViT has is missing: the extra dense layers and the time
    embeddings.

    Raises:
        ValueError: something else is missing, or unknown.
    """
    incompatible = model.load_state_dict(state, strict=False)
    missing = [
        n
        for n in incompatible.missing_keys
        if not n.split(".")[-2].endswith("_dense") and "time_" not in n
    ]
    if missing or incompatible.unexpected_keys:
        raise ValueError(
            f"from_vit: missing {missing}, unknown {incompatible.unexpected_keys} in the ViT's weights."
        )
