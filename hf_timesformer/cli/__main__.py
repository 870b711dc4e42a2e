"""`timesformer COMMAND ...`: from the name of a command to the file that holds it."""

import difflib
import importlib
import os
import sys
from importlib.metadata import version


# Each is a file beside this one with `main(argv)`. A new command is its file and one line here.
COMMANDS = {
    "train": "fine-tune on video clips, from a TimeSformer or an image ViT",
    "evaluate": "the paper's protocol on a data set: accuracy, per-class results, confusion matrix",
    "predict": "the most likely classes of videos",
    "label": "what happens when in long videos: segments, subtitles, pictures, a film",
    "extract": "features of a whole data set to Parquet",
    "prepare": "check every video of a data set, and pack it into tar shards",
    "convert": "a checkpoint of the official code or of mmaction2 into a folder for from_pretrained()",
    "publish": "a trained model to the Hugging Face Hub, with its card",
    "export": "a trained model as a graph for ONNX Runtime or OpenVINO, also in int8",
    "visualize": "pictures and films of what the network looks at",
    "app": "a web page to try a model",
    "demo": "the whole way in minutes, offline, on clips made on the spot",
    "recipes": "the recipes that `train --recipe` knows",
}


USAGE = """usage: timesformer COMMAND [ARGUMENTS]

TimeSformer for Hugging Face Transformers: from a folder of clips to a model that classifies videos.

commands:
{commands}

`timesformer COMMAND --help` tells a command's arguments, `timesformer --version` the version.
On several devices: torchrun --nproc_per_node N -m hf_timesformer.cli.train ... (or .evaluate),
or accelerate launch -m hf_timesformer.cli.train ..."""


def usage() -> str:
    """What `timesformer --help` prints."""
    width = max(map(len, COMMANDS))
    return USAGE.format(
        commands="\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    )


def only_prints(argv: list[str]) -> bool:
    """Whether this command line asks for nothing but text: help, the version, the recipes, or it
    names no command.
    """
    before_double_dash = argv[: argv.index("--")] if "--" in argv else argv
    asks_for_help = {"-h", "--help", "--help_all", "--help-all"}.intersection(before_double_dash)
    return not argv or argv[0] not in COMMANDS or argv[0] == "recipes" or bool(asks_for_help)


def check_arguments(argv: list[str]) -> None:
    """Leave with the command's own message where its arguments are wrong.

    `train` is left out: its parser is made of transformers' arguments, which take seconds to load.
    """
    if argv[0] != "train":
        importlib.import_module(f".{argv[0]}", __package__).parse_arguments(argv[1:])


def main(argv: list[str] | None = None) -> None:
    """Run the command that `argv`, by default the command line, begins with."""
    try:
        dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads the output any more: `timesformer recipes | head`
        # for what Python flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def dispatch(argv: list[str]) -> None:
    """Print what is asked for, or hand the rest of `argv` to the command that it begins with."""
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        print(usage())
    elif name == "--version":
        print(version("hf-timesformer"))
    elif name in COMMANDS:
        importlib.import_module(f".{name}", __package__).main(argv[1:])
    else:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"choose from {', '.join(COMMANDS)}"
        print(f"error: there is no command {name!r}; {hint}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
