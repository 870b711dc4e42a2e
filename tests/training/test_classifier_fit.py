"""The classifier that fine-tuning begins and ends with: what it is, and of which clips."""

import copy
import json
import logging
import re
import shutil

import pytest
import torch
from shards import pack
from tiny import assert_close
from torch import nn
from torch.nn import functional

from hf_timesformer.data.augmentation import ClipAugmentation
from hf_timesformer.data.clips import (
    ClipCollator,
    EvaluationClips,
    FrameSampling,
    TrainingClips,
)
from hf_timesformer.data.dataset_factory import find_videos
from hf_timesformer.data.row_source import ClipKey, RecordSource
from hf_timesformer.data.shard_source import ShardSource, StreamLayout
from hf_timesformer.data.synthetic import make_motion_dataset
from hf_timesformer.model.configuration_timesformer import TimeSformerConfig
from hf_timesformer.model.modeling_timesformer import TimeSformerForVideoClassification
from hf_timesformer.training.arguments import VideoTrainingArguments
from hf_timesformer.training.classifier_fit import (
    MANY_VIEWS,
    SHRINKAGES,
    USUAL_SHRINKAGE,
    best_shrinkage,
    collect_features,
    fit_classifier,
    fit_new_classifier,
    held_out_logits,
)
from hf_timesformer.training.objective import ClipMetrics
from hf_timesformer.training.trainer import VideoTrainer
from hf_timesformer.video.video_processing_timesformer import TimeSformerVideoProcessor


LEARNING = (
    "layernorm.weight",
    "encoder.layer.0.output.dense.weight",
    "embeddings.position_embeddings",
)


def shrunk(covariance: torch.Tensor, shrinkage: float) -> torch.Tensor:
    alike = covariance.trace() / len(covariance) * torch.eye(len(covariance)).double()
    return (1 - shrinkage) * covariance + shrinkage * alike


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("distance", [0.5, 100.0])
def test_fitted_classifier_gives_the_scaled_log_posterior_of_normal_distributions(
    distance, soft, smoothing
):
    generator = torch.Generator().manual_seed(0)
    targets = (3 * torch.randn(60, 3, generator=generator, dtype=torch.float64)).softmax(-1)
    if not soft:
        targets = functional.one_hot(targets.argmax(-1), 3).double()
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    features = torch.randn(60, 6, generator=generator, dtype=torch.float64) @ mixing + 7
    features += distance * targets @ torch.randn(3, 6, generator=generator, dtype=torch.float64)
    weight, bias = fit_classifier(features.float(), targets.float(), label_smoothing=smoothing)
    features = features.float().double()
    # Every clip counts in each class by as much as it belongs to it.
    priors, means, within = targets.mean(dim=0), [], torch.zeros(6, 6, dtype=torch.float64)
    for share in targets.T:
        means.append((share[:, None] * features).sum(dim=0) / share.sum())
        apart = features - means[-1]
        within += sum(s * torch.outer(row, row) for s, row in zip(share, apart)) / len(features)
    within = shrunk(within, best_shrinkage(features, targets.float().double()))
    classes = [torch.distributions.MultivariateNormal(mean, within) for mean in means]
    posterior = torch.stack(
        [c.log_prob(features) + p.log() for c, p in zip(classes, priors)], dim=1
    )
    posterior -= posterior.mean(dim=1, keepdim=True)
    logits = features @ weight.T + bias
    logits -= logits.mean(dim=1, keepdim=True)
    scale = ((logits * posterior).sum() / posterior.square().sum()).item()
    assert_close(logits, scale * posterior, 1e-4 * logits.abs().max().item())

    def loss(factor: float) -> float:
        return functional.cross_entropy(
            factor * posterior, targets, label_smoothing=smoothing
        ).item()

    assert 0 < scale <= 1 + 1e-9
    assert loss(scale) <= min(loss(0.99 * scale), loss(min(1.0, 1.01 * scale))) + 1e-9
    if distance == 100 and smoothing:
        assert scale < 0.5  # far apart is not without doubt


def test_held_out_logits_are_of_classifiers_that_have_not_seen_the_group():
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(30) // 3 * 10  # ten groups of three clips
    labels = groups // 10 % 2
    labels[-3:] = 2  # a class of one group
    targets = functional.one_hot(labels, 3).double()
    features = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    features[:, :3] += 8 * targets
    (more, logits), told = held_out_logits(features, targets, groups, [0.3, 0.03])
    assert (more - logits)[told].abs().max() > 1e-2
    assert torch.equal(told, labels < 2)
    assert torch.equal(logits.argmax(-1)[told], labels[told])
    changed = features.clone()
    changed[0] += 5
    (others,), _ = held_out_logits(changed, targets, groups, [0.03])
    assert_close(others[1:3], logits[1:3], 1e-12)
    assert (others - logits)[3:].abs().amax(dim=1).gt(1e-3).sum() >= 18  # of the other parts


@pytest.mark.parametrize("quiet", [1.0, 0.1])
def test_shrinkage_is_the_one_with_which_clips_left_out_are_likeliest(quiet):
    """What tells the classes is as loud as the other channels, or quiet beside them. Held against
    every clip left out by itself, which is nearly the same for so many."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    features = torch.randn(80, 30, generator=generator).double()
    features[:, 0] += 2.5 * labels
    features[:, 0] *= quiet
    targets = functional.one_hot(labels, 2).double()
    losses = []
    for shrinkage in SHRINKAGES:
        logits = torch.zeros(80, 2).double()
        for row in range(80):
            others = torch.arange(80) != row
            means = [features[others & (labels == c)].mean(dim=0) for c in (0, 1)]
            apart = features[others] - torch.stack(means)[labels[others]]
            inverse = shrunk(apart.T @ apart / 79, shrinkage).inverse()
            for c, mean in enumerate(means):
                away = features[row] - mean
                logits[row, c] = (
                    labels[others].eq(c).double().mean().log() - away @ inverse @ away / 2
                )
        scaled = [k / 100 * logits for k in range(1, 101)]
        losses.append(min(functional.cross_entropy(each, labels).item() for each in scaled))
    best = best_shrinkage(features, targets)
    assert best == SHRINKAGES[losses.index(min(losses))]
    assert best == (0.3 if quiet == 1 else 0.01)


def test_other_views_of_a_clip_that_is_left_out_do_not_choose_the_shrinkage(caplog):
    """Every clip is there twice, all but the same: left out it would be told by the other."""
    torch.manual_seed(0)
    network = nn.Module()
    network.num_labels, network.classifier = 2, nn.Linear(30, 2)
    network.forward = lambda pixel_values: network.classifier(pixel_values[:, 0, :, 0, 0])
    labels = torch.arange(40) % 2
    clips = torch.randn(40, 1, 30, 1, 1)
    clips[:, 0, 0, 0, 0] += labels
    again = clips + 1e-3 * torch.randn_like(clips)
    batches = [
        {"pixel_values": some, "labels": labels, "round": number}
        for number, some in enumerate((again, clips))
    ]
    targets = functional.one_hot(labels, 2).double()
    both = torch.cat((again, clips)).flatten(1).double()
    honest = best_shrinkage(both[40:], targets)
    assert honest > best_shrinkage(both, targets.repeat(2, 1))
    with caplog.at_level(logging.INFO):
        fit_new_classifier(network, batches)
    weight, _ = fit_classifier(both, targets.repeat(2, 1), shrinkage=honest)
    assert_close(network.classifier.weight.double(), weight, 1e-4)
    assert f"80 views as the network sees them (shrinkage {honest:g})" in caplog.text


def test_shrinkage_depends_on_no_order_and_on_no_last_digit():
    """As several processes give the features of one network, whose LayerNorm makes all as long."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(20):
        features = functional.layer_norm(torch.randn(24, 16, generator=generator), (16,)).double()
        targets = functional.one_hot(torch.arange(24) % 2, 2).double()
        features[:, 0] += 0.3 * number * targets[:, 0]
        order = torch.randperm(24, generator=generator)
        noise = 1e-7 * torch.randn(24, 16, generator=generator).double()
        found.append(best_shrinkage(features, targets))
        assert best_shrinkage((features + noise)[order], targets[order]) == found[-1]
    assert len(set(found)) > 1


def test_shrinkage_is_the_usual_one_where_nothing_tells_it_or_clips_are_many():
    targets = torch.eye(4).double()
    assert best_shrinkage(torch.randn(4, 6).double(), targets) == USUAL_SHRINKAGE
    many = targets.repeat(MANY_VIEWS // 4 + 1, 1)
    assert best_shrinkage(torch.randn(len(many), 2).double(), many) == USUAL_SHRINKAGE


def test_a_class_without_clips_is_the_least_likely():
    targets = torch.eye(3)[torch.arange(40) % 2]
    features = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)) + 5 * targets[:, :1]
    weight, bias = fit_classifier(features, targets)
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()
    assert (features.double() @ weight.T + bias).argmax(-1).ne(2).all()


@pytest.mark.parametrize("copies", [1, 3])
def test_clips_that_do_not_differ_within_their_class_are_told_apart(copies):
    targets = torch.eye(4).repeat(copies, 1)
    features = targets @ torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    weight, bias = fit_classifier(features, targets, label_smoothing=0.1)
    logits = features.double() @ weight.T + bias
    assert (logits.argmax(-1) == targets.argmax(-1)).all()
    assert logits.abs().max() < 50


def test_separable_features_are_told_apart():
    targets = torch.eye(4).repeat(5, 1)
    features = (
        targets @ torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
        + 0.01 * torch.arange(20)[:, None] / 20
    )
    weight, bias = fit_classifier(features, targets)
    assert ((features.double() @ weight.T + bias).argmax(-1) == targets.argmax(-1)).all()


def make_trainer(folder, tmp_path, *, processor=None, mixup=0.0, **options) -> VideoTrainer:
    """Learns nothing after the probe unless `learning_rate` is given."""
    torch.manual_seed(0)
    config = TimeSformerConfig(
        image_size=32, num_frames=2, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=6, **options.pop("config", {}),
    )  # fmt: skip
    augmentation = ClipAugmentation(
        32, short_side=(32, 40), image_mean=[0.5] * 3, image_std=[0.2] * 3
    )
    source = RecordSource(find_videos("folder", folder, "train").videos)
    clips = TrainingClips(
        source, FrameSampling(2, "segments"), augmentation, label_ids=range(6), seed=5
    )
    args = VideoTrainingArguments(
        output_dir=str(tmp_path / "run"), use_cpu=True, num_train_epochs=1, report_to="none",
        eval_strategy="no", save_strategy="no", load_best_model_at_end=False, dataloader_num_workers=0,
        per_device_train_batch_size=4, disable_tqdm=True, **{"learning_rate": 0.0} | options,
    )  # fmt: skip
    model = TimeSformerForVideoClassification(config)
    collator = ClipCollator(6, mixup_alpha=mixup)
    return VideoTrainer(
        model=model,
        args=args,
        train_dataset=clips,
        data_collator=collator,
        processing_class=processor,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_motion_dataset(
        tmp_path_factory.mktemp("clips"), splits={"train": 3}, num_frames=6, size=40
    )


@pytest.fixture(scope="module")
def processor():
    """Its three crops differ, of square frames too."""
    return TimeSformerVideoProcessor(
        num_frames=2, sampling="segments", size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32},
        image_mean=[0.4] * 3, image_std=[0.3] * 3,
    )  # fmt: skip


def fitted_by_hand(model, pixels, labels) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Weight and bias, and the percentage of the clips `(N, T, C, H, W)` that they get right; of two
    passes over them, with the shrinkage of the second."""
    with torch.no_grad():
        features = model.eval().timesformer(pixels).last_hidden_state[:, 0]
    targets = functional.one_hot(labels, 6).float()
    second = slice(len(pixels) // 2, None)
    shrinkage = best_shrinkage(features[second].double(), targets[second].double())
    weight, bias = fit_classifier(features, targets, label_smoothing=0.1, shrinkage=shrinkage)
    right = (features.double() @ weight.T + bias).argmax(-1) == labels
    return weight, bias, 100 * right.double().mean().item()


def test_training_begins_with_the_classifier_of_further_passes(folder, processor, tmp_path, caplog):
    trainer = make_trainer(
        folder, tmp_path, probe_passes=2, label_smoothing_factor=0.1, processor=processor
    )
    clips = trainer.train_dataset
    # epoch 0 is training's
    items = [clips[ClipKey(epoch, index)] for epoch in (1, 2) for index in range(len(clips))]
    pixels, labels = [item["pixel_values"] for item in items], [item["labels"] for item in items]
    weight, bias, right = fitted_by_hand(trainer.model, torch.stack(pixels), torch.tensor(labels))
    with caplog.at_level(logging.INFO, logger="hf_timesformer"):
        trainer.train()
    assert_close(trainer.model.classifier.weight, weight, 1e-3)
    assert_close(trainer.model.classifier.bias, bias, 1e-3)
    found = re.search(
        r"fitted to (\d+) views as the network sees them \(shrinkage [\d.]+\): ([\d.]+) % of",
        caplog.text,
    )
    assert int(found[1]) == len(pixels) == 36
    assert float(found[2]) == pytest.approx(right, abs=3)
    assert right > 100 * 2 / 6


def test_evaluation_views_are_the_crops_in_the_middle(folder, processor, tmp_path):
    trainer = make_trainer(folder, tmp_path, processor=processor)
    records = trainer.train_dataset.source.records
    batches = list(trainer.fitting_batches(0))
    views = [processor(row["video"], return_tensors="pt")["pixel_values"][0] for row in records]
    features, targets = collect_features(trainer.model, batches)
    with torch.no_grad():
        expected = trainer.model.timesformer(torch.stack(views)).last_hidden_state[:, 0]
    found, wanted = features[:, 0].sort(), expected[:, 0].sort()
    assert_close(found.values, wanted.values, 1e-4)
    assert_close(features[found.indices], expected[wanted.indices], 1e-4)
    labels = torch.tensor(records["label"])
    assert targets.argmax(dim=1)[found.indices].tolist() == labels[wanted.indices].tolist()
    assert processor.num_crops == 1  # of the model that is saved


def test_evaluation_views_are_not_mixed_and_broken_clips_not_among_them(
    folder, processor, tmp_path
):
    broken = shutil.copytree(folder, tmp_path / "clips")
    next((broken / "train").rglob("*.mp4")).write_bytes(b"no video")
    trainer = make_trainer(broken, tmp_path, processor=processor, mixup=0.4)
    features, targets = collect_features(trainer.model, trainer.fitting_batches(1))
    # another clip stands in where clips are augmented
    assert len(features) == len(targets) == 18 + 17
    assert ((targets > 0) & (targets < 1))[:18].any()
    assert (targets[18:].max(dim=1).values == 1).all()
    assert targets[18:].sum(dim=0).sort().values.tolist() == [2.0] + [3.0] * 5
    assert trainer.train_faults.metrics()["bad_clips"] == 1


def test_evaluation_views_of_tar_shards_are_read_from_their_beginning(folder, processor, tmp_path):
    """In the process itself, without workers, where the readers of the pass before are still open."""
    shards = tmp_path / "shards"
    shards.mkdir()
    names = sorted(path.name for path in (folder / "train").iterdir())
    (shards / "labels.json").write_text(json.dumps(names))
    pack(shards / "train-0.tar", sorted((folder / "train").glob("*/*.mp4")))
    trainer = make_trainer(folder, tmp_path, processor=processor)
    found = find_videos("webdataset", shards, "train")
    layout = StreamLayout(18, batch_size=4)
    trainer.train_dataset.source = ShardSource(found.videos, [18], layout, shuffle_buffer=4)
    _, targets = collect_features(trainer.model, trainer.fitting_batches(1))
    assert len(targets) == 20 + 20  # two clips are repeated to fill the last batch
    assert (targets[20:].sum(dim=0) >= 3).all()


def test_what_cannot_be_fitted_stays_as_it_is(folder, tmp_path, caplog):
    deep = make_trainer(
        folder,
        tmp_path,
        probe_passes=1,
        refit_classifier=True,
        config={"classifier_hidden_size": 8},
    )
    before = [parameter.clone() for parameter in deep.model.parameters()]
    deep.train()
    assert "not fitted to the frozen network (probe_passes=1): it is a Sequential" in caplog.text
    assert all(map(torch.equal, before, deep.model.parameters()))
    with pytest.raises(
        ValueError, match="only a linear classifier can be fitted, not a Sequential"
    ):
        fit_new_classifier(deep.model, [])
    sharded = make_trainer(folder, tmp_path, probe_passes=1)
    sharded.is_deepspeed_enabled = True
    assert not sharded.can_fit_classifier()
    assert "(probe_passes=1): DeepSpeed keeps the weights" in caplog.text


class FrameMeans(nn.Module):
    """The least that a classifier of clips is."""

    num_labels = 2

    def __init__(self):
        super().__init__()
        self.body, self.classifier = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.body(pixel_values.mean(dim=(1, 3, 4))))


def test_features_of_a_model_that_has_been_compiled_without_the_hook_that_takes_them():
    model = FrameMeans().eval()
    compiled = torch.compile(model, backend="eager")
    pixels, labels = torch.randn(2, 2, 3, 8, 8), torch.tensor([0, 1])
    with torch.no_grad():
        logits = compiled(pixels)
        features, _ = collect_features(compiled, [{"pixel_values": pixels, "labels": labels}])
        assert_close(model.classifier(features), logits, 1e-5)
        assert_close(compiled(pixels), logits, 0)
    assert not model.classifier._forward_pre_hooks


def test_classifier_is_fitted_anew_to_the_network_that_training_ends_with(
    folder, processor, tmp_path
):
    """Against the same run without that, fitted by hand."""
    options = {
        "probe_passes": 1,
        "learning_rate": 0.01,
        "optim": "sgd",
        "label_smoothing_factor": 0.1,
    }
    tuned = make_trainer(folder, tmp_path / "tuned", processor=processor, **options)
    refitted = make_trainer(
        folder, tmp_path / "refitted", processor=processor, refit_classifier=True, **options
    )
    start = copy.deepcopy(tuned.model.timesformer.state_dict())
    for trainer in (tuned, refitted):
        trainer.train()
    weights = refitted.model.timesformer.state_dict()
    for name, value in tuned.model.timesformer.state_dict().items():
        assert_close(value, weights[name], 1e-5)
        assert not torch.equal(value, start[name]) or name not in LEARNING
    features, targets = collect_features(tuned.model, tuned.fitting_batches(1))
    views = slice(len(features) // 2, None)
    shrinkage = best_shrinkage(features[views].double(), targets[views].double())
    weight, bias = fit_classifier(features, targets, label_smoothing=0.1, shrinkage=shrinkage)
    assert_close(refitted.model.classifier.weight, weight, 1e-3)
    assert_close(refitted.model.classifier.bias, bias, 1e-3)
    assert (refitted.model.classifier.weight - tuned.model.classifier.weight).abs().max() > 0.01


def test_nothing_is_fitted_anew_without_passes(folder, tmp_path, caplog):
    trainer = make_trainer(folder, tmp_path, refit_classifier=True)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert "refit_classifier is left out: it needs --probe_passes" in caplog.text
    assert all(map(torch.equal, before, trainer.model.parameters()))


@pytest.mark.parametrize("best", [0.0, 2.0])
def test_new_classifier_is_kept_unless_the_best_evaluated_is_better(
    best, folder, processor, tmp_path, caplog
):
    trainer = make_trainer(
        folder, tmp_path, processor=processor, probe_passes=1, refit_classifier=True
    )
    trainer.eval_dataset = EvaluationClips(
        trainer.train_dataset.source, processor, label_ids=range(6)
    )
    trainer.compute_metrics = ClipMetrics()
    trainer.args.load_best_model_at_end, trainer.args.greater_is_better = True, True
    tuned = trainer.model.classifier.weight.clone()
    trainer.state.best_metric = best
    with caplog.at_level(logging.INFO, logger="hf_timesformer"):
        trainer.refit_classifier()
    assert torch.equal(trainer.model.classifier.weight, tuned) == (best == 2)
    assert ("the new one is kept" if best == 0 else "the one before is kept") in caplog.text
    value = float(re.search(r"top1_accuracy is ([\d.]+), the best", caplog.text)[1])
    assert trainer.state.best_metric == pytest.approx(value if best == 0 else best, abs=1e-4)
