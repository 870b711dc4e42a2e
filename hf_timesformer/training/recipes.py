"""Recipes: small JSON files of argument values, for `--recipe`; what the command line says wins.

A recipe has a `description` of one line. It may name another as its `base`: then it holds only what
differs.
"""

import difflib
import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any


RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def list_recipes(folder: Path = RECIPES) -> dict[str, str]:
    """The description of each recipe in `folder` by its name."""
    return {path.stem: _read(path).get("description", "") for path in sorted(folder.glob("*.json"))}


def find_recipe(name: str, *folders: Path) -> Path:
    """The file of a recipe given by path, or by name in one of `folders` or among the package's
    own.

    Raises ValueError that lists the names there are.
    """
    candidates = [Path(name), *(folder / f"{name}.json" for folder in (*folders, RECIPES))]
    for path in candidates:
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.json")))
    raise ValueError(f"recipe {name!r} is neither a file nor one of: {names}")


def read_recipe(path: Path) -> dict[str, Any]:
    """Argument values of a recipe file and of its bases, without `description` and `base`.

    A base is a path, or a name beside the recipe or among the package's own. Raises ValueError for
    what is no recipe, and for recipes that are based on each other.
    """
    chain = [path]
    values = _read(path)
    while "base" in values:
        base = find_recipe(values.pop("base"), chain[-1].parent)
        if base in chain:
            names = " -> ".join(step.stem for step in [*chain, base])
            raise ValueError(f"recipes cannot be based on each other: {names}")
        chain.append(base)
        values = _read(base) | values  # a recipe wins over its base
    values.pop("description", None)
    return values


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"recipe {path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"recipe {path} should hold a JSON object, not {type(values).__name__}")
    return values


def check_names(values: dict[str, Any], known: Sequence[str], path: Path) -> None:
    """Raise ValueError for a value that is of no argument in `known`."""
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"recipe {path} sets {name!r}, which is no argument{hint}")


def given_on_command_line(parser: ArgumentParser, argv: Sequence[str]) -> set[str]:
    """Names of the arguments that `argv` sets."""
    flags = {argument.split("=", 1)[0] for argument in argv if argument.startswith("--")}
    return {action.dest for action in parser._actions if flags & set(action.option_strings)}


def apply_recipe(
    parser: ArgumentParser, argv: Sequence[str], default: str | None = None
) -> str | None:
    """Make the values of the recipe that `argv` names the defaults of `parser`; what it set, in one
    line to print.

    Without `--recipe`, `default` is used; with `--recipe none`, none. Raises ValueError for a
    recipe that cannot be.
    """
    chooser = ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--recipe", default=default)
    name = chooser.parse_known_args(list(argv))[0].recipe
    if name is None or name.lower() == "none":
        return None
    path = find_recipe(name)
    values = read_recipe(path)
    check_names(values, [action.dest for action in parser._actions], path)
    given = given_on_command_line(parser, argv)
    if "model" in given:
        values.pop("from_vit", None)  # one of the two is what training starts from
    parser.set_defaults(**values)
    used = ", ".join(f"{key}={value}" for key, value in values.items() if key not in given)
    overridden = ", ".join(key for key in values if key in given)
    return f"recipe {path.stem} sets {used}" + (
        f"; the command line sets {overridden} instead" if overridden else ""
    )
