"""One pass forward gives the frames and times of `decode_video`; damage costs what it covers."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from decoding_clips import CLIPS, encode, make_clip, picture_sequence

from hf_timesformer.video.decoding import DecodeLimits, VideoDecodeError, decode_video
from hf_timesformer.video.frame_stream import FrameStream


def decode_all(path: Path, short_side: int | None = None) -> tuple[torch.Tensor, np.ndarray]:
    """All frames `(T, 3, H, W)` and their times, as `decode_video` has them."""
    times = []

    def every(metadata):
        times.extend(metadata.frame_times())
        return range(metadata.total_num_frames)

    frames, _ = decode_video(path, every, short_side=short_side)
    return frames, np.array(times)


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("short_side", [None, 30])
def test_all_frames_and_times_are_those_of_decode_video(
    tmp_path: Path, name: str, short_side: int | None
):
    path = make_clip(tmp_path, name)
    frames, times = decode_all(path, short_side)
    streamed = list(FrameStream(path, short_side=short_side))
    # The last frame of a file that yields one fewer than it has packets is repeated by
    # `decode_video`.
    assert len(frames) - 1 <= len(streamed) <= len(frames)
    assert all(torch.equal(one.pixels, other) for one, other in zip(streamed, frames))
    if name != "doubled-times.mkv":  # there `decode_video` trusts no time of the file
        np.testing.assert_allclose(
            [frame.seconds for frame in streamed], times[: len(streamed)], atol=1e-3
        )
    starts = [frame.seconds for frame in streamed]
    np.testing.assert_allclose([frame.duration for frame in streamed[:-1]], np.diff(starts))


@pytest.mark.parametrize(
    "name", ["b-frames.mp4", "uneven-times.mkv", "no-times.avi", "stream.ts", "vp9.webm"]
)
@pytest.mark.parametrize("step", [0.05, 0.31, 40.0])
def test_the_frame_that_is_shown_at_each_time(tmp_path: Path, name: str, step: float):
    path = make_clip(tmp_path, name)
    frames, times = decode_all(path)
    asked = np.arange(0, times[-1] + step, step)
    expected = sorted(
        {int(np.searchsorted(times - 5e-4, time, side="right")) - 1 for time in asked}
        | {len(times) - 1}
    )
    streamed = list(FrameStream(path, times=iter(asked)))
    np.testing.assert_allclose([frame.seconds for frame in streamed], times[expected], atol=1e-3)
    assert all(torch.equal(one.pixels, frames[number]) for one, number in zip(streamed, expected))


def test_damage_in_the_middle_costs_what_it_covers(tmp_path: Path):
    path = encode(
        tmp_path / "clip.ts", picture_sequence(120, 96, 128), options={"g": "10", "bf": "0"}
    )
    whole = {round(frame.seconds, 3): frame.pixels for frame in FrameStream(path)}
    packets, middle = path.read_bytes(), path.stat().st_size // 188 // 2 * 188
    # a recording that lost five packets
    path.write_bytes(packets[:middle] + packets[middle + 5 * 188 :])
    stream = FrameStream(path)
    frames = list(stream)
    ((begin, end),) = stream.gaps
    assert 0 < end - begin <= 21 / 30
    # all but those between the two are there
    assert 120 - len(frames) == round((end - begin) * 30) - 1
    assert all(torch.equal(frame.pixels, whole[round(frame.seconds, 3)]) for frame in frames)


def test_a_cut_off_end(tmp_path: Path):
    path = encode(tmp_path / "whole.mkv", picture_sequence(), options={"g": "10"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    stream = FrameStream(path)
    frames = list(stream)
    assert 5 < len(frames) < 40


def test_times_that_jump_back_go_on(tmp_path: Path):
    one = encode(tmp_path / "one.ts", picture_sequence(20), options={"bf": "0"})
    (tmp_path / "two.ts").write_bytes(one.read_bytes() * 2)
    seconds = np.array([frame.seconds for frame in FrameStream(tmp_path / "two.ts")])
    assert len(seconds) >= 37  # FFmpeg marks the packet at the joint as damaged
    assert (np.diff(seconds) > 0).all()
    assert seconds[-1] == pytest.approx(39 / 30, abs=0.11)


def test_what_cannot_be_read(tmp_path: Path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoDecodeError, match="cannot be opened as a video"):
        list(FrameStream(tmp_path / "text.mp4"))
    with pytest.raises(VideoDecodeError, match="cannot be opened"):
        list(FrameStream(tmp_path / "missing.mp4"))
    path = encode(tmp_path / "clip.mp4", picture_sequence(5))
    with pytest.raises(VideoDecodeError, match="for one frame"):
        list(FrameStream(path, limits=DecodeLimits(max_seconds=-1e-9)))


def test_the_time_that_the_caller_takes_is_not_counted(tmp_path: Path, monkeypatch):
    path = encode(tmp_path / "clip.mp4", picture_sequence(20))
    frames = iter(FrameStream(path, limits=DecodeLimits(max_seconds=0.5)))
    next(frames)
    now = time.thread_time
    monkeypatch.setattr(time, "thread_time", lambda: now() + 10)
    assert len(list(frames)) == 19
