"""docs/api.md is as the docstrings are, and the docstrings say what somebody needs who calls:
arguments by name, shapes of tensors, units of numbers, the errors that are raised, and where a
method comes from.

What is asked of a docstring is read from the code: the signature says which arguments there are and
which are tensors or plain numbers, the syntax tree which errors it raises. Shapes, errors and the
form are asked of every public function of the package, the rest of those on the page.
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

# in code: `(batch, frames, 3)`, `(T,)`, `(..., d)`, `(...)`, `cls (b, 1, d)`, `(..., d) -> (..., e)`
SHAPE = re.compile(r"\(\[?[\w.][^()]*,[^()]*\)|\(\.\.\.\)")
UNITS = re.compile(
    r"second|frame|pixel|share|score|probabilit|percent|degree|byte|megabyte|epoch|step|rate|times|power|weight|"
    r"between 0 and 1|from 0 to 1|factor|deviation|temperature"
)
SOURCES = re.compile(r"paper|official|arXiv|stock|transformers|\b(19|20)\d\d\b")
# Folders that hold what papers, the official code or transformers invented: a docstring there says
# whose it is, but for what is ours.
SOURCED_FOLDERS = {"model", "conversion", "visualization", "evaluation", "training"}
OURS = {
    "hf_timesformer.ClipMetrics",
    "hf_timesformer.TimeSformerPreTrainedModel",
    "hf_timesformer.conversion.exported_classifier.ExportedClassifier",
    "hf_timesformer.conversion.load_exported.load_exported",
    "hf_timesformer.conversion.onnx_export.export_onnx",
    "hf_timesformer.evaluation.accuracy.multi_label_metrics",
    "hf_timesformer.evaluation.accuracy.regression_metrics",
    "hf_timesformer.evaluation.features.read_features",
    "hf_timesformer.evaluation.metric.VideoClassificationMetric",
    "hf_timesformer.evaluation.neighbours.knn_accuracy",
    "hf_timesformer.evaluation.prediction_file.fuse",
    "hf_timesformer.evaluation.prediction_file.read_predictions",
    "hf_timesformer.evaluation.predictions.Predictions",
    "hf_timesformer.evaluation.report.confusion_matrix",
    "hf_timesformer.training.optimization.freeze_parameters",
    "hf_timesformer.training.recipes.list_recipes",
    "hf_timesformer.training.recipes.read_recipe",
    "hf_timesformer.training.stopping.RunStopped",
    "hf_timesformer.visualization.pictures.Explanation",
    "hf_timesformer.visualization.pictures.contact_sheet",
    "hf_timesformer.visualization.pictures.write_attention_video",
    "hf_timesformer.visualization.rollout.Recorded",
}
# and two of folders whose other names are ours
SOURCED = {
    "hf_timesformer.TimeSformerVideoProcessor",
    "hf_timesformer.video.sampling.sample_indices",
}


def functions() -> Iterator[tuple[str, Callable, str]]:
    """Every public function and own method, with its docstring; a class stands for what makes it."""
    for name, value in api_page.public_objects().items():
        if not inspect.isclass(value):
            yield name, value, inspect.getdoc(value) or ""
            continue
        doc = inspect.getdoc(value) or ""
        made = vars(value).get("__init__")
        is_ours = inspect.isfunction(made) and made.__module__.startswith("hf_timesformer")
        # the fields of data classes are asked for by another test
        if is_ours and not dataclasses.is_dataclass(value):
            yield name, made, f"{doc}\n{made.__doc__ or ''}"
        for method, function in api_page.own_methods(value).items():
            # what a method works on is in the docstring of its class
            yield f"{name}.{method}", function, inspect.getdoc(function) or ""


def complaints(function: Callable, doc: str) -> list[str]:
    """What the docstring leaves unsaid."""
    found = [] if doc.strip() else ["no docstring"]
    code = inspect.unwrap(function)
    signature = inspect.signature(code)
    arguments = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.name not in ("self", "cls")
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    if len(arguments) > 1 and "\nArgs:\n" not in doc:
        found.append("has several arguments and no list of them (Args:)")
    for parameter in arguments:
        if not re.search(rf"\b{parameter.name}\b", doc):
            found.append(f"does not name its argument {parameter.name}")
        if is_number(parameter.annotation) and not UNITS.search(doc):
            found.append(f"tells no unit of {parameter.name}")
    annotations = [p.annotation for p in signature.parameters.values()]
    tensors = [a for a in (*annotations, signature.return_annotation) if is_tensor(a)]
    if tensors and not tells_a_shape(doc):
        found.append("tells no shape of its tensors")
    for error in sorted(raised(code)):
        if not re.search(rf"\b{error}\b", doc):
            found.append(f"does not say that it raises {error}")
    return found


def tells_a_shape(doc: str) -> bool:
    """Whether a shape stands in the docstring, as code: "(2, or 3)" in a sentence is none."""
    return any(SHAPE.search(code) for code in doc.split("`")[1::2])


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
        asked = api_page.folder_of(value) in SOURCED_FOLDERS and name not in OURS
        if asked or name in SOURCED:
            assert SOURCES.search(doc), f"{name} does not say where it comes from"
    assert set(api_page.public_objects()) >= OURS | SOURCED, "a name that there is not"


def test_the_page_is_as_the_docstrings_are() -> None:
    expected = api_page.make_page()
    assert (ROOT / "docs/api.md").read_text(encoding="utf-8") == expected, (
        "run `python scripts/api_page.py`"
    )


def test_all_that_the_package_exports_is_on_the_page() -> None:
    names = set(api_page.public_objects())
    assert {f"hf_timesformer.{name}" for name in hf_timesformer.__all__} <= names


def test_what_the_pages_name_is_public() -> None:
    """Found, not listed: imports of the pages, full names in them, and classes that those use."""
    names = set(api_page.public_objects())
    for name in (
        "video.decoding.decode_video",  # imported by docs/python.md
        "visualization.rollout.attention_rollout",  # named there
        "visualization.pictures.write_attention_video",  # imported by the notebook
        "visualization.pictures.Explanation",  # what that takes
        "video.decoding_limits.VideoDecodeError",  # what `decode_video` raises
    ):
        assert f"hf_timesformer.{name}" in names, name


Definition = tuple[str, ast.FunctionDef, ast.ClassDef | None]


def is_public(name: str) -> bool:
    """Whether somebody may call it: `fit`, and what a language construct calls, `__iter__`."""
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def definitions() -> Iterator[Definition]:
    """Every public function of the package and method of a public class: where, itself, its class."""
    for path in sorted((ROOT / "hf_timesformer").rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield f"{where} {node.name}", node, None
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and is_public(method.name):
                        yield f"{where} {node.name}.{method.name}", method, node


def test_every_record_of_tensors_says_their_shapes() -> None:
    for path in sorted((ROOT / "hf_timesformer").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            fields = [f for f in node.body if isinstance(f, ast.AnnAssign)]
            tensors = [
                field.target.id
                for field in fields
                if is_tensor(ast.unparse(field.annotation)) and is_public(field.target.id)
            ]
            if tensors:
                assert tells_a_shape(ast.get_docstring(node) or ""), (path, node.name, tensors)


def unsaid(function: ast.FunctionDef, cls: ast.ClassDef | None) -> list[str]:
    """What the docstring of any public function leaves unsaid; that of its class counts, too."""
    own = ast.get_docstring(function) or ""
    doc = own + ((ast.get_docstring(cls) or "") if cls is not None else "")
    arguments = function.args.args + function.args.kwonlyargs
    annotations = [a.annotation for a in arguments] + [function.returns]
    texts = [ast.unparse(annotation) for annotation in annotations if annotation is not None]
    found = []
    if any(is_tensor(text) for text in texts) and not tells_a_shape(doc):
        found.append("tells no shape of its tensors")
    tried = {
        id(n)
        for t in ast.walk(function)
        if isinstance(t, ast.Try)
        for b in t.body
        for n in ast.walk(b)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and id(node) not in tried:
            error = ast.unparse(node.exc.func).rpartition(".")[2]
            if error.endswith("Error") and error not in doc:
                found.append(f"does not say that it raises {error}")
    if re.search(r"^(Args|Returns|Raises|Yields|Attributes):.", own, re.M):
        found.append("begins a list on the line of its title")
    listed = re.search(r"^Args:\n(.*?)(?:\n\n|\Z)", own, re.M | re.S)
    names = {a.arg for a in (*arguments, function.args.vararg, function.args.kwarg) if a}
    for item in (
        re.findall(r"^    \**(\w[\w*, ]*?)(?: \(.*?\))?:", listed[1], re.M) if listed else []
    ):
        unknown = {word.strip(" *") for word in item.split(",")} - names
        found += [f"lists {word}, which is no argument" for word in sorted(unknown)]
    return sorted(set(found))


def test_every_public_function_says_shapes_and_errors_and_lists_what_it_takes() -> None:
    missing = {where: unsaid(function, cls) for where, function, cls in definitions()}
    commands = "hf_timesformer/cli/"  # whose functions turn errors into a line for a person
    found = {where: said for where, said in missing.items() if said and commands not in where}
    assert found == {}


def scale(clips: torch.Tensor, seconds: float) -> torch.Tensor:
    """Stretch clips."""
    if seconds <= 0:
        raise ValueError(seconds)
    return clips * seconds


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        ("", ["no docstring", "Args", "clips", "seconds", "unit", "shape", "ValueError"]),
        ("A.\n\nArgs:\n    seconds: `(b, t)`", ["clips", "ValueError"]),
        ("A.\n\nArgs:\n    clips: for\n    seconds.\nRaises ValueError.", ["shape"]),
        ("The clips `(b, t)` for some seconds; raises ValueError.", ["Args"]),
        ("A.\n\nArgs:\n    clips: `(b, t)`\n    seconds: ...\nRaises ValueError.", []),
    ],
)
def test_a_planted_omission_is_found(doc: str, expected: list[str]) -> None:
    found = complaints(scale, doc)
    assert len(found) == len(expected), found
    assert all(any(word in said for said in found) for word in expected), found


def test_a_planted_omission_anywhere_in_the_package_is_found() -> None:
    code = """
def scale(clips: torch.Tensor, seconds: float) -> None:
    '''Stretch.

    Args: clips: what is stretched.
    '''
    raise ValueError("no")
"""
    (function,) = ast.parse(code).body
    assert len(unsaid(function, None)) == 3
    function.body[0].value.value = "A.\n\nArgs:\n    clip: `(b, t)`.\n\nRaises ValueError."
    assert unsaid(function, None) == ["lists clip, which is no argument"]
