#!/usr/bin/env python
"""Evaluate a TimeSformer on a video data set by the paper's protocol: three crops a clip, logits averaged over views.

    timesformer evaluate --model runs/mine --dataset folder --data_dir clips --split test
    accelerate launch --num_processes 8 -m hf_timesformer.cli.evaluate --model runs/mine --dataset kinetics \\
        --data_dir k400

Writes eval_results.json, per_class.csv, confusion_matrix.png and, where clips are missing, missing_videos.txt.
"""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.arguments import add_dataset_arguments, dataset_arguments
from .common import (
    add_model_arguments,
    add_reading_arguments,
    end_process_group,
    graph_of,
    make_parser,
    reading_settings,
    user_errors,
    warn_of_lone_process,
)


if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..video.video_processing_timesformer import TimeSformerVideoProcessor

DTYPES = ("float32", "bfloat16", "float16")  # of evaluation.predictions.AUTOCAST_DTYPES


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("evaluate", __doc__)
    add_model_arguments(parser)
    add_dataset_arguments(parser)
    parser.add_argument("--split", default="test", help="train, validation or test")
    parser.add_argument("--output_dir", help="by default <model>/eval_<split>")
    parser.add_argument("--num_crops", type=int, default=3, choices=(1, 3), help="1 (centre) or 3")
    parser.add_argument("--num_clips", type=int, default=1, help="clips a video, spread evenly")
    parser.add_argument("--num_frames", type=int, help="frames a clip, if not the checkpoint's")
    parser.add_argument("--sampling", choices=("clip", "segments"), help="clip or segments, if not the checkpoint's")
    parser.add_argument("--sampling_rate", type=int, help="every n-th frame, if not the checkpoint's")
    add_reading_arguments(parser)
    parser.add_argument("--target_fps", type=float, help="count --sampling_rate in frames of this rate")
    parser.add_argument("--batch_size", type=int, default=4, help="videos a batch on each device")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that decode, for each device")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="autocast precision")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Load, predict on every process, and report from the first."""
    args = parse_arguments(argv)
    import numpy as np
    import transformers

    from ..conversion.load_exported import load_exported
    from ..data.dataset_factory import find_videos
    from ..data.labels import match_labels
    from ..evaluation.predictions import predict_dataset
    from ..evaluation.rank_exchange import make_accelerator
    from ..evaluation.report import summarize, write_report
    from ..inference import load_model_and_processor

    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    with user_errors():
        graph = graph_of(args)
    accelerator = make_accelerator(cpu=args.cpu or graph is not None)
    warn_of_lone_process(accelerator.num_processes)
    if not accelerator.is_main_process:
        logging.disable(logging.WARNING)
        transformers.logging.set_verbosity_error()
    output_dir = _output_dir(args)
    with user_errors():
        settings = ("num_crops", "num_clips", "num_frames", "sampling", "sampling_rate", "target_fps")
        overrides = {name: getattr(args, name) for name in settings} | reading_settings(args)
        if graph is not None:
            model, processor = load_exported(*graph, **overrides)
        else:
            model, processor = load_model_and_processor(args.model, **overrides)
        missing_file = output_dir / "missing_videos.txt" if accelerator.is_main_process else None
        options = dataset_arguments(args).reader_options
        found = find_videos(args.dataset, args.data_dir, args.split, missing_file=missing_file, **options)
        cure = "Use the data set that the model was trained on, or rename the class folders"
        model_label = np.array(match_labels(found.class_names, model.config.id2label, cure=cure), np.int64)
    predictions = predict_dataset(
        model,
        processor,
        found.videos,
        accelerator,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        dtype="float32" if graph is not None else args.dtype,
    )
    end_process_group()
    if not accelerator.is_main_process:
        return
    predictions.labels = model_label[predictions.labels]
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    with user_errors():
        results = summarize(predictions, names, expected=found.num_expected, found=found.num_found)
        dtype = args.dtype if graph is None else model.precision
        results = _setting(args, processor, accelerator) | {"dtype": dtype} | results
        for path in write_report(output_dir, results, predictions, names):
            print(f"wrote {path}")
    _print_summary(results)


def _output_dir(args: argparse.Namespace) -> Path:
    if args.output_dir:
        return Path(args.output_dir)
    precision = args.onnx or args.precision
    suffix = f"_{precision}" if precision else ""
    folder = Path(args.export or args.model)
    return (folder if folder.is_dir() else Path()) / f"eval_{args.split}{suffix}"


def _setting(args: argparse.Namespace, processor: "TimeSformerVideoProcessor", accelerator: "Accelerator") -> dict:
    from ..evaluation.report import describe_protocol
    from ..versions import installed_versions

    return {
        "model": args.export or args.model,
        "dataset": args.dataset,
        "data_dir": args.data_dir,
        "split": args.split,
        "protocol": describe_protocol(processor),
        "views": processor.num_clips * processor.num_crops,
        "num_clips": processor.num_clips,
        "num_crops": processor.num_crops,
        "num_frames": processor.num_frames,
        "device": str(accelerator.device),
        "num_processes": accelerator.num_processes,
        "versions": installed_versions(),
    }


def _print_summary(results: dict) -> None:
    print(results["protocol"])
    for name in ("top1_accuracy", "top5_accuracy", "mean_class_accuracy"):
        print(f"{name:>20} {100 * results[name]:6.2f} %")
    if "top5_note" in results:
        print(f"{'':>20} {results['top5_note']}")
    for name in ("videos_expected", "videos_found", "videos_evaluated", "videos_failed"):
        print(f"{name:>20} {results[name]:6d}")
    print(f"{'videos_per_second':>20} {results['videos_per_second']:6.2f}")
    for failure in results["failures"][:10]:
        print(f"failed: {failure['video_id']}: {failure['message']}")


if __name__ == "__main__":
    main()
