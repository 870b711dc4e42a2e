#!/usr/bin/env python
"""A page to try a TimeSformer: drop a video, see what it is, which frames were looked at, and
where.

    pip install "hf-timesformer[app]"
    timesformer app --model runs/mine

As a Hub Space: `timesformer app --model me/my-model --export_space my-space` writes a folder that
is one, for `hf upload me/my-space my-space --repo-type space`. Setting the variable MODEL there
chooses another model.
"""

import argparse
import os
from pathlib import Path

from .common import make_parser, user_errors


def default_model() -> str | None:
    """The variable MODEL, or what the file MODEL of an exported Space says."""
    # an exported Space has this package and MODEL side by side
    beside = Path(__file__).parents[2] / "MODEL"
    return os.environ.get("MODEL") or (
        beside.read_text(encoding="utf-8").strip() if beside.is_file() else None
    )


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; a Space has none."""
    parser = make_parser("app", __doc__)
    parser.add_argument(
        "--model", default=default_model(), help="folder or Hub id (default: $MODEL)"
    )
    parser.add_argument("--top_k", type=int, default=5, help="classes to show")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="default auto: bfloat16 where the processor or GPU computes in it, else float32",
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument(
        "--export_space", type=Path, metavar="FOLDER", help="write a Hub Space there and leave"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Serve the page, or write the Space."""
    args = parse_arguments(argv)
    import transformers

    from ..hub.space import export_space

    transformers.logging.disable_progress_bar()
    with user_errors():
        if not args.model:
            raise ValueError("which model? Give --model FOLDER_OR_HUB_ID, or set MODEL")
        if args.export_space:
            print(f"wrote {export_space(args.export_space, model=args.model)}")
            return
        from .app_page import LAUNCH, make_page

        page = make_page(args)
    page.launch(server_port=args.port, **LAUNCH)


if __name__ == "__main__":
    main()
