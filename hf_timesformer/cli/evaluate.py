#!/usr/bin/env python
"""Evaluate a TimeSformer on a video data set by the paper's protocol: three crops a clip, logits averaged over views.

    python scripts/evaluate.py --model runs/mine --dataset folder --data_dir clips --split test
    accelerate launch --num_processes 8 scripts/evaluate.py --model runs/mine --dataset kinetics --data_dir k400

Writes eval_results.json, per_class.csv, confusion_matrix.png and, where clips are missing, missing_videos.txt.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import transformers
from accelerate import Accelerator
from transformers import HfArgumentParser

from ..conversion.onnx_export import load_graph_and_processor
from ..data.dataset_factory import DATASETS, find_videos
from ..data.labels import match_labels
from ..evaluation.predictions import AUTOCAST_DTYPES, predict_dataset
from ..evaluation.rank_exchange import make_accelerator
from ..evaluation.report import describe_protocol, installed_versions, summarize, write_report
from ..inference import load_model_and_processor
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .common import end_process_group, user_errors, warn_of_lone_process


@dataclass
class EvaluateArguments:
    """What to evaluate, on what, and how."""

    model: str = field(metadata={"help": "Folder or Hub id of the model and its processor."})
    data_dir: str = field(metadata={"help": "Folder of the data set; for webdataset also a pattern or URL of shards."})
    dataset: str = field(default="folder", metadata={"help": "Layout of the data.", "choices": list(DATASETS)})
    split: str = field(default="test", metadata={"help": "train, validation or test."})
    output_dir: str | None = field(default=None, metadata={"help": "Default: <model>/eval_<split>."})
    num_crops: int = field(default=3, metadata={"help": "1 (centre) or 3.", "choices": [1, 3]})
    num_clips: int = field(default=1, metadata={"help": "Clips a video, spread evenly."})
    num_frames: int | None = field(default=None, metadata={"help": "Frames a clip. Default: the checkpoint's."})
    sampling_rate: int | None = field(default=None, metadata={"help": "Every n-th frame. Default: the checkpoint's."})
    batch_size: int = field(default=4, metadata={"help": "Videos a batch on each device."})
    num_workers: int = field(default=2, metadata={"help": "Processes that decode, for each device."})
    dtype: str = field(default="float32", metadata={"help": "Autocast precision.", "choices": list(AUTOCAST_DTYPES)})
    onnx: str | None = field(
        default=None,
        metadata={"help": "The graph of a folder that export_onnx.py wrote, on the CPU.", "choices": ["fp32", "int8"]},
    )
    cpu: bool = field(default=False, metadata={"help": "Use the CPU even where there is a GPU."})


def main() -> None:
    """Load, predict on every process, and report from the first."""
    args = HfArgumentParser(EvaluateArguments).parse_args_into_dataclasses()[0]
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    accelerator = make_accelerator(cpu=args.cpu or args.onnx is not None)
    warn_of_lone_process(accelerator.num_processes)
    if not accelerator.is_main_process:
        logging.disable(logging.WARNING)
        transformers.logging.set_verbosity_error()
    output_dir = _output_dir(args)
    with user_errors():
        settings = ("num_crops", "num_clips", "num_frames", "sampling_rate")
        overrides = {name: getattr(args, name) for name in settings}
        if args.onnx:
            model, processor = load_graph_and_processor(args.model, args.onnx, **overrides)
        else:
            model, processor = load_model_and_processor(args.model, **overrides)
        missing_file = output_dir / "missing_videos.txt" if accelerator.is_main_process else None
        found = find_videos(args.dataset, args.data_dir, args.split, missing_file=missing_file)
        cure = "Use the data set that the model was trained on, or rename the class folders"
        model_label = np.array(match_labels(found.class_names, model.config.id2label, cure=cure), np.int64)
    predictions = predict_dataset(
        model,
        processor,
        found.videos,
        accelerator,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        dtype=args.dtype,
    )
    end_process_group()
    if not accelerator.is_main_process:
        return
    predictions.labels = model_label[predictions.labels]
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    with user_errors():
        results = summarize(predictions, names, expected=found.num_expected, found=found.num_found)
        results = _setting(args, processor, accelerator) | results
        for path in write_report(output_dir, results, predictions, names):
            print(f"wrote {path}")
    _print_summary(results)


def _output_dir(args: EvaluateArguments) -> Path:
    if args.output_dir:
        return Path(args.output_dir)
    suffix = f"_{args.onnx}" if args.onnx else ""
    return (Path(args.model) if Path(args.model).is_dir() else Path()) / f"eval_{args.split}{suffix}"


def _setting(args: EvaluateArguments, processor: TimeSformerVideoProcessor, accelerator: Accelerator) -> dict:
    return {
        "model": args.model,
        "dataset": args.dataset,
        "data_dir": args.data_dir,
        "split": args.split,
        "protocol": describe_protocol(processor),
        "views": processor.num_clips * processor.num_crops,
        "num_clips": processor.num_clips,
        "num_crops": processor.num_crops,
        "num_frames": processor.num_frames,
        "dtype": args.onnx or args.dtype,
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
