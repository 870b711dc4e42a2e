"""Clips from records: what is drawn, what replaces a broken clip, what a batch holds."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_timesformer.data.augmentation import ClipAugmentation
from hf_timesformer.data.clips import (
    ClipCollator,
    EvaluationClips,
    FrameSampling,
    TrainingClips,
    check_every_class_is_readable,
)
from hf_timesformer.data.dataset_factory import load_videos
from hf_timesformer.data.faults import BadClipsError, Fault, list_faults
from hf_timesformer.data.row_source import ClipKey, EpochSampler, RecordSource
from hf_timesformer.data.synthetic import make_motion_dataset
from hf_timesformer.data.targets import NO_CLIP, UNREADABLE
from hf_timesformer.video.encoding import write_video
from hf_timesformer.video.video_processing_timesformer import TimeSformerVideoProcessor


@pytest.fixture(scope="module")
def good_folder(tmp_path_factory):
    return make_motion_dataset(
        tmp_path_factory.mktemp("good"), splits={"train": 2}, num_frames=10, size=40
    )


@pytest.fixture
def records(good_folder):
    return load_videos("folder", good_folder, "train")


@pytest.fixture(scope="module")
def damaged_folder(tmp_path_factory):
    """Two clips a class, of which: one of `down` is text, one of `left` is cut off, both of `up`
    are empty.
    """
    folder = make_motion_dataset(
        tmp_path_factory.mktemp("bad"), splits={"train": 2}, num_frames=10, size=40
    )
    clips = {name: sorted((folder / "train" / name).iterdir()) for name in ("down", "left", "up")}
    clips["down"][0].write_text("no video")
    clips["left"][1].write_bytes(clips["left"][1].read_bytes()[:700])
    for clip in clips["up"]:
        clip.write_bytes(b"")
    return folder


@pytest.fixture
def damaged(damaged_folder):
    return load_videos("folder", damaged_folder, "train")


def make_processor(**options) -> TimeSformerVideoProcessor:
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return TimeSformerVideoProcessor(**{"num_frames": 4, "sampling_rate": 2} | size | options)


def make_training(records, **options) -> TrainingClips:
    processor = make_processor()
    augmentation = ClipAugmentation(
        32, short_side=(34, 40), image_mean=processor.image_mean, image_std=processor.image_std
    )
    options = {"label_ids": range(6), "seed": 0} | options
    return TrainingClips(
        RecordSource(records), FrameSampling.of(processor), augmentation, **options
    )


def test_a_clip_follows_from_seed_epoch_and_row_alone(records):
    clips = make_training(records)
    first = clips[ClipKey(0, 3)]["pixel_values"]
    for key in (ClipKey(1, 3), ClipKey(0, 4)):
        assert not torch.equal(clips[key]["pixel_values"], first)
    torch.testing.assert_close(clips[ClipKey(0, 3)]["pixel_values"], first, rtol=0, atol=0)
    assert not torch.equal(make_training(records, seed=1)[ClipKey(0, 3)]["pixel_values"], first)


def test_workers_and_order_change_nothing(records):
    clips, keys = make_training(records), [ClipKey(2, row) for row in range(12)]
    alone = [clips[key]["pixel_values"] for key in reversed(keys)][::-1]
    loader = DataLoader(
        clips, sampler=keys, batch_size=5, num_workers=2, collate_fn=ClipCollator(6)
    )
    torch.testing.assert_close(
        torch.cat([batch["pixel_values"] for batch in loader]), torch.stack(alone)
    )


def test_labels_are_those_of_the_checkpoint(records):
    clips = make_training(records, label_ids=[50, 40, 30, 20, 10, 0])
    names = records.features["label"].names
    for row in range(len(records)):
        item = clips[ClipKey(0, row)]
        assert item["labels"] == 50 - 10 * names.index(item["video_id"].split("/")[0])


def test_a_broken_clip_is_replaced_by_the_next_good_one(damaged):
    rows = {name: row for row, name in enumerate(damaged["video_id"])}
    clips = make_training(damaged)
    text = clips[ClipKey(0, rows["down/down_000.mp4"])]
    assert text["video_id"] == "down/down_001.mp4"
    assert [fault.video_id for fault in text["faults"]] == ["down/down_000.mp4"]
    both = clips[ClipKey(0, rows["up/up_000.mp4"])]
    assert both["video_id"] == "down/down_001.mp4"  # past the end of the list comes its beginning
    assert [fault.video_id for fault in both["faults"]] == [
        "up/up_000.mp4", "up/up_001.mp4", "down/down_000.mp4"
    ]  # fmt: skip
    assert all(fault.reason and fault.message for fault in both["faults"])


def test_nothing_readable_at_all(damaged):
    only_bad = damaged.filter(lambda name: name.startswith("up/"), input_columns="video_id")
    with pytest.raises(
        BadClipsError, match=r"none of 2 clips in a row can be read: up/up_000\.mp4: "
    ):
        make_training(only_bad)[ClipKey(0, 0)]


def test_every_class_needs_a_readable_clip(records, damaged):
    assert check_every_class_is_readable(records) == []
    with pytest.raises(
        BadClipsError,
        match=r"no readable clip in class 'up' \(up/up_000\.mp4: .*; up/up_001\.mp4: ",
    ):
        check_every_class_is_readable(damaged)


def test_evaluation_is_what_the_processor_does(damaged):
    processor = make_processor()
    clips = EvaluationClips(RecordSource(damaged), processor, label_ids=range(6))
    assert len(clips) == 12
    for row, record in enumerate(damaged):
        item = clips[row]
        if record["video_id"] in ("down/down_000.mp4", "left/left_001.mp4") or record["label"] == 5:
            assert item["labels"] == UNREADABLE
            assert [fault.video_id for fault in item["faults"]] == [record["video_id"]]
            assert item["pixel_values"].shape == (4, 3, 32, 32)
        else:
            assert item["labels"] == record["label"]
            expected = processor(record["video"], return_tensors="pt")["pixel_values"][0]
            torch.testing.assert_close(item["pixel_values"], expected, rtol=0, atol=0)


def test_a_place_without_a_clip(records):
    class Empty(RecordSource):
        def candidates(self, key):
            return iter(())

    item = EvaluationClips(Empty(records), make_processor(), label_ids=range(6))[0]
    assert (item["labels"], item["faults"]) == (NO_CLIP, [])


def test_three_frames_for_eight(tmp_path):
    folder = make_motion_dataset(tmp_path, splits={"train": 1}, num_frames=3, size=40)
    records = load_videos("folder", folder, "train")
    sampling = FrameSampling(num_frames=8)
    augmentation = ClipAugmentation(
        32, short_side=(40, 40), image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    clip = TrainingClips(RecordSource(records), sampling, augmentation, label_ids=range(6), seed=0)[
        ClipKey(0, 0)
    ]
    assert clip["faults"] == []
    assert clip["pixel_values"].shape == (8, 3, 32, 32)
    assert len({frame.numpy().tobytes() for frame in clip["pixel_values"]}) <= 3


@pytest.mark.parametrize("num_clips", [1, 13])
def test_every_row_once_an_epoch_in_an_order_of_its_own(num_clips):
    sampler, orders = EpochSampler(num_clips, seed=3), []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {key.epoch for key in keys} == {epoch}
        orders.append([key.index for key in keys])
        assert orders[-1] == [key.index for key in sampler]
        assert sorted(orders[-1]) == list(range(num_clips))
    assert num_clips == 1 or len({tuple(order) for order in orders}) == 3


def item(label: int, value: float, **more) -> dict:
    return {
        "pixel_values": torch.full((1, 3, 2, 2), value),
        "labels": label,
        "video_id": f"v{label}",
        "faults": [],
    } | more


def test_batches():
    fault = Fault("x", "damaged", "why")
    batch = ClipCollator(4)([item(2, 1.0, faults=[fault]), item(0, 5.0)])
    assert batch["pixel_values"].shape == (2, 1, 3, 2, 2)
    assert batch["labels"].tolist() == [2, 0]
    assert (batch["video_ids"], batch["faults"]) == (["v2", "v0"], [tuple(fault)])


def test_mixup_in_training_only():
    collate = ClipCollator(4, mixup_alpha=0.3)
    assert collate([item(2, 1.0), item(0, 5.0)])["labels"].tolist() == [2, 0]
    items = [item(2, 1.0, entropy=[0, 0, 7, 0]), item(0, 5.0, entropy=[0, 0, 8, 0])]
    batch = collate(items)
    weight = batch["labels"][0, 2]
    assert batch["pixel_values"][0, 0, 0, 0, 0] == pytest.approx(float(weight + 5 * (1 - weight)))
    torch.testing.assert_close(collate(items)["labels"], batch["labels"])


def test_faults_in_words():
    faults = [Fault(f"v{i}", "damaged", "") for i in range(5)]
    assert list_faults(faults, limit=2) == "v0: damaged; v1: damaged; and 3 more"
    assert list_faults(faults[:1]) == "v0: damaged"


def test_sampling_of_the_processor(records):
    processor = make_processor(sampling="segments", target_fps=24)
    assert FrameSampling.of(processor) == FrameSampling(4, "segments", 2, 24)
    draws = Counter()
    metadata = type("Metadata", (), {"total_num_frames": 40, "fps": 30})
    for seed in range(50):
        indices = FrameSampling.of(processor).indices(metadata, np.random.default_rng(seed))
        draws.update(index // 10 for index in indices.tolist())
    assert draws == dict.fromkeys(range(4), 50)


@pytest.fixture(scope="module")
def counting_video(tmp_path_factory) -> str:
    """30 frames at 10 a second, each of one grey of its own, so that a frame's number can be read
    from its pixels.
    """
    frames = np.repeat(np.arange(30, dtype=np.uint8)[:, None] * 8 + 8, 48 * 48 * 3, axis=1).reshape(
        30, 48, 48, 3
    )
    path = tmp_path_factory.mktemp("counting") / "counting.mkv"
    return str(write_video(path, frames, fps=10, codec="ffv1", pix_fmt="bgr0"))


def numbers_of(pixel_values: torch.Tensor) -> list[int]:
    """The frame numbers of normalised frames `(T, 3, H, W)` of `counting_video`."""
    grey = (pixel_values.mean(dim=(1, 2, 3)) * 0.225 + 0.45) * 255
    return ((grey - 8) / 8).round().int().tolist()


@pytest.mark.parametrize(
    ("segment", "first", "last"),
    [
        ({}, 0, 29),
        ({"start": 1.0, "end": 2.0}, 10, 19),
        ({"start": 2.0, "end": None}, 20, 29),
        ({"start_frame": 7, "end_frame": 15}, 7, 14),
        ({"start_frame": 25, "end_frame": 99}, 25, 29),
    ],
)
def test_a_segment_is_sampled_as_a_clip_of_its_own(
    counting_video, segment: dict, first: int, last: int
):
    record = {"video_id": "x", "video": counting_video, "label": 0} | segment
    augmentation = ClipAugmentation(
        32, short_side=(32, 32), image_mean=[0.45] * 3, image_std=[0.225] * 3
    )
    sampling = FrameSampling(num_frames=4, sampling="segments")
    clips = TrainingClips(RecordSource([record]), sampling, augmentation, label_ids=[0], seed=0)
    drawn = {
        number
        for epoch in range(40)
        for number in numbers_of(clips[ClipKey(epoch, 0)]["pixel_values"])
    }
    assert drawn <= set(range(first, last + 1))
    assert {first, last} <= drawn or len(drawn) >= min(8, last - first)


def test_a_segment_is_evaluated_as_a_clip_of_its_own(counting_video):
    processor = make_processor(sampling="segments")
    whole = {"video_id": "whole", "video": counting_video, "label": 0, "start": None, "end": None}
    part = whole | {"start": 1.0, "end": 1.8}
    clips = EvaluationClips(RecordSource([whole, part]), processor, label_ids=[0])
    assert numbers_of(clips[0]["pixel_values"]) == [3, 11, 18, 26]
    assert numbers_of(clips[1]["pixel_values"]) == [11, 13, 15, 17]


def test_a_segment_past_the_end_is_a_fault(counting_video):
    records = [
        {"video_id": "late", "video": counting_video, "label": 0, "start": 50.0, "end": 60.0},
        {
            "video_id": "later",
            "video": counting_video,
            "label": 0,
            "start_frame": 30,
            "end_frame": 40,
        },
        {"video_id": "good", "video": counting_video, "label": 0, "start": 1.0, "end": None},
    ]
    item = make_training(records)[ClipKey(0, 0)]
    assert item["video_id"] == "good"
    assert [(fault.video_id, fault.reason) for fault in item["faults"]] == [
        ("late", "segment"),
        ("later", "segment"),
    ]
