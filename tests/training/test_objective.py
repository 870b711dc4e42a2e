"""Losses and metrics of one class a clip, of several, and of a number, against the plain way to
compute each.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForVideoClassification
from transformers.trainer_utils import EvalPrediction

from hf_timesformer.data.targets import (
    MULTI_LABEL,
    NO_CLIP,
    REGRESSION,
    SINGLE_LABEL,
    UNREADABLE,
    collate_targets,
)
from hf_timesformer.evaluation.accuracy import (
    average_precision,
    multi_label_metrics,
    regression_metrics,
)
from hf_timesformer.training.arguments import DataArguments, ModelArguments, VideoTrainingArguments
from hf_timesformer.training.objective import BEST_METRICS, ClipMetrics, clip_loss
from hf_timesformer.training.run import make_trainer, train


TARGETS = {
    SINGLE_LABEL: [1, 0, NO_CLIP, 2, UNREADABLE],
    MULTI_LABEL: [[1, 2], [], NO_CLIP, [0], UNREADABLE],
    REGRESSION: [0.5, -2.0, NO_CLIP, 3.0, UNREADABLE],
}
COUNTED = [0, 1, 3]


def plain_loss(kind: str, logits: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """The sum over the three clips that count."""
    logits = logits[COUNTED]
    if kind == SINGLE_LABEL:
        each = -logits.log_softmax(-1)[range(3), [1, 0, 2]]
        return (each if weights is None else each * weights[[1, 0, 2]]).sum()
    if kind == REGRESSION:
        return (logits[:, 0] - torch.tensor([0.5, -2.0, 3.0])).square().sum()
    labels = torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 0, 0]])
    each = -(labels * logits.sigmoid().log() + (1 - labels) * (1 - logits.sigmoid()).log())
    return (each if weights is None else each * weights).mean(1).sum()


@pytest.mark.parametrize("num_items", [None, 7])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", TARGETS)
def test_loss_counts_what_counts(kind, weighted, num_items):
    logits = torch.randn(
        5, 1 if kind == REGRESSION else 3, generator=torch.Generator().manual_seed(0)
    )
    logits[[2, 4]] = torch.nan if kind == REGRESSION else 100.0
    logits = logits.nan_to_num(9.0).requires_grad_()
    labels = collate_targets(TARGETS[kind], 3, kind)
    weights = torch.tensor([0.5, 1.0, 4.0]) if weighted and kind != REGRESSION else None
    loss = clip_loss(logits, labels, problem_type=kind, num_items=num_items, class_weights=weights)
    torch.testing.assert_close(loss, plain_loss(kind, logits, weights) / (num_items or 3))
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[[2, 4]] == 0).all()


@pytest.mark.parametrize("kind", TARGETS)
def test_a_batch_in_which_nothing_counts_adds_nothing(kind):
    labels = collate_targets([NO_CLIP, UNREADABLE], 3, kind)
    assert clip_loss(torch.ones(2, 1 if kind == REGRESSION else 3), labels, problem_type=kind) == 0


def naive_average_precision(scores: list[float], positive: list[bool]) -> float:
    """Precision at each threshold that a positive passes, over the positives that pass it; all
    pairs are compared.
    """
    thresholds, total, before = sorted(set(scores), reverse=True), 0.0, 0.0
    for threshold in thresholds:
        chosen = [is_positive for score, is_positive in zip(scores, positive) if score >= threshold]
        recall = sum(chosen) / sum(positive)
        total += (recall - before) * sum(chosen) / len(chosen)
        before = recall
    return total


@pytest.mark.parametrize("digits", [8, 1])  # with one, many scores are equal
def test_average_precision(digits):
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, positive = rng.normal(size=30).round(digits), rng.random(30) < 0.3
        positive[0] = True
        expected = naive_average_precision(scores.tolist(), positive.tolist())
        assert average_precision(scores, positive) == pytest.approx(expected)
    assert average_precision(
        np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
    ) == pytest.approx(1 / 2 + 2 / 6)


def test_metrics_of_several_labels():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(40, 5)), (rng.random((40, 5)) < 0.4).astype(np.float32)
    labels[:, 4] = 0  # a class that no video has
    metrics = multi_label_metrics(logits, labels)
    chosen, f1 = logits > 0, []
    for label in range(4):
        hits = (chosen[:, label] * labels[:, label]).sum()
        precision, recall = hits / chosen[:, label].sum(), hits / labels[:, label].sum()
        f1.append(2 * precision * recall / (precision + recall))
    precisions = [
        naive_average_precision(logits[:, c].tolist(), (labels[:, c] > 0).tolist())
        for c in range(4)
    ]
    assert metrics["mean_average_precision"] == pytest.approx(np.mean(precisions))
    assert metrics["f1_macro"] == pytest.approx(np.mean(f1))
    hits = (chosen * labels).sum()
    assert metrics["f1_micro"] == pytest.approx(2 * hits / (chosen.sum() + labels.sum()))
    with pytest.raises(ValueError, match="2 of 40 videos are NaN or infinite"):
        multi_label_metrics(np.where(np.arange(40)[:, None] < 2, np.nan, logits), labels)
    with pytest.raises(ValueError, match="need logits and labels"):
        multi_label_metrics(logits, labels[:, :3])


def test_metrics_of_numbers():
    metrics = regression_metrics(np.array([1.0, 2.0, 5.0]), np.array([1.0, 4.0, 4.0]))
    assert metrics == {
        "mean_absolute_error": 1.0,
        "root_mean_squared_error": pytest.approx((5 / 3) ** 0.5),
    }
    with pytest.raises(ValueError, match="one number and one target"):
        regression_metrics(np.zeros(0), np.zeros(0))


@pytest.mark.parametrize("kind", TARGETS)
def test_metrics_of_an_evaluation(kind):
    logits = np.array([[0.0, 3, 1], [1, 0, -1], [9, 9, 9], [-1, -2, 5], [9, 9, 9]])[
        :, : 1 if kind == REGRESSION else 3
    ]
    labels = collate_targets(TARGETS[kind], 3, kind)
    metrics = ClipMetrics(kind)(EvalPrediction(predictions=logits, label_ids=labels.numpy()))
    assert (metrics["videos"], metrics["videos_unreadable"]) == (3, 1)
    expected = plain_loss(kind, torch.from_numpy(logits), None).item() / 3
    assert metrics["clip_loss"] == pytest.approx(expected, rel=1e-6)
    logits[0] = np.inf
    worse = ClipMetrics(kind)(EvalPrediction(predictions=logits, label_ids=labels.numpy()))
    assert (worse["videos_non_finite"], worse["clip_loss"]) == (1, np.inf)
    name = {
        SINGLE_LABEL: "top1_accuracy",
        MULTI_LABEL: "mean_average_precision",
        REGRESSION: "mean_absolute_error",
    }[kind]
    assert worse[name] > metrics[name] if kind == REGRESSION else worse[name] < metrics[name]


def write_table(folder: Path, clips: Path, kind: str) -> Path:
    """The clips of `clips` in a table: motions to left and right are a class of their own, or a
    number.
    """
    folder.mkdir()
    columns = {MULTI_LABEL: "labels", REGRESSION: "target"}
    for split in ("train", "validation"):
        rows = []
        for path in sorted((clips / split).glob("*/*.mp4")):
            motion = path.parent.name
            kinds = [motion] + (["sideways"] if motion in ("left", "right") else [])
            value = "|".join(kinds) if kind == MULTI_LABEL else str(len(motion) / 4)
            rows.append({"path": str(path), columns[kind]: value, "split": split})
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


NETWORK = (
    "image_size=32,patch_size=16,hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32,"
    "num_frames=2"
)


@pytest.mark.parametrize("kind", [MULTI_LABEL, REGRESSION])
def test_a_whole_run(kind, folder, tmp_path):
    table = write_table(tmp_path / "table", folder, kind)
    data = DataArguments(data_dir=str(table), dataset="csv", mixup=0.3)
    args = VideoTrainingArguments(
        output_dir=str(tmp_path / "run"), use_cpu=True, num_train_epochs=3, learning_rate=0.01, optim="adamw_torch",
        dataloader_num_workers=0, disable_tqdm=True, report_to="none", probe_passes=1, label_smoothing_factor=0.1,
    )  # fmt: skip
    trainer = train(ModelArguments(config_overrides=NETWORK, sampling_rate=2), data, args)
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    name = BEST_METRICS[kind]
    best = max if kind == MULTI_LABEL else min
    assert trainer.state.best_metric == best(entry[f"eval_{name}"] for entry in evaluations)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    results = json.loads((tmp_path / "run" / "train_results.json").read_text())
    assert results["best_metric"] == trainer.state.best_metric
    model = AutoModelForVideoClassification.from_pretrained(tmp_path / "run")
    assert model.config.problem_type == kind
    assert model.config.num_labels == (7 if kind == MULTI_LABEL else 1)
    # Another kind of problem asks for a new head.
    other = ModelArguments(model=str(tmp_path / "run"), sampling_rate=2)
    args.output_dir = str(tmp_path / "other")
    with pytest.raises(
        ValueError, match=f"was trained for {kind}, the data are for single_label_classification"
    ):
        make_trainer(other, DataArguments(data_dir=str(folder)), args)


def test_smoothed_labels_are_those_of_torch():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    expected = functional.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(clip_loss(logits, labels, label_smoothing=0.2), expected)
