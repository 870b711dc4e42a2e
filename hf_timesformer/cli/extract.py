#!/usr/bin/env python
"""Features of a whole data set, one vector a video, to Parquet.

    timesformer extract --model runs/mine --data_dir clips --split train --output_dir features/train
    timesformer extract --model runs/mine --data_dir clips --split test --output_dir features/test
    torchrun --nproc_per_node 4 -m hf_timesformer.cli.extract --model runs/mine --data_dir k400 ...

The vector is CLS of the last block, after the final LayerNorm; --layer takes another block's,
--pool patches the mean of the patch tokens. Several processes share the videos, and so do machines
or array tasks with --shard I/N. Each writes parts of its own; a killed run goes on with the same
command, and videos that are there already are passed over.

`hf_timesformer.evaluation.features.read_features` reads a folder back; any Parquet reader does.

Exit code 1 where a video could not be read (the others are still written), 2 for a wrong argument.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.arguments import add_dataset_arguments, dataset_arguments
from .common import (
    add_shard_argument,
    failures_of_all,
    local_device,
    make_parser,
    own_share,
    share_of,
    user_errors,
)


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from ..data.faults import Fault


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("extract", __doc__)
    parser.add_argument(
        "--model", required=True, help="folder or Hub id of the model and its processor"
    )
    add_dataset_arguments(parser)
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="folder for the Parquet parts"
    )
    parser.add_argument("--split", default="train", help="train, validation or test")
    parser.add_argument(
        "--pool", default="cls", choices=("cls", "patches"), help="CLS, or the mean of the patches"
    )
    parser.add_argument(
        "--layer", type=int, help="the output of that block, from 1 (default: the last, normalised)"
    )
    parser.add_argument(
        "--num_crops", type=int, default=1, choices=(1, 3), help="1 (centre) or 3, averaged"
    )
    parser.add_argument("--num_clips", type=int, default=1, help="clips a video, averaged")
    parser.add_argument("--num_frames", type=int, help="frames a clip, if not the checkpoint's")
    add_shard_argument(parser)
    parser.add_argument("--batch_size", type=int, default=8, help="videos that run together")
    parser.add_argument(
        "--num_workers", type=int, default=2, help="processes that decode, for each process"
    )
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="precision",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Extract this process's share; go on after a video that cannot be read."""
    args = parse_arguments(argv)
    import transformers  # after the command line: `--help` answers at once

    from ..run_lock import Work, only_run_in

    transformers.logging.disable_progress_bar()
    with (
        user_errors(),
        only_run_in(args.output_dir, Work("extract", own_share(args.shard))),
    ):
        added, failed = extract_share(args)
    print(f"{added} videos added to {args.output_dir}, {failed} could not be read")
    sys.exit(int(failures_of_all(failed) > 0))


def extract_share(args: argparse.Namespace) -> tuple[int, int]:
    """Write the features of this process's share; returns how many videos were added, and how many
    cannot be read.

    Raises ValueError for arguments that make no sense, and for a folder of other features.
    """
    from ..data.dataset_factory import find_videos
    from ..evaluation.features import FeatureFolder, FeatureSettings, extract
    from ..inference import choose_device, choose_dtype, load_model_and_processor

    device = choose_device(args.device or local_device())
    dtype = choose_dtype(args.dtype, device)
    data = dataset_arguments(args)
    overrides = {name: getattr(args, name) for name in ("num_crops", "num_clips", "num_frames")}
    model, processor = load_model_and_processor(args.model, **overrides | data.reading)
    settings = FeatureSettings(args.pool, args.layer)
    settings.check(model)
    options = data.reader_options
    videos = find_videos(args.dataset, args.data_dir, args.split, **options).videos
    names = ("model", "dataset", "data_dir", "split", "pool", "layer", "num_crops", "num_clips")
    about = {name: getattr(args, name) for name in names}
    about |= options | {
        "frame_rate": args.frame_rate,
        "num_frames": processor.num_frames,
        "dtype": str(dtype).removeprefix("torch."),
    }
    folder = FeatureFolder(args.output_dir, about, writer=writer_name(args.shard))
    before = len(folder.done)
    if before:
        print(f"{args.output_dir} has {before} videos already")
    work = extract(
        model.to(device, dtype).eval(),
        processor,
        videos,
        folder,
        settings,
        share=share_of_videos(videos, args.shard),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
    )
    failed = follow(work)
    return len(folder.done) - before, failed


def follow(work: "Iterator[int | Fault]") -> int:
    """Show how the work goes on, and what fails; returns how many videos have failed."""
    from tqdm.auto import tqdm

    from ..data.faults import Fault

    failed = 0
    with tqdm(desc="extract", unit="video", disable=not sys.stderr.isatty()) as progress:
        for step in work:
            if isinstance(step, Fault):
                failed += 1
                print(f"failed: {step.line}", file=sys.stderr)
            else:
                progress.update(step)
    return failed


def share_of_videos(videos: "Dataset | IterableDataset", shard: tuple[int, int]) -> list[int]:
    """This process's rows of a map-style data set; of a stream, which of how many shares of its
    shards is its own.
    """
    return share_of(len(videos), shard) if hasattr(videos, "__len__") else [*own_share(shard)]


def writer_name(shard: tuple[int, int]) -> str:
    """A name that no other process of this work has, for its parts."""
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return f"{shard[0]}of{shard[1]}-{rank}of{world}"


if __name__ == "__main__":
    main()
