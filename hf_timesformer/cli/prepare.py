#!/usr/bin/env python
"""Scan a video data set, write a manifest of what is readable, and pack it into tar shards for
streaming.

    timesformer prepare --dataset kinetics --data_dir k400 --output_dir k400-shards \\
        --num_workers 16 --pack --short_side 256

Writes manifest.parquet (every listed video, with every fault) and, with --pack,
<split>-<number>.tar, labels.json and shards.json: a folder for `--dataset webdataset`. Run it again
after an interruption: it goes on where it stopped. Exit code 2 for a wrong argument or a full disk.
"""

import argparse
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.arguments import DATASETS, add_dataset_arguments, dataset_arguments
from .common import add_shard_argument, make_parser, own_share, user_errors


if TYPE_CHECKING:
    from ..data.preparation.pack import PackSettings
    from ..data.preparation.parts import Part

# whose clips are not in shards yet
SOURCES = tuple(name for name in DATASETS if name not in ("webdataset", "hub"))
CHECKS = ("header", "frames", "full")  # as in `data.preparation.scan`
KEY_FRAME_EVERY = 32  # as in `data.preparation.pack`
CHECK_HELP = "decode nothing, the first, middle and last frame, or all"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("prepare", __doc__)
    add_dataset_arguments(parser, SOURCES)
    parser.add_argument(
        "--output_dir", required=True, help="folder for the manifest and the shards"
    )
    parser.add_argument(
        "--splits", nargs="+", default=[], help="splits to prepare; without it all there are"
    )
    parser.add_argument("--check", default="frames", choices=CHECKS, help=CHECK_HELP)
    parser.add_argument(
        "--num_workers", type=int, default=2, help="processes that read videos; 0: this one"
    )
    parser.add_argument(
        "--pack", action="store_true", help="write tar shards of the readable videos"
    )
    parser.add_argument(
        "--videos_per_shard", type=int, default=256, help="videos in each shard but the last"
    )
    parser.add_argument("--short_side", type=int, help="re-encode larger videos to this, e.g. 256")
    parser.add_argument(
        "--key_frame_every",
        type=int,
        default=KEY_FRAME_EVERY,
        help="frames between key frames of re-encoded videos: fewer make files that are larger, and cheaper to enter",
    )
    parser.add_argument(
        "--fast_decode",
        nargs="?",
        choices=("true", "false"),
        const="true",
        default="true",
        help="re-encode without what makes decoding dear, for files that are a little larger",
    )
    add_shard_argument(parser)
    parser.add_argument("--seed", type=int, default=0, help="order of the videos in the shards")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Scan, write the manifest, pack, and write the manifest again with the places in the shards."""
    args = parse_arguments(argv)
    from ..data.preparation.parts import Part
    from ..run_lock import Work, only_run_in

    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    output_dir = Path(args.output_dir)
    try:
        with user_errors():
            share = own_share(args.shard)
            with only_run_in(output_dir, Work("prepare", share)):
                prepare(args, output_dir, Part(*share))
    except KeyboardInterrupt:
        sys.exit("interrupted: run the same command again, it goes on here")


def prepare(args: argparse.Namespace, output_dir: Path, part: "Part") -> None:
    """The flow, for one part of the videos; every step takes up what an earlier run has left."""
    from ..data.dataset_factory import available_splits, read_records
    from ..data.preparation.pack import pack
    from ..data.preparation.parts import join_parts, refuse_other_division
    from ..data.preparation.scan import MANIFEST, SCAN_LOG, list_records, scan, write_manifest
    from ..data.record_video import ReadSettings

    data_dir = Path(args.data_dir).expanduser()
    names = args.splits or available_splits(args.dataset, data_dir)
    data = dataset_arguments(args)
    options, reading = data.reader_options, ReadSettings.given(**data.reading)
    refuse_other_division(output_dir, part)
    splits = {
        split: part.take(read_records(args.dataset, data_dir, split, **options)) for split in names
    }
    settings = pack_settings(args)
    videos = list_records(splits, data_dir)
    rows = scan(
        videos,
        output_dir,
        check=args.check,
        num_workers=args.num_workers,
        log=part.name(SCAN_LOG),
        reading=reading,
    )
    if args.pack:
        readable = [
            video for video in videos if rows[video.identity]["status"] in ("ok", "partial")
        ]
        places = pack(
            readable,
            next(iter(splits.values())).class_names,
            output_dir,
            settings,
            expected={split: records.num_expected for split, records in splits.items()},
            num_workers=args.num_workers,
            part=part,
            reading=reading,
        )
        rows = {identity: row | places.get(identity, {}) for identity, row in rows.items()}
    path, table = write_manifest(output_dir, splits, rows.values(), part.name(MANIFEST))
    print_summary(table.to_pylist(), packed=args.pack)
    waiting = join_parts(output_dir, part) if part.of > 1 else []
    if waiting:
        print_part(path, part, waiting)
        return
    shards = f" and shards for --dataset webdataset --data_dir {output_dir}" if args.pack else ""
    print(f"wrote {output_dir / MANIFEST}{shards}")


def pack_settings(args: argparse.Namespace) -> "PackSettings":
    """How the command line wants the shards. Raises ValueError for settings that make no sense."""
    from ..data.preparation.pack import PackSettings

    return PackSettings(
        args.videos_per_shard,
        args.short_side,
        args.seed,
        args.key_frame_every,
        args.fast_decode == "true",
    )


def print_part(path: Path, part: "Part", waiting: list[int]) -> None:
    """Which part is done, and which are still to come."""
    others = ", ".join(f"{number}/{part.of}" for number in waiting)
    print(
        f"wrote {path}, part {part.number}/{part.of}; still to come before all is joined: {others}"
    )


def print_summary(rows: list[dict], *, packed: bool) -> None:
    """Counts of every split, hours, and the faults by reason with one example each."""
    for split in dict.fromkeys(row["split"] for row in rows):
        chosen = [row for row in rows if row["split"] == split]
        status = Counter(row["status"] for row in chosen)
        hours = (
            sum(row["seconds"] or 0 for row in chosen if row["status"] in ("ok", "partial")) / 3600
        )
        shards = f", {len({row['shard'] for row in chosen} - {None})} shards" if packed else ""
        print(
            f"{split}: {len(chosen)} listed, {status['ok']} readable, {status['partial']} in part, "
            f"{status['fault']} faulty, {status['missing']} missing; {hours:.2f} hours{shards}"
        )
    faults = [row for row in rows if row["status"] in ("partial", "fault")]
    for kind, count in Counter((row["status"], row["reason"]) for row in faults).most_common():
        example = next(row for row in faults if (row["status"], row["reason"]) == kind)
        print(f"  {count} x {' '.join(kind)}: {example['video_id']}: {example['message'][:200]}")


if __name__ == "__main__":
    main()
