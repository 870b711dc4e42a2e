"""What a run starts from: labels, network, processor."""

from pathlib import Path

import pytest
import torch

from hf_timesformer import TimeSformerVideoProcessor
from hf_timesformer.model.configuration_timesformer import TimeSformerConfig
from hf_timesformer.model.modeling_timesformer import TimeSformerForVideoClassification
from hf_timesformer.training.starting_point import (
    load_network,
    make_processor,
    parse_overrides,
    read_size,
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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    labels = {0: "run", 1: "jump", 2: "sit"}
    torch.manual_seed(1)  # each test begins at 0: a new classifier there is another one
    model = make_network(id2label=labels, label2id={name: i for i, name in labels.items()})
    model.save_pretrained(folder)
    return folder


def test_networks_to_start_from(checkpoint):
    model, ids = load_network(["jump", "run", "sit"], model=str(checkpoint))
    assert ids == [1, 0, 2]
    fresh, ids = load_network(["fall", "fly", "run"], model=str(checkpoint), new_head=True)
    assert (ids, fresh.config.id2label) == ([0, 1, 2], {0: "fall", 1: "fly", 2: "run"})
    torch.testing.assert_close(fresh.timesformer.state_dict(), model.timesformer.state_dict())
    assert not torch.equal(fresh.classifier.weight, model.classifier.weight)
    assert load_network(["a"], model=str(checkpoint), new_head=True)[0].config.num_labels == 1
    assert load_network(["a", "b"], config_overrides=TINY, num_frames=4)[0].config.num_frames == 4
    with pytest.raises(ValueError, match="nothing to start from"):
        load_network(["a"])
    with pytest.raises(ValueError, match="exclude each other"):
        load_network(["a"], model="m", from_vit="v")


def test_processor_of_the_run(checkpoint, tmp_path):
    config = TimeSformerConfig(**TINY)
    processor = make_processor(config, None, image_size=48, sampling="segments")
    assert (processor.num_frames, processor.sampling, processor.crop_size["height"]) == (
        2,
        "segments",
        48,
    )
    assert processor.size["shortest_edge"] == 48
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.2, 0.3], "num_frames": 5}'
    )
    processor = make_processor(config, str(tmp_path), num_frames=3)
    assert (list(processor.image_mean), processor.num_frames) == ([0.1, 0.2, 0.3], 3)
    with pytest.raises(
        ValueError, match="image_size 100 is no multiple of the patch size 16: take 96 or 112"
    ):
        make_processor(config, None, image_size=100)
    for size in (None, [64, 96]):
        processor = make_processor(
            TimeSformerConfig(**TINY | {"image_size": [32, 48]}), None, image_size=size
        )
        height, width = size or (32, 48)
        assert processor.crop_size == {"height": height, "width": width}
        assert processor.size == {"shortest_edge": height}
    with pytest.raises(
        ValueError, match="image_size 40 is no multiple of the patch size 16: take 32 or 48"
    ):
        make_processor(config, None, image_size=[32, 40])


def test_processor_of_a_network_for_grey_clips(caplog):
    config = TimeSformerConfig(**TINY, num_channels=1)
    colours = {"image_mean": [0.3, 0.4, 0.8], "image_std": [0.2, 0.2, 0.2]}
    processor = make_processor(config, None, **colours)
    assert processor.image_mean == pytest.approx([0.5])
    assert processor.image_std == pytest.approx([0.2])
    assert "become their luminance" in caplog.text
    own = make_processor(config, None, image_mean=[0.4], image_std=[0.3])
    assert list(own.image_mean) == [0.4]


@pytest.mark.parametrize(
    ("channels", "settings", "message"),
    [
        (4, {}, "takes 4 channels, and video files hold 3"),
        (3, {"image_mean": [0.4], "image_std": [0.2]}, "image_mean is for 1"),
    ],
)
def test_channels_that_videos_do_not_have(channels, settings, message):
    with pytest.raises(ValueError, match=message):
        make_processor(TimeSformerConfig(**TINY, num_channels=channels), None, **settings)


def test_a_released_checkpoint_is_trained_with_its_own_sampling(tmp_path, caplog):
    """Its processor file, VideoMAE's, has none: the run samples as inference does."""
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "VideoMAEImageProcessor", "image_mean": [0.4, 0.4, 0.4]}'
    )
    for labels, frames, sampling, rate in (
        (400, 16, "clip", 16),
        (174, 2, "segments", 32),
        (7, 2, "segments", 32),  # no released one is like it: the whole video
    ):
        config = TimeSformerConfig(**TINY | {"num_frames": frames}, num_labels=labels)
        config.save_pretrained(tmp_path)
        with caplog.at_level("INFO"):
            trained = make_processor(config, str(tmp_path))
        used = TimeSformerVideoProcessor.from_pretrained(tmp_path)
        names = ("num_frames", "sampling", "sampling_rate", "target_fps", "image_mean", "crop_size")
        for name in names:
            assert getattr(trained, name) == getattr(used, name), name
        assert (trained.sampling, trained.sampling_rate) == (sampling, rate)
        assert "does not say how to sample a video. Assumed: " in caplog.text
        caplog.clear()
    assert make_processor(config, str(tmp_path), sampling_rate=4).sampling == "clip"


@pytest.mark.parametrize(
    ("values", "size"), [(None, None), (448, 448), ([224], 224), ([96, 128], [96, 128])]
)
def test_image_size_is_one_number_or_two(values, size):
    assert read_size(values) == size


def test_image_size_of_three_numbers_is_refused():
    with pytest.raises(
        ValueError, match="--image_size takes one number, or height and width, got 1 2 3"
    ):
        read_size([1, 2, 3])


def test_config_overrides():
    assert parse_overrides("hidden_size=96, drop_path_rate=0.1,attention_type=axial") == {
        "hidden_size": 96,
        "drop_path_rate": 0.1,
        "attention_type": "axial",
    }
    assert parse_overrides(None) == {}
    with pytest.raises(ValueError, match="takes name=value pairs"):
        parse_overrides("hidden_size")
