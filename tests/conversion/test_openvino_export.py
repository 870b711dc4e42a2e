"""OpenVINO: the same logits in fp32, close in bf16 and in int8 calibrated on clips; the folder says
how to open it.
"""

import gc
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from tiny import SCHEMES, assert_close, clips, tiny_model
from transformers import AutoVideoProcessor

from hf_timesformer import TimeSformerVideoProcessor
from hf_timesformer.conversion import signal_stack
from hf_timesformer.conversion.load_exported import load_exported
from hf_timesformer.conversion.openvino_export import OpenVinoClassifier, export_openvino


pytest.importorskip("openvino")

# A 4 x 2 grid and 3 frames: few tiles, an uneven group, a window smaller than the grid.
SMALL = {"image_size": [8, 4], "num_frames": 3}


def processor() -> TimeSformerVideoProcessor:
    sizes = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 4}}
    return TimeSformerVideoProcessor(num_frames=3, sampling_rate=2, **sizes)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_openvino_gives_the_same(scheme: str, tmp_path: Path):
    """fp32 within 1e-4 for any batch and with views; bf16 close; the processor beside it as it was."""
    model = tiny_model(scheme, **SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_openvino(model, processor(), tmp_path)
    exact, beside = load_exported(tmp_path, "fp32")
    assert isinstance(exact, OpenVinoClassifier)
    assert exact.precision == "fp32"
    assert beside.to_dict() == processor().to_dict()
    assert AutoVideoProcessor.from_pretrained(tmp_path).to_dict() == processor().to_dict()
    for batch in (1, 3):
        pixel_values = clips(batch, 3, 3, 8, 4, seed=batch)
        with torch.no_grad():
            expected = model(pixel_values).logits
        assert_close(exact(pixel_values).logits, expected, 1e-4)
    views = clips(2, 3, 3, 3, 8, 4)
    with torch.no_grad():
        expected = model(views).logits
    assert_close(exact(views).logits, expected, 1e-4)
    rough, _ = load_exported(tmp_path, "bf16")
    assert rough.precision == "bf16"
    assert (rough(views).logits - expected).abs().max() < 0.05 * expected.abs().max()
    with pytest.raises(ValueError, match=r"\(3, 3, 8, 4\), got \(4, 3, 8, 4\)"):
        exact(clips(1, 4, 3, 8, 4))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a fault of Linux alone")
def test_a_signal_after_openvino_does_not_end_the_process(tmp_path: Path):
    """OpenVINO left the thread a signal stack that is freed with its plugins; see signal_stack.py."""
    model = tiny_model("space_only", **SMALL)
    before = signal_stack._current().address
    export_openvino(model, processor(), tmp_path)
    first, second = OpenVinoClassifier(tmp_path), OpenVinoClassifier(tmp_path)
    first(clips(1, 3, 3, 8, 4)), second(clips(1, 3, 3, 8, 4))
    del first, second  # in this order: the second's stack was the one to be put back
    gc.collect()
    assert signal_stack._current().address == before
    received: list[int] = []
    old = signal.signal(signal.SIGCHLD, lambda number, frame: received.append(number))
    try:
        os.kill(os.getpid(), signal.SIGCHLD)
    finally:
        signal.signal(signal.SIGCHLD, old)
    assert received == [signal.SIGCHLD]


def test_int8_is_calibrated_on_clips_and_close(tmp_path: Path):
    pytest.importorskip("nncf")
    model = tiny_model("divided_space_time", **SMALL)
    seen = [clips(1, 3, 3, 8, 4, seed=seed) for seed in range(8)]
    export_openvino(model, processor(), tmp_path / "int8", calibration_clips=seen)
    export_openvino(model, processor(), tmp_path / "plain")
    low, _ = load_exported(tmp_path / "int8")
    assert low.precision == "int8"
    pixel_values = clips(3, 3, 3, 8, 4)
    with torch.no_grad():
        expected = model(pixel_values).logits
    assert 0 < (low(pixel_values).logits - expected).abs().max() < 0.25 * expected.abs().max()
    with pytest.raises(ValueError, match="is not quantised"):
        load_exported(tmp_path / "plain", "int8")


def test_folders_that_hold_no_graph_or_not_that_one(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"neither model\.onnx nor openvino_model\.xml"):
        load_exported(tmp_path)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ValueError, match="run in fp32 or int8, not in bf16"):
        load_exported(tmp_path, "bf16")
    with pytest.raises(ValueError, match="precision 'fp16' is none of fp32, bf16, int8"):
        load_exported(tmp_path, "fp16")
    with pytest.raises(ValueError, match="num_frames=4: a graph takes"):
        load_exported(tmp_path, num_frames=4)
