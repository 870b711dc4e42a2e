#!/usr/bin/env python
"""What happens when in long videos: classes over time, as segments, tables, subtitles and a
picture.

    timesformer label match.mp4 --model runs/mine
    timesformer label recordings/ --model runs/mine --window 4 --stride 2 --overlay --output_dir timelines
    timesformer label pictures/ --frame_rate 25 --model runs/mine       # a folder of numbered pictures
    timesformer label recordings/ --model runs/mine --shard 3/16        # one of 16 machines or SLURM array tasks
    torchrun --nproc_per_node 4 -m hf_timesformer.cli.label recordings/ --model runs/mine

Each video is decoded once, forward, in windows of --window seconds every --stride seconds that
share their frames; memory does not grow with its length. The time is cut where the scores change
enough to be worth the price of a cut (--change_cost). What lies between cuts is a segment of its best
class where the mean score is at least --low_threshold and reaches --threshold somewhere. A network
of several labels at a time has segments of each label by itself, from --threshold to
--low_threshold.

Writes for each video NAME.json (everything), NAME.csv (segments), NAME.scores.csv (every class of
every window), NAME.vtt (subtitles), NAME.label_studio.json (pre-annotations for Label Studio's
timeline), NAME.png (a picture; extra `viz`), and, where asked for, NAME.overlay.mp4. While a video
is worked on, NAME.windows.jsonl keeps what is done: after a kill the same command with --resume
goes on there, and passes over videos that are finished.

Exit code 1 where a video could not be read (the others are still labelled, also those of the other
processes), 2 for a wrong argument.
"""

import argparse
import dataclasses
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .common import (
    failures_of_all,
    local_device,
    share_of,
    user_errors,
)
from .label_arguments import label_settings, limits_of, make_label_parser
from .label_videos import (
    features_file,
    find_videos,
    further_files,
    is_finished,
    output_names,
)


if TYPE_CHECKING:
    from ..model.modeling_timesformer import TimeSformerForVideoClassification
    from ..timeline.labelling import LabelSettings
    from ..timeline.timeline import Timeline
    from ..video.video_processing_timesformer import TimeSformerVideoProcessor


USUAL_RATE = 30.0  # frames a second, where a checkpoint does not say at which it was trained


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    return make_label_parser(__doc__).parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Label every video of this process's share; go on after one that cannot be read."""
    args = parse_arguments(argv)
    import transformers  # after the command line: `--help` answers at once

    from ..run_lock import Work, only_run_in

    transformers.logging.disable_progress_bar()
    with user_errors():
        videos = find_videos(args.videos)
        names = output_names(videos)
        share = share_of(len(videos), args.shard)
        check_outputs(args, several=len(videos) > 1)
        if len(share) < len(videos):
            print(f"{len(share)} of {len(videos)} videos are this process's share")
        own = {names[number]: videos[number] for number in share}
        with only_run_in(args.output_dir, Work("label", names=frozenset(own))):
            failed = label_videos(own, args)
    sys.exit(int(failures_of_all(failed) > 0))


def label_videos(videos: dict[str, Path], args: argparse.Namespace) -> int:
    """Label the videos, each under its name in the output folder. Returns how many cannot be read.

    Raises ValueError for settings that make no sense.
    """
    from ..timeline.windows import Windows
    from ..video.decoding import VideoDecodeError

    model, processor = load(args)
    settings = label_settings(args, model)
    limits_of(args)  # refuses unknown ones before any work
    # refuses what makes no windows, before any work
    Windows(args.window, args.stride, processor.num_frames)
    warn_of_speed(args, processor)
    failed = 0
    for name, video in videos.items():
        base = args.output_dir / name
        looked = looked_at(video, model, processor, settings, args)
        further = further_files(base, args.overlay, args.features)
        if args.resume and is_finished(base, further, looked):
            print(f"{video}: finished before ({base.name}.json)")
            continue
        try:
            label_one(video, base, model, processor, settings, args)
        except VideoDecodeError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
    return failed


def check_outputs(args: argparse.Namespace, *, several: bool) -> None:
    """Raise ValueError for outputs that cannot be written so; say which picture will be missing."""
    if args.features is not None and several == (args.features.suffix == ".parquet"):
        wanted = "a folder, for one file a video" if several else "a file that ends in .parquet"
        raise ValueError(f"--features {args.features}: give {wanted}")
    if importlib.util.find_spec("matplotlib") is None:
        print(
            'no pictures: matplotlib is not installed (pip install "hf-timesformer[viz]")',
            file=sys.stderr,
        )


def load(
    args: argparse.Namespace,
) -> "tuple[TimeSformerForVideoClassification, TimeSformerVideoProcessor]":
    """The model on its device, in its dtype, and its processor."""
    from ..inference import choose_device, choose_dtype, load_model_and_processor

    device = choose_device(args.device or local_device())
    settings = {"num_clips": 1, "num_crops": args.num_crops, "num_frames": args.num_frames}
    model, processor = load_model_and_processor(args.model, **settings)
    return model.to(device, choose_dtype(args.dtype, device)).eval(), processor


def warn_of_speed(args: argparse.Namespace, processor: "TimeSformerVideoProcessor") -> None:
    """Say it where windows show the model much slower or faster motion than the clips that it was
    trained on.
    """
    if processor.sampling != "clip":
        return
    trained = processor.num_frames * processor.sampling_rate / (processor.target_fps or USUAL_RATE)
    if not trained / 2 <= args.window <= trained * 2:
        print(
            f"the checkpoint's clips last about {trained:.1f} s, windows {args.window:g} s: motion looks "
            f"{max(trained / args.window, args.window / trained):.1f} times as "
            f"{'slow' if args.window < trained else 'fast'}; --window {trained:.1f} shows it as in training",
            file=sys.stderr,
        )


def about_model(model: "TimeSformerForVideoClassification", args: argparse.Namespace) -> dict:
    """What of the model decides the scores."""
    return {"model": args.model, "dtype": str(model.dtype).removeprefix("torch.")}


def looked_at(
    video: Path,
    model: "TimeSformerForVideoClassification",
    processor: "TimeSformerVideoProcessor",
    settings: "LabelSettings",
    args: argparse.Namespace,
) -> dict:
    """All settings of one video's timeline, as its JSON holds them; whether features are written is
    none: they leave the scores as they are.
    """
    from ..timeline.labelling import describe_windows

    looked = describe_windows(settings, processor, about_model(model, args))
    del looked["with_features"]
    if video.is_dir():
        looked["frame_rate"] = args.frame_rate
    return looked | dataclasses.asdict(settings.rules)


def label_one(
    video: Path,
    base: Path,
    model: "TimeSformerForVideoClassification",
    processor: "TimeSformerVideoProcessor",
    settings: "LabelSettings",
    args: argparse.Namespace,
) -> None:
    """Label one video and write its files, `base` with a suffix each. Raises VideoDecodeError."""
    from ..timeline.labelling import label_video
    from ..timeline.outputs import write_film_of, write_outputs

    about = about_model(model, args)
    journal = base.with_name(f"{base.name}.windows.jsonl")
    begin = time.perf_counter()
    with progress_bar(video.name) as progress:
        timeline = label_video(
            video,
            model,
            processor,
            settings,
            journal=journal,
            resume=args.resume,
            about=about,
            progress=progress,
            frame_rate=args.frame_rate if video.is_dir() else None,
            limits=limits_of(args),
        )
    seconds = time.perf_counter() - begin
    print_timeline(timeline, seconds, str(about["dtype"]))
    if args.overlay:
        with progress_bar(f"{video.name}: film") as progress:
            print(f"wrote {write_film_of(base, timeline, args.overlay_short_side, progress)}")
    features = None if args.features is None else features_file(base, args.features)
    # the JSON last: with it the video counts as finished
    for path in write_outputs(base, timeline, features):
        print(f"wrote {path}")
    journal.unlink()


@contextmanager
def progress_bar(name: str) -> "Iterator[Callable[[float, float | None], None]]":
    """A bar in seconds of video, and the function that moves it: seconds that are done, length of
    the video.
    """
    from tqdm.auto import tqdm

    bar_format = "{l_bar}{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}{postfix}]"
    with tqdm(
        desc=name, total=0, unit="s", bar_format=bar_format, disable=not sys.stderr.isatty()
    ) as bar:

        def move(seconds: float, length: float | None) -> None:
            bar.total = max(length or 0.0, seconds)
            bar.n = seconds
            bar.refresh()

        yield move


def print_timeline(timeline: "Timeline", seconds: float, dtype: str) -> None:
    """The segments as a table, and what could not be decoded."""
    print(
        f"{timeline.video}: {timeline.seconds:.1f} s in {len(timeline.scores)} windows, {len(timeline.segments)} "
        f"segments; {seconds:.1f} s of work, {timeline.seconds / max(seconds, 1e-9):.1f} times real time, {dtype}"
    )
    for segment in timeline.segments:
        print(
            f"  {segment.start:9.2f} {segment.end:9.2f}  {100 * segment.score:6.2f} %  {segment.label}"
        )
    if timeline.is_regression:
        print(
            "  a regression has no segments: the numbers over time are in the CSV, the subtitles and the picture"
        )
    for begin, end in timeline.gaps:
        until = "its end" if end is None else f"{end:.2f} s"
        print(
            f"  damaged from {begin:.2f} s to {until}: the last frame before stands for what is missing"
        )


if __name__ == "__main__":
    main()
