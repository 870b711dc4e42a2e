"""TimeSformerVideoProcessor: what it decodes and samples, the views that it makes, what it saves."""

import importlib
import io
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import av
import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Video
from torchvision.transforms.v2 import functional as tvF
from transformers import AutoVideoProcessor, TimesformerConfig, TimesformerVideoProcessor
from transformers.utils import is_torchcodec_available
from transformers.video_utils import VideoMetadata

import hf_timesformer.video.video_processing_timesformer as module
from hf_timesformer import TimeSformerConfig, TimeSformerImageProcessor, TimeSformerVideoProcessor
from hf_timesformer.model.configuration_timesformer import PROCESSOR_TYPES
from hf_timesformer.video import memory_clips
from hf_timesformer.video.decoding import DecodeLimits, VideoDecodeError
from hf_timesformer.video.encoding import write_video
from hf_timesformer.video.processor_type import TYPES
from hf_timesformer.video.sampling import sample_indices


SMALL = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
OFFICIAL = {"image_mean": [0.45] * 3, "image_std": [0.225] * 3}


def random_frames(
    num_frames: int = 8, height: int = 60, width: int = 90, channels: int = 3
) -> np.ndarray:
    rng = np.random.default_rng([num_frames, height, width])
    return rng.integers(0, 256, (num_frames, height, width, channels), dtype=np.uint8)


def decode_all(path: Path) -> np.ndarray:
    """The reference: every frame, decoded in order by PyAV itself."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def reference_crops(
    frames: np.ndarray, corners: list[tuple[int, int]], short_side: int = 40
) -> torch.Tensor:
    """`(T, H, W, 3)` -> `(crops, T, 3, 32, 32)`, with the crops' top left corners written down by
    the test.
    """
    scaled = tvF.resize(torch.from_numpy(frames).permute(0, 3, 1, 2), [short_side], antialias=True)
    crops = torch.stack([scaled[:, :, y : y + 32, x : x + 32] for y, x in corners])
    return (crops / 255 - 0.45) / 0.225


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A clip of 40 frames, 96 wide and 64 high, each frame unlike the others."""
    frames = np.repeat(np.repeat(random_frames(40, 8, 12), 8, axis=1), 8, axis=2)
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", frames, fps=25)


@pytest.fixture(scope="module")
def tall_clip(tmp_path_factory) -> Path:
    """A clip of 5 frames, 64 wide and 96 high."""
    frames = np.repeat(np.repeat(random_frames(5, 12, 8), 8, axis=1), 8, axis=2)
    return write_video(tmp_path_factory.mktemp("clips") / "tall.mp4", frames, fps=10)


# ---- one centre crop


@pytest.mark.parametrize(
    ("height", "width"), [(60, 90), (90, 60), (64, 64), (41, 97), (32, 250), (20, 24)]
)
def test_one_centre_crop_has_the_pixels_of_stock(height, width):
    video = random_frames(8, height, width)
    ours = TimeSformerVideoProcessor(**SMALL)(video, return_tensors="pt").pixel_values
    stock = TimesformerVideoProcessor(**SMALL, **OFFICIAL)(video, return_tensors="pt").pixel_values
    assert ours.shape == (1, 8, 3, 32, 32)
    torch.testing.assert_close(ours, stock, atol=0, rtol=0)


def test_defaults_are_the_papers():
    processor = TimeSformerVideoProcessor()
    video = random_frames(8, 256, 340)
    stock = TimesformerVideoProcessor(**OFFICIAL)(video, return_tensors="pt").pixel_values
    torch.testing.assert_close(
        processor(video, return_tensors="pt").pixel_values, stock, atol=0, rtol=0
    )
    assert (processor.num_frames, processor.sampling, processor.sampling_rate) == (8, "clip", 32)
    assert (processor.num_clips, processor.num_crops, processor.target_fps) == (1, 1, None)


# ---- files


@pytest.mark.parametrize("kind", ["str", "path", "bytes", "bytearray", "file", "BytesIO", "row"])
def test_every_kind_of_source_gives_the_frames_of_a_full_decode(clip, kind):
    source = {
        "str": str,
        "path": Path,
        "bytes": Path.read_bytes,
        "bytearray": lambda path: bytearray(path.read_bytes()),
        "file": lambda path: path.open("rb"),
        "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
        # of a datasets.Dataset that does not decode
        "row": lambda path: {"path": str(path), "bytes": None},
    }[kind](clip)
    processor = TimeSformerVideoProcessor(**SMALL, num_frames=4, sampling_rate=5)
    batch = processor(source, return_tensors="pt", return_metadata=True)
    wanted = [10, 16, 22, 29]  # a window of 20 in the middle of 40
    expected = reference_crops(decode_all(clip)[wanted], [(4, 14)])
    torch.testing.assert_close(batch.pixel_values, expected, atol=2e-6, rtol=0)
    (metadata,) = batch["video_metadata"]
    assert metadata.frames_indices == wanted
    assert (metadata.total_num_frames, metadata.fps, metadata.height, metadata.width) == (
        40,
        25,
        64,
        96,
    )


def test_all_clips_of_a_video_come_from_one_decode(clip, monkeypatch):
    calls = []

    def counting(source, indices, **options):
        calls.append(source)
        return decode(source, indices, **options)

    decode = module.decode_video
    monkeypatch.setattr(module, "decode_video", counting)
    processor = TimeSformerVideoProcessor(
        **SMALL, num_frames=2, sampling_rate=4, num_clips=5, num_crops=3
    )
    assert processor(str(clip), return_tensors="pt").pixel_values.shape == (1, 15, 2, 3, 32, 32)
    assert calls == [str(clip)]


def test_views_are_the_crops_of_the_first_clip_then_those_of_the_second(clip, tall_clip):
    processor = TimeSformerVideoProcessor(
        **SMALL, num_frames=3, sampling_rate=4, num_clips=2, num_crops=3
    )
    views = processor([str(clip), str(tall_clip)], return_tensors="pt").pixel_values
    # scaled to 40 x 60: left, centre, right; scaled to 60 x 40: top, centre, bottom
    for got, path, corners in [
        (views[0], clip, [(4, 0), (4, 14), (4, 28)]),
        (views[1], tall_clip, [(0, 4), (14, 4), (28, 4)]),
    ]:
        frames = decode_all(path)
        clips = sample_indices("clip", len(frames), num_frames=3, sampling_rate=4, num_clips=2)
        expected = torch.cat([reference_crops(frames[indices], corners) for indices in clips])
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("num_clips", [1, 2])
@pytest.mark.parametrize("num_crops", [1, 3])
def test_shape_follows_the_number_of_views(clip, num_clips, num_crops):
    processor = TimeSformerVideoProcessor(**SMALL, num_clips=num_clips, num_crops=num_crops)
    pixel_values = processor(clip, return_tensors="pt").pixel_values
    views = num_clips * num_crops
    assert pixel_values.shape == ((1, views) if views > 1 else (1,)) + (8, 3, 32, 32)


def test_three_crops_hold_the_one_crop_in_the_middle_and_are_alike_for_square_frames():
    square = TimeSformerVideoProcessor(size={"shortest_edge": 32}, crop_size=32, num_crops=3)
    views = square(random_frames(8, 64, 64), return_tensors="pt").pixel_values[0]
    assert torch.equal(views[0], views[1])
    assert torch.equal(views[1], views[2])
    wide = TimeSformerVideoProcessor(**SMALL)
    video = random_frames(8, 41, 97)
    three = wide(video, num_crops=3, return_tensors="pt").pixel_values
    torch.testing.assert_close(
        three[:, 1], wide(video, return_tensors="pt").pixel_values, atol=0, rtol=0
    )


def test_three_crops_of_frames_smaller_than_the_crop_get_a_black_border():
    processor = TimeSformerVideoProcessor(**SMALL, do_resize=False, num_crops=3)
    video = random_frames(8, 20, 50)
    views = processor(video, return_tensors="pt").pixel_values[0]
    padded = np.zeros((8, 32, 50, 3), np.uint8)
    padded[:, 6:26] = video
    for view, x in zip(views, (0, 9, 18)):
        expected = (
            torch.from_numpy(padded[:, :, x : x + 32]).permute(0, 3, 1, 2) / 255 - 0.45
        ) / 0.225
        torch.testing.assert_close(view, expected, atol=2e-6, rtol=0)


def test_settings_of_a_call_win_over_those_saved(clip):
    processor = TimeSformerVideoProcessor(**SMALL)
    called = processor(
        clip,
        num_frames=3,
        sampling="segments",
        num_crops=3,
        return_tensors="pt",
        return_metadata=True,
    )
    assert called.pixel_values.shape == (1, 3, 3, 3, 32, 32)
    assert called["video_metadata"][0].frames_indices == [6, 20, 33]
    assert processor.num_frames == 8


@pytest.mark.parametrize("num_frames", [5, 8, 30])
def test_a_video_shorter_than_asked_repeats_frames(tall_clip, num_frames):
    processor = TimeSformerVideoProcessor(**SMALL, sampling="segments")
    batch = processor(tall_clip, num_frames=num_frames, return_tensors="pt", return_metadata=True)
    assert batch.pixel_values.shape == (1, num_frames, 3, 32, 32)
    indices = batch["video_metadata"][0].frames_indices
    assert set(indices) == set(range(5))
    expected = reference_crops(decode_all(tall_clip)[indices], [(14, 4)])
    torch.testing.assert_close(batch.pixel_values, expected, atol=2e-6, rtol=0)


def test_target_fps_stretches_the_window_by_the_files_own_rate(clip):
    processor = TimeSformerVideoProcessor(**SMALL, num_frames=2, sampling_rate=4, target_fps=12.5)
    batch = processor(clip, return_metadata=True)
    assert batch["video_metadata"][0].frames_indices == [12, 27]  # 25 fps: 16 frames instead of 8


def test_without_sampling_every_frame_of_a_file_is_taken(tall_clip):
    processor = TimeSformerVideoProcessor(**SMALL, num_clips=2)
    pixel_values = processor(tall_clip, do_sample_frames=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(
        pixel_values, reference_crops(decode_all(tall_clip), [(14, 4)]), atol=2e-6, rtol=0
    )


def test_fetch_videos_gives_frames_and_metadata_of_one_source_or_of_a_list(clip, tall_clip):
    processor = TimeSformerVideoProcessor()
    frames, metadata = processor.fetch_videos(str(tall_clip))
    np.testing.assert_array_equal(frames.permute(0, 2, 3, 1), decode_all(tall_clip))
    assert metadata.frames_indices == [0, 1, 2, 3, 4]
    both, metadata = processor.fetch_videos(
        [str(clip), str(tall_clip)], lambda metadata: np.array([3, 1])
    )
    np.testing.assert_array_equal(both[0].permute(0, 2, 3, 1), decode_all(clip)[[3, 1]])
    np.testing.assert_array_equal(both[1].permute(0, 2, 3, 1), decode_all(tall_clip)[[3, 1]])
    assert [about.frames_indices for about in metadata] == [[3, 1], [3, 1]]


# ---- frames in memory


@pytest.mark.parametrize(
    "kind", ["pil", "arrays", "tensors", "array", "tensor", "array5d", "nested", "first", "float"]
)
def test_frames_in_memory_give_the_same_pixels_in_every_form(kind):
    video = random_frames(8)
    first = video.transpose(0, 3, 1, 2)
    form = {
        "pil": [PIL.Image.fromarray(frame) for frame in video],
        "arrays": list(video),
        "tensors": list(torch.from_numpy(first.copy())),
        "array": video,
        "tensor": torch.from_numpy(first.copy()),
        "array5d": video[None],
        "nested": [[list(video)]],
        "first": first,
        "float": video.astype(np.float32),
    }[kind]
    pixel_values = TimeSformerVideoProcessor(**SMALL)(form, return_tensors="pt").pixel_values
    expected = reference_crops(video, [(4, 14)])
    # torchvision scales uint8 to the nearest level, floats not
    torch.testing.assert_close(
        pixel_values, expected, atol=2e-6 if kind != "float" else 0.02, rtol=0
    )


def test_a_batch_mixes_files_and_frames_of_any_size_and_length(clip, tall_clip):
    processor = TimeSformerVideoProcessor(**SMALL, num_frames=4, sampling="segments")
    long, wide = random_frames(23, 50, 70), random_frames(4, 33, 200)
    videos = [
        str(clip),
        long,
        [PIL.Image.fromarray(frame) for frame in wide],
        tall_clip.read_bytes(),
    ]
    batch = processor(videos, return_tensors="pt").pixel_values
    assert batch.shape == (4, 4, 3, 32, 32)
    for got, video in zip(batch, videos):
        assert torch.equal(got, processor(video, return_tensors="pt").pixel_values[0])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_pictures_of_every_mode_become_rgb(mode):
    grey = np.repeat(random_frames(8, 40, 40, 1), 3, axis=3)
    grey = np.where(grey > 127, 255, 0).astype(np.uint8)  # what a palette and a bitmap can hold
    pictures = [
        PIL.Image.fromarray(frame).convert(mode, dither=PIL.Image.Dither.NONE) for frame in grey
    ]
    processor = TimeSformerVideoProcessor(**SMALL)
    expected = processor(grey, return_tensors="pt").pixel_values
    torch.testing.assert_close(
        processor(pictures, return_tensors="pt").pixel_values, expected, atol=1e-5, rtol=0
    )


def test_grey_arrays_and_transparency():
    processor = TimeSformerVideoProcessor(**SMALL, do_resize=False, do_normalize=False)
    grey = random_frames(8, 32, 32, 1)
    expected = torch.from_numpy(np.repeat(grey, 3, axis=3)).permute(0, 3, 1, 2)[None] / 255
    for form in (grey, list(grey[..., 0])):
        torch.testing.assert_close(processor(form, return_tensors="pt").pixel_values, expected)
    clear = [PIL.Image.new("RGBA", (32, 32), (9, 9, 9, 0))] * 8
    assert (processor(clear, return_tensors="pt").pixel_values == 1).all()


def both_processors(**settings) -> list:
    """A function from a video in memory to its pixels, `(T, C, H, W)`, by each of our processors."""
    options = {"do_resize": False, "crop_size": {"height": 24, "width": 20}, **settings}
    return [
        lambda video: TimeSformerVideoProcessor(**options)(
            video, do_sample_frames=False, return_tensors="pt"
        ).pixel_values[0],
        lambda video: TimeSformerImageProcessor(**options)(video, return_tensors="pt").pixel_values[
            0
        ],
    ]


LEVELS = np.random.default_rng(0).integers(0, 256, (3, 24, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("uint16", lambda levels: levels.astype(np.uint16) * 257),
        ("uint16, big-endian", lambda levels: (levels.astype(np.uint16) * 257).astype(">u2")),
        ("uint16 tensor", lambda levels: torch.from_numpy(levels.astype(np.uint16) * 257)),
        ("int64", lambda levels: levels.astype(np.int64)),
        ("float64", lambda levels: levels.astype(np.float64)),
        ("0 to 1", lambda levels: levels / 255),
        ("0 to 1, half", lambda levels: torch.from_numpy(levels).to(torch.float16) / 255),
        ("list", lambda levels: [frame.astype(np.uint16) * 257 for frame in levels]),
    ],
)
def test_frames_of_other_types_are_scaled_by_their_range(kind, make):
    expected = (torch.from_numpy(LEVELS).permute(0, 3, 1, 2) / 255 - 0.45) / 0.225
    for process in both_processors():
        tolerance = 2e-6 if "half" not in kind else 3e-3
        torch.testing.assert_close(process(make(LEVELS)), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "F", "1"])
def test_grey_pictures_of_other_depths_are_scaled_by_their_range(mode):
    grey = LEVELS[..., 0]
    if mode == "1":
        grey = np.where(grey > 127, 255, 0).astype(np.uint8)
        pictures = [
            PIL.Image.fromarray(frame).convert("1", dither=PIL.Image.Dither.NONE) for frame in grey
        ]
    elif mode == "F":
        pictures = [PIL.Image.fromarray(frame.astype(np.float32)) for frame in grey]
    else:
        sixteen = grey.astype(np.uint16) * 257
        pictures = [
            PIL.Image.frombytes(mode, (20, 24), frame.astype(">u2" if "B" in mode else "<u2"))
            for frame in sixteen
        ]
    assert {picture.mode for picture in pictures} == {mode}
    expected = ((torch.from_numpy(grey) / 255 - 0.45) / 0.225)[:, None].expand(3, 3, 24, 20)
    for process in both_processors():
        torch.testing.assert_close(process(pictures), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (
            np.full((3, 24, 20, 3), 4000, np.int32),
            "type int32 have values from 4000 to 4000: expected 0 to 255",
        ),
        (np.full((3, 24, 20, 3), -1, np.int16), "type int16 have values from -1 to -1"),
        (
            np.linspace(0, 4095, 4320).reshape(3, 24, 20, 3),
            "type float64 have values from 0 to 4095",
        ),
        (
            np.linspace(-2.1, 2.6, 4320).reshape(3, 24, 20, 3),
            r"from -2.1 to 2.6: .* do_normalize=False",
        ),
        (np.full((3, 24, 20, 3), np.nan), "from nan to nan"),
        ([PIL.Image.new("I", (20, 24), 5000)], "type int32 have values from 5000 to 5000"),
        ([LEVELS[0], LEVELS[1].astype(np.uint16)], "frame 0 has uint8, frame 1 has uint16"),
    ],
)
def test_frames_of_no_known_range_are_refused_with_the_cure(frames, message):
    for process in both_processors():
        with pytest.raises(ValueError, match=message):
            process(frames)


def test_numbers_are_the_callers_own_where_he_rescales_himself():
    depth = np.random.default_rng(1).integers(0, 60000, (3, 24, 20, 3), dtype=np.uint16)
    pixels = torch.from_numpy(depth.astype(np.float32)).permute(0, 3, 1, 2)
    for process in both_processors(rescale_factor=1 / 65535):
        torch.testing.assert_close(
            process(depth), (pixels / 65535 - 0.45) / 0.225, atol=2e-6, rtol=0
        )
    for process in both_processors(do_rescale=False, do_normalize=False):
        torch.testing.assert_close(process(depth.astype(np.int32)), pixels, atol=0, rtol=0)


def test_a_fourth_channel_is_transparency_only_where_the_picture_says_so():
    alpha = np.concatenate([LEVELS, np.full((3, 24, 20, 1), 51, np.uint8)], axis=-1)
    blended = 0.2 * LEVELS.astype(np.float64) + 0.8 * 255
    expected = (torch.from_numpy(blended).permute(0, 3, 1, 2) / 255 - 0.45) / 0.225
    for process in both_processors():
        with pytest.raises(
            ValueError, match="frames have 4 channels, image_mean of this processor has 3"
        ):
            process(alpha)
        got = process([PIL.Image.fromarray(frame) for frame in alpha])
        # to the nearest level
        torch.testing.assert_close(got.double(), expected, atol=1 / 255 / 0.225, rtol=0)


@pytest.mark.parametrize("num_channels", [1, 2, 4])
def test_as_many_channels_as_means(num_channels):
    mean, std = [0.1, 0.2, 0.3, 0.4][:num_channels], [0.5, 0.6, 0.7, 0.8][:num_channels]
    frames = np.random.default_rng(2).integers(0, 256, (3, num_channels, 24, 20), dtype=np.uint8)
    shape = (num_channels, 1, 1)
    expected = (torch.from_numpy(frames) / 255 - torch.tensor(mean).view(shape)) / torch.tensor(
        std
    ).view(shape)
    for process in both_processors(image_mean=mean, image_std=std):
        torch.testing.assert_close(process(frames), expected, atol=2e-6, rtol=0)
        torch.testing.assert_close(
            process(frames.transpose(0, 2, 3, 1)), expected, atol=2e-6, rtol=0
        )
        if num_channels != 1:
            with pytest.raises(
                ValueError, match=f"frames have 3 channels, image_mean .* has {num_channels}"
            ):
                process(LEVELS)


def test_a_grey_network_takes_files_pictures_and_colour(clip):
    options = {"image_mean": [0.5], "image_std": [0.25], "num_frames": 4, "sampling_rate": 5}
    colour = decode_all(clip)[[10, 16, 22, 29]]
    # PIL's own luminance
    grey = np.stack([np.array(PIL.Image.fromarray(frame).convert("L")) for frame in colour])
    expected = tvF.resize(torch.from_numpy(grey)[:, None], [40], antialias=True)[:, :, 4:36, 14:46]
    expected = (expected / 255 - 0.5) / 0.25
    processor = TimeSformerVideoProcessor(**SMALL, **options)
    from_file = processor(clip, return_tensors="pt").pixel_values
    assert from_file.shape == (1, 4, 1, 32, 32)
    for pixel_values in (
        from_file,
        processor(colour, return_tensors="pt").pixel_values,
        processor(list(grey), return_tensors="pt").pixel_values,
        processor([PIL.Image.fromarray(frame) for frame in grey], return_tensors="pt").pixel_values,
    ):
        # to the nearest levels
        torch.testing.assert_close(pixel_values[0], expected, atol=2 / 255 / 0.25, rtol=0)


@pytest.mark.parametrize("with_metadata", [False, True])
def test_frames_in_memory_are_sampled_as_a_file_is(clip, with_metadata):
    processor = TimeSformerVideoProcessor(**SMALL, num_frames=4, sampling_rate=2, target_fps=12.5)
    metadata = {"total_num_frames": 40, "fps": 25.0} if with_metadata else None
    batch = processor(
        decode_all(clip), video_metadata=metadata, return_tensors="pt", return_metadata=True
    )
    # the window of 8 frames doubles where the rate is known
    assert batch["video_metadata"][0].frames_indices == (
        [12, 17, 22, 27] if with_metadata else [16, 18, 20, 23]
    )
    if with_metadata:
        torch.testing.assert_close(
            batch.pixel_values, processor(clip, return_tensors="pt").pixel_values
        )


def test_frames_are_sampled_once_at_most():
    processor = TimeSformerVideoProcessor(**SMALL, num_frames=6)
    whole = processor(random_frames(6), return_tensors="pt").pixel_values
    torch.testing.assert_close(
        whole, reference_crops(random_frames(6), [(4, 14)]), atol=2e-6, rtol=0
    )
    # frames that the metadata shows to be taken already
    taken = VideoMetadata(total_num_frames=300, fps=30, frames_indices=[0, 50, 100])
    batch = processor(
        random_frames(3), video_metadata=[taken], return_tensors="pt", return_metadata=True
    )
    torch.testing.assert_close(
        batch.pixel_values, reference_crops(random_frames(3), [(4, 14)]), atol=2e-6, rtol=0
    )
    assert batch["video_metadata"][0].frames_indices == [0, 50, 100]
    # frames that the caller says to be a clip
    as_given = processor(
        random_frames(9), do_sample_frames=False, num_frames=2, num_clips=2, return_tensors="pt"
    )
    torch.testing.assert_close(
        as_given.pixel_values, reference_crops(random_frames(9), [(4, 14)]), atol=2e-6, rtol=0
    )


def test_more_frames_asked_of_memory_than_there_are(caplog):
    processor = TimeSformerVideoProcessor(**SMALL)
    with pytest.raises(
        ValueError,
        match="num_frames=8 were asked of 3 frames in memory: pass do_sample_frames=True",
    ):
        processor(random_frames(3), num_frames=8)
    for options in (
        {"num_frames": 8, "do_sample_frames": True},
        {"num_frames": 8, "video_metadata": {"total_num_frames": 3}},
        {},  # the processor's own num_frames
    ):
        batch = processor(random_frames(3), return_tensors="pt", return_metadata=True, **options)
        assert batch["video_metadata"][0].frames_indices == [0] + [2] * 7
        assert batch.pixel_values.shape[1] == 8


def test_frames_that_would_repeat_for_want_of_a_longer_video_are_warned_of(monkeypatch):
    warnings = []
    monkeypatch.setattr(memory_clips.logger, "warning_once", warnings.append)
    processor = TimeSformerVideoProcessor(**SMALL)
    processor(random_frames(16))
    assert len(warnings) == 1
    assert "16 frames in memory were sampled as a whole video" in warnings[0]
    assert "do_sample_frames=False" in warnings[0]
    processor(random_frames(8))
    processor(random_frames(16), num_frames=16)
    processor(random_frames(16), do_sample_frames=True)
    processor(random_frames(16), sampling_rate=2)
    assert len(warnings) == 1


def test_fps_in_a_call_takes_so_many_frames_a_second_of_the_whole_video(clip):
    processor = TimeSformerVideoProcessor(**SMALL, num_clips=2)
    batch = processor(clip, fps=5, return_tensors="pt", return_metadata=True)
    assert batch["video_metadata"][0].frames_indices == [0, 5, 10, 15, 20, 25, 30, 35]
    assert batch.pixel_values.shape == (1, 8, 3, 32, 32)
    with pytest.raises(ValueError, match="num_frames and fps exclude each other"):
        processor(clip, fps=5, num_frames=3)
    with pytest.raises(ValueError, match="fps=5 needs the video's own rate"):
        processor(random_frames(16), fps=5)


def test_sample_frames_answers_from_its_own_settings_and_from_those_of_the_call():
    processor = TimeSformerVideoProcessor(num_frames=2, sampling_rate=2, num_clips=3)
    metadata = VideoMetadata(total_num_frames=12, fps=30)
    assert processor.sample_frames(metadata).tolist() == [0, 3, 4, 7, 8, 11]
    assert processor.sample_frames(
        metadata, num_frames=4, sampling="segments", num_clips=1
    ).tolist() == [1, 4, 7, 10]


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_crops": 2},
            r"num_crops must be 1 \(the centre\) or 3 \(along the longer side\), got 2",
        ),
        (
            {"num_crops": 3, "do_center_crop": False},
            "num_crops=3 cuts crops of crop_size: it needs do_center_crop",
        ),
        (
            {"sampling": "dense"},
            "sampling policy 'dense' is unknown: choose one of 'clip', 'segments'",
        ),
        ({"sampling_rate": 0}, "sampling_rate must be a positive number, got 0"),
        ({"num_clips": 0}, "num_clips must be a whole number of at least 1, got 0"),
        ({"target_fps": -1}, "target_fps must be a positive number, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_when_made_and_when_called(settings, message):
    with pytest.raises(ValueError, match=message):
        TimeSformerVideoProcessor(**settings)
    with pytest.raises(ValueError, match=message):
        TimeSformerVideoProcessor(**SMALL)(random_frames(9), **settings)


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ([], "expected a video or a list of videos .* got \\[\\]"),
        (7, "expected a video or a list of videos .* got 7"),
        (None, "expected a video or a list of videos .* got None"),
        (np.zeros(5), "got ndarray of shape \\(5,\\)"),
        (np.zeros((0, 30, 30, 3)), "a video without frames"),
        (
            np.zeros((8, 30, 30, 2)),
            "no side of frames of shape \\(30, 30, 2\\) has length 1, 3 or 4",
        ),
        (
            [np.zeros((30, 30, 3)), np.zeros((30, 31, 3))],
            "frame 0 has shape \\(3, 30, 30\\), frame 1 has",
        ),
    ],
)
def test_input_that_is_no_video_is_refused_with_what_it_is(videos, message):
    with pytest.raises(ValueError, match=message):
        TimeSformerVideoProcessor(**SMALL)(videos)


def test_videos_that_cannot_be_one_tensor_are_refused_with_their_shapes():
    processor = TimeSformerVideoProcessor(**SMALL)
    videos = [random_frames(2), random_frames(3)]
    with pytest.raises(ValueError, match=r"one shape, got \[\(2, 3, 32, 32\), \(3, 3, 32, 32\)\]"):
        processor(videos, do_sample_frames=False, return_tensors="pt")
    assert [len(views) for views in processor(videos, do_sample_frames=False).pixel_values] == [
        2,
        3,
    ]


def test_metadata_that_does_not_fit_the_frames_is_refused(clip):
    processor = TimeSformerVideoProcessor(**SMALL)
    with pytest.raises(ValueError, match="says total_num_frames=300, but the video has 9 frames"):
        processor(random_frames(9), video_metadata={"total_num_frames": 300, "fps": 30})
    with pytest.raises(ValueError, match="2 videos but 1 `video_metadata` entries"):
        processor([random_frames(9)] * 2, video_metadata={"total_num_frames": 9})


def test_files_that_are_no_videos_are_refused_by_name(tmp_path, clip):
    processor = TimeSformerVideoProcessor(**SMALL)
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(VideoDecodeError, match=r"text\.mp4"):
        processor(text)
    with pytest.raises(VideoDecodeError, match=r"missing\.mp4"):
        processor([str(clip), str(tmp_path / "missing.mp4")])


# ---- segments, limits


def test_a_segment_is_a_video_of_its_own(clip, tall_clip):
    processor = TimeSformerVideoProcessor(**SMALL, num_frames=3, sampling="segments")
    frames = decode_all(clip)  # 25 a second
    expected = reference_crops(frames[10:25][[2, 7, 12]], [(4, 14)])
    metadata = {"total_num_frames": 40, "fps": 25}
    for video, options in ((clip, {}), (frames, {"video_metadata": metadata})):
        batch = processor(
            video, start=0.4, end=1.0, return_tensors="pt", return_metadata=True, **options
        )
        torch.testing.assert_close(batch.pixel_values, expected, atol=2e-6, rtol=0)
        assert batch["video_metadata"][0].frames_indices == [2, 7, 12]
        assert batch["video_metadata"][0].total_num_frames == 15
    both = processor(
        [clip, tall_clip], start=[0.4, None], end=[1.0, 0.3], return_tensors="pt"
    ).pixel_values
    torch.testing.assert_close(both[:1], expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(
        both[1:], reference_crops(decode_all(tall_clip)[[0, 1, 2]], [(14, 4)]), atol=2e-6, rtol=0
    )
    assert torch.equal(
        processor(clip, return_tensors="pt").pixel_values,
        processor(clip, start=0, return_tensors="pt").pixel_values,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 9}, "has no frame from start=9 to end=None seconds"),
        ({"start": 1, "end": 1}, "end must be later than start"),
        ({"start": [0, 1]}, "1 videos but 2 numbers in `start`"),
        ({"limits": {"max_frames": 39}}, "39"),
        ({"limits": {"max_frame": 39}}, "limits has no 'max_frame': choose of .*max_frames"),
    ],
)
def test_segments_and_limits_that_do_not_fit_are_refused(clip, options, message):
    with pytest.raises(ValueError, match=message):
        TimeSformerVideoProcessor(**SMALL)(clip, **options)


def test_a_segment_of_frames_in_memory_needs_their_rate():
    with pytest.raises(ValueError, match="need the whole video and its rate"):
        TimeSformerVideoProcessor(**SMALL)(random_frames(9), start=1)


def test_limits_are_settings_of_the_processor_and_never_of_a_file(clip, tmp_path):
    tight = TimeSformerVideoProcessor(**SMALL, limits=DecodeLimits(max_frames=39))
    with pytest.raises(VideoDecodeError, match="max_frames"):
        tight(clip)
    assert tight(clip, limits={"max_frames": 40}, return_tensors="pt").pixel_values.shape[1] == 8
    tight.save_pretrained(tmp_path)
    file = tmp_path / "video_preprocessor_config.json"
    saved = json.loads(file.read_text())
    assert not {"limits", "start", "end", "allow_urls"} & set(saved)
    file.write_text(json.dumps(saved | {"limits": {"max_frames": 1}, "start": 5}))
    assert (
        TimeSformerVideoProcessor.from_pretrained(tmp_path)(
            clip, return_tensors="pt"
        ).pixel_values.shape[1]
        == 8
    )
    opened = TimeSformerVideoProcessor.from_pretrained(tmp_path, limits={"max_frames": 39})
    with pytest.raises(VideoDecodeError, match="max_frames"):
        opened(clip)


# ---- readers that others opened


class TorchvisionReader:
    """What `torchvision.io.VideoReader` was, as far as anybody used it."""

    def __init__(self, path: Path):
        self.frames = decode_all(path)
        self.next = 0

    def get_metadata(self):
        return {"video": {"duration": [len(self.frames) / 25], "fps": [25.0]}}

    def seek(self, seconds: float):
        self.next = int(seconds * 25)
        return self

    def __iter__(self):
        return self

    def __next__(self):
        if self.next == len(self.frames):
            raise StopIteration
        self.next += 1
        return {
            "data": torch.from_numpy(self.frames[self.next - 1]).permute(2, 0, 1),
            "pts": 0.04 * (self.next - 1),
        }


def make_reader(kind: str, path: Path):
    if kind == "torchvision":
        return TorchvisionReader(path)
    if not is_torchcodec_available():
        pytest.skip("torchcodec is not installed")
    if kind == "datasets":
        return Dataset.from_dict({"video": [str(path)]}).cast_column("video", Video())[0]["video"]
    if kind == "datasets, bytes":
        rows = {"video": [{"bytes": path.read_bytes(), "path": None}]}
        return Dataset.from_dict(rows).cast_column("video", Video())[0]["video"]
    order = "NHWC" if "NHWC" in kind else "NCHW"
    return importlib.import_module("torchcodec.decoders").VideoDecoder(
        str(path), dimension_order=order
    )


@pytest.mark.parametrize(
    "kind", ["torchcodec", "torchcodec NHWC", "datasets", "datasets, bytes", "torchvision"]
)
def test_readers_that_datasets_makes_give_the_frames_of_the_file(clip, kind):
    processor = TimeSformerVideoProcessor(**SMALL, num_frames=4, sampling_rate=5, num_clips=2)
    for options in ({}, {"start": 0.4, "end": 1.2}):
        expected = processor(clip, return_tensors="pt", return_metadata=True, **options)
        got = processor(
            make_reader(kind, clip), return_tensors="pt", return_metadata=True, **options
        )
        one, other = got["video_metadata"][0], expected["video_metadata"][0]
        for name in ("frames_indices", "total_num_frames", "fps", "height", "width"):
            assert getattr(one, name) == getattr(other, name)
        # torchcodec converts colours by another filter: a level or two
        tolerance = 0.03 if "torchcodec" in kind else 0
        torch.testing.assert_close(got.pixel_values, expected.pixel_values, atol=tolerance, rtol=0)
    two = processor([make_reader(kind, clip), clip], return_tensors="pt").pixel_values
    torch.testing.assert_close(two[0], two[1], atol=tolerance, rtol=0)


def test_a_reader_that_fails_is_one_clear_error(clip):
    reader = TorchvisionReader(clip)
    reader.seek = lambda seconds: (_ for _ in ()).throw(RuntimeError("no such stream"))
    with pytest.raises(
        VideoDecodeError, match="<TorchvisionReader>: cannot be read: no such stream"
    ):
        TimeSformerVideoProcessor(**SMALL)(reader)


# ---- addresses


class CountingServer(ThreadingHTTPServer):
    requests = 0


@pytest.fixture
def server(clip):
    """A web server on this machine that has one clip and counts the requests for it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests += 1
            body = clip.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = CountingServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_addresses_are_opened_only_where_they_are_allowed(server, clip):
    url = f"http://127.0.0.1:{server.server_port}/clip.mp4"
    processor = TimeSformerVideoProcessor(**SMALL)
    with pytest.raises(VideoDecodeError, match="allow_urls=True"):
        processor(url)
    assert server.requests == 0
    expected = processor(clip, return_tensors="pt").pixel_values
    assert torch.equal(processor(url, allow_urls=True, return_tensors="pt").pixel_values, expected)
    allowing = TimeSformerVideoProcessor(**SMALL, allow_urls=True)
    assert torch.equal(allowing(url, return_tensors="pt").pixel_values, expected)
    with pytest.raises(VideoDecodeError, match="allow_urls=True"):
        allowing(url, allow_urls=False)
    assert server.requests == 2


def test_a_saved_file_cannot_allow_addresses(tmp_path):
    TimeSformerVideoProcessor(allow_urls=True).save_pretrained(tmp_path)
    file = tmp_path / "video_preprocessor_config.json"
    saved = json.loads(file.read_text())
    assert "allow_urls" not in saved
    file.write_text(json.dumps(saved | {"allow_urls": True}))
    assert TimeSformerVideoProcessor.from_pretrained(tmp_path).allow_urls is False
    assert TimeSformerVideoProcessor.from_pretrained(tmp_path, allow_urls=True).allow_urls is True


# ---- saving and opening

SETTINGS = {
    "num_frames": 16,
    "sampling": "segments",
    "sampling_rate": 4,
    "target_fps": 30,
    "num_clips": 2,
    "num_crops": 3,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}


def test_config_and_processors_hold_the_same_table_of_type_keys():
    """Each folder has its own copy, since `model/` and `video/` do not import each other."""
    assert PROCESSOR_TYPES == TYPES


@pytest.mark.parametrize("with_config", [True, False])
def test_settings_survive_saving_and_only_a_file_alone_names_a_class(tmp_path, with_config):
    if with_config:
        TimeSformerConfig(
            num_hidden_layers=1, hidden_size=8, num_attention_heads=1
        ).save_pretrained(tmp_path)
    processor = TimeSformerVideoProcessor(**SMALL, **SETTINGS)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert SETTINGS.items() <= saved.items()
    assert saved["size"] == {"shortest_edge": 40}
    # plain transformers knows no other class of ours
    assert saved.get("video_processor_type") == (
        None if with_config else "TimesformerVideoProcessor"
    )
    assert not {"image_processor_type", "feature_extractor_type"} & set(saved)
    opened = TimeSformerVideoProcessor.from_pretrained(tmp_path)
    assert opened.to_dict() == processor.to_dict()
    video = random_frames(40)
    assert torch.equal(
        opened(video, return_tensors="pt").pixel_values,
        processor(video, return_tensors="pt").pixel_values,
    )
    assert (
        TimeSformerVideoProcessor.from_pretrained(tmp_path, num_crops=1, num_frames=4).num_crops
        == 1
    )


def test_an_image_processor_of_like_settings_is_saved_beside_but_never_over_another(tmp_path):
    TimeSformerVideoProcessor(**SMALL, **SETTINGS).save_pretrained(tmp_path)
    image_processor = TimeSformerImageProcessor.from_pretrained(tmp_path)
    assert image_processor.image_mean == (0.5, 0.4, 0.3)
    assert image_processor.crop_size == {"height": 32, "width": 32}
    assert image_processor.num_crops == 3
    TimeSformerVideoProcessor().save_pretrained(tmp_path)
    assert (
        TimeSformerImageProcessor.from_pretrained(tmp_path).to_dict() == image_processor.to_dict()
    )


def test_opens_from_checkpoints_that_name_stocks_processor_with_their_own_numbers(tmp_path):
    """The files of the TimeSformer checkpoints on the Hub, old and new in form."""
    common = {
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "resample": 2,
    }
    old = {
        **common,
        "crop_size": 48,
        "size": 50,
        "feature_extractor_type": "VideoMAEFeatureExtractor",
    }
    new = {
        **common,
        "crop_size": {"height": 48, "width": 48},
        "size": {"shortest_edge": 50},
        "image_processor_type": "VideoMAEImageProcessor",
    }
    for name, settings in {"old": old, "new": new}.items():
        folder = tmp_path / name
        TimesformerConfig(image_size=48).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        for processor_class in (TimeSformerVideoProcessor, TimeSformerImageProcessor):
            processor = processor_class.from_pretrained(folder)
            assert (processor.image_mean, processor.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
            assert processor.size == {"shortest_edge": 50}
            assert processor.crop_size == {"height": 48, "width": 48}
            assert not {"image_processor_type", "feature_extractor_type"} & set(processor.to_dict())


@pytest.mark.parametrize("with_config", [True, False])
def test_the_auto_class_gives_ours_where_this_package_is_imported(tmp_path, with_config):
    if with_config:
        TimeSformerConfig(
            num_hidden_layers=1, hidden_size=8, num_attention_heads=1
        ).save_pretrained(tmp_path)
    processor = TimeSformerVideoProcessor(**SMALL, **SETTINGS)
    processor.save_pretrained(tmp_path)
    opened = AutoVideoProcessor.from_pretrained(tmp_path)
    assert type(opened) is TimeSformerVideoProcessor
    assert opened.to_dict() == processor.to_dict()


PLAIN = """
import sys
import torch
from transformers import AutoImageProcessor, AutoVideoProcessor

folder = sys.argv[1]
video = torch.load(folder + "/video.pt")
processor = AutoVideoProcessor.from_pretrained(folder)
torch.save(processor(video, return_tensors="pt").pixel_values, folder + "/video_pixels.pt")
image_processor = AutoImageProcessor.from_pretrained(folder)
torch.save(image_processor(list(video), return_tensors="pt").pixel_values, folder + "/image_pixels.pt")
alone = AutoVideoProcessor.from_pretrained(folder + "/alone")
print(*(type(thing).__name__ for thing in (processor, image_processor, alone)), "hf_timesformer" in sys.modules)
"""


@pytest.mark.parametrize("order", ["config first", "config last"])
def test_plain_transformers_opens_what_we_save_with_the_same_pixels(tmp_path, order):
    config = TimeSformerConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1)
    processor = TimeSformerVideoProcessor(**SMALL, sampling="segments", target_fps=30)
    saved = [config, TimeSformerImageProcessor(**SMALL), processor]
    for thing in saved if order == "config first" else reversed(saved):
        thing.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path / "alone")
    video = torch.from_numpy(random_frames(8)).permute(0, 3, 1, 2).contiguous()
    torch.save(video, tmp_path / "video.pt")
    child = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    names = ["TimesformerVideoProcessor", "VideoMAEImageProcessor", "TimesformerVideoProcessor"]
    assert child.stdout.split() == [*names, "False"]
    ours = processor(video, return_tensors="pt").pixel_values
    assert torch.equal(torch.load(tmp_path / "video_pixels.pt"), ours)
    torch.testing.assert_close(torch.load(tmp_path / "image_pixels.pt"), ours, atol=1e-6, rtol=0)
