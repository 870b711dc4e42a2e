"""TimeSformerImageProcessor: frames in memory, with the pixels of stock and of our video processor."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoImageProcessor, VideoMAEImageProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.utils import PushToHubMixin

import hf_timesformer.video.memory_frames as module
from hf_timesformer import TimeSformerConfig, TimeSformerImageProcessor, TimeSformerVideoProcessor
from hf_timesformer.video.views import uniform_crops


SMALL = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
OFFICIAL = {"image_mean": [0.45] * 3, "image_std": [0.225] * 3}


def random_frames(num_frames: int = 8, height: int = 60, width: int = 90) -> np.ndarray:
    rng = np.random.default_rng([num_frames, height, width])
    return rng.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["pil", "arrays", "tensors", "array", "tensor"])
@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (64, 64), (41, 97), (20, 24)])
def test_documented_usage_of_stock_gives_stocks_pixels_and_those_of_the_video_processor(
    kind, height, width
):
    frames = random_frames(5, height, width)
    first = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    video = {
        "pil": [PIL.Image.fromarray(frame) for frame in frames],
        "arrays": list(frames),
        "tensors": list(first),
        "array": frames,
        "tensor": first,
    }[kind]
    pixel_values = TimeSformerImageProcessor(**SMALL)(video, return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 5, 3, 32, 32)
    stock = VideoMAEImageProcessor(**SMALL, **OFFICIAL)(
        list(frames), return_tensors="pt"
    ).pixel_values
    torch.testing.assert_close(pixel_values, stock, atol=1e-6, rtol=0)
    as_video = TimeSformerVideoProcessor(**SMALL)(
        video, do_sample_frames=False, return_tensors="pt"
    ).pixel_values
    assert torch.equal(pixel_values, as_video)


def test_a_batch_is_a_list_of_videos_of_any_size():
    processor = TimeSformerImageProcessor(**SMALL)
    videos = [
        [PIL.Image.fromarray(frame) for frame in random_frames(4, 50, 70)],
        list(random_frames(4, 64, 33)),
        random_frames(4, 90, 90),
    ]
    batch = processor(videos, return_tensors="pt").pixel_values
    assert batch.shape == (3, 4, 3, 32, 32)
    for got, video in zip(batch, videos):
        assert torch.equal(got, processor(video, return_tensors="pt").pixel_values[0])
    five = np.stack([random_frames(4, 50, 70), random_frames(4, 50, 70)[::-1]])
    assert torch.equal(processor(five, return_tensors="pt").pixel_values[0], batch[0])


def test_one_picture_is_a_video_of_one_frame():
    processor = TimeSformerImageProcessor(**SMALL)
    frame = random_frames(1)[0]
    expected = processor([frame], return_tensors="pt").pixel_values
    for picture in (frame, PIL.Image.fromarray(frame), torch.from_numpy(frame)):
        assert torch.equal(processor(picture, return_tensors="pt").pixel_values, expected)


def test_three_crops_are_those_of_the_video_processor():
    video = random_frames(4, 90, 50)
    pixel_values = TimeSformerImageProcessor(**SMALL, num_crops=3)(
        list(video), return_tensors="pt"
    ).pixel_values
    as_video = TimeSformerVideoProcessor(**SMALL, num_crops=3, num_frames=4)(
        video, return_tensors="pt"
    ).pixel_values
    assert pixel_values.shape == (1, 3, 4, 3, 32, 32)
    assert torch.equal(pixel_values, as_video)


@pytest.mark.parametrize(
    ("height", "width", "corners"),
    [
        (4, 10, [(0, 0), (0, 3), (0, 6)]),
        # half a pixel of room: the centre lies to the left, as stock's does
        (4, 9, [(0, 0), (0, 2), (0, 5)]),
        (10, 4, [(0, 0), (3, 0), (6, 0)]),
        (4, 4, [(0, 0), (0, 0), (0, 0)]),
        (6, 6, [(1, 0), (1, 1), (1, 2)]),
        (6, 9, [(1, 0), (1, 2), (1, 5)]),
    ],
)
def test_uniform_crops_lie_along_the_longer_side(height, width, corners):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    crops = uniform_crops(torch.stack([rows, columns])[None], 4, 4)
    assert crops.shape == (3, 1, 2, 4, 4)
    assert [tuple(crop[0, :, 0, 0].tolist()) for crop in crops] == corners
    assert (crops[:, 0, :, -1, -1] - crops[:, 0, :, 0, 0] == 3).all()


def test_pictures_with_transparency_and_without_colour():
    processor = TimeSformerImageProcessor(**SMALL, do_resize=False, do_normalize=False)
    clear = [PIL.Image.new("RGBA", (32, 32), (9, 9, 9, 0))] * 2
    assert (processor(clear, return_tensors="pt").pixel_values == 1).all()
    grey = [PIL.Image.new("L", (32, 32), 51)] * 2
    torch.testing.assert_close(
        processor(grey, return_tensors="pt").pixel_values,
        torch.full((1, 2, 3, 32, 32), 0.2),
        atol=1e-6,
        rtol=0,
    )


def test_as_many_means_as_channels_keep_the_channels():
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32), dtype=np.uint8)
    pixel_values = TimeSformerImageProcessor(**SMALL, do_resize=False)(
        video,
        image_mean=[0.0] * 4,
        image_std=[1.0] * 4,
        input_data_format="channels_first",
        return_tensors="pt",
    ).pixel_values
    torch.testing.assert_close(pixel_values[0], torch.from_numpy(video) / 255, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (
            "clip.mp4",
            "expected frames in memory, got 'clip.mp4' of type str: TimeSformerVideoProcessor opens files",
        ),
        ([], r"expected a video or a list of videos .* got \[\]"),
        (
            [np.zeros((30, 30, 3)), np.zeros((31, 30, 3))],
            r"frame 0 has shape \(3, 30, 30\), frame 1 has \(3, 31, 30\)",
        ),
        (np.zeros((4, 30, 30, 5)), "has length 1, 3 or 4: where are the channels"),
        (np.zeros((0, 30, 30, 3)), "a video without frames cannot be processed"),
    ],
)
def test_input_that_is_no_video_in_memory_is_refused(video, message):
    with pytest.raises(ValueError, match=message):
        TimeSformerImageProcessor(**SMALL)(video)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"num_crops must be 1 .* got 4"):
        TimeSformerImageProcessor(num_crops=4)
    with pytest.raises(ValueError, match="needs do_center_crop=True"):
        TimeSformerImageProcessor(**SMALL)(random_frames(2), num_crops=3, do_center_crop=False)


def test_settings_survive_saving_and_the_auto_class_gives_ours(tmp_path):
    TimeSformerConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1).save_pretrained(
        tmp_path
    )
    processor = TimeSformerImageProcessor(**SMALL, num_crops=3, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_mean"] == [0.1, 0.2, 0.3]
    assert not {"image_processor_type", "video_processor_type"} & set(saved)
    opened = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(opened) is TimeSformerImageProcessor
    assert opened.to_dict() == processor.to_dict()
    # under the name of what it computes with: otherwise the Auto class logs that it falls back to
    # another backend
    assert IMAGE_PROCESSOR_MAPPING[TimeSformerConfig] == {"torchvision": TimeSformerImageProcessor}


def saved_type(folder: Path) -> str | None:
    return json.loads((folder / "preprocessor_config.json").read_text()).get("image_processor_type")


def test_a_processor_saved_alone_names_its_class_until_a_model_is_saved_beside_it(tmp_path):
    processor = TimeSformerImageProcessor(**SMALL, num_crops=3)
    processor.save_pretrained(tmp_path)
    assert saved_type(tmp_path) == "TimeSformerImageProcessor"
    assert "image_processor_type" not in processor.to_dict()
    opened = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(opened) is TimeSformerImageProcessor
    assert opened.to_dict() == processor.to_dict()
    config = TimeSformerConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1)
    config.save_pretrained(tmp_path)
    assert saved_type(tmp_path) is None
    assert AutoImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "VideoMAEImageProcessor"}'
    )
    config.save_pretrained(tmp_path)
    assert saved_type(tmp_path) == "VideoMAEImageProcessor"


def test_a_processor_is_uploaded_without_the_name_of_its_class(tmp_path, monkeypatch):
    uploaded = []

    def upload(self, folder, *args, **kwargs):
        uploaded.append(saved_type(folder))

    monkeypatch.setattr(PushToHubMixin, "_upload_modified_files", upload)
    processor = TimeSformerImageProcessor(**SMALL)
    processor.save_pretrained(tmp_path)
    processor._upload_modified_files(tmp_path, "somebody/model", {})
    assert uploaded == [None]


def test_frames_of_one_list_may_have_their_channels_in_several_places():
    frames = random_frames(3)
    mixed = [
        PIL.Image.fromarray(frames[0]),
        frames[1].transpose(2, 0, 1),
        torch.from_numpy(frames[2]),
    ]
    processor = TimeSformerImageProcessor(**SMALL)
    expected = processor(frames, return_tensors="pt").pixel_values
    assert torch.equal(processor(mixed, return_tensors="pt").pixel_values, expected)


def test_floats_from_0_to_1_are_taken_as_such_and_said_to_be(monkeypatch):
    warnings = []
    monkeypatch.setattr(module.logger, "warning_once", warnings.append)
    processor = TimeSformerImageProcessor(**SMALL)
    scaled = (random_frames(2) / 255).astype(np.float32)
    expected = processor(random_frames(2), return_tensors="pt").pixel_values
    processor(np.zeros_like(scaled))
    assert not warnings
    pixel_values = processor(scaled, return_tensors="pt").pixel_values
    assert len(warnings) == 1
    assert "taken to go from 0 to 1" in warnings[0]
    # uint8 is scaled to the nearest level
    torch.testing.assert_close(pixel_values, expected, atol=0.02, rtol=0)
    as_they_are = processor(scaled, do_rescale=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(as_they_are, pixel_values, atol=2e-6, rtol=0)
    assert len(warnings) == 1


def test_none_in_a_call_keeps_the_setting():
    processor = TimeSformerImageProcessor(**SMALL)
    video = random_frames(2)
    expected = processor(video, return_tensors="pt").pixel_values
    for name in ("do_resize", "do_normalize", "num_crops", "image_mean", "crop_size"):
        assert torch.equal(
            processor(video, return_tensors="pt", **{name: None}).pixel_values, expected
        )
