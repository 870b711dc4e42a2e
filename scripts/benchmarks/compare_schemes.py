#!/usr/bin/env python
"""The paper's Table 1 in miniature: the five attention schemes on classes that only the order of
frames tells apart.

    python scripts/benchmarks/compare_schemes.py --output_dir compare_attention

Every clip shows a shape that moves along a line. The four classes show the same frames, in another
order: forward, backward, out and back, in and out. A model that sees single frames, however many,
cannot do better than chance (25 %); one that compares frames can. All schemes have the same width
and depth, see the same clips in the same order, and train for the same number of steps. Offline, on
the CPU or a GPU; writes compare_attention.json, .md and .png.
"""

import argparse
import importlib.util
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from hf_timesformer import TimeSformerConfig, TimeSformerForVideoClassification
from hf_timesformer.cli.common import user_errors
from hf_timesformer.data.synthetic import motion_frames
from hf_timesformer.model.schemes import SCHEMES


PAPER_NAMES = {
    "space_only": "S",
    "joint_space_time": "ST",
    "divided_space_time": "T+S",
    "sparse_local_global": "L+G",
    "axial": "T+W+H",
}
NUM_FRAMES, SIZE, PATCH = 8, 32, 8
TIMES = torch.arange(NUM_FRAMES)
OUT_AND_BACK = torch.cat([TIMES[::2], TIMES[1::2].flip(0)])  # 0 2 4 6 7 5 3 1
ORDERS = {
    "forward": TIMES,
    "backward": TIMES.flip(0),
    "out and back": OUT_AND_BACK,
    "in and out": OUT_AND_BACK.flip(0),
}
FRAME_ORDERS = torch.stack(list(ORDERS.values()))  # (classes, frames)


def make_clips(seed: int, count: int) -> torch.Tensor:
    """`count` clips of a shape that moves to the right: float `(count, frames, 3, size, size)`,
    normalised.
    """
    rng = np.random.default_rng(seed)
    clips = np.stack(
        [motion_frames("right", rng, num_frames=NUM_FRAMES, size=SIZE) for _ in range(count)]
    )
    # (b, t, h, w, c) -> (b, t, c, h, w)
    pixel_values = torch.from_numpy(clips).permute(0, 1, 4, 2, 3).float()
    return (pixel_values / 255 - 0.45) / 0.225


def reorder(clips: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Each clip's frames in the order of its class."""
    return clips[torch.arange(len(clips))[:, None], FRAME_ORDERS[labels]]


def build(scheme: str, args: argparse.Namespace) -> TimeSformerForVideoClassification:
    """A small network of that scheme; all schemes draw their first weights from the same seed."""
    torch.manual_seed(args.seed)
    config = TimeSformerConfig(
        attention_type=scheme,
        image_size=SIZE,
        patch_size=PATCH,
        num_frames=NUM_FRAMES,
        hidden_size=args.width,
        num_hidden_layers=args.depth,
        num_attention_heads=4,
        intermediate_size=4 * args.width,
        initializer_range=0.1,  # the usual 0.02 suits a width of 768
        num_labels=len(ORDERS),
    )
    model = TimeSformerForVideoClassification(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("time_embeddings", "position_embeddings")):
            # from zero, which suits a trained ViT, order is learned late
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def train(
    model: torch.nn.Module,
    clips: torch.Tensor,
    args: argparse.Namespace,
    device: torch.device,
    progress: tqdm,
) -> list[float]:
    """AdamW with warm-up and cosine; every scheme sees the same clips at each step. Seconds of the
    steps.
    """
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.steps // 10, args.steps)
    seconds = []
    model.train()
    for _ in range(args.steps):
        labels = torch.randint(len(ORDERS), (args.batch_size,), generator=generator)
        chosen = torch.randint(len(clips), (args.batch_size,), generator=generator)
        pixel_values = reorder(clips[chosen], labels).to(device)
        start = time.perf_counter()
        loss = model(pixel_values=pixel_values, labels=labels.to(device)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        seconds.append(time.perf_counter() - start)
        progress.update()
    return seconds


@torch.inference_mode()
def accuracy(model: torch.nn.Module, clips: torch.Tensor, device: torch.device) -> float:
    """Top-1 over clips that training has not seen, each in all four orders."""
    model.eval()
    right = 0
    for label in range(len(ORDERS)):
        for batch in clips.split(64):
            pixel_values = reorder(batch, torch.full((len(batch),), label)).to(device)
            right += (model(pixel_values=pixel_values).logits.argmax(-1) == label).sum().item()
    return right / (len(clips) * len(ORDERS))


@torch.inference_mode()
def count_gflops(model: torch.nn.Module, clip: torch.Tensor) -> float:
    """Billions of multiply-adds for one clip (the paper's way of counting), all attention counted
    as dense.
    """
    model.set_attn_implementation("eager")  # fused attention on the CPU is invisible to the counter
    with FlopCounterMode(display=False) as counter:
        model(pixel_values=clip)
    model.set_attn_implementation("sdpa")
    return counter.get_total_flops() / 2e9


def compare(args: argparse.Namespace, device: torch.device) -> list[dict]:
    """One row for each scheme, printed as soon as it is known."""
    train_clips, test_clips = (
        make_clips(args.seed, args.train_clips),
        make_clips(args.seed + 1, args.test_clips),
    )
    rows = []
    for scheme in args.schemes:
        model = build(scheme, args).to(device)
        gflops = count_gflops(model, test_clips[:1].to(device))
        with tqdm(total=args.steps, desc=scheme, unit="step") as progress:
            seconds = train(model, train_clips, args, device, progress)
        rows.append(
            {
                "attention_type": scheme,
                "paper": PAPER_NAMES[scheme],
                "parameters": model.num_parameters(),
                "gflops": gflops,
                "ms_per_step": 1000 * statistics.median(seconds),
                "seconds": sum(seconds),
                "accuracy": accuracy(model, test_clips, device),
            }
        )
        print(
            f"{scheme}: {100 * rows[-1]['accuracy']:.1f} % in {rows[-1]['seconds']:.0f} s",
            flush=True,
        )
    return rows


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = [
        "| attention | paper | parameters | GFLOPs a clip | ms a training step | accuracy |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| `{row['attention_type']}` | {row['paper']} | {row['parameters'] / 1e3:.0f} k | {row['gflops']:.4f} | "
            f"{row['ms_per_step']:.0f} | {100 * row['accuracy']:.1f} % |"
        )
    return "\n".join(lines) + "\n"


def draw(path: Path, rows: list[dict]) -> None:
    """Accuracy of each scheme as bars, over the line of chance; cost beside it."""
    from matplotlib.figure import Figure  # optional dependency

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [f"{row['attention_type']}\n({row['paper']})" for row in rows]
    colours = ["tab:gray" if row["attention_type"] == "space_only" else "tab:blue" for row in rows]
    left.barh(names, [100 * row["accuracy"] for row in rows], color=colours)
    left.axvline(100 / len(ORDERS), color="tab:red", linestyle="--", label="chance")
    left.set(xlabel="accuracy, %", xlim=(0, 100), title="same frames, four orders")
    left.legend(loc="lower right")
    right.barh(names, [row["ms_per_step"] for row in rows], color=colours)
    right.set(xlabel="ms a training step", yticklabels=[], title="cost")
    for axes in (left, right):
        axes.invert_yaxis()
    figure.savefig(path, dpi=120)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="The five attention schemes on classes that only order tells apart."
    )
    parser.add_argument("--output_dir", type=Path, default=Path("compare_attention"))
    parser.add_argument("--schemes", nargs="+", choices=list(SCHEMES), default=list(SCHEMES))
    parser.add_argument("--steps", type=int, default=400, help="training steps of each scheme")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument(
        "--train_clips", type=int, default=1024, help="clips, each of which is shown in four orders"
    )
    parser.add_argument("--test_clips", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train and test every scheme, then write what came out."""
    args = parse_arguments()
    with user_errors():
        if args.steps < 1 or args.train_clips < 1 or args.test_clips < 1:
            raise ValueError("--steps, --train_clips and --test_clips must be at least 1")
        args.output_dir.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = compare(args, device)
    settings = {name: value for name, value in vars(args).items() if name != "output_dir"}
    report = {
        "task": f"{NUM_FRAMES} frames of {SIZE}x{SIZE} pixels in one of four orders: {', '.join(ORDERS)}",
        "chance": 1 / len(ORDERS),
        "device": str(device),
        "settings": settings,
        "results": rows,
    }
    (args.output_dir / "compare_attention.json").write_text(
        json.dumps(report, indent=2) + "\n", encoding="utf-8"
    )
    (args.output_dir / "compare_attention.md").write_text(table(rows), encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        print("no picture: matplotlib is not installed (pip install hf-timesformer[viz])")
    else:
        draw(args.output_dir / "compare_attention.png", rows)
    print(f"\n{table(rows)}\nchance is {100 / len(ORDERS):.0f} %; written to {args.output_dir}")


if __name__ == "__main__":
    main()
