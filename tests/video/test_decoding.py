"""decode_video gives the frames of a full decode, bit by bit, for any list of frame numbers."""

import io
import pickle
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from decoding_clips import CLIPS, ENCODED, encode, make_clip, picture_sequence, reference_frames
from torchvision.transforms.v2 import functional

from hf_timesformer.video import decoding
from hf_timesformer.video.decoding import DecodeLimits, VideoDecodeError, decode_video, probe_video


# Clips whose frames can be told from the packets: never decoded as a whole.
FORETOLD = {
    name
    for name, (codec, _) in ENCODED.items()
    if Path(name).suffix in (".mp4", ".mkv", ".mov", ".webm")
}
FORETOLD |= {
    "stream.ts",
    "negative-times.ts",
    "flash.flv",
    "motion-jpeg.avi",
    "mpeg4.avi",
    "mpeg4-b.avi",
    "raw.m4v",
    "packed.avi",
    "one-frame.mp4",
    "odd-size.webm",
    "odd-size.mp4",
}
# Times doubled or missing; an open GOP that begins in what an edit list cuts away; times that the
# pictures contradict.
FORETOLD -= {
    "doubled-times.mkv",
    "missing-times.mkv",
    "edit-list-open-gop.mp4",
    "edit-list-mpeg4.mp4",
}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


def clip(folder: Path, name: str) -> Path:
    path = folder / name
    return path if path.exists() else make_clip(folder, name)


def index_lists(count: int, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    random = [rng.integers(0, count, size).tolist() for size in (1, 2, 4, 9)]  # any order, repeats
    return [list(range(count)), [count - 1], [count // 2], list(range(0, count, 5)), *random]


def assert_frames(frames: torch.Tensor, reference: list[np.ndarray], numbers: list[int]) -> None:
    assert frames.dtype == torch.uint8
    expected = np.stack([reference[number] for number in numbers])  # (t, h, w, c)
    np.testing.assert_array_equal(frames.permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize("name", CLIPS)
def test_frames_equal_a_full_decode(clip_folder, name, monkeypatch):
    path = clip(clip_folder, name)
    reference = reference_frames(path)
    assert len(reference) == probe_video(path).total_num_frames
    sequential = []
    decode_in_sequence = decoding.decode_in_sequence
    monkeypatch.setattr(
        decoding,
        "decode_in_sequence",
        lambda *args: (sequential.append(name), decode_in_sequence(*args)),
    )
    for numbers in index_lists(len(reference), seed=len(name)):
        frames, metadata = decode_video(path, numbers)
        assert_frames(frames, reference, numbers)
        assert metadata.frames_indices == numbers
        assert (metadata.height, metadata.width) == reference[0].shape[:2]
    assert bool(sequential) == (name not in FORETOLD)


@pytest.mark.parametrize("name", ["b-frames.mp4", "mpeg4-b.avi", "raw.h264"])
def test_path_bytes_and_file_object_are_alike(clip_folder, name):
    path = clip(clip_folder, name)
    data = path.read_bytes()
    expected = decode_video(path, [3, 17])[0]
    with path.open("rb") as file:
        file.seek(100)  # wherever it stands, it is read from the beginning
        sources = [str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file]
        for source in sources:
            assert torch.equal(decode_video(source, [3, 17])[0], expected)
        assert not file.closed

    class Stream(io.RawIOBase):  # a download: it cannot seek
        inner = io.BytesIO(data)

        def readable(self):
            return True

        def read(self, size=-1):
            return self.inner.read(size)

    assert torch.equal(decode_video(Stream(), [3, 17])[0], expected)


def test_indices_from_a_function_of_the_metadata(clip_folder):
    path = clip(clip_folder, "b-frames.mp4")
    seen = []
    frames, metadata = decode_video(
        path, lambda metadata: seen.append(metadata) or np.array([39, 0, 39])
    )
    assert (seen[0].total_num_frames, seen[0].fps, seen[0].width, seen[0].height) == (
        40,
        30.0,
        64,
        48,
    )
    assert seen[0].duration == pytest.approx(40 / 30)
    assert metadata.video_backend == "pyav"
    assert_frames(frames, reference_frames(path), [39, 0, 39])
    assert decode_video(path, [])[0].shape == (0, 3, 48, 64)


def test_skips_what_is_not_needed(clip_folder, monkeypatch):
    path = clip(clip_folder, "b-frames.mp4")
    fed = []
    decode_units = decoding.decode_units
    monkeypatch.setattr(
        decoding, "decode_units", lambda *args: (fed.append(args[2]), decode_units(*args))[1]
    )
    decode_video(path, [38])
    assert len(fed) == 1
    assert len(fed[0]) <= 12  # from the last key frame


def test_mirrored_video(tmp_path):
    frames = picture_sequence(4)
    plain = decode_video(encode(tmp_path / "plain.mp4", frames), [0])[0]
    mirrored = decode_video(
        encode(tmp_path / "mirrored.mp4", frames, rotation=(0, True, False)), [0]
    )[0]
    flipped = decode_video(
        encode(tmp_path / "flipped.mp4", frames, rotation=(0, False, True)), [0]
    )[0]
    assert torch.equal(mirrored, plain.flip(-1))
    assert torch.equal(flipped, plain.flip(-2))


@pytest.mark.parametrize(
    ("height", "width", "short_side"),
    [(240, 320, 112), (270, 480, 224), (120, 90, 64), (64, 64, 96)],
)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p"])
def test_short_side_is_antialiased_bilinear(tmp_path, height, width, short_side, pix_fmt):
    rng = np.random.default_rng(0)
    # fine noise, where scaling up shows the chroma's coarseness
    noise = 30 if short_side < min(height, width) else 10
    frames = picture_sequence(3, height, width).astype(int) + rng.integers(
        -noise, noise, (3, height, width, 1)
    )
    frames = np.clip(frames, 0, 255).astype(np.uint8)
    path = encode(tmp_path / "clip.mp4", frames, pix_fmt=pix_fmt, options={"crf": "10"})
    expected = functional.resize(decode_video(path, [0, 2])[0], [short_side], antialias=True)
    scaled, metadata = decode_video(path, [0, 2], short_side=short_side)
    assert scaled.shape == expected.shape
    assert (metadata.height, metadata.width) == tuple(expected.shape[-2:])
    assert (scaled.float() - expected.float()).abs().mean() <= 1.5


def test_short_side_of_a_turned_video(clip_folder):
    path = clip(clip_folder, "turned-90.mp4")
    expected = functional.resize(decode_video(path, [5])[0], [24], antialias=True)
    scaled = decode_video(path, [5], short_side=24)[0]
    assert scaled.shape == expected.shape == (1, 3, 32, 24)
    assert (scaled.float() - expected.float()).abs().mean() <= 1.5


def test_damaged_tail(clip_folder, tmp_path):
    path = clip(clip_folder, "mpeg4.avi")
    data = bytearray(path.read_bytes())
    reference = reference_frames(path)
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    data[places[20] : places[30]] = bytes(places[30] - places[20])
    damaged = tmp_path / "damaged.avi"
    damaged.write_bytes(data)
    assert_frames(decode_video(damaged, [0, 11, 19])[0], reference, [0, 11, 19])
    with pytest.raises(VideoDecodeError, match=r"damaged\.avi.*frame 25") as caught:
        decode_video(damaged, [3, 25])
    assert caught.value.reason == "damaged"


def test_cut_file_serves_what_it_has(clip_folder, tmp_path):
    path = clip(clip_folder, "b-pyramid.mkv")
    reference = reference_frames(path)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    count = probe_video(cut).total_num_frames
    assert 15 < count < 40
    assert_frames(decode_video(cut, [0, 7, 12])[0], reference, [0, 7, 12])


@pytest.mark.parametrize("suffix", ["h264", "ts"])
def test_changing_frame_size(tmp_path, suffix):
    small, large = (tmp_path / f"{name}.{suffix}" for name in ("small", "large"))
    encode(small, picture_sequence(10, 48, 64))
    encode(large, picture_sequence(10, 96, 128))
    both = tmp_path / f"both.{suffix}"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    frames, metadata = decode_video(both, [2, 15])
    assert (metadata.height, metadata.width) == (48, 64)
    assert torch.equal(frames[:1], decode_video(small, [2])[0])
    # The scaler itself is held to torchvision's below: this is the same one.
    assert torch.equal(frames[1:], decode_video(large, [5], short_side=48)[0])
    # alone, too, it has the size of the video
    assert torch.equal(decode_video(both, [15])[0], frames[1:])
    assert decode_video(both, [2, 15], short_side=24)[0].shape == (2, 3, 24, 32)
    with pytest.raises(VideoDecodeError, match="frame 15 is 128x96, the first is 64x48") as caught:
        decode_video(both, [2, 15], size_change="refuse")
    assert caught.value.reason == "frame-size"
    with pytest.raises(ValueError, match="size_change must be"):
        decode_video(both, [2], size_change="crop")


@pytest.mark.parametrize("numbers", [[40], [-1], [0, 1000]])
def test_frame_that_does_not_exist(clip_folder, numbers):
    with pytest.raises(
        VideoDecodeError, match=r"has frames 0 to 39; frame -?\d+ was asked for"
    ) as caught:
        decode_video(clip(clip_folder, "b-frames.mp4"), numbers)
    assert caught.value.reason == "index"


def test_bad_arguments(clip_folder):
    path = clip(clip_folder, "b-frames.mp4")
    with pytest.raises(TypeError):
        decode_video(path, [0.5])
    with pytest.raises(ValueError, match="short_side must be at least 1"):
        decode_video(path, [0], short_side=0)
    with pytest.raises(TypeError, match="a path, bytes or a binary file object"):
        decode_video(7, [0])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("missing.mp4", "not-found"),
        (".", "not-a-file"),
        ("/dev/zero", "not-a-file"),
        ("nul\0.mp4", "not-a-file"),
        (b"", "container"),
        (b"no video at all" * 100, "container"),
    ],
)
def test_unreadable_sources(source, reason):
    with pytest.raises(VideoDecodeError) as caught:
        decode_video(source, [0])
    assert caught.value.reason == reason
    assert str(caught.value).startswith(caught.value.source)


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoDecodeError, match="has no video stream") as caught:
        probe_video(path)
    assert caught.value.reason == "no-video-stream"


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(VideoDecodeError("clip.mp4", "damaged", "is damaged")))
    assert (error.source, error.reason, str(error)) == (
        "clip.mp4",
        "damaged",
        "clip.mp4: is damaged",
    )


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            DecodeLimits(max_read_bytes=100),
            r"more than 100 bytes read for one frame \(DecodeLimits.max_read_bytes\)",
        ),
        (
            DecodeLimits(max_pixels=64 * 47),
            r"frames of 64x48 pixels, more than 3008 \(DecodeLimits.max_pixels\)",
        ),
        (
            DecodeLimits(max_frames=39),
            r"more than the limit of 39 frames \(DecodeLimits.max_frames\)",
        ),
        (
            DecodeLimits(max_seconds=0),
            r"longer than the limit of 0 s for one frame \(DecodeLimits.max_seconds\)",
        ),
    ],
)
def test_each_limit_has_its_own_message(clip_folder, limits, message):
    path = clip(clip_folder, "b-frames.mp4")
    for source in (path, path.read_bytes()):
        with pytest.raises(VideoDecodeError, match=message) as caught:
            decode_video(source, [0], limits=limits)
        assert caught.value.reason == "limit"


def test_size_of_what_is_in_memory_is_limited_but_not_that_of_a_file(clip_folder):
    path = clip(clip_folder, "b-frames.mp4")
    limits = DecodeLimits(max_bytes=100)
    with pytest.raises(
        VideoDecodeError, match=r"bytes long, more than the limit of 100 \(DecodeLimits.max_bytes\)"
    ):
        decode_video(path.read_bytes(), [0], limits=limits)
    assert decode_video(path, [0], limits=limits)[0].shape == (1, 3, 48, 64)


def test_stretched_strip_is_over_the_limit(tmp_path):
    path = encode(tmp_path / "strip.mp4", picture_sequence(2, 2, 512))
    with pytest.raises(VideoDecodeError, match=r"frames of 57344x224 pixels") as caught:
        decode_video(path, [0], short_side=224, limits=DecodeLimits(max_pixels=10_000_000))
    assert caught.value.reason == "limit"
