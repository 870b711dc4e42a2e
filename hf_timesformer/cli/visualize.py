#!/usr/bin/env python
"""Make attention visible.

    timesformer visualize patterns --output patterns.png
    timesformer visualize learned clip.mp4 --model runs/mine --output_dir pictures

`patterns` draws which patches each step of the five schemes lets a patch see (no weights needed).
`learned` writes, for each video, a contact sheet (.png) and a video (.mp4) of what the network
looked at: attention rollout from CLS over all blocks, or from one patch (--query), over some blocks
(--layers), of one head (--head).
"""

import argparse
import sys
from pathlib import Path

from .common import make_parser, user_errors


# of model.schemes
SCHEMES = ("space_only", "joint_space_time", "divided_space_time", "sparse_local_global", "axial")
PLACE = ("ROW", "COLUMN", "FRAME")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("visualize", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    patterns = commands.add_parser("patterns", help="what each scheme lets a patch see")
    patterns.add_argument(
        "--output", type=Path, default=Path("attention_patterns.png"), help="the picture to write"
    )
    patterns.add_argument("--schemes", nargs="+", choices=SCHEMES, default=SCHEMES)
    patterns.add_argument(
        "--grid", type=int, nargs=2, default=(14, 14), metavar=("ROWS", "COLUMNS")
    )
    patterns.add_argument("--frames", type=int, default=5, help="frames in the clip")
    patterns.add_argument(
        "--query", type=int, nargs=3, metavar=PLACE, help="the query patch (default: in the middle)"
    )
    patterns.add_argument("--video", help="draw over the frames of this video")

    learned = commands.add_parser("learned", help="what a trained network looked at")
    learned.add_argument("videos", nargs="+", metavar="VIDEO", help="video files")
    learned.add_argument(
        "--model", required=True, help="folder or Hub id of the model and its processor"
    )
    learned.add_argument(
        "--output_dir", type=Path, default=Path("attention"), help="where the pictures go"
    )
    learned.add_argument(
        "--layers", type=int, nargs="+", help="only these blocks, from 0 (default: all)"
    )
    learned.add_argument(
        "--head", type=int, help="only this head, from 0 (default: the mean of all)"
    )
    learned.add_argument(
        "--query", type=int, nargs=3, metavar=PLACE, help="roll out from this patch (default: CLS)"
    )
    learned.add_argument(
        "--fps", type=float, help="frames a second of the .mp4 (default: as fast as the clip)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command that was asked for."""
    args = parse_arguments(argv)
    import transformers

    transformers.logging.disable_progress_bar()
    with user_errors():
        draw_patterns(args) if args.command == "patterns" else draw_learned(args)


def draw_patterns(args: argparse.Namespace) -> None:
    """One picture of all schemes."""
    from ..video.video_processing_timesformer import TimeSformerVideoProcessor
    from ..visualization.pictures import pattern_figure, restore_frames

    if min(*args.grid, args.frames) < 1:
        raise ValueError(f"--grid {args.grid} and --frames {args.frames} must be at least 1")
    patch, frames = 12, None
    if args.video:
        height, width = (side * patch for side in args.grid)
        size, crop = {"shortest_edge": max(height, width)}, {"height": height, "width": width}
        processor = TimeSformerVideoProcessor(num_frames=args.frames, size=size, crop_size=crop)
        frames = restore_frames(
            processor(videos=[args.video], return_tensors="pt")["pixel_values"][0], processor
        )
    grid = (*args.grid, args.frames)
    pattern_figure(grid, args.query, schemes=args.schemes, patch=patch, frames=frames).save(
        args.output
    )
    print(f"wrote {args.output}")


def draw_learned(args: argparse.Namespace) -> None:
    """A contact sheet and a video for each video; go on after one that cannot be read."""
    from ..inference import load_model_and_processor
    from ..video.decoding import VideoDecodeError
    from ..visualization.pictures import contact_sheet, explain, write_attention_video

    if args.fps is not None and args.fps <= 0:
        raise ValueError(f"--fps must be positive, got {args.fps}")
    model, processor = load_model_and_processor(args.model, num_clips=1, num_crops=1)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    failed = 0
    for video in args.videos:
        try:
            explanation = explain(
                model, processor, video, layers=args.layers, head=args.head, query=args.query
            )
        except VideoDecodeError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        sheet = args.output_dir / f"{Path(video).stem}.png"
        contact_sheet(explanation).save(sheet)
        film = write_attention_video(sheet.with_suffix(".mp4"), explanation, fps=args.fps)
        print(
            f"{video}: {explanation.title}, {explanation.cls_share:.0%} of the rollout stays with CLS"
        )
        print(f"wrote {sheet} and {film}")
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    main()
