"""Fine-tune a TimeSformer on video clips with `transformers.Trainer`.

    timesformer train --data_dir clips --from_vit google/vit-base-patch16-224 --output_dir run
    torchrun --nproc_per_node 8 -m hf_timesformer.cli.train --recipe k400-8x32-224 \\
        --dataset kinetics --data_dir k400 --output_dir run

Writes the model, its processor, train_results.json and training_curve.png into --output_dir.
"""

import logging
import sys
from contextlib import nullcontext

from transformers.utils import logging as transformers_logging

from ..run_lock import Work, only_run_in
from ..training.arguments import DataArguments, ModelArguments, VideoTrainingArguments
from ..training.recipes import apply_recipe
from ..training.run import train
from ..training.stopping import EXIT_CODE, RunStopped
from .common import end_process_group, user_errors, warn_of_lone_process
from .train_help import make_train_parser


logger = logging.getLogger(__name__)

FINDERS = ("clip_index", "hold_out", "media_files", "readers", "records")  # what finds the clips


def parse_arguments(
    argv: list[str],
) -> tuple[ModelArguments, DataArguments, VideoTrainingArguments]:
    """The arguments of a run, with those that the recipe sets where the command line does not."""
    parser = make_train_parser(__doc__)
    message = apply_recipe(parser, argv, default="small-set")
    model_args, data_args, args = parser.parse_args_into_dataclasses(argv)
    set_up_logging(args)
    if message:
        logger.info(message)
    return model_args, data_args, args


def set_up_logging(args: VideoTrainingArguments) -> None:
    """One line an event, of the first process; the others say only what is wrong."""
    level = logging.INFO if args.process_index == 0 else logging.WARNING
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("hf_timesformer").setLevel(level)
    if args.process_index:
        for name in FINDERS:  # all processes find the same: the first one says it
            logging.getLogger(f"hf_timesformer.data.{name}").setLevel(logging.ERROR)
    transformers_logging.set_verbosity(args.get_process_log_level())
    warn_of_lone_process(args.world_size)


def main(argv: list[str] | None = None) -> None:
    """Train as `argv` says; without it, as the command line says."""
    with user_errors():
        model_args, data_args, args = parse_arguments(sys.argv[1:] if argv is None else argv)
        try:
            with only_run_in(args.output_dir, Work("train")) if args.should_save else nullcontext():
                train(model_args, data_args, args)
        except RunStopped as stop:
            end_process_group()
            print(stop, file=sys.stderr)
            sys.exit(EXIT_CODE)
        end_process_group()


if __name__ == "__main__":
    main()
