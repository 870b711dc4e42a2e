"""Names for classes that a list only numbers."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from ..labels import name_numbers
from ..records import find_annotations


def names_of_numbers(
    data_dir: Path, lines: Iterable[tuple[str, int]], name_files: Sequence[str]
) -> list[str]:
    """Names of the classes 0, 1, 2, ... of some lists.

    From the first of `name_files` that is there; else from the folders of the clips, where each
    class has one of its own; else `class 0`, `class 1`, ...

    Args:
        data_dir: folder of the data set.
        lines: path and class number of every clip of all splits, so that the splits agree.
        name_files: names of files of class names, in `data_dir` or a folder in it.

    Raises:
        ValueError: the file names fewer classes than the lists have; or, without a file, the
            numbers do not go from 0 on without a gap: then there would be classes without a clip.
    """
    listed = [(PurePosixPath(name.replace("\\", "/")).parent.name, label) for name, label in lines]
    return name_numbers(listed, find_annotations(data_dir, name_files), f"the lists in {data_dir}")
