#!/usr/bin/env python
"""Write a trained model as ONNX graphs for ONNX Runtime, with its config and its processor's settings.

    pip install "hf-timesformer[onnx]"
    python scripts/export_onnx.py runs/mine runs/mine-onnx --int8
    python scripts/predict.py clip.mp4 --model runs/mine-onnx --onnx

model.onnx is fp32; --int8 adds model_int8.onnx (ONNX Runtime's dynamic quantisation of the linear layers). Both take
any batch of clips of the processor's frames and crop size: other lengths and sizes need a graph of their own.
"""

import argparse
from pathlib import Path

from ..conversion.onnx_export import export_onnx
from ..inference import load_model_and_processor
from .common import user_errors


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a trained model as ONNX graphs.")
    parser.add_argument("model", help="folder or Hub id of the model and its processor")
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--int8", action="store_true", help="also a graph with int8 weights and activations")
    parser.add_argument("--num_frames", type=int, help="clip length (default: the processor's)")
    return parser.parse_args()


def main() -> None:
    """Load, export, say what was written."""
    args = parse_arguments()
    with user_errors():
        if args.folder.resolve() == Path(args.model).resolve():
            raise ValueError(f"{args.folder} holds the model itself: give another folder")
        model, processor = load_model_and_processor(args.model, num_frames=args.num_frames)
        for path in export_onnx(model, processor, args.folder, int8=args.int8):
            print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
