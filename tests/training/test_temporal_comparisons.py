"""`--temporal_start comparisons`: which frames are alike, held against naive attention."""

import pytest
import torch
from torch.nn import functional

from hf_timesformer.model.configuration_timesformer import TimeSformerConfig
from hf_timesformer.model.modeling_timesformer import TimeSformerForVideoClassification
from hf_timesformer.training.classifier_fit import fit_classifier
from hf_timesformer.training.directions import cosines, right_angles
from hf_timesformer.training.optimization import freeze_parameters
from hf_timesformer.training.temporal_comparisons import (
    Clock,
    _Tokens,
    best_directions,
    read_clock,
    sort_comparisons,
    write_comparisons,
)
from hf_timesformer.training.temporal_start import start_blocks, start_time_embeddings


FRAMES, HEADS, SIZE = 8, 4, 64


def make_network(**options) -> TimeSformerForVideoClassification:
    torch.manual_seed(0)
    fields = {
        "image_size": 32, "patch_size": 16, "num_frames": FRAMES, "hidden_size": SIZE,
        "num_hidden_layers": 4, "num_attention_heads": HEADS, "intermediate_size": 64, "num_labels": 2,
        "initializer_range": 0.2, "attention_type": "divided_space_time",
    }  # fmt: skip
    network = TimeSformerForVideoClassification(TimeSformerConfig(**fields | options)).eval()
    for layer in network.timesformer.encoder.layer:  # as from an image ViT
        torch.nn.init.zeros_(layer.temporal_dense.weight)
        torch.nn.init.uniform_(layer.temporal_layernorm.weight, 0.5, 2)
    freeze_parameters(network, "none", 0.5)
    start_time_embeddings(network)
    return network


def make_clips(count: int, seed: int = 0) -> torch.Tensor:
    """A blurred picture that turns half into another: `(count, FRAMES, 3, 32, 32)`."""
    coarse = torch.randn(2 * count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    pictures = functional.interpolate(coarse, size=32, mode="bilinear").view(2, count, 1, 3, 32, 32)
    share = torch.linspace(0, 0.5, FRAMES).view(-1, 1, 1, 1)
    return pictures[0].lerp(pictures[1], share)


@pytest.fixture
def clock() -> Clock:
    """Tokens that tell the time in seven directions of their own."""
    basis = right_angles(SIZE, SIZE, torch.Generator().manual_seed(1))
    marks = 3 * cosines(FRAMES).T @ basis[:7]
    read = best_directions(marks, torch.eye(SIZE))
    return Clock(marks, read, read, quiet=basis[7:20], variance=1.0)


@pytest.fixture
def patches(clock) -> torch.Tensor:
    """Patches `(1, 4*t, d)` that say nothing of the time but by their marks."""
    content = torch.randn(4, FRAMES, SIZE, generator=torch.Generator().manual_seed(2))
    telling = clock.marks.T @ torch.linalg.pinv(clock.marks.T)
    return (content - content @ telling + clock.marks).flatten(0, 1)[None]


def test_directions_that_content_disturbs_least():
    generator = torch.Generator().manual_seed(0)
    marks = torch.randn(5, 12, generator=generator)
    marks = marks - marks.mean(dim=0)
    root = torch.randn(12, 12, generator=generator)
    covariance = root @ root.T
    directions = best_directions(marks, covariance)
    torch.testing.assert_close(marks @ directions.T, torch.eye(5) - 1 / 5, atol=1e-4, rtol=0)
    floored = covariance + 0.03 * covariance.diagonal().mean() * torch.eye(12)
    least = (directions @ floored @ directions.T).diagonal()
    blind = torch.eye(12) - torch.linalg.pinv(marks) @ marks  # what marks do not project on
    for _ in range(20):  # any others that read the marks as well are disturbed more
        others = directions + 0.1 * torch.randn(5, 12, generator=generator) @ blind
        torch.testing.assert_close(marks @ others.T, marks @ directions.T, atol=1e-4, rtol=0)
        assert ((others @ floored @ others.T).diagonal() > least).all()


def test_first_block_writes_when_frames_are_alike(clock, patches):
    layer = make_network(_attn_implementation="eager").timesformer.encoder.layer[2]
    with torch.no_grad():
        directions = write_comparisons(layer, clock, HEADS, torch.Generator().manual_seed(0))
        context, weights = layer.temporal_attention(patches, (2, 2, FRAMES), with_weights=True)
        update = layer.temporal_dense(context)
    waves = cosines(FRAMES)
    expected = torch.zeros(4, FRAMES, len(waves))
    content = patches.view(4, FRAMES, SIZE) - clock.marks
    queries = layer.temporal_attention.attention.qkv.weight[:SIZE].view(HEADS, -1, SIZE)
    for place in range(4):
        for head in range(1, HEADS):
            seen = content[place] @ queries[head].T
            alike = (seen @ seen.T / (SIZE / HEADS) ** 0.5).softmax(-1)  # the naive way
            torch.testing.assert_close(weights[place, head], alike, atol=1e-4, rtol=0)
            expected[place] += (alike - 1 / FRAMES) @ waves.T
    written = (update @ directions.T).view(4, FRAMES, -1)
    torch.testing.assert_close(written, expected, atol=1e-3, rtol=0)
    outside = update - update @ directions.T @ directions
    assert outside.abs().max() < 1e-4


def test_second_block_reads_each_part_by_a_head(clock, patches):
    network = make_network(_attn_implementation="eager")
    layer = network.timesformer.encoder.layer[3]
    directions = clock.quiet[:7]
    with torch.no_grad():
        sort_comparisons(layer, clock, HEADS, directions, torch.Generator().manual_seed(0))
        context, weights = layer.temporal_attention(patches, (2, 2, FRAMES), with_weights=True)
        update = layer.temporal_dense(context).view(4, FRAMES, SIZE)
    centers = weights @ torch.arange(FRAMES).float()  # (4, heads, t)
    middles = torch.tensor([0.5, 2.5, 4.5, 6.5])[:, None]
    torch.testing.assert_close(centers, middles.expand(4, 4, FRAMES), atol=0.6, rtol=0)
    # all frames are told the same: what the parts have written, as cosines over the parts
    torch.testing.assert_close(update, update[:, :1].expand_as(update))
    written = (patches @ directions.T).view(4, 1, FRAMES, 7)
    of_parts = (weights @ written)[:, :, 0]  # (4, heads, 7)
    size = (cosines(HEADS) @ of_parts).flatten(1).norm(dim=1)
    torch.testing.assert_close(update[:, 0].norm(dim=1), size)


def test_clock_is_read_off_clips():
    network, clips = make_network(), make_clips(6)
    tokens = _Tokens(network, clips, "cpu", None)
    layer = network.timesformer.encoder.layer[0]
    clock = read_clock(tokens, layer)
    with torch.no_grad():
        base = network.timesformer
        whole, grid = base.embeddings(clips)
        still, _ = base.embeddings(clips[::3, 4:5].expand(-1, FRAMES, -1, -1, -1))
        seen, stood = (
            layer.temporal_layernorm(x[:, 1:]).view(-1, FRAMES, SIZE) for x in (whole, still)
        )
    marks = stood.mean(dim=0) - stood.mean(dim=(0, 1))
    torch.testing.assert_close(clock.marks, marks)
    content = (seen - marks).flatten(0, 1)
    covariance = torch.cov(content.T, correction=0)
    torch.testing.assert_close(clock.variance, covariance.diagonal().mean().item())
    said = (clock.quiet @ covariance @ clock.quiet.T).diagonal()
    assert len(said) == SIZE - 1
    assert (said.diff() > -1e-5).all()
    # what is written there can be read through the LayerNorm
    louder = whole[:, 1:] + 100 * clock.quiet[0]
    assert (layer.temporal_layernorm(louder) @ clock.quiet[0]).min() > 3
    expected = best_directions(marks, covariance)
    torch.testing.assert_close(clock.of_values, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("options", [{}, {"num_attention_heads": 1}, {"num_frames": 1}])
@pytest.mark.parametrize("frozen", [0.5, 0.75])
def test_only_blocks_that_learn_are_started(options, frozen):
    """One or two of them, alike in every process; nothing is drawn from torch's generator."""
    clips = make_clips(4)[:, : options.get("num_frames", FRAMES)]
    networks = [make_network(**options) for _ in range(2)]
    for network in networks:
        freeze_parameters(network, "none", frozen)
    before = {name: value.clone() for name, value in networks[0].state_dict().items()}
    drawn = torch.get_rng_state()
    counts = [start_blocks(network, "comparisons", clips) for network in networks]
    assert torch.equal(torch.get_rng_state(), drawn)
    assert counts == [round(4 * (1 - frozen))] * 2
    for name, value in networks[0].state_dict().items():
        assert torch.equal(value, networks[1].state_dict()[name])
        assert value.isfinite().all()
        if not torch.equal(value, before[name]):
            assert name.startswith(
                tuple(f"timesformer.encoder.layer.{i}.temporal_" for i in (2, 3))
            )


def test_halves_that_have_changed_places_are_told():
    """By a classifier of what the untrained network gives, about clips that it has not seen."""
    network = make_network(initializer_range=0.05)
    embeddings = network.timesformer.embeddings
    for parameter in (
        embeddings.patch_embeddings.projection.weight,
        embeddings.position_embeddings,
    ):
        parameter.data *= 0.03  # about as loud as the time embeddings
    clips = make_clips(200)
    start_blocks(network, "comparisons", clips[:24])
    whole = torch.cat((clips, clips.roll(FRAMES // 2, dims=1)))
    labels = torch.arange(2).repeat_interleave(200)
    with torch.no_grad():
        features = network.timesformer(whole).last_hidden_state[:, 0]
    seen = torch.arange(400) % 200 < 150
    weight, bias = fit_classifier(features[seen], functional.one_hot(labels[seen], 2).float())
    right = (features[~seen].double() @ weight.T + bias).argmax(-1) == labels[~seen]
    assert right.double().mean() > 0.8
