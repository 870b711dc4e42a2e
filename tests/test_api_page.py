"""docs/api.md is as the docstrings are, and the docstrings say what somebody needs who calls:
arguments by name, shapes of tensors, units of numbers, the errors that are raised, and where a
method comes from.

What is asked of a docstring is read from the code: the signature says which arguments there are and
which are tensors or plain numbers, the syntax tree which errors it raises.
"""

import ast
import dataclasses
import importlib.util
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hf_timesformer


ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("api_page", ROOT / "scripts/api_page.py")
api_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(api_page)

# `(batch, frames, 3)`, `(T,)`
SHAPE = re.compile(r"\(\[?\w[^()`]*,[^()`]*\)")
UNITS = re.compile(
    r"second|frame|pixel|share|score|probabilit|percent|degree|byte|megabyte|epoch|step|rate|times|power|weight|"
    r"between 0 and 1|from 0 to 1|factor|deviation|temperature"
)
SOURCES = re.compile(r"paper|official|arXiv|stock|transformers|et al")
# What is somebody else's method: its docstring says whose.
SOURCED = {
    "hf_timesformer.TimeSformerConfig",
    "hf_timesformer.TimeSformerModel",
    "hf_timesformer.TimeSformerForVideoClassification",
    "hf_timesformer.TimeSformerVideoProcessor",
    "hf_timesformer.video.sampling.sample_indices",
    "hf_timesformer.visualization.rollout.attention_rollout",
    "hf_timesformer.conversion.official_checkpoint.convert_checkpoint",
}


def functions() -> Iterator[tuple[str, Callable, str]]:
    """Every public function and own method, with its docstring; a class stands for what makes it."""
    for name, value in api_page.public_objects().items():
        if not inspect.isclass(value):
            yield name, value, inspect.getdoc(value) or ""
            continue
        doc = inspect.getdoc(value) or ""
        if "__init__" in vars(value) and not dataclasses.is_dataclass(value):
            made = vars(value)["__init__"]
            yield name, made, f"{doc}\n{inspect.getdoc(made) or ''}"
        for method, function in api_page.own_methods(value).items():
            # what a method works on is in the docstring of its class
            yield f"{name}.{method}", function, inspect.getdoc(function) or ""


def complaints(function: Callable, doc: str) -> list[str]:
    """What the docstring leaves unsaid."""
    found = [] if doc.strip() else ["no docstring"]
    code = inspect.unwrap(function)
    signature = inspect.signature(code)
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls") or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            continue
        if not re.search(rf"\b{parameter.name}\b", doc):
            found.append(f"does not name its argument {parameter.name}")
        if is_number(parameter.annotation) and not UNITS.search(doc):
            found.append(f"tells no unit of {parameter.name}")
    annotations = [p.annotation for p in signature.parameters.values()]
    tensors = [a for a in (*annotations, signature.return_annotation) if is_tensor(a)]
    if tensors and not SHAPE.search(doc):
        found.append("tells no shape of its tensors")
    for error in sorted(raised(code)):
        if not re.search(rf"\b{error}\b", doc):
            found.append(f"does not say that it raises {error}")
    return found


def is_tensor(annotation: Any) -> bool:
    """Whether a value is a tensor or an array, or a tuple or list of them."""
    text = str(annotation)
    return annotation in (torch.Tensor, np.ndarray) or "Tensor" in text or "ndarray" in text


def is_number(annotation: Any) -> bool:
    """Whether a value is measured in something: floats are, counts name what they count."""
    return bool(re.search(r"\bfloat\b", str(getattr(annotation, "__name__", annotation))))


def raised(function: Callable) -> set[str]:
    """The errors that the body of a function raises by name."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError):  # made by a decorator
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found.add(ast.unparse(node.exc.func).rpartition(".")[2])
    return found


def test_every_public_docstring_says_what_its_caller_needs() -> None:
    missing = {name: complaints(function, doc) for name, function, doc in functions()}
    assert {name: said for name, said in missing.items() if said} == {}


def test_every_class_and_every_borrowed_method_is_documented() -> None:
    for name, value in api_page.public_objects().items():
        doc = inspect.getdoc(value) or ""
        own = value.__doc__ if inspect.isclass(value) else doc
        assert (own or "").strip(), name
        if dataclasses.is_dataclass(value) and not name.endswith("Arguments"):
            # the fields of arguments carry their help; those of other records stand in the docstring
            for field in vars(value).get("__annotations__", {}):
                assert re.search(rf"\b{field}\b", doc), f"{name} does not tell of {field}"
        if name in SOURCED:
            assert SOURCES.search(doc), f"{name} does not say where it comes from"


def test_the_page_is_as_the_docstrings_are() -> None:
    expected = api_page.make_page()
    assert (ROOT / "docs/api.md").read_text(encoding="utf-8") == expected, (
        "run `python scripts/api_page.py`"
    )


def test_all_that_the_package_exports_is_on_the_page() -> None:
    names = set(api_page.public_objects())
    assert {f"hf_timesformer.{name}" for name in hf_timesformer.__all__} <= names


def scale(clips: torch.Tensor, seconds: float) -> torch.Tensor:
    """Stretch clips."""
    if seconds <= 0:
        raise ValueError(seconds)
    return clips * seconds


@pytest.mark.parametrize(
    ("doc", "unsaid"),
    [
        ("", ["no docstring", "clips", "seconds", "unit", "shape", "ValueError"]),
        ("Clips `(b, t)` for some seconds.", ["clips", "ValueError"]),
        ("The clips for some seconds; raises ValueError.", ["shape"]),
        ("The clips `(b, t)` for some seconds; raises ValueError.", []),
    ],
)
def test_a_planted_omission_is_found(doc: str, unsaid: list[str]) -> None:
    found = complaints(scale, doc)
    assert len(found) == len(unsaid), found
    assert all(any(word in said for said in found) for word in unsaid), found
