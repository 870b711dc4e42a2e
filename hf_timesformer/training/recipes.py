"""Recipes: small JSON files of argument values, for `--recipe`; what the command line says wins."""

import difflib
import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def find_recipe(name: str, folder: Path) -> Path:
    """The file of a recipe given by name or path. Raises ValueError that lists the names there are."""
    candidates = [Path(name), folder / f"{name}.json"]
    for path in candidates:
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in folder.glob("*.json")))
    raise ValueError(f"recipe {name!r} is neither a file nor one of: {names}")


def read_recipe(path: Path, known: Sequence[str]) -> dict[str, Any]:
    """Argument values of a recipe file, without its `description`. Raises ValueError for an unknown argument."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"recipe {path} is no JSON: {error}") from error
    values.pop("description", None)
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"recipe {path} sets {name!r}, which is no argument{hint}")
    return values


def given_on_command_line(parser: ArgumentParser, argv: Sequence[str]) -> set[str]:
    """Names of the arguments that `argv` sets."""
    flags = {argument.split("=", 1)[0] for argument in argv if argument.startswith("--")}
    return {action.dest for action in parser._actions if flags & set(action.option_strings)}


def apply_recipe(parser: ArgumentParser, argv: Sequence[str], folder: Path, default: str | None = None) -> str | None:
    """Make the values of the recipe that `argv` names the defaults of `parser`; what it set, in one line to print.

    Without `--recipe`, `default` is used; with `--recipe none`, none.
    """
    chooser = ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--recipe", default=default)
    name = chooser.parse_known_args(list(argv))[0].recipe
    if name is None or name.lower() == "none":
        return None
    path = find_recipe(name, folder)
    values = read_recipe(path, [action.dest for action in parser._actions])
    given = given_on_command_line(parser, argv)
    if "model" in given:
        values.pop("from_vit", None)  # one of the two is what training starts from
    parser.set_defaults(**values)
    used = ", ".join(f"{key}={value}" for key, value in values.items() if key not in given)
    overridden = ", ".join(key for key in values if key in given)
    return f"recipe {path.stem} sets {used}" + (f"; the command line sets {overridden} instead" if overridden else "")
