"""Evaluation of several classes and of numbers, whole long videos, saved predictions, fused runs,
worst errors.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from decoding_clips import encode, picture_sequence
from PIL import Image
from tiny import tiny_model
from tiny_models import write_clips, write_model

from hf_timesformer import TimeSformerVideoProcessor
from hf_timesformer.cli import evaluate
from hf_timesformer.evaluation.accuracy import average_precision, multi_label_metrics
from hf_timesformer.evaluation.prediction_file import fuse, read_predictions, write_predictions
from hf_timesformer.evaluation.predictions import Predictions
from hf_timesformer.evaluation.whole_video import (
    clips_that_cover,
    covering_indices,
    views_of_whole_video,
)
from hf_timesformer.evaluation.worst_errors import describe_error, error_sizes
from hf_timesformer.inference import load_model_and_processor, look_at, make_views
from hf_timesformer.video.decoding import decode_video, probe_video


NAMES = ("a", "b", "c")
# Of each clip: classes, number.
ROWS = [("a|b", 1.5), ("b", -2.0), ("c", 0.0), ("a|c", 3.25), ("a|b|c", 7.0)]


def make_processor(**settings) -> TimeSformerVideoProcessor:
    crop = {"height": 12, "width": 8}
    defaults = {
        "num_frames": 4,
        "sampling_rate": 2,
        "size": {"shortest_edge": 12},
        "crop_size": crop,
    }
    return TimeSformerVideoProcessor(**defaults | settings)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Five clips of different pictures, of 10 to 50 frames, with one table of several classes and
    one of numbers.
    """
    folder = tmp_path_factory.mktemp("clips")
    for number in range(len(ROWS)):
        frames = np.roll(picture_sequence(10 * (number + 1)), 37 * number, axis=3)
        encode(folder / f"{number}.mp4", frames // (number + 1))
    for kind, column, index in (("several", "labels", 0), ("number", "target", 1)):
        (folder / kind).mkdir()
        lines = [f"{folder / f'{number}.mp4'},{row[index]}" for number, row in enumerate(ROWS)]
        (folder / kind / "test.csv").write_text("\n".join([f"path,{column}", *lines]) + "\n")
    return folder


def save_model(folder: Path, problem: str) -> Path:
    fields = (
        {"num_labels": 1}
        if problem == "regression"
        else {"num_labels": 3, "id2label": dict(enumerate(NAMES))}
    )
    model = tiny_model("divided_space_time", problem_type=problem, **fields)
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


def run(capsys, *arguments: str | Path) -> tuple[int, str, str]:
    code = 0
    try:
        evaluate.main([*map(str, arguments)])
    except SystemExit as end:
        code = end.code
    streams = capsys.readouterr()
    return code, streams.out, streams.err


@pytest.mark.parametrize("num_clips", ["1", "2", "auto"])
def test_several_classes(clips, tmp_path: Path, capsys, num_clips: str):
    folder = save_model(tmp_path / "model", "multi_label_classification")
    code, out, err = run(
        capsys, "--model", folder, "--dataset", "csv", "--data_dir", clips / "several", "--num_workers", 0, "--cpu",
        "--output_dir", tmp_path / "out", "--threshold", 0.4, "--num_clips", num_clips, "--num_crops", 3,
    )  # fmt: skip
    assert code == 0, err
    results = json.loads((tmp_path / "out/eval_results.json").read_text())
    logits, labels = (
        expected_logits(folder, clips, num_clips),
        np.array([[n in row[0] for n in NAMES] for row in ROWS]),
    )
    expected = multi_label_metrics(logits, labels, threshold=0.4)
    assert {name: results[name] for name in expected} == pytest.approx(expected)
    assert f"{100 * expected['mean_average_precision']:6.2f} %" in out
    found, names = read_predictions(tmp_path / "out")
    assert names == list(NAMES)
    np.testing.assert_allclose(found.logits, logits, atol=1e-4)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.views.tolist() == [3 * count for count in clip_counts(num_clips)]
    rows = {row["class"]: row for row in csv.DictReader((tmp_path / "out/per_class.csv").open())}
    for index, name in enumerate(NAMES):
        assert int(rows[name]["videos"]) == labels[:, index].sum()
        precision = average_precision(logits[:, index], labels[:, index])
        assert float(rows[name]["average_precision"]) == pytest.approx(precision, abs=1e-4)
    assert not (tmp_path / "out/confusion_matrix.png").exists()


def clip_counts(num_clips: str) -> list[int]:
    """Clips of each video: 4 frames, every second, span 8 of 10, 20, ... frames."""
    return [2, 3, 4, 5, 7] if num_clips == "auto" else [int(num_clips)] * 5


def expected_logits(folder: Path, clips: Path, num_clips: str) -> np.ndarray:
    """The mean over the views of each video, all views at once, as the processor makes them."""
    rows = []
    for number, count in enumerate(clip_counts(num_clips)):
        model, processor = load_model_and_processor(str(folder), num_clips=count, num_crops=3)
        views = make_views(processor, str(clips / f"{number}.mp4"))
        assert len(views) == 3 * count
        with torch.no_grad():
            rows.append(model.eval()(pixel_values=views[None]).logits[0].numpy())
    return np.stack(rows)


def test_numbers(clips, tmp_path: Path, capsys):
    folder = save_model(tmp_path / "model", "regression")
    code, out, err = run(
        capsys, "--model", folder, "--dataset", "csv", "--data_dir", clips / "number", "--num_workers", 0, "--cpu",
        "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    said = expected_logits(folder, clips, "1")[:, 0]
    true = np.array([row[1] for row in ROWS])
    results = json.loads((tmp_path / "out/eval_results.json").read_text())
    assert results["mean_absolute_error"] == pytest.approx(np.abs(said - true).mean(), abs=1e-4)
    assert results["root_mean_squared_error"] == pytest.approx(
        np.sqrt(((said - true) ** 2).mean()), abs=1e-4
    )
    assert f"mean_absolute_error {results['mean_absolute_error']:.6g}" in out
    found, _ = read_predictions(tmp_path / "out/predictions.parquet")
    np.testing.assert_allclose(found.labels, true)
    assert Image.open(tmp_path / "out/worst_errors.png").width > 100
    code, _, err = run(
        capsys, "--model", folder, "--dataset", "csv", "--data_dir", clips / "several", "--num_workers", 0, "--cpu",
        "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert code == 2
    assert (
        "a problem of type multi_label_classification, the model solves one of type regression"
        in err
    )


def test_one_class(tmp_path: Path, capsys):
    data, model = write_clips(tmp_path / "clips"), write_model(tmp_path / "model")
    options = ["--model", model, "--data_dir", data, "--cpu", "--output_dir", tmp_path / "out"]
    code, out, _ = run(capsys, *options, "--num_clips", "auto", "--num_workers", 2)
    assert code == 0
    assert "For each video as many clips as cover it, spread evenly" in out
    results = json.loads((tmp_path / "out/eval_results.json").read_text())
    assert (results["videos_evaluated"], results["videos_failed"], results["num_clips"]) == (
        12,
        1,
        "auto",
    )
    found, _ = read_predictions(tmp_path / "out")
    assert found.views.tolist() == [6] * 12  # 10 frames in clips that span 8, three crops each
    assert f"wrote {tmp_path / 'out/worst_errors.png'}" in out
    code, out, _ = run(
        capsys,
        "--from_predictions",
        tmp_path / "out",
        tmp_path / "out",
        "--output_dir",
        tmp_path / "fused",
    )
    assert code == 0
    fused = json.loads((tmp_path / "fused/eval_results.json").read_text())
    for name in ("top1_accuracy", "mean_class_accuracy", "videos_evaluated"):
        assert fused[name] == results[name]
    code, _, err = run(
        capsys, "--from-predictions", tmp_path / "none", "--output_dir", tmp_path / "fused"
    )
    assert code == 2
    assert "none" in err


# whole videos


@pytest.mark.parametrize(
    ("settings", "frames", "clips"),
    [
        ({}, 8, 1),
        ({}, 9, 2),
        ({}, 80, 10),
        ({"target_fps": 15}, 80, 5),  # at 30 frames a second a clip spans twice as many
        ({"sampling": "segments"}, 80, 1),
    ],
)
def test_clips_that_cover(settings: dict, frames: int, clips: int, tmp_path: Path):
    metadata = probe_video(encode(tmp_path / "clip.mp4", picture_sequence(frames)))
    processor = make_processor(**settings)
    assert clips_that_cover(processor, metadata) == clips
    indices = covering_indices(processor, metadata)
    assert indices.shape == (clips, 4)
    if clips > 1:
        assert (indices.min(), indices.max()) == (0, frames - 1)


@pytest.mark.parametrize("num_crops", [1, 3])
def test_pieces_are_the_processors_own_views(clips, num_crops: int):
    path = str(clips / "4.mp4")
    processor = make_processor(num_crops=num_crops)
    pieces = list(views_of_whole_video(processor, path, clips_at_a_time=3))
    assert [len(views) for views, _ in pieces] == [3 * num_crops, 3 * num_crops, num_crops]
    expected = make_views(make_processor(num_crops=num_crops, num_clips=7), path)
    assert torch.equal(torch.cat([views for views, _ in pieces]), expected)
    (segment, _), *_ = views_of_whole_video(processor, path, start=1.0, end=1.2)
    frames, _ = decode_video(path, [30, 32, 34, 35])
    expected = processor([frames], do_sample_frames=False, return_tensors="pt")["pixel_values"]
    assert torch.equal(segment, expected.reshape(segment.shape))


def test_a_rate_that_varies_goes_by_time(shared_dir: Path):
    path = str(shared_dir / "data/odd/vfr_phone.mp4")  # 60 frames a second for 2 s, then 10
    processor = make_processor(sampling="segments")
    ((views, found),) = views_of_whole_video(processor, path)
    expected, metadata = look_at(processor, path)
    assert found.frames_indices == metadata.frames_indices
    assert torch.equal(views, expected)


# saved predictions


def make_run(problem: str, seed: int, **fields) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = {
        "single_label_classification": np.array([0, 2, 1, 1]),
        "multi_label_classification": np.array(
            [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], np.float32
        ),
        "regression": np.array([0.5, -1, 2, 3], np.float32),
    }[problem]
    logits = rng.normal(size=(4, 1 if problem == "regression" else 3)).astype(np.float32) * 3
    return Predictions(
        list("abcd"), logits, labels, problem_type=problem, views=np.array([3, 3, 6, 3]), **fields
    )


PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")


@pytest.mark.parametrize("problem", PROBLEMS)
def test_predictions_come_back(problem: str, tmp_path: Path):
    one = make_run(problem, 0)
    names = list(NAMES[: one.logits.shape[1]])
    found, found_names = read_predictions(
        write_predictions(tmp_path / "predictions.parquet", one, names)
    )
    assert (found.video_ids, found_names, found.problem_type) == (one.video_ids, names, problem)
    for name in ("logits", "labels", "views"):
        np.testing.assert_array_equal(getattr(found, name), getattr(one, name))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_fused_runs_are_the_mean_of_their_scores(problem: str):
    one, other = make_run(problem, 0), make_run(problem, 1)
    reverse = [3, 2, 1, 0]
    turned = Predictions(
        list("dcba"),
        other.logits[reverse],
        other.labels[reverse],
        problem_type=problem,
        views=other.views[reverse],
    )
    fused, _ = fuse([(one, list(NAMES)), (turned, list(NAMES))])
    to_scores = {
        "single_label_classification": lambda logits: torch.from_numpy(logits).softmax(-1).numpy(),
        "multi_label_classification": lambda logits: torch.from_numpy(logits).sigmoid().numpy(),
        "regression": lambda logits: logits,
    }[problem]
    expected = (to_scores(one.logits) + to_scores(other.logits)) / 2
    np.testing.assert_allclose(to_scores(fused.logits), expected, atol=1e-6)
    assert fused.video_ids == list("abcd")
    np.testing.assert_array_equal(fused.labels, one.labels)
    assert fused.views.tolist() == [6, 6, 12, 6]


def test_runs_that_do_not_fit():
    one = make_run(PROBLEMS[0], 0), list(NAMES)
    other = make_run(PROBLEMS[0], 1)
    other.video_ids = list("abce")
    with pytest.raises(
        ValueError,
        match=r"run 2 is of other videos than run 1: 1 only in run 1 and 1 only in the other",
    ):
        fuse([one, (other, list(NAMES))])
    with pytest.raises(
        ValueError, match="run 2 has other classes than run 1: the same names in another order"
    ):
        fuse([one, (make_run(PROBLEMS[0], 1), ["b", "a", "c"])])
    other = make_run(PROBLEMS[0], 1)
    other.labels = np.array([0, 2, 2, 1])
    with pytest.raises(ValueError, match="run 2 has another label than run 1 for c"):
        fuse([one, (other, list(NAMES))])


def test_sizes_of_errors():
    single = Predictions(
        list("ab"),
        np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], np.float32)),
        np.array([0, 1]),
    )
    np.testing.assert_allclose(error_sizes(single), [0, 0.1], atol=1e-6)
    assert describe_error(single, 1, list(NAMES)) == ("true: b 40%", "said: a 50%")
    several = make_run(PROBLEMS[1], 0)
    several.logits = np.array([[9, -9, 9], [-9, -9, 0.5], [9, 9, -9], [0, 9, -9]], np.float32)
    found = error_sizes(several)
    assert found[0] == 0
    assert found[1] == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert found[2] == pytest.approx(1, abs=1e-3)
    assert describe_error(several, 2, list(NAMES)) == ("true: a, b, c", "said: a, b")
    number = make_run(PROBLEMS[2], 0)
    np.testing.assert_allclose(error_sizes(number), np.abs(number.logits[:, 0] - number.labels))


def test_a_threshold_that_is_no_probability():
    with pytest.raises(ValueError, match="threshold must lie between 0 and 1, got 1"):
        multi_label_metrics(np.zeros((2, 3)), np.ones((2, 3)), threshold=1)
