"""How time, memory and FLOPs grow with frames and their size, for the five schemes: the paper's
figure of cost.

All schemes run in turn at each clip length and size, with all tokens until the end (no shortcut of
the last block). A few blocks are measured and scaled to the base network's twelve, which are alike;
FLOPs are counted without computing.
"""

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import this_machine
from peaks import measure_peak
from works import NAMES, Work, alternate, build, config_fields, count_flops, make_clip, runner

from hf_timesformer import TimeSformerConfig, TimeSformerForVideoClassification


BLOCKS = 12
LENGTHS = ((8, 224), (16, 224), (32, 224), (64, 224), (96, 224))
SIZES = ((8, 112), (8, 176), (8, 224), (8, 336), (8, 448))


@dataclass
class Point:
    """One scheme at one clip length and frame size."""

    scheme: str
    frames: int
    size: int
    seconds: float
    peak_MiB: float
    TFLOPs: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmarks growth`."""
    parser.add_argument(
        "--layers", type=int, default=2, help="blocks that are measured, for all twelve"
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="timed runs of each, after one that is not counted"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max_frames", type=int, default=96)
    parser.add_argument("--max_size", type=int, default=448)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)


def run(args: argparse.Namespace) -> None:
    """Print one line a point; write them as JSON and draw them where asked to."""
    torch.set_num_threads(args.threads)
    print(
        f"{this_machine()!s}, {args.threads} threads, fp32, {args.layers} blocks measured for {BLOCKS}",
        flush=True,
    )
    points = []
    for frames, size in dict.fromkeys(LENGTHS + SIZES):
        if frames <= args.max_frames and size <= args.max_size:
            points += measure(frames, size, args)
            for point in points[-len(NAMES) :]:
                print(as_text(point), flush=True)
    report = {
        "machine": str(this_machine()),
        "threads": args.threads,
        "points": [vars(point) for point in points],
    }
    print(json.dumps(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    if args.png:
        draw(points, args.png)


def measure(frames: int, size: int, args: argparse.Namespace) -> list[Point]:
    """All schemes at one clip length and frame size."""
    works = {scheme: Work(scheme, frames, size, all_tokens=True) for scheme in NAMES}
    runs = {
        name: runner(build(work, "ours", args.layers), make_clip(work), work)
        for name, work in works.items()
    }
    times = alternate(runs, args.repeats)
    return [
        Point(
            scheme,
            frames,
            size,
            seconds=statistics.median(times[scheme]) * BLOCKS / args.layers,
            peak_MiB=measure_peak(work, "ours", args),
            TFLOPs=count_on_paper(work),
        )
        for scheme, work in works.items()
    ]


def count_on_paper(work: Work) -> float:
    """TFLOPs of the base network, counted on shapes alone."""
    with torch.device("meta"):
        model = TimeSformerForVideoClassification(
            TimeSformerConfig(**config_fields(work, work.scheme, BLOCKS))
        )
    return count_flops(model.base_model, make_clip(work).to("meta"))


def as_text(point: Point) -> str:
    """One line of the table."""
    return (
        f"{NAMES[point.scheme]:6} {point.frames:3}x{point.size}: {point.seconds:8.2f} s, {point.peak_MiB:7.0f} MiB, "
        f"{point.TFLOPs:6.3f} TFLOPs"
    )


def draw(points: list[Point], path: Path) -> None:
    """Seconds, memory and FLOPs against the clip length and against the frame size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = (
        ("TFLOPs", "TFLOPs"),
        ("seconds", "seconds a clip"),
        ("peak_MiB", "MiB above the weights"),
    )
    rows = (
        (LENGTHS, "frames", "frames of 224 x 224 pixels"),
        (SIZES, "size", "side of 8 frames, pixels"),
    )
    figure, axes = pyplot.subplots(len(rows), len(columns), figsize=(13, 7), layout="constrained")
    for (places, field, x_label), row in zip(rows, axes):
        for (value, y_label), axis in zip(columns, row):
            for scheme, name in NAMES.items():
                line = [p for p in points if p.scheme == scheme and (p.frames, p.size) in places]
                line.sort(key=lambda p: getattr(p, field))
                axis.plot(
                    [getattr(p, field) for p in line],
                    [getattr(p, value) for p in line],
                    "o-",
                    label=name,
                )
            axis.set_xlabel(x_label)
            axis.set_ylabel(y_label)
            axis.set_ylim(bottom=0)
    axes[0][0].legend()
    figure.savefig(path, dpi=110)
