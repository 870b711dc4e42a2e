"""A trained classifier for ONNX Runtime: the graph, in fp32 and int8, with all that is needed to
use it beside it.

Needs the extra `onnx` (`pip install hf-timesformer[onnx]`).
"""

import copy
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..model.blocks import TimeSformerLayer
from ..model.efficient_linear import fuse
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..model.way import structure_of, why_plain
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .exported_classifier import INPUT, OUTPUT, ExportedClassifier, require


FP32_NAME, INT8_NAME = "model.onnx", "model_int8.onnx"
# bytes of one protobuf file; larger weights go into a second file beside it
LARGEST_FILE = 2_000_000_000
EXTRA = "onnx"


class Logits(nn.Module):
    """Clips to logits and nothing else: what the graph holds."""

    def __init__(self, model: TimeSformerForVideoClassification):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(b, t, c, h, w) -> (b, labels)`."""
        return self.model(pixel_values).logits


@torch.no_grad()
def fold(model: nn.Module) -> TimeSformerForVideoClassification:
    """A copy for inference, fp32 on the CPU: adapters are merged, and pairs of linear layers in a
    row (projection, extra dense) are one layer each.

    Where hooks, other layers or another attention function change what a block does, no pair is
    folded: the copy then runs, and is exported, module by module.

    Raises:
        ValueError: for quantised weights.
    """
    folded = _without_adapters(copy.deepcopy(model)).eval()
    _refuse_quantised(folded)
    folded = folded.float().cpu()
    if (
        folded.config._attn_implementation in (None, "eager")
        or "flash" in folded.config._attn_implementation
    ):
        folded.set_attn_implementation("sdpa")
    network = folded.timesformer
    if why_plain(network, torch.zeros(1, 1, 1)) is not None:
        return folded
    for layer in cast(Iterable[TimeSformerLayer], network.encoder.layer):
        for step in layer.earlier_steps:
            _, attention, extra = layer.early_modules(step)
            weight, bias = fuse(attention.output.dense, extra)
            attention.output.dense.weight.copy_(weight)
            attention.output.dense.bias.copy_(bias)
            setattr(layer, f"{step}_dense", nn.Identity())
    network.built_of = structure_of(network)
    return folded


def _without_adapters(model: Any) -> TimeSformerForVideoClassification:
    """`model` with its adapters (PEFT's) merged into the layers below them, or taken off where they
    are switched off.

    A `PeftModel` does it all by itself; `model.add_adapter` puts the adapters' layers into the
    model.
    """
    adapted = {
        name: module for name, module in model.named_modules() if hasattr(module, "get_base_layer")
    }
    if hasattr(model, "merge_and_unload"):
        off = any(getattr(module, "disable_adapters", False) for module in adapted.values())
        return model.unload() if off else model.merge_and_unload()
    for name, module in adapted.items():
        if not module.disable_adapters:
            module.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.get_base_layer())
    return model


def _refuse_quantised(model: nn.Module) -> None:
    kinds = {type(parameter).__name__ for parameter in model.parameters()} - {"Parameter"}
    if kinds or getattr(model, "is_quantized", False):
        raise ValueError(
            f"export_onnx: the weights are quantised ({', '.join(sorted(kinds)) or 'is_quantized'}): export the model "
            "before it is quantised; int8=True writes a quantised graph of it."
        )


def export_onnx(
    model: TimeSformerForVideoClassification,
    processor: TimeSformerVideoProcessor,
    folder: str | os.PathLike,
    *,
    int8: bool = False,
) -> list[Path]:
    """Write a classifier as graphs for ONNX Runtime.

    A graph takes `pixel_values` float `(batch, frames, channels, height, width)`, any batch, the
    processor's frames and crop size, and gives `logits` `(batch, labels)`.

    Args:
        model: the classifier; it is left as it is.
        processor: says frames and crops, and is saved beside the graphs.
        folder: made where it is missing.
        int8: write a second graph whose linear layers have weights and activations in int8; the
            activations are quantised as they come (ONNX Runtime's dynamic quantisation).

    Returns:
        The paths of `model.onnx` (fp32) and, where asked for, `model_int8.onnx`.

    Raises:
        ImportError: without the extra `onnx`.
        ValueError: for crops whose sides are no multiples of the patch size, and for quantised
            weights.
    """
    require("onnxscript", EXTRA)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    height, width = processor.crop_size["height"], processor.crop_size["width"]
    clips = torch.zeros(2, processor.num_frames, model.config.num_channels, height, width)
    network = Logits(fold(model)).eval()
    with torch.no_grad():
        network(clips[:1])  # a size that does not fit raises here, in words
        program = torch.onnx.export(
            network,
            (clips,),
            dynamo=True,
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    paths = [folder / FP32_NAME]
    size = sum(parameter.nbytes for parameter in network.parameters())
    assert program is not None  # what dynamo=True gives
    program.save(paths[0], external_data=size > LARGEST_FILE)
    if int8:
        paths.append(folder / INT8_NAME)
        _quantize(*paths)
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return paths


def _quantize(source: Path, target: Path) -> None:
    """Dynamic int8 quantisation of `source`, whose constants are folded first: only weights that
    are seen count.
    """
    onnx = require("onnx", EXTRA)
    ort = require("onnxruntime", EXTRA)
    quantization = require("onnxruntime.quantization", EXTRA)
    folded = target.with_name("folded_" + target.name)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(folded, load_external_data=False)
    # ONNX Runtime 1.30 transposes weights and leaves the shapes told of them
    del graph.graph.value_info[:]
    # said of a graph that is folded; else the quantiser asks for that, in a warning
    onnx.helper.set_model_props(graph, {"onnx.quant.pre_process": "onnxruntime.quant"})
    onnx.save(graph, folded)
    # Signed weights of seven bits: what the int8 units of processors (VNNI, AMX) multiply, and the
    # sums of processors without them do not saturate. Measured on an AMD Zen with VNNI, 2 threads:
    # 201 ms, unsigned weights 348 ms.
    quantization.quantize_dynamic(
        str(folded),
        str(target),
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=True,
        weight_type=quantization.QuantType.QInt8,
    )
    folded.unlink()


class OnnxClassifier(ExportedClassifier):
    """A folder that `export_onnx` wrote, called as the model is.

    Args:
        folder: it holds the graph, the config and the processor's settings.
        int8: run the quantised graph.
        threads: of ONNX Runtime; as many as it likes where None.

    Raises:
        ImportError: without the extra `onnx`.
        FileNotFoundError: where the folder has no such graph.
    """

    def __init__(
        self, folder: str | os.PathLike, *, int8: bool = False, threads: int | None = None
    ):
        ort = require("onnxruntime", EXTRA)
        path = Path(folder) / (INT8_NAME if int8 else FP32_NAME)
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {str(path)!r}: write it with `timesformer export`."
            )
        super().__init__(folder)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.shape = self.session.get_inputs()[0].shape[1:]
        self.precision = "int8" if int8 else "fp32"

    def run(self, clips: torch.Tensor) -> torch.Tensor:
        """As the base class says: `(b, t, c, h, w) -> (b, labels)`."""
        return torch.from_numpy(self.session.run([OUTPUT], {INPUT: clips.numpy()})[0])
