"""The metric, the matching of labels, and predictions over a data set, held to figures worked out
by hand.
"""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import evaluate
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import write_clips, write_model

from hf_timesformer import TimeSformerVideoProcessor
from hf_timesformer.data.dataset_factory import load_videos
from hf_timesformer.data.preparation.pack import PackSettings, pack
from hf_timesformer.data.preparation.scan import list_records
from hf_timesformer.data.readers.folder import read_folder
from hf_timesformer.data.targets import MULTI_LABEL
from hf_timesformer.evaluation import metric as metric_module
from hf_timesformer.evaluation.accuracy import classification_metrics
from hf_timesformer.evaluation.metric import VideoClassificationMetric
from hf_timesformer.evaluation.predictions import Predictions, predict_dataset
from hf_timesformer.evaluation.rank_exchange import make_accelerator
from hf_timesformer.evaluation.report import (
    describe_protocol,
    draw_confusion_matrix,
    summarize,
    write_report,
)
from hf_timesformer.inference import load_model_and_processor, make_views


# Six classes; the right one is ranked 1st, 2nd, 6th, 1st for videos of the classes 0, 0, 1, 5.
LOGITS = np.array(
    [[9, 1, 2, 3, 4, 5], [8, 9, 1, 2, 3, 4], [5, 0, 4, 3, 2, 1], [0, 1, 2, 3, 4, 9]], np.float32
)  # fmt: skip
LABELS = np.array([0, 0, 1, 5])
EXPECTED = {
    "top1_accuracy": 2 / 4,
    "top5_accuracy": 3 / 4,
    "mean_class_accuracy": (1 / 2 + 0 + 1) / 3,
}


def test_metric_figures():
    assert classification_metrics(LOGITS, LABELS) == pytest.approx(EXPECTED)


@pytest.mark.parametrize("where", ["class", "evaluate.load"])
def test_metric_is_one_of_evaluate(where: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    metric = (
        VideoClassificationMetric() if where == "class" else evaluate.load(metric_module.__file__)
    )
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(predictions=LOGITS, references=LABELS) == pytest.approx(EXPECTED)
    metric.add_batch(predictions=torch.tensor(LOGITS[:3]), references=torch.tensor(LABELS[:3]))
    metric.add(prediction=LOGITS[3], reference=LABELS[3])
    assert metric.compute() == pytest.approx(EXPECTED)


def test_fewer_than_five_classes():
    assert classification_metrics(LOGITS[:, :3], np.array([2, 0, 2, 2]))["top5_accuracy"] == 1


def test_equal_logits_are_no_luck():
    assert classification_metrics(np.zeros((4, 8)), np.array([7, 6, 5, 0]))["top5_accuracy"] == 0.25


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.full((2, 3), np.nan), [0, 1], "logits of 2 of 2 videos are NaN or infinite"),
        (np.zeros((2, 3)), [0, 3], r"labels 0\.\.3 do not fit logits of 3 classes"),
        (np.zeros((2, 3)), [0], r"need logits \(videos, classes\) and one label a video"),
        (np.zeros((0, 3)), [], "need logits"),
    ],
)
def test_metric_mistakes(logits, labels, message: str):
    with pytest.raises(ValueError, match=message):
        classification_metrics(logits, np.array(labels))


# predictions


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(("num_clips", "num_crops"), [(1, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_predictions_are_the_mean_over_views(
    clips, model_folder, num_clips: int, num_crops: int, num_workers: int
):
    model, processor = load_model_and_processor(
        str(model_folder), num_clips=num_clips, num_crops=num_crops
    )
    videos = load_videos("folder", clips, "test")
    accelerator = make_accelerator(cpu=True)
    found = predict_dataset(
        model, processor, videos, accelerator, batch_size=5, num_workers=num_workers
    )
    assert found.video_ids == sorted(name for name in videos["video_id"] if "broken" not in name)
    assert [(row["video_id"], row["reason"]) for row in found.failures] == [
        ("up/broken.mp4", "container")
    ]
    by_id = {row["video_id"]: row for row in videos}
    for video_id, logits, label in zip(found.video_ids, found.logits, found.labels):
        views = make_views(processor, by_id[video_id]["video"])
        assert views.shape == (num_clips * num_crops, 4, 3, 32, 32)
        with torch.no_grad():
            # one view at a time
            each = torch.cat([model(pixel_values=view[None]).logits for view in views])
        np.testing.assert_allclose(logits, each.mean(0), atol=1e-5)
        assert label == by_id[video_id]["label"]


def test_shards_give_the_same_predictions(clips, model_folder, tmp_path: Path):
    splits = {"test": read_folder(clips, "test")}
    settings, names = PackSettings(videos_per_shard=4), splits["test"].class_names
    pack(
        list_records(splits, clips), names, tmp_path, settings, expected={"test": 13}, num_workers=0
    )
    model, processor = load_model_and_processor(str(model_folder), num_crops=3)
    accelerator = make_accelerator(cpu=True)
    files = predict_dataset(model, processor, load_videos("folder", clips, "test"), accelerator)
    shards = load_videos("webdataset", tmp_path, "test")
    for world in (1, 3, 8):  # 4 shards over more ranks, and over fewer
        parts = []
        for rank in range(world):
            place = SimpleNamespace(
                process_index=rank,
                num_processes=world,
                device=torch.device("cpu"),
                is_main_process=False,
            )
            parts.append(predict_dataset(model, processor, shards, place))
        rows = {name: row for part in parts for name, row in zip(part.video_ids, part.logits)}
        assert sum(len(part.video_ids) for part in parts) == 12
        np.testing.assert_allclose(
            np.stack([rows[name] for name in files.video_ids]), files.logits, atol=1e-5
        )


def test_half_precision_option(clips, model_folder):
    model, processor = load_model_and_processor(str(model_folder))
    videos, accelerator = (
        load_videos("folder", clips, "test").select(range(3)),
        make_accelerator(cpu=True),
    )
    full = predict_dataset(model, processor, videos, accelerator)
    half = predict_dataset(model, processor, videos, accelerator, dtype="bfloat16")
    assert half.logits.dtype == np.float32
    assert not np.array_equal(half.logits, full.logits)
    np.testing.assert_allclose(half.logits, full.logits, atol=0.1)


def test_the_config_says_how_many_frames_where_the_processor_does_not(model_folder, tmp_path: Path):
    for path in model_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "video_preprocessor_config.json").unlink()
    stock = {"image_processor_type": "VideoMAEImageProcessor", "size": {"shortest_edge": 32}}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(stock | {"crop_size": {"height": 32, "width": 32}})
    )
    assert load_model_and_processor(str(tmp_path))[1].num_frames == 4
    assert load_model_and_processor(str(tmp_path), num_frames=6)[1].num_frames == 6


def test_no_model_and_another_model(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no model folder"):
        load_model_and_processor(str(tmp_path / "nowhere"))
    with pytest.raises(OSError, match="there is no folder 'my-modle', nor was it found on the Hub"):
        load_model_and_processor("my-modle")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="holds a model of type 'vit', not a TimeSformer"):
        load_model_and_processor(str(tmp_path))


# the report


def predictions(**fields) -> Predictions:
    failures = [{"video_id": "x", "reason": "container", "message": "cannot be opened as a video"}]
    return Predictions(
        **{"video_ids": list("abcd"), "logits": LOGITS, "labels": LABELS, "failures": failures}
        | fields
    )


def test_report_files(tmp_path: Path):
    names = [f"class {index}" for index in range(6)]
    results = summarize(predictions(seconds=2.5), names, expected=9, found=5)
    written = write_report(tmp_path, results, predictions(), names)
    names_written = (
        "eval_results.json predictions.parquet per_class.csv most_confused.csv confusion_matrix.png"
    )
    assert [path.name for path in written] == names_written.split()
    saved = json.loads(written[0].read_text())
    assert {name: saved[name] for name in EXPECTED} == pytest.approx(EXPECTED)
    counts = {"videos_expected": 9, "videos_found": 5, "videos_evaluated": 4, "videos_failed": 1}
    assert {name: saved[name] for name in counts} == counts
    assert saved["videos_per_second"] == 2.0
    rows = {row["class"]: row for row in csv.DictReader(written[2].open())}
    assert list(rows) == ["class 0", "class 1", "class 5"]  # the others do not occur
    assert rows["class 0"] == {
        "class": "class 0",
        "videos": "2",
        "correct": "1",
        "accuracy": "0.5000",
        "precision": "0.5000",
        "most_confused_with": "class 1",
        "confused": "1",
    }
    assert Image.open(written[4]).width > 300


def test_most_confused_pairs(tmp_path: Path):
    """Of the four videos one of class 0 is taken for 1, and the one of class 1 for 0."""
    names = [f"class {index}" for index in range(6)]
    results = summarize(predictions(), names, expected=4, found=4)
    write_report(tmp_path, results, predictions(), names)
    rows = list(csv.DictReader((tmp_path / "most_confused.csv").open()))
    assert [tuple(row.values()) for row in rows] == [
        ("class 0", "class 1", "1", "0.5000"),
        ("class 1", "class 0", "1", "1.0000"),
    ]


def test_top5_of_few_classes_is_said_in_words():
    few = predictions(logits=LOGITS[:, :3], labels=np.array([2, 0, 2, 2]))
    assert (
        "the model has 3 classes, so top-5 is top-3"
        in summarize(few, list("abc"), expected=4, found=4)["top5_note"]
    )


def test_nothing_to_report():
    nothing = predictions(video_ids=[], logits=np.empty((0, 6)), labels=np.empty(0, np.int64))
    with pytest.raises(
        ValueError, match="none of 1 videos could be evaluated; the first: cannot be opened"
    ):
        summarize(nothing, [], expected=1, found=1)


def test_large_confusion_matrix(tmp_path: Path):
    draw_confusion_matrix(
        tmp_path / "matrix.png", np.eye(120, dtype=int), [str(index) for index in range(120)]
    )
    assert Image.open(tmp_path / "matrix.png").size[0] < 3000


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {},
            "one clip in the middle of the video (8 frames at a sampling rate of 1/32); frames resized to a short",
        ),
        (
            {"num_clips": 10, "target_fps": 30},
            "10 clips spread evenly (8 frames at a sampling rate of 1/32 of 30 fps)",
        ),
        ({"sampling": "segments", "num_crops": 3}, "one from each of 8 equal segments"),
        ({"num_crops": 3, "num_clips": 2}, "averaged over the 6 views"),
    ],
)
def test_protocol_in_words(settings: dict, words: str):
    processor = TimeSformerVideoProcessor(**settings)
    assert words in describe_protocol(processor)
    several = describe_protocol(processor, problem_type=MULTI_LABEL)
    assert words in several
    assert "top-1" not in several
