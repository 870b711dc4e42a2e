"""TimeSformer weights of mmaction2 under the names of the official code, which
`official_checkpoint` understands.

mmaction2 trained all three schemes on Kinetics-400; joint and space-only attention have no other
public weights. Its network computes what the official one does. Only names differ, and they differ
between the schemes: divided attention keeps each LayerNorm inside the layer that it comes before,
the two others keep both in the block.

    backbone.transformer_layers.layers.3.attentions.0.attn.in_proj_weight
    -> blocks.3.temporal_attn.qkv.weight   (divided: the first attention is that over time)
    -> blocks.3.attn.qkv.weight            (joint, space-only: there is only one)

Source of the names: mmaction2's `TimeSformer`, `DividedTemporalAttentionWithNorm`,
`DividedSpatialAttentionWithNorm`, `FFNWithNorm` and `TimeSformerHead`;
`torch.nn.MultiheadAttention` for `in_proj_weight` (q, k and v in one, as in `qkv`) and `out_proj`;
mmcv's `FFN` for `layers.0.0` and `layers.1`.
"""

import re

import torch


State = dict[str, torch.Tensor]

# What mmaction2's configs normalise with, and how they sample: 8 frames, one in 32.
MMACTION2_SETTINGS = {
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "sampling": "clip",
    "sampling_rate": 32,
}

BLOCK = re.compile(r"transformer_layers\.layers\.(\d+)\.(.+)\.(weight|bias)")
OUTSIDE = {"patch_embed.projection": "patch_embed.proj", "fc_cls": "head"}
SHARED_IN_BLOCK = {"ffns.0.layers.0.0": "mlp.fc1", "ffns.0.layers.1": "mlp.fc2"}
DIVIDED_IN_BLOCK = {
    **SHARED_IN_BLOCK,
    "attentions.0.norm": "temporal_norm1",
    "attentions.0.attn.in_proj": "temporal_attn.qkv",
    "attentions.0.attn.out_proj": "temporal_attn.proj",
    "attentions.0.temporal_fc": "temporal_fc",
    "attentions.1.norm": "norm1",
    "attentions.1.attn.in_proj": "attn.qkv",
    "attentions.1.attn.out_proj": "attn.proj",
    "ffns.0.norm": "norm2",
}
ONE_ATTENTION_IN_BLOCK = {
    **SHARED_IN_BLOCK,
    "norms.0": "norm1",
    "attentions.0.attn.in_proj": "attn.qkv",
    "attentions.0.attn.out_proj": "attn.proj",
    "norms.1": "norm2",
}


def is_from_mmaction2(state: State) -> bool:
    """Whether weights have mmaction2's names, as a whole recognizer or as its backbone alone."""
    return any(
        name.removeprefix("backbone.").startswith("transformer_layers.layers.") for name in state
    )


def rename_from_mmaction2(state: State) -> State:
    """mmaction2's weights under the official code's names; a name that no table has is left as it
    is.

    So whoever reads the result meets such a name once more, and can say that it has no place.
    """
    names = {name: name.removeprefix("backbone.").removeprefix("cls_head.") for name in state}
    is_divided = any(".attentions.1." in name for name in names)
    in_block = DIVIDED_IN_BLOCK if is_divided else ONE_ATTENTION_IN_BLOCK
    return {_official_name(short, in_block, name): state[name] for name, short in names.items()}


def _official_name(short: str, in_block: dict[str, str], original: str) -> str:
    # `in_proj_weight` is a parameter of the attention itself, so that no dot stands before
    # "weight".
    short = re.sub(r"\.in_proj_(weight|bias)$", r".in_proj.\1", short)
    match = BLOCK.fullmatch(short)
    if match:
        number, layer, kind = match.groups()
        return f"blocks.{number}.{in_block[layer]}.{kind}" if layer in in_block else original
    layer, _, kind = short.rpartition(".")
    return f"{OUTSIDE[layer]}.{kind}" if layer in OUTSIDE else short
