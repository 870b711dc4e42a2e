"""What clips cost to read in training, by how `prepare --pack` encoded them; and how many cores, and
what reading, several GPUs then need.

    python scripts/benchmarks packing --videos ucf101/train --packed packed --prepare
    python scripts/benchmarks packing --videos ucf101/train --packed packed --json packing.json
    python scripts/benchmarks packing --cluster results/packing.json

The first command encodes, the second measures: one core, processor time, ways in turn on each clip.
Reading is what training does: frames at random places, decoded at the size of the jitter, augmented
to a crop of 224. The third is a model, computed from what the second has measured.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from decode import find_videos
from machine import this_machine
from page_tables import cluster
from tables import plain_table

from hf_timesformer.data.augmentation import ClipAugmentation
from hf_timesformer.data.clips import ClipKey, FrameSampling, TrainingClips
from hf_timesformer.data.row_source import RecordSource
from hf_timesformer.video.decoding import decode_video, probe_video
from hf_timesformer.video.encoding import encode_video


FRAMES = 8
CROP = 224
KEY_FRAMES = (64, 32, 16, 8)
RATES = (32, 8)  # source frames from one frame of a clip to the next
MEAN, STD = [0.45] * 3, [0.225] * 3


@dataclass(frozen=True)
class Packing:
    """One way to encode; `key_frame_every` 0 stands for the files as they come."""

    key_frame_every: int
    fast_decode: bool = False

    @property
    def name(self) -> str:
        if not self.key_frame_every:
            return "as downloaded"
        return f"key {self.key_frame_every}" + (", fast_decode" if self.fast_decode else "")


PACKINGS = [Packing(0)] + [Packing(every, fast) for every in KEY_FRAMES for fast in (False, True)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmarks packing`."""
    parser.add_argument("--videos", nargs="+", type=Path, help="files, or folders to search")
    parser.add_argument(
        "--limit", type=int, default=50, help="clips, spread evenly over those found"
    )
    parser.add_argument("--packed", type=Path, help="folder of the encoded clips")
    parser.add_argument("--prepare", action="store_true", help="encode them; measure nothing")
    parser.add_argument("--rounds", type=int, default=2, help="random places read in each clip")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cluster", type=Path, help="a JSON of results: print the model instead")


def run(args: argparse.Namespace) -> None:
    """Encode, measure, or compute."""
    torch.set_num_threads(1)
    if args.cluster:
        stored = json.loads(args.cluster.read_text(encoding="utf-8"))
        print(plain_table("cluster", cluster(stored)))
        return
    videos = find_videos(args.videos, args.limit)
    if args.prepare:
        encode_all(videos, args.packed)
        return
    report = measure(videos, args.packed, args.rounds)
    print(table(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


# Encoding


def encode_all(videos: Sequence[Path], folder: Path) -> None:
    """Every clip in every way, with its PSNR against the file that it was made from."""
    qualities: dict[str, dict[str, float]] = {}
    for packing in PACKINGS[1:]:
        target = folder / packing.name
        target.mkdir(parents=True, exist_ok=True)
        found = qualities[packing.name] = {}
        for video in videos:
            content = encode_video(
                str(video),
                probe_video(video),
                key_frame_every=packing.key_frame_every,
                fast_decode=packing.fast_decode,
            )
            (target / f"{video.stem}.mp4").write_bytes(content)
            found[video.stem] = peak_ratio(video, content)
        print(packing.name, round(statistics.mean(found.values()), 2), "dB", flush=True)
    (folder / "psnr.json").write_text(json.dumps(qualities), encoding="utf-8")


def peak_ratio(video: Path, content: bytes) -> float:
    """PSNR in dB over RGB of 16 frames, evenly spread."""
    numbers = np.linspace(0, probe_video(video).total_num_frames - 1, 16).astype(int)
    first, _ = decode_video(video, numbers)
    second, _ = decode_video(content, numbers)
    height, width = second.shape[-2:]  # 4:2:0 needs even sides
    error = (first[..., :height, :width].double() - second.double()).pow(2).mean().item()
    return 10 * np.log10(255**2 / max(error, 1e-3))


# Measuring


def files_of(packing: Packing, videos: Sequence[Path], folder: Path) -> list[Path]:
    """The clips in that encoding."""
    if not packing.key_frame_every:
        return list(videos)
    return [folder / packing.name / f"{video.stem}.mp4" for video in videos]


def measure(videos: Sequence[Path], folder: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds a clip of every packing, and what its files weigh."""
    qualities = json.loads((folder / "psnr.json").read_text(encoding="utf-8"))
    files = {packing.name: files_of(packing, videos, folder) for packing in PACKINGS}
    results: dict[str, dict[str, Any]] = {}
    original = sum(path.stat().st_size for path in videos)
    reference = sum(path.stat().st_size for path in files[PACKINGS[1].name])
    for name, paths in files.items():
        size = sum(path.stat().st_size for path in paths)
        results[name] = {
            "bytes_of_key_64": round(size / reference, 3),
            "bytes_a_clip": round(size / len(paths)),
        }
        if name in qualities:
            results[name]["psnr"] = round(statistics.mean(qualities[name].values()), 2)
    for rate in RATES:
        for views in (1, 2):
            clips = {name: reader(paths, rate, views) for name, paths in files.items()}
            for name, times in take_turns(clips, len(videos), rounds).items():
                column = f"1 in {rate}, {views} view{'s' * (views > 1)}"
                results[name][column] = round(1000 * statistics.mean(times) / views, 2)
        clips = {name: middles(paths, rate) for name, paths in files.items()}
        for name, times in take_turns(clips, len(videos), 1).items():
            column = f"1 in {rate}, middle, decoding"
            results[name][column] = round(1000 * statistics.mean(times), 2)
    return {
        "machine": str(this_machine()),
        "date": date.today().isoformat(),
        "command": "python scripts/benchmarks packing",
        "clips": len(videos),
        "bytes_as_downloaded": original,
        "milliseconds_a_view_and_core": results,
    }


def reader(paths: list[Path], rate: int, views: int) -> Any:
    """The clips as training reads them: a function of row and epoch."""
    rows = [
        {"video_id": path.stem, "video": {"path": str(path), "bytes": None}, "label": 0}
        for path in paths
    ]
    clips = TrainingClips(
        RecordSource(Dataset.from_list(rows)),
        FrameSampling(FRAMES, "clip", rate),
        ClipAugmentation((CROP, CROP), short_side=(256, 320), image_mean=MEAN, image_std=STD),
        label_ids=[0],
        seed=0,
        repeats=views,
    )
    return lambda row, epoch: clips[ClipKey(epoch, row)]


def middles(paths: list[Path], rate: int) -> Any:
    """Decoding alone, in the middle of the video, as an evaluation does."""
    sampling = FrameSampling(FRAMES, "clip", rate)
    return lambda row, epoch: decode_video(paths[row], sampling.indices, short_side=CROP)


def take_turns(readers: dict[str, Any], count: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time of each reader for each clip, after one clip that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in readers}
    for read in readers.values():
        read(0, rounds)
    for epoch in range(rounds):
        for row in range(count):
            for name, read in readers.items():
                start = time.process_time()
                read(row, epoch)
                times[name].append(time.process_time() - start)
    return times


def table(report: dict[str, Any]) -> str:
    """In Markdown."""
    results = report["milliseconds_a_view_and_core"]
    columns = list(dict.fromkeys(column for row in results.values() for column in row))
    lines = [
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, row in results.items():
        cells = " | ".join(str(row.get(column, "")) for column in columns)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)
