"""What stronger augmentation, weight averages and repeated augmentation give and cost on a small set.

    python scripts/benchmarks stronger --json stronger.json

The set is the demonstration's: generated clips in which only motion tells the classes apart, few to
train on, and its small network from scratch. One table of test accuracy over seeds and of processor
time a step, ways in turn. A small stand-in: what pays on it need not pay elsewhere.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import this_machine

from hf_timesformer.cli.demo import CLIP, make_start
from hf_timesformer.cli.train_help import make_train_parser
from hf_timesformer.data.synthetic import MOTIONS, make_motion_dataset
from hf_timesformer.training.recipes import apply_recipe
from hf_timesformer.training.run import make_trainer


WAYS = {
    "the recipe": [],
    "RandAugment 2 9": ["--rand_augment", "2", "9"],
    "random erasing 0.25": ["--random_erasing", "0.25"],
    "random-resized crop 0.3 1": ["--random_resized_crop", "0.3", "1"],
    "mixup 0.4": ["--mixup", "0.4"],
    "CutMix 1": ["--cutmix", "1"],
    "repeated augmentation 2": ["--repeated_augmentation", "2"],
    "EMA 0.98": ["--ema_decay", "0.98"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmarks stronger`."""
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=20, help="of each class to train on")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--json", type=Path)


def run(args: argparse.Namespace) -> None:
    """Print one line a run and the table."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_motion_dataset(folder / "clips", splits={"train": args.clips, "test": 32}, **CLIP)
        make_start(folder / "start", list(MOTIONS))
        for seed in range(args.seeds):
            for way, options in WAYS.items():
                result = train_once(folder, options, seed, args.epochs)
                found[way].append(result)
                print(f"seed {seed}  {way:28} {result}", flush=True)
    report = {"machine": str(this_machine()), "ways": {w: summarize(r) for w, r in found.items()}}
    print(table(report["ways"]))
    if args.json:
        report |= {"clips_a_class": args.clips, "epochs": args.epochs}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def train_once(folder: Path, options: list[str], seed: int, epochs: int) -> dict[str, float]:
    """Test accuracy in percent, and processor time a step."""
    output = folder / "run"
    shutil.rmtree(output, ignore_errors=True)
    argv = ["--data_dir", str(folder / "clips"), "--model", str(folder / "start")]
    argv += ["--output_dir", str(output), "--recipe", "demo", "--validation_split", "test"]
    argv += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    argv += ["--num_train_epochs", str(epochs), "--dataloader_num_workers", "0", "--use_cpu"]
    argv += ["--disable_tqdm", "true", "--seed", str(seed), *options]
    parser = make_train_parser("train")
    apply_recipe(parser, argv)
    trainer = make_trainer(*parser.parse_args_into_dataclasses(argv))
    start = time.process_time()
    trainer.train()
    seconds = time.process_time() - start
    metrics: dict[str, Any] = trainer.evaluate()
    return {
        "top1": round(100 * metrics["eval_top1_accuracy"], 1),
        "milliseconds_a_step": round(1000 * seconds / trainer.state.global_step, 1),
    }


def summarize(results: list[dict[str, float]]) -> dict[str, float]:
    """Means over the seeds, and the spread of the accuracy."""
    accuracies = [result["top1"] for result in results]
    return {
        "top1": round(statistics.mean(accuracies), 1),
        "deviation": round(statistics.stdev(accuracies), 1) if len(accuracies) > 1 else 0.0,
        "milliseconds_a_step": round(
            statistics.mean(result["milliseconds_a_step"] for result in results), 1
        ),
        "runs": len(results),
    }


def table(ways: dict[str, dict[str, float]]) -> str:
    """In Markdown; the cost beside that of the recipe as it is."""
    base = next(iter(ways.values()))["milliseconds_a_step"]
    lines = ["| | top-1, % | processor time a step |", "|---|---:|---:|"]
    for name, way in ways.items():
        cost = way["milliseconds_a_step"]
        lines.append(
            f"| {name} | {way['top1']} ± {way['deviation']} | {cost:.0f} ms, {cost / base:.2f} |"
        )
    return "\n".join(lines)
