"""A segment of a video, given in seconds, is a video of its own."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from decoding_clips import (
    B_FRAMES,
    GROWING_STEPS,
    encode,
    make_clip,
    picture_sequence,
    reference_frames,
)

from hf_timesformer.video.decoding import VideoDecodeError, decode_video, probe_video


# 40 frames, 30 a second: mp4 and ts count in small ticks, Matroska in milliseconds, AVI has no
# times.
EVEN = ["b-frames.mp4", "b-pyramid.mkv", "mpeg4-b.avi", "stream.ts", "edit-list.mp4", "vp9.webm"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("segments")
    return {name: make_clip(folder, name) for name in EVEN}


@pytest.mark.parametrize("name", EVEN)
@pytest.mark.parametrize(("first", "stop"), [(0, 40), (0, 7), (13, 14), (20, 31), (39, 40)])
def test_segment_is_cut_between_its_frames(clips, name, first, stop):
    count = probe_video(clips[name]).total_num_frames
    stop = min(stop, count)
    first = min(first, stop - 1)
    seen = []
    frames, metadata = decode_video(
        clips[name],
        lambda metadata: seen.append(metadata.frame_times()) or [0, -1 % (stop - first)],
        start=first / 30,
        end=stop / 30,
    )
    assert metadata.total_num_frames == stop - first
    assert metadata.duration == pytest.approx((stop - first) / 30, rel=0.02)
    assert metadata.frames_indices == [0, stop - first - 1]
    np.testing.assert_allclose(seen[0], np.arange(stop - first) / 30, atol=0.0011)
    expected = decode_video(clips[name], [first, stop - 1])[0]
    assert torch.equal(frames, expected)
    assert (
        probe_video(clips[name], start=first / 30, end=stop / 30).total_num_frames == stop - first
    )


def test_uneven_times(tmp_path):
    path = encode(
        tmp_path / "uneven.mp4", picture_sequence(), options=B_FRAMES, times=GROWING_STEPS
    )
    reference = reference_frames(path)
    seconds = np.array(GROWING_STEPS) / 30
    for start, end in [
        (0.0, 1.0),
        (2.5, 9.0),
        (seconds[10], seconds[20]),
        (20.0, None),
        (None, 0.04),
    ]:
        inside = [
            k
            for k, time in enumerate(seconds)
            if time >= (start or 0) and (end is None or time < end)
        ]
        frames, metadata = decode_video(
            path, lambda metadata: range(metadata.total_num_frames), start=start, end=end
        )
        expected = np.stack([reference[k] for k in inside])  # (t, h, w, c)
        np.testing.assert_array_equal(frames.permute(0, 2, 3, 1).numpy(), expected)
        assert metadata.total_num_frames == len(inside)


def test_neighbouring_segments_share_nothing_and_lose_nothing(clips):
    for path in clips.values():
        cuts = [0, 0.1, 1 / 3, 0.5, 2 / 3, 0.9, 1.0, 99]
        counts = [probe_video(path, start=a, end=b).total_num_frames for a, b in pairwise(cuts)]
        assert sum(counts) == probe_video(path).total_num_frames


def test_frames_of_a_segment_are_counted_within_it(clips):
    with pytest.raises(VideoDecodeError, match="has frames 0 to 9; frame 10 was asked for"):
        decode_video(clips["b-frames.mp4"], [10], start=0.5, end=0.5 + 1 / 3)


def test_segment_behind_the_end(clips):
    with pytest.raises(
        VideoDecodeError, match=r"no frame from start=2 to end=3 .* 0 to 1\.300 s"
    ) as caught:
        decode_video(clips["b-frames.mp4"], [0], start=2, end=3)
    assert caught.value.reason == "segment"


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [(-1, None, "start must be"), (0, float("nan"), "end must be"), (2, 1, "later than start"), ("1", 2, "start must"),
     (None, 0, "later than start"), (True, 2, "start must be")],
)  # fmt: skip
def test_segments_that_make_no_sense(clips, start, end, message):
    for call in (
        lambda **kwargs: decode_video(clips["b-frames.mp4"], [0], **kwargs),
        lambda **kwargs: probe_video(clips["b-frames.mp4"], **kwargs),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call(start=start, end=end)
        assert not isinstance(caught.value, VideoDecodeError)


def test_frame_times_are_there_only_while_frames_are_chosen(clips):
    _, metadata = decode_video(clips["b-frames.mp4"], [0])
    with pytest.raises(ValueError, match="only there while"):
        metadata.frame_times()

    # Asked after a failure, a view of the closed file's index would read freed memory.
    kept: list = []
    with pytest.raises(ZeroDivisionError):
        decode_video(clips["b-frames.mp4"], lambda metadata: kept.append(metadata) or 1 / 0)
    with pytest.raises(ValueError, match="only there while"):
        kept[0].frame_times()
