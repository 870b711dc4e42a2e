"""Checkpoints whose processor file does not say how to sample: as they were trained, and one line
says so.
"""

import json
from pathlib import Path

import pytest
from transformers import (
    AutoVideoProcessor,
    TimesformerConfig,
    TimesformerVideoProcessor,
    VideoMAEConfig,
    VideoMAEVideoProcessor,
)
from transformers.video_utils import VideoMetadata

import hf_timesformer.video.video_processing_timesformer as module
from hf_timesformer import TimeSformerVideoProcessor
from hf_timesformer.hub.model_card import cards_folder
from hf_timesformer.video.released_sampling import (
    RELEASED_ON_HUB,
    complete_settings,
    released_sampling,
)


LABELS = {
    "Kinetics-400": 400,
    "Kinetics-600": 600,
    "Something-Something-V2": 174,
    "HowTo100M": 1059,
}
RELEASED = json.loads((cards_folder() / "released.json").read_text(encoding="utf-8"))
VIDEOMAE_FILE = {
    "image_processor_type": "VideoMAEImageProcessor",
    "image_mean": [0.45, 0.45, 0.45],
    "image_std": [0.225, 0.225, 0.225],
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
}


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    """What is said of assumptions."""
    lines = []
    monkeypatch.setattr(module.logger, "warning_once", lines.append)
    return lines


def write_checkpoint(folder: Path, settings: dict | None = None, **config) -> Path:
    """The two small files of a released checkpoint as the Hub has them."""
    TimesformerConfig(**config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(VIDEOMAE_FILE if settings is None else settings)
    )
    return folder


@pytest.mark.parametrize("released", RELEASED, ids=lambda released: released["card"])
def test_the_table_is_that_of_the_model_zoo(released):
    wanted = {"sampling": "segments"}
    if "sampling_rate" in released:
        wanted = {"sampling": "clip", "sampling_rate": released["sampling_rate"]}
    labels = LABELS[released["dataset"]]
    assert released_sampling(labels, released["frames"]) == wanted
    if "hub" in released:
        assert RELEASED_ON_HUB[released["hub"]] == (labels, released["frames"])


def test_every_id_of_the_hub_is_in_the_model_zoo():
    assert set(RELEASED_ON_HUB) == {released["hub"] for released in RELEASED if "hub" in released}


@pytest.mark.parametrize(
    ("num_labels", "num_frames", "side", "indices"),
    [
        # the middle frames of eight parts of 45 frames
        (174, 8, 224, [2, 8, 14, 19, 25, 30, 36, 42]),
        (400, 8, 224, [0, 36, 44, 44, 44, 44, 44, 44]),
        (600, 16, 448, [0, 17, 34] + [44] * 13),
        (400, 96, 224, [min(383 * k // 95, 44) for k in range(96)]),
        (51, 4, 224, [5, 16, 28, 39]),  # none of the released ones: over the whole video
    ],
)
@pytest.mark.parametrize("auto_class", [TimeSformerVideoProcessor, AutoVideoProcessor])
def test_a_checkpoint_without_sampling_is_shown_what_it_was_trained_with(
    tmp_path, lines, num_labels, num_frames, side, indices, auto_class
):
    folder = write_checkpoint(
        tmp_path, num_labels=num_labels, num_frames=num_frames, image_size=side
    )
    processor = auto_class.from_pretrained(folder)
    assert type(processor) is TimeSformerVideoProcessor
    assert processor.sample_frames(VideoMetadata(total_num_frames=45, fps=12)).tolist() == indices
    assert processor.size == {"shortest_edge": side}
    assert processor.crop_size == {"height": side, "width": side}
    assert processor.image_mean == (0.45, 0.45, 0.45)
    (line,) = lines
    assert f"Assumed: {num_frames} frames a clip; sampling=" in line
    assert (f"frames of {side}x{side} pixels from the model's config" in line) == (side != 224)
    assert ("no released checkpoint is like it" in line) == (num_labels == 51)


def test_what_is_known_by_name_goes_before_the_labels():
    name = "facebook/timesformer-hr-finetuned-k600"
    config = {
        "model_type": "timesformer",
        "num_frames": 16,
        "image_size": 448,
        "id2label": {"0": "one"},
    }
    settings, line = complete_settings(name, VIDEOMAE_FILE, config, {})
    assert (settings["sampling"], settings["sampling_rate"], settings["num_frames"]) == (
        "clip",
        16,
        16,
    )
    assert "as this released checkpoint was trained" in line
    settings, line = complete_settings("somebody/else", VIDEOMAE_FILE, config, {})
    assert settings["sampling"] == "segments"


@pytest.mark.parametrize(
    ("given", "expected", "said"),
    [
        ({"sampling": "clip"}, ("clip", 32, 8), "8 frames a clip"),
        ({"sampling_rate": 3}, ("clip", 3, 8), "8 frames a clip"),
        ({"target_fps": 15}, ("clip", 32, 8), "8 frames a clip"),
        ({"num_frames": 5, "sampling": "segments"}, ("segments", 32, 5), None),
        ({"num_frames": 5}, ("segments", 32, 5), "sampling='segments'"),
    ],
)
def test_settings_of_the_caller_win_and_are_not_called_assumed(
    tmp_path, lines, given, expected, said
):
    folder = write_checkpoint(tmp_path, num_labels=7)
    processor = TimeSformerVideoProcessor.from_pretrained(folder, **given)
    assert (processor.sampling, processor.sampling_rate, processor.num_frames) == expected
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]


def test_a_file_that_says_how_to_sample_is_taken_at_its_word(tmp_path, lines):
    write_checkpoint(tmp_path, num_labels=174, num_frames=16, image_size=448)
    TimeSformerVideoProcessor(num_frames=4, sampling_rate=5).save_pretrained(tmp_path)
    processor = TimeSformerVideoProcessor.from_pretrained(tmp_path)
    assert (processor.sampling, processor.sampling_rate, processor.num_frames) == ("clip", 5, 4)
    assert processor.crop_size == {"height": 224, "width": 224}
    assert not lines


def test_a_crop_of_the_models_size_keeps_its_own_short_side(tmp_path, lines):
    wide = VIDEOMAE_FILE | {
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 320},
    }
    folder = write_checkpoint(tmp_path, wide, image_size=[224, 320])
    processor = TimeSformerVideoProcessor.from_pretrained(folder)
    assert processor.size == {"shortest_edge": 256}
    assert processor.crop_size == {"height": 224, "width": 320}
    write_checkpoint(tmp_path, image_size=[128, 96])
    processor = TimeSformerVideoProcessor.from_pretrained(folder)
    assert processor.size == {"shortest_edge": 96}
    assert processor.crop_size == {"height": 128, "width": 96}


def test_without_a_timesformer_beside_the_file_nothing_is_assumed(tmp_path, lines):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIDEOMAE_FILE))
    for source in (tmp_path, tmp_path / "preprocessor_config.json"):
        processor = TimeSformerVideoProcessor.from_pretrained(source)
        assert (processor.num_frames, processor.sampling, processor.sampling_rate) == (
            8,
            "clip",
            32,
        )
    assert not lines


@pytest.mark.parametrize("config", [VideoMAEConfig, None])
@pytest.mark.parametrize(
    "kind", ["names the image processor", "names the video processor", "names nothing"]
)
def test_other_models_keep_videomaes_own_class(tmp_path, config, kind):
    if config is not None:
        config().save_pretrained(tmp_path)
    if kind == "names the video processor":
        VideoMAEVideoProcessor(size={"shortest_edge": 50}).save_pretrained(tmp_path)
    else:
        settings = VIDEOMAE_FILE | {"size": {"shortest_edge": 50}}
        if kind == "names nothing":
            if config is None:
                pytest.skip("nothing to go by")
            del settings["image_processor_type"]
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    for backend in ("torchvision", "stock"):
        processor = AutoVideoProcessor.from_pretrained(tmp_path, backend=backend)
        assert type(processor) is VideoMAEVideoProcessor
        assert processor.size == {"shortest_edge": 50}


def test_a_file_by_stocks_own_class_is_ours_and_sampled_as_is_known(tmp_path, lines):
    TimesformerConfig(num_labels=174, num_frames=16, image_size=448).save_pretrained(tmp_path)
    TimesformerVideoProcessor().save_pretrained(tmp_path)
    processor = AutoVideoProcessor.from_pretrained(tmp_path)
    assert type(processor) is TimeSformerVideoProcessor
    assert (processor.sampling, processor.num_frames, processor.crop_size["height"]) == (
        "segments",
        16,
        448,
    )
    assert len(lines) == 1
