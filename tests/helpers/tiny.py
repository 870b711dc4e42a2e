"""Networks small enough to run in milliseconds, with weights that hide nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hf_timesformer import TimeSformerConfig, TimeSformerForVideoClassification


SCHEMES = ("space_only", "joint_space_time", "divided_space_time", "sparse_local_global", "axial")
STOCK_SCHEMES = SCHEMES[:3]


def tiny_config(scheme: str, **fields) -> TimeSformerConfig:
    """A 6 x 4 grid of 2 x 2 pixels, 4 frames, 2 blocks of 2 heads of 8 channels."""
    defaults = {
        "image_size": [12, 8],
        "patch_size": 2,
        "num_frames": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "num_labels": 5,
    }
    return TimeSformerConfig(attention_type=scheme, **{**defaults, **fields})


def tiny_model(
    scheme: str, *, attention: str = "sdpa", seed: int = 0, **fields
) -> TimeSformerForVideoClassification:
    """A classifier in eval mode; every weight is random, those that start from zero too."""
    config = tiny_config(scheme, **fields)
    model = TimeSformerForVideoClassification._from_config(config, attn_implementation=attention)
    return randomise(model, seed).eval()


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator) * 0.35
        parameter.copy_(
            values + 1
            if name.split(".")[-2].find("norm") >= 0 and name.endswith("weight")
            else values
        )
    return model


@contextmanager
def layer_by_layer(model: torch.nn.Module) -> Iterator[None]:
    """Somebody looks at what each module gives: then nothing is fused, left out, recomputed or done
    in place.
    """
    handles = [module.register_forward_hook(lambda *_: None) for module in model.modules()]
    yield
    for handle in handles:
        handle.remove()


def clips(*shape: int, seed: int = 1) -> torch.Tensor:
    """Random pixels `(batch, [views,] frames, 3, height, width)`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, relative: float = 1e-4) -> None:
    """The largest difference within `relative` of the largest expected magnitude."""
    assert actual.shape == expected.shape, (
        f"{tuple(actual.shape)} instead of {tuple(expected.shape)}"
    )
    actual, expected = actual.detach().double(), expected.detach().double()
    worst, scale = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert worst <= relative * scale, f"differs by {worst:.3g} where values reach {scale:.3g}"
