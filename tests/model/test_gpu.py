"""What runs on a GPU gives the numbers of the CPU; skipped where there is no GPU."""

import copy

import pytest
import torch
from tiny import SCHEMES, clips, tiny_model


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LABELS = torch.tensor([1, 4, 0])
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1}
ATTENTIONS = [(scheme, attention) for scheme in SCHEMES for attention in ("eager", "sdpa")]
ATTENTIONS += [("divided_space_time", "flex_attention"), ("joint_space_time", "flex_attention")]


@pytest.fixture(autouse=True)
def exact_products():
    """Convolutions in fp32 too; matrix products are so by default."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def network(scheme: str, attention: str = "sdpa", **fields) -> torch.nn.Module:
    """Wide enough for the kernels of flash and flex attention, whose heads have 16 channels or
    more.
    """
    return tiny_model(scheme, attention=attention, hidden_size=32, intermediate_size=48, **fields)


def moved(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    return copy.deepcopy(model).to("cuda", dtype)


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """The difference is, in root mean square, at most `tolerance` of what is expected."""
    difference = (actual.detach().cpu().double() - expected.detach().double()).norm().item()
    assert difference <= tolerance * expected.detach().norm().item()


def step(
    model: torch.nn.Module, pixel_values: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and the gradient of the loss in all parameters, one after the other."""
    model.train()
    result = model(pixel_values, labels=labels)
    result.loss.backward()
    return result.logits, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("scheme", "attention"), ATTENTIONS, ids=[f"{scheme}-{name}" for scheme, name in ATTENTIONS]
)
def test_logits_and_gradients_are_those_of_the_cpu(scheme, attention, dtype):
    reference, pixel_values = network(scheme, "eager").double(), clips(3, 4, 3, 12, 8)
    model = moved(network(scheme, attention), dtype)
    on_gpu = pixel_values.to("cuda", dtype)
    with torch.inference_mode():
        assert_near(model(on_gpu).logits, reference(pixel_values.double()).logits, TOLERANCE[dtype])
    logits, gradient = step(reference, pixel_values.double(), LABELS)
    gpu_logits, gpu_gradient = step(model, on_gpu, LABELS.cuda())
    assert_near(gpu_logits, logits, TOLERANCE[dtype])
    assert_near(gpu_gradient, gradient, TOLERANCE[dtype])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_autocast_trains_with_recomputed_blocks(scheme):
    pixel_values = clips(3, 4, 3, 12, 8)
    logits, gradient = step(network(scheme, "eager").double(), pixel_values.double(), LABELS)
    model = moved(network(scheme), torch.float32)
    model.gradient_checkpointing_enable()
    with torch.autocast("cuda", torch.bfloat16):
        gpu_logits, gpu_gradient = step(model, pixel_values.cuda(), LABELS.cuda())
    assert_near(gpu_logits, logits, TOLERANCE[torch.bfloat16])
    assert_near(gpu_gradient, gradient, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_compiled_by_inductor(scheme):
    pixel_values = clips(3, 4, 3, 12, 8)
    model = moved(network(scheme), torch.float32)
    compiled = torch.compile(model, fullgraph=True)
    with torch.inference_mode():
        expected = network(scheme, "eager").double()(pixel_values.double()).logits
        assert_near(compiled(pixel_values.cuda()).logits, expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", ["divided_space_time", "axial"])
def test_more_groups_than_a_kernel_has_blocks_for(scheme, dtype):
    """A launch has at most 65535 blocks in its second and third dimension; these batches have more
    groups.
    """
    model = moved(network(scheme, image_size=[32, 32], patch_size=2), dtype)
    pixel_values = clips(2, 4, 3, 32, 32).repeat(140, 1, 1, 1, 1)  # 280 * 256 places
    with torch.inference_mode():
        expected = network(scheme, "eager", image_size=[32, 32], patch_size=2).double()(
            pixel_values[:2].double()
        )
        logits = model(pixel_values.to("cuda", dtype)).logits
    assert_near(logits, expected.logits.repeat(140, 1), TOLERANCE[dtype])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_waits_for_nothing_on_the_gpu(scheme):
    """A step that reads a value back from the GPU stalls it: neither the forward nor the backward
    pass does.
    """
    model = moved(network(scheme), torch.float32)
    pixel_values, labels = clips(3, 4, 3, 12, 8).cuda(), LABELS.cuda()
    step(model, pixel_values, labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, pixel_values, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
