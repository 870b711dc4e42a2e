#!/usr/bin/env python
"""Write docs/api.md: every public name with its signature and what its docstring says.

    python scripts/api_page.py

Public is what `PUBLIC` lists: the names that `hf_timesformer` exports, and those that the pages of
docs/ use or that a program would. The rest of the package may change between versions.
`tests/test_api_page.py` fails where the page is old, or where a docstring does not say what
somebody needs who calls the function.
"""

import dataclasses
import enum
import importlib
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any


PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
PUBLIC = {
    "The network": {
        "hf_timesformer": (
            "TimeSformerConfig",
            "TimeSformerPreTrainedModel",
            "TimeSformerModel",
            "TimeSformerForVideoClassification",
        ),
    },
    "From a video to the network's input": {
        "hf_timesformer": ("TimeSformerVideoProcessor", "TimeSformerImageProcessor"),
        "hf_timesformer.video.decoding": ("decode_video", "probe_video"),
        "hf_timesformer.video.encoding": ("write_video",),
        "hf_timesformer.video.sampling": ("sample_indices",),
    },
    "Classify": {
        "hf_timesformer.inference": ("load_model_and_processor", "make_views", "classify"),
    },
    "Data sets": {
        "hf_timesformer": (
            "load_videos",
            "TrainingTransform",
            "EvaluationTransform",
            "ClipAugmentation",
            "ClipCollator",
        ),
        "hf_timesformer.data.synthetic": ("make_motion_dataset", "motion_frames"),
    },
    "Train": {
        "hf_timesformer": ("VideoTrainer", "VideoTrainingArguments", "ClipMetrics"),
    },
    "Evaluate": {
        "hf_timesformer.evaluation.accuracy": (
            "classification_metrics",
            "multi_label_metrics",
            "regression_metrics",
        ),
        "hf_timesformer.evaluation.features": ("read_features",),
        "hf_timesformer.evaluation.neighbours": ("knn_accuracy",),
    },
    "Long videos": {
        "hf_timesformer.timeline.labelling": ("LabelSettings", "label_video"),
        "hf_timesformer.timeline.segments": ("SegmentRules", "Segment"),
        "hf_timesformer.timeline.stream_classifier": ("StreamClassifier", "WindowPrediction"),
    },
    "See what it looks at": {
        "hf_timesformer.visualization.pictures": ("explain", "contact_sheet"),
        "hf_timesformer.visualization.rollout": ("attention_rollout",),
    },
    "In from elsewhere, and out": {
        "hf_timesformer.conversion.official_checkpoint": ("convert_checkpoint",),
        "hf_timesformer.conversion.onnx_export": ("export_onnx",),
        "hf_timesformer.conversion.openvino_export": ("export_openvino",),
        "hf_timesformer.conversion.load_exported": ("load_exported",),
        "hf_timesformer.hub.publish": ("push_folder",),
        "hf_timesformer.hub.space": ("export_space",),
    },
}
HEAD = """# Every public name

Written from the docstrings by `python scripts/api_page.py`; a test fails where this page is old. What is not here may
change between versions.
"""


def public_objects() -> dict[str, Any]:
    """Every public name, `module.name`, and what it names."""
    return {
        f"{module}.{name}": getattr(importlib.import_module(module), name)
        for modules in PUBLIC.values()
        for module, names in modules.items()
        for name in names
    }


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
    many = inspect.isclass(value) and len(inspect.signature(value).parameters) > 30
    call = "" if inherits or many else signature_of(value)
    lines = [f"{level} {name}", "", f"```text\n{name.rpartition('.')[2]}{call}\n```", ""]
    lines += [as_markdown(inspect.getdoc(value) or ""), ""]
    return "\n".join(lines)


def as_markdown(doc: str) -> str:
    """A docstring as Markdown. What is indented from its first line on is code; else an indented
    line goes on with its paragraph.
    """
    parts = []
    for block in re.split(r"\n\s*\n", doc):
        if block.startswith("    "):
            parts.append(f"```text\n{textwrap.dedent(block)}\n```")
        elif block:
            text = " ".join(block.split())
            parts.append(re.sub(r"^(Args|Returns|Raises|Yields):", r"**\1:**", text))
    return "\n\n".join(parts)


def make_page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, modules in PUBLIC.items():
        parts.append(f"## {title}\n")
        for module, names in modules.items():
            for name in names:
                value = getattr(importlib.import_module(module), name)
                parts.append(describe(f"{module}.{name}", value, "###"))
                if inspect.isclass(value):
                    parts += [
                        describe(f"{name}.{method}", function, "####")
                        for method, function in own_methods(value).items()
                    ]
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
    print(f"wrote {PAGE}")
