#!/usr/bin/env python
"""Publish a trained model on the Hugging Face Hub: weights, processors, code where it is needed,
and a model card.

    hf auth login
    timesformer publish runs/mine my-name/my-model --dataset "UCF101, 10 classes"

The card (README.md) fills itself from the folder's config.json, train_results.json and
eval_results.json; one that is there already is kept unless --new_card is given. Everything goes up
in one commit, so that an upload that breaks leaves nothing half done: run the same command again.
The access token comes from `hf auth login` or HF_TOKEN, never from an argument, where other users
of the machine could read it.
"""

import argparse
from pathlib import Path

from .common import make_parser, user_errors


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("publish", __doc__)
    parser.add_argument("folder", type=Path, help="folder that training or save_pretrained() wrote")
    parser.add_argument("repo_id", help="where to publish: my-name/my-model")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--revision", help="branch to publish on, created if need be (default: main)"
    )
    parser.add_argument("--message", default="Publish model", help="commit message")
    parser.add_argument(
        "--code", action="store_true", help="add the code even if plain transformers runs the model"
    )
    parser.add_argument(
        "--new_card", action="store_true", help="write the card anew even if there is one"
    )
    parser.add_argument(
        "--base_model", help="Hub id or folder of what the model was made from, for the card"
    )
    parser.add_argument("--dataset", help="name of the data that it was trained on, for the card")
    parser.add_argument("--license", help="for the card (default: that of the base model)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Complete the folder, then publish it."""
    args = parse_arguments(argv)
    from ..hub.publish import complete_folder, push_folder

    card = {"base_model": args.base_model, "dataset": args.dataset, "license": args.license}
    with user_errors():
        complete_folder(args.folder, args.repo_id, code=args.code, new_card=args.new_card, **card)
        commit = push_folder(
            args.folder,
            args.repo_id,
            private=args.private or None,
            revision=args.revision,
            commit_message=args.message,
        )
    print(commit.commit_url)


if __name__ == "__main__":
    main()
