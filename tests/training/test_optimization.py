"""Learning rates, weight decay and freezing of each parameter, against numbers worked out by hand."""

import pytest
import torch

from hf_timesformer.model.configuration_timesformer import TimeSformerConfig
from hf_timesformer.model.modeling_timesformer import TimeSformerForVideoClassification
from hf_timesformer.training.optimization import (
    freeze_parameters,
    parameter_groups,
    plain_name,
    step_schedule,
)


TINY = {
    "image_size": 32, "num_frames": 2, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip


def make_network(
    attention_type="divided_space_time", **options
) -> TimeSformerForVideoClassification:
    config = TimeSformerConfig(**{"num_labels": 3} | TINY | options, attention_type=attention_type)
    return TimeSformerForVideoClassification(config)


def rates_by_name(model, groups) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }


def test_learning_rate_and_weight_decay_of_each_parameter():
    model = make_network()
    groups = parameter_groups(
        model, learning_rate=1.0, head_learning_rate=5.0, weight_decay=0.1, layer_decay=0.5
    )
    found = rates_by_name(model, groups)
    assert found.keys() == dict(model.named_parameters()).keys()
    layer = "timesformer.encoder.layer"
    expected = {
        "classifier.weight": (5.0, 0.1),
        "classifier.bias": (5.0, 0.0),
        "timesformer.layernorm.weight": (1.0, 0.0),
        f"{layer}.1.attention.attention.qkv.weight": (1.0, 0.1),
        f"{layer}.1.temporal_attention.attention.qkv.bias": (1.0, 0.0),
        f"{layer}.0.intermediate.dense.weight": (0.5, 0.1),
        f"{layer}.0.temporal_layernorm.weight": (0.5, 0.0),
        "timesformer.embeddings.patch_embeddings.projection.weight": (0.25, 0.1),
        "timesformer.embeddings.cls_token": (0.25, 0.0),
        "timesformer.embeddings.position_embeddings": (0.25, 0.0),
        "timesformer.embeddings.time_embeddings": (0.25, 0.0),
    }
    assert {name: found[name] for name in expected} == expected
    assert groups[0]["lr"] == 1.0  # what Trainer logs


def test_weight_decay_on_all_parameters():
    model = make_network()
    (group,) = parameter_groups(model, learning_rate=1.0, weight_decay=0.1, decay_all=True)
    assert (len(group["params"]), group["weight_decay"]) == (len(list(model.parameters())), 0.1)


def test_a_rate_of_zero_is_a_rate():
    model = make_network()
    groups = parameter_groups(
        model, learning_rate=1.0, head_learning_rate=0.0, temporal_learning_rate=0.0
    )
    found = rates_by_name(model, groups)
    assert found["classifier.weight"][0] == found["timesformer.embeddings.time_embeddings"][0] == 0
    assert found["timesformer.layernorm.weight"][0] == 1


def test_flat_shards_decay_by_name_as_the_whole_parameters_do():
    """As FSDP1 shows them: one-dimensional, of any length, and under longer names."""
    model, wrapped = make_network(), make_network()
    for module in wrapped.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(parameter.detach().flatten()))
    layers = wrapped.timesformer.encoder.layer
    for index, layer in enumerate(layers):
        layers[index] = torch.nn.Module()
        layers[index]._fsdp_wrapped_module = layer
    outer = torch.nn.Module()
    outer._fsdp_wrapped_module = wrapped
    outer.no_weight_decay = wrapped.no_weight_decay  # FSDP1 passes on what it does not know
    options = {
        "learning_rate": 1.0,
        "head_learning_rate": 3.0,
        "weight_decay": 0.1,
        "layer_decay": 0.5,
    }
    expected = rates_by_name(model, parameter_groups(model, **options))
    found = rates_by_name(outer, parameter_groups(outer, **options))
    assert any("_fsdp_wrapped_module" in name for name in found)
    assert {plain_name(name): rate for name, rate in found.items()} == expected
    outer._flat_param = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="set use_orig_params to true in --fsdp_config"):
        parameter_groups(outer, **options)


def test_what_an_image_vit_does_not_have_learns_at_its_own_rate():
    model = make_network("axial")
    groups = parameter_groups(model, learning_rate=1.0, temporal_learning_rate=8.0, layer_decay=0.5)
    found = {name: rate for name, (rate, _) in rates_by_name(model, groups).items()}
    layer = "timesformer.encoder.layer"
    expected = {
        "classifier.weight": 1.0,
        "timesformer.layernorm.weight": 1.0,
        f"{layer}.1.attention.attention.qkv.weight": 1.0,
        f"{layer}.1.temporal_attention.attention.qkv.weight": 8.0,
        f"{layer}.1.width_attention.attention.qkv.bias": 8.0,
        f"{layer}.0.temporal_layernorm.weight": 4.0,
        f"{layer}.0.temporal_dense.weight": 4.0,
        f"{layer}.0.intermediate.dense.weight": 0.5,
        "timesformer.embeddings.position_embeddings": 0.25,
        "timesformer.embeddings.time_embeddings": 2.0,
    }
    assert {name: found[name] for name in expected} == expected
    freeze_parameters(model, "spatial")
    learning = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "class" not in name
    }
    assert {name for name, rate in found.items() if rate in (8, 4, 2)} == learning
    assert groups[0]["lr"] == 1.0  # what Trainer logs


@pytest.mark.parametrize(
    ("scheme", "learning"),
    [
        ("divided_space_time", {"temporal", "time_embeddings", "classifier"}),
        ("axial", {"temporal", "width", "time_embeddings", "classifier"}),
        ("sparse_local_global", {"local", "time_embeddings", "classifier"}),
        ("joint_space_time", {"time_embeddings", "classifier"}),
    ],
)
def test_freeze_spatial_leaves_what_the_image_vit_did_not_have(scheme, learning):
    model = make_network(scheme)
    freeze_parameters(model, "spatial")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == any(word in name for word in learning), name


def test_blocks_that_do_not_learn_are_not_dropped():
    model = make_network(num_hidden_layers=4, drop_path_rate=0.3)
    rates = [layer.drop_path.rate for layer in model.timesformer.encoder.layer]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    freeze_parameters(model, "none", 0.5)
    rates = [layer.drop_path.rate for layer in model.timesformer.encoder.layer]
    assert rates == pytest.approx([0, 0, 0.2, 0.3])
    freeze_parameters(model, "backbone")
    assert not any(layer.drop_path.rate for layer in model.timesformer.encoder.layer)


def test_freeze_backbone_and_none():
    model = make_network()
    freeze_parameters(model, "backbone")
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]
    groups = parameter_groups(model, learning_rate=1.0)
    assert sum(len(group["params"]) for group in groups) == 2
    freeze_parameters(model, "none")
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="freeze 'all' is unknown"):
        freeze_parameters(model, "all")


def test_step_schedule():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=8.0)
    schedule, rates = step_schedule(optimizer, [4, 6], factor=0.5, num_warmup_steps=1), []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [4, 8, 8, 8, 4, 4, 2, 2]
