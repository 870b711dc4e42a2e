"""How fast `timesformer label` goes through long videos, and how much memory it takes.

Each video runs in a process of its own, twice:

decoding    with a network that only averages pixels: what reading, decoding, scaling and windows
            cost, in seconds of video a second
all of it   with `--model`, against the same network on windows that are in memory already: 1.00
            means that decoding costs nothing

The peak is that of the process above its imports (and the model), so it should not grow with the
length. The same video at several lengths: `ffmpeg -stream_loop N -c copy`.
"""

import argparse
import json
import multiprocessing
import time
from pathlib import Path

import torch
from machine import peak_memory, this_machine
from results import keep_rows

from hf_timesformer import TimeSformerVideoProcessor
from hf_timesformer.inference import choose_dtype, load_model_and_processor
from hf_timesformer.model.configuration_timesformer import TimeSformerConfig
from hf_timesformer.timeline.labelling import LabelSettings, label_video


class Averages(torch.nn.Module):
    """Stands for a network that takes no time: two classes by the mean of the pixels."""

    def __init__(self):
        super().__init__()
        self.config = TimeSformerConfig(num_labels=2)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, pixel_values: torch.Tensor):
        mean = pixel_values.flatten(1)[:, ::997].mean(1) * self.scale  # (b, v, t, c, h, w) -> (b,)
        return type("Output", (), {"logits": torch.stack([mean, -mean], dim=-1)})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmarks label`."""
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--model", help="also with this network: folder or Hub id")
    parser.add_argument("--window", type=float, default=2.0)
    parser.add_argument("--stride", type=float, default=0.5)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_frames", type=int, default=8)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, help="of torch (default: one a core)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--what", help="the network's name in the rows that --record keeps")
    parser.add_argument("--record", action="store_true", help="keep them in results/label.json")


def run(args: argparse.Namespace) -> None:
    """Print a line for each video, then the same as JSON."""
    print(this_machine())
    rows = []
    for path in args.videos:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (path, args)))
        print(as_text(rows[-1]), flush=True)
    if args.record:
        command = "python scripts/benchmarks label"
        keep_rows("label", this_machine(), as_rows(rows, args), command)
    not_settings = ("videos", "json", "record")
    settings = {name: value for name, value in vars(args).items() if name not in not_settings}
    report = {"machine": this_machine().as_dict(), "settings": settings, "videos": rows}
    print(json.dumps(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(path: Path, args: argparse.Namespace) -> dict:
    """One video: times real time, windows a second and peak MiB, of decoding and of all."""
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = LabelSettings(args.window, args.stride, args.batch_size)
    processor = TimeSformerVideoProcessor(num_frames=args.num_frames)
    row = {
        "video": path.name,
        "decoding": measure_one(path, Averages().eval(), processor, settings),
    }
    if args.model:
        model, processor = load_model_and_processor(
            args.model, num_clips=1, num_crops=1, num_frames=args.num_frames
        )
        model = model.to(choose_dtype(args.dtype, model.device)).eval()
        alone = network_alone(model, processor, settings)
        row["network"] = measure_one(path, model, processor, settings)
        row["network"]["of_its_own_speed"] = round(row["network"]["windows_a_second"] / alone, 3)
        row["network_alone_windows_a_second"] = round(alone, 3)
    return row


def measure_one(path: Path, model, processor, settings: LabelSettings) -> dict[str, float]:
    """`label_video` once; the peak is that of the process so far, above what it was before."""
    before = peak_memory()
    begin = time.perf_counter()
    timeline = label_video(path, model, processor, settings)
    seconds = time.perf_counter() - begin
    peak = peak_memory()
    return {
        "seconds_of_video": round(timeline.seconds, 1),
        "seconds": round(seconds, 2),
        "times_real_time": round(timeline.seconds / seconds, 1),
        "windows": len(timeline.scores),
        "windows_a_second": round(len(timeline.scores) / seconds, 3),
        "peak_MiB": round(peak - before, 1),
    }


def as_rows(rows: list[dict], args: argparse.Namespace) -> list[dict]:
    """A row of the table for each video and network."""
    windows = f"{args.window:g} s every {args.stride:g} s, {args.num_frames} frames"
    names = {
        "decoding": "none (mean of pixels)",
        "network": args.what or Path(args.model or "").name,
    }
    return [
        {"video": row["video"], "network": name, "windows": windows}
        | {key: value for key, value in row[part].items() if key != "windows"}
        for row in rows
        for part, name in names.items()
        if part in row
    ]


@torch.inference_mode()
def network_alone(model, processor, settings: LabelSettings) -> float:
    """Windows a second of the network on batches in memory: the best of three after one."""
    size = processor.crop_size
    shape = (settings.batch_size, 1, processor.num_frames, 3, size["height"], size["width"])
    batch = torch.randn(shape, dtype=model.dtype)
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        model(pixel_values=batch)
        times.append(time.perf_counter() - begin)
    return settings.batch_size / min(times[1:])


def as_text(row: dict) -> str:
    """One line of the table."""
    decoding, network = row["decoding"], row.get("network")
    text = (
        f"{row['video'][:24]:24} {decoding['seconds_of_video']:7.0f} s  decoding "
        f"{decoding['times_real_time']:6.1f} times real time, {decoding['peak_MiB']:5.1f} MiB"
    )
    if network:
        text += (
            f"  with the network {network['windows_a_second']:6.2f} windows a second, "
            f"{network['of_its_own_speed']:.2f} of its own speed, {network['peak_MiB']:5.1f} MiB"
        )
    return text
