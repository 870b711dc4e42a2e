"""The five schemes against the oracle: hidden states, logits, gradients, recorded attention,
memory.
"""

import itertools

import pytest
import torch
from oracle import STEPS, Oracle, group_key, groups, mask, places
from tiny import SCHEMES, assert_close, clips, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_timesformer.model import efficient_inference, schemes


# (frames, rows, columns) of patches; the config's own are 4, 6, 4.
GRIDS = {
    "as configured": (4, 6, 4),
    "odd sides": (3, 5, 5),
    "rectangle": (2, 3, 7),
    "one frame": (1, 4, 4),
    "more frames": (7, 4, 6),
    "larger": (3, 9, 8),
    "one row": (2, 1, 3),
    "one patch": (1, 1, 1),
}


def pixels(
    grid: tuple[int, int, int], batch: int = 2, patch: tuple[int, int] = (2, 2)
) -> torch.Tensor:
    frames, rows, columns = grid
    return clips(batch, frames, 3, rows * patch[0], columns * patch[1])


def oracle_of(model: torch.nn.Module) -> Oracle:
    return Oracle(model.config, model.state_dict())


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_network_equals_oracle(scheme, attention, grid):
    model, inputs = tiny_model(scheme, attention=attention), pixels(grid)
    expected = oracle_of(model)(inputs)
    with torch.no_grad():
        recorded = model(inputs, output_hidden_states=True)
        base = model.timesformer(inputs)
        fast = model(inputs)
    for actual in (recorded, fast):
        assert_close(actual.logits, expected["logits"])
    assert_close(base.last_hidden_state, expected["last_hidden_state"])
    assert len(recorded.hidden_states) == 1 + model.config.num_hidden_layers
    for actual, wanted in zip(recorded.hidden_states, expected["hidden_states"]):
        assert_close(actual, wanted)


@pytest.mark.parametrize("grid", [(3, 5, 5), (7, 4, 6), (1, 4, 4)], ids=str)
@pytest.mark.parametrize("tokens", [1, 20, 70])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_part_by_part_equals_oracle(scheme, tokens, grid, monkeypatch):
    """Inference on so many tokens at a time: on parts of groups of clips, of single groups, and
    between.
    """
    monkeypatch.setattr(efficient_inference, "CPU_ROWS", tokens)
    monkeypatch.setattr(efficient_inference, "CPU_HEADS", 1)
    monkeypatch.setattr(schemes, "TILE_QUERIES", tokens)
    model, inputs = tiny_model(scheme), pixels(grid, batch=3)
    expected = oracle_of(model)(inputs)
    with torch.no_grad():
        assert_close(model(inputs).logits, expected["logits"])
        assert_close(model.timesformer(inputs).last_hidden_state, expected["last_hidden_state"])


@pytest.mark.parametrize(
    "fields",
    [
        {"patch_size": [3, 2], "image_size": [12, 8]},
        {"qkv_bias": False},
        {"position_interpolation": "bicubic"},
        {"position_embedding_type": "space"},
        {"position_embedding_type": "none"},
        {"classifier_hidden_size": 9},
        {"num_hidden_layers": 1, "num_attention_heads": 4},
    ],
    ids=lambda fields: next(iter(fields.items())).__repr__(),
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_options_equal_oracle(scheme, fields):
    model = tiny_model(scheme, **fields)
    patch = (3, 2) if "patch_size" in fields else (2, 2)
    for grid in ((4, 6, 4), (6, 5, 7), (3, 9, 3)):
        inputs = pixels(grid, batch=1, patch=patch)
        with torch.no_grad():
            assert_close(model(inputs).logits, oracle_of(model)(inputs)["logits"])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_equal_oracle(scheme, attention):
    """Of the pixels and of every weight, through all tokens and through the classifier."""
    model, inputs = tiny_model(scheme, attention=attention), pixels((3, 5, 4))
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    expected_inputs = inputs.double().requires_grad_()
    inputs.requires_grad_()
    expected = Oracle(model.config, weights)(expected_inputs)
    tokens = model.timesformer(inputs).last_hidden_state
    direction = clips(*tokens.shape, seed=3)

    def loss(tokens, logits):
        return (tokens * direction.to(tokens)).sum() + 10 * logits.pow(2).sum()

    loss(tokens, model(inputs).logits).backward()
    loss(expected["last_hidden_state"], expected["logits"]).backward()
    assert_close(inputs.grad, expected_inputs.grad)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert_close(parameter.grad, weights[name].grad)


def test_groups_are_those_of_the_pairwise_rules():
    """The regroupings are partitions that the rules of the design imply, on even, odd and one-wide
    sides.
    """
    for grid in ((4, 6, 2), (5, 3, 7), (1, 1, 5), (2, 1, 1)):
        numbers = torch.arange(1, 1 + grid[0] * grid[1] * grid[2]).reshape(1, *grid, 1)
        for step in schemes.STRIDES:
            stride = schemes.STRIDES[step](*grid)
            grouped = schemes.group(numbers, stride)
            assert [[n - 1 for n in row.flatten().tolist() if n] for row in grouped] == groups(
                step, *grid
            )
            assert torch.equal(schemes.ungroup(grouped, stride, grid), numbers)
            exists = schemes.key_mask(grid, stride, numbers.device)
            assert torch.equal(
                grouped[..., 0] > 0,
                torch.ones_like(grouped[..., 0]).bool() if exists is None else exists,
            )


@pytest.mark.parametrize("grid", [(14, 14, 2), (5, 9, 1), (1, 2, 3), (28, 3, 1), (2, 2, 2)])
def test_local_tiles_see_the_windows(grid):
    """Every query is in one tile, and sees in its region exactly the keys of its window, cut at the
    borders.
    """
    numbers = torch.arange(grid[0] * grid[1] * grid[2]).reshape(grid)
    seen = torch.zeros(numbers.numel(), numbers.numel(), dtype=torch.int)
    rows, columns = schemes.local_tiles(*grid)
    for (tile_rows, key_rows), (tile_columns, key_columns) in itertools.product(rows, columns):
        queries, keys = (tile_rows, tile_columns), (key_rows, key_columns)
        block = schemes.local_mask(queries, keys, *grid[:2])
        # all frames alike
        block = block.repeat_interleave(grid[2], 0).repeat_interleave(grid[2], 1)
        seen[numbers[queries].flatten()[:, None], numbers[keys].flatten()] += block.int()
    assert torch.equal(seen, mask("local", *grid).int())


def test_local_window_is_the_papers():
    """A 7 x 7 window of all frames on the 14 x 14 grid; a quarter of it in a corner."""
    counts = mask("local", 14, 14, 2).sum(dim=1).reshape(14, 14, 2)
    assert counts[7, 7, 0] == 7 * 7 * 2
    assert counts[0, 0, 0] == 4 * 4 * 2


@pytest.mark.parametrize("grid", [(4, 6, 4), (3, 5, 5), (1, 3, 2)], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_recorded_attention_equals_oracle(scheme, grid):
    """Every step's weights by name, in the documented layout; rows sum to one."""
    model, inputs = tiny_model(scheme, attention="eager"), pixels(grid)
    with torch.no_grad():
        outputs = model(inputs, output_attentions=True)
    expected = oracle_of(model)(inputs)
    size = expected["grid"]
    names = {step: f"{step}_attentions" for step in STEPS[scheme][:-1]} | {
        STEPS[scheme][-1]: "attentions"
    }
    for step, name in names.items():
        assert len(outputs[name]) == model.config.num_hidden_layers
        for actual, wanted in zip(outputs[name], expected[step]):
            assert_close(actual.sum(dim=-1), torch.ones(actual.shape[:-1]))
            layout = dense_layout if step == "local" else grouped_layout
            compare_weights(actual, *layout(step, wanted, size))
    absent = {f"{step}_attentions" for step in ("temporal", "local", "width")} - set(names.values())
    assert all(name not in outputs for name in absent)


def dense_layout(step, weights, grid):
    return weights, torch.ones(weights.shape[-1], dtype=torch.bool).expand(1, -1)


def grouped_layout(step, weights, grid):
    """The oracle's weights as `(batch*groups, heads, l, l)`, and which of the `l` tokens of a group
    exist.

    Tokens lie in a group in `(h, w, t)` order on the grid of the largest group, so that smaller
    groups have gaps.
    """
    patch_weights, cls_weights = weights if isinstance(weights, tuple) else (weights, None)
    members = groups(step, *grid)
    whole = [(place, number) for number, place in enumerate(places(*grid))]
    first = [place for place, number in whole if number in members[0]]  # the largest group
    exists = torch.zeros(len(members), len(first), dtype=torch.bool)
    blocks = []
    for row, numbers in enumerate(members):
        cells = slots(step, first, [place for place, number in whole if number in numbers])
        exists[row, cells] = True
        block = patch_weights.new_zeros(*patch_weights.shape[:2], len(first), len(first))
        offset = 0 if cls_weights is None else 1
        chosen = patch_weights[:, :, numbers][..., [offset + n for n in numbers]]
        block[:, :, torch.tensor(cells)[:, None], torch.tensor(cells)] = chosen
        if cls_weights is not None:
            wide = block.new_zeros(*block.shape[:2], 1 + len(first), 1 + len(first))
            wide[:, :, 1:, 1:] = block
            wide[:, :, [1 + cell for cell in cells], 0] = patch_weights[:, :, numbers, 0]
            wide[:, :, 0, [0] + [1 + cell for cell in cells]] = cls_weights[
                :, :, row, [0] + [1 + n for n in numbers]
            ]
            block = wide
        blocks.append(block)
    if cls_weights is not None:
        exists = torch.nn.functional.pad(exists, (1, 0), value=True)
    return torch.stack(blocks, dim=1).flatten(0, 1), exists


def slots(step, first, own):
    """Where the places of a group lie among those of the largest one: at the same position along
    each axis.
    """

    def ranks(group):
        axes = [sorted({place[axis] for place in group}) for axis in range(3)]
        return [tuple(axis.index(c) for axis, c in zip(axes, place)) for place in group]

    order = {rank: number for number, rank in enumerate(ranks(first))}
    return [order[rank] for rank in ranks(own)]


def compare_weights(actual, expected, exists):
    real_rows = exists.repeat(actual.shape[0] // exists.shape[0], 1)
    rows = real_rows[:, None, :, None].expand_as(actual)
    assert_close(torch.where(rows, actual, 0), expected)
    # no weight on what is not there
    assert torch.all(actual[~real_rows[:, None, None, :].expand_as(actual)] == 0)


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "scheme", ["space_only", "divided_space_time", "sparse_local_global", "axial"]
)
def test_no_matrix_of_all_tokens_by_all_tokens(scheme, attention):
    """Nothing as large as one head's `(n, n)`: no such weights, no such mask, in a training step
    either.
    """
    frames, rows, columns = 12, 14, 14
    model = tiny_model(scheme, attention=attention, num_hidden_layers=1, num_attention_heads=1)
    inputs = pixels((frames, rows, columns), batch=1)
    tokens = frames * rows * columns
    with LargestTensor() as largest, torch.no_grad():
        model.timesformer(inputs)
    assert largest.numel < tokens * tokens / 3
    with LargestTensor() as largest:
        model.timesformer(inputs).last_hidden_state.sum().backward()
    assert largest.numel < tokens * tokens / 3


def test_joint_keeps_the_promise_of_the_dispatch_mode():
    """The check above can fail: joint attention written out does make that matrix."""
    model = tiny_model(
        "joint_space_time", attention="eager", num_hidden_layers=1, num_attention_heads=1
    )
    with LargestTensor() as largest, torch.no_grad():
        model.timesformer(pixels((3, 6, 6), batch=1))
    assert largest.numel >= (3 * 6 * 6) ** 2


def test_group_key_of_every_partition_is_its_rule():
    """The oracle's own shorthand: two patches have one key exactly if they see each other."""
    grid = (3, 4, 5)
    for step in schemes.STRIDES:
        keys = [group_key(step, place) for place in places(*grid)]
        same = torch.tensor([[one == other for other in keys] for one in keys])
        assert torch.equal(same, mask(step, *grid))
