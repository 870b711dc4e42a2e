#!/usr/bin/env python
"""Evaluate a TimeSformer on a video data set by the paper's protocol: three crops a clip, logits
averaged over views.

    timesformer evaluate --model runs/mine --dataset folder --data_dir clips --split test
    accelerate launch --num_processes 8 -m hf_timesformer.cli.evaluate --model runs/mine \\
        --dataset kinetics --data_dir k400
    timesformer evaluate --from_predictions run-a/eval_test run-b/eval_test --output_dir fused

--num_clips auto covers the whole of each video, however long. The last line fuses runs over the
same videos: the mean of their probabilities.

Writes eval_results.json, predictions.parquet (what was said of each video), per_class.csv,
most_confused.csv, confusion_matrix.png, worst_errors.png and, where clips are missing,
missing_videos.txt.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.arguments import add_dataset_arguments, dataset_arguments
from .common import (
    add_model_arguments,
    clips_of,
    end_process_group,
    graph_of,
    make_parser,
    user_errors,
    warn_of_lone_process,
)


if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..conversion.exported_classifier import ExportedClassifier
    from ..data.dataset_factory import FoundVideos
    from ..data.record_video import ReadSettings
    from ..evaluation.predictions import Predictions
    from ..model.modeling_timesformer import TimeSformerForVideoClassification
    from ..video.video_processing_timesformer import TimeSformerVideoProcessor

PERCENTAGES = (
    "top1_accuracy", "top5_accuracy", "mean_class_accuracy", "mean_average_precision", "f1_micro", "f1_macro",
)  # fmt: skip
ERRORS = ("mean_absolute_error", "root_mean_squared_error")
DTYPES = ("float32", "bfloat16", "float16")  # of evaluation.predictions.AUTOCAST_DTYPES


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("evaluate", __doc__)
    add_model_arguments(parser)
    add_dataset_arguments(parser)
    parser.add_argument("--split", default="test", help="train, validation or test")
    parser.add_argument("--output_dir", help="by default <model>/eval_<split>")
    parser.add_argument("--num_crops", type=int, default=3, choices=(1, 3), help="1 (centre) or 3")
    parser.add_argument(
        "--num_clips",
        type=clips_of,
        default=1,
        help="clips a video, spread evenly; auto: as many as cover it",
    )
    parser.add_argument("--num_frames", type=int, help="frames a clip, if not the checkpoint's")
    parser.add_argument(
        "--sampling", choices=("clip", "segments"), help="clip or segments, if not the checkpoint's"
    )
    parser.add_argument(
        "--sampling_rate", type=int, help="every n-th frame, if not the checkpoint's"
    )
    parser.add_argument(
        "--target_fps", type=float, help="count --sampling_rate in frames of this rate"
    )
    parser.add_argument("--batch_size", type=int, default=4, help="videos a batch on each device")
    parser.add_argument(
        "--num_workers", type=int, default=2, help="processes that decode, for each device"
    )
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="autocast precision")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="probability of a class that counts, of several",
    )
    parser.add_argument(
        "--from_predictions",
        nargs="+",
        metavar="RUN",
        help="fuse these predictions.parquet, or folders that hold one",
    )
    return parser.parse_args(argv)


def parse_fusion(argv: list[str] | None) -> argparse.Namespace | None:
    """The command line where it fuses runs, which needs neither model nor data; None where it does
    not.
    """
    spellings = ("--from_predictions", "--from-predictions")
    if not any(word.startswith(spellings) for word in (sys.argv[1:] if argv is None else argv)):
        return None
    parser = make_parser("evaluate", __doc__)
    parser.add_argument("--from_predictions", nargs="+", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--threshold", type=float, default=0.5)
    return parser.parse_args(argv)


def fuse_runs(args: argparse.Namespace) -> None:
    """Read several runs over the same videos, and report their mean."""
    from ..evaluation.prediction_file import fuse, read_predictions
    from ..evaluation.report import summarize, write_report
    from ..versions import installed_versions

    with user_errors():
        fused, names = fuse([read_predictions(path) for path in args.from_predictions])
        results = summarize(fused, names, expected=None, found=None, threshold=args.threshold)
        protocol = f"The mean of the probabilities of {len(args.from_predictions)} runs."
        about = {
            "protocol": protocol,
            "from_predictions": args.from_predictions,
            "versions": installed_versions(),
        }
        for path in write_report(args.output_dir, about | results, fused, names):
            print(f"wrote {path}")
    _print_summary(about | results)


def model_classes(
    found: "FoundVideos", model: "TimeSformerForVideoClassification | ExportedClassifier"
) -> list[int]:
    """The model's number for each class of the data set. Raises ValueError where the two do not
    fit.
    """
    from ..data.labels import match_labels
    from ..data.targets import REGRESSION
    from ..inference import problem_type_of

    if problem_type_of(model.config) != found.problem_type:
        raise ValueError(
            f"the data set poses a problem of type {found.problem_type}, the model solves one of type "
            f"{problem_type_of(model.config)}: give the data set that it was trained on"
        )
    if found.problem_type == REGRESSION:
        return list(range(len(found.class_names)))
    cure = "Use the data set that the model was trained on, or rename the class folders"
    return match_labels(found.class_names, model.config.id2label, cure=cure)


def main(argv: list[str] | None = None) -> None:
    """Load, predict on every process, and report from the first."""
    fusion = parse_fusion(argv)
    if fusion is not None:
        return fuse_runs(fusion)
    args = parse_arguments(argv)
    from ..evaluation.predictions import predict_dataset
    from ..evaluation.report import describe_protocol

    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    with user_errors():
        graph = graph_of(args)
    accelerator = start_processes(cpu=args.cpu or graph is not None)
    with user_errors():
        model, processor = load(args, graph)
        found = find(args, is_first=accelerator.is_main_process)
        label_ids = model_classes(found, model)
    predictions = predict_dataset(
        model,
        processor,
        found.videos,
        accelerator,
        label_ids=label_ids,
        whole_videos=args.num_clips == "auto",
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        dtype="float32" if graph is not None else args.dtype,
    )
    end_process_group()
    if accelerator.is_main_process:
        dtype = args.dtype if graph is None else model.precision
        protocol = describe_protocol(
            processor,
            whole_videos=args.num_clips == "auto",
            problem_type=found.problem_type,
        )
        about = _setting(args, processor, accelerator) | {"protocol": protocol, "dtype": dtype}
        names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        report(args, about, predictions, names, found)


def start_processes(*, cpu: bool) -> "Accelerator":
    """This process's place among those that a launcher started; only the first one talks."""
    import transformers

    from ..evaluation.rank_exchange import make_accelerator

    accelerator = make_accelerator(cpu=cpu)
    warn_of_lone_process(accelerator.num_processes)
    if not accelerator.is_main_process:
        logging.disable(logging.WARNING)
        transformers.logging.set_verbosity_error()
    return accelerator


def load(
    args: argparse.Namespace, graph: tuple[str, str | None] | None
) -> "tuple[TimeSformerForVideoClassification | ExportedClassifier, TimeSformerVideoProcessor]":
    """The model, or the exported graph, and its processor with the settings of the command line.
    Raises ValueError or OSError where there is none.
    """
    from ..conversion.load_exported import load_exported
    from ..inference import load_model_and_processor

    settings = {
        "num_crops": args.num_crops,
        "num_clips": 1 if args.num_clips == "auto" else args.num_clips,
        "num_frames": args.num_frames,
        "sampling": args.sampling,
        "sampling_rate": args.sampling_rate,
        "target_fps": args.target_fps,
        **dataset_arguments(args).reading,
    }
    if graph is not None:
        return load_exported(*graph, **settings)
    return load_model_and_processor(args.model, **settings)


def find(args: argparse.Namespace, *, is_first: bool) -> "FoundVideos":
    """The videos of the split. The first process writes a list of those that are missing."""
    from ..data.dataset_factory import find_videos

    missing_file = _output_dir(args) / "missing_videos.txt" if is_first else None
    options = dataset_arguments(args).reader_options
    return find_videos(
        args.dataset, args.data_dir, args.split, missing_file=missing_file, **options
    )


def report(
    args: argparse.Namespace,
    about: dict,
    predictions: "Predictions",
    names: list[str],
    found: "FoundVideos",
) -> None:
    """Write the files of an evaluation and print its figures; `about` says how it was done."""
    from ..data.record_video import ReadSettings
    from ..evaluation.report import summarize, write_report

    output_dir = _output_dir(args)
    with user_errors():
        counts = {"expected": found.num_expected, "found": found.num_found}
        results = about | summarize(predictions, names, **counts, threshold=args.threshold)
        for path in write_report(output_dir, results, predictions, names):
            print(f"wrote {path}")
        reading = ReadSettings.given(**dataset_arguments(args).reading)
        _write_worst_errors(output_dir, predictions, names, found, reading)
    _print_summary(results)


def _write_worst_errors(
    folder: Path,
    predictions: "Predictions",
    names: list[str],
    found: "FoundVideos",
    reading: "ReadSettings",
) -> None:
    """The picture of the worst errors, or why there is none."""
    from ..evaluation.worst_errors import worst_videos, write_worst_errors

    if not hasattr(found.videos, "__len__"):
        print("no worst_errors.png: the clips of a stream cannot be looked at again")
        return
    rows = {name: row for row, name in enumerate(found.videos["video_id"])}
    records = {name: found.videos[rows[name]] for name in worst_videos(predictions)}
    path = write_worst_errors(
        folder / "worst_errors.png", predictions, names, records, reading=reading
    )
    print("no worst_errors.png: every answer was right" if path is None else f"wrote {path}")


def _output_dir(args: argparse.Namespace) -> Path:
    if args.output_dir:
        return Path(args.output_dir)
    precision = args.onnx or args.precision
    suffix = f"_{precision}" if precision else ""
    folder = Path(args.export or args.model)
    return (folder if folder.is_dir() else Path()) / f"eval_{args.split}{suffix}"


def _setting(
    args: argparse.Namespace, processor: "TimeSformerVideoProcessor", accelerator: "Accelerator"
) -> dict:
    from ..versions import installed_versions

    return {
        "model": args.export or args.model,
        "dataset": args.dataset,
        "data_dir": args.data_dir,
        "split": args.split,
        "views": "auto" if args.num_clips == "auto" else processor.num_clips * processor.num_crops,
        "num_clips": args.num_clips,
        "num_crops": processor.num_crops,
        "num_frames": processor.num_frames,
        "device": str(accelerator.device),
        "num_processes": accelerator.num_processes,
        "versions": installed_versions(),
    }


def _print_summary(results: dict) -> None:
    from ..data.faults import fault_line

    print(results["protocol"])
    for name in PERCENTAGES:
        if name in results:
            print(f"{name:>22} {100 * results[name]:6.2f} %")
    for name in ERRORS:
        if name in results:
            print(f"{name:>22} {results[name]:.6g}")
    if "top5_note" in results:
        print(f"{'':>22} {results['top5_note']}")
    for name in ("videos_expected", "videos_found", "videos_evaluated", "videos_failed"):
        print(f"{name:>22} {results[name]:6d}")
    print(f"{'videos_per_second':>22} {results['videos_per_second']:6.2f}")
    for failure in results["failures"][:10]:
        print(f"failed: {fault_line(failure['video_id'], failure['message'])}")


if __name__ == "__main__":
    main()
