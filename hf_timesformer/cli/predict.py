#!/usr/bin/env python
"""Classify videos with a TimeSformer and print the most likely classes of each.

    timesformer predict clip.mp4 other.webm --model runs/mine --top_k 3
    timesformer predict https://example.com/clip.mp4 --allow_urls --model ... --json
    timesformer predict clip.mp4 --export runs/mine-openvino

A model of several classes at a time gives each its own probability, and a regression gives its
number. Beside each video stands how much of it was looked at; `timesformer label` looks at all of a
long one.

Exit code 1 where a video could not be read (the others are still classified), 2 for a wrong
argument.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .common import (
    add_model_arguments,
    add_reading_arguments,
    clips_of,
    graph_of,
    make_parser,
    reading_settings,
    user_errors,
)


if TYPE_CHECKING:
    import torch

    from ..video.video_processing_timesformer import TimeSformerVideoProcessor


# Below this share of a video that was looked at, the answer says how to look at more.
ENOUGH = 0.5


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("predict", __doc__)
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="VIDEO",
        help="video files, folders of numbered pictures, or URLs",
    )
    add_model_arguments(parser)
    add_reading_arguments(parser)
    parser.add_argument("--top_k", type=int, default=5, help="classes to print for each video")
    parser.add_argument("--num_crops", type=int, choices=[1, 3], default=3, help="1 (centre) or 3")
    parser.add_argument(
        "--num_clips",
        type=clips_of,
        default=1,
        help="clips a video, spread evenly; auto: as many as cover it",
    )
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="default auto: bfloat16 where the processor or GPU computes in it, else float32",
    )
    parser.add_argument("--allow_urls", action="store_true", help="fetch http(s) URLs")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of tables")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Classify every video; go on after one that cannot be read."""
    args = parse_arguments(argv)
    import transformers  # after the command line: `--help` answers at once

    from ..video.decoding import VideoDecodeError

    transformers.logging.disable_progress_bar()
    with user_errors():
        if args.top_k < 1:
            raise ValueError(f"--top_k must be at least 1, got {args.top_k}")
        model, processor, dtype = load(args)
    answers = []
    for video in args.videos:
        answer = {"video": video}
        try:
            answer |= answer_for(video, model, processor, args)
        except VideoDecodeError as error:
            answer["error"] = str(error)
            print(f"error: {error}", file=sys.stderr)
        else:
            answer["dtype"] = dtype
        answers.append(answer)
        if not args.json and "predictions" in answer:
            print_table(answer)
    if args.json:
        print(json.dumps(answers, indent=2, ensure_ascii=False))
    sys.exit(int(any("error" in answer for answer in answers)))


def load(args: argparse.Namespace) -> "tuple[torch.nn.Module, TimeSformerVideoProcessor, str]":
    """The model on its device, its processor, and the name of the dtype that it computes in."""
    from ..inference import choose_device, choose_dtype, load_model_and_processor

    views = {
        "num_crops": args.num_crops,
        "num_clips": 1 if args.num_clips == "auto" else args.num_clips,
    }
    views |= reading_settings(args)
    graph = graph_of(args)
    if graph is not None:
        from ..conversion.load_exported import load_exported

        if args.dtype != "auto":
            raise ValueError(
                f"--dtype {args.dtype} does not go with a graph, which computes in what it was made for"
            )
        model, processor = load_exported(*graph, **views)
        return (
            model.eval(),
            processor,
            {"fp32": "float32", "bf16": "bfloat16"}.get(model.precision, model.precision),
        )
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    model, processor = load_model_and_processor(args.model, **views)
    return model.to(device, dtype).eval(), processor, str(dtype).removeprefix("torch.")


def answer_for(
    video: str,
    model: "torch.nn.Module",
    processor: "TimeSformerVideoProcessor",
    args: argparse.Namespace,
) -> dict[str, Any]:
    """What the model says of one video, and how much of it was looked at. Raises VideoDecodeError."""
    from ..inference import classify, look_at, seconds_looked_at

    if args.num_clips == "auto":
        return answer_for_all_of(video, model, processor, args)
    views, metadata = look_at(processor, video, allow_urls=args.allow_urls)
    answer: dict[str, Any] = {"predictions": classify(model, views, top_k=args.top_k)}
    seconds = seconds_looked_at(metadata, args.num_clips)
    if seconds is not None:
        answer["seconds_looked_at"], answer["seconds"] = (round(value, 3) for value in seconds)
    return answer


def answer_for_all_of(
    video: str,
    model: "torch.nn.Module",
    processor: "TimeSformerVideoProcessor",
    args: argparse.Namespace,
) -> dict[str, Any]:
    """As `answer_for`, from as many clips as cover the video, a few at a time. Raises
    VideoDecodeError.
    """
    from ..evaluation.whole_video import views_of_whole_video
    from ..inference import answer_from, mean_logits

    seconds: list[float] = []

    def pieces() -> "Iterator[torch.Tensor]":
        """The views of some clips after the others, `(views, t, c, h, w)` each."""
        for views, metadata in views_of_whole_video(processor, video, allow_urls=args.allow_urls):
            seconds.append(metadata.duration or 0.0)
            yield views

    logits = mean_logits(model, pieces())
    answer: dict[str, Any] = {"predictions": answer_from(logits, model.config, args.top_k)}
    if seconds[0]:
        answer["seconds_looked_at"] = answer["seconds"] = round(seconds[0], 3)
    return answer


def print_table(answer: dict[str, Any]) -> None:
    """One video's classes, or numbers, as a table."""
    print(f"{answer['video']}  ({looked_at(answer)}{answer['dtype']})")
    for row in answer["predictions"]:
        figure = f"{row['value']:12.6g}" if "value" in row else f"{100 * row['score']:6.2f} %"
        print(f"  {figure}  {row['label']}")


def looked_at(answer: dict[str, Any]) -> str:
    """How much of the video the answer rests on, with the cure where that is little."""
    if "seconds" not in answer:
        return ""
    looked, lasts = answer["seconds_looked_at"], answer["seconds"]
    text = f"looked at {looked:.1f} s of {lasts:.1f} s; "
    if looked < ENOUGH * lasts:
        text += "--num_clips auto or `timesformer label` look at more; "
    return text


if __name__ == "__main__":
    main()
