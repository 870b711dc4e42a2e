"""The parser of `timesformer train`, whose `--help` shows what matters of some 190 arguments, in
groups.
"""

import argparse
import dataclasses

from transformers import HfArgumentParser, TrainingArguments

from ..training.arguments import DataArguments, ModelArguments, VideoTrainingArguments
from .common import HelpFormatter


# What most runs set of Trainer's own arguments. Of this package's all are shown.
OF_TRAINER = (
    "output_dir",
    "resume_from_checkpoint",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "weight_decay",
    "warmup_steps",
    "optim",
    "label_smoothing_factor",
    "bf16",
    "activation_checkpointing",  # this or, in older versions of transformers,
    "gradient_checkpointing",
    "dataloader_num_workers",
    "metric_for_best_model",
    "seed",
    "report_to",
    "push_to_hub",
    "hub_model_id",
)
MANY_CHOICES = 8  # from here on the help says NAME
NAMED = ("metric_for_best_model", "report_to")
GUIDE = """
The defaults are those of the recipe small-set, unless --recipe names another: see `timesformer recipes`.
Options go with underscores or hyphens: --data_dir, --data-dir.
--help_all shows the rest: the other arguments of transformers' TrainingArguments."""


def make_train_parser(doc: str) -> HfArgumentParser:
    """A parser of the three groups of arguments, with `--help` and `--help_all`; `doc` is the
    command's docstring.
    """
    summary, _, rest = doc.strip().partition("\n\n")
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, VideoTrainingArguments),
        prog="timesformer train",
        usage="%(prog)s --data_dir FOLDER [--from_vit VIT | --model MODEL] [--recipe RECIPE] [OPTIONS]",
        description=summary,
        epilog=f"{rest}\n{GUIDE}",
        allow_abbrev=False,
        add_help=False,
        formatter_class=_TrainHelpFormatter,
    )
    parser.add_argument(
        "-h", "--help", action=_GroupedHelp, help="show the arguments that most runs need and leave"
    )
    parser.add_argument(
        "--help_all", "--help-all", action="help", help="show all arguments and leave"
    )
    for action in parser._actions:
        if action.dest in NAMED or len(action.choices or ()) >= MANY_CHOICES:
            action.metavar = "NAME"
    return parser


def groups() -> dict[str, list[str]]:
    """The names of the arguments that `--help` shows, under the title of their group."""
    trainers = _field_names(TrainingArguments)
    most_used = [name for name in OF_TRAINER if name in trainers]
    if "activation_checkpointing" in most_used:
        most_used.remove("gradient_checkpointing")
    return {
        "the model": _field_names(ModelArguments),
        "the clips": _field_names(DataArguments),
        "the training": [
            name for name in _field_names(VideoTrainingArguments) if name not in trainers
        ],
        "the most used of transformers' TrainingArguments": most_used,
    }


def _field_names(arguments: type) -> list[str]:
    return [field.name for field in dataclasses.fields(arguments)]


class _TrainHelpFormatter(HelpFormatter):
    """Each option in one spelling: `HfArgumentParser` gives each a second one, with hyphens."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        name = action.option_strings[0]
        is_switch = action.nargs == "?" and action.const is True
        default_metavar = self._get_default_metavar_for_optional(action)
        metavar = "[true|false]" if is_switch else self._format_args(action, default_metavar)
        return f"{name} {metavar}".strip()


class _GroupedHelp(argparse.Action):
    """`--help`: prints the arguments of `groups()` and leaves."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None):
        super().__init__(
            option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help
        )

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        formatter = parser.formatter_class(prog=parser.prog)
        formatter.add_usage(parser.usage, parser._actions, [])
        formatter.add_text(parser.description)
        for title, names in groups().items():
            formatter.start_section(title)
            formatter.add_arguments([_first_action(parser, name) for name in names])
            formatter.end_section()
        formatter.add_text(parser.epilog)
        print(formatter.format_help(), end="")
        parser.exit()


def _first_action(parser: argparse.ArgumentParser, name: str) -> argparse.Action:
    """The action of `--name`; a second one, `--no_name`, is of a switch that is on by default."""
    return next(action for action in parser._actions if action.dest == name)
