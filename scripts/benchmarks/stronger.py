"""What stronger augmentation, weight averages and repeated augmentation give and cost on a small set.

    python scripts/benchmarks stronger            # the table
    python scripts/benchmarks stronger --record   # into results/, for the pages

The set is the demonstration's: generated clips in which only motion tells the classes apart, few to
train on, and its small network from scratch. Every way gets as many steps. One table of test
accuracy over seeds and of processor time a step, ways in turn. A small stand-in: what pays on it
need not pay elsewhere.

A clip is decoded once and kept in memory, so that a run takes half a minute, and the time is that
of all but the decoding. What repeated augmentation saves of that is measured by `packing`.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from machine import this_machine
from results import FOLDER

from hf_timesformer.cli.demo import CLIP, make_start
from hf_timesformer.cli.train_help import make_train_parser
from hf_timesformer.data import clips as reading_of_clips
from hf_timesformer.data.record_video import decode_record
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


TEST_CLIPS = 32  # of each class
BATCH = 16  # as the recipe `demo` has it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmarks stronger`."""
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--clips", type=int, default=20, help="of each class to train on")
    parser.add_argument("--steps", type=int, default=150, help="of 16 clips, in each run")
    parser.add_argument("--record", action="store_true", help="write results/stronger.json")


def run(args: argparse.Namespace) -> None:
    """Print one line a run and the table."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    reading_of_clips.decode_record = Remembered()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        splits = {"train": args.clips, "test": TEST_CLIPS}
        make_motion_dataset(folder / "clips", splits=splits, **CLIP)
        make_start(folder / "start", list(MOTIONS))
        for seed in range(args.seeds):
            for way, options in WAYS.items():
                result = train_once(folder, options, seed, args.steps)
                found[way].append(result)
                print(f"seed {seed}  {way:28} {result}", flush=True)
    report = table(found) | facts(args)
    text = json.dumps(report, indent=2) + "\n"
    print(text)
    if args.record:
        (FOLDER / "stronger.json").write_text(text, encoding="utf-8")


class Remembered:
    """`decode_record` of clips that are decoded once, whole, at each size that is asked for."""

    def __init__(self):
        self.clips: dict[Any, Any] = {}

    def __call__(
        self,
        record: Mapping[str, Any],
        indices: Iterable[int] | Callable[[Any], Iterable[int]],
        *,
        short_side: int | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, Any]:
        """The frames `(T, 3, H, W)` and the video's metadata."""
        key = (record["video"], short_side)
        if key not in self.clips:
            self.clips[key] = decode_record(
                record,
                lambda metadata: range(metadata.total_num_frames),
                short_side=short_side,
                **options,
            )
        frames, metadata = self.clips[key]
        wanted = indices(metadata) if callable(indices) else indices
        return frames[np.asarray(wanted)], metadata


def train_once(folder: Path, options: list[str], seed: int, steps: int) -> dict[str, float]:
    """Test accuracy in percent, and processor time a step but for decoding."""
    output = folder / "run"
    shutil.rmtree(output, ignore_errors=True)
    argv = ["--data_dir", str(folder / "clips"), "--model", str(folder / "start")]
    argv += ["--output_dir", str(output), "--recipe", "demo", "--validation_split", "test"]
    argv += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    argv += ["--max_steps", str(steps), "--dataloader_num_workers", "0", "--use_cpu"]
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


def table(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Columns and rows; the cost beside that of the recipe as it is."""
    costs = {
        way: statistics.median(result["milliseconds_a_step"] for result in results)
        for way, results in found.items()
    }
    base = next(iter(costs.values()))
    rows = []
    for way, results in found.items():
        top1 = [result["top1"] for result in results]
        spread = f" ± {statistics.stdev(top1):.1f}" if len(top1) > 1 else ""
        rows.append([way, f"{statistics.mean(top1):.1f}{spread}", f"{costs[way] / base:.2f}"])
    return {"columns": ["way", "top-1, %", "processor time a step, of the recipe's"], "rows": rows}


def facts(args: argparse.Namespace) -> dict[str, str]:
    """Where, when and of what a table is."""
    classes = len(MOTIONS)
    given = [f"--{name} {getattr(args, name)}" for name in ("seeds", "clips", "steps")]
    return {
        "machine": str(this_machine()),
        "date": date.today().isoformat(),
        "command": f"python scripts/benchmarks stronger {' '.join(given)}",
        "note": f"Generated clips of {classes} motions, {classes * args.clips} to train on and "
        f"{classes * TEST_CLIPS} to test on; a network of 4 blocks from scratch, clips of 8 frames of "
        f"32 pixels, {args.steps} steps of {BATCH} clips with every way. Mean and standard deviation "
        f"over {args.seeds} seeds: differences within that spread mean nothing. Decoding is not in "
        "the time.",
    }
