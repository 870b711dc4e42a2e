"""A folder of numbered pictures is a video: which files are its frames, in what order, and whether
any is missing.

clip/img_00007.jpg
clip/img_00008.jpg      frames 0, 1 and 2: numbers begin anywhere, but none is left out on the way
clip/img_00009.jpg
clip/notes.txt          not a picture: passed over
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import PIL.Image

from .decoding_limits import VideoDecodeError
from .decoding_source import describe_source


PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP")  # Pillow's names of the same; nothing else is tried


@dataclass(frozen=True)
class FrameFiles:
    """A video whose frames are picture files, in this order; `name` is how messages call it.

    `frame_rate` frames a second, or None where nobody knows: pictures do not tell.
    """

    paths: tuple[str, ...]
    name: str
    frame_rate: float | None = None

    @classmethod
    def from_list(
        cls, paths: Sequence[str | os.PathLike], frame_rate: float | None = None
    ) -> "FrameFiles":
        """Of pictures in the order of the list, however they are called."""
        names = tuple(os.fsdecode(path) for path in paths)
        return cls(names, f"<{len(names)} pictures, {names[0]} first>", frame_rate)

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike, frame_rate: float | None = None
    ) -> "FrameFiles":
        """Of the numbered pictures of a folder, in the order of their numbers.

        Raises:
            VideoDecodeError: no numbered picture, a picture without a number, pictures of two
                series, two with one number, or a gap in the numbering.
        """
        name = describe_source(folder)
        numbered = _numbered_pictures(Path(os.fsdecode(folder)), name)
        for (number, path), (next_number, next_path) in pairwise(numbered):
            if next_number == number:
                raise _bad_folder(
                    name, f"has two pictures of number {number}: {path.name} and {next_path.name}"
                )
            if next_number != number + 1:
                missing = (
                    f"{number + 1}"
                    if next_number == number + 2
                    else f"{number + 1} to {next_number - 1}"
                )
                raise _bad_folder(
                    name,
                    f"has a gap: no picture of number {missing} between {path.name} and {next_path.name}; add what is "
                    "missing, or pass the list of the pictures that there are",
                )
        return cls(tuple(str(path) for _, path in numbered), name, frame_rate)


def rate_of_pictures(source: object, frame_rate: float | None) -> float | None:
    """`frame_rate` where `source` is a folder or list of pictures; None for a file, which has its
    own.
    """
    is_folder = isinstance(source, (str, os.PathLike)) and os.path.isdir(source)
    return frame_rate if is_folder or isinstance(source, FrameFiles) else None


def is_picture(path: object) -> bool:
    """Whether `path` is one of a file whose suffix is a picture's."""
    return (
        isinstance(path, (str, os.PathLike))
        and Path(os.fsdecode(path)).suffix.lower() in PICTURE_SUFFIXES
    )


def is_animated(path: str | os.PathLike) -> bool:
    """Whether a picture file holds more than one frame, and so is a video by itself; False for one
    of no kind.
    """
    try:
        with PIL.Image.open(path, formats=PICTURE_FORMATS) as picture:
            return getattr(picture, "is_animated", False)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return False  # whoever reads it will say what is wrong with it


def _numbered_pictures(folder: Path, name: str) -> list[tuple[int, Path]]:
    """`(number, path)` of the pictures of one series, in the order of their numbers."""
    try:
        pictures = [
            path for path in folder.iterdir() if is_picture(path) and not path.name.startswith(".")
        ]
    except OSError as error:
        raise VideoDecodeError(
            name, "not-a-file", f"is a folder that cannot be listed: {error}"
        ) from error
    if not pictures:
        message = (
            "is not a regular file, and a folder without numbered pictures "
            f"({', '.join(PICTURE_SUFFIXES)}); where it holds videos, name these"
        )
        raise VideoDecodeError(name, "not-a-file", message)
    series: dict[tuple[str, str], list[tuple[int, Path]]] = {}
    for path in sorted(pictures):
        match = re.fullmatch(r"(.*?)(\d+)", path.stem, re.DOTALL)
        if match is None:
            raise _bad_folder(
                name, f"has a picture without a number at the end of its name: {path.name}"
            )
        prefix, number = match.groups()
        series.setdefault((prefix, path.suffix.lower()), []).append((int(number), path))
    if len(series) > 1:
        names = ", ".join(
            f"{found[0][1].name} ({len(found)} pictures)" for found in series.values()
        )
        raise _bad_folder(
            name, f"has pictures of more than one series: {names}; leave one of them in a folder"
        )
    (numbered,) = series.values()
    return sorted(numbered)


def _bad_folder(name: str, message: str) -> VideoDecodeError:
    return VideoDecodeError(name, "pictures", message)
