"""Names for classes that a list only numbers."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from ..labels import check_numbers, read_class_names
from ..records import find_annotations


def names_of_numbers(data_dir: Path, lines: Iterable[tuple[str, int]], name_files: Sequence[str]) -> list[str]:
    """Names of the classes 0, 1, 2, ... of some lists.

    From the first of `name_files` that is there; else from the folders of the clips, where each class has one of its
    own; else `class 0`, `class 1`, ...

    Args:
        data_dir: folder of the data set.
        lines: path and class number of every clip of all splits, so that the splits agree.
        name_files: names of files of class names, in `data_dir` or a folder in it.

    Raises:
        ValueError: the file names fewer classes than the lists have; or, without a file, the numbers do not go from 0
            on without a gap: then there would be classes without a clip.
    """
    folders: dict[int, set[str]] = {}
    for name, label in lines:
        folders.setdefault(label, set()).add(PurePosixPath(name.replace("\\", "/")).parent.name)
    numbers = sorted(folders)
    path = find_annotations(data_dir, name_files)
    if path is not None:
        names = read_class_names(path)
        if numbers and len(names) <= numbers[-1]:
            raise ValueError(f"{path} names {len(names)} classes, the lists use numbers up to {numbers[-1]}")
        return names
    check_numbers(numbers, f"the lists in {data_dir} (no {name_files[0]} beside them)")
    alone = [next(iter(folders[label])) if len(folders[label]) == 1 else "" for label in numbers]
    if all(alone) and len(set(alone)) == len(alone):
        return alone
    return [f"class {label}" for label in numbers]
