"""bf16 on CPUs without gradients: products straight to oneDNN, and few keys written out."""

import pytest
import torch
from tiny import SCHEMES, clips, tiny_model
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers.activations import ACT2FN

from hf_timesformer.model import attention_functions, efficient_linear, upstream
from hf_timesformer.model.attention_functions import (
    eager_attention_forward,
    short_attention_forward,
)


pytestmark = pytest.mark.skipif(
    not upstream.has_onednn_bfloat16(), reason="oneDNN does not multiply bf16 here"
)
BF16 = torch.bfloat16


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def straight(monkeypatch):
    """Notes whether a product that goes straight to oneDNN takes GELU along."""
    seen, onednn_linear = [], upstream.onednn_linear

    def noting(inputs, weight, bias, gelu=False):
        seen.append(gelu)
        return onednn_linear(inputs, weight, bias, gelu)

    monkeypatch.setattr(efficient_linear, "onednn_linear", noting)
    monkeypatch.setattr(attention_functions, "USES_ONEDNN", True)
    return seen


@pytest.mark.parametrize("shape", [(1, 5), (7, 16), (2, 3, 4, 8), (0, 8)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_products(straight, shape, bias):
    """To a rounding of the exact value, also of strided inputs and weights."""
    inputs, weight = numbers(*shape).to(BF16), numbers(shape[-1], 6).to(BF16).mT
    bias = numbers(6).to(BF16) if bias else None
    exact = functional.linear(
        *(one if one is None else one.double() for one in (inputs, weight, bias))
    )
    found = efficient_linear.linear(inputs, weight, bias)
    assert straight == [False]
    assert found.dtype == BF16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-2)
    found = efficient_linear.linear(inputs.transpose(0, -2), weight, bias)
    torch.testing.assert_close(found.double(), exact.transpose(0, -2), rtol=2**-8, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "fused"),
    [("gelu", True), ("gelu_new", False), ("relu", False), ("gelu_python", False)],
)
@torch.no_grad()
def test_only_the_exact_gelu_is_taken_along(straight, name, fused):
    inputs, weight, bias = (one.to(BF16) for one in (numbers(9, 16), numbers(8, 16), numbers(8)))
    found = efficient_linear.activated_linear(inputs, weight, bias, ACT2FN[name])
    exact = ACT2FN[name](functional.linear(inputs.double(), weight.double(), bias.double()))
    assert straight == [fused]
    torch.testing.assert_close(found.double(), exact, rtol=2**-6, atol=2e-2)


def test_others_are_left_alone(straight):
    """Gradients, other dtypes, counters, tracers, kinds of tensors, oneDNN switched off."""
    inputs, weight = numbers(6, 4).to(BF16), numbers(3, 4).to(BF16)

    class Quantised(torch.Tensor):
        pass

    efficient_linear.linear(inputs, weight)
    with torch.no_grad():
        for dtype in (torch.float32, torch.float16):
            efficient_linear.linear(inputs.to(dtype), weight.to(dtype))
        efficient_linear.linear(inputs, weight.as_subclass(Quantised))
        with FlopCounterMode(display=False) as counter:
            efficient_linear.linear(inputs, weight)
        torch.jit.trace(
            lambda inputs: efficient_linear.linear(inputs, weight), inputs, check_trace=False
        )
        with torch.backends.mkldnn.flags(enabled=False):
            efficient_linear.linear(inputs, weight)
        torch.func.vmap(lambda one: efficient_linear.linear(one, weight))(inputs[:, None])
    assert counter.get_total_flops() == 2 * 6 * 4 * 3
    assert straight == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, BF16])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_written_out(dtype, masked):
    """The same as the plain one, of strided heads, with a scale that bf16 does not hold."""
    query, key, value = numbers(3, 5, 3, 2, 8).to(dtype).permute(2, 0, 3, 1, 4)
    mask = None
    if masked:
        mask = torch.zeros(3, 1, 1, 5, dtype=dtype)
        mask[0, ..., 3:] = torch.finfo(dtype).min
    module = torch.nn.Identity().eval()
    wide = (one if one is None else one.double() for one in (query, key, value, mask))
    exact = eager_attention_forward(module, *wide, scaling=0.3)[0]
    found, weights = short_attention_forward(module, query, key, value, mask, scaling=0.3)
    assert weights is None
    assert found.shape == exact.shape
    assert found.dtype == dtype
    tolerance = 3e-2 if dtype == BF16 else 1e-6
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_networks(straight, scheme):
    """The fast way is as near to float64 as the plain one is, give or take the luck of rounding."""
    model, inputs = tiny_model(scheme, num_frames=3), clips(16, 3, 3, 12, 8)
    with torch.no_grad():
        exact = model.double()(inputs.double()).logits
        model.bfloat16()
        found = model(inputs.bfloat16()).logits
        assert straight.count(True) == model.config.num_hidden_layers
        straight.clear()
        plain = model(inputs.bfloat16(), output_hidden_states=True).logits
    assert straight == []
    error, error_of_plain = ((one.double() - exact).norm() for one in (found, plain))
    assert error <= 1.5 * error_of_plain + 1e-3 * exact.norm()


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_networks_with_adapters(straight, scheme):
    """An adapter around the MLP's layers runs; GELU is taken along by plain layers alone."""
    peft = pytest.importorskip("peft")
    model, inputs = tiny_model(scheme, num_frames=3).double(), clips(16, 3, 3, 12, 8)
    without = model(inputs.double()).logits
    config = peft.LoraConfig(
        r=4,
        lora_alpha=16,
        target_modules=r".*(intermediate|output)\.dense",
        init_lora_weights=False,
    )
    adapted = peft.get_peft_model(model, config).eval()
    exact = adapted(inputs.double()).logits
    adapted.bfloat16()
    straight.clear()
    found = adapted(inputs.bfloat16()).logits
    assert straight
    assert not any(straight)
    plain = adapted(inputs.bfloat16(), output_hidden_states=True).logits
    error, error_of_plain = ((one.double() - exact).norm() for one in (found, plain))
    assert error <= 1.5 * error_of_plain + 1e-3 * exact.norm()
    assert error <= 0.2 * (exact - without).norm()


def test_long_sequences_and_gradients_stay_with_sdpa(straight):
    keys = torch.zeros(1, 1, attention_functions.SHORT_BFLOAT16_SEQUENCE, 1, dtype=BF16)
    assert not attention_functions.is_short_for_cpu(keys)
    with torch.no_grad():
        assert attention_functions.is_short_for_cpu(keys)
        assert not attention_functions.is_short_for_cpu(torch.cat((keys, keys), dim=2))
        assert not attention_functions.is_short_for_cpu(keys.float())
        assert not attention_functions.is_short_for_cpu(keys.to("meta"))
