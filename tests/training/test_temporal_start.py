"""The order of frames: what a network from an image ViT knows of it, and how it starts for few clips."""

import pytest
import torch

from hf_timesformer.model.configuration_timesformer import TimeSformerConfig
from hf_timesformer.model.modeling_timesformer import TimeSformerForVideoClassification
from hf_timesformer.training.arguments import ModelArguments, VideoTrainingArguments
from hf_timesformer.training.directions import cosines, right_angles
from hf_timesformer.training.optimization import freeze_parameters
from hf_timesformer.training.settle import settle_arguments
from hf_timesformer.training.temporal_start import (
    STARTS,
    start_blocks,
    start_time_embeddings,
    warn_if_blind_to_order,
)


def make_network(
    attention_type="divided_space_time", **options
) -> TimeSformerForVideoClassification:
    torch.manual_seed(0)
    fields = {
        "image_size": 32, "patch_size": 16, "num_frames": 8, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 32, "num_labels": 3, "initializer_range": 0.2,
    }  # fmt: skip
    config = TimeSformerConfig(**fields | options, attention_type=attention_type)
    return TimeSformerForVideoClassification(config).eval()


def start_temporal_half(model, start: str = "parts") -> int:
    return start_blocks(model, start) if start_time_embeddings(model) else 0


@pytest.fixture
def clip() -> torch.Tensor:
    return torch.rand(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def still(clip) -> torch.Tensor:
    """A clip in which nothing but the time embeddings tells the frames apart."""
    return clip[:, :1].expand_as(clip)


def orders_differ(model, clip: torch.Tensor) -> float:
    """How much logits change at least with the order of the frames."""
    with torch.no_grad():
        forwards = model(clip).logits
        others = [model(frames).logits for frames in (clip.flip(1), clip.roll(4, dims=1))]
    return min((logits - forwards).abs().max().item() for logits in others)


@pytest.mark.parametrize(
    "attention_type", ["divided_space_time", "joint_space_time", "axial", "space_only"]
)
def test_only_time_embeddings_tell_the_order_of_frames(attention_type, clip, caplog):
    """Temporal attention may have learned: with time embeddings of zero, frozen with the first
    blocks, no order is told. The recipe for small sets was such a network."""
    model = make_network(attention_type)
    for layer in model.timesformer.encoder.layer:
        for step in layer.earlier_steps:
            torch.nn.init.normal_(getattr(layer, f"{step}_dense").weight)
    freeze_parameters(model, "none", 0.5)
    assert orders_differ(model, clip) < 1e-4
    warn_if_blind_to_order(model)
    is_temporal = attention_type != "space_only"
    assert ("cannot tell the order of frames" in caplog.text) == is_temporal
    if not is_temporal:
        return
    torch.nn.init.normal_(model.timesformer.embeddings.time_embeddings)
    assert orders_differ(model, clip) > 1e-2
    caplog.clear()
    warn_if_blind_to_order(model)
    assert not caplog.text


@pytest.mark.parametrize("attention_type", ["divided_space_time", "axial"])
def test_each_temporal_head_begins_with_a_part_of_the_clip(attention_type, clip, still):
    model = make_network(attention_type, _attn_implementation="eager")
    freeze_parameters(model, "none", 0.5)
    frozen = {
        name: value.clone()
        for name, value in model.timesformer.encoder.layer[0].state_dict().items()
    }
    start_temporal_half(model)
    for name, value in model.timesformer.encoder.layer[0].state_dict().items():
        assert torch.equal(value, frozen[name])
    assert orders_differ(model, clip) > 1e-3
    with torch.no_grad():
        outputs = model(still, output_attentions=True)
    _, weights = outputs.temporal_attentions  # of the block that learns: (b*h*w, heads, t, t)
    centers = weights @ torch.arange(8.0)  # where in the clip a head looks, (b*h*w, heads, t)
    assert (centers.diff(dim=1) > 0.5).all()  # a later part for each head
    assert centers[:, 0].max() < 2.5 < 4.5 < centers[:, -1].min()
    # the queries are the same for all tokens
    torch.testing.assert_close(weights, weights[:, :, :1].expand_as(weights))


def test_heads_of_another_number_than_frames(still):
    """Three frames for four heads: each looks at the frame nearest to its part."""
    model = make_network(num_frames=3, _attn_implementation="eager")
    start_temporal_half(model)
    with torch.no_grad():
        outputs = model(still[:, :3], output_attentions=True)
    for weights in outputs.temporal_attentions:
        first, second, third, fourth = (weights @ torch.arange(3.0)).mean(dim=(0, 2))
        assert first < second < fourth
        assert first < third < fourth


@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize("frames", [1, 8])
def test_changes_are_written_in_the_first_two_blocks_that_learn(num_heads, frames, clip):
    model = make_network(num_hidden_layers=4, num_attention_heads=num_heads, num_frames=frames)
    freeze_parameters(model, "none", 0.25)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert start_temporal_half(model, "changes") == 2
    changed = {
        name.split("temporal")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    layers = {f"timesformer.encoder.layer.{number}." for number in (1, 2)}
    assert changed == layers | {"timesformer.embeddings.time_embeddings"}
    if frames > 1 and num_heads > 1:
        assert orders_differ(model, clip) > 1e-3
    again = make_network(num_hidden_layers=4, num_attention_heads=num_heads, num_frames=frames)
    freeze_parameters(again, "none", 0.25)
    times = model.timesformer.embeddings.time_embeddings
    again.timesformer.embeddings.time_embeddings.data.copy_(times)
    torch.rand(3)  # what is random comes from a generator of its own
    start_blocks(again, "changes")
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_directions_at_right_angles_and_cosines():
    directions = right_angles(3, 8, torch.Generator().manual_seed(0))
    torch.testing.assert_close(directions @ directions.T, torch.eye(3))
    waves = cosines(6)
    torch.testing.assert_close(waves @ waves.T, torch.eye(5))
    torch.testing.assert_close(waves.sum(dim=1), torch.zeros(5), atol=1e-6, rtol=0)
    assert (waves[0].diff() < 0).all()  # half a wave


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("start", [{"model": "run"}, {"from_vit": "vit"}])
def test_a_start_that_is_not_used_is_said(start, name, caplog, tmp_path):
    caplog.set_level("INFO")
    arguments = ModelArguments(**start, temporal_start=name)
    settle_arguments(arguments, VideoTrainingArguments(str(tmp_path)))
    assert (f"without --temporal_start {name}" in caplog.text) == ("model" in start)


def test_what_cannot_start_so():
    with pytest.raises(ValueError, match="qkv_bias false"):
        start_temporal_half(make_network(qkv_bias=False))


@pytest.mark.parametrize(
    ("attention_type", "starts"),
    [("space_only", []), ("joint_space_time", ["timesformer.embeddings.time_embeddings"])],
)
def test_other_schemes_get_time_embeddings_alone(attention_type, starts):
    model = make_network(attention_type)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start_temporal_half(model)
    changed = [
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert changed == starts
