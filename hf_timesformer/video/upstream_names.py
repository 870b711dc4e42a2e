"""What is private, or not promised, in transformers, for all of the folder of video.

As in `model/upstream.py`: checked with the version in `CHECKED`, and
`tests/video/test_upstream_names.py` fails where a release renames one.
"""

from transformers.pipelines import PIPELINE_REGISTRY, Pipeline
from transformers.utils import PushToHubMixin
from transformers.video_processing_utils import BaseVideoProcessor


CHECKED = {"transformers": "5.24.0"}

# Methods that our classes put something before or after. Where a release calls one by another name,
# ours is never called, and nothing else tells.
OVERRIDDEN: dict[type, tuple[str, ...]] = {
    BaseVideoProcessor: ("_validate_preprocess_kwargs",),
    PushToHubMixin: ("_upload_modified_files",),
    Pipeline: ("_sanitize_parameters",),
}


def stand_for(own: type, theirs: type) -> None:
    """Make `own` pass for a class of transformers where an Auto class looks whose it is.

    With `trust_remote_code=True` the Auto classes prefer a repository's code to a class of
    transformers, but a class of anybody else's to that code. They go by the name of its module.
    """
    own.__module__ = theirs.__module__


def make_pipeline(task: str, implementation: type[Pipeline]) -> None:
    """Let `pipeline(task)` make `implementation`: `register_pipeline` would forget the task's
    models."""
    PIPELINE_REGISTRY.supported_tasks[task]["impl"] = implementation


__all__ = ["CHECKED", "OVERRIDDEN", "make_pipeline", "stand_for"]
