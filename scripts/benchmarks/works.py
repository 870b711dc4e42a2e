"""What `benchmarks model` and others run: a scheme on clips of a size, by our network, by stock's,
or its frames through a ViT.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_timesformer import TimeSformerConfig, TimeSformerForVideoClassification


NAMES = {
    "divided_space_time": "T+S",
    "joint_space_time": "ST",
    "space_only": "S",
    "sparse_local_global": "L+G",
    "axial": "T+W+H",
}


@dataclass(frozen=True)
class Work:
    """One comparison: a scheme on clips of a size, logits or one training step."""

    scheme: str
    frames: int
    size: int
    batch: int = 1
    training: bool = False
    compiled: bool = False
    exported: bool = False  # to ONNX Runtime as well, on CPU
    baseline: str = "stock"  # or the scheme of ours to compare with
    all_tokens: bool = False  # the base model, which gives all tokens, in place of the logits
    dtype: str = "float32"

    @property
    def name(self) -> str:
        task = "training step" if self.training else "logits"
        return f"{NAMES[self.scheme]} {self.frames}x{self.size} {task}, batch {self.batch}"


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_clip(work: Work) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(work.batch, work.frames, 3, work.size, work.size, generator=generator)
    return clip.to(device(), getattr(torch, work.dtype))


def build(work: Work, kind: str, layers: int) -> torch.nn.Module:
    """Ours, stock's or ours with the scheme `kind`, with the same random weights (no layer left at
    zero).
    """
    fields = config_fields(work, work.scheme if kind in ("ours", "stock") else kind, layers)
    ours = TimeSformerForVideoClassification(TimeSformerConfig(**fields))
    generator = torch.Generator().manual_seed(1)
    for parameter in ours.parameters():
        parameter.data.normal_(0, 0.02, generator=generator)
    model = ours
    if kind == "stock":
        model = TimesformerForVideoClassification(TimesformerConfig(**fields))
        model.load_state_dict(ours.state_dict())
    return model.to(device(), getattr(torch, work.dtype)).train(work.training)


def build_vit(work: Work, layers: int) -> torch.nn.Module:
    """transformers' image ViT of the same size, which takes the frames of the clips one by one."""
    fields = config_fields(work, work.scheme, layers)
    fields = {name: fields[name] for name in ("image_size", "num_labels", "num_hidden_layers")}
    vit = ViTForImageClassification(ViTConfig(**fields, attn_implementation="sdpa"))
    return vit.to(device(), getattr(torch, work.dtype)).train(work.training)


def config_fields(work: Work, scheme: str, layers: int) -> dict:
    """What both configs, stock's and ours, are made from: the base network."""
    return {
        "attention_type": scheme,
        "num_frames": work.frames,
        "image_size": work.size,
        "num_labels": 400,
        "num_hidden_layers": layers,
    }


def runner(model: torch.nn.Module, clip: torch.Tensor, work: Work) -> Callable[[], None]:
    """What is timed: one forward pass, or one training step."""
    network = model.base_model if work.all_tokens else model
    labels = torch.zeros(len(clip), dtype=torch.long, device=clip.device)

    def logits() -> None:
        with torch.inference_mode():
            network(clip)

    def step() -> None:
        model(clip, labels=labels).loss.backward()
        model.zero_grad(set_to_none=True)

    return step if work.training else logits


def alternate(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, taken in turn `repeats` times after a run that is not counted."""
    times = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, call in runs.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def count_flops(model: torch.nn.Module, clip: torch.Tensor) -> float:
    """TFLOPs of one clip as PyTorch counts them, a multiply-add as one as in the paper.

    Torch's counter knows the fused attention of GPUs and not that of CPUs, which it takes for free.
    """
    with (
        torch.inference_mode(),
        FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter,
    ):
        model(clip[:1])
    return counter.get_total_flops() / 2e12


def _cpu_attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_, **__) -> int:
    """Of shapes `(n, heads, l, c)`."""
    return sdpa_flop_count(query, key, value)


CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops}
