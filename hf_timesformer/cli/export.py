#!/usr/bin/env python
"""Write a trained model as graphs for ONNX Runtime or OpenVINO, with its config and its processor's
settings.

    timesformer export runs/mine runs/mine-onnx --int8
    timesformer export runs/mine runs/mine-openvino --format openvino
    timesformer export runs/mine runs/mine-int8 --format openvino --int8 --calibration_dir clips
    timesformer predict clip.mp4 --export runs/mine-int8

onnx (extra `onnx`): model.onnx is fp32; --int8 adds model_int8.onnx, whose activations are
quantised as they come. openvino (extra `openvino`): one graph, which runs in fp32 or bf16; with
--int8 it is quantised by NNCF, whose ranges come from clips of --calibration_dir. All take any
batch of clips of the processor's frames and crop size: other lengths and sizes need a graph of
their own.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import make_parser, user_errors


if TYPE_CHECKING:
    import torch

    from ..video.video_processing_timesformer import TimeSformerVideoProcessor


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("export", __doc__)
    parser.add_argument("model", help="folder or Hub id of the model and its processor")
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument(
        "--format", default="onnx", choices=["onnx", "openvino"], help="default: onnx"
    )
    parser.add_argument(
        "--int8", action="store_true", help="int8 weights and activations (onnx: beside fp32)"
    )
    parser.add_argument(
        "--calibration_dir",
        type=Path,
        help="folder with clips, at any depth, whose values set the ranges of --format openvino --int8",
    )
    parser.add_argument(
        "--calibration_clips", type=int, default=32, help="how many of them to take (default 32)"
    )
    parser.add_argument("--num_frames", type=int, help="clip length (default: the processor's)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Load, export, say what was written."""
    args = parse_arguments(argv)
    with user_errors():
        from ..conversion.exported_classifier import refuse_own_folder
        from ..inference import load_model_and_processor

        check(args)
        refuse_own_folder(args.model, args.folder)
        model, processor = load_model_and_processor(args.model, num_frames=args.num_frames)
        if args.format == "onnx":
            from ..conversion.onnx_export import export_onnx

            paths = export_onnx(model, processor, args.folder, int8=args.int8)
        else:
            from ..conversion.openvino_export import export_openvino

            clips = (
                read_clips(args.calibration_dir, args.calibration_clips, processor)
                if args.int8
                else None
            )
            graph = export_openvino(model, processor, args.folder, calibration_clips=clips)
            paths = [graph, graph.with_suffix(".bin")]
        for path in paths:
            print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB")


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for arguments that do not go together."""
    calibrates = args.format == "openvino" and args.int8
    if calibrates and args.calibration_dir is None:
        raise ValueError(
            "--format openvino --int8 measures the ranges of activations on real clips: give --calibration_dir"
        )
    if args.calibration_dir is not None and not calibrates:
        raise ValueError(
            "--calibration_dir is for --format openvino --int8; nothing else is calibrated"
        )
    if args.calibration_clips < 1:
        raise ValueError(f"--calibration_clips must be at least 1, got {args.calibration_clips}")


def read_clips(
    folder: Path, count: int, processor: "TimeSformerVideoProcessor"
) -> "list[torch.Tensor]":
    """The middle clip of `count` videos spread evenly over those in `folder`: `(1, t, c, h, w)`
    each.

    Videos that cannot be read are named and left out. Raises ValueError where none can be.
    """
    from ..data.media_files import find_media
    from ..inference import make_views
    from ..video.decoding import VideoDecodeError

    videos = [str(path) for path in find_media(folder).clips]
    if not videos:
        raise ValueError(f"--calibration_dir {folder} holds no video")
    clips = []
    for index in range(min(count, len(videos))):
        video = videos[index * len(videos) // min(count, len(videos))]
        try:
            clips.append(make_views(processor, video, num_clips=1, num_crops=1))
        except VideoDecodeError as error:
            print(f"left out of the calibration: {error}")
    if not clips:
        raise ValueError(f"none of the videos taken from --calibration_dir {folder} can be read")
    return clips


if __name__ == "__main__":
    main()
