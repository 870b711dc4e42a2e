#!/usr/bin/env python
"""Convert a checkpoint of the official code or of mmaction2 into a folder for `from_pretrained` and
`pipeline`.

    timesformer convert TimeSformer_divST_8x32_224_K400.pyth timesformer-k400 --labels kinetics.json

Writes config.json, model.safetensors and the processors' settings. Attention type, frames, size and
number of labels are read from the weights; how videos are sampled from the training configuration
in the file, or from what the released checkpoints of that kind have: what was taken is printed, and
--sampling_rate overrides it.
"""

import argparse
from pathlib import Path

from .common import make_parser, user_errors


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("convert", __doc__)
    parser.add_argument(
        "checkpoint", type=Path, help=".pyth or .pth file; read without running any code in it"
    )
    parser.add_argument("folder", type=Path, help="folder to write; it must not hold a model yet")
    parser.add_argument(
        "--labels", type=Path, help="class names: one a line, or JSON, a list or an object"
    )
    parser.add_argument(
        "--num_attention_heads", type=int, help="default: width / 64, as in all released files"
    )
    parser.add_argument(
        "--sampling", choices=("clip", "segments"), help="frames of one window, or of equal parts"
    )
    parser.add_argument(
        "--sampling_rate", type=int, help="a clip takes one frame in so many of the video"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Read, convert, write, say what was found."""
    args = parse_arguments(argv)
    from ..conversion.official_checkpoint import convert_checkpoint
    from ..data.labels import read_class_names
    from ..model.modeling_timesformer import TimeSformerForVideoClassification

    with user_errors():
        if (args.folder / "config.json").exists():
            raise ValueError(f"{args.folder} holds a model already: give a new folder")
        names = None if args.labels is None else read_class_names(args.labels)
        model, processor, sampling = convert_checkpoint(
            args.checkpoint,
            label_names=names,
            num_attention_heads=args.num_attention_heads,
            sampling=args.sampling,
            sampling_rate=args.sampling_rate,
        )
        model.save_pretrained(args.folder)
        processor.save_pretrained(args.folder)
    config = model.config
    labels = f"{config.num_labels} labels{'' if names else ' without names (--labels)'}"
    if not isinstance(model, TimeSformerForVideoClassification):
        labels = "no classifier in the file (train it with --new_head)"
    print(
        f"{args.folder}: {config.attention_type}, {config.num_frames} frames of {config.image_size} pixels, "
        f"{labels}; {sampling}"
    )


if __name__ == "__main__":
    main()
