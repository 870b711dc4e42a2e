"""A GPU in one short run: values against the CPU, then profiles, then the table, within
`--minutes`.

    python scripts/benchmarks gpu --json gpu.json

It is made for a machine that is lent for minutes: what says most comes first, and what no longer
fits is said to be left out. Without a GPU it says so and ends.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from machine import this_machine
from works import NAMES, Work, alternate, build, build_vit, device, make_clip, runner

from hf_timesformer.model import attention


# The goals' own sizes: bf16, 16 clips in inference, 8 in training.
INFERENCE = Work("divided_space_time", 8, 224, batch=16, dtype="bfloat16")
TRAINING = Work("divided_space_time", 8, 224, batch=8, training=True, dtype="bfloat16")
# More than 65,535 groups of one place each (7 x 7 places of 1,400 clips): a grid axis of CUDA ends
# there.
MANY_GROUPS = Work("divided_space_time", 2, 112, batch=1400, dtype="bfloat16")
TOP_KERNELS = 12
TOLERANCE = 0.05  # of the largest logit: bf16 keeps 8 bits, over 12 blocks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmarks gpu`."""
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="what does not fit is left out, and said so"
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--json", type=Path)


def run(args: argparse.Namespace) -> None:
    """Values, profiles, table."""
    if not torch.cuda.is_available():
        print("no GPU ran: there is none on this machine")
        return
    print(f"{this_machine()}, median of {args.repeats}", flush=True)
    report: dict = {"machine": this_machine().as_dict()}
    parts: tuple[tuple[str, Callable[[argparse.Namespace], dict]], ...] = (
        ("values", check_values),
        ("temporal", temporal_attention),
        ("profiles", profile),
        ("inference", lambda args: measure(INFERENCE, args)),
        ("training", lambda args: measure(TRAINING, args)),
        ("many_groups", many_groups),
    )
    end = time.monotonic() + 60 * args.minutes
    for name, part in parts:
        if time.monotonic() > end:
            report[name] = "left out: no time was left"
        else:
            report[name] = part(args)
        print(name, json.dumps(report[name], indent=2), flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def check_values(args: argparse.Namespace) -> dict[str, float]:
    """The largest difference of bf16 logits on the GPU from fp32 logits on the CPU, over the
    largest logit.
    """
    errors = {}
    for scheme, short in NAMES.items():
        work = Work(scheme, 4, 64, batch=2)
        model = build(work, "ours", layers=2).eval()
        clip = make_clip(work)
        with torch.inference_mode():
            expected = model.cpu()(clip.cpu()).logits
            low = (
                model.to("cuda", torch.bfloat16)(clip.to("cuda", torch.bfloat16))
                .logits.float()
                .cpu()
            )
        errors[short] = ((low - expected).abs().max() / expected.abs().max()).item()
    wrong = {name: error for name, error in errors.items() if not error < TOLERANCE}
    if wrong:
        raise SystemExit(f"wrong values on the GPU, as shares of the largest logit: {wrong}")
    return errors


@contextmanager
def groups_apart() -> Iterator[None]:
    """Each group of few keys is a sequence of its own, as it is on CPUs: the old path, to compare
    with."""
    before = attention.PACKING_DEVICES
    attention.PACKING_DEVICES = ()
    try:
        yield
    finally:
        attention.PACKING_DEVICES = before


def apart(call: Callable[[], None]) -> Callable[[], None]:
    """`call`, with groups of few keys apart."""

    def run_apart() -> None:
        with groups_apart():
            call()

    return run_apart


def temporal_attention(args: argparse.Namespace) -> dict[str, float]:
    """The temporal attention of one block alone, packed and apart: milliseconds, and the largest
    difference from fp32 on the CPU, over the largest number.
    """
    model = build(INFERENCE, "ours", layers=1)
    layer = model.timesformer.encoder.layer[0].temporal_attention.attention
    places, frames = INFERENCE.batch * (INFERENCE.size // 16) ** 2, INFERENCE.frames
    qkv = torch.randn(places, frames, layer.qkv.out_features, generator=torch.Generator())
    few = qkv[:100].bfloat16()
    expected = layer.attend_groups(few.float(), (100, 1, frames), (100, 1, 1))[0]
    qkv = qkv.to(device(), torch.bfloat16).requires_grad_()

    def forward() -> torch.Tensor:
        return layer.attend_groups(
            qkv, (places, 1, frames), (places, 1, 1), sdpa=attention.Sdpa.BRIEF
        )[0]

    def step() -> None:
        (gradient,) = torch.autograd.grad(forward().sum(), qkv)

    found = {}
    for name, path in (("packed", nullcontext), ("apart", groups_apart)):
        with path():
            context = forward().detach()[:100].float().cpu()
        error = (context - expected).abs().max() / expected.abs().max()
        found[f"{name}, error"] = error.item()
        if not found[f"{name}, error"] < TOLERANCE:
            raise SystemExit(f"wrong values of temporal attention: {found}")
    calls = {}
    for name, call in (("forward", forward), ("forward and backward", step)):
        calls |= {f"packed, {name}, ms": call, f"apart, {name}, ms": apart(call)}
    for name, times in alternate(calls, args.repeats).items():
        found[name] = round(1e3 * sorted(times)[len(times) // 2], 3)
    return found


def ways(work: Work, layers: int) -> dict[str, Callable[[], None]]:
    """Ours, stock's and the frames through a ViT, eager and compiled."""
    clip = make_clip(work)
    frames = clip.flatten(0, 1)
    calls = {}
    for suffix, wrap in (("", lambda model: model), (" compiled", torch.compile)):
        calls[f"ours{suffix}"] = runner(wrap(build(work, "ours", layers)), clip, work)
        old = runner(wrap(build(work, "ours", layers)), clip, work)
        calls[f"ours, groups apart{suffix}"] = apart(old)
        calls[f"stock{suffix}"] = runner(wrap(build(work, "stock", layers)), clip, work)
        calls[f"ViT frames{suffix}"] = runner(wrap(build_vit(work, layers)), frames, work)
    if not work.training:
        graphs = torch.compile(build(work, "ours", layers), mode="reduce-overhead")
        calls["ours reduce-overhead"] = runner(graphs, clip, work)
    return calls


def measure(work: Work, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Milliseconds, clips a second, and the time over that of the ViT frames, all in turn."""
    times = alternate(ways(work, args.layers), args.repeats)
    medians = {name: sorted(taken)[len(taken) // 2] for name, taken in times.items()}
    table = {}
    for name, seconds in medians.items():
        is_eager = not name.endswith(("compiled", "reduce-overhead"))
        vit = medians["ViT frames" if is_eager else "ViT frames compiled"]
        row = {"ms": 1e3 * seconds, "over_ViT_frames": seconds / vit}
        if not name.startswith("ViT"):
            row["clips_per_second"] = work.batch / seconds
        table[name] = {key: round(value, 3) for key, value in row.items()}
    return table


def profile(args: argparse.Namespace) -> dict[str, list[dict]]:
    """The kernels that take most of the GPU's time, for one call of each way of ours."""
    found = {}
    for title, work in (("inference", INFERENCE), ("training", TRAINING)):
        for name, call in ways(work, args.layers).items():
            if name in ("ours", "ours compiled"):
                found[f"{title}, {name}"] = _top_kernels(call)
    return found


def _top_kernels(call: Callable[[], None]) -> list[dict]:
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as recorded:
        call()
        torch.cuda.synchronize()
    kernels = [event for event in recorded.key_averages() if event.self_device_time_total > 0]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in kernels)
    return [
        {
            "kernel": event.key[:90],
            "us": round(event.self_device_time_total),
            "share": round(event.self_device_time_total / total, 3),
            "calls": event.count,
        }
        for event in kernels[:TOP_KERNELS]
    ]


def many_groups(args: argparse.Namespace) -> dict[str, str]:
    """Whether more groups than an axis of the kernels' grid has run at all: eager, compiled,
    training.
    """
    answers = {}
    training = replace(MANY_GROUPS, training=True)
    for name, work, wrap in (
        ("eager", MANY_GROUPS, lambda model: model),
        ("compiled", MANY_GROUPS, torch.compile),
        ("training", training, lambda model: model),
    ):
        call = runner(wrap(build(work, "ours", layers=1)), make_clip(work), work)
        call()
        torch.cuda.synchronize()
        answers[name] = "ran"
    return answers
