"""A stream window by window gives what the model gives of each window alone; live streams drop what
is late.
"""

import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from decoding_clips import encode, picture_sequence
from PIL import Image
from tiny import tiny_model

from hf_timesformer import TimeSformerVideoProcessor
from hf_timesformer.timeline.stream_classifier import StreamClassifier
from hf_timesformer.video.decoding import decode_video
from hf_timesformer.video.frame_stream import FrameStream


def make_processor(num_crops: int = 1) -> TimeSformerVideoProcessor:
    crop = {"height": 12, "width": 8}
    return TimeSformerVideoProcessor(
        num_frames=4, size={"shortest_edge": 14}, crop_size=crop, num_crops=num_crops
    )


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny_model("divided_space_time")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """5.5 seconds at 30 frames a second."""
    return encode(tmp_path_factory.mktemp("clip") / "clip.mp4", picture_sequence(165))


@torch.no_grad()
def window_alone(
    model, processor, frames: torch.Tensor, fps: float, start: float, window: float
) -> np.ndarray:
    """The scores of one window from the whole decoded video: frame numbers by hand, then the
    processor as ever.
    """
    moments = start + (np.arange(4) + 0.5) * window / 4
    numbers = np.minimum(np.floor(moments * fps + 0.5 * fps / 1000), len(frames) - 1).astype(int)
    views = processor(
        [frames[torch.from_numpy(numbers)]], do_sample_frames=False, return_tensors="pt"
    )
    return model(**views).logits[0].softmax(-1).numpy()


@pytest.mark.parametrize(
    ("window", "stride"), [(2.0, 1.0), (2.0, 0.5), (1.0, 0.7), (0.5, 1.5), (9.0, 1.0)]
)
@pytest.mark.parametrize(("num_crops", "batch_size"), [(1, 1), (3, 4)])
def test_each_window_as_if_alone(
    model, clip, window: float, stride: float, num_crops: int, batch_size: int
):
    processor = make_processor(num_crops)
    frames, _ = decode_video(clip, range(165))
    stream = StreamClassifier(model, processor, window=window, stride=stride, batch_size=batch_size)
    every = list(stream((frame, number / 30) for number, frame in enumerate(frames)))
    assert [one.number for one in every] == list(range(stream.windows.count(5.5)))
    for one in every:
        assert (one.start, one.end) == pytest.approx(
            (one.number * stride, one.number * stride + window)
        )
        expected = window_alone(model, processor, frames, 30, one.start, window)
        np.testing.assert_allclose(one.scores, expected, atol=1e-5)
        assert one.answers[0]["score"] == pytest.approx(expected.max(), abs=1e-5)
    # The frames that the windows look at are enough: what a forward stream of the file gives.
    again = StreamClassifier(model, processor, window=window, stride=stride, batch_size=batch_size)
    few = list(FrameStream(clip, times=again.windows.all_moments()))
    assert len(few) < 165
    again.begin_at(0.0)
    found = [one for frame in few for one in again.push(frame.pixels, frame.seconds)]
    found += again.finish(few[-1].seconds + few[-1].duration)
    np.testing.assert_array_equal(
        np.stack([one.scores for one in found]), np.stack([one.scores for one in every])
    )


@pytest.mark.parametrize(
    "kind", ["PIL", "rows, columns, channels", "channels first", "list of videos' frames"]
)
def test_frames_of_any_kind(model, kind: str):
    pixels = picture_sequence(40, 20, 30)
    frames = {
        "PIL": [Image.fromarray(frame) for frame in pixels],
        "channels first": list(torch.from_numpy(pixels).permute(0, 3, 1, 2)),
    }.get(kind, list(pixels))
    stream = StreamClassifier(model, make_processor(), window=1.0, stride=0.5)
    scores = [
        one.scores for one in stream((frame, number / 10) for number, frame in enumerate(frames))
    ]
    reference = StreamClassifier(model, make_processor(), window=1.0, stride=0.5)
    expected = [
        one.scores for one in reference((frame, number / 10) for number, frame in enumerate(pixels))
    ]
    np.testing.assert_array_equal(scores, expected)


def test_no_more_frames_than_a_window_are_kept(model):
    """Of a stream of 200 frames, those that are alive at any time lie within one window."""
    alive: set[int] = set()
    most = 0

    class Frame(np.ndarray):
        pass

    def camera() -> Iterator[tuple[np.ndarray, float]]:
        nonlocal most
        for number in range(200):
            frame = np.zeros((14, 14, 3), np.uint8).view(Frame)
            alive.add(number)
            weakref.finalize(frame, alive.discard, number)
            yield frame, number / 10
            del frame
            most = max(most, len(alive))

    predictions = list(StreamClassifier(model, make_processor(), window=2.0, stride=1.0)(camera()))
    assert len(predictions) == 19
    # the one that is shown and the one that comes; of the others only four small crops a window
    assert most <= 3


def test_predictions_come_when_their_window_is_over(model):
    stream = StreamClassifier(model, make_processor(), window=1.0, stride=1.0)
    frame = np.zeros((14, 14, 3), np.uint8)
    came = [
        (now, one.number)
        for now in np.arange(100.0, 103.25, 0.25)
        for one in stream.push(frame, now)
    ]
    assert came == [(101.0, 0), (102.0, 1), (103.0, 2)]
    (last,) = stream.finish()
    assert (last.start, last.end) == (103.0, 104.0)


def test_late_windows_are_dropped_and_counted(model):
    now = [0.0]
    stream = StreamClassifier(
        model, make_processor(), window=1.0, stride=1.0, max_delay=0.5, clock=lambda: now[0]
    )
    frame = np.zeros((14, 14, 3), np.uint8)
    numbers = []
    for step in range(41):  # 4 frames a second; from 4 s to 7 s the network takes its time
        seconds = step / 4
        now[0] = seconds + (2.0 if 4 < seconds <= 7 else 0.0)
        numbers += [one.number for one in stream.push(frame, seconds)]
    assert numbers == [0, 1, 2, 3, 7, 8, 9]
    assert stream.dropped == 3


def test_first_windows_passed_over(model, clip):
    whole = StreamClassifier(model, make_processor(), window=2.0, stride=1.0)
    expected = [one.scores for one in whole((f.pixels, f.seconds) for f in FrameStream(clip))][2:]
    rest = StreamClassifier(model, make_processor(), window=2.0, stride=1.0, first=2)
    rest.begin_at(0.0)
    frames = FrameStream(clip, times=rest.windows.all_moments(2))
    np.testing.assert_array_equal(
        [one.scores for one in rest((f.pixels, f.seconds) for f in frames)], expected
    )


def test_features_are_cls_of_the_last_block(model, clip):
    processor = make_processor(3)
    stream = StreamClassifier(model, processor, window=9.0, with_features=True)
    (one,) = stream((frame.pixels, frame.seconds) for frame in FrameStream(clip))
    plain = StreamClassifier(model, processor, window=9.0)
    (same,) = plain((frame.pixels, frame.seconds) for frame in FrameStream(clip))
    np.testing.assert_allclose(one.scores, same.scores, atol=1e-6)
    frames, _ = decode_video(clip, [33, 101, 164, 164])
    views = processor([frames], do_sample_frames=False, return_tensors="pt")["pixel_values"][0]
    with torch.no_grad():
        expected = model.timesformer(views).last_hidden_state[:, 0].mean(0)
    np.testing.assert_allclose(one.features, expected.numpy(), atol=1e-5)


def test_mistakes(model):
    stream = StreamClassifier(model, make_processor())
    frame = np.zeros((14, 14, 3), np.uint8)
    stream.push(frame, 3.0)
    with pytest.raises(ValueError, match=r"frames must come in order: 2.0 s after 3.0 s"):
        stream.push(frame, 2.0)
    with pytest.raises(ValueError, match="batch_size"):
        StreamClassifier(model, make_processor(), batch_size=0)
    with pytest.raises(ValueError, match="gives logits alone"):
        StreamClassifier(torch.nn.Linear(2, 2), make_processor(), with_features=True)
    assert StreamClassifier(model, make_processor()).finish() == []
