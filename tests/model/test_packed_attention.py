"""What GPUs do with groups of few keys, many to one sequence, and the masks that they keep: proved
on the CPU against each group by itself.
"""

import io

import pytest
import torch
from tiny import SCHEMES, assert_close, clips, tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hf_timesformer.model import attention as attention_module
from hf_timesformer.model import masks
from hf_timesformer.model.attention_functions import Sdpa
from hf_timesformer.model.masks import blocks_mask, kept
from hf_timesformer.model.way import TRAINING


CPU = torch.device("cpu")
SIZES = {"dtype": torch.float32, "device": CPU}


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """CPUs pack and keep as GPUs do; counts the sequences of each call of sdpa."""
    monkeypatch.setattr(attention_module, "PACKING_DEVICES", ("cpu",))
    monkeypatch.setattr(masks, "KEEPING_DEVICES", ("cpu",))
    masks._remembered.cache_clear()
    yield
    masks._remembered.cache_clear()


@pytest.fixture
def sequences(monkeypatch):
    """`(sequences, keys)` of each call of sdpa."""
    seen = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def noting(query, key, *args, **kwargs):
        seen.append((query.shape[0], key.shape[2]))
        return sdpa(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    return seen


def by_itself(layer, qkv):
    """Each group alone, in float64."""
    groups = [layer._attend(*layer._heads(one), None)[0] for one in qkv.double().split(1)]
    return torch.cat(groups)


TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("groups", "keys"), [(32, 8), (33, 8), (5, 8), (49, 7), (1, 3), (130, 1), (9, 32)]
)
def test_packed_groups_are_groups_by_themselves(groups, keys, dtype, as_on_a_gpu, sequences):
    layer = tiny_model("divided_space_time").timesformer.encoder.layer[0]
    layer = layer.temporal_attention.attention
    width = 3 * layer.num_heads * layer.head_dim
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(groups, keys, width, generator=generator).to(dtype).requires_grad_()
    weights = torch.randn(groups, keys, width // 3, generator=generator).to(dtype)
    expected = by_itself(layer, qkv)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), qkv)
    sequences.clear()
    found, _ = layer.attend_groups(qkv, (groups, 1, keys), (groups, 1, 1), sdpa=Sdpa.BRIEF)
    together = 128 // keys
    assert sequences == [(-(-groups // together), together * keys)]
    (gradient,) = torch.autograd.grad((found * weights).sum(), qkv)
    assert found.dtype == gradient.dtype == dtype
    for actual, reference in ((found, expected), (gradient, wanted)):
        scale = reference.abs().max().item()
        assert (actual.double() - reference).abs().max().item() <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("scheme", SCHEMES)
def test_networks_that_pack_and_keep_give_the_same(scheme, as_on_a_gpu):
    """Logits and gradients, of a grid with odd sides, twice: the second time from kept masks."""
    model, inputs = tiny_model(scheme), clips(3, 3, 3, 10, 10)
    expected = tiny_model(scheme, attention="eager").double()
    expected(inputs.double()).logits.square().sum().backward()
    for _ in range(2):
        with torch.inference_mode():  # what is kept then must serve in training too
            assert_close(model(inputs).logits, expected(inputs.double()).logits.float())
        model.train().zero_grad()
        model(inputs).logits.square().sum().backward()
        for one, other in zip(model.parameters(), expected.parameters(), strict=True):
            assert_close(one.grad, other.grad.float(), 1e-4)
        model.eval()


def test_more_sequences_than_a_launch_takes(as_on_a_gpu, sequences, monkeypatch):
    """Packed or not, with masks and without: parts, one after the other."""
    monkeypatch.setattr(attention_module, "MOST_SEQUENCES", 2)
    monkeypatch.setattr(attention_module, "PACKED_SEQUENCE", 8)
    monkeypatch.setattr(attention_module, "MOST_PACKED_KEYS", 4)
    for scheme in ("divided_space_time", "sparse_local_global"):
        model, inputs = tiny_model(scheme).train(), clips(3, 3, 3, 10, 10)
        expected = tiny_model(scheme, attention="eager")(inputs).logits
        sequences.clear()
        assert_close(model(inputs).logits, expected)
        assert max(count for count, _ in sequences) == 2


def test_only_sdpa_of_few_keys_is_packed(as_on_a_gpu):
    def packs(attention, keys):
        layer = tiny_model("divided_space_time", attention=attention).timesformer.encoder.layer[0]
        layer = layer.temporal_attention.attention
        return layer._packs(torch.zeros(2, keys, 3 * layer.num_heads * layer.head_dim))

    assert packs("sdpa", 32)
    assert not packs("sdpa", 33)
    assert not packs("eager", 8)
    assert not packs("flex_attention", 8)


def test_cpus_neither_pack_nor_keep():
    layer = tiny_model("divided_space_time").timesformer.encoder.layer[0]
    assert not layer.temporal_attention.attention._packs(torch.zeros(2, 8, 48))
    assert kept(blocks_mask, 2, 2, **SIZES) is not kept(blocks_mask, 2, 2, **SIZES)


def test_a_mask_is_kept_by_sizes_dtype_and_device(as_on_a_gpu):
    mask = kept(blocks_mask, 2, 2, **SIZES)
    assert mask is kept(blocks_mask, 2, 2, **SIZES)
    block = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).bool()
    assert torch.equal(mask[0, 0] == 0, block)
    assert kept(blocks_mask, 2, 3, **SIZES).shape[-1] == 6
    assert kept(blocks_mask, 2, 2, dtype=torch.bfloat16, device=CPU).dtype == torch.bfloat16
    with torch.inference_mode():
        made_in_inference = kept(blocks_mask, 4, 2, **SIZES)
    assert not made_in_inference.is_inference()


def test_nothing_is_kept_of_what_only_stands_for_numbers(as_on_a_gpu):
    with FakeTensorMode():
        kept(blocks_mask, 2, 2, **SIZES)
    torch.func.vmap(lambda row: row + kept(blocks_mask, 2, 2, **SIZES).sum())(torch.zeros(2))
    torch.jit.trace(
        lambda row: row + kept(blocks_mask, 2, 2, **SIZES).sum(), torch.zeros(2), check_trace=False
    )
    assert masks._remembered.cache_info().currsize == 0
    model, inputs = tiny_model("sparse_local_global"), clips(1, 4, 3, 12, 8)
    torch.export.export(model, (inputs,))
    torch.compile(model, backend="eager", fullgraph=True)(inputs)
    assert masks._remembered.cache_info().currsize == 0


def test_masks_are_no_part_of_a_model(as_on_a_gpu):
    model = tiny_model("sparse_local_global")

    def stored():
        buffer = io.BytesIO()
        torch.save(model, buffer)
        return len(buffer.getvalue())

    before = stored()
    with torch.no_grad():
        model(clips(1, 4, 3, 12, 8))
    assert masks._remembered.cache_info().currsize > 0
    assert stored() == before


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_graph_without_breaks(scheme, as_on_a_gpu):
    """What `mode="reduce-overhead"` needs, in inference and in training."""
    model, inputs = tiny_model(scheme), clips(2, 4, 3, 12, 8)
    with torch.no_grad():
        explained = torch._dynamo.explain(model)(inputs)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    compiled = torch.compile(model.train(), backend="aot_eager", fullgraph=True)
    expected = model(inputs).logits
    assert_close(compiled(inputs).logits, expected)


class Copied(TorchDispatchMode):
    """Counts the numbers that operations move and do nothing else to."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("cat", "clone", "copy_", "stack", "constant_pad_nd"):
            self.numbers += out.numel()
        return out


def test_tokens_are_copied_twice_in_a_block_of_divided_attention():
    """Once to group them for the last step, once to join CLS and patches; nothing 3 d wide.

    With nine frames, so that CPUs run sdpa; backward, the gradients of queries, keys and values are
    stacked as well, 3 d wide in each of two steps.
    """
    network = tiny_model("divided_space_time", num_frames=9).timesformer.train()
    layer, grid = network.encoder.layer[0], (6, 4, 9)
    tokens = torch.randn(2, 1 + 6 * 4 * 9, 16, requires_grad=True)
    with Copied() as forward:
        out = layer(tokens, grid, TRAINING)
    assert forward.numbers < 2.2 * tokens.numel()
    with Copied() as backward:
        out.sum().backward()
    assert backward.numbers < 10.5 * tokens.numel()
