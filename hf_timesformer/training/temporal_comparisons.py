"""`--temporal_start comparisons`: temporal attention that begins by telling how alike frames are.

Whether the halves of a clip have changed places no frame shows, and no sum of frames: it is in which
frames are like which. The first block that learns finds that, and the second sorts it by time. A clip
whose second half was put first has a cut in its middle, and then

    first block:  every patch writes down when its place looks like itself: in frame 3 in the frames
                  0 1 2 3, but in frame 4 in the frames 4 5 6 7
    second block: each head reads what the patches of one part of the clip have written, and writes
                  it in directions of its own, where all the blocks above may read it

Almost all frames of a clip are alike, so what the patches would write is almost the same. One head of
the first block looks at all frames in the same way, and what it finds is taken off. What stays in
frame t is the sum over frames s of

    (weight(t, s) - 1 / frames) * cosines(s)

It is written in directions in which tokens say little else. Which these are, and how the tokens of a
block tell the time, is learned from some clips, without their labels.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..model.modeling_timesformer import TimeSformerForVideoClassification
from .directions import cosines, distances_to_parts, right_angles


CLIPS = 24  # that the start looks at; of every third, a frame that stands still

SHRINKAGE = 0.03  # of covariances, towards that of independent channels
CUTOFF = 1e-4  # of the strongest mark: below it there is none
SIMILARITY = 0.6  # times the scores that tokens of variance 1 give
PEAK, NARROWNESS = 6.0, 4.0  # of the scores of a head about the middle of its part
# Standard deviations of what the two blocks write, as multiples of that of the tokens before.
WRITTEN = 40.0
SORTED = 2.0


@dataclass(frozen=True)
class Clock:
    """How tell the tokens of a block, normalised as its temporal attention gets them, the time?

    Attributes:
        marks: what the time embeddings add in each frame, `(t, d)`; over the frames their mean is 0.
        of_keys: directions that read the frame off a token, `(t, d)`, where content that moves
            disturbs least: attention does not see what is in all its keys.
        of_values: the same where all content disturbs least.
        quiet: directions of length 1 at right angles in which content says least, `(d - 1, d)`;
            without the one in which normalised tokens cannot say anything.
        variance: of content, the mean over the channels.
    """

    marks: torch.Tensor
    of_keys: torch.Tensor
    of_values: torch.Tensor
    quiet: torch.Tensor
    variance: float


@torch.no_grad()
def start_with_comparisons(
    network: TimeSformerForVideoClassification,
    blocks: list[int],
    clips: torch.Tensor,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> None:
    """Start the temporal attention of `blocks`, two at most.

    Args:
        network: with its time embeddings; the blocks before are as an image ViT has them.
        blocks: their numbers, in order.
        clips: as the network gets them, `(n, t, c, h, w)`.
        device: to run them on.
        dtype: of autocast; None runs without.
    """
    if not blocks:
        return
    generator = torch.Generator().manual_seed(0)
    heads = network.config.num_attention_heads
    layers: Any = network.timesformer.encoder.layer
    tokens = _Tokens(network, clips, device, dtype)
    tokens.run(layers[: blocks[0]], with_time=False)
    loudness = tokens.loudness()
    first = layers[blocks[0]]
    directions = write_comparisons(first, read_clock(tokens, first), heads, generator)
    _make_louder(first, WRITTEN * loudness / tokens.loudness_of_update(first, directions))
    if len(blocks) > 1:
        tokens.run(layers[blocks[0] : blocks[1]])
        second = layers[blocks[1]]
        sort_comparisons(second, read_clock(tokens, second), heads, directions, generator)
        _make_louder(second, SORTED * loudness / tokens.loudness_of_update(second))


def write_comparisons(
    layer: Any, clock: Clock, num_heads: int, generator: torch.Generator
) -> torch.Tensor:
    """Have a block write when the place of a patch looks like the patch; returns the directions in
    which it does, one for each cosine over time, `(n, d)`.

    Queries and keys of a head are the same random directions of a token, at right angles to the
    marks. The values are the cosines of the frame that a token is from.
    """
    weight, _, into = _blank(layer, num_heads)
    size, width = weight.shape[-1], weight.shape[2]
    waves = cosines(len(clock.marks))[:width]  # (n, t)
    directions = clock.quiet[: len(waves)]
    weight[2, :, : len(waves)] = waves @ clock.of_values
    marked = torch.linalg.pinv(clock.marks.double(), rtol=CUTOFF).to(weight.dtype)  # (d, t)
    for head in range(1, num_heads):
        random = right_angles(width, size, generator)
        weight[:2, head] = (SIMILARITY / clock.variance) ** 0.5 * (
            random - random @ marked @ clock.marks
        )
    into[:, 1:, : len(waves)] = directions.T[:, None]
    into[:, 0, : len(waves)] = -(num_heads - 1) * directions.T  # whose scores are all zero
    return directions


def sort_comparisons(
    layer: Any,
    clock: Clock,
    num_heads: int,
    directions: torch.Tensor,
    generator: torch.Generator,
) -> None:
    """Have a block read what tokens say in `directions (n, d)`, each head in one part of the clip, and
    write the cosines over the parts, all but the constant one, in directions of their own."""
    weight, bias, into = _blank(layer, num_heads)
    size, width, count = weight.shape[-1], weight.shape[2], len(directions)
    scores = PEAK * torch.exp(
        -NARROWNESS / 2 * distances_to_parts(len(clock.marks), num_heads).square()
    )
    bias[0, :, 0] = width**0.5
    weight[1, :, 0] = (scores - scores.mean(dim=1, keepdim=True)) @ clock.of_keys
    weight[2, :, :count] = directions
    waves = cosines(num_heads)[: size // max(count, 1)]  # (m, heads)
    ways = right_angles(len(waves) * count, size, generator).view(len(waves), count, size)
    into[:, :, :count] = torch.einsum("mnd, mh -> dhn", ways, waves)


def _make_louder(layer: Any, factor: torch.Tensor) -> None:
    """Scale what a block's temporal attention writes; one that writes nothing stays silent."""
    if factor.isfinite():
        layer.temporal_dense.weight.mul_(factor)


def _blank(layer: Any, num_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Zero a block's temporal attention. Views of the weights `(3, heads, width, d)` and biases `(3,
    heads, width)` of its queries, keys and values, and of those of the dense layer behind `(d, heads,
    width)`."""
    qkv, dense = layer.temporal_attention.attention.qkv, layer.temporal_dense
    width = qkv.in_features // num_heads
    for parameter in (qkv.weight, qkv.bias, dense.weight, dense.bias):
        parameter.zero_()
    output = layer.temporal_attention.output.dense
    output.weight.copy_(torch.eye(qkv.in_features))
    output.bias.zero_()
    return (
        qkv.weight.unflatten(0, (3, num_heads, width)),
        qkv.bias.unflatten(0, (3, num_heads, width)),
        dense.weight.unflatten(1, (num_heads, width)),
    )


class _Tokens:
    """Tokens of clips, and of frames that stand still, on their way through a network. They wait on
    the CPU, each `(1, 1 + h*w*t, d)`."""

    def __init__(
        self,
        network: Any,
        clips: torch.Tensor,
        device: torch.device | str,
        dtype: torch.dtype | None,
    ):
        self.device, self.dtype = torch.device(device), dtype
        embeddings = copy.deepcopy(network.timesformer.embeddings).to(device)
        middle = clips.shape[1] // 2
        stills = clips[::3, middle, None].expand(-1, clips.shape[1], -1, -1, -1)
        self.grid = network.timesformer.embeddings(clips[:1])[1]
        self.clips = [self._call(lambda x: embeddings(x)[0], clip[None]) for clip in clips]
        self.stills = [self._call(lambda x: embeddings(x)[0], still[None]) for still in stills]

    def _call(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Any:
        with nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype):
            return function(x.to(self.device)).float().cpu()

    def run(self, layers: Sequence[Any], with_time: bool = True) -> None:
        """Through some blocks; `with_time` false leaves out what is before the last step of each."""
        for layer in layers:
            block = copy.deepcopy(layer).to(self.device).eval()
            if not with_time:
                block.earlier_steps = []
            run = partial(block, grid=self.grid)
            for some in (self.clips, self.stills):
                some[:] = [self._call(run, tokens) for tokens in some]

    def normalised(self, layer: Any, still: bool = False) -> Iterator[torch.Tensor]:
        """The patches of each clip as the temporal attention of a block gets them, `(h*w, t, d)`."""
        for tokens in self.stills if still else self.clips:
            yield layer.temporal_layernorm(tokens[0, 1:]).unflatten(0, self.grid).flatten(0, 1)

    def loudness(self) -> float:
        """Standard deviation of the channels of a patch, the mean over all patches."""
        return _mean([each[0, 1:].std(dim=-1).mean() for each in self.clips]).item()

    def loudness_of_update(
        self, layer: Any, directions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The same of what a block's temporal attention adds, in some directions `(n, d)` or in all
        channels."""
        squares = []
        for tokens in self.clips:
            context, _ = layer.temporal_attention(
                layer.temporal_layernorm(tokens[:, 1:]), self.grid
            )
            update = layer.temporal_dense(context)
            if directions is not None:
                update = update @ directions.T
            squares.append(update.square().mean())
        return _mean(squares).sqrt()


def read_clock(tokens: _Tokens, layer: Any) -> Clock:
    """How the tokens before a block tell the time."""
    marks = _mean([patches.mean(dim=0) for patches in tokens.normalised(layer, still=True)])
    marks = marks - marks.mean(dim=0)
    centers, content, moving = [], [], []
    for patches in tokens.normalised(layer):
        patches = patches - marks
        centers.append(patches.mean(dim=(0, 1)))
        content.append(_second_moment(patches))
        moving.append(_second_moment(patches - patches.mean(dim=1, keepdim=True)))
    center = _mean(centers)
    covariance = _mean(content) - torch.outer(center, center)
    return Clock(
        marks=marks,
        of_keys=best_directions(marks, _mean(moving)),
        of_values=best_directions(marks, covariance),
        quiet=quiet_directions(covariance, layer.temporal_layernorm),
        variance=covariance.diagonal().mean().item(),
    )


def best_directions(marks: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Directions `(t, d)` on which marks `(t, d)` project as 1 in their own frame and 0 in others, less
    the mean over the frames, and what has that covariance `(d, d)` as little as can be: generalised
    least squares.
    """
    size = len(covariance)
    floor = SHRINKAGE * covariance.diagonal().mean().clamp(min=1e-6) * torch.eye(size)
    weighted = torch.linalg.solve((covariance + floor).double(), marks.double().T)  # (d, t)
    return (torch.linalg.pinv(marks.double() @ weighted, rtol=CUTOFF) @ weighted.T).to(marks.dtype)


def quiet_directions(covariance: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    """Directions of length 1 at right angles, `(d - 1, d)`, in which what has that covariance `(d, d)`
    varies least, the quietest first.

    Tokens that a LayerNorm gives are, divided by its weights, zero in the mean over the channels.
    So there is one direction in which nothing can be read, and it is left out.
    """
    mute = functional.normalize(1 / norm.weight.double().clamp(min=1e-3), dim=0)
    loud = covariance.double() + 2 * covariance.double().trace() * torch.outer(mute, mute)
    return torch.linalg.eigh(loud)[1].T[:-1].to(covariance.dtype)


def _second_moment(vectors: torch.Tensor) -> torch.Tensor:
    """`(..., d) -> (d, d)`."""
    flat = vectors.flatten(0, -2)
    return flat.T @ flat / len(flat)


def _mean(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(tensors).mean(dim=0)
