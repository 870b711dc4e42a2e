"""The classifier that fine-tuning begins with: the optimum of its problem, of the clips that it says."""

import logging
import re

import numpy as np
import pytest
import torch
from tiny import assert_close
from torch.nn import functional

from hf_timesformer.augmentation import ClipAugmentation
from hf_timesformer.configuration_timesformer import TimeSformerConfig
from hf_timesformer.data import find_videos
from hf_timesformer.loading import ClipCollator, ClipKey, FrameSampling, RecordSource, TrainingClips
from hf_timesformer.modeling_timesformer import TimeSformerForVideoClassification
from hf_timesformer.probing import RIDGE, fit_classifier, start_with_probe
from hf_timesformer.synthetic import make_motion_dataset
from hf_timesformer.training import VideoTrainer, VideoTrainingArguments


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_fitted_classifier_is_the_optimum(soft, smoothing):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 6, generator=generator) * torch.tensor([1e-3, 1, 1, 5, 100, 0]) + 7
    targets = torch.randn(40, 3, generator=generator).softmax(-1)
    if not soft:
        targets = functional.one_hot(targets.argmax(-1), 3).float()
    weight, bias = fit_classifier(features, targets, label_smoothing=smoothing)
    assert weight.shape == (3, 6)
    assert bias.shape == (3,)
    logits = features.double() @ weight.T + bias
    # Of a minimum the gradient vanishes; written out for the weights of standardised features.
    scale = features.double().std(dim=0, correction=0)
    standardised = (features.double() - features.double().mean(dim=0)) / scale.clamp(min=1e-6)
    smoothed = targets.double() * (1 - smoothing) + smoothing / 3
    error = (logits.softmax(-1) - smoothed) / len(features)
    slope = error.T @ standardised + 2 * RIDGE * weight * scale
    assert slope[:, :5].abs().max() < 1e-5
    assert error.sum(dim=0).abs().max() < 1e-5
    assert torch.isfinite(weight).all()


def test_separable_features_are_told_apart():
    targets = torch.eye(4).repeat(5, 1)
    features = targets @ torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]) + 0.01 * torch.arange(20)[:, None] / 20
    weight, bias = fit_classifier(features, targets)
    assert ((features.double() @ weight.T + bias).argmax(-1) == targets.argmax(-1)).all()


def make_trainer(folder, tmp_path, **options) -> VideoTrainer:
    """Learns nothing after the probe: its rates are zero."""
    torch.manual_seed(0)
    config = TimeSformerConfig(
        image_size=32, num_frames=2, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=6, **options.pop("config", {}),
    )  # fmt: skip
    augmentation = ClipAugmentation(32, short_side=(32, 40), image_mean=[0.5] * 3, image_std=[0.2] * 3)
    source = RecordSource(find_videos("folder", folder, "train").videos)
    clips = TrainingClips(source, FrameSampling(2, "segments"), augmentation, label_ids=range(6), seed=5)
    args = VideoTrainingArguments(
        output_dir=str(tmp_path / "run"), use_cpu=True, learning_rate=0.0, num_train_epochs=1, report_to="none",
        eval_strategy="no", save_strategy="no", load_best_model_at_end=False, dataloader_num_workers=0,
        per_device_train_batch_size=4, disable_tqdm=True, **options,
    )  # fmt: skip
    model = TimeSformerForVideoClassification(config)
    return VideoTrainer(model=model, args=args, train_dataset=clips, data_collator=ClipCollator(6))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_motion_dataset(tmp_path_factory.mktemp("clips"), splits={"train": 3}, num_frames=6, size=40)


def test_training_begins_with_the_classifier_of_further_passes(folder, tmp_path, caplog):
    trainer = make_trainer(folder, tmp_path, probe_passes=2, label_smoothing_factor=0.1)
    model, clips = trainer.model.eval(), trainer.train_dataset
    items = [clips[ClipKey(epoch, index)] for epoch in (1, 2) for index in range(len(clips))]  # epoch 0 is training's
    with torch.no_grad():
        pixels = torch.stack([item["pixel_values"] for item in items])
        features = model.timesformer(pixels).last_hidden_state[:, 0]
    labels = torch.tensor([item["labels"] for item in items])
    weight, bias = fit_classifier(features, functional.one_hot(labels, 6).float(), label_smoothing=0.1)
    with caplog.at_level(logging.INFO, logger="hf_timesformer"):
        trainer.train()
    assert_close(model.classifier.weight, weight, 1e-3)
    assert_close(model.classifier.bias, bias, 1e-3)
    right = np.mean(((features.double() @ weight.T + bias).argmax(-1) == labels).numpy())
    share = float(re.search(r"fitted to 36 clips as the frozen network sees them: ([\d.]+) % of", caplog.text)[1])
    assert share == pytest.approx(100 * right, abs=3)
    assert right > 2 / 6


def test_what_cannot_be_fitted_stays_as_it_is(folder, tmp_path, caplog):
    deep = make_trainer(folder, tmp_path / "deep", config={"classifier_hidden_size": 8})
    sharded = make_trainer(folder, tmp_path / "sharded")
    sharded.is_fsdp_enabled = True
    for trainer, reason in ((deep, "it is a Sequential"), (sharded, "DeepSpeed and FSDP spread")):
        before = [parameter.clone() for parameter in trainer.model.parameters()]
        caplog.clear()
        start_with_probe(trainer, 1)
        assert f"not fitted before the training (probe_passes=1): {reason}" in caplog.text
        assert all(map(torch.equal, before, trainer.model.parameters()))
