"""From file to label: the stock `pipeline("video-classification")` with our model and processor
against stock's own.

Both sides have the same weights, take the same frames of each video and run in turn; stock reads
with torchcodec, its default, or where that cannot be used with its PyAV reader. One crop is what
both do by themselves. Three crops are a setting of our processor; stock has none, so its side
scales, cuts the same three crops and averages by hand.
"""

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from machine import this_machine
from results import keep
from transformers import (
    Pipeline,
    TimesformerForVideoClassification,
    TimesformerVideoProcessor,
    VideoClassificationPipeline,
    pipeline,
)
from transformers.video_utils import VideoMetadata, load_video
from works import Work, build, device

from hf_timesformer import TimeSformerForVideoClassification, TimeSformerVideoProcessor
from hf_timesformer.data.synthetic import MOTIONS, motion_frames
from hf_timesformer.video.encoding import write_video
from hf_timesformer.video.views import uniform_crops


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmarks pipeline`."""
    parser.add_argument(
        "--videos", nargs="+", type=Path, help="video files; default: four clips made on the spot"
    )
    parser.add_argument(
        "--model", type=Path, help="folder of model and processor; default: base, random weights"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed passes over the videos, after one that is not"
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="of torch; torchcodec's FFmpeg takes what it likes"
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--record", action="store_true", help="keep them in results/pipeline.json")


def can_read_with_torchcodec() -> bool:
    """Whether torchcodec is installed and finds an FFmpeg, which not every transformers that we run
    with can tell.
    """
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def run(args: argparse.Namespace) -> None:
    """Print videos per second of both sides, with one crop and with three, then the same as one
    line of JSON.
    """
    torch.set_num_threads(args.threads)
    reader = "torchcodec" if can_read_with_torchcodec() else "pyav"
    if reader != "torchcodec":
        print("torchcodec is not installed or cannot be loaded: stock reads with its PyAV reader")
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or save_random_model(Path(folder, "model"))
        videos = args.videos or make_videos(Path(folder))
        print(
            f"{this_machine()!s}, {args.threads} threads, fp32, median of {args.repeats} passes over {len(videos)} "
            f"videos, stock reads with {reader}",
            flush=True,
        )
        results = []
        for num_crops in (1, 3):
            results.append(compare(model, list(map(str, videos)), num_crops, reader, args.repeats))
            print(as_text(results[-1]), flush=True)
    report = {
        "machine": str(this_machine()),
        "threads": args.threads,
        "repeats": args.repeats,
        "videos": len(videos),
        "stock_reader": reader,
        "results": results,
    }
    print(json.dumps(report))
    if args.record:
        keep("pipeline", this_machine(), report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def save_random_model(folder: Path) -> Path:
    """The base network with weights that leave no layer at zero, and its processor."""
    build(Work("divided_space_time", 8, 224), "ours", layers=12).save_pretrained(folder)
    TimeSformerVideoProcessor().save_pretrained(folder)
    return folder


def make_videos(folder: Path) -> list[Path]:
    """Four H.264 clips of ten seconds, 426x240, as Kinetics has them."""
    rng = np.random.default_rng(0)
    made = []
    for name in list(MOTIONS)[:4]:
        frames = motion_frames(name, rng, num_frames=300, size=426)[:, 93:333]
        made.append(write_video(folder / f"{name}.mp4", frames))
    return made


def compare(model: Path, videos: list[str], num_crops: int, reader: str, repeats: int) -> dict:
    """Videos per second of both sides, and how far their answers are apart."""
    sides = {
        "ours": our_pipeline(model, num_crops),
        "stock": stock_pipeline(model, num_crops, reader),
    }
    # warms up too
    answers = {name: [logits_of(side, video) for video in videos] for name, side in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            begin = time.perf_counter()
            for video in videos:
                side(video)  # its answer is on the CPU: a GPU has finished
            times[name].append(time.perf_counter() - begin)
    rates = {name: len(videos) / statistics.median(values) for name, values in times.items()}
    pairs = list(zip(answers["ours"], answers["stock"]))
    return {
        "num_crops": num_crops,
        "videos_per_second": rates,
        "faster": rates["ours"] / rates["stock"],
        "same_label": sum(
            max(ours, key=ours.get) == max(stock, key=stock.get) for ours, stock in pairs
        ),
        "largest_logit": max(abs(value) for ours, _ in pairs for value in ours.values()),
        "largest_logit_difference": max(
            abs(ours[label] - stock[label]) for ours, stock in pairs for label in ours
        ),
    }


def our_pipeline(folder: Path, num_crops: int) -> Pipeline:
    processor = TimeSformerVideoProcessor.from_pretrained(folder, num_crops=num_crops)
    model = TimeSformerForVideoClassification.from_pretrained(folder)
    return pipeline("video-classification", model=model, video_processor=processor, device=device())


def stock_pipeline(folder: Path, num_crops: int, reader: str) -> Pipeline:
    """Stock's model and processor from the same folder; the processor is told the frame numbers
    that ours takes.
    """
    processor = TimesformerVideoProcessor.from_pretrained(folder)
    processor.sample_frames = frame_chooser(TimeSformerVideoProcessor.from_pretrained(folder))
    if reader != "torchcodec":
        processor.fetch_videos = partial(fetch_with, reader)
    return pipeline(
        "video-classification",
        model=TimesformerForVideoClassification.from_pretrained(folder),
        video_processor=processor,
        device=device(),
        pipeline_class=VideoClassificationPipeline if num_crops == 1 else ThreeCropsByHand,
    )


def frame_chooser(processor: TimeSformerVideoProcessor) -> Callable[..., list[int]]:
    """A `sample_frames` for stock's processor: the frames of the paper's clip instead of some over
    the whole video.
    """

    def sample_frames(
        metadata: VideoMetadata, num_frames: int | None = None, **kwargs
    ) -> list[int]:
        return processor.sample_frames(metadata, num_frames).tolist()

    return sample_frames


def fetch_with(
    reader: str, videos: str | list, sample_indices_fn: Callable | None = None
) -> tuple | list:
    """Stock's `fetch_videos` with another of its readers: frames and metadata of one file, or of a
    list of them.
    """
    if isinstance(videos, list):
        return list(zip(*(fetch_with(reader, video, sample_indices_fn) for video in videos)))
    return load_video(videos, backend=reader, sample_indices_fn=sample_indices_fn)


class ThreeCropsByHand(VideoClassificationPipeline):
    """Three crops with stock's parts: frames scaled but not cut, three crops as a batch, the mean
    of the logits.
    """

    def preprocess(self, video: str, **kwargs) -> dict[str, torch.Tensor]:
        inputs = self.video_processor(
            video,
            num_frames=self.model.config.num_frames,
            do_sample_frames=True,
            do_center_crop=False,
            return_tensors="pt",
        )
        crop = self.video_processor.crop_size
        frames = inputs["pixel_values"][0]  # (t, c, h, w)
        # (3, t, c, h, w)
        return {"pixel_values": uniform_crops(frames, crop["height"], crop["width"])}

    def _forward(self, model_inputs: dict[str, torch.Tensor]):
        outputs = self.model(**model_inputs)
        outputs.logits = outputs.logits.mean(0, keepdim=True)
        return outputs


def logits_of(side: Pipeline, video: str) -> dict[str, float]:
    """The logit of each label."""
    answer = side(video, top_k=side.model.config.num_labels, function_to_apply="none")
    return {entry["label"]: entry["score"] for entry in answer}


def as_text(result: dict) -> str:
    """One line of the table."""
    rates = ", ".join(
        f"{name} {rate:.3f} videos/s" for name, rate in result["videos_per_second"].items()
    )
    crops = {1: "one crop", 3: "three crops"}[result["num_crops"]]
    difference = f"{result['largest_logit_difference']:.2g} of {result['largest_logit']:.2g}"
    return f"{crops:11}  {rates}: {result['faster']:.2f}x; logits differ by {difference} at most"
