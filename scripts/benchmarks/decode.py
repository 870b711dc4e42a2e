"""Decoding speed: our decoder, torchcodec (where it is installed) and the reader of transformers'
pipeline.

Each reader turns a file into 8 frames over a 256-frame window (the paper's clip, placed in the
middle), short side 224, on one thread. The readers take turns on each clip; the table has the
median times and ours as a ratio.

`--growth VIDEO...` measures instead how time and memory grow with the length: each video (the same
one at several lengths, say by `ffmpeg -stream_loop N -c copy`) in a fresh process for each reader,
time of the second decode and peak memory above the imports, as a table and with `--png` as a
picture.
"""

import argparse
import functools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import av
import numpy as np
import torch
from machine import peak_memory, this_machine
from results import keep, keep_rows
from torchvision.transforms.v2 import functional
from transformers.pipelines.video_classification import read_video_pyav

from hf_timesformer.video.decoding import decode_video, probe_video
from hf_timesformer.video.decoding_pixels import scaled_size
from hf_timesformer.video.decoding_source import FORGIVING
from hf_timesformer.video.sampling import sample_indices


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SUFFIXES = {".mp4", ".avi", ".webm", ".mkv", ".mov"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmarks decode`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--videos", nargs="+", type=Path, help="files, or folders that are searched")
    what.add_argument(
        "--growth",
        nargs="+",
        type=Path,
        help="one video at growing lengths: time and memory of each",
    )
    parser.add_argument("--png", type=Path, help="with --growth: also draw it")
    parser.add_argument(
        "--rounds", type=int, default=5, help="times that each reader decodes each clip (default 5)"
    )
    parser.add_argument(
        "--limit", type=int, help="take at most this many clips, spread evenly over those found"
    )
    parser.add_argument(
        "--min_frames", type=int, default=32, help="leave out shorter clips (default 32)"
    )
    parser.add_argument("--num_frames", type=int, default=8)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--short_side", type=int, default=224)
    parser.add_argument(
        "--clock", choices=sorted(CLOCKS), default="wall", help="cpu: for a machine that is busy"
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument(
        "--record",
        action="store_true",
        help="keep them in results/decode.json, or decode_growth.json",
    )


def run(args: argparse.Namespace) -> None:
    """Print the table and the geometric means, then the same as one line of JSON."""
    torch.set_num_threads(1)
    if args.growth:
        measure_growth(args)
        return
    readers = {"ours": read_ours, "torchcodec": torchcodec_reader(), "stock": read_stock}
    readers = {name: reader for name, reader in readers.items() if reader is not None}
    rows = []
    for path in find_videos(args.videos, args.limit):
        row = measure(path, readers, args)
        if row is not None:
            rows.append(row)
            print(format_row(row), flush=True)
    means = summarize(rows, readers)
    for group, mean in means.items():
        ratios = "  ".join(f"{ratio:.2f}x {name}" for name, ratio in mean["ratios"].items())
        print(f"geometric mean, {group} ({mean['clips']} clips): ours is {ratios}")
    report = {"clips": rows, "geometric_means": means}
    results = json.dumps(report)
    print(results)
    if args.record:
        keep("decode", this_machine(), report | {"clock": args.clock, "rounds": args.rounds})
    if args.json:
        args.json.write_text(results + "\n")


def find_videos(paths: list[Path], limit: int | None) -> list[Path]:
    """The video files among `paths` and below them, at most `limit`, spread evenly."""
    found = []
    for path in paths:
        below = sorted(child for child in path.rglob("*") if child.suffix.lower() in SUFFIXES)
        found += below if path.is_dir() else [path]
    if limit is not None and len(found) > limit:
        found = [found[index] for index in np.linspace(0, len(found) - 1, limit).astype(int)]
    return found


def measure(path: Path, readers: dict[str, Callable], args: argparse.Namespace) -> dict | None:
    """Median milliseconds of each reader on one clip, in turns; None for a clip too short or
    damaged for ours.
    """
    try:
        _, metadata = decode_video(path, [0])
    except ValueError as error:
        print(f"left out: {error}")
        return None
    total = metadata.total_num_frames
    if total < args.min_frames:
        return None
    rate = args.window // args.num_frames
    indices = sample_indices("clip", total, num_frames=args.num_frames, sampling_rate=rate)[0]
    clock = CLOCKS[args.clock]
    times: dict[str, list[float]] = {}
    for name, reader in readers.items():  # warms the caches
        try:
            reader(path, indices, args.short_side)
            times[name] = []
        except (ValueError, RuntimeError, OSError, IndexError) as error:
            print(f"{name} cannot read {path.name}: {type(error).__name__}: {str(error)[:100]}")
    if "ours" not in times:
        return None
    for _ in range(args.rounds):
        for name in times:
            begin = clock()
            readers[name](path, indices, args.short_side)
            times[name].append(1000 * (clock() - begin))
    codec, b_frames = describe(path)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "clip": path.name,
        "codec": codec + "+B" * b_frames,
        "size": f"{metadata.width}x{metadata.height}",
        "frames": total,
        "milliseconds": {name: round(value, 2) for name, value in medians.items()},
        "ratios": {
            name: round(value / medians["ours"], 3)
            for name, value in medians.items()
            if name != "ours"
        },
    }


def describe(path: Path) -> tuple[str, bool]:
    """The codec's name, and whether the clip has reordered (B) frames."""
    with av.open(str(path), **FORGIVING) as container:
        stream = container.streams.video[0]
        return stream.codec_context.name, stream.codec_context.has_b_frames


def summarize(rows: list[dict], readers: dict[str, Callable]) -> dict[str, dict]:
    """Geometric means of the ratios over all clips and for each codec."""
    groups = {"all": rows}
    for row in rows:
        groups.setdefault(row["codec"].split("+")[0], []).append(row)
        if "+" in row["codec"]:
            groups.setdefault(row["codec"], []).append(row)
    means = {}
    for group, members in groups.items():
        ratios = {}
        for name in readers:
            values = [row["ratios"][name] for row in members if name in row["ratios"]]
            if values:
                ratios[name] = round(statistics.geometric_mean(values), 3)
        means[group] = {"clips": len(members), "ratios": ratios}
    return means


def format_row(row: dict) -> str:
    """One line of the table."""
    times = "  ".join(f"{name} {value:8.2f} ms" for name, value in row["milliseconds"].items())
    ratios = "  ".join(f"{ratio:5.2f}x {name}" for name, ratio in row["ratios"].items())
    return f"{row['clip'][:40]:40} {row['codec']:8} {row['size']:>9} {row['frames']:5}  {times}  {ratios}"


GROWTH_READERS = {
    "ours": lambda: read_ours,
    "torchcodec": lambda: torchcodec_reader("approximate"),
    "torchcodec exact": lambda: torchcodec_reader("exact"),
}


def measure_growth(args: argparse.Namespace) -> None:
    """Print a line for each video and reader; write them as JSON and draw them where asked to."""
    rows = []
    for path in args.growth:
        metadata = probe_video(path)
        rate = args.window // args.num_frames
        chosen = sample_indices(
            "clip", metadata.total_num_frames, num_frames=args.num_frames, sampling_rate=rate
        )
        row = {
            "video": path.name,
            "seconds_of_video": metadata.duration,
            "frames": metadata.total_num_frames,
        }
        for name in GROWTH_READERS:
            row[name] = measure_alone(path, name, chosen[0].tolist(), args.short_side)
        rows.append(row)
        print(format_growth(row), flush=True)
    report = {
        "machine": this_machine().as_dict(),
        "date": date.today().isoformat(),
        "command": "python scripts/benchmarks decode --growth",
        "growth": rows,
    }
    print(json.dumps(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    if args.record:
        command = "python scripts/benchmarks decode --growth"
        keep_rows("decode_growth", this_machine(), rows, command)
    if args.png:
        draw_growth(rows, args.png)


def measure_alone(
    path: Path, name: str, indices: list[int], short_side: int
) -> dict[str, float] | None:
    """Milliseconds and peak MiB of one reader on one video, in a process of its own; None where it
    cannot read it.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_here, (path, name, indices, short_side))


def _measure_here(
    path: Path, name: str, indices: list[int], short_side: int
) -> dict[str, float] | None:
    torch.set_num_threads(1)
    reader = GROWTH_READERS[name]()
    if reader is None:
        return None
    before = peak_memory()
    times = []
    for _ in range(4):  # the first warms the caches
        begin = time.perf_counter()
        reader(path, np.array(indices), short_side)
        times.append(1000 * (time.perf_counter() - begin))
    peak = peak_memory()
    return {
        "milliseconds": round(statistics.median(times[1:]), 1),
        "peak_MiB": round(peak - before, 1),
    }


def format_growth(row: dict) -> str:
    """One line of the table of growth."""
    cells = []
    for name in GROWTH_READERS:
        found = row[name]
        cells.append(
            f"{name} {found['milliseconds']:7.1f} ms {found['peak_MiB']:6.1f} MiB"
            if found
            else f"{name} -"
        )
    return (
        f"{row['video'][:24]:24} {row['seconds_of_video']:8.0f} s {row['frames']:7} frames  "
        + "  ".join(cells)
    )


def draw_growth(rows: list[dict], path: Path) -> None:
    """Milliseconds and peak memory against the length of the video."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for field, label, axis in zip(
        ("milliseconds", "peak_MiB"), ("milliseconds", "peak MiB above the imports"), axes
    ):
        for name in GROWTH_READERS:
            measured = [row for row in rows if row[name]]
            lengths = [row["seconds_of_video"] for row in measured]
            axis.plot(lengths, [row[name][field] for row in measured], "o-", label=name)
        axis.set_xscale("log")
        lengths = [row["seconds_of_video"] for row in rows]
        axis.set_xticks(lengths, [as_length(length) for length in lengths])
        axis.minorticks_off()
        axis.set_xlabel("length of the video")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    axes[0].legend()
    figure.savefig(path, dpi=110)


def as_length(seconds: float) -> str:
    """`3600` -> `1 h`."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"


def read_ours(path: Path, indices: np.ndarray, short_side: int) -> torch.Tensor:
    return decode_video(path, indices, short_side=short_side)[0]


def read_stock(path: Path, indices: np.ndarray, short_side: int) -> torch.Tensor:
    """The reader of transformers' video-classification pipeline, which cannot scale, and
    torchvision's resize.
    """
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count, stream.thread_type = 1, "NONE"
        frames = torch.from_numpy(read_video_pyav(container, indices))
    # (t, h, w, c) -> (t, c, h, w)
    return functional.resize(frames.permute(0, 3, 1, 2), [short_side], antialias=True)


def torchcodec_reader(seek_mode: str = "approximate") -> Callable | None:
    """torchcodec's decoder, scaling as it converts; None where it is not installed."""
    try:
        from torchcodec.decoders import VideoDecoder
        from torchcodec.transforms import Resize
    except (ImportError, RuntimeError) as error:
        print(f"torchcodec is left out: {str(error).splitlines()[0]}")
        return None

    @functools.cache
    def size_of(path: Path) -> tuple[int, int]:
        decoder = VideoDecoder(str(path), seek_mode=seek_mode, num_ffmpeg_threads=1)
        return decoder.metadata.height, decoder.metadata.width

    def read(path: Path, indices: np.ndarray, short_side: int) -> torch.Tensor:
        resize = Resize(scaled_size(*size_of(path), short_side))
        decoder = VideoDecoder(
            str(path), seek_mode=seek_mode, num_ffmpeg_threads=1, transforms=[resize]
        )
        return decoder.get_frames_at(indices.tolist()).data

    return read
