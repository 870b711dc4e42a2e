"""What the temporal half of a network from an image ViT starts from, where few clips must teach it.

A network from an image ViT cannot tell the order of frames at first: its time embeddings are zero,
so that temporal attention compares frames without knowing which comes first. Where the first blocks
are frozen, the time embeddings, which lie below them, never learn either. And its temporal attention
adds nothing: the dense layer behind it is zero. Hundreds of thousands of clips change both; a few
hundred do not. So for them the time embeddings are small random numbers, different for each frame,
and the temporal attention of the blocks that learn starts in one of three ways.

`parts`: each temporal head looks at a part of the clip of its own, whatever the frames show, and the
dense layer behind lets through what the heads have found. Then every patch knows what its place
showed at the start, in the middle and at the end of the clip, each in channels of their own, and
what follows can compare them:

    frames    0 1 2 3 4 5 6 7
    head 0    X x . . . . . .
    head 1    . . X X . . . .        four heads; X: where a head looks most
    head 2    . . . . X X . .
    head 3    . . . . . . x X

`changes`: two thirds of the heads look at parts in the same way, and what differs from part to part
is written in random directions, so that the blocks above are shown changes beside pictures. The
other heads look for the frames in which the place of a patch shows something like the patch itself,
and say when that is. Only the first two blocks that learn start so. It tells movements that `parts`
does not tell, and costs some of what the image ViT knows of pictures.

`comparisons`: two blocks tell which parts of the clip are alike (`temporal_comparisons`). It tells what
is in no sum of frames, and needs some clips to see. It costs more of the pictures: `temporal_choice`
weighs the three.
"""

import logging
from typing import Any

import torch
from torch import nn

from ..model.modeling_timesformer import TimeSformerForVideoClassification
from .directions import cosines, distances_to_parts, right_angles
from .temporal_comparisons import start_with_comparisons


logger = logging.getLogger(__name__)

STARTS = ("parts", "changes", "comparisons")
NEEDS_CLIPS = ("comparisons",)
RATES = {"comparisons": 0.1}  # times --temporal_learning_rate: a faster one undoes it
START_CHOICES = ("auto", "attention", *STARTS)

FEW_BLOCKS = 2  # start so, where not all do
TIME_DEVIATION = 0.03  # of the time embeddings
SHARPNESS = 1.0  # scores fall by this one part of the clip away from a head's own
DENSE = 0.3  # times the identity
CHANGES_SHARPNESS = 4.0
CHANGES_DENSE = 0.3  # times directions at right angles
MARKS_CUTOFF = 1e-3  # of the strongest mark: below it there is none


def start_time_embeddings(network: TimeSformerForVideoClassification) -> bool:
    """Draw the time embeddings, from torch's own generator; whether the network has any.

    One without, such as `space_only`, stays as it is. Raises ValueError where queries have no bias.
    """
    embeddings = network.timesformer.embeddings
    if embeddings.time_embeddings is None:
        logger.info("the network has no time embeddings: it starts as the image ViT")
        return False
    if not network.config.qkv_bias:
        raise ValueError(
            "temporal heads are pointed by a bias of their queries, and this network has none "
            "(qkv_bias false): give --temporal_start attention"
        )
    nn.init.normal_(embeddings.time_embeddings, std=TIME_DEVIATION)
    return True


@torch.no_grad()
def start_blocks(
    network: TimeSformerForVideoClassification,
    start: str,
    clips: torch.Tensor | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> int:
    """Start the temporal attention of blocks that learn as `start` says, one of `STARTS`; returns how
    many blocks these are.

    Call it when the time embeddings are there, and it is settled which parameters learn
    (`freeze_parameters`). Schemes without temporal attention stay as they are.

    Args:
        network: from an image ViT.
        start: one of `STARTS`.
        clips: some to train on, as the network gets them, `(n, t, c, h, w)`; for `comparisons`.
        device: to run these on.
        dtype: of autocast then; None runs without.

    Raises:
        ValueError: for `comparisons` without clips.
    """
    layers: Any = network.timesformer.encoder.layer
    blocks = [i for i, layer in enumerate(layers) if has_temporal_half_that_learns(layer)]
    if start != "parts":
        blocks = blocks[:FEW_BLOCKS]
    if start == "comparisons":
        if clips is None:
            raise ValueError(
                f"the start {start} learns from clips how tokens tell the time: give some"
            )
        start_with_comparisons(network, blocks, clips, device=device, dtype=dtype)
    elif blocks:
        _start_by_marks(network, start, blocks)
    return len(blocks)


def _start_by_marks(
    network: TimeSformerForVideoClassification, start: str, blocks: list[int]
) -> None:
    """Start `blocks` with `parts` or `changes`.

    What tells frames apart is the mark that the time embeddings leave in a block's tokens. It is
    read off clips that stand still, in which nothing else differs from frame to frame.
    """
    config, base = network.config, network.timesformer
    rows, columns = config.grid_size
    patch_height, patch_width = base.embeddings.patch_embeddings.patch_size
    size = (config.num_channels, rows * patch_height, columns * patch_width)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(2, 1, *size, generator=generator)
    tokens, grid = base.embeddings(pictures.expand(-1, config.num_frames, -1, -1, -1))
    layers: Any = base.encoder.layer
    for number, layer in enumerate(layers[: blocks[-1] + 1]):
        if number in blocks:
            patches = layer.temporal_layernorm(tokens[:, 1:]).unflatten(1, grid)  # (b, h, w, t, d)
            marks = patches.mean(dim=(0, 1, 2))  # (t, d)
            marks = marks - marks.mean(dim=0)
            if start == "changes":
                start_with_changes(layer, marks, config.num_attention_heads, generator)
            else:
                start_with_parts(layer, marks, config.num_attention_heads)
        tokens = layer(tokens, grid)


def has_temporal_half_that_learns(layer: Any) -> bool:
    """Whether `start_blocks` may start that block."""
    return "temporal" in layer.earlier_steps and layer.temporal_dense.weight.requires_grad


def start_with_parts(layer: Any, marks: torch.Tensor, num_heads: int) -> None:
    """Point the temporal heads of one block at parts of the clip, given what tells frames apart
    there, `marks (t, d)`.

    A head's scores are `query @ key / sqrt(width)`. Its queries become `(sqrt(width), 0, 0, ...)`
    for every token, by their bias alone; so the scores are the keys' first channel. That becomes
    the projection of a token on a direction in which the marks of the frames lie as they should.
    Queries still learn from all channels of the keys, which are the ViT's but for the first.
    """
    qkv = layer.temporal_attention.attention.qkv
    width = qkv.in_features // num_heads
    weight = qkv.weight.unflatten(0, (3, num_heads, width))  # queries, keys, values
    bias = qkv.bias.unflatten(0, (3, num_heads, width))
    weight[0] = 0
    bias[0] = 0
    bias[0, :, 0] = width**0.5
    weight[1, :, 0] = directions_of_parts(marks, num_heads, SHARPNESS).to(weight.dtype)
    bias[1, :, 0] = 0
    layer.temporal_dense.weight.copy_(DENSE * torch.eye(qkv.in_features))


def directions_of_parts(marks: torch.Tensor, num_parts: int, sharpness: float) -> torch.Tensor:
    """One direction a part, `(num_parts, d)`: the projections of the marks `(t, d)` on it are highest
    in the middle of the part, and lower by `sharpness` times the square of the distance to it, in
    parts.
    """
    scores = -sharpness * distances_to_parts(len(marks), num_parts).square()  # (parts, t)
    scores = scores - scores.mean(dim=1, keepdim=True)
    return scores.double() @ torch.linalg.pinv(marks.double(), rtol=MARKS_CUTOFF).T


def start_with_changes(
    layer: Any, marks: torch.Tensor, num_heads: int, generator: torch.Generator
) -> None:
    """Have one block write what changes over the clip, given what tells frames apart there, `marks
    (t, d)`.

    Values of the heads that look at parts are the same few random channels of the tokens. In
    the dense layer the cosines over the parts (all but the constant one) of these values go each
    into directions of their own. The heads that match have queries and keys that are the same
    random channels, and as values the cosines over time of the frame that a token is from.
    """
    qkv, dense = layer.temporal_attention.attention.qkv, layer.temporal_dense
    size, width = qkv.in_features, qkv.in_features // num_heads
    matching = num_heads // 3
    parts = num_heads - matching
    weight = qkv.weight.unflatten(0, (3, num_heads, width))  # queries, keys, values
    bias = qkv.bias.unflatten(0, (3, num_heads, width))
    into = dense.weight.unflatten(1, (num_heads, width))  # (d, heads, width)
    weight.zero_()
    bias.zero_()
    into.zero_()
    layer.temporal_attention.output.dense.weight.copy_(torch.eye(size))
    layer.temporal_attention.output.dense.bias.zero_()

    bias[0, :parts, 0] = width**0.5
    weight[1, :parts, 0] = directions_of_parts(marks, parts, CHANGES_SHARPNESS).to(weight.dtype)
    weight[2, :parts] = right_angles(width, size, generator)
    waves = cosines(parts)  # (parts - 1, parts)
    ways = right_angles((parts - 1) * width, size, generator).unflatten(0, (-1, width))
    into[:, :parts] = CHANGES_DENSE * torch.einsum("jwd, jh -> dhw", ways, waves)

    times = cosines(len(marks))[:width]  # (n, t)
    times = times.double() @ torch.linalg.pinv(marks.double(), rtol=MARKS_CUTOFF).T  # (n, d)
    for head in range(parts, num_heads):
        weight[:2, head] = right_angles(width, size, generator)
        weight[2, head, : len(times)] = times.to(weight.dtype)
        into[:, head] = right_angles(width, size, generator).T


def warn_if_blind_to_order(network: TimeSformerForVideoClassification) -> None:
    """Say so where the network gives, and will go on giving, the same for frames in any order."""
    times = network.timesformer.embeddings.time_embeddings
    if times is None or times.requires_grad or times.any():
        return
    logger.warning(
        "the time embeddings are zero and do not learn, so the network cannot tell the order of frames: "
        "give --temporal_start parts, or let the first blocks learn (--freeze_depth 0)"
    )
