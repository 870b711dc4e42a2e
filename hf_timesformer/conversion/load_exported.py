"""Opens what `timesformer export` wrote, whichever format it is in."""

import os
from pathlib import Path
from typing import Any

from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .exported_classifier import ExportedClassifier, check_precision
from .onnx_export import FP32_NAME, INT8_NAME, OnnxClassifier
from .openvino_export import GRAPH_NAME, OpenVinoClassifier


def load_exported(
    folder: str | os.PathLike, precision: str | None = None, **overrides: Any
) -> tuple[ExportedClassifier, TimeSformerVideoProcessor]:
    """The graph in `folder` and its processor.

    Args:
        folder: what `timesformer export` wrote, for ONNX Runtime or OpenVINO.
        precision: "fp32", "bf16" (OpenVINO) or "int8"; None takes the folder's own, fp32 where an
            ONNX folder holds both, bf16 where OpenVINO can choose and the processor computes in it.
        overrides: the processor's settings that are not None, such as `num_crops`.

    Raises:
        FileNotFoundError: where the folder holds no graph, or none of that precision.
        ValueError: for `num_frames`, which a graph fixes, and for a precision that its format does
            not have.
    """
    check_precision(precision)
    folder = Path(folder)
    if overrides.get("num_frames") is not None:
        raise ValueError(
            f"num_frames={overrides['num_frames']}: a graph takes the frames that it was exported for"
        )
    overrides = {name: value for name, value in overrides.items() if value is not None}
    if (folder / GRAPH_NAME).is_file():
        model: ExportedClassifier = OpenVinoClassifier(folder, precision=precision)
    elif (folder / FP32_NAME).is_file() or (folder / INT8_NAME).is_file():
        if precision == "bf16":
            raise ValueError(f"{folder} holds ONNX graphs, which run in fp32 or int8, not in bf16")
        only_int8 = not (folder / FP32_NAME).is_file()
        model = OnnxClassifier(
            folder, int8=precision == "int8" or (precision is None and only_int8)
        )
    else:
        raise FileNotFoundError(
            f"{folder} holds neither {FP32_NAME} nor {GRAPH_NAME}: write one with `timesformer export`."
        )
    return model, TimeSformerVideoProcessor.from_pretrained(folder, **overrides)
