"""The network against stock's on the same work, and against its frames through a ViT: time, memory,
utilisation.

Everything that is compared runs in turn in one process on the same weights and inputs; each peak of
memory is taken in a process of its own. `benchmarks model` prints the table, `--json` and `--png`
keep it, and `--record` puts it beside those of other machines in results/model.json, which the
README's table is made from (`benchmarks results`).

The row "ViT frames" needs nobody else's numbers: the same count of frames, as images, through
transformers' ViT of the same size (sdpa), same dtype, same compile. A T+S clip of 8 frames costs
1.39 times the multiply-adds of 8 frames through ViT-B/16, 1.25 with what we fold and leave out.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from machine import load_average, this_machine
from matrix_products import matrix_products
from peaks import measure_peak, peak_of_child
from results import record
from works import Work, alternate, build, build_vit, count_flops, make_clip, runner

from hf_timesformer import TimeSformerVideoProcessor
from hf_timesformer.conversion.exported_classifier import ExportedClassifier
from hf_timesformer.conversion.onnx_export import OnnxClassifier, export_onnx
from hf_timesformer.conversion.openvino_export import OpenVinoClassifier, export_openvino


# The paper's inference cost of TimeSformer, HR and L (its table of K400 results) is for three
# views; this is for one.
PAPER_TFLOPS = {(8, 224): 0.59 / 3, (16, 448): 5.11 / 3, (96, 224): 7.14 / 3}

SUITE = (
    Work("divided_space_time", 8, 224, compiled=True, exported=True),
    Work("divided_space_time", 8, 224, batch=4, compiled=True),
    Work("joint_space_time", 8, 224),
    Work("divided_space_time", 16, 448),
    Work("divided_space_time", 96, 224),
    Work("divided_space_time", 8, 224, batch=2, training=True),
    Work("sparse_local_global", 32, 224, baseline="joint_space_time"),
    Work("sparse_local_global", 16, 448, baseline="joint_space_time"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", default="", help="run the works whose name contains this, such as 'T+S 8x224'"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed runs of each, after one that is not counted"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12, help="blocks; fewer for a quick look")
    parser.add_argument("--batch", type=int, help="clips at once, in place of each work's own")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of weights and clips"
    )
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--no_products", action="store_true", help="leave the matrix products out: half of the time"
    )
    parser.add_argument(
        "--no_onnx", action="store_true", help="leave ONNX Runtime out (extra `onnx`)"
    )
    parser.add_argument(
        "--no_openvino", action="store_true", help="leave OpenVINO out (extra `openvino`)"
    )
    parser.add_argument(
        "--part",
        choices=["all", "eager", "compiled", "exported"],
        default="all",
        help="beside the eager runs measure all, nothing, the compiled or the exported networks: "
        "shorter runs, whose records stand side by side",
    )
    parser.add_argument(
        "--record", action="store_true", help="keep the results in results/model.json"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # a child process that measures one peak


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    if args.peak:
        print(json.dumps(peak_of_child(json.loads(args.peak), args.layers)))
        return
    print(
        f"{this_machine()}, {args.threads} threads, {args.dtype}, median of {args.repeats}",
        flush=True,
    )
    results, works = [], {}
    for work in SUITE:
        work = replace(work, dtype=args.dtype, batch=args.batch or work.batch)
        works.setdefault(work.name, work)  # with one batch for all, some are the same
    for name, work in works.items():
        if args.only in name:
            results.append(compare(work, args))
            print(as_text(results[-1]), flush=True)
    if args.json:
        args.json.write_text(
            json.dumps({"machine": this_machine().as_dict(), "results": results}, indent=2)
        )
    if args.record:
        record(this_machine(), args.threads, results)
    if args.png:
        draw(results, args.png)


def compare(work: Work, args: argparse.Namespace) -> dict:
    """Times, ratios, peaks and FLOPs of one work."""
    clip = make_clip(work)
    runs, error = all_runs(work, args, clip)
    seconds = {
        name: statistics.median(times) for name, times in alternate(runs, args.repeats).items()
    }
    load = load_average()
    peaks = {kind: measure_peak(work, kind, args) for kind in ("ours", work.baseline)}
    result = {
        "work": work.name,
        "part": args.part,
        "load": load,
        "dtype": work.dtype,
        "layers": args.layers,
        "baseline": work.baseline,
        "seconds": seconds,
        "faster": seconds["baseline"] / seconds["ours"],
        "peak_MiB": peaks,
        "memory_ratio": peaks["ours"] / peaks[work.baseline],
    }
    if "ours compiled" in seconds:
        best_baseline = min(seconds["baseline"], seconds.get("baseline compiled", float("inf")))
        result["compiled_faster_than_best"] = best_baseline / seconds["ours compiled"]
    if error:
        result["exported_faster"] = {name: seconds["baseline"] / seconds[name] for name in error}
        result["exported_error"] = error
    result |= against_limits(seconds, work.batch)
    if not work.training:
        counted = counted_flops(work, args, clip)
        result["TFLOPs_counted"] = counted
        result["TFLOP_per_second"] = {
            name: 2 * counted["ours"] * work.batch / taken
            for name, taken in seconds.items()
            if name.startswith("ours")
        }
    return result


def all_runs(
    work: Work, args: argparse.Namespace, clip: torch.Tensor
) -> tuple[dict[str, Callable[[], None]], dict[str, float]]:
    """All that is timed, by name, and the errors of the exported graphs."""
    runs = eager_runs(work, args, clip)
    if work.compiled and not args.no_compile and args.part in ("all", "compiled"):
        runs |= compiled_runs(work, args, clip)
    if not args.no_products:
        runs |= matrix_products(work, args.layers)
    error = {}
    if work.exported and work.dtype == "float32" and args.part in ("all", "exported"):
        graphs = export(work, args)
        error = {
            name: relative_error(graph, build(work, "ours", args.layers), clip)
            for name, graph in graphs.items()
        }
        runs |= {name: partial(graph, clip) for name, graph in graphs.items()}
    return runs, error


def against_limits(seconds: dict[str, float], batch: int) -> dict[str, dict[str, float]]:
    """How our times stand to those of the matrix products alone, and of the frames through a ViT,
    where these were measured; and clips a second."""
    ours = {name: taken for name, taken in seconds.items() if name.startswith("ours")}
    result = {}
    products = [taken for name, taken in seconds.items() if name.startswith("products")]
    if products:
        result["over_matrix_products"] = {
            name: taken / min(products) for name, taken in ours.items()
        }
    result["clips_per_second"] = {
        name: batch / taken
        for name, taken in seconds.items()
        if name.startswith(("ours", "baseline"))
    }
    if "ViT frames" in seconds:
        result["over_ViT_frames"] = {
            name: taken
            / seconds["ViT frames compiled" if name.endswith("compiled") else "ViT frames"]
            for name, taken in ours.items()
        }
    return result


def counted_flops(work: Work, args: argparse.Namespace, clip: torch.Tensor) -> dict[str, float]:
    """TFLOPs of one view, in multiply-adds: ours, the baseline's, and the paper's, where it has the
    work."""
    counted = {
        kind: count_flops(build(work, kind, args.layers), clip) for kind in ("ours", work.baseline)
    }
    if work.scheme == "divided_space_time" and (work.frames, work.size) in PAPER_TFLOPS:
        counted["paper"] = PAPER_TFLOPS[work.frames, work.size]
    return counted


def eager_runs(
    work: Work, args: argparse.Namespace, clip: torch.Tensor
) -> dict[str, Callable[[], None]]:
    """Ours, the baseline, and the frames through a ViT."""
    runs = {"ours": runner(build(work, "ours", args.layers), clip, work)}
    runs["baseline"] = runner(build(work, work.baseline, args.layers), clip, work)
    if not work.all_tokens:
        runs["ViT frames"] = runner(build_vit(work, args.layers), clip.flatten(0, 1), work)
    return runs


def compiled_runs(
    work: Work, args: argparse.Namespace, clip: torch.Tensor
) -> dict[str, Callable[[], None]]:
    """The same three, by `torch.compile`."""
    runs = {}
    for name, kind in (("ours compiled", "ours"), ("baseline compiled", work.baseline)):
        runs[name] = runner(torch.compile(build(work, kind, args.layers)), clip, work)
    frames = clip.flatten(0, 1)
    vit = torch.compile(build_vit(work, args.layers))
    return runs | {"ViT frames compiled": runner(vit, frames, work)}


def export(work: Work, args: argparse.Namespace) -> dict[str, ExportedClassifier]:
    """Our network in ONNX Runtime and in OpenVINO, whichever is installed, in all precisions."""
    crop = {"height": work.size, "width": work.size}
    processor = TimeSformerVideoProcessor(
        num_frames=work.frames, size={"shortest_edge": work.size}, crop_size=crop
    )
    model, threads = build(work, "ours", args.layers).cpu(), args.threads
    graphs: dict[str, ExportedClassifier] = {}
    with tempfile.TemporaryDirectory() as folder:
        if not args.no_onnx:
            export_onnx(model, processor, folder, int8=True)
            for name in ("fp32", "int8"):
                graph = OnnxClassifier(folder, int8=name == "int8", threads=threads)
                graphs[f"ours ONNX {name}"] = graph
        if not args.no_openvino:
            plain, quantised = Path(folder, "plain"), Path(folder, "int8")
            export_openvino(model, processor, plain)
            # which ranges the activations have does not change the time
            export_openvino(model, processor, quantised, calibration_clips=[make_clip(work).cpu()])
            for name, path in (("fp32", plain), ("bf16", plain), ("int8", quantised)):
                graph = OpenVinoClassifier(path, precision=name, threads=threads)
                graphs[f"ours OpenVINO {name}"] = graph
    return graphs


@torch.inference_mode()
def relative_error(graph: ExportedClassifier, model: torch.nn.Module, clip: torch.Tensor) -> float:
    """The largest difference of logits in relation to the largest logit."""
    expected = model(clip).logits.cpu()
    return ((graph(clip).logits - expected).abs().max() / expected.abs().max()).item()


def as_text(result: dict) -> str:
    lines = [f"{result['work']} against {result['baseline']}"]
    lines += [f"  {name:<18} {seconds:8.3f} s" for name, seconds in result["seconds"].items()]
    memory = ", ".join(f"{kind} {peak:.0f} MiB" for kind, peak in result["peak_MiB"].items())
    lines.append(
        f"  {result['faster']:.2f}x faster, {result['memory_ratio']:.2f}x the memory ({memory})"
    )
    if "compiled_faster_than_best" in result:
        lines.append(
            f"  compiled: {result['compiled_faster_than_best']:.2f}x the better of the baseline's"
        )
    for name, faster in result.get("exported_faster", {}).items():
        error = result["exported_error"][name]
        lines.append(
            f"  {name}: {faster:.2f}x as fast as the baseline; logits differ by {error:.1e} of the largest"
        )
    for name, ratio in result.get("over_ViT_frames", {}).items():
        lines.append(f"  {name}: {ratio:.2f}x the time of its frames through a ViT")
    for name, rate in result["clips_per_second"].items():
        computed = result.get("TFLOP_per_second", {}).get(name)
        lines.append(
            f"  {name}: {rate:.2f} clips/s" + (f", {computed:.3f} TFLOP/s" if computed else "")
        )
    for name, ratio in result.get("over_matrix_products", {}).items():
        lines.append(f"  {name}: {ratio:.2f}x the time of its matrix products")
    if "TFLOPs_counted" in result:
        lines.append(
            "  TFLOPs "
            + ", ".join(f"{kind} {n:.3f}" for kind, n in result["TFLOPs_counted"].items())
        )
    return "\n".join(lines)


def draw(results: list[dict], path: Path) -> None:
    """Bars of speed and of memory against the baseline."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, 2, figsize=(12, 0.6 * len(results) + 1.5), sharey=True, layout="constrained"
    )
    labels = [f"{result['work']}\n(against {result['baseline']})" for result in results]
    for axis, key, title in zip(
        axes, ("faster", "memory_ratio"), ("times as fast", "times the memory")
    ):
        bars = axis.barh(labels, [result[key] for result in results], color="#3b6ea5")
        axis.bar_label(bars, fmt="%.2f")
        axis.axvline(1, color="black", linewidth=1)
        axis.set_xlabel(title)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=130)
