"""The network as a graph: torch.compile without breaks, torch.export, ONNX Runtime; the same
numbers every time.
"""

import contextlib
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SCHEMES, assert_close, clips, tiny_model
from transformers import AutoVideoProcessor

from hf_timesformer import TimeSformerVideoProcessor
from hf_timesformer.conversion.load_exported import load_exported
from hf_timesformer.conversion.onnx_export import OnnxClassifier, export_onnx, fold
from hf_timesformer.data.synthetic import make_motion_dataset, motion_frames
from hf_timesformer.video.encoding import write_video


SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# A 4 x 2 grid and 3 frames: few tiles, an uneven group, a window smaller than the grid.
SMALL = {"image_size": [8, 4], "num_frames": 3}
CLIPS, LABELS = clips(2, 3, 3, 8, 4), torch.tensor([1, 3])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_compiled_without_graph_breaks(scheme):
    """Eval and train, `fullgraph=True`; gradients too; another batch needs no more than one other
    graph.
    """
    torch._dynamo.reset()
    model = tiny_model(scheme, **SMALL)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(CLIPS).logits, model(CLIPS).logits, 1e-5)
    model.train()
    model(CLIPS, labels=LABELS).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    compiled(CLIPS, labels=LABELS).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_compiled_for_any_batch():
    """Two batch sizes make the third free: it runs the same graph."""
    torch._dynamo.reset()
    model, graphs = tiny_model("divided_space_time", **SMALL), []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=count)
    with torch.no_grad():
        for batch in (2, 3, 4, 5):
            pixel_values = clips(batch, 3, 3, 8, 4, seed=batch)
            assert_close(compiled(pixel_values).logits, model(pixel_values).logits, 1e-5)
    assert len(graphs) == 2


@pytest.mark.parametrize("scheme", SCHEMES)
def test_exported_for_any_batch(scheme):
    model = tiny_model(scheme, **SMALL)
    shapes = {"pixel_values": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (CLIPS,), dynamic_shapes=shapes)
    for batch in (1, 3):
        pixel_values = clips(batch, 3, 3, 8, 4, seed=batch)
        with torch.no_grad():
            assert_close(program.module()(pixel_values).logits, model(pixel_values).logits, 1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_folded_copy_gives_the_same(scheme):
    model = tiny_model(scheme)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pixel_values = clips(2, 4, 3, 12, 8)
    with torch.no_grad():
        assert_close(fold(model)(pixel_values).logits, model(pixel_values).logits, 1e-5)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def processor() -> TimeSformerVideoProcessor:
    sizes = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 4}}
    return TimeSformerVideoProcessor(num_frames=3, sampling_rate=2, **sizes)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_onnx_runtime_gives_the_same(scheme, tmp_path):
    """fp32 within 1e-4, any batch, with views; the processor beside it as it was."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = tiny_model(scheme, **SMALL)
    assert [path.name for path in export_onnx(model, processor(), tmp_path)] == ["model.onnx"]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("model.onnx", "config.json"),
        *("preprocessor_config.json", "video_preprocessor_config.json"),
    }
    exact = OnnxClassifier(tmp_path, threads=1)
    for batch in (1, 3):
        pixel_values = clips(batch, 3, 3, 8, 4, seed=batch)
        with torch.no_grad():
            expected = model(pixel_values).logits
        assert_close(exact(pixel_values).logits, expected, 1e-4)
    views = clips(2, 3, 3, 3, 8, 4)
    with torch.no_grad():
        assert_close(exact(views).logits, model(views).logits, 1e-4)
    assert exact.config.attention_type == scheme
    saved = AutoVideoProcessor.from_pretrained(tmp_path)
    assert saved.to_dict() == processor().to_dict()
    with pytest.raises(ValueError, match=r"\(3, 3, 8, 4\), got \(4, 3, 8, 4\)"):
        exact(clips(1, 4, 3, 8, 4))


def test_int8_is_close(tmp_path, caplog):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = tiny_model("divided_space_time", **SMALL)
    paths = export_onnx(model, processor(), tmp_path, int8=True)
    assert [path.name for path in paths] == ["model.onnx", "model_int8.onnx"]
    assert "pre-processing" not in caplog.text  # the graph is folded, and says so
    pixel_values = clips(3, 3, 3, 8, 4)
    with torch.no_grad():
        expected = model(pixel_values).logits
    low = OnnxClassifier(tmp_path, int8=True, threads=1)(pixel_values).logits
    assert 0 < (low - expected).abs().max() < 0.25 * expected.abs().max()


def test_commands_over_each_format(tmp_path, monkeypatch, capsys):
    """The commands export, predict and evaluate over each format: the answers that they give
    without it.
    """
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("nncf")
    tiny_model("divided_space_time", **SMALL, num_labels=6).save_pretrained(tmp_path / "model")
    processor().save_pretrained(tmp_path / "model")
    frames = motion_frames("left", np.random.default_rng(0), num_frames=12, size=48)
    clip = str(write_video(tmp_path / "clip.mp4", frames))
    make_motion_dataset(tmp_path / "clips", splits={"test": 1}, num_frames=12, size=48)

    def run(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with contextlib.suppress(SystemExit):  # what predict.py ends with
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        return capsys.readouterr().out

    told = run("export_onnx.py", str(tmp_path / "model"), str(tmp_path / "graph"), "--int8")
    assert [Path(line.split()[0]).name for line in told.splitlines()[-2:]] == [
        "model.onnx",
        "model_int8.onnx",
    ]
    scores = {}
    run("export_onnx.py", str(tmp_path / "model"), str(tmp_path / "ov"), "--format", "openvino")
    int8 = ["--int8", "--calibration_dir", str(tmp_path / "clips")]
    run(
        "export_onnx.py",
        str(tmp_path / "model"),
        str(tmp_path / "ov8"),
        "--format",
        "openvino",
        *int8,
    )
    for name, folder, arguments in (
        ("torch", "model", ["--dtype", "float32"]),
        ("fp32", "graph", ["--onnx", "fp32"]),
        ("int8", "graph", ["--onnx", "int8"]),
        ("ov", "ov", ["--precision", "fp32"]),
        ("ov8", "ov8", []),
    ):
        source = ["--export" if folder.startswith("ov") else "--model", str(tmp_path / folder)]
        told = run("predict.py", clip, "--json", "--top_k", "6", *source, *arguments)
        answer = json.loads(told[told.index("[") :])[0]
        scores[name] = {row["label"]: row["score"] for row in answer["predictions"]}
        data = ["--data_dir", str(tmp_path / "clips"), "--num_workers", "0", "--cpu", "True"]
        run("evaluate.py", *source, *data, *arguments)
    for label, score in scores["torch"].items():
        assert scores["fp32"][label] == pytest.approx(score, abs=1e-5)
        assert scores["ov"][label] == pytest.approx(score, abs=1e-5)
        assert scores["int8"][label] == pytest.approx(score, abs=0.1)
        assert scores["ov8"][label] == pytest.approx(score, abs=0.1)
    dtypes = {
        "model/eval_test": "float32",
        "graph/eval_test_fp32": "fp32",
        "graph/eval_test_int8": "int8",
        "ov/eval_test_fp32": "fp32",
        "ov8/eval_test": "int8",
    }
    results = {
        place: json.loads((tmp_path / place / "eval_results.json").read_text()) for place in dtypes
    }
    assert {place: result["dtype"] for place, result in results.items()} == dtypes
    for place in ("graph/eval_test_fp32", "ov/eval_test_fp32"):
        assert results[place]["top1_accuracy"] == results["model/eval_test"]["top1_accuracy"]
    assert all(result["videos_evaluated"] == 6 for result in results.values())
    with pytest.raises(ValueError, match="num_frames=4: a graph takes the frames"):
        load_exported(tmp_path / "graph", "fp32", num_frames=4)


def test_onnx_folder_without_a_graph(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(FileNotFoundError, match="timesformer export"):
        OnnxClassifier(tmp_path)
