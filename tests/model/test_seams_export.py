"""Traced and exported by the tools that people know: the same numbers, for any batch, and for any
number of frames.
"""

import warnings

import numpy as np
import pytest
import torch
from tiny import SCHEMES, assert_close, clips, tiny_model


# a 4 x 2 grid: an uneven group, a window smaller than the grid
SMALL = {"image_size": [8, 4], "num_frames": 3}
CLIPS = clips(2, 3, 3, 8, 4)
OTHERS = [clips(batch, 3, 3, 8, 4, seed=batch) for batch in (1, 3)]


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


@pytest.fixture(autouse=True)
def quiet():
    """Tracers warn of every size that they take for granted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def logits_of(model: torch.nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values).logits


@pytest.mark.parametrize("scheme", SCHEMES)
def test_torch_jit_trace(scheme):
    model = tiny_model(scheme, **SMALL)
    traced = torch.jit.trace(Logits(model), CLIPS)
    for pixel_values in (CLIPS, *OTHERS):
        assert_close(traced(pixel_values), logits_of(model, pixel_values), 1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_older_onnx_export_for_any_batch(scheme, attention, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model, path = tiny_model(scheme, num_hidden_layers=1, **SMALL), tmp_path / "model.onnx"
    model.set_attn_implementation(attention)
    torch.onnx.export(
        Logits(model),
        (CLIPS,),
        path,
        dynamo=False,
        opset_version=17,
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for pixel_values in (CLIPS, *OTHERS):
        found = session.run(None, {"pixel_values": pixel_values.numpy()})[0]
        assert_close(torch.from_numpy(found), logits_of(model, pixel_values), 1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_openvino_convert_model(scheme):
    openvino = pytest.importorskip("openvino")
    model = tiny_model(scheme, **SMALL)
    graph = openvino.convert_model(Logits(model), example_input=CLIPS)
    # else bf16 where there is
    compiled = openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for pixel_values in (CLIPS, *OTHERS):
        found = torch.from_numpy(np.array(compiled(pixel_values.numpy())[0]))
        assert_close(found, logits_of(model, pixel_values), 1e-3)


@pytest.mark.skipif(
    torch.__version__.startswith("2.10."), reason="torch 2.10 cannot order strides of any length"
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_torch_export_for_any_batch_and_any_number_of_frames(scheme):
    model = tiny_model(scheme, **SMALL)
    shapes = {"pixel_values": {0: torch.export.Dim("batch"), 1: torch.export.Dim("frames", min=2)}}
    program = torch.export.export(Logits(model), (clips(2, 4, 3, 8, 4),), dynamic_shapes=shapes)
    for batch, frames in ((2, 4), (1, 3), (3, 2), (2, 7), (1, 16)):
        pixel_values = clips(batch, frames, 3, 8, 4, seed=frames)
        with torch.no_grad():
            assert_close(program.module()(pixel_values), logits_of(model, pixel_values), 1e-5)


@pytest.mark.parametrize("exporter", ["Onnx", "OpenVINO"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_exporters_of_transformers(scheme, exporter):
    pytest.importorskip("transformers", minversion="5.23")  # exporters gave something else before
    pytest.importorskip({"Onnx": "onnxruntime", "OpenVINO": "openvino"}[exporter])
    import transformers.exporters as exporters

    model = tiny_model(scheme, **SMALL)
    shapes = {"pixel_values": {0: torch.export.Dim.DYNAMIC}}
    config = getattr(exporters, f"{exporter}Config")(dynamic=True, dynamic_shapes=shapes)
    exported = getattr(exporters, f"{exporter}Exporter")().export(
        model, {"pixel_values": CLIPS}, config=config
    )
    for pixel_values in (CLIPS, *OTHERS):
        found = exported(pixel_values=pixel_values)
        found = found["logits"] if isinstance(found, dict) else found.logits
        # OpenVINO multiplies in bf16 where the processor can.
        tolerance = {"Onnx": 1e-4, "OpenVINO": 2e-2}[exporter]
        assert_close(torch.as_tensor(np.array(found)), logits_of(model, pixel_values), tolerance)
