"""What a few hundred clips teach the temporal half of a network made from an image ViT.

    python scripts/benchmarks small_set --videos ucf101/train --from_vit vit.safetensors --cache tokens

Four small sets that only time tells apart: clips forwards or backwards, their first or second half
first, at normal or double speed, and the generated motions of the demo. A fifth, UCF101's own
classes, shows what is lost of the pictures. Each is judged by cross-validation over the source
videos' groups (`gXX` in UCF101's names).

The frozen first blocks run once over every clip; what they give, averaged over squares of patches,
is kept on disk, and only the last blocks learn. So there is no augmentation.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import this_machine
from small_set_clips import (
    FRAMES,
    MEAN,
    SETS,
    STD,
    Clips,
    folds,
    make_motions,
    make_set,
    mean_class_accuracy,
    read_videos,
)
from small_set_network import (
    GRID,
    Way,
    cached_tokens,
    features_of,
    keep_last_blocks,
    make_network,
    shrink,
    tune,
)
from torch.nn import functional

from hf_timesformer.training.classifier_fit import fit_classifier
from hf_timesformer.training.temporal_choice import compare_starts
from hf_timesformer.training.temporal_start import STARTS


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


# Cross-validation


def judge(
    vit: str, name: str, clips: Clips, way: Way, seeds: range, folder: Path
) -> dict[str, Any]:
    """Accuracy of a way over folds and seeds, `trained` and before it, `untrained`, and what a run
    took."""
    tokens = cached_tokens(vit, name, clips, way, folder)
    if way.pooled != GRID:
        alone = way.attention_type == "space_only"
        flat = tokens.flatten(0, 1) if alone else tokens
        flat = shrink(flat, (GRID, GRID, 1 if alone else FRAMES), way.pooled)
        tokens = flat.unflatten(0, (len(tokens), -1)) if alone else flat
    names = STARTS if way.start == "auto" else (way.start,)
    accuracies, untrained, seconds, starts = [], [], [], []
    for seed in seeds:
        for train, test in folds(clips.groups, seed):
            started = {
                name: start_network(vit, clips, replace(way, start=name), train) for name in names
            }
            features = {name: features_of(network, tokens) for name, network in started.items()}
            start = choose(features, clips, train) if way.start == "auto" else way.start
            answers = fit_and_answer(features[start], clips, train, test)
            untrained.append(mean_class_accuracy(answers, clips.labels[test]))
            began = time.process_time()
            if way.epochs:
                torch.manual_seed(seed)
                chosen = replace(way, start=start)
                answers = train_and_answer(started[start], clips, tokens, train, test, chosen, seed)
            seconds.append(time.process_time() - began)
            accuracies.append(mean_class_accuracy(answers, clips.labels[test]))
            starts.append(start)
            print(name, seed, start, untrained[-1], accuracies[-1], flush=True)
    more = {"starts": starts, "cpu_seconds_a_run": round(statistics.mean(seconds), 1)}
    return {"trained": summary(accuracies) | more, "untrained": summary(untrained) | more}


def summary(accuracies: list[float]) -> dict[str, Any]:
    """Mean and deviation of what some runs gave, and the runs."""
    return {
        "mean": round(statistics.mean(accuracies), 1),
        "deviation": round(statistics.stdev(accuracies), 1),
        "runs": [round(accuracy, 1) for accuracy in accuracies],
    }


def start_network(vit: str, clips: Clips, way: Way, train: np.ndarray) -> Any:
    """The last blocks as a way starts them, before anything is learned."""
    network = make_network(vit, way, clips.num_classes, seed=0, seen=clips.frames[train])
    keep_last_blocks(network, way.pooled)
    return network


def choose(untrained: dict[str, torch.Tensor], clips: Clips, train: np.ndarray) -> str:
    """What `--temporal_start auto` takes for the clips that are trained on."""
    found = {start: features[train] for start, features in untrained.items()}
    targets = functional.one_hot(clips.labels[train], clips.num_classes)
    return compare_starts(found, targets, torch.from_numpy(clips.groups[train])).name


def train_and_answer(
    network: Any,
    clips: Clips,
    tokens: torch.Tensor,
    train: np.ndarray,
    test: np.ndarray,
    way: Way,
    seed: int,
) -> torch.Tensor:
    """The classes that a network, once tuned to some clips, gives the others."""
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
    return summary(accuracies)


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
            if way.epochs:
                keep(args.json, name, text, result["trained"] | {"way": asdict(way)})
            untrained = text if text.endswith("no training") else f"{text}, no training"
            keep(args.json, name, untrained, result["untrained"] | {"way": asdict(way)})


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
