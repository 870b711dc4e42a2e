"""What is private in transformers still does what `video/upstream_names.py` takes it to do."""

import ast
import inspect
from pathlib import Path

import pytest
from transformers import VideoMAEVideoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

import hf_timesformer
from hf_timesformer.video import upstream_names
from hf_timesformer.video.classification_pipeline import TimeSformerPipeline
from hf_timesformer.video.videomae_processor_file import VideoMAEProcessorFile


FOLDER = Path(upstream_names.__file__).parent


@pytest.mark.parametrize(
    ("base", "name"),
    [(base, name) for base, names in upstream_names.OVERRIDDEN.items() for name in names],
)
def test_what_is_overridden_is_still_called(base, name):
    sources = [inspect.getsource(inspect.getmodule(kind)) for kind in base.__mro__[:-1]]
    assert hasattr(base, name)
    assert any(f"self.{name}(" in source for source in sources)


def test_nothing_else_private_is_called_of_a_base():
    listed = {name for names in upstream_names.OVERRIDDEN.values() for name in names}
    assert private_calls_of_super(FOLDER) <= listed


def private_calls_of_super(folder: Path) -> set[str]:
    """Every `_name` of a `super()._name` in the folder's files."""
    return {
        node.attr
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node.value) == "super()"
    }


def test_the_pipeline_of_the_task_is_ours():
    assert hf_timesformer.__version__  # importing the package puts it there
    task = PIPELINE_REGISTRY.check_task("video-classification")[1]
    assert task["impl"] is TimeSformerPipeline


def test_the_stand_in_passes_for_a_class_of_transformers():
    assert VideoMAEProcessorFile.__module__ == VideoMAEVideoProcessor.__module__
