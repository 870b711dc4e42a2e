"""Names of classes: read from a file, and matched between a data set and a model."""

import difflib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .records import parse_json


logger = logging.getLogger(__name__)


def plain_label(name: str) -> str:
    """What is left of a class name where case, `_`, quotes and doubled spaces do not count.

    `Air_Drumming`, `"air drumming"` and `air  drumming` are one class.
    """
    for quote in "\"'":
        name = name.replace(quote, "")
    return " ".join(name.replace("_", " ").casefold().split())


def match_labels(
    class_names: Sequence[str], id2label: Mapping[int, str], *, cure: str
) -> list[int]:
    """The model's number for each class of a data set, found by name.

    A name that the model has letter for letter is that class; otherwise case, `_` and quotes are
    set aside. A model without names of its own (`LABEL_0`, `LABEL_1`, ...) and as many classes as
    the data is taken in order, with a warning.

    Args:
        class_names: names of the data set's classes, in order.
        id2label: the model's names by number, as `config.id2label` has them.
        cure: what to do about classes that the model does not know, for the error message.

    Raises:
        ValueError: the model does not know a class (its nearest names are listed), several of its
            names are the same once case, `_` and quotes are set aside, or two classes of the data
            are one of the model.
    """
    names = [str(id2label[number]) for number in range(len(id2label))]
    if len(names) == len(class_names) and has_no_names(names):
        logger.warning(
            "the model has no class names: its classes are taken in the order of the data's"
        )
        return list(range(len(names)))
    found = _find_candidates(class_names, names)
    unknown = [name for name, numbers in found.items() if not numbers]
    if unknown:
        raise ValueError(_describe_unknown(unknown, len(class_names), names, cure))
    for name, numbers in found.items():
        if len(numbers) > 1:
            alike = ", ".join(repr(names[number]) for number in numbers)
            raise ValueError(
                f"class {name!r} of the data may be any of the model's {alike}: rename it to one of them"
            )
    numbers = [found[name][0] for name in class_names]
    _refuse_one_for_two(class_names, numbers, names)
    return numbers


def _find_candidates(class_names: Sequence[str], model_names: list[str]) -> dict[str, list[int]]:
    """For each class of the data the model's numbers that it may be: none, one, or several."""
    by_name: dict[str, list[int]] = {}
    by_plain_name: dict[str, list[int]] = {}
    for number, name in enumerate(model_names):
        by_name.setdefault(name, []).append(number)
        by_plain_name.setdefault(plain_label(name), []).append(number)
    return {
        name: by_name.get(name) or by_plain_name.get(plain_label(name), []) for name in class_names
    }


def has_no_names(names: Sequence[str]) -> bool:
    """Whether a model's classes are only numbered, as transformers does where it is given no names."""
    return list(names) == [f"LABEL_{number}" for number in range(len(names))]


def _describe_unknown(
    unknown: list[str], num_classes: int, model_names: list[str], cure: str
) -> str:
    """`'archry' (nearest: 'archery'); 'x', 'y' (nothing is near; the model begins with ...)`."""
    shown = unknown[:10]
    near = {name: _nearest(name, model_names) for name in shown}
    said = [
        f"{name!r} (nearest: {', '.join(map(repr, near[name]))})" for name in shown if near[name]
    ]
    far = [repr(name) for name in shown if not near[name]]
    if far:
        first = ", ".join(map(repr, model_names[:3]))
        said.append(f"{', '.join(far)} (nothing is near; the model begins with {first})")
    if len(unknown) > 10:
        said.append(f"and {len(unknown) - 10} more")
    return (
        f"{len(unknown)} of {num_classes} classes of the data are not among the model's {len(model_names)}: "
        f"{'; '.join(said)}. {cure}"
    )


def _nearest(name: str, model_names: list[str]) -> list[str]:
    by_plain_name = {plain_label(other): other for other in model_names}
    near = difflib.get_close_matches(plain_label(name), list(by_plain_name), n=3)
    return [by_plain_name[other] for other in near]


def _refuse_one_for_two(
    class_names: Sequence[str], numbers: list[int], model_names: list[str]
) -> None:
    for number, count in Counter(numbers).items():
        if count > 1:
            same = ", ".join(
                repr(name) for name, other in zip(class_names, numbers) if other == number
            )
            raise ValueError(
                f"classes {same} of the data are one class of the model, {model_names[number]!r}: "
                "give the clips of both one class name"
            )


def read_class_names(path: str | Path) -> list[str]:
    """`parse_class_names` of a file."""
    return parse_class_names(Path(path).read_text(encoding="utf-8-sig"), str(path))


def parse_class_names(text: str, source: str) -> list[str]:
    """Class names in order, from the text of a file.

    Either JSON: a list of names, or an object of name -> number or number -> name, as the files of
    Kinetics and Something-Something-V2 are. Or plain text, one name a line. Quotes around a name
    are taken off: Kinetics' own file has names in quotes within quotes.

    Args:
        text: content of the file.
        source: its name, for error messages.

    Raises:
        ValueError: the text is empty or no such JSON, numbers do not go from 0 on without a gap, or
            a name stands twice.
    """
    stripped = text.lstrip()
    if stripped[:1] in ("[", "{"):
        names = _ordered_names(parse_json(text, source, list, dict), source)
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{source} must hold class names: a JSON list, an object of names and numbers, or one a line"
        )
    names = [_unquoted(name) for name in names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{source} names a class twice: {', '.join(twice[:5])}")
    return names


def _unquoted(name: str) -> str:
    name = name.strip()
    return name[1:-1] if len(name) > 2 and name[0] == name[-1] == '"' else name


def _ordered_names(content: list[Any] | dict[str, Any], source: str) -> list[Any]:
    if isinstance(content, list):
        return content
    if all(key.isdigit() for key in content):
        by_number = [(key, name) for key, name in content.items()]
    else:
        by_number = [(number, name) for name, number in content.items()]
    if not all(isinstance(number, int) or str(number).isdigit() for number, _ in by_number):
        raise ValueError(
            f"{source} must hold class names: a JSON list, an object of names and numbers, or one a line"
        )
    in_order = sorted((int(number), name) for number, name in by_number)
    check_numbers([number for number, _ in in_order], source)
    return [name for _, name in in_order]


def check_numbers(numbers: Sequence[int], source: str) -> None:
    """Raise ValueError, with the cure, unless the class numbers (sorted, each once) are 0, 1, 2,
    ... without a gap.
    """
    if list(numbers) == list(range(len(numbers))):
        return
    missing = sorted(set(range(max(numbers, default=-1) + 1)) - set(numbers))
    if missing == [0] and len(set(numbers)) == len(numbers):
        cure = "they begin at 1: take 1 from each"
    elif missing:
        cure = f"no class has number {', '.join(map(str, missing[:5]))}: number them anew, without a gap"
    else:
        cure = "a number stands for two of them"
    raise ValueError(
        f"{source}: the classes must be numbered 0 to {len(numbers) - 1}, each number once; {cure}"
    )


def name_numbers(
    listed: Sequence[tuple[str, int]],
    names_file: Path | None,
    source: str,
    *,
    folders_may_name: bool = True,
) -> list[str]:
    """Names for class numbers: from a file, else from the folders where each has one of its own,
    else `class 0`, ...

    Args:
        listed: the folder and the class number of every clip, of all splits.
        names_file: a file of class names (`read_class_names`), or None.
        source: where the numbers are from, for error messages.
        folders_may_name: whether the clips of one folder are of one class.

    Raises:
        ValueError: a number has no name in the file; without a file, the numbers do not go from 0
            on without a gap.
    """
    numbers = sorted({number for _, number in listed})
    if names_file is not None:
        names = read_class_names(names_file)
        if numbers and numbers[-1] >= len(names):
            cure = (
                "; they begin at 1: take 1 from each"
                if numbers == list(range(1, len(names) + 1))
                else ""
            )
            raise ValueError(
                f"{source}: class numbers go up to {numbers[-1]}, but {names_file} names {len(names)}{cure}"
            )
        return names
    check_numbers(numbers, source)
    folders: list[set[str]] = [set() for _ in numbers]
    for folder, number in listed:
        folders[number].add(folder)
    names = [next(iter(found)) if len(found) == 1 else "" for found in folders]
    if folders_may_name and all(names) and len(set(names)) == len(names):
        return names
    return [f"class {number}" for number in numbers]
