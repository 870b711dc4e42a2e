"""How long one clip takes in every form that the network can be run in: torch, compiled, quantised,
ONNX Runtime, OpenVINO.

    python scripts/benchmarks formats --folder graphs --prepare   # export, which takes a minute
    python scripts/benchmarks formats --folder graphs --record    # measure, on a machine at rest

The base network, T+S, one clip of 8 frames of 224 x 224, random weights: the time does not depend on
them, and how far a format's answers are from the model's is measured on trained weights by
`benchmarks exported`. All forms run in turn in one process. Those that need an extra or a package
that is not installed are left out, and named.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import this_machine
from results import keep
from works import Work, alternate, build, make_clip

from hf_timesformer import TimeSformerForVideoClassification, TimeSformerVideoProcessor
from hf_timesformer.conversion.onnx_export import OnnxClassifier, export_onnx
from hf_timesformer.conversion.openvino_export import OpenVinoClassifier, export_openvino


WORK = Work("divided_space_time", 8, 224)
BASELINE = "torch, float32"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmarks formats`."""
    parser.add_argument("--folder", type=Path, help="keeps the graphs; what lies there is not made")
    parser.add_argument("--prepare", action="store_true", help="make the graphs, and no more")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs, after one that is not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12, help="blocks; fewer for a quick look")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--record", action="store_true", help="keep it in results/formats.json")


def run(args: argparse.Namespace) -> None:
    """Make every form, let them run in turn, print their times."""
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        write_graphs(folder, args.layers)
        if args.prepare:
            return
        report = measure(folder, args)
    print(json.dumps(report, indent=2))
    if args.record:
        keep("formats", this_machine(), report)


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of each form, and how many times as fast as `BASELINE` that is."""
    clip = make_clip(WORK)
    runs: dict[str, Callable[[], Any]] = {}
    left_out: dict[str, str] = {}
    for name, make in forms(folder, args).items():
        try:
            runs[name] = partial(_in_inference, make(), clip)
            runs[name]()
        except (ImportError, RuntimeError, ValueError, AssertionError) as error:
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            runs.pop(name, None)
    times = alternate(runs, args.repeats)
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        "work": WORK.name,
        "layers": args.layers,
        "threads": args.threads,
        "repeats": args.repeats,
        "seconds": {name: round(taken, 4) for name, taken in seconds.items()},
        "times_as_fast": {n: round(seconds[BASELINE] / taken, 2) for n, taken in seconds.items()},
        "left_out": left_out,
    }


@torch.inference_mode()
def _in_inference(model: Callable, clip: torch.Tensor) -> Any:
    dtype = getattr(model, "dtype", torch.float32)
    return model(clip.to(dtype))


def forms(folder: Path, args: argparse.Namespace) -> dict[str, Callable[[], Callable]]:
    """What makes each form: a function that takes the clip."""
    found: dict[str, Callable[[], Callable]] = {
        BASELINE: lambda: _network(args),
        "torch, bfloat16": lambda: _network(args).bfloat16(),
        "torchao, int8 weights": lambda: _by_torchao("Int8WeightOnlyConfig", args),
        "torchao, int8": lambda: _by_torchao("Int8DynamicActivationInt8WeightConfig", args),
        "bitsandbytes, int8": lambda: _by_bitsandbytes(folder, load_in_8bit=True),
        "bitsandbytes, 4 bit": lambda: _by_bitsandbytes(folder, load_in_4bit=True),
        "ONNX Runtime, float32": lambda: _onnx(folder, args, int8=False),
        "ONNX Runtime, int8": lambda: _onnx(folder, args, int8=True),
        "OpenVINO, float32": lambda: _openvino(folder / "openvino", args, "fp32"),
        "OpenVINO, bfloat16": lambda: _openvino(folder / "openvino", args, "bf16"),
        "OpenVINO, int8": lambda: _openvino(folder / "openvino_int8", args, "int8"),
    }
    if not args.no_compile:
        found["torch.compile, float32"] = lambda: torch.compile(_network(args))
        found["torch.compile, bfloat16"] = lambda: torch.compile(_network(args).bfloat16())
        found["torchao, int8, torch.compile"] = lambda: torch.compile(
            _by_torchao("Int8DynamicActivationInt8WeightConfig", args)
        )
    return found


def _network(args: argparse.Namespace) -> torch.nn.Module:
    return build(WORK, "ours", args.layers)


def _by_torchao(config: str, args: argparse.Namespace) -> torch.nn.Module:
    from torchao import quantization

    model = _network(args)
    quantization.quantize_(model, getattr(quantization, config)())
    return model


def _by_bitsandbytes(folder: Path, **bits: bool) -> torch.nn.Module:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("No module named 'bitsandbytes'")
    from transformers import BitsAndBytesConfig

    # on CPUs it packs layers of 32, 64, ... outputs alone, and 400 classes are none of these
    config = BitsAndBytesConfig(**bits, llm_int8_skip_modules=["classifier"])
    return TimeSformerForVideoClassification.from_pretrained(
        folder / "model", quantization_config=config, device_map="cpu"
    )


def _onnx(folder: Path, args: argparse.Namespace, *, int8: bool) -> OnnxClassifier:
    return OnnxClassifier(folder / "onnx", int8=int8, threads=args.threads)


def _openvino(folder: Path, args: argparse.Namespace, precision: str) -> OpenVinoClassifier:
    return OpenVinoClassifier(folder, precision=precision, threads=args.threads)


def write_graphs(folder: Path, layers: int) -> None:
    """The model and its graphs in `folder`, each where it is missing; without an extra, none of its
    graphs.
    """
    crop = {"height": WORK.size, "width": WORK.size}
    processor = TimeSformerVideoProcessor(
        num_frames=WORK.frames, size={"shortest_edge": WORK.size}, crop_size=crop
    )
    model = build(WORK, "ours", layers)
    clips = [make_clip(WORK)]  # which ranges the activations have does not change the time
    writers: dict[str, Callable[[Path], Any]] = {
        "model": model.save_pretrained,
        "onnx": lambda path: export_onnx(model, processor, path, int8=True),
        "openvino": lambda path: export_openvino(model, processor, path),
        "openvino_int8": lambda path: export_openvino(
            model, processor, path, calibration_clips=clips
        ),
    }
    for name, write in writers.items():
        if not (folder / name).exists():
            try:
                write(folder / name)
            except ImportError as error:
                print(f"no {name}: {error}")
