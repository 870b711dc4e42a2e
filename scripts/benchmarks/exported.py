"""Top-1 of every export format beside the model's own: what a format's digits cost, and its time.

    python scripts/benchmarks exported --model runs/mine --data_dir clips --record

The model is exported to ONNX (fp32, int8) and OpenVINO (fp32, bf16, int8 calibrated on clips of
`--calibration_dir`), and each graph is evaluated as `timesformer evaluate --export` does it, on the
same clips, one view of each.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import this_machine
from results import keep

from hf_timesformer.cli import evaluate, export
from hf_timesformer.evaluation.prediction_file import read_predictions


# What an evaluation says of the machine that it ran on, and not of the model.
PLACES = ("model", "data_dir")


@dataclass(frozen=True)
class Format:
    """A row of the answer: `name`, how it is exported, and what is asked of the graph."""

    name: str
    exported: tuple[str, ...] | None = None  # options of `timesformer export`; None: the model
    precision: str | None = None


FORMATS = (
    Format("torch fp32"),
    Format("ONNX fp32", ("--int8",), "fp32"),
    Format("ONNX int8", ("--int8",), "int8"),
    Format("OpenVINO fp32", ("--format", "openvino"), "fp32"),
    Format("OpenVINO bf16", ("--format", "openvino"), "bf16"),
    Format("OpenVINO int8", ("--format", "openvino", "--int8"), "int8"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmarks exported`."""
    parser.add_argument("--model", required=True, help="folder or Hub id of a trained classifier")
    parser.add_argument("--data_dir", required=True, help="folder of clips with a test split")
    parser.add_argument("--calibration_dir", help="clips for int8 (default: data_dir/train)")
    parser.add_argument("--calibration_clips", type=int, default=16)
    parser.add_argument("--note", default="", help="what the model is, kept with the figures")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--record", action="store_true", help="keep them in results/exported.json")


def run(args: argparse.Namespace) -> None:
    """Export, evaluate, compare with the model's own answers."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(form, args, Path(folder)) for form in FORMATS]
        report = {"note": args.note, "views": 1, "formats": compare(rows, Path(folder))}
    print(json.dumps(report, indent=2))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.record:
        keep("exported", this_machine(), report)


def measure(form: Format, args: argparse.Namespace, folder: Path) -> dict:
    """Evaluate one format, exported where no format before it wrote the same graphs."""
    source = ["--model", args.model]
    if form.exported is not None:
        graphs = folder / "-".join(("graphs", *form.exported)).replace("--", "")
        if not graphs.exists():
            export.main([args.model, str(graphs), *form.exported, *_calibration(form, args)])
        source = ["--export", str(graphs), "--precision", str(form.precision)]
    output = folder / form.name
    common = ["--data_dir", args.data_dir, "--num_crops", "1", "--cpu", "--num_workers", "0"]
    evaluate.main([*source, *common, "--output_dir", str(output)])
    results = json.loads((output / "eval_results.json").read_text(encoding="utf-8"))
    print(form.name, results, flush=True)
    kept = {name: value for name, value in results.items() if name not in PLACES}
    return {"format": form.name, **kept}


def _calibration(form: Format, args: argparse.Namespace) -> list[str]:
    """The options that say where the ranges of int8 come from; ONNX needs none."""
    if form.exported != ("--format", "openvino", "--int8"):
        return []
    clips = args.calibration_dir or str(Path(args.data_dir, "train"))
    return ["--calibration_dir", clips, "--calibration_clips", str(args.calibration_clips)]


def compare(rows: list[dict], folder: Path) -> list[dict]:
    """Of each format: its figures, and the share of videos of which it says what the model says."""
    expected = _answers(folder / rows[0]["format"])
    for row in rows:
        answers = _answers(folder / row["format"])
        same = [answers[video] == answer for video, answer in expected.items()]
        row["same_answer"] = float(np.mean(same))
    return rows


def _answers(folder: Path) -> dict[str, int]:
    """The most probable class of each video."""
    predictions, _ = read_predictions(folder)
    return dict(zip(predictions.video_ids, predictions.logits.argmax(axis=1).tolist()))
