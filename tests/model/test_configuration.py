"""The configuration: values that no network can be built from, and what is written for whom."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from tiny import SCHEMES, tiny_config

from hf_timesformer import TimeSformerConfig, TimeSformerForVideoClassification


# The paper's Table 1, in millions, with Something-Something-V2's 174 labels.
TABLE_1 = {
    "space_only": 85.9,
    "joint_space_time": 85.9,
    "divided_space_time": 121.4,
    "sparse_local_global": 121.4,
    "axial": 156.8,
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parameter_counts_are_the_papers(scheme):
    with torch.device("meta"):
        model = TimeSformerForVideoClassification(
            TimeSformerConfig(attention_type=scheme, num_labels=174)
        )
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == TABLE_1[scheme]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"attention_type": "divided"}, ["attention_type", "'divided'", *SCHEMES]),
        ({"image_size": 225}, ["image_size", "225", "16"]),
        ({"image_size": [224, 230]}, ["image_size", "230", "width", "16"]),
        ({"image_size": [224, 224, 3]}, ["image_size", "[224, 224, 3]"]),
        ({"patch_size": 0}, ["patch_size", "0"]),
        ({"patch_size": [16, -2]}, ["patch_size", "-2"]),
        ({"hidden_size": 770}, ["hidden_size", "770", "num_attention_heads=12"]),
        ({"num_attention_heads": 0}, ["num_attention_heads", "0"]),
        ({"num_frames": 0}, ["num_frames", "0"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0"]),
        ({"intermediate_size": -1}, ["intermediate_size", "-1"]),
        ({"num_channels": 0}, ["num_channels", "0"]),
        ({"drop_path_rate": 1.0}, ["drop_path_rate", "1.0", "[0, 1)"]),
        ({"drop_path_rate": -0.1}, ["drop_path_rate", "-0.1", "[0, 1)"]),
        ({"hidden_dropout_prob": 1.5}, ["hidden_dropout_prob", "1.5"]),
        ({"attention_probs_dropout_prob": 1}, ["attention_probs_dropout_prob", "1"]),
        (
            {"position_interpolation": "linear"},
            ["position_interpolation", "'linear'", "nearest", "bicubic"],
        ),
        (
            {"position_embedding_type": "time"},
            ["position_embedding_type", "'time'", "space_time", "none"],
        ),
        ({"classifier_hidden_size": 0}, ["classifier_hidden_size", "0"]),
        ({"hidden_act": "gulu"}, ["hidden_act", "gulu"]),
        ({"layer_norm_eps": -1.0}, ["layer_norm_eps", "-1.0"]),
        ({"num_frames": "8"}, ["num_frames", "8"]),
    ],
    ids=str,
)
def test_a_bad_value_is_named(fields, named):
    with pytest.raises((ValueError, StrictDataclassFieldValidationError)) as error:
        TimeSformerConfig(**fields)
    for text in named:
        assert text in str(error.value)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_save_and_load_keep_every_field(scheme, tmp_path):
    fields = {
        "image_size": [12, 8],
        "drop_path_rate": 0.1,
        "position_interpolation": "bicubic",
        "position_embedding_type": "space",
        "classifier_hidden_size": 7,
        "id2label": {0: "up", 1: "down"},
    }
    config = tiny_config(scheme, **{**fields, "num_labels": 2})
    config.save_pretrained(tmp_path)
    loaded = TimeSformerConfig.from_pretrained(tmp_path)
    ignored = {"transformers_version", "_name_or_path"}
    assert {k: v for k, v in loaded.to_dict().items() if k not in ignored} == {
        k: v for k, v in config.to_dict().items() if k not in ignored
    }
    assert loaded.id2label == {0: "up", 1: "down"}


def test_what_is_written_holds_no_float_where_stock_wants_an_integer(tmp_path):
    tiny_config("divided_space_time", drop_path_rate=0.0).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert type(stored["drop_path_rate"]) is int
    assert stored["model_type"] == "timesformer"
    assert "stochastic_depth_rate" not in stored


def test_the_grid_is_rows_by_columns():
    assert TimeSformerConfig().grid_size == (14, 14)
    assert tiny_config("axial", image_size=[12, 8], patch_size=[3, 4]).grid_size == (4, 2)
