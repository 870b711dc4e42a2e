"""Index arithmetic of clips and segments: worked examples, and what holds for every policy."""

from fractions import Fraction

import numpy as np
import pytest

from hf_timesformer.video.sampling import SAMPLING_POLICIES, check_sampling, sample_indices


# Expected numbers worked out by hand from the definition: floor(clamp(linspace(start, start +
# window - 1), 0, n - 1)).
CLIP_EXAMPLES = {
    # window 256 of 300: starts at 22, steps of 255 / 7
    "paper, 8x32": (300, {"num_frames": 8}, [[22, 58, 94, 131, 167, 204, 240, 277]]),
    "half a frame of room": (13, {"num_frames": 2, "sampling_rate": 2}, [[4, 7]]),
    "exactly the window": (6, {"num_frames": 3, "sampling_rate": 2}, [[0, 2, 5]]),
    "shorter than the window": (40, {"num_frames": 8}, [[0, 36, 39, 39, 39, 39, 39, 39]]),
    "one frame": (1, {"num_frames": 3}, [[0, 0, 0]]),
    # a clip of one frame is the first of its window
    "a clip of one frame": (9, {"num_frames": 1, "sampling_rate": 3}, [[3]]),
    # the first clip starts with the video, the last one ends with it, the second lies in the middle
    "three clips": (
        12,
        {"num_frames": 2, "sampling_rate": 2, "num_clips": 3},
        [[0, 3], [4, 7], [8, 11]],
    ),
    "two clips": (12, {"num_frames": 2, "sampling_rate": 2, "num_clips": 2}, [[0, 3], [8, 11]]),
    # 60 fps for 30: the window is twice as long, 8 of 12 frames
    "twice the rate": (
        12,
        {"num_frames": 2, "sampling_rate": 2, "fps": 60, "target_fps": 30},
        [[2, 9]],
    ),
    # 15 fps for 30: half as long
    "half the rate": (
        12,
        {"num_frames": 2, "sampling_rate": 4, "fps": 15, "target_fps": 30},
        [[4, 7]],
    ),
    # 29.97 fps for 30, as a fraction: 999/1000 of a window of 4
    "a fraction of the rate": (
        12,
        {"num_frames": 2, "sampling_rate": 2, "fps": Fraction(30000, 1001), "target_fps": 30},
        [[4, 6]],
    ),
    "rate unknown": (12, {"num_frames": 2, "sampling_rate": 2, "target_fps": 30}, [[4, 7]]),
    "no target": (12, {"num_frames": 2, "sampling_rate": 2, "fps": 60}, [[4, 7]]),
}
SEGMENT_EXAMPLES = {
    "parts of three": (12, {"num_frames": 4}, [[1, 4, 7, 10]]),
    "parts of one": (8, {"num_frames": 8}, [[0, 1, 2, 3, 4, 5, 6, 7]]),
    # parts of 2.5 frames, middles at 1.25, 3.75, 6.25, 8.75
    "parts that are no whole frames": (10, {"num_frames": 4}, [[1, 3, 6, 8]]),
    "shorter than asked": (3, {"num_frames": 8}, [[0, 0, 0, 1, 1, 2, 2, 2]]),
    "one frame": (1, {"num_frames": 3}, [[0, 0, 0]]),
    "two clips": (12, {"num_frames": 3, "num_clips": 2}, [[1, 5, 9], [3, 7, 11]]),
    "rates have no effect": (
        12,
        {"num_frames": 4, "sampling_rate": 5, "fps": 7, "target_fps": 9},
        [[1, 4, 7, 10]],
    ),
}


@pytest.mark.parametrize(
    ("policy", "example"),
    [("clip", name) for name in CLIP_EXAMPLES] + [("segments", name) for name in SEGMENT_EXAMPLES],
)
def test_worked_examples(policy, example):
    total, settings, expected = {"clip": CLIP_EXAMPLES, "segments": SEGMENT_EXAMPLES}[policy][
        example
    ]
    np.testing.assert_array_equal(sample_indices(policy, total, **settings), expected)


@pytest.mark.parametrize("policy", SAMPLING_POLICIES)
@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("total", [1, 2, 7, 31, 257, 10_000])
@pytest.mark.parametrize("num_frames", [1, 8, 31])
@pytest.mark.parametrize("num_clips", [1, 2, 5])
def test_every_sampler_keeps_the_invariants(policy, is_training, total, num_frames, num_clips):
    """Numbers of frames that exist, in order, as many as asked, and the same for the same seed."""

    def sample():
        generator = np.random.default_rng(7) if is_training else None
        return sample_indices(
            policy, total, num_frames=num_frames, sampling_rate=3, num_clips=num_clips, fps=25.0, target_fps=30,
            generator=generator,
        )  # fmt: skip

    indices = sample()
    assert indices.shape == (num_clips, num_frames)
    assert indices.dtype == np.int64
    assert indices.min() >= 0
    assert indices.max() < total
    assert (np.diff(indices, axis=1) >= 0).all()
    np.testing.assert_array_equal(indices, sample())


@pytest.mark.parametrize("total", [100, 101, 64, 300])
@pytest.mark.parametrize("num_clips", [2, 3, 4, 10])
def test_several_clips_are_spread_evenly_over_the_whole_video(total, num_clips):
    indices = sample_indices("clip", total, num_frames=4, sampling_rate=8, num_clips=num_clips)
    assert indices[0, 0] == 0
    assert indices[-1, -1] == total - 1
    starts = (total - 32) * np.arange(num_clips) / (num_clips - 1)
    assert np.abs(indices[:, 0] - starts).max() <= 1


def test_clips_that_fill_the_video_follow_each_other_without_a_gap():
    indices = sample_indices("clip", 24, num_frames=4, sampling_rate=2, num_clips=3)
    np.testing.assert_array_equal(indices[:, 0], [0, 8, 16])
    np.testing.assert_array_equal(indices[:, -1], [7, 15, 23])


def test_training_clips_start_anywhere_with_equal_chance():
    indices = sample_indices(
        "clip",
        20,
        num_frames=2,
        sampling_rate=5,
        num_clips=20_000,
        generator=np.random.default_rng(0),
    )
    starts = np.bincount(indices[:, 0], minlength=11)
    assert starts[10] <= 1  # only at the very end of the range
    np.testing.assert_allclose(starts[:10] / 20_000, 0.1, atol=0.01)
    assert (indices[:, 1] - indices[:, 0] == 9).all()


def test_training_segments_take_every_frame_of_each_part_with_equal_chance():
    indices = sample_indices(
        "segments", 12, num_frames=4, num_clips=20_000, generator=np.random.default_rng(0)
    )
    for part in range(4):
        frames, counts = np.unique(indices[:, part], return_counts=True)
        np.testing.assert_array_equal(frames, [3 * part, 3 * part + 1, 3 * part + 2])
        np.testing.assert_allclose(counts / 20_000, 1 / 3, atol=0.02)


@pytest.mark.parametrize("policy", SAMPLING_POLICIES)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_frames": 0}, "num_frames must be a whole number of at least 1, got 0"),
        ({"num_frames": 2.5}, "num_frames must be a whole number of at least 1, got 2.5"),
        ({"num_frames": True}, "num_frames must be a whole number of at least 1, got True"),
        ({"total_num_frames": 0}, "total_num_frames must be a whole number of at least 1, got 0"),
        (
            {"total_num_frames": None},
            "total_num_frames must be a whole number of at least 1, got None",
        ),
        ({"num_clips": -1}, "num_clips must be a whole number of at least 1, got -1"),
        ({"sampling_rate": 0}, "sampling_rate must be a positive number, got 0"),
        ({"sampling_rate": None}, "sampling_rate must be a positive number, got None"),
        ({"target_fps": -30}, "target_fps must be a positive number, got -30"),
        ({"fps": float("nan"), "target_fps": 30}, "fps must be a positive number, got nan"),
        ({"fps": "30"}, "fps must be a positive number, got '30'"),
    ],
)
def test_nonsense_is_refused_by_name_and_value(policy, wrong, message):
    arguments = {"total_num_frames": 10, "num_frames": 2} | wrong
    with pytest.raises(ValueError, match=message):
        sample_indices(policy, **arguments)


def test_an_unknown_policy_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="sampling policy 'uniform' is unknown: choose one of 'clip', 'segments'"
    ):
        sample_indices("uniform", 10, num_frames=2)
    with pytest.raises(ValueError, match="'dense' is unknown"):
        check_sampling("dense", num_frames=2)
