"""A trained classifier for ONNX Runtime: the graph, in fp32 and int8, with all that is needed to use it beside it.

Needs the extra `onnx` (`pip install hf-timesformer[onnx]`).
"""

import copy
import importlib
import os
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from transformers import AutoConfig
from transformers.modeling_outputs import ImageClassifierOutput

from ..model.blocks import TimeSformerLayer
from ..model.configuration_timesformer import TimeSformerConfig
from ..model.efficient_linear import fuse
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..video.video_processing_timesformer import TimeSformerVideoProcessor


FP32_NAME, INT8_NAME = "model.onnx", "model_int8.onnx"
LARGEST_FILE = 2_000_000_000  # bytes of one protobuf file; larger weights go into a second file beside it
INPUT, OUTPUT = "pixel_values", "logits"


class Logits(nn.Module):
    """Clips to logits and nothing else: what the graph holds."""

    def __init__(self, model: TimeSformerForVideoClassification):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


@torch.no_grad()
def fold(model: TimeSformerForVideoClassification) -> TimeSformerForVideoClassification:
    """A copy for inference whose pairs of linear layers in a row (projection, extra dense) are one layer each."""
    model = copy.deepcopy(model).eval()
    for layer in model.modules():
        if isinstance(layer, TimeSformerLayer):
            for step in layer.earlier_steps:
                projection, extra = getattr(layer, f"{step}_attention").output, f"{step}_dense"
                weight, bias = fuse(projection.dense, getattr(layer, extra))
                projection.dense.weight.copy_(weight)
                projection.dense.bias.copy_(bias)
                setattr(layer, extra, nn.Identity())
    return model


def export_onnx(
    model: TimeSformerForVideoClassification,
    processor: TimeSformerVideoProcessor,
    folder: str | os.PathLike,
    *,
    int8: bool = False,
) -> list[Path]:
    """Write `model.onnx` (fp32), `model_int8.onnx` where asked for, the config and the processor's settings.

    The graph takes `pixel_values` float `(batch, frames, channels, height, width)`, any batch, the processor's frames
    and crop size, and gives `logits (batch, labels)`. int8: weights and activations of all linear layers, activations
    quantised as they come (ONNX Runtime's dynamic quantisation). Returns the graphs' paths.

    Raises:
        ImportError: without the extra `onnx`.
        ValueError: for crops whose sides are no multiples of the patch size.
    """
    _require("onnxscript")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    height, width = processor.crop_size["height"], processor.crop_size["width"]
    clips = torch.zeros(2, processor.num_frames, model.config.num_channels, height, width)
    network = Logits(fold(model).float().cpu()).eval()
    network.model.set_attn_implementation("sdpa")
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
    program.save(paths[0], external_data=size > LARGEST_FILE)
    if int8:
        paths.append(folder / INT8_NAME)
        _quantize(*paths)
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return paths


def _quantize(source: Path, target: Path) -> None:
    """Dynamic int8 quantisation of `source`, whose constants are folded first: only weights that are seen count."""
    onnx, ort, quantization = map(_require, ("onnx", "onnxruntime", "onnxruntime.quantization"))
    folded = target.with_name("folded_" + target.name)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(folded, load_external_data=False)
    del graph.graph.value_info[:]  # ONNX Runtime 1.30 transposes weights and leaves the shapes told of them
    onnx.save(graph, folded)
    # Unsigned weights: the signed kernels of CPUs without VNNI saturate (15 times the error on one of those).
    weight_type = quantization.QuantType.QUInt8
    quantization.quantize_dynamic(
        str(folded), str(target), op_types_to_quantize=["MatMul"], per_channel=True, weight_type=weight_type
    )
    folded.unlink()


class OnnxClassifier(nn.Module):
    """A folder that `export_onnx` wrote, called as the model is: `(B, T, C, H, W)` or with views after the batch.

    Args:
        folder: it holds the graph, the config and the processor's settings.
        int8: run the quantised graph.
        threads: of ONNX Runtime; as many as it likes where None.

    Raises:
        ImportError: without the extra `onnx`.
        FileNotFoundError: where the folder has no such graph.
    """

    def __init__(self, folder: str | os.PathLike, *, int8: bool = False, threads: int | None = None):
        super().__init__()
        ort = _require("onnxruntime")
        path = Path(folder) / (INT8_NAME if int8 else FP32_NAME)
        if not path.is_file():
            raise FileNotFoundError(f"There is no {str(path)!r}: write it with scripts/export_onnx.py.")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self.config: TimeSformerConfig = AutoConfig.from_pretrained(folder)
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.shape = self.session.get_inputs()[0].shape[1:]  # frames, channels, height, width

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        """Logits `(B, labels)`, with several views their mean. Raises ValueError for clips of another shape."""
        views = pixel_values.shape[1] if pixel_values.ndim == 6 else None
        clips = pixel_values.flatten(0, 1) if views is not None else pixel_values
        if list(clips.shape[1:]) != self.shape:
            raise ValueError(
                f"This graph takes clips (frames, channels, height, width) = {tuple(self.shape)}, got "
                f"{tuple(clips.shape[1:])}: prepare them with the processor beside it, or export another graph."
            )
        logits = torch.from_numpy(self.session.run([OUTPUT], {INPUT: clips.float().cpu().numpy()})[0])
        if views is not None:
            logits = logits.unflatten(0, (-1, views)).mean(dim=1)  # (b*v, labels) -> (b, labels)
        return ImageClassifierOutput(logits=logits)


def load_graph_and_processor(
    folder: str | os.PathLike, precision: str, **overrides: int | None
) -> tuple[OnnxClassifier, TimeSformerVideoProcessor]:
    """The graph of that precision ("fp32", "int8") and its processor, with those of its settings that are not None.

    Raises:
        FileNotFoundError: where the folder has no such graph.
        ValueError: for `num_frames`, which the graph fixes.
    """
    if overrides.get("num_frames") is not None:
        raise ValueError(f"num_frames={overrides['num_frames']}: a graph takes the frames that it was exported for")
    overrides = {name: value for name, value in overrides.items() if value is not None}
    model = OnnxClassifier(folder, int8=precision == "int8")
    return model, TimeSformerVideoProcessor.from_pretrained(folder, **overrides)


def _require(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"ONNX export and inference need {name}: pip install hf-timesformer[onnx]") from error
