"""Long videos: what is not asked for is neither read nor kept, and damage costs only what it
covers.
"""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from decoding_clips import B_FRAMES, CLIPS, encode, make_clip, picture_sequence, reference_frames

from hf_timesformer.video import decoding, decoding_packets, decoding_source
from hf_timesformer.video.decoding import DecodeLimits, VideoDecodeError, decode_video, probe_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("long")


@pytest.fixture
def sequential(monkeypatch: pytest.MonkeyPatch) -> Iterator[list]:
    """The videos that are decoded from their first packet on."""
    found = []
    decode_in_sequence = decoding.decode_in_sequence
    monkeypatch.setattr(
        decoding,
        "decode_in_sequence",
        lambda *args: (found.append(args), decode_in_sequence(*args)),
    )
    return found


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes FFmpeg reads, one entry a read."""
    sizes: list[int] = []
    read = decoding_source.Reader.read

    def counted(self, size: int) -> bytes:
        data = read(self, size)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(decoding_source.Reader, "read", counted)
    return sizes


def assert_equals_reference(path: Path, lists: list[list[int]]) -> None:
    reference = reference_frames(path)
    assert probe_video(path).total_num_frames == len(reference)
    for numbers in lists:
        frames = decode_video(path, numbers)[0].permute(0, 2, 3, 1).numpy()  # (t, h, w, c)
        np.testing.assert_array_equal(frames, np.stack([reference[number] for number in numbers]))


@pytest.mark.parametrize("name", CLIPS)
def test_packets_that_are_read_again_give_the_same_frames(folder, monkeypatch, name):
    monkeypatch.setattr(decoding_packets, "KEEP_BYTES", 0)
    path = make_clip(folder, name)
    last = probe_video(path).total_num_frames - 1
    assert_equals_reference(
        path, [list(range(last + 1)), [last], [last // 2], [last, 0, last // 3]]
    )


HEVC_OPEN = {
    "x265-params": "keyint=10:min-keyint=10:open-gop=1:bframes=3:scenecut=0:log-level=none"
}
AV1 = {"g": "10", "preset": "12", "svtav1-params": "lookahead=0"}
JUMPS = {
    "hevc-open-gop.mp4": ("libx265", HEVC_OPEN),
    "hevc-open-gop.mkv": ("libx265", HEVC_OPEN),
    "hevc-open-gop.ts": ("libx265", HEVC_OPEN),
    "av1.mp4": ("libsvtav1", AV1),
    "av1.mkv": ("libsvtav1", AV1),
    "h264.ts": ("libx264", B_FRAMES),
    "h264.flv": ("libx264", B_FRAMES),
    "jpeg.mp4": ("mjpeg", {}),
}


@pytest.mark.parametrize("name", JUMPS)
def test_decoding_begins_at_the_key_frame_before(folder, monkeypatch, sequential, name):
    codec, options = JUMPS[name]
    if codec == "libsvtav1" and codec not in av.codecs_available:
        pytest.skip("this build of FFmpeg has no AV1 encoder")
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    frames = picture_sequence(40, 64, 96)
    path = encode(folder / name, frames, codec, options=options, pix_fmt=pix_fmt)
    fed = []
    decode_units = decoding.decode_units
    monkeypatch.setattr(
        decoding, "decode_units", lambda *args: (fed.append(len(args[2])), decode_units(*args))[1]
    )
    # Each frame alone: so each is decoded from its own key frame, leading pictures included.
    assert_equals_reference(path, [[number] for number in range(40)])
    assert sequential == []
    assert max(fed) <= 25  # a group of 10, or two where a frame leads its key frame


def test_an_index_of_key_frames_or_one_that_leaves_a_picture_out_is_not_gone_by(folder):
    """Why Matroska and AVI are scanned: cues do not tell how many pictures there are, and `idx1`
    may tell another number than there are chunks.
    """
    frames = picture_sequence(40, 64, 96)
    mkv = encode(folder / "cues.mkv", frames, "libx264", options={"g": "10"})
    avi = encode(folder / "whole.avi", frames, "mjpeg", pix_fmt="yuvj420p")
    data = avi.read_bytes()
    at = data.find(b"idx1") + 4
    size = int.from_bytes(data[at : at + 4], "little")
    assert size == 40 * 16
    entries = data[at + 4 : at + 4 + 20 * 16] + data[at + 4 + 21 * 16 :]  # without the 21st
    lying = folder / "lying.avi"
    lying.write_bytes(data[:at] + (size - 16).to_bytes(4, "little") + entries)
    for path, listed in ((mkv, 4), (lying, 39)):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert sum(packet.size > 0 for packet in container.demux(stream)) == 40
            assert len(stream.index_entries) == listed
        assert_equals_reference(path, [[0, 19, 20, 21, 39]])


@pytest.fixture(scope="module")
def long_clip(folder: Path) -> Path:
    """20 seconds of noise, a key frame every 20 frames, that no encoder makes small."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 96, 128, 3), dtype=np.uint8)
    frames = noise[np.random.default_rng(1).integers(0, 8, 600)]
    return encode(
        folder / "noise.mp4",
        frames,
        options={"bf": "2", "g": "20", "preset": "ultrafast", "crf": "12"},
    )


@pytest.mark.parametrize("numbers", [[300], [0, 599], [299, 300, 301]])
def test_index_reads_only_the_groups_of_the_frames(long_clip, bytes_read, numbers):
    size = long_clip.stat().st_size
    assert size > 4_000_000
    decode_video(long_clip, numbers)
    assert sum(bytes_read) < size / 3
    del bytes_read[:]
    assert probe_video(long_clip).total_num_frames == 600
    assert sum(bytes_read) < 1_000_000


def test_segment_is_found_in_the_index(long_clip, bytes_read):
    assert probe_video(long_clip, start=10, end=11).total_num_frames == 30
    assert sum(bytes_read) < long_clip.stat().st_size / 2


def test_work_is_counted_for_each_wanted_frame(long_clip):
    """As much may be read for each frame again: all frames of a file that is larger than the limit."""
    limits = DecodeLimits(max_read_bytes=2_000_000)
    assert long_clip.stat().st_size > 2 * limits.max_read_bytes
    assert decode_video(long_clip, range(0, 600, 50), short_side=8, limits=limits)[0].shape[0] == 12


@pytest.mark.parametrize("hole", [0, 2**31, 3 << 30])
def test_size_of_a_file_is_not_limited(folder: Path, bytes_read, hole: int):
    """`hole` bytes of nothing before the pictures: a box that players pass over, no room on disk."""
    plain = make_clip(folder, "b-frames.mp4")
    data = plain.read_bytes()
    begin = int.from_bytes(data[:4], "big")  # behind the first box, `ftyp`
    table = data.index(b"stco") + 8  # 32-bit places of the chunks in the file
    count = int.from_bytes(data[table : table + 4], "big")
    places = np.frombuffer(data, ">u4", count, table + 4) + hole
    data = data[: table + 4] + places.astype(">u4").tobytes() + data[table + 4 + 4 * count :]
    large = folder / "large.mp4"
    with large.open("wb") as file:
        file.write(data[:begin])
        if hole:
            file.write((1).to_bytes(4, "big") + b"free" + hole.to_bytes(8, "big"))
            file.seek(begin + hole)
        file.write(data[begin:])
    assert large.stat().st_size == len(data) + hole
    del bytes_read[:]
    frames, _ = decode_video(large, [0, 21, 39])
    assert sum(bytes_read) < 4_000_000
    np.testing.assert_array_equal(frames, decode_video(plain, [0, 21, 39])[0])
    large.unlink()


def encode_stream(path: Path, num_frames: int = 80) -> tuple[list[int], list[int]]:
    """H.264 with key frames every 20 frames; returns places in the file and numbers of the key
    frames.
    """
    encode(
        path,
        picture_sequence(num_frames, 96, 128),
        options={"bf": "2", "g": "20", "x264-params": "scenecut=0"},
    )
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    return [packet.pos for packet in packets], [
        k for k, packet in enumerate(packets) if packet.is_keyframe
    ]


@pytest.mark.parametrize("suffix", ["ts", "h264"])
def test_recording_that_begins_between_key_frames(tmp_path, caplog, suffix):
    whole = tmp_path / f"whole.{suffix}"
    places, keys = encode_stream(whole)
    assert keys == [0, 20, 40, 60]
    data = whole.read_bytes()
    # The tables of a transport stream stay, and the parameter sets of a raw one.
    head = data[: places[0]] if suffix == "ts" else data[: data.index(b"\0\0\1\x65")]
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(head + data[places[11] :])
    assert probe_video(cut).total_num_frames == 60
    assert "first 9 packets cannot be decoded" in caplog.text
    expected = decode_video(whole, range(20, 80))[0]
    assert torch.equal(decode_video(cut, range(60))[0], expected)
    assert torch.equal(decode_video(cut, [45, 3])[0], expected[[45, 3]])


def test_damage_in_a_transport_stream_costs_what_it_covers(tmp_path, sequential):
    whole = tmp_path / "whole.ts"
    places, _ = encode_stream(whole)
    data = bytearray(whole.read_bytes())
    data[places[45] + 188 : places[45] + 588] = bytes(400)  # transport packets that are gone
    damaged = tmp_path / "damaged.ts"
    damaged.write_bytes(data)
    count = probe_video(damaged).total_num_frames
    assert count in (79, 80)  # a picture may be gone altogether
    sound = [*range(40), *range(count - 20, count)]
    expected = decode_video(whole, [*range(40), *range(60, 80)])[0]
    assert torch.equal(decode_video(damaged, sound)[0], expected)
    for number in (47, 50, count - 21):
        with pytest.raises(
            VideoDecodeError, match=rf"of the frames 4\d to \d+, .*frame {number} was asked"
        ) as caught:
            decode_video(damaged, [3, number])
        assert caught.value.reason == "damaged"
    assert sequential == []


def test_default_stream_is_taken(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=30) for _ in range(2)]
        for stream, size in zip(streams, (32, 64)):
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
        streams[0].disposition = av.stream.Disposition(0)
        streams[1].disposition = av.stream.Disposition.default
        for stream, size in zip(streams, (32, 64)):
            for number in range(3):
                frame = av.VideoFrame.from_ndarray(
                    np.zeros((size, size, 3), np.uint8), format="rgb24"
                )
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    assert decode_video(path, [0])[0].shape == (1, 3, 64, 64)
