"""What the commands share at their edge. Nothing heavy is imported here: every command's `--help`
reads this file.
"""

import argparse
import gc
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..data.arguments import parse_limits


logger = logging.getLogger(__name__)

# A package that only an extra brings -> that extra.
EXTRAS = {
    "gradio": "app",
    "matplotlib": "viz",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "openvino": "openvino",
    "nncf": "openvino",
}


class CommandParser(argparse.ArgumentParser):
    """One style of arguments for all commands, the one of transformers' `HfArgumentParser` that
    `train` has.

    Options are written in full, with underscores or hyphens (`--top_k`, `--top-k`); a flag also
    takes its value (`--json`, `--json true`, `--json false`); the help tells the defaults.
    """

    def __init__(self, **settings: Any):
        style: dict[str, Any] = {"allow_abbrev": False, "formatter_class": HelpFormatter}
        super().__init__(**style | settings)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """argparse's own, with hyphens and the values of flags understood."""
        return super().parse_known_args(
            self._in_one_style(sys.argv[1:] if args is None else list(args)), namespace
        )

    def _in_one_style(self, argv: list[str]) -> list[str]:
        """`["--allow-urls", "false", "--top-k=3"]` -> `["--top_k=3"]`; what follows `--` stays as
        it is.
        """
        end = argv.index("--") if "--" in argv else len(argv)
        words = [part for word in argv[:end] for part in self._spelled(word)]
        styled: list[str] = []
        for word in words:
            if not (styled and self._is_flag(styled[-1]) and word.lower() in ("true", "false")):
                styled.append(word)
            elif word.lower() == "false":
                styled.pop()
        return styled + argv[end:]

    def _spelled(self, word: str) -> list[str]:
        """`--top-k=3` -> `["--top_k=3"]`; `--json=true` -> `["--json", "true"]`."""
        option, equals, value = word.partition("=")
        with_underscores = "--" + option[2:].replace("-", "_")
        if option.startswith("--") and with_underscores in self._option_string_actions:
            option = with_underscores
        is_flag_with_value = equals and self._is_flag(option)
        return [option, value] if is_flag_with_value else [f"{option}{equals}{value}"]

    def _is_flag(self, word: str) -> bool:
        return isinstance(self._option_string_actions.get(word), argparse._StoreTrueAction)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """The text as it was written, short names for values, and after each option its default, where
    it has one.
    """

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        tells = action.option_strings and action.default not in (None, False, [], argparse.SUPPRESS)
        return f"{text} (default: %(default)s)" if tells and "default" not in text else text

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        """`--top_k N`, `--learning_rate X`, `--data_dir DIR`."""
        if action.type is int:
            return "N"
        return "X" if action.type is float else action.dest.rpartition("_")[2].upper()


def make_parser(command: str, doc: str) -> CommandParser:
    """The parser of `timesformer COMMAND`; the file's docstring tells what it does and shows
    examples.
    """
    summary, _, rest = doc.strip().partition("\n\n")
    return CommandParser(prog=f"timesformer {command}", description=summary, epilog=rest)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """`--model`, or `--export` for a graph in its place: what a command runs. `graph_of` reads
    them.
    """
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder or Hub id of the model and its processor")
    source.add_argument(
        "--export", metavar="DIR", help="in its place: a folder that `timesformer export` wrote"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "int8"),
        help="of the graph in --export (default: the folder's own; OpenVINO: bf16 where the CPU computes in it)",
    )
    parser.add_argument(
        "--onnx",
        nargs="?",
        const="fp32",
        choices=("fp32", "int8"),
        help="the same as --export with the folder that --model names, for ONNX graphs (default fp32)",
    )


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """`--frame_rate` and `--limits`: how video files are read. `reading_settings` reads them."""
    parser.add_argument(
        "--frame_rate", type=float, help="frames a second of folders of pictures, which tell none"
    )
    parser.add_argument(
        "--limits",
        nargs="+",
        metavar="NAME=N",
        help="what one video may cost, in place of the decoder's own limits, such as max_seconds=600 max_pixels=9e7",
    )


def reading_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The processor's settings of `add_reading_arguments`. Raises ValueError for a limit that is no
    NAME=N.
    """
    return {"frame_rate": args.frame_rate, "limits": parse_limits(args.limits)}


def clips_of(text: str) -> int | str:
    """What `--num_clips` takes: a number, or auto."""
    return text if text == "auto" else int(text)


def graph_of(args: argparse.Namespace) -> tuple[str, str | None] | None:
    """The folder of the exported graph that the command runs and its precision, None where it runs
    a model.

    Raises ValueError for arguments of `add_model_arguments` that do not go together.
    """
    if args.onnx and args.export:
        raise ValueError("--onnx goes with --model; beside --export, --precision chooses the graph")
    if args.precision and not args.export:
        raise ValueError(
            f"--precision {args.precision} is for --export; beside --model it is --dtype"
        )
    if args.onnx:
        return args.model, args.onnx
    return (args.export, args.precision) if args.export else None


@contextmanager
def user_errors() -> Iterator[None]:
    """Print a user's mistake as one line `error: ...` and leave with exit code 2.

    A mistake is a ValueError, an OSError, or a package that is missing because its extra was not
    installed.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        # From a DataLoader's worker comes its whole traceback, with the message at its end.
        message = re.split(r"\n[\w.]*Error: ", str(error))[-1]
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        message = f'this needs the package {error.name}: pip install "hf-timesformer[{EXTRAS[error.name]}]"'
    else:
        return
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def warn_of_lone_process(num_processes: int) -> None:
    """Say it where `accelerate launch --cpu --num_processes N` has started one process, as it does
    without mpirun.
    """
    if num_processes == 1 and "MASTER_PORT" in os.environ and "RANK" not in os.environ:
        program = program_for_launchers(sys.argv)
        logger.warning(
            "only one process was started: with --cpu, or where there is no GPU, `accelerate launch` starts more only "
            "by mpirun (--mpirun_hostfile). Type `torchrun --nproc_per_node N %s ...` or `accelerate launch "
            "--multi_gpu --num_processes N %s ...` instead, also on CPUs",
            program,
            program,
        )


def program_for_launchers(argv: Sequence[str]) -> str:
    """How torchrun and accelerate are told to run this program: the path of a script, or `-m` and a
    module.

    `["scripts/train.py", ...]` -> `scripts/train.py`; `["/bin/timesformer", "train", ...]` and
    `[".../hf_timesformer/cli/train.py", ...]`, which is what `-m` leaves there ->
    `-m hf_timesformer.cli.train`.
    """
    program, here = Path(argv[0]), Path(__file__).resolve().parent
    if program.suffix == ".py" and program.resolve().parent not in (here, here.parent):
        return argv[0]
    is_command = program.suffix == ".py" and program.stem != "__main__"
    command = program.stem if is_command else argv[1]
    return f"-m hf_timesformer.cli.{command}"


def add_shard_argument(parser: Any) -> None:
    """`--shard I/N` of all commands whose work several machines share; it is read into `(I, N)`."""
    parser.add_argument(
        "--shard",
        type=parse_shard,
        default=(0, 1),
        metavar="I/N",
        help="only the I-th of N equal shares of the videos, counted from 0, as SLURM's array tasks and ranks are; "
        "processes of torchrun divide it once more (default: all videos)",
    )


def parse_shard(text: str) -> tuple[int, int]:
    """`"2/4"` -> `(2, 4)`, the third of four shares. Raises ArgumentTypeError for what is none."""
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if found and int(found[1]) < int(found[2]):
        return int(found[1]), int(found[2])
    shares = (int(found[2]) if found else 0) or 4
    raise argparse.ArgumentTypeError(
        f"{text} is no share: they count from 0 to N-1, "
        + (f"so it is 0/{shares} to {shares - 1}/{shares}" if shares > 1 else "so it is 0/1")
    )


def own_share(shard: tuple[int, int]) -> tuple[int, int]:
    """Which of how many equal shares of some work is this process's, from 0.

    `shard` is that of its machine or array task. Each of them may run several processes, started by
    torchrun or accelerate (`RANK`, `WORLD_SIZE`), which share its part:

        shard 1/2, rank 0 of 2: 2/4        rank 1 of 2: 3/4
    """
    part, parts = shard
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return part * world + rank, parts * world


def share_of(count: int, shard: tuple[int, int]) -> list[int]:
    """The numbers, out of `count`, that are this process's share of some work: of 10 videos and
    share 2/4 they are 2 and 6.
    """
    part, parts = own_share(shard)
    return list(range(part, count, parts))


def local_device() -> str | None:
    """The GPU of this process where torchrun or accelerate started several, None where it is the
    only one.
    """
    import torch

    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank is not None and torch.cuda.is_available() else None


def failures_of_all(failed: int) -> int:
    """How many failures all processes of `torchrun` or `accelerate launch` have met, once each of
    them is done; of a process that neither has started, its own.

    A launcher ends all of its processes as soon as one of them has ended with an error. So whoever
    could not read a video waits for the others, who may be at work for hours. They count in the
    launcher's store; where that is gone, so are the others.
    """
    import torch.distributed as dist

    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        return failed
    attempt = f"timesformer/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=30),
        )
        store.add(f"{attempt}/failed", failed)
        store.add(f"{attempt}/done", 1)
        while store.add(f"{attempt}/done", 0) < int(os.environ["WORLD_SIZE"]):
            time.sleep(0.2)
        return store.add(f"{attempt}/failed", 0)
    except RuntimeError:
        return failed


def end_process_group() -> None:
    """Leave the group of processes, if this is one of several, and end the threads that served it.

    Call it once no trainer is in scope. The threads end with the last reference to the group, and a
    network wrapped by DDP or FSDP holds one. A thread of gloo that lets go of its last tensor only
    when Python ends aborts the process.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        gc.collect()  # trainers, with the network that they wrapped, are cycles
        dist.destroy_process_group()
