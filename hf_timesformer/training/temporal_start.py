"""What the temporal half of a network from an image ViT starts from, where few clips must teach it.

A network from an image ViT cannot tell the order of frames at first: its time embeddings are zero,
so that temporal attention compares frames without knowing which comes first. Where the first blocks
are frozen, the time embeddings, which lie below them, never learn either. And its temporal attention
adds nothing: the dense layer behind it is zero. Hundreds of thousands of clips change both; a few
hundred do not. So for them

* the time embeddings are small random numbers, different for each frame;
* each temporal head of a block that learns looks at a part of the clip of its own, whatever the
  frames show;
* the dense layer behind lets through what the heads have found.

Then every patch knows what its place showed at the start, in the middle and at the end of the clip,
each in channels of their own, and what follows can compare them:

    frames    0 1 2 3 4 5 6 7
    head 0    X x . . . . . .
    head 1    . . X X . . . .        four heads; X: where a head looks most
    head 2    . . . . X X . .
    head 3    . . . . . . x X
"""

import logging
from typing import Any

import torch
from torch import nn

from ..model.modeling_timesformer import TimeSformerForVideoClassification


logger = logging.getLogger(__name__)

START_CHOICES = ("attention", "parts")

TIME_DEVIATION = 0.03  # of the time embeddings
SHARPNESS = 1.0  # scores fall by this one part of the clip away from a head's own
DENSE = 0.3  # times the identity


def start_temporal_half(network: TimeSformerForVideoClassification) -> None:
    """Start the time embeddings and the temporal attention of the blocks that learn as described
    above.

    Call it when it is settled which parameters learn (`freeze_parameters`). Schemes without
    temporal attention get the time embeddings alone; a network without time embeddings, such as
    `space_only`, stays as it is. Raises ValueError where queries have no bias.
    """
    embeddings = network.timesformer.embeddings
    if embeddings.time_embeddings is None:
        logger.info("the network has no time embeddings: it starts as the image ViT")
        return
    if not network.config.qkv_bias:
        raise ValueError(
            "temporal heads are pointed by a bias of their queries, and this network has none "
            "(qkv_bias false): give --temporal_start attention"
        )
    nn.init.normal_(embeddings.time_embeddings, std=TIME_DEVIATION)
    count = point_heads(network)
    logger.info(
        "time embeddings start at random, and the temporal heads of %d blocks each with a part of the clip",
        count,
    )


@torch.no_grad()
def point_heads(network: TimeSformerForVideoClassification) -> int:
    """Point the temporal heads of every block that learns; returns how many blocks these are.

    What tells frames apart is the mark that the time embeddings leave in a block's tokens. It is
    read off clips that stand still, in which nothing else differs from frame to frame.
    """
    config, base = network.config, network.timesformer
    rows, columns = config.grid_size
    patch_height, patch_width = base.embeddings.patch_embeddings.patch_size
    size = (config.num_channels, rows * patch_height, columns * patch_width)
    pictures = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0))
    tokens, grid = base.embeddings(pictures.expand(-1, config.num_frames, -1, -1, -1))
    count = 0
    blocks: Any = base.encoder.layer
    for layer in blocks:
        if "temporal" in layer.earlier_steps and layer.temporal_dense.weight.requires_grad:
            patches = layer.temporal_layernorm(tokens[:, 1:]).unflatten(1, grid)  # (b, h, w, t, d)
            marks = patches.mean(dim=(0, 1, 2))  # (t, d)
            point_heads_of(layer, marks - marks.mean(dim=0), config.num_attention_heads)
            count += 1
        tokens = layer(tokens, grid)
    return count


def point_heads_of(layer: Any, marks: torch.Tensor, num_heads: int) -> None:
    """Point the temporal heads of one block, given what tells frames apart there, `marks (t, d)`.

    A head's scores are `query @ key / sqrt(width)`. Its queries become `(sqrt(width), 0, 0, ...)`
    for every token, by their bias alone; so the scores are the keys' first channel. That becomes
    the projection of a token on a direction in which the marks of the frames lie as they should:
    highest in the middle of the head's part, lower by the square of the distance to it. Queries
    still learn from all channels of the keys, which are the ViT's but for the first.
    """
    qkv = layer.temporal_attention.attention.qkv
    width = qkv.in_features // num_heads
    weight = qkv.weight.unflatten(0, (3, num_heads, width))  # queries, keys, values
    bias = qkv.bias.unflatten(0, (3, num_heads, width))
    frames = len(marks)
    places = (torch.arange(frames) + 0.5) / frames * num_heads  # of the frames, in parts
    middles = torch.arange(num_heads) + 0.5
    scores = -SHARPNESS * (places - middles[:, None]).square()  # (heads, t)
    scores = scores - scores.mean(dim=1, keepdim=True)
    directions = torch.linalg.pinv(marks.double(), rtol=1e-3) @ scores.T.double()  # (d, heads)
    weight[0] = 0
    bias[0] = 0
    bias[0, :, 0] = width**0.5
    weight[1, :, 0] = directions.T.to(weight.dtype)
    bias[1, :, 0] = 0
    layer.temporal_dense.weight.copy_(DENSE * torch.eye(qkv.in_features))


def warn_if_blind_to_order(network: TimeSformerForVideoClassification) -> None:
    """Say so where the network gives, and will go on giving, the same for frames in any order."""
    times = network.timesformer.embeddings.time_embeddings
    if times is None or times.requires_grad or times.any():
        return
    logger.warning(
        "the time embeddings are zero and do not learn, so the network cannot tell the order of frames: "
        "give --temporal_start parts, or let the first blocks learn (--freeze_depth 0)"
    )
