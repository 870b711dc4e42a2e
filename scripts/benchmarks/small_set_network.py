"""The networks of `benchmarks small_set`: the frozen blocks once over every clip, then the last ones."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_set_clips import FRAMES, MEAN, SIZE, STD, Clips, spread
from torch import nn
from torch.nn import functional

from hf_timesformer import TimeSformerForVideoClassification
from hf_timesformer.model.way import structure_of
from hf_timesformer.training.classifier_fit import fit_classifier
from hf_timesformer.training.optimization import freeze_parameters, parameter_groups
from hf_timesformer.training.temporal_comparisons import CLIPS
from hf_timesformer.training.temporal_start import RATES, STARTS, start_blocks


FROZEN = 8  # blocks, of 12
GRID = 8  # squares along a side that are kept of the 16 x 16 patches of each frame


@dataclass(frozen=True)
class Way:
    """One way to fine-tune; the defaults are the recipe for small sets as it was."""

    attention_type: str = "divided_space_time"
    time_embeddings: float = 0.0  # their standard deviation at the start
    start: str = "attention"  # of the temporal attention, as in `--temporal_start`
    dense: float | None = None  # the temporal dense layers start as this times the identity instead
    epochs: int = 10
    learning_rate: float = 5e-5
    temporal_learning_rate: float = 5e-4
    head_learning_rate: float = 3e-4
    fits_before: bool = True
    fits_after: bool = True
    pooled: int = 4  # squares along a side that the last blocks see, of the GRID that are kept


# What the frozen blocks give


def make_network(
    vit: str, way: Way, num_classes: int, seed: int, seen: torch.Tensor | None = None
) -> Any:
    """The network that `way` starts from; `seen`: frames of clips for a start that needs some."""
    torch.manual_seed(seed)
    network = TimeSformerForVideoClassification.from_vit(
        vit,
        attention_type=way.attention_type,
        num_frames=FRAMES,
        image_size=SIZE,
        num_labels=num_classes,
        drop_path_rate=0.1,
    )
    freeze_parameters(network, "none", FROZEN / network.config.num_hidden_layers)
    base = network.timesformer
    if base.embeddings.time_embeddings is not None:
        # the same in all runs, as clips are embedded once
        numbers = torch.randn(1, FRAMES, base.config.hidden_size, generator=seeded(0))
        base.embeddings.time_embeddings.data = way.time_embeddings * numbers
    if way.start in STARTS:
        clips = None if seen is None else (spread(seen, CLIPS) / 255 - MEAN) / STD
        start_blocks(network, way.start, clips, dtype=torch.bfloat16)
    if way.dense is not None:
        for layer in base.encoder.layer[FROZEN:]:
            layer.temporal_dense.weight.data = way.dense * torch.eye(base.config.hidden_size)
    return network


def seeded(seed: int) -> torch.Generator:
    """A generator of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def frozen_tokens(network: Any, frames: torch.Tensor) -> torch.Tensor:
    """What the last blocks get of clips `(b, t, 3, SIZE, SIZE)`, patches averaged over squares.

    `(b, 1 + GRID*GRID*t, d)`; with `space_only`, where frames run alone, `(b, t, 1 + GRID*GRID, d)`.
    """
    base = network.timesformer
    alone = network.config.attention_type == "space_only"
    clips = (frames / 255 - MEAN) / STD
    tokens, grid = base.embeddings(clips.flatten(0, 1)[:, None] if alone else clips)
    with torch.autocast("cpu", torch.bfloat16):
        for layer in base.encoder.layer[:FROZEN]:
            tokens = layer(tokens.float(), grid)
    tokens = shrink(tokens, grid, GRID)
    return tokens.unflatten(0, (len(frames), -1)) if alone else tokens


def shrink(tokens: torch.Tensor, grid: tuple[int, int, int], side: int) -> torch.Tensor:
    """Average patches over squares: `(b, 1 + h*w*t, d) -> (b, 1 + side*side*t, d)`."""
    h, w, t = grid
    if side == h:
        return tokens
    patches = tokens[:, 1:].unflatten(1, (side, h // side, side, w // side, t)).mean(dim=(2, 4))
    return torch.cat((tokens[:, :1], patches.flatten(1, 3)), dim=1)


def cached_tokens(vit: str, name: str, clips: Clips, way: Way, folder: Path) -> torch.Tensor:
    """`frozen_tokens` of a small set, read from `folder` where they are there already."""
    path = folder / f"{name}-{way.attention_type}-{way.time_embeddings:g}.npy"
    if not path.is_file():
        network = make_network(
            vit, replace(way, start="attention"), clips.num_classes, seed=0
        ).eval()
        for layer in network.timesformer.encoder.layer[:FROZEN]:
            layer.earlier_steps = []  # they add nothing: their dense layers are zero
        parts = [frozen_tokens(network, part) for part in clips.frames.split(8)]
        np.save(path, torch.cat(parts).half().numpy())
    return torch.from_numpy(np.load(path))


# Tuning the last blocks


class Given(nn.Module):
    """In place of the embeddings: tokens that are already embedded."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """Tokens of `frozen_tokens` -> `(b, 1 + h*w*t, d)` and the grid."""
        if tokens.ndim == 4:  # space_only: every frame a clip of its own
            return tokens.flatten(0, 1), (self.side, self.side, 1)
        return tokens, (self.side, self.side, FRAMES)


def keep_last_blocks(network: Any, side: int) -> None:
    """Leave only what learns."""
    base = network.timesformer
    base.encoder.layer = base.encoder.layer[FROZEN:]
    base.embeddings = Given(side)
    base.built_of = structure_of(base)


def tune(network: Any, tokens: torch.Tensor, labels: torch.Tensor, way: Way, seed: int) -> None:
    """The recipe for small sets: AdamW with a warm-up and a cosine, label smoothing 0.1, batches of 8."""
    if way.fits_before:
        fit(network, tokens, labels)
    groups = parameter_groups(
        network,
        learning_rate=way.learning_rate,
        head_learning_rate=way.head_learning_rate,
        temporal_learning_rate=RATES.get(way.start, 1.0) * way.temporal_learning_rate,
        layer_decay=0.75,
        weight_decay=0.05,
    )
    optimizer = torch.optim.AdamW(groups)
    steps = way.epochs * (len(tokens) // 8)
    if not steps:
        return
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in groups],
        total_steps=steps,
        pct_start=0.1,
        cycle_momentum=False,
        div_factor=100,
        final_div_factor=1e4,
    )
    network.train()
    for batch in batches(len(tokens), steps, seed):
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(tokens[batch].float()).logits
        loss = functional.cross_entropy(logits.float(), labels[batch], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if way.fits_after:
        fit(network, tokens, labels)


def batches(count: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """`steps` batches of 8 clips, each epoch in an order of its own."""
    generator = seeded(seed)
    while True:
        for batch in torch.randperm(count, generator=generator).split(8):
            if len(batch) < 8:
                continue
            if steps == 0:
                return
            steps -= 1
            yield batch


@torch.no_grad()
def features_of(network: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What the classifier gets, `(n, d)`."""
    network.eval()
    with torch.autocast("cpu", torch.bfloat16):
        parts = [
            network.timesformer(part.float(), cls_only=True).last_hidden_state[:, 0]
            for part in tokens.split(32)
        ]
    return torch.cat(parts).float()


def fit(network: Any, tokens: torch.Tensor, labels: torch.Tensor) -> None:
    """The classifier as linear discriminants of what the network gives."""
    targets = functional.one_hot(labels, network.num_labels).float()
    weight, bias = fit_classifier(features_of(network, tokens), targets, label_smoothing=0.1)
    network.classifier.weight.data.copy_(weight)
    network.classifier.bias.data.copy_(bias)
