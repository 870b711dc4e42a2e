"""The whole way in minutes, offline: make clips, train, evaluate, classify, and see what the model
sees.

    timesformer demo
    timesformer demo --output_dir my_demo

The clips show a shape that moves left, right, up or down, grows or shrinks: only motion tells them
apart. A small network learns them from scratch. Each step is one of the other commands, whose words
go to a log beside the results.

Exit code 1 where the model answers worse than it should.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from .common import make_parser, user_errors


if TYPE_CHECKING:
    from PIL import Image


SPLITS = {"train": 64, "validation": 8, "test": 16}  # clips of each class
CLIP = {"num_frames": 24, "size": 48}
FRAMES_PER_SECOND = 30
NETWORK = {
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 8,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "initializer_range": 0.1,  # the usual 0.02 suits a width of 768
}
TRAINING = ("--recipe", "demo")
ENOUGH = 0.95  # share of the test clips that must be right
JOINED = 3  # clips of each motion, one after another, in the longer video
OVERVIEW_WIDTH = 1000  # pixels
MARK = "demo.json"  # a folder with this file was made here and may be made anew
BAR = re.compile(r"^(evaluate: )?\s*(?P<percent>\d+)%\|.* \d+/(?P<total>\d+) ")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("demo", __doc__)
    parser.add_argument(
        "--output_dir", type=Path, default=Path("demo_output"), help="made anew if a demo made it"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Go through all steps and say what lies where."""
    args = parse_arguments(argv)
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    started = time.perf_counter()
    with user_errors():
        folder = new_folder(args.output_dir)
        tell("1/5", "Making clips: a shape that moves left, right, up or down, grows or shrinks.")
        classes = make_clips(folder)
        tell(
            "2/5",
            "Training a small TimeSformer (divided space-time attention, 8 frames) from scratch.",
        )
        make_start(folder / "start", classes)
        train = (
            "train",
            "--data_dir",
            "clips",
            "--model",
            "start",
            "--output_dir",
            "model",
            *TRAINING,
        )
        run_command(*train, folder=folder, log="train.log")
        tell("3/5", "Evaluating it on the test clips with three crops, as the paper does.")
        test = ("--data_dir", "clips", "--split", "test", "--batch_size", "16")
        run_command("evaluate", "--model", "model", *test, folder=folder, log="evaluate.log")
        tell("4/5", "Loading it from the folder into transformers' own pipeline:")
        classify(folder, classes)
        tell(
            "5/5",
            "Drawing what it looks at in a clip, and what it finds in a video of all six motions.",
        )
        draw(folder, classes)
        draw_overview(folder)
        top1 = report(folder, len(classes))
    print(summary(args.output_dir, time.perf_counter() - started))
    if top1 < ENOUGH:
        sys.exit(f"That is below the {ENOUGH:.0%} that this demonstration is meant to reach.")


def new_folder(folder: Path) -> Path:
    """An empty folder. Raises ValueError for one that is there and was not made by a demo."""
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MARK).is_file():
            raise ValueError(
                f"{folder} is not empty and no demo made it: give another --output_dir"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).write_text(json.dumps({"made_by": "timesformer demo"}) + "\n", encoding="utf-8")
    return folder.resolve()


def tell(step: str, text: str) -> None:
    """A heading of the story."""
    print(f"\n{step}  {text}", flush=True)


def make_clips(folder: Path) -> list[str]:
    """Write the data set and the joined video; returns the classes."""
    from ..data.synthetic import MOTIONS, make_motion_dataset

    make_motion_dataset(folder / "clips", splits=SPLITS, **CLIP)
    write_joined(folder / "joined.mp4")
    print(f"     {len(MOTIONS)} classes, of each {SPLITS['train']} clips to train on, ", end="")
    print(f"{SPLITS['validation']} to choose the best model by, {SPLITS['test']} to test on.")
    return list(MOTIONS)


def write_joined(path: Path) -> None:
    """A longer video, of clips that are in none of the splits: `JOINED` of each motion in turn."""
    import numpy as np

    from ..data.synthetic import MOTIONS, motion_frames
    from ..video.encoding import write_video

    rng = np.random.default_rng(1)
    names = [name for name in MOTIONS for _ in range(JOINED)]
    frames = np.concatenate([motion_frames(name, rng, **CLIP) for name in names])
    write_video(path, frames, fps=FRAMES_PER_SECOND)


def make_start(folder: Path, classes: list[str]) -> None:
    """Write the untrained network."""
    import torch

    from ..model.configuration_timesformer import TimeSformerConfig
    from ..model.modeling_timesformer import TimeSformerForVideoClassification

    torch.manual_seed(0)
    model = TimeSformerForVideoClassification(TimeSformerConfig(**NETWORK, num_labels=len(classes)))
    times = model.timesformer.embeddings.time_embeddings
    assert times is not None  # for the type checker: this scheme has them
    torch.nn.init.normal_(times, std=0.5)  # from zero, order is learned late
    model.save_pretrained(folder)


def run_command(name: str, *arguments: str, folder: Path, log: str) -> None:
    """Run `timesformer NAME ARGUMENTS` in `folder`: its progress bar is shown, all else goes to the
    log.

    Raises ValueError with the last lines of the log where the command fails.
    """
    command = [sys.executable, "-m", f"hf_timesformer.cli.{name}", *arguments]
    package = Path(__file__).resolve().parents[2]
    paths = [str(package), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    with (folder / log).open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=subprocess.PIPE
        )
        assert process.stderr is not None  # for the type checker: it is the pipe asked for
        show_bar(process.stderr, file, live=sys.stderr.isatty())
    if process.wait() != 0:
        end = (folder / log).read_text(encoding="utf-8").splitlines()[-20:]
        raise ValueError(f"timesformer {name} failed; the end of {folder / log}: " + "\n".join(end))


def show_bar(stream: IO[bytes], log: IO[str], *, live: bool) -> None:
    """Show the first progress bar of a program's stderr; what is no progress bar goes to the log.

    `live` draws it in place, for a terminal; else there is a line for every tenth of the way.
    """
    total, tenth, width = None, -1, shutil.get_terminal_size().columns - 1
    for line in lines_of(stream):
        bar = BAR.match(line)
        if bar is None:
            log.write(f"{line}\n")
            continue
        total = total or bar["total"]
        if bar["total"] != total:  # that of an evaluation in between
            continue
        text = f"     {line.strip()}"[:width]
        if live:
            print("\r" + text.ljust(width), end="", file=sys.stderr, flush=True)
        elif int(bar["percent"]) // 10 > tenth:
            tenth = int(bar["percent"]) // 10
            print(text, file=sys.stderr, flush=True)
    if live and total is not None:
        print(file=sys.stderr)


def lines_of(stream: IO[bytes]) -> Iterator[str]:
    """Lines as they come, where a carriage return ends one too: with it a progress bar draws itself
    anew.
    """
    rest = b""
    while part := os.read(stream.fileno(), 4096):
        *lines, rest = re.split(rb"[\r\n]+", rest + part)
        yield from (line.decode("utf-8", errors="replace") for line in lines if line)
    if rest:
        yield rest.decode("utf-8", errors="replace")


def classify(folder: Path, classes: list[str]) -> None:
    """One test clip of each class through transformers' own pipeline."""
    import transformers

    pipeline = transformers.pipeline("video-classification", model=str(folder / "model"))
    print(f"     {'clip':<22} {'answer':<12} score")
    for name in classes:
        clip = folder / f"clips/test/{name}/{name}_000.mp4"
        best = pipeline(str(clip), top_k=1)[0]
        print(f"     {clip.name:<22} {best['label']:<12} {best['score']:.3f}")


def draw(folder: Path, classes: list[str]) -> None:
    """The attention in one clip, and the timeline of the joined video."""
    clip = f"clips/test/{classes[0]}/{classes[0]}_000.mp4"
    learned = ("learned", clip, "--model", "model", "--output_dir", "attention")
    run_command("visualize", *learned, folder=folder, log="visualize.log")
    seconds = CLIP["num_frames"] / FRAMES_PER_SECOND
    # a window a clip: one that shows the end of a motion and the begin of the next is neither
    windows = ("--window", str(seconds), "--stride", str(seconds), "--smoothing", "1")
    run_command("label", "joined.mp4", "--model", "model", *windows, folder=folder, log="label.log")


def draw_overview(folder: Path) -> Path | None:
    """All pictures on one sheet, `overview.png`; None where matplotlib, which draws two of them, is
    missing.
    """
    from PIL import Image

    names = ("model/training_curve.png", "model/eval_test/confusion_matrix.png")
    (sheet,) = (folder / "attention").glob("*.png")
    files = [*(folder / name for name in names), sheet, folder / "timeline/joined.png"]
    if not all(file.is_file() for file in files):
        print('     no overview.png: pip install "hf-timesformer[viz]" brings what draws it')
        return None
    curve, confusion, attention, timeline = (Image.open(file).convert("RGB") for file in files)
    # the two figures side by side, as high as each other, then the wide pictures
    height = OVERVIEW_WIDTH * curve.height * confusion.height
    height //= curve.width * confusion.height + confusion.width * curve.height
    rows = [[_of_height(curve, height), _of_height(confusion, height)]]
    rows += [
        [_of_height(wide, OVERVIEW_WIDTH * wide.height // wide.width)]
        for wide in (attention, timeline)
    ]
    page = Image.new("RGB", (OVERVIEW_WIDTH, sum(row[0].height for row in rows)), "white")
    top = 0
    for row in rows:
        left = 0
        for picture in row:
            page.paste(picture, (left, top))
            left += picture.width
        top += row[0].height
    page.save(folder / "overview.png", optimize=True)
    return folder / "overview.png"


def _of_height(picture: "Image.Image", height: int) -> "Image.Image":
    return picture.resize((picture.width * height // picture.height, height))


def report(folder: Path, num_classes: int) -> float:
    """Say how good the answers are; returns the share of the test clips that were right."""
    results = json.loads((folder / "model/eval_test/eval_results.json").read_text(encoding="utf-8"))
    top1 = results["top1_accuracy"]
    print(
        f"\nOn {results['videos_evaluated']} test clips it is right in {top1:.1%} (chance: {1 / num_classes:.1%})."
    )
    return top1


def summary(folder: Path, seconds: float) -> str:
    """What was made, and what to try next; pictures only where they were drawn."""
    made = {
        "overview.png": "all pictures on one sheet",
        "clips/, joined.mp4": "the videos",
        "model/": "model, processor, train_results.json",
        "model/training_curve.png": "how it learned",
        "model/eval_test/confusion_matrix.png": "which motions it takes for which",
        "attention/": "what it looks at, as a picture and a film",
        "timeline/": "what happens when in joined.mp4",
        "timeline/joined.png": "the same as a picture",
        "*.log": "what the commands said",
    }
    lines = [
        f"  {name:<38} {what}"
        for name, what in made.items()
        if not name.endswith(".png") or (folder / name).is_file()
    ]
    listed = "\n".join(lines)
    return f"""It took {seconds:.0f} seconds. What it made is in {folder}:
{listed}

Try next:
  timesformer predict {folder}/joined.mp4 --model {folder}/model --num_clips 6
  timesformer app --model {folder}/model
  timesformer train --data_dir YOUR_CLIPS --from_vit google/vit-base-patch16-224 --output_dir run"""


if __name__ == "__main__":
    main()
