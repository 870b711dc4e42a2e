"""What a few hundred clips teach the temporal half of a network made from an image ViT.

    python scripts/benchmarks small_set --videos ucf101/train --from_vit vit.safetensors --cache tokens

Four small sets that only time tells apart: clips forwards or backwards, their first or second half
first, at normal or double speed, and the generated motions of the demo. A fifth, UCF101's own
classes, shows what is lost of the pictures. Each is judged by cross-validation over the source
videos' groups (`gXX` in UCF101's names).

The frozen first blocks run once over every clip; what they give, averaged over squares of patches,
is kept on disk, and only the last blocks learn. So there is no augmentation, and clips are small.
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import this_machine
from torch import nn
from torch.nn import functional

from hf_timesformer import TimeSformerForVideoClassification
from hf_timesformer.data.synthetic import MOTIONS, motion_frames
from hf_timesformer.model.way import structure_of
from hf_timesformer.training.classifier_fit import fit_classifier
from hf_timesformer.training.optimization import freeze_parameters, parameter_groups
from hf_timesformer.training.temporal_choice import compare_starts
from hf_timesformer.training.temporal_comparisons import CLIPS
from hf_timesformer.training.temporal_start import NEEDS_CLIPS, RATES, STARTS, start_blocks
from hf_timesformer.video.decoding import decode_video


SIZE = 112  # pixels
FRAMES = 8
FROZEN = 8  # blocks, of 12
GRID = 4  # patches along a side that are kept for each frame
FOLDS = 3
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

# Which of 16 frames, evenly spread over a video, the two classes of a set show.
ORDERS = {
    "direction": (list(range(0, 16, 2)), list(range(14, -1, -2))),
    "halves": ([0, 2, 4, 6, 8, 10, 12, 14], [8, 10, 12, 14, 0, 2, 4, 6]),
    "speed": (list(range(4, 12)), list(range(0, 16, 2))),
}
SETS = (*ORDERS, "motion", "classes")


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
    pooled: int = 2  # patches along a side that the last blocks see, of the GRID that are kept


OLD = Way()
NEW = Way(time_embeddings=0.03, start="auto")
PARTS = replace(NEW, start="parts")
SPACE = Way(attention_type="space_only")
# The recipe as it was, what is new in it one by one, and the new one with something left out.
WAYS = {
    "space only": SPACE,
    "space only, no training": replace(SPACE, epochs=0),
    "divided, as it was": OLD,
    "time embeddings": replace(OLD, time_embeddings=0.03),
    "time embeddings, dense 0.3": replace(OLD, time_embeddings=0.03, dense=0.3),
    "time embeddings, parts": replace(PARTS, dense=0.0),
    "parts": PARTS,
    "parts, dense 1": replace(PARTS, dense=1.0),
    "parts, no training": replace(PARTS, epochs=0),
    "changes": replace(NEW, start="changes"),
    "changes, no training": replace(NEW, start="changes", epochs=0),
    "comparisons": replace(NEW, start="comparisons"),
    "comparisons, no training": replace(NEW, start="comparisons", epochs=0),
    "new": NEW,
    "new, no training": replace(NEW, epochs=0),
    "new, 5 epochs": replace(NEW, epochs=5),
    "new, classifier not fitted before": replace(NEW, fits_before=False),
    "new, classifier not fitted after": replace(NEW, fits_after=False),
}


@dataclass
class Clips:
    """A small set: frames `(clips, FRAMES, 3, SIZE, SIZE)` uint8, classes and groups `(clips,)`."""

    frames: torch.Tensor
    labels: torch.Tensor
    groups: np.ndarray = field(default_factory=lambda: np.zeros(0, int))

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1


# The clips


def read_videos(folder: Path) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """16 frames of every video, evenly spread, `(videos, 16, 3, SIZE, SIZE)`, groups and classes."""
    frames, groups, classes = [], [], []
    for path in sorted(folder.glob("*/*.avi")):
        picked, _ = decode_video(
            str(path),
            lambda video: np.linspace(0, video.total_num_frames - 1, 16).round().astype(int),
            short_side=SIZE,
        )
        frames.append(center(torch.as_tensor(picked)))
        groups.append(int(re.search(r"_g(\d+)_", path.name)[1]))
        classes.append(path.parent.name)
    _, numbers = np.unique(classes, return_inverse=True)
    return torch.stack(frames), groups, torch.from_numpy(numbers)


def center(frames: torch.Tensor) -> torch.Tensor:
    """The square in the middle: `(t, 3, height, width) -> (t, 3, SIZE, SIZE)`."""
    top, left = ((side - SIZE) // 2 for side in frames.shape[-2:])
    return frames[..., top : top + SIZE, left : left + SIZE]


def make_set(name: str, videos: torch.Tensor, groups: list[int], classes: torch.Tensor) -> Clips:
    """One of `SETS` from videos. In those of `ORDERS` every video gives a clip of each class, so
    that pictures tell nothing; `classes` are UCF101's own, to see what is lost of the pictures."""
    if name == "classes":
        return Clips(videos[:, ::2], classes, np.array(groups))
    orders = ORDERS[name]
    frames = torch.cat([videos[:, order] for order in orders])
    labels = torch.arange(len(orders)).repeat_interleave(len(videos))
    return Clips(frames, labels, np.tile(groups, len(orders)))


def make_motions(count: int = 40) -> Clips:
    """`count` generated clips of each motion."""
    rng = np.random.default_rng(0)
    frames, labels, groups = [], [], []
    for label, name in enumerate(MOTIONS):
        for number in range(count):
            clip = motion_frames(name, rng, num_frames=FRAMES, size=SIZE)
            frames.append(torch.from_numpy(clip).permute(0, 3, 1, 2))
            labels.append(label)
            groups.append(number)
    return Clips(torch.stack(frames), torch.tensor(labels), np.array(groups))


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


def spread(frames: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of clips, from all over the set."""
    return frames[:: max(1, len(frames) // count)][:count]


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


# Cross-validation


def folds(groups: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Clips to train on and to test, `FOLDS` times; no group is in both."""
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    for part in np.array_split(names, FOLDS):
        held_out = np.isin(groups, part)
        yield np.flatnonzero(~held_out), np.flatnonzero(held_out)


def mean_class_accuracy(answers: torch.Tensor, labels: torch.Tensor) -> float:
    """In percent."""
    right = (answers == labels).double()
    return 100 * statistics.mean(right[labels == c].mean().item() for c in labels.unique())


def judge(
    vit: str, name: str, clips: Clips, way: Way, seeds: range, folder: Path
) -> dict[str, Any]:
    """Accuracy of a way over folds and seeds, and what a run took."""
    tokens = cached_tokens(vit, name, clips, way, folder)
    if way.pooled != GRID:
        alone = way.attention_type == "space_only"
        flat = tokens.flatten(0, 1) if alone else tokens
        flat = shrink(flat, (GRID, GRID, 1 if alone else FRAMES), way.pooled)
        tokens = flat.unflatten(0, (len(tokens), -1)) if alone else flat
    names = STARTS if way.start == "auto" else (way.start,)
    looks_first = way.start == "auto" or not way.epochs
    known: dict[str, torch.Tensor] = {}  # features of starts that look at no clips
    accuracies, seconds, starts = [], [], []
    for seed in seeds:
        for train, test in folds(clips.groups, seed):
            untrained = known | {
                start: untrained_features(vit, clips, tokens, replace(way, start=start), train)
                for start in names
                if looks_first and start not in known
            }
            known = {start: untrained[start] for start in untrained if start not in NEEDS_CLIPS}
            start = choose(untrained, clips, train) if way.start == "auto" else way.start
            began = time.process_time()
            if way.epochs:
                chosen = replace(way, start=start)
                answers = train_and_answer(vit, clips, tokens, train, test, chosen, seed)
            else:
                answers = fit_and_answer(untrained[start], clips, train, test)
            seconds.append(time.process_time() - began)
            accuracies.append(mean_class_accuracy(answers, clips.labels[test]))
            starts.append(start)
            print(name, seed, start, accuracies[-1], flush=True)
    return {
        "mean": round(statistics.mean(accuracies), 1),
        "deviation": round(statistics.stdev(accuracies), 1),
        "runs": [round(accuracy, 1) for accuracy in accuracies],
        "starts": starts,
        "cpu_seconds_a_run": round(statistics.mean(seconds), 1),
    }


def untrained_features(
    vit: str, clips: Clips, tokens: torch.Tensor, way: Way, train: np.ndarray
) -> torch.Tensor:
    """What the classifier gets before anything is learned, `(n, d)`."""
    network = make_network(vit, way, clips.num_classes, seed=0, seen=clips.frames[train])
    keep_last_blocks(network, way.pooled)
    return features_of(network, tokens)


def choose(untrained: dict[str, torch.Tensor], clips: Clips, train: np.ndarray) -> str:
    """What `--temporal_start auto` takes for the clips that are trained on."""
    found = {start: features[train] for start, features in untrained.items()}
    targets = functional.one_hot(clips.labels[train], clips.num_classes)
    return compare_starts(found, targets, torch.from_numpy(clips.groups[train])).name


def train_and_answer(
    vit: str,
    clips: Clips,
    tokens: torch.Tensor,
    train: np.ndarray,
    test: np.ndarray,
    way: Way,
    seed: int,
) -> torch.Tensor:
    """The classes that a network which is tuned to some clips gives the others."""
    network = make_network(vit, way, clips.num_classes, seed, seen=clips.frames[train])
    keep_last_blocks(network, way.pooled)
    tune(network, tokens[train], clips.labels[train], way, seed)
    with torch.no_grad():
        return network.classifier(features_of(network, tokens[test])).argmax(-1)


def fit_and_answer(
    features: torch.Tensor, clips: Clips, train: np.ndarray, test: np.ndarray
) -> torch.Tensor:
    """The classes that a classifier which is fitted to features of some clips gives the others."""
    targets = functional.one_hot(clips.labels[train], clips.num_classes).float()
    weight, bias = fit_classifier(features[train], targets, label_smoothing=0.1)
    return (features[test].double() @ weight.T + bias).argmax(-1)


# Linear probes of the image ViT


@torch.no_grad()
def frame_features(vit: str, clips: Clips, path: Path) -> torch.Tensor:
    """CLS of the ViT for each frame, `(clips, FRAMES, d)`."""
    if not path.is_file():
        network = make_network(vit, WAYS["space only"], clips.num_classes, seed=0).eval()
        found = []
        for part in clips.frames.split(8):
            pixels = ((part / 255 - MEAN) / STD).flatten(0, 1)[:, None]
            with torch.autocast("cpu", torch.bfloat16):
                cls = network.timesformer(pixels, cls_only=True).last_hidden_state[:, 0]
            found.append(cls.float().unflatten(0, (-1, FRAMES)))
        np.save(path, torch.cat(found).numpy())
    return torch.from_numpy(np.load(path))


def probe(features: torch.Tensor, clips: Clips, seeds: range) -> dict[str, Any]:
    """Linear discriminants of features `(clips, d)` over the same folds."""
    targets = functional.one_hot(clips.labels, clips.num_classes).float()
    accuracies = []
    for seed in seeds:
        for train, test in folds(clips.groups, seed):
            center, spread = features[train].mean(0), features[train].std(0) + 1e-6
            scaled = (features - center) / spread
            weight, bias = fit_classifier(scaled[train], targets[train])
            answers = (scaled[test].double() @ weight.T + bias).argmax(-1)
            accuracies.append(mean_class_accuracy(answers, clips.labels[test]))
    return {
        "mean": round(statistics.mean(accuracies), 1),
        "deviation": round(statistics.stdev(accuracies), 1),
        "runs": [round(accuracy, 1) for accuracy in accuracies],
    }


def over_time(features: torch.Tensor) -> torch.Tensor:
    """Mean, spread, mean change and mean size of a change: `(clips, t, d) -> (clips, 4*d)`."""
    changes = features.diff(dim=1)
    return torch.cat(
        (features.mean(1), features.std(1), changes.mean(1), changes.abs().mean(1)), dim=1
    )


def between_frames(tokens: torch.Tensor) -> torch.Tensor:
    """How far every two frames of a clip are apart, the mean over the places, as a logarithm:
    tokens `(clips, 1 + GRID*GRID*t, d)` -> `(clips, t * (t - 1) / 2)`.

    What no sum over frames shows. It is made for sets that differ in the order or the speed of frames.
    """
    places = functional.layer_norm(tokens[:, 1:].float(), tokens.shape[-1:])
    places = places.unflatten(1, (GRID**2, FRAMES))
    apart = torch.cat([torch.cdist(part, part).square().mean(dim=1) for part in places.split(16)])
    first, second = torch.triu_indices(FRAMES, FRAMES, 1)
    return apart[:, first, second].clamp(min=1e-3).log()


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmarks small_set`."""
    parser.add_argument("--videos", type=Path, required=True, help="class folders of UCF101 clips")
    parser.add_argument("--from_vit", required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for what is kept")
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), help="names, or fields: a=1,b=2")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)


def run(args: argparse.Namespace) -> None:
    """Judge every way on every set; one line each as it is known, and kept in the JSON."""
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    videos = None if set(args.sets) == {"motion"} else read_videos(args.videos)
    seeds = range(args.seeds)
    for name in args.sets:
        clips = make_motions() if name == "motion" else make_set(name, *(videos or ()))
        features = frame_features(args.from_vit, clips, args.cache / f"{name}-frames.npy")
        keep(args.json, name, "probe of frames", probe(features.mean(dim=1), clips, seeds))
        keep(args.json, name, "probe over time", probe(over_time(features), clips, seeds))
        tokens = cached_tokens(args.from_vit, name, clips, PARTS, args.cache)
        keep(args.json, name, "probe of distances", probe(between_frames(tokens), clips, seeds))
        for text in args.ways:
            way = find_way(text)
            result = judge(args.from_vit, name, clips, way, seeds, args.cache)
            keep(args.json, name, text, result | {"way": asdict(way)})


def keep(path: Path | None, name: str, way: str, result: dict[str, Any]) -> None:
    """Print a result, and put it into the JSON in place of an older one."""
    shown = {key: value for key, value in result.items() if key != "way"}
    print(f"{name:10} {way:36} {shown}", flush=True)
    if path is None:
        return
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"results": {}}
    report |= {"machine": str(this_machine()), "date": date.today().isoformat()}
    report["command"] = "python scripts/benchmarks small_set"
    report["results"].setdefault(name, {})[way] = result
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def find_way(text: str) -> Way:
    """A way by its name in `WAYS`, or by what differs from the recipe as it was: `epochs=20`."""
    if text in WAYS:
        return WAYS[text]
    values = dict(part.split("=", 1) for part in text.split(","))
    return Way(**{k: v if k == "attention_type" else json.loads(v) for k, v in values.items()})
