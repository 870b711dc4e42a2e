#!/usr/bin/env python
"""Write a trained model as ONNX graphs for ONNX Runtime, with its config and its processor's settings.

    pip install "hf-timesformer[onnx]"
    timesformer export runs/mine runs/mine-onnx --int8
    timesformer predict clip.mp4 --model runs/mine-onnx --onnx

model.onnx is fp32; --int8 adds model_int8.onnx (ONNX Runtime's dynamic quantisation of the linear layers). Both take
any batch of clips of the processor's frames and crop size: other lengths and sizes need a graph of their own.
"""

import argparse
from pathlib import Path

from .common import make_parser, user_errors


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("export", __doc__)
    parser.add_argument("model", help="folder or Hub id of the model and its processor")
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--int8", action="store_true", help="also a graph with int8 weights and activations")
    parser.add_argument("--num_frames", type=int, help="clip length (default: the processor's)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Load, export, say what was written."""
    args = parse_arguments(argv)
    with user_errors():
        from ..conversion.onnx_export import export_onnx
        from ..inference import load_model_and_processor

        if args.folder.resolve() == Path(args.model).resolve():
            raise ValueError(f"{args.folder} holds the model itself: give another folder")
        model, processor = load_model_and_processor(args.model, num_frames=args.num_frames)
        for path in export_onnx(model, processor, args.folder, int8=args.int8):
            print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
