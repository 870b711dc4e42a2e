#!/usr/bin/env python
"""Write docs/api.md: every public name with its signature and what its docstring says.

    python scripts/api_page.py

Which names are public is not listed here but found:

1. what `hf_timesformer` exports (`__all__`);
2. what README.md, the pages in docs/ and the notebook import or name in full, as in
   `hf_timesformer.video.decoding.decode_video`;
3. the classes of this package that those take, return, hold or raise.

The rest of the package may change between versions. `tests/test_api_page.py` fails where the page
is old, or where a docstring does not say what somebody needs who calls the function.
"""

import dataclasses
import enum
import functools
import importlib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
PACKAGE = "hf_timesformer"
# The folders and files of the package in the order of the page, with what each is for.
TITLES = {
    "model": "The network",
    "video": "From a video to the network's input",
    "inference": "Classify",
    "data": "Data sets",
    "training": "Train",
    "evaluation": "Evaluate",
    "timeline": "Long videos",
    "visualization": "See what it looks at",
    "conversion": "In from elsewhere, and out",
    "hub": "Publish",
}
HEAD = """# Every public name

Public is what `import hf_timesformer` gives, what the README, these pages and the notebook use, and the classes that
those take, return or raise. Everything else may change between versions. This page is written from the docstrings by
`python scripts/api_page.py`, and a test fails where it is old.
"""


@functools.cache
def public_objects() -> dict[str, Any]:
    """Every public name, `module.name`, and what it names; in the order of the page."""
    objects = _exported() | _named_in_the_pages()
    known = list(objects.values())
    for value in known:  # grows while we go through it
        for kind in _classes_used_by(value):
            if not any(kind is other for other in known):
                known.append(kind)
                objects[f"{kind.__module__}.{kind.__name__}"] = kind
    return dict(sorted(objects.items(), key=lambda item: _place(*item)))


def _exported() -> dict[str, Any]:
    package = importlib.import_module(PACKAGE)
    return {f"{PACKAGE}.{name}": getattr(package, name) for name in package.__all__}


def _named_in_the_pages() -> dict[str, Any]:
    """What the pages import, or name in full, but modules and what the package exports itself."""
    exported = _exported().values()
    found = {}
    for text in _texts():
        for module, names in re.findall(r"from (hf_timesformer[\w.]*) import (\([^)]*\)|.*)", text):
            plain = re.sub(r"#.*", "", names)
            for name in re.findall(r"\w+", plain):
                found[f"{module}.{name}"] = getattr(importlib.import_module(module), name, None)
        for path in re.findall(r"`(hf_timesformer\.[\w.]+\.\w+)`", text):
            module, _, name = path.rpartition(".")
            found[path] = getattr(importlib.import_module(module), name)
    return {
        path: value
        for path, value in found.items()
        if callable(value) and not any(value is other for other in exported)
    }


def _texts() -> Iterator[str]:
    """README, pages and the cells of the notebook."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        if page != PAGE:
            yield page.read_text(encoding="utf-8")
    for notebook in sorted((ROOT / "docs").glob("*.ipynb")):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            yield "".join(cell["source"])


def _classes_used_by(value: Any) -> Iterator[type]:
    """Classes of this package in the annotations of a function, or of a class' fields, arguments
    and methods, and the errors that it says it raises.
    """
    functions = [value]
    words: list[tuple[str, str]] = []  # the module where a name is looked up, and the name
    if inspect.isclass(value):
        functions = [*own_methods(value).values()]
        functions += [vars(value)["__init__"]] if "__init__" in vars(value) else []
        fields = vars(value).get("__annotations__", {})
        words += [(value.__module__, word) for text in fields.values() for word in _words(text)]
    for function in map(inspect.unwrap, functions):
        signature = inspect.signature(function)
        annotations = [p.annotation for p in signature.parameters.values()]
        for annotation in (*annotations, signature.return_annotation):
            words += [(function.__module__, word) for word in _words(annotation)]
        raised = re.findall(r"\b(\w+Error)\b", inspect.getdoc(function) or "")
        words += [(function.__module__, word) for word in raised]
    for module, word in words:
        kind = getattr(sys.modules[module], word, None)
        ours = inspect.isclass(kind) and kind.__module__.startswith(PACKAGE)
        if ours and not issubclass(kind, dict):  # dicts of settings: their class tells of them
            yield kind


def _words(annotation: Any) -> list[str]:
    """The names in an annotation: `list[Segment] | None` -> `["list", "Segment", "None"]`."""
    if isinstance(annotation, type) and not getattr(annotation, "__args__", ()):
        return [annotation.__name__]
    return re.findall(r"\b(?!_)\w+", str(annotation))


def folder_of(value: Any) -> str:
    """The folder of the package that something lives in, or its file: `model`, `inference`."""
    return value.__module__.split(".")[1]


def _place(path: str, value: Any) -> tuple:
    """To sort by: folders as in `TITLES`, there what the package exports first, errors last."""
    is_error = inspect.isclass(value) and issubclass(value, Exception)
    return list(TITLES).index(folder_of(value)), path.count(".") != 1, is_error, path


def own_methods(cls: type) -> dict[str, Any]:
    """The documented methods that a class, or a base of this package, adds to what it inherits from
    elsewhere.
    """
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if not base.__module__.startswith("hf_timesformer"):
            continue
        for name, value in vars(base).items():
            function = inspect.unwrap(getattr(value, "__func__", value))
            if name.startswith("_") or not inspect.isfunction(function) or name in found:
                continue
            inherited = any(
                hasattr(other, name)
                for other in cls.__mro__
                if not other.__module__.startswith("hf_timesformer")
            )
            if not inherited:
                found[name] = function
    return found


def signature_of(value: Any) -> str:
    """A signature without annotations: types are in the docstring's words or in the source.

    Of a class whose arguments are its fields, only its own: those that it inherits change with the
    version of transformers.
    """
    parameters = []
    own = vars(value).get("__annotations__", {}) if dataclasses.is_dataclass(value) else None
    for parameter in inspect.signature(value).parameters.values():
        if own is not None and parameter.name not in own:
            continue
        default = parameter.default
        if default is not parameter.empty and not isinstance(
            default, (bool, int, float, str, tuple, type(None), enum.Enum)
        ):
            # an object's repr may hold an address or a path
            parameter = parameter.replace(default=_Written("..."))
        parameters.append(parameter.replace(annotation=parameter.empty))
    return str(inspect.Signature([p for p in parameters if p.name != "self"]))


class _Written:
    """Stands in a signature as it is written."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def describe(name: str, value: Any, level: str) -> str:
    """One name as a section. Of a class that inherits its arguments the signature is left out."""
    inherits = inspect.isclass(value) and not (
        "__init__" in vars(value) or dataclasses.is_dataclass(value)
    )
    call = "" if inherits or _has_many_arguments(value) else signature_of(value)
    lines = [f"{level} {name}", "", f"```text\n{name.rpartition('.')[2]}{call}\n```", ""]
    return "\n".join([*lines, as_markdown(doc_of(value)), ""])


def _has_many_arguments(value: Any) -> bool:
    """Whether it is a class like transformers' `TrainingArguments`, which takes over a hundred."""
    is_typed_dict = inspect.isclass(value) and issubclass(value, dict)
    return is_typed_dict or (
        inspect.isclass(value) and len(inspect.signature(value).parameters) > 30
    )


def doc_of(value: Any) -> str:
    """The docstring; of a class with that of its `__init__`, where it has one of its own."""
    doc = inspect.getdoc(value) or ""
    made = vars(value).get("__init__") if inspect.isclass(value) else None
    own = made is not None and not dataclasses.is_dataclass(value) and made.__doc__
    return f"{doc}\n\n{inspect.getdoc(made)}" if own else doc


def as_markdown(doc: str) -> str:
    """A docstring as Markdown: `Args:` and its like as lists, indented blocks as code, and the rest
    as paragraphs and lists.
    """
    parts = []
    for block in re.split(r"\n\s*\n", doc):
        title, _, rest = block.partition("\n")
        if re.fullmatch(r"(Args|Attributes|Raises):", title):
            parts.append(f"**{title}**\n\n{_as_list(textwrap.dedent(rest))}")
        elif re.fullmatch(r"(Returns|Yields):", title):
            parts.append(f"**{title}** {' '.join(rest.split())}")
        elif block.startswith("    "):
            parts.append(f"```text\n{textwrap.dedent(block)}\n```")
        elif block.startswith("* "):
            parts.append(_as_list(re.sub(r"^\* ", "", block, flags=re.M)))
        elif block:
            parts.append(" ".join(block.split()))
    return "\n\n".join(parts)


def _as_list(text: str) -> str:
    """A list item for each line that is not indented, joined with the indented ones after it."""
    items: list[str] = []
    for line in text.splitlines():
        if line.startswith(" ") and items:
            items[-1] += f" {line.strip()}"
        else:
            items.append(line.strip())
    return "\n".join(f"* {item}" for item in items)


def make_page() -> str:
    """The whole page: an index, then a section for each part of the package."""
    sections: dict[str, dict[str, Any]] = {}
    for path, value in public_objects().items():
        sections.setdefault(TITLES[folder_of(value)], {})[path] = value
    parts = [HEAD]
    for title, objects in sections.items():
        names = ", ".join(f"[{path.rpartition('.')[2]}](#{anchor(path)})" for path in objects)
        parts.append(f"* {title}: {names}")
    parts.append("")
    for title, objects in sections.items():
        parts.append(f"## {title}\n")
        for path, value in objects.items():
            parts.append(describe(path, value, "###"))
            if inspect.isclass(value):
                parts += [
                    describe(f"{value.__name__}.{name}", method, "####")
                    for name, method in methods_to_show(value).items()
                ]
    return "\n".join(parts).rstrip() + "\n"


def methods_to_show(cls: type) -> dict[str, Callable]:
    """Its own methods, but those that a public class above it shows already."""
    above = [base for base in cls.__mro__[1:] if any(base is v for v in public_objects().values())]
    shown = {name for base in above for name in own_methods(base)}
    return {name: value for name, value in own_methods(cls).items() if name not in shown}


def anchor(heading: str) -> str:
    """What GitHub calls the place of a heading."""
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # in place of scripts/, whose evaluate.py would hide the package
    PAGE.write_text(make_page(), encoding="utf-8")
    print(f"wrote {PAGE}")
