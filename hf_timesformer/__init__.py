"""TimeSformer, complete and at home in Hugging Face Transformers.

Importing this package registers its classes with transformers' Auto classes for the model type
`"timesformer"`.
"""

import importlib
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    TimesformerVideoProcessor,
    VideoMAEConfig,
    VideoMAEVideoProcessor,
)

from .model.configuration_timesformer import TimeSformerConfig
from .model.modeling_timesformer import (
    TimeSformerForVideoClassification,
    TimeSformerModel,
    TimeSformerPreTrainedModel,
)
from .model.upstream import STOCK_BACKEND, make_names_known
from .video.classification_pipeline import TimeSformerPipeline
from .video.image_processing_timesformer import TimeSformerImageProcessor
from .video.upstream_names import make_pipeline
from .video.video_processing_timesformer import TimeSformerVideoProcessor
from .video.videomae_processor_file import VideoMAEProcessorFile


__version__ = "0.2.0"

AutoConfig.register("timesformer", TimeSformerConfig, exist_ok=True)
AutoModel.register(TimeSformerConfig, TimeSformerModel, exist_ok=True)
AutoModelForVideoClassification.register(
    TimeSformerConfig, TimeSformerForVideoClassification, exist_ok=True
)
# A file that we save names stock's class, which plain transformers knows. The Auto class looks for
# the name among what is registered first, and takes ours beside it; `backend="stock"` gives
# stock's.
AutoVideoProcessor.register(
    TimeSformerConfig,
    video_processor_classes={
        "torchvision": TimeSformerVideoProcessor,
        STOCK_BACKEND: TimesformerVideoProcessor,
    },
    exist_ok=True,
)
# The released checkpoints' files name VideoMAE's class: `VideoMAEProcessorFile` looks at the model
# beside such a file.
AutoVideoProcessor.register(
    VideoMAEConfig,
    video_processor_classes={
        "torchvision": VideoMAEProcessorFile,
        STOCK_BACKEND: VideoMAEVideoProcessor,
    },
    exist_ok=True,
)
AutoImageProcessor.register(
    TimeSformerConfig,
    image_processor_classes={"torchvision": TimeSformerImageProcessor},
    exist_ok=True,
)

# `pipeline("video-classification")` makes ours, which is stock's for every processor but our own.
make_pipeline("video-classification", TimeSformerPipeline)

make_names_known(TimeSformerModel.__name__, TimeSformerForVideoClassification.__name__)

# What training needs beside the model. Imported when it is asked for, since `datasets` and
# `Trainer` take seconds.
_LAZY = {
    "ClipAugmentation": "data.augmentation",
    "ClipCollator": "data.clips",
    "ClipMetrics": "training.objective",
    "EvaluationTransform": "data.transforms",
    "TrainingTransform": "data.transforms",
    "VideoTrainer": "training.trainer",
    "VideoTrainingArguments": "training.arguments",
    "load_videos": "data.dataset_factory",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ClipAugmentation",
    "ClipCollator",
    "ClipMetrics",
    "EvaluationTransform",
    "TimeSformerConfig",
    "TimeSformerForVideoClassification",
    "TimeSformerImageProcessor",
    "TimeSformerModel",
    "TimeSformerPreTrainedModel",
    "TimeSformerVideoProcessor",
    "TrainingTransform",
    "VideoTrainer",
    "VideoTrainingArguments",
    "load_videos",
]
