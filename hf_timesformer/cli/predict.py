#!/usr/bin/env python
"""Classify videos with a TimeSformer and print the most likely classes of each.

    python scripts/predict.py clip.mp4 other.webm --model runs/mine --top_k 3
    python scripts/predict.py https://example.com/clip.mp4 --allow_urls --model ... --json
    python scripts/predict.py clip.mp4 --model runs/mine-onnx --onnx int8

Exit code 1 where a video could not be read (the others are still classified), 2 for a wrong argument.
"""

import argparse
import json
import sys

import torch
import transformers

from ..conversion.onnx_export import load_graph_and_processor
from ..inference import load_model_and_processor, make_views
from ..video.decoding import VideoDecodeError
from .common import user_errors


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Classify videos with a TimeSformer.")
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files, or URLs with --allow_urls")
    parser.add_argument("--model", required=True, help="folder or Hub id of the model and its processor")
    parser.add_argument("--top_k", type=int, default=5, help="classes to print for each video (default 5)")
    parser.add_argument("--num_crops", type=int, choices=[1, 3], default=3, help="1 (centre) or 3 (default)")
    parser.add_argument("--num_clips", type=int, default=1, help="clips a video, spread evenly (default 1)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    parser.add_argument(
        "--onnx",
        nargs="?",
        const="fp32",
        choices=["fp32", "int8"],
        help="--model is a folder that export_onnx.py wrote: run its graph on the CPU (default fp32)",
    )
    parser.add_argument("--allow_urls", action="store_true", help="fetch http(s) URLs")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of tables")
    return parser.parse_args()


def main() -> None:
    """Classify every video; go on after one that cannot be read."""
    args = parse_arguments()
    transformers.logging.disable_progress_bar()
    with user_errors():
        if args.top_k < 1:
            raise ValueError(f"--top_k must be at least 1, got {args.top_k}")
        device = choose_device("cpu" if args.onnx else args.device)
        views = {"num_crops": args.num_crops, "num_clips": args.num_clips}
        if args.onnx:
            model, processor = load_graph_and_processor(args.model, args.onnx, **views)
        else:
            model, processor = load_model_and_processor(args.model, **views)
        model = model.to(device).eval()
    answers = []
    for video in args.videos:
        answer = {"video": video}
        try:
            pixel_values = make_views(processor, video, allow_urls=args.allow_urls)[None].to(device)
        except VideoDecodeError as error:
            answer["error"] = str(error)
            print(f"error: {error}", file=sys.stderr)
        else:
            answer["predictions"] = classify(model, pixel_values, args.top_k)
        answers.append(answer)
        if not args.json and "predictions" in answer:
            print_table(answer)
    if args.json:
        print(json.dumps(answers, indent=2, ensure_ascii=False))
    sys.exit(int(any("error" in answer for answer in answers)))


def choose_device(name: str | None) -> torch.device:
    """The device of that name; without one the GPU if there is one. ValueError for a name that torch does not know."""
    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"--device {name}: {error}") from error


@torch.inference_mode()
def classify(model: torch.nn.Module, pixel_values: torch.Tensor, top_k: int) -> list[dict]:
    """The `top_k` classes of one video's views `(1, views, frames, channels, height, width)`, most likely first."""
    probabilities = model(pixel_values=pixel_values).logits[0].float().softmax(-1)
    scores, classes = probabilities.topk(min(top_k, len(probabilities)))
    return [
        {"label": model.config.id2label[index], "score": round(score, 6)}
        for score, index in zip(scores.tolist(), classes.tolist())
    ]


def print_table(answer: dict) -> None:
    """One video's classes as a table."""
    print(answer["video"])
    for row in answer["predictions"]:
        print(f"  {100 * row['score']:6.2f} %  {row['label']}")


if __name__ == "__main__":
    main()
