"""Does `timesformer label` find where clips of different classes were joined?

Clips of a folder with one folder a class are joined in random order, no two neighbours of one
class, to one film of `--seconds`. It is labelled as the command does it, and every joint is looked
for among the borders of the segments: found where one lies within a stride. For each joint that is
not found the clips beside it tell why:

short    one of them is no longer than a window or two strides: windows hardly show it alone
model    the network, by the windows that lie within the clips, gives both one class, or gives one
         of them another class than its own: nothing made from its scores can tell better
border   it names both rightly: the segments are to blame

Clips that the network has learned from test the segments alone; clips that it has not seen test
the two together.
"""

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from machine import this_machine
from results import keep_rows

from hf_timesformer.data.media_files import find_media
from hf_timesformer.inference import choose_dtype, load_model_and_processor
from hf_timesformer.timeline.film import write_film
from hf_timesformer.timeline.labelling import LabelSettings, label_video
from hf_timesformer.timeline.timeline import Timeline
from hf_timesformer.video.frame_stream import FrameStream


SLACK = 1e-6  # seconds, for rounding


@dataclass
class Piece:
    """One clip of the film, from `start` to `end` in its seconds, and its class."""

    start: float
    end: float
    label: str
    clip: str


@dataclass
class Missed:
    """A joint that is not found: where, why, and the two clips, `label, seconds, taken for`."""

    seconds: float
    reason: str
    before: tuple[str, float, str]
    after: tuple[str, float, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmarks joints`."""
    parser.add_argument("folder", type=Path, help="clips, in one folder a class")
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the film")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the clips")
    parser.add_argument("--window", type=float, default=2.0)
    parser.add_argument("--stride", type=float, default=1.0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--film", type=Path, help="keep the film as this .mp4; taken as it is where it is there"
    )
    parser.add_argument("--journal", type=Path, help="with --film: a killed run goes on there")
    parser.add_argument("--what", help="what this run is, in the row that --record keeps")
    parser.add_argument("--record", action="store_true", help="keep a row in results/joints.json")


def run(args: argparse.Namespace) -> None:
    """Join, label, judge, and print what was found and what was not."""
    model, processor = load_model_and_processor(args.model, num_clips=1, num_crops=1)
    model = model.to(choose_dtype(args.dtype, model.device)).eval()
    settings = LabelSettings(args.window, args.stride)
    with tempfile.TemporaryDirectory() as folder:
        film = args.film or Path(folder, "film.mp4")
        pieces = joined(args, film)
        timeline = label_video(
            film,
            model,
            processor,
            settings,
            journal=args.journal,
            resume=args.journal is not None,
            about={"model": args.model, "dtype": str(model.dtype).removeprefix("torch.")},
        )
    row, missed = judge(timeline, pieces, args.stride)
    print(row)
    for one in missed:
        print(f"missed at {one.seconds:6.1f} s, {one.reason:6}: {one.before} | {one.after}")
    print(json.dumps({"missed": [asdict(one) for one in missed]}))
    if args.record:
        what = {"what": args.what or args.folder.name, "window": args.window, "stride": args.stride}
        keep_rows("joints", this_machine(), [what | row], "python scripts/benchmarks joints")


def joined(args: argparse.Namespace, film: Path) -> list[Piece]:
    """The pieces of the film: of one that is made now, or of one that a run before left."""
    told = film.with_suffix(".pieces.json")
    if film.is_file() and told.is_file():
        return [Piece(**piece) for piece in json.loads(told.read_text(encoding="utf-8"))]
    pieces = join(in_random_order(args.folder, args.seed), args.seconds, film)
    told.write_text(json.dumps([asdict(piece) for piece in pieces]), encoding="utf-8")
    return pieces


def in_random_order(folder: Path, seed: int) -> Iterator[Path]:
    """Clips without end, no two of one class after each other, and each once before any is
    repeated, as far as that goes.
    """
    clips = find_media(folder).clips
    if len({clip.parent.name for clip in clips}) < 2:
        raise SystemExit(f"{folder}: two folders of clips are needed, for two classes")
    chance = random.Random(seed)
    left: list[Path] = []
    latest = ""
    while True:
        if not any(clip.parent.name != latest for clip in left):
            left = chance.sample(clips, len(clips))
        clip = next(clip for clip in left if clip.parent.name != latest)
        left.remove(clip)
        latest = clip.parent.name
        yield clip


def join(clips: Iterator[Path], seconds: float, film: Path) -> list[Piece]:
    """Write the clips one after another as one film, at least `seconds` long; where each lies."""
    pieces: list[Piece] = []

    def frames() -> Iterator[tuple[float, np.ndarray]]:
        at, size = 0.0, None
        while at < seconds:
            clip = next(clips)
            end = at
            for frame in FrameStream(clip, short_side=240):
                pixels = frame.pixels.permute(1, 2, 0).numpy()  # (3, h, w) -> (h, w, 3)
                size = size or pixels.shape
                if pixels.shape != size:
                    raise SystemExit(f"{clip} is {pixels.shape}, the clips before it are {size}")
                yield at + frame.seconds, pixels
                end = at + frame.seconds + frame.duration
            pieces.append(Piece(at, end, clip.parent.name, clip.name))
            at = end

    write_film(film, frames())
    return pieces


def judge(
    timeline: Timeline, pieces: list[Piece], stride: float
) -> tuple[dict[str, float], list[Missed]]:
    """The counts as a row, and the joints that are not found."""
    borders = borders_of(timeline)
    joints = np.array([piece.start for piece in pieces[1:]])
    apart = np.abs(joints[:, None] - borders[None, :])  # (joints, borders)
    is_found = (apart <= stride + SLACK).any(axis=1)
    missed = [
        why_missed(timeline, pieces[number], pieces[number + 1])
        for number in np.flatnonzero(~is_found)
    ]
    reasons = Counter(one.reason for one in missed)
    row = {
        "joints": len(joints),
        "found": int(is_found.sum()),
        **{f"missed, {reason}": reasons[reason] for reason in ("short", "model", "border")},
        "false borders": int((~(apart <= stride + SLACK).any(axis=0)).sum()),
        "clips named rightly, %": round(100 * clips_right(timeline, pieces), 1),
        "seconds named rightly, %": round(100 * seconds_right(timeline, pieces), 1),
    }
    return row, missed


def borders_of(timeline: Timeline) -> np.ndarray:
    """Where segments begin or end, but for the ends of the film: seconds `(borders,)`."""
    ends = {round(second, 6) for one in timeline.segments for second in (one.start, one.end)}
    inside = [second for second in ends if SLACK < second < timeline.seconds - SLACK]
    return np.array(sorted(inside))


def why_missed(timeline: Timeline, before: Piece, after: Piece) -> Missed:
    """Why the joint of two clips is not found."""
    taken = [taken_for(timeline, piece) for piece in (before, after)]
    lengths = [piece.end - piece.start for piece in (before, after)]
    if min(lengths) <= max(timeline.windows.window, 2 * timeline.windows.stride):
        reason = "short"
    elif taken != [before.label, after.label]:
        reason = "model"
    else:
        reason = "border"
    told = [
        (piece.label, round(length, 1), label)
        for piece, length, label in zip((before, after), lengths, taken)
    ]
    return Missed(round(after.start, 1), reason, told[0], told[1])


def taken_for(timeline: Timeline, piece: Piece) -> str:
    """The network's class for a clip: by the mean over the windows within it, or where there is
    none by the window around its middle.
    """
    starts = np.array([start for start, _ in timeline.window_rows()])
    ends = starts + timeline.windows.window
    within = (starts >= piece.start - SLACK) & (ends <= piece.end + SLACK)
    if not within.any():
        middle = (piece.start + piece.end) / 2
        within = np.arange(len(starts)) == np.abs((starts + ends) / 2 - middle).argmin()
    return timeline.labels[int(timeline.scores[within].mean(axis=0).argmax())]


def clips_right(timeline: Timeline, pieces: list[Piece]) -> float:
    """The part of the clips that the network takes for what they are."""
    right = sum(taken_for(timeline, piece) == piece.label for piece in pieces)
    return right / len(pieces)


def seconds_right(timeline: Timeline, pieces: list[Piece]) -> float:
    """The part of the film that lies in a segment of its class."""
    right = sum(
        max(0.0, min(segment.end, piece.end) - max(segment.start, piece.start))
        for piece in pieces
        for segment in timeline.segments
        if segment.label == piece.label
    )
    return right / timeline.seconds
