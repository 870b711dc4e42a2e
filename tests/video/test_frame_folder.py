"""Videos that are pictures: folders and lists of picture files, animated WebP."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision.transforms.v2 import functional as tvF

from hf_timesformer import TimeSformerVideoProcessor
from hf_timesformer.video.decoding import DecodeLimits, VideoDecodeError, decode_video, probe_video
from hf_timesformer.video.frame_folder import FrameFiles
from hf_timesformer.video.frame_stream import FrameStream


SMALL = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}


def smooth_frames(count: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 `(count, height, width, 3)`, each frame unlike the others, with little for JPEG to
    lose.
    """
    rows, columns = np.mgrid[:height, :width]
    frames = [
        np.stack([rows * 4, columns * 3, np.full_like(rows, 17 * k)], axis=-1) for k in range(count)
    ]
    return np.stack(frames).astype(np.uint8)


def write_pictures(
    folder: Path, name: str, frames: np.ndarray, first: int = 1, **options
) -> list[Path]:
    """`name` is a pattern such as `img_%05d.jpg`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / (name % (first + k)) for k in range(len(frames))]
    for path, frame in zip(paths, frames):
        PIL.Image.fromarray(frame).save(path, **options)
    return paths


def read_pictures(paths: list[Path]) -> torch.Tensor:
    """The reference: Pillow, picture by picture, `(T, 3, H, W)`."""
    frames = np.stack([np.array(PIL.Image.open(path).convert("RGB")) for path in paths])
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("name", "first"),
    [("img_%05d.jpg", 1), ("frame%d.png", 0), ("%06d.webp", 970), ("v_a1_c02_%d.JPEG", 98)],
)
def test_numbered_pictures_are_the_frames_in_the_order_of_their_numbers(tmp_path, name, first):
    paths = write_pictures(tmp_path / "clip", name, smooth_frames(), first)
    (tmp_path / "clip" / "notes.txt").write_text("no picture")
    (tmp_path / "clip" / ".hidden.jpg").write_text("no picture")
    wanted = [11, 0, 5, 5]
    for source in (tmp_path / "clip", str(tmp_path / "clip"), FrameFiles.from_list(paths)):
        frames, metadata = decode_video(source, wanted)
        assert torch.equal(frames, read_pictures([paths[index] for index in wanted]))
        assert (metadata.total_num_frames, metadata.height, metadata.width) == (12, 48, 64)
        assert (metadata.frames_indices, metadata.fps) == (wanted, None)
        probed = probe_video(source)
        assert (probed.total_num_frames, probed.height, probed.width, probed.fps) == (
            12,
            48,
            64,
            None,
        )


def test_pixels_are_those_that_are_shown(tmp_path):
    """Turned by EXIF, transparency on white, 16 bits as 8, grey and palettes as RGB."""
    frame = smooth_frames(1)[0]
    grey = frame[..., 0]
    turned = PIL.Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise
    (tmp_path / "turned").mkdir()
    PIL.Image.fromarray(frame).save(tmp_path / "turned" / "1.png", exif=turned)
    clear = np.concatenate([frame, np.zeros_like(frame[..., :1])], axis=-1)
    write_pictures(tmp_path / "clear", "%d.png", clear[None])
    write_pictures(tmp_path / "deep", "%d.png", (grey.astype(np.uint16) * 257)[None])
    write_pictures(tmp_path / "grey", "%d.png", grey[None])
    expected = {
        "turned": np.rot90(frame, -1),
        "clear": np.full_like(frame, 255),
        "deep": np.repeat(grey[..., None], 3, axis=-1),
        "grey": np.repeat(grey[..., None], 3, axis=-1),
    }
    for name, pixels in expected.items():
        frames, _ = decode_video(tmp_path / name, [0])
        np.testing.assert_array_equal(frames[0].permute(1, 2, 0), pixels)


@pytest.mark.parametrize("short_side", [24, 30, 60])
def test_scaling_is_an_antialiased_triangle(tmp_path, short_side):
    paths = write_pictures(tmp_path, "%d.png", smooth_frames(2))
    frames, metadata = decode_video(tmp_path, [0, 1], short_side=short_side)
    expected = tvF.resize(read_pictures(paths), [short_side], antialias=True)
    assert (metadata.height, metadata.width) == expected.shape[-2:]
    torch.testing.assert_close(frames.int(), expected.int(), atol=1, rtol=0)


def test_a_frame_rate_gives_times_segments_and_windows(tmp_path):
    write_pictures(tmp_path, "%d.png", smooth_frames())
    frames, metadata = decode_video(tmp_path, [0, 2], start=0.4, end=0.8, frame_rate=10)
    assert torch.equal(frames, decode_video(tmp_path, [4, 6])[0])
    assert (metadata.total_num_frames, metadata.fps) == (4, pytest.approx(10))
    assert metadata.duration == pytest.approx(0.4)
    with pytest.raises(VideoDecodeError, match="neither frame times nor a frame rate"):
        decode_video(tmp_path, [0], start=0.4)
    processor = TimeSformerVideoProcessor(**SMALL, num_frames=2, sampling_rate=2, target_fps=5)
    for options, indices in (({}, [4, 7]), ({"frame_rate": 10}, [2, 9])):
        batch = processor(tmp_path, return_metadata=True, **options)
        assert batch["video_metadata"][0].frames_indices == indices
    own = TimeSformerVideoProcessor(**SMALL, frame_rate=4)(tmp_path, fps=1, return_metadata=True)
    assert own["video_metadata"][0].frames_indices == [0, 4, 8]


def test_the_processor_takes_folders_and_lists_of_pictures_beside_other_videos(tmp_path):
    frames = smooth_frames()
    paths = write_pictures(tmp_path / "clip", "img_%05d.png", frames)
    processor = TimeSformerVideoProcessor(**SMALL, num_frames=4, sampling="segments")
    expected = processor(frames, return_tensors="pt").pixel_values
    for video in (tmp_path / "clip", paths, [str(path) for path in paths], [paths]):
        torch.testing.assert_close(
            processor(video, return_tensors="pt").pixel_values, expected, atol=2e-6, rtol=0
        )
    batch = processor(
        [paths, str(tmp_path / "clip"), frames, paths[:4]], return_tensors="pt"
    ).pixel_values
    assert batch.shape == (4, 4, 3, 32, 32)
    for pixel_values in batch[:3]:
        torch.testing.assert_close(pixel_values, expected[0], atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["img_1.jpg", "img_2.jpg", "img_4.jpg"],
            "no picture of number 3 between img_2.jpg and img_4.jpg",
        ),
        (["07.png", "11.png"], "no picture of number 8 to 10 between 07.png and 11.png"),
        (["1.jpg", "01.jpg"], "two pictures of number 1: 01.jpg and 1.jpg"),
        (
            ["img_1.jpg", "flow_1.jpg", "flow_2.jpg"],
            r"flow_1.jpg \(2 pictures\), img_1.jpg \(1 pictures\)",
        ),
        (["1.jpg", "1.png"], "more than one series"),
        (["1.jpg", "cover.jpg"], "without a number at the end of its name: cover.jpg"),
        (["notes.txt"], r"a folder without numbered pictures \(.jpg"),
        ([], "a folder without numbered pictures"),
    ],
)
def test_folders_that_are_no_video_are_refused_by_what_is_wrong(tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(VideoDecodeError, match=message) as caught:
        probe_video(tmp_path)
    assert caught.value.reason == ("not-a-file" if names in ([], ["notes.txt"]) else "pictures")
    assert str(tmp_path) in str(caught.value)


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    paths = write_pictures(tmp_path, "%d.jpg", smooth_frames(3))
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    assert torch.equal(decode_video(tmp_path, [0, 2])[0], read_pictures([paths[0], paths[2]]))
    with pytest.raises(VideoDecodeError, match=r"2\.jpg cannot be read"):
        decode_video(tmp_path, [1])
    paths[2].unlink()
    paths[2].symlink_to("/dev/zero")
    with pytest.raises(VideoDecodeError, match=r"3\.jpg: is not a regular file"):
        decode_video(tmp_path, [2])
    PIL.Image.new("RGB", (30, 30)).save(paths[1])
    with pytest.raises(VideoDecodeError, match="frame 1 is 30x30, others are 64x48"):
        decode_video(tmp_path, [0, 1])
    with pytest.raises(VideoDecodeError, match="frames 0 to 2; frame 3"):
        decode_video(tmp_path, [3])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_frames": 2}, "has 3 pictures, more than 2"),
        ({"max_pixels": 3000}, "64x48 pixels, more than 3000"),
    ],
)
def test_limits_hold_for_pictures(tmp_path, limits, message):
    write_pictures(tmp_path, "%d.png", smooth_frames(3))
    with pytest.raises(VideoDecodeError, match=message):
        decode_video(tmp_path, [0], limits=DecodeLimits(**limits))


def test_a_file_keeps_its_own_rate(tmp_path):
    frames = [PIL.Image.fromarray(frame) for frame in smooth_frames(4)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    with pytest.raises(ValueError, match=r"frame_rate=10 is for folders and lists of pictures"):
        decode_video(tmp_path / "clip.gif", [0], frame_rate=10)


# ---- animated pictures


def animated(path: Path, **options) -> Path:
    """12 frames, the first shown for 40 ms and each of the others for 100."""
    frames = [PIL.Image.fromarray(frame) for frame in smooth_frames()]
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=[40] + [100] * 11, **options
    )
    return path


@pytest.mark.parametrize("kind", ["path", "bytes", "file"])
def test_animated_webp_is_read_with_its_times(tmp_path, kind):
    path = animated(tmp_path / "clip.webp", lossless=True)
    source = {"path": path, "bytes": path.read_bytes(), "file": io.BytesIO(path.read_bytes())}[kind]
    frames, metadata = decode_video(source, [7, 0, 11])
    np.testing.assert_array_equal(frames.permute(0, 2, 3, 1), smooth_frames()[[7, 0, 11]])
    assert (metadata.total_num_frames, metadata.height, metadata.width) == (12, 48, 64)
    assert metadata.fps == pytest.approx(11 / 1.04)
    # frames begin at 0, 0.04, 0.14, 0.24
    segment, metadata = decode_video(source, [0, 1], start=0.1, end=0.25)
    np.testing.assert_array_equal(segment.permute(0, 2, 3, 1), smooth_frames()[[2, 3]])


def test_pictures_are_streamed_as_a_video_is(tmp_path):
    paths = write_pictures(tmp_path / "clip", "%d.png", smooth_frames())
    reference = read_pictures(paths)
    streamed = list(FrameStream(tmp_path / "clip", times=[0.0, 0.25, 0.26], frame_rate=10.0))
    # the frames that are shown at these times, and the last one, which tells the length
    assert [frame.seconds for frame in streamed] == pytest.approx([0, 0.2, 1.1])
    assert streamed[-1].duration == pytest.approx(0.1)
    assert all(torch.equal(f.pixels, reference[k]) for f, k in zip(streamed, (0, 2, 11)))
    stream = FrameStream(animated(tmp_path / "clip.webp", lossless=True), short_side=24)
    streamed = list(stream)
    frames, _ = decode_video(stream.source, range(12), short_side=24)
    assert [frame.seconds for frame in streamed[:3]] == pytest.approx([0, 0.04, 0.14])
    assert torch.equal(torch.stack([frame.pixels for frame in streamed]), frames)
    with pytest.raises(VideoDecodeError, match="frame_rate=25"):
        next(iter(FrameStream(tmp_path / "clip")))
    PIL.Image.new("RGB", (30, 30)).save(paths[1])
    with pytest.raises(VideoDecodeError, match="frame 1 is 30x30, others are 64x48"):
        list(FrameStream(tmp_path / "clip", frame_rate=10.0))


def test_a_still_webp_is_one_frame_and_a_damaged_one_an_error(tmp_path):
    PIL.Image.fromarray(smooth_frames(1)[0]).save(tmp_path / "still.webp", lossless=True)
    frames, metadata = decode_video(tmp_path / "still.webp", [0])
    np.testing.assert_array_equal(frames[0].permute(1, 2, 0), smooth_frames(1)[0])
    assert metadata.total_num_frames == 1
    damaged = animated(tmp_path / "clip.webp").read_bytes()[:60]
    with pytest.raises(VideoDecodeError, match="WebP file cannot be read"):
        decode_video(damaged, [0])


def test_lists_of_animated_pictures_are_lists_of_videos(tmp_path):
    path = animated(tmp_path / "clip.webp", lossless=True)
    processor = TimeSformerVideoProcessor(**SMALL, num_frames=4, sampling="segments")
    batch = processor([path, path], return_tensors="pt").pixel_values
    expected = processor(smooth_frames(), return_tensors="pt").pixel_values
    assert batch.shape == (2, 4, 3, 32, 32)
    torch.testing.assert_close(batch[0], expected[0], atol=2e-6, rtol=0)


def test_the_odd_animated_files(shared_dir):
    path = shared_dir / "data" / "odd" / "webp.webp"
    assert probe_video(path).total_num_frames == 20
    frames, _ = decode_video(path, range(20))
    with PIL.Image.open(path) as picture:
        for number, frame in enumerate(frames):
            picture.seek(number)
            np.testing.assert_array_equal(frame.permute(1, 2, 0), np.array(picture.convert("RGB")))
