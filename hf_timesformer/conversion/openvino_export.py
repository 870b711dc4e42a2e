"""A trained classifier for OpenVINO, by transformers' own exporter: fp32 or bf16, or int8
calibrated on real clips.

Needs the extra `openvino` (`pip install 'hf-timesformer[openvino]'`) and transformers from 5.23 on.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .exported_classifier import INPUT, ExportedClassifier, check_precision, require
from .onnx_export import fold
from .signal_stack import signal_stack_kept


logger = logging.getLogger(__name__)

EXTRA = "openvino"
GRAPH_NAME = "openvino_model.xml"
PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16"}  # ours -> OpenVINO's
# In a graph of NNCF every quantised layer has nodes of this type; no other graph of ours has one.
QUANTISED_NODE = "FakeQuantize"


@signal_stack_kept()
def export_openvino(
    model: TimeSformerForVideoClassification,
    processor: TimeSformerVideoProcessor,
    folder: str | os.PathLike,
    *,
    calibration_clips: Sequence[torch.Tensor] | None = None,
) -> Path:
    """Write `openvino_model.xml` and its weights, what transformers needs to load them, and the
    processor's settings.

    The graph takes `pixel_values` float `(batch, frames, channels, height, width)`: any batch, the
    processor's frames and crop size.

    Args:
        model: the classifier; it is left as it is.
        processor: says frames and crops, and is saved beside the graph.
        folder: made where it is missing.
        calibration_clips: clips `(n, frames, channels, height, width)` as the processor makes them;
            with them all linear layers become int8 (NNCF), whose ranges are those seen in these
            clips. A few dozen will do.

    Returns:
        The path of the graph.

    Raises:
        ImportError: without the extra, or with a transformers that has no exporter.
        ValueError: for crops whose sides are no multiples of the patch size.
    """
    require("openvino", EXTRA)
    exporters = require("transformers.exporters", EXTRA)
    folder = Path(folder)
    network = fold(model).float().cpu().eval()
    network.set_attn_implementation("sdpa")
    size = processor.crop_size
    sample = torch.zeros(
        2, processor.num_frames, model.config.num_channels, size["height"], size["width"]
    )
    with torch.no_grad():
        network(sample[:1])  # a size that does not fit raises here, in words
    quantizer = None
    if calibration_clips is not None:
        require("nncf", EXTRA)
        inputs = [{INPUT: clips.float()} for clips in calibration_clips]
        quantizer = exporters.NNCFOpenVINOQuantizer(
            exporters.NNCFQuantizationConfig(subset_size=len(inputs)), calibration_dataset=inputs
        )
    settings = exporters.OpenVINOConfig(
        dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}}, quantizer=quantizer
    )
    exported = exporters.OpenVINOExporter().export(network, {INPUT: sample}, config=settings)
    # The conversion leaves every axis open; those that the trace fixed are fixed in the graph as
    # well.
    exported.program.reshape({INPUT: [-1, *sample.shape[1:]]})
    exported.save_pretrained(folder)
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder / GRAPH_NAME


class OpenVinoClassifier(ExportedClassifier):
    """A folder that `export_openvino` wrote, called as the model is.

    Args:
        folder: it holds the graph, the config and the processor's settings.
        precision: "fp32", "bf16", or None for bf16 where this processor computes in it. A graph of
            int8 is int8, and this says what its other layers compute in; "int8" is None, and asks
            for such a graph.
        threads: of OpenVINO; as many as it likes where None.

    Raises:
        ImportError: without the extra.
        FileNotFoundError: where the folder has no such graph.
        ValueError: for any other precision, and for "int8" where the graph is not quantised.
    """

    @signal_stack_kept()
    def __init__(
        self, folder: str | os.PathLike, *, precision: str | None = None, threads: int | None = None
    ):
        check_precision(precision)
        super().__init__(folder)
        openvino = require("openvino", EXTRA)
        exporters = require("transformers.exporters", EXTRA)
        path = Path(folder) / GRAPH_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {str(path)!r}: write it with `timesformer export --format openvino`."
            )
        if precision not in (None, "int8"):
            rest = precision
        else:
            abilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            rest = "bf16" if "BF16" in abilities else "fp32"
        settings: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": PRECISION_HINTS[rest]}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self.graph = exporters.ExportedModel.from_pretrained(folder, config=settings)
        nodes = self.graph.program.get_ordered_ops()
        int8 = any(node.get_type_name() == QUANTISED_NODE for node in nodes)
        if precision == "int8" and not int8:
            raise ValueError(
                f"{path} is not quantised: export it with --int8 and --calibration_dir"
            )
        self.precision = "int8" if int8 else rest
        self.shape = [
            size.get_length() for size in list(self.graph.program.inputs[0].partial_shape)[1:]
        ]

    @signal_stack_kept()
    def run(self, clips: torch.Tensor) -> torch.Tensor:
        """As the base class says, `(b, t, c, h, w) -> (b, labels)`; the logits are a copy of their
        own."""
        return self.graph(pixel_values=clips).logits.float().clone()
