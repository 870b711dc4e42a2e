"""Plain `transformers.Trainer`, and `VideoTrainer`, with the public pieces and any `datasets` data
set.
"""

import datasets
import numpy as np
import pytest
import torch
from tiny import tiny_model
from transformers import Trainer, TrainingArguments

import hf_timesformer
from hf_timesformer import (
    ClipAugmentation,
    ClipCollator,
    ClipMetrics,
    EvaluationTransform,
    TimeSformerVideoProcessor,
    TrainingTransform,
    VideoTrainer,
    VideoTrainingArguments,
    load_videos,
)
from hf_timesformer.video.decoding import VideoDecodeError


SETTINGS = {"image_size": 32, "patch_size": 16, "num_frames": 2, "num_labels": 6}


@pytest.fixture(scope="module")
def processor() -> TimeSformerVideoProcessor:
    return TimeSformerVideoProcessor(
        num_frames=2,
        sampling_rate=2,
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
    )


@pytest.fixture
def training(processor) -> TrainingTransform:
    """Nothing is left to chance but the place of the clip in time."""
    augmentation = ClipAugmentation(
        32, short_side=(32, 32), flip=False, image_mean=[0.4] * 3, image_std=[0.3] * 3
    )
    return TrainingTransform(processor, augmentation)


@pytest.mark.parametrize("trainer_class", [Trainer, VideoTrainer])
def test_a_step_and_an_evaluation_are_those_by_hand(
    trainer_class, folder, processor, training, tmp_path
):
    train = load_videos("folder", folder, "train").select(range(0, 24, 4))
    test = load_videos("folder", folder, "validation")
    rows = train.with_transform(training)
    # A random place is the same each time where torch's generator is.
    torch.manual_seed(0)
    first = rows[:]
    torch.manual_seed(0)
    torch.testing.assert_close(rows[:]["pixel_values"], first["pixel_values"], rtol=0, atol=0)

    kind = TrainingArguments if trainer_class is Trainer else VideoTrainingArguments
    args = kind(
        output_dir=str(tmp_path), use_cpu=True, max_steps=1, per_device_train_batch_size=6, learning_rate=0.5,
        lr_scheduler_type="constant", optim="sgd", max_grad_norm=0, save_strategy="no", eval_strategy="no",
        dataloader_num_workers=0, remove_unused_columns=False, disable_tqdm=True, report_to="none",
    )  # fmt: skip
    model, expected = (tiny_model("divided_space_time", **SETTINGS) for _ in range(2))
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=_Fixed(first, len(train)),
        eval_dataset=test.with_transform(EvaluationTransform(processor)),
        data_collator=ClipCollator(6),
        compute_metrics=ClipMetrics(),
    )
    trainer.train()
    batch = ClipCollator(6)([{name: first[name][number] for name in first} for number in range(6)])
    logits = expected.train()(batch["pixel_values"]).logits
    torch.nn.functional.cross_entropy(logits, batch["labels"]).backward()
    torch.optim.SGD(expected.parameters(), lr=0.5).step()
    for name, weight in expected.named_parameters():
        found = dict(model.named_parameters())[name]
        torch.testing.assert_close(found, weight, rtol=1e-4, atol=1e-5, msg=name)

    metrics = trainer.evaluate()
    views = torch.stack(
        [processor(row["video"], return_tensors="pt")["pixel_values"][0] for row in test]
    )
    with torch.no_grad():
        logits = model.eval()(views).logits
    right = (logits.argmax(-1) == torch.tensor(test["label"])).float().mean().item()
    assert metrics["eval_top1_accuracy"] == pytest.approx(right)
    assert metrics["eval_videos"] == len(test)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(test["label"])).item()
    assert metrics["eval_loss"] == pytest.approx(loss, rel=1e-4)


class _Fixed(torch.utils.data.Dataset):
    """Rows that were read before."""

    def __init__(self, rows: dict, count: int):
        self.rows, self.count = rows, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        return {name: values[index] for name, values in self.rows.items()}


def test_workers_and_epochs_see_other_places(folder, training):
    """Of a clip of 6 frames in which 2 of 4 fit at three places."""
    rows = load_videos("folder", folder, "train").select([0] * 12).with_transform(training)
    loader = torch.utils.data.DataLoader(
        rows, batch_size=3, num_workers=2, collate_fn=ClipCollator(6)
    )
    clips = torch.cat([batch["pixel_values"] for _ in range(2) for batch in loader])
    assert 1 < len(np.unique(clips.flatten(1).numpy().round(4), axis=0)) <= 3


@pytest.mark.parametrize("column", ["path", "bytes", "video_feature"])
def test_videos_however_a_data_set_holds_them(column, folder, processor):
    found = load_videos("folder", folder, "validation").select(range(3))
    paths = found["video"]
    videos = paths
    if column == "bytes":
        videos = [open(path, "rb").read() for path in paths]  # noqa: SIM115
    rows = datasets.Dataset.from_dict({"clip": videos, "label": found["label"]})
    if column == "video_feature":
        rows = rows.cast_column("clip", datasets.Video(decode=False))
    transform = EvaluationTransform(processor, video_column="clip", label_ids=[5, 4, 3, 2, 1, 0])
    items = rows.with_transform(transform)[:]
    for path, pixel_values in zip(paths, items["pixel_values"]):
        expected = processor(path, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(pixel_values, expected, rtol=0, atol=0)
    assert items["labels"] == [5 - label for label in found["label"]]


def test_several_labels_and_numbers(folder, processor):
    paths = load_videos("folder", folder, "validation").select(range(2))["video"]
    transform = EvaluationTransform(processor)
    assert transform({"video": paths, "labels": [[0, 2], []]})["labels"] == [[0, 2], []]
    assert transform({"video": paths, "target": [0.5, -1]})["labels"] == [0.5, -1.0]


def test_rows_that_cannot_be(processor, tmp_path):
    transform = TrainingTransform(processor)
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    with pytest.raises(VideoDecodeError, match="broken"):
        transform({"video": [str(broken)], "label": [0]})
    with pytest.raises(ValueError, match=r"cast it with data\.cast_column"):
        transform({"video": [object()], "label": [0]})
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        hf_timesformer.Trainer  # noqa: B018
