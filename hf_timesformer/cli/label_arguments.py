"""The command line of `timesformer label`, and the settings that it stands for."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from .common import (
    CommandParser,
    add_reading_arguments,
    add_shard_argument,
    make_parser,
    reading_settings,
)


if TYPE_CHECKING:
    from ..model.modeling_timesformer import TimeSformerForVideoClassification
    from ..timeline.labelling import LabelSettings
    from ..video.decoding_limits import DecodeLimits


def make_label_parser(doc: str) -> CommandParser:
    """The parser; `doc` is the command's docstring."""
    parser = make_parser("label", doc)
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="VIDEO",
        help="video files, folders of numbered pictures, folders of either, or @LIST: a file of "
        "paths, one a line",
    )
    parser.add_argument(
        "--model", required=True, help="folder or Hub id of the model and its processor"
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("timeline"), help="where the files go"
    )
    _add_windows(parser)
    _add_segments(parser)
    _add_outputs(parser)
    _add_work(parser)
    return parser


def _add_windows(parser: argparse.ArgumentParser) -> None:
    """Which windows the model sees."""
    windows = parser.add_argument_group("windows")
    windows.add_argument(
        "--window", type=float, default=2.0, help="seconds that the model sees at a time"
    )
    windows.add_argument("--stride", type=float, default=1.0, help="seconds from window to window")
    windows.add_argument("--num_frames", type=int, help="frames a window, if not the checkpoint's")
    windows.add_argument("--num_crops", type=int, choices=[1, 3], default=1, help="1 (centre) or 3")


def _add_segments(parser: argparse.ArgumentParser) -> None:
    """What becomes a segment."""
    segments = parser.add_argument_group("segments")
    segments.add_argument(
        "--threshold", type=float, default=0.5, help="score that a segment must reach"
    )
    segments.add_argument(
        "--low_threshold", type=float, help="score below which it ends (default: 0.6 --threshold)"
    )
    segments.add_argument(
        "--change_cost",
        type=float,
        default=0.5,
        help="price of a cut, in nats of uncertainty that it removes; dearer cuts are fewer",
    )
    segments.add_argument(
        "--smoothing",
        type=int,
        help="windows that scores are averaged over before, odd (default: 1; 3 with several labels at a time)",
    )
    segments.add_argument(
        "--merge",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="join segments of one class that are so near",
    )
    segments.add_argument(
        "--min_seconds",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="leave out segments shorter than this",
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    """What is written besides the usual files."""
    outputs = parser.add_argument_group("further outputs")
    outputs.add_argument(
        "--overlay", action="store_true", help="the video with the answer drawn on it"
    )
    outputs.add_argument(
        "--overlay_short_side", type=int, metavar="PIXELS", help="its size, if not the video's"
    )
    outputs.add_argument(
        "--features",
        type=Path,
        metavar="FILE.parquet",
        help="CLS features of every window; for several videos a folder, with one file a video",
    )


def _add_work(parser: argparse.ArgumentParser) -> None:
    """How the work goes, and who does which share of it."""
    add_reading_arguments(parser)
    work = parser.add_argument_group("work")
    work.add_argument("--resume", action="store_true", help="go on where a killed run stopped")
    add_shard_argument(work)
    work.add_argument("--batch_size", type=int, default=8, help="windows that run together")
    work.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    work.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="default auto: bfloat16 where the processor or GPU computes in it, else float32",
    )


def limits_of(args: argparse.Namespace) -> "DecodeLimits":
    """What one video may cost. Raises ValueError for a limit that there is not."""
    from ..video.frame_stream import STREAM_LIMITS

    given = reading_settings(args)["limits"] or {}
    known = {field.name for field in dataclasses.fields(STREAM_LIMITS)}
    for name in given:
        if name not in known:
            raise ValueError(f"--limits knows {', '.join(sorted(known))}; got {name!r}")
    return dataclasses.replace(STREAM_LIMITS, **given)


def label_settings(
    args: argparse.Namespace, model: "TimeSformerForVideoClassification"
) -> "LabelSettings":
    """Windows and rules of the command line. Raises ValueError for what contradicts itself."""
    from ..inference import MULTI_LABEL, problem_type_of
    from ..timeline.labelling import LabelSettings
    from ..timeline.segments import SegmentRules

    rules = SegmentRules(
        threshold=args.threshold,
        low_threshold=0.6 * args.threshold if args.low_threshold is None else args.low_threshold,
        change_cost=args.change_cost,
        smoothing=args.smoothing,
        merge=args.merge,
        min_seconds=args.min_seconds,
        exclusive=problem_type_of(model.config) != MULTI_LABEL,
    )
    return LabelSettings(
        args.window, args.stride, args.batch_size, rules, with_features=args.features is not None
    )
