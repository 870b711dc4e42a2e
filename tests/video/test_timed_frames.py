"""Where the frame rate varies, what is asked for by time is taken by time; elsewhere by number, as
ever.
"""

from pathlib import Path

import numpy as np
import pytest
from decoding_clips import encode, picture_sequence
from transformers.video_utils import VideoMetadata

from hf_timesformer import TimeSformerVideoProcessor
from hf_timesformer.data.clips import FrameSampling
from hf_timesformer.video.decoding import decode_video
from hf_timesformer.video.decoding_segment import TimedVideoMetadata
from hf_timesformer.video.sampling import sample_indices
from hf_timesformer.video.timed_frames import frames_a_second, sample_video


# 30 frames a second for half a second, then 5 a second for 5 seconds: 15 and 25 frames, 5.5 s.
TICKS = list(range(15)) + [15 + 6 * k for k in range(25)]
SECONDS = np.array(TICKS) / 30
LENGTH = 5.5


def timed(seconds: np.ndarray, fps: float) -> TimedVideoMetadata:
    metadata = TimedVideoMetadata(total_num_frames=len(seconds), fps=fps)
    metadata._times = lambda: seconds
    return metadata


def shown_at(times: np.ndarray) -> list[int]:
    """The reference, frame by frame: the last that has begun."""
    return [
        max(number for number, begin in enumerate(SECONDS) if begin <= time + 1e-6)
        for time in times
    ]


@pytest.fixture(scope="module")
def phone(tmp_path_factory) -> Path:
    return encode(
        tmp_path_factory.mktemp("vfr") / "phone.mp4", picture_sequence()[: len(TICKS)], times=TICKS
    )


@pytest.mark.parametrize(("num_frames", "num_clips"), [(8, 1), (8, 3), (11, 1), (40, 1)])
def test_segments_are_equal_parts_of_the_time(phone, num_frames, num_clips):
    parts = np.arange(num_frames) * LENGTH / num_frames
    within = (np.arange(num_clips) + 0.5) / num_clips * LENGTH / num_frames
    expected = [number for offset in within for number in shown_at(parts + offset)]
    processor = TimeSformerVideoProcessor(
        num_frames=num_frames, num_clips=num_clips, sampling="segments"
    )
    assert processor.fetch_videos(phone, processor.sample_frames)[1].frames_indices == expected
    sampling = FrameSampling(num_frames, "segments")
    if num_clips == 1:
        assert (
            decode_video(phone, lambda metadata: sampling.indices(metadata))[1].frames_indices
            == expected
        )


def test_training_draws_from_equal_parts_of_the_time():
    edges = np.arange(9) * LENGTH / 8
    draws = [
        sample_video(
            timed(SECONDS, 40 / LENGTH),
            "segments",
            num_frames=8,
            generator=np.random.default_rng(seed),
        )[0]
        for seed in range(200)
    ]
    first, last = shown_at(edges[:-1]), shown_at(edges[1:] - 1e-3)
    np.testing.assert_array_equal(np.min(draws, axis=0), first)
    np.testing.assert_array_equal(np.max(draws, axis=0), last)


def test_target_fps_makes_a_window_of_seconds(phone):
    # 4 frames of every 4th of 10 a second: 1.6 s of 5.5 s, so from 1.95 to 3.55 s, and its last
    # frame is one frame of the mean rate (5.5 / 40 s) before its end
    times = np.linspace(1.95, 3.55 - LENGTH / 40, 4)
    processor = TimeSformerVideoProcessor(num_frames=4, sampling_rate=4, target_fps=10)
    assert processor.fetch_videos(phone, processor.sample_frames)[1].frames_indices == shown_at(
        times
    )


def test_fps_takes_so_many_frames_of_every_second(phone):
    processor = TimeSformerVideoProcessor(size={"shortest_edge": 32}, crop_size=32)
    for fps in (1, 2, 4):
        batch = processor(phone, fps=fps, return_metadata=True)
        count = int(LENGTH * fps)
        assert batch["video_metadata"][0].frames_indices == shown_at(
            np.arange(count) * LENGTH / count
        )
    assert frames_a_second(timed(SECONDS, 40 / LENGTH), 0.01).tolist() == [0]


def test_windows_of_source_frames_go_by_number(phone):
    """The official arithmetic, whatever the times."""
    processor = TimeSformerVideoProcessor(num_frames=4, sampling_rate=5)
    expected = sample_indices("clip", 40, num_frames=4, sampling_rate=5)[0].tolist()
    assert processor.fetch_videos(phone, processor.sample_frames)[1].frames_indices == expected


@pytest.mark.parametrize("jitter", [0, 0.4])
@pytest.mark.parametrize(
    "settings", [{"policy": "segments"}, {"policy": "clip", "target_fps": 15, "sampling_rate": 2}]
)
def test_an_even_rate_is_sampled_by_number(jitter, settings):
    rng = np.random.default_rng(0)
    seconds = (np.arange(50) + rng.uniform(-jitter, jitter, 50) * (np.arange(50) > 0)) / 25
    plain = VideoMetadata(total_num_frames=50, fps=25)
    for metadata in (timed(seconds, 25), plain):
        got = sample_video(metadata, num_frames=7, num_clips=2, **settings)
        options = {name: value for name, value in settings.items() if name != "policy"}
        expected = sample_indices(
            settings["policy"], 50, num_frames=7, num_clips=2, fps=25, **options
        )
        np.testing.assert_array_equal(got, expected)


def test_the_phone_of_the_shared_folder(shared_dir):
    processor = TimeSformerVideoProcessor(size={"shortest_edge": 32}, crop_size=32)
    path = shared_dir / "data" / "odd" / "vfr_phone.mp4"
    taken = processor(path, fps=1, return_metadata=True)["video_metadata"][0].frames_indices
    assert taken == [0, 60, 120, 130, 140, 150]  # 60 frames a second for 2 s, then 10
    segments = processor(path, sampling="segments", return_metadata=True)["video_metadata"][
        0
    ].frames_indices
    assert segments == [22, 67, 112, 126, 133, 141, 148, 156]  # at 0.375, 1.125, ... of 6 s
