"""Which data set, and how it lies there: the arguments that `train`, `evaluate` and `prepare`
share.

Nothing heavy is imported here, since every command's help reads this file.
"""

import argparse
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, get_type_hints


# Readers in `readers/`, in the order of `dataset_factory.LAYOUTS`; shards are read as a stream.
DATASETS = (
    "folder",
    "csv",
    "kinetics",
    "ssv2",
    "diving48",
    "ucf101",
    "hmdb51",
    "mmaction2",
    "webdataset",
    "hub",
)


@dataclass
class DatasetArguments:
    """Where the clips are, and what their layout leaves open."""

    data_dir: str = field(
        metadata={
            "help": "Folder of the data set; for csv also the table, for webdataset a pattern or URL of shards, for "
            "hub user/name."
        },
    )
    dataset: str = field(
        default="folder", metadata={"help": "Layout of --data_dir.", "choices": DATASETS}
    )
    extensions: list[str] | None = field(
        default=None,
        metadata={"help": "Suffixes of clips beyond the usual ones, such as: xyz dat2."},
    )
    fold: int | None = field(
        default=None,
        metadata={
            "help": "Official division of ucf101, hmdb51 or mmaction2: 1 (if not given), 2 or 3."
        },
    )

    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of a hub data set that has several."}
    )
    video_column: str | None = field(
        default=None, metadata={"help": "Column of a hub data set that has the videos."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Column of a hub data set that has the labels."}
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read a hub data set shard by shard while it is needed, nothing beforehand."
        },
    )

    frame_rate: float | None = field(
        default=None,
        metadata={"help": "Frames a second of folders of pictures, which tell none."},
    )
    limits: list[str] | None = field(
        default=None,
        metadata={
            "help": "What one video may cost, in place of the decoder's own limits, such as max_seconds=600 "
            "max_pixels=9e7."
        },
    )

    @property
    def reader_options(self) -> dict[str, Any]:
        """What stands between `--dataset` and the reader: keywords of `find_videos` and
        `read_records`.
        """
        return {name: getattr(self, name) for name in READER_OPTIONS}

    @property
    def reading(self) -> dict[str, Any]:
        """How files are read: the processor's settings `frame_rate` and `limits`.

        Raises:
            ValueError: a limit is no NAME=N.
        """
        return {"frame_rate": self.frame_rate, "limits": parse_limits(self.limits)}


OF_NO_READER = ("data_dir", "dataset", "frame_rate", "limits")
READER_OPTIONS = tuple(
    item.name for item in fields(DatasetArguments) if item.name not in OF_NO_READER
)


def parse_limits(texts: list[str] | None) -> dict[str, float] | None:
    """`["max_seconds=600", "max_pixels=9e7"]` as numbers by name. ValueError for one of another
    form.
    """
    limits: dict[str, float] = {}
    for text in texts or []:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError as error:
            raise ValueError(
                f"--limits takes NAME=N, such as max_seconds=600; got {text!r}"
            ) from error
        limits[name] = int(number) if number.is_integer() else number
    return limits or None


def add_dataset_arguments(
    parser: argparse.ArgumentParser, datasets: tuple[str, ...] = DATASETS
) -> None:
    """Add the fields of `DatasetArguments` to a parser; `--dataset` takes one of `datasets`."""
    # not the types of the fields, which HfArgumentParser changes for good when `train` is parsed
    types = get_type_hints(DatasetArguments)
    for item in fields(DatasetArguments):
        kind = types[item.name]
        help_text = item.metadata["help"]
        settings: dict[str, Any] = {"help": help_text[0].lower() + help_text[1:].rstrip(".")}
        if item.default is MISSING:
            settings["required"] = True
        else:
            settings["default"] = item.default
        if item.name == "dataset":
            settings["choices"] = datasets
        if kind is bool:
            settings["action"] = "store_true"
        if kind == list[str] | None:
            settings["nargs"] = "+"
        if kind == int | None:
            settings["type"] = int
        if kind == float | None:
            settings["type"] = float
        if item.name == "limits":
            settings["metavar"] = "NAME=N"
        parser.add_argument(f"--{item.name}", **settings)


def dataset_arguments(args: argparse.Namespace) -> DatasetArguments:
    """The arguments that `add_dataset_arguments` added, out of the parsed ones."""
    return DatasetArguments(
        **{item.name: getattr(args, item.name) for item in fields(DatasetArguments)}
    )
