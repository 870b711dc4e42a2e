"""What stronger recipes are made of, each in a whole run: averages, adapters, repeats, early
stopping, previews.
"""

import json
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForVideoClassification, set_seed

from hf_timesformer.data.dataset_factory import find_videos
from hf_timesformer.data.readers.webdataset import describe_clips
from hf_timesformer.data.row_source import ClipKey
from hf_timesformer.data.targets import REGRESSION
from hf_timesformer.training.adapters import BASE_FOLDER
from hf_timesformer.training.preview import CAPTION, PREVIEW_EPOCH
from hf_timesformer.training.run import draw_clips, find_class_weights, make_trainer, train
from hf_timesformer.training.trainer import VideoTrainer
from hf_timesformer.training.trainer_average import RAW_WEIGHTS


def averages_by_hand(arguments, decay: float, **options) -> tuple[dict, dict]:
    """Averages and raw weights after a run without averages, in which every step is looked at."""
    set_seed(42)  # as `train` does
    trainer = make_trainer(*arguments("by-hand", save_strategy="no", **options))
    average = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    step = VideoTrainer.update_average

    def update(self):
        step(self)
        now = min(decay, (1 + self.state.global_step) / (10 + self.state.global_step))
        for name, weight in self.model.named_parameters():
            average[name] = now * average[name] + (1 - now) * weight.detach()

    trainer.update_average = update.__get__(trainer)
    trainer.train()
    return average, {name: weight.detach() for name, weight in trainer.model.named_parameters()}


def test_averaged_weights_are_evaluated_and_saved_and_training_goes_on_with_the_others(
    arguments, tmp_path, caplog
):
    options = {
        "learning_rate": 0.3,
        "per_device_train_batch_size": 6,
        "load_best_model_at_end": False,
    }
    average, raw = averages_by_hand(arguments, 0.3, **options)
    trainer = train(*arguments("averaged", ema_decay=0.3, **options))
    saved = load_file(tmp_path / "averaged" / "model.safetensors")
    checkpoint = tmp_path / "averaged" / "checkpoint-4"
    beside = load_file(checkpoint / RAW_WEIGHTS)
    for name, weight in average.items():
        torch.testing.assert_close(saved[name], weight, rtol=1e-5, atol=1e-6, msg=name)
        torch.testing.assert_close(
            load_file(checkpoint / "model.safetensors")[name], saved[name], rtol=0, atol=0
        )
        torch.testing.assert_close(beside[name], raw[name], rtol=1e-5, atol=1e-6, msg=name)
    assert max((average[name] - raw[name]).abs().max() for name in raw) > 1e-3
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluated[-1], rel=1e-6)
    # Going on from the checkpoint ends where a run that was never interrupted ends.
    longer = options | {"ema_decay": 0.3, "num_train_epochs": 2, "lr_scheduler_type": "constant"}
    train(*arguments("whole", **longer))
    first = options | {"ema_decay": 0.3, "max_steps": 6, "save_strategy": "steps", "save_steps": 6}
    train(*arguments("parts", **first, lr_scheduler_type="constant", eval_strategy="no"))
    train(*arguments("parts", **longer, resume_from_checkpoint="auto"))
    parts, whole = (load_file(tmp_path / run / "model.safetensors") for run in ("parts", "whole"))
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=0, atol=0, msg=name)
    assert "are averages, and training goes on with them" not in caplog.text
    train(*arguments("parts", **longer | {"ema_decay": None}, resume_from_checkpoint="auto"))
    assert "are averages, and training goes on with them" in caplog.text


def test_averages_that_cannot_be(arguments):
    with pytest.raises(ValueError, match=r"between 0 and 1, such as 0\.999; got 1\.5"):
        make_trainer(*arguments(ema_decay=1.5))


@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_is_saved_as_one_or_merged(merge, arguments, tmp_path):
    pytest.importorskip("peft")
    options = {
        "lora_r": 2,
        "lora_merge": merge,
        "learning_rate": 0.5,
        "load_best_model_at_end": False,
    }
    trainer = train(*arguments(**options))
    learning = {
        name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad
    }
    run = tmp_path / "run"
    assert (run / "adapter_config.json").exists() != merge
    assert (run / "model.safetensors").exists() == merge
    if not merge:
        assert learning
        assert all("lora_" in name or "classifier" in name for name in learning)
    clip = torch.randn(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = trainer.model.eval()
    trainer.save_model()  # once more, as a push to the Hub does
    assert (run / "adapter_config.json").exists() != merge
    with torch.no_grad():
        found = AutoModelForVideoClassification.from_pretrained(run).eval()(clip).logits
        torch.testing.assert_close(found, network(clip).logits, rtol=1e-4, atol=1e-5)
        base = (
            AutoModelForVideoClassification.from_pretrained(run / BASE_FOLDER).eval()(clip).logits
        )
    assert (found - base).abs().max() > 0.01


def test_adapters_keep_out_of_frozen_blocks_and_their_classifier_is_fitted(arguments, caplog):
    pytest.importorskip("peft")
    model, data, args = arguments(
        lora_r=2, freeze_depth=0.5, probe_passes=1, save_strategy="no", eval_strategy="no"
    )
    caplog.set_level("INFO", logger="hf_timesformer")
    trainer = make_trainer(model, data, args)
    names = {name for name, parameter in trainer.model.named_parameters() if "lora_" in name}
    assert names
    assert all(".layer.1." in name for name in names)
    trainer.train()
    assert "classifier fitted to" in caplog.text
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="cannot be saved under FSDP1: leave `version` out"):
        trainer._check_parallel()
    with pytest.raises(ValueError, match="--freeze backbone does not go with --lora_r"):
        make_trainer(*arguments(lora_r=2, freeze="backbone"))


def test_views_of_a_clip_that_is_decoded_once_share_a_batch(arguments):
    model, data, args = arguments(repeated_augmentation=3, per_device_train_batch_size=6)
    trainer = make_trainer(model, data, args)
    loader = trainer.get_train_dataloader()
    assert len(loader) == 12  # 24 clips, two a batch
    batch = next(iter(loader))
    assert batch["pixel_values"].shape == (6, 2, 3, 32, 32)
    assert sorted(Counter(batch["video_ids"]).values()) == [3, 3]
    views = trainer.train_dataset[ClipKey(0, 0)]
    assert len(views) == 3
    assert not torch.equal(views[0]["pixel_values"], views[1]["pixel_values"])
    again = trainer.train_dataset[ClipKey(0, 0)]
    torch.testing.assert_close(again[2]["pixel_values"], views[2]["pixel_values"], rtol=0, atol=0)
    args.per_device_train_batch_size = 4
    with pytest.raises(ValueError, match="a batch of 4 clips cannot be made of 3 views of each"):
        make_trainer(model, data, args).get_train_dataloader()


def test_training_stops_where_nothing_gets_better(arguments, tmp_path):
    options = {"early_stopping_patience": 2, "learning_rate": 0.0, "num_train_epochs": 9}
    trainer = train(*arguments(**options))
    assert trainer.state.epoch == 3
    resumed = train(*arguments(**options, resume_from_checkpoint="auto"))
    assert resumed.state.epoch <= 4  # how long it has been is known
    with pytest.raises(ValueError, match="early_stopping_patience needs clips to evaluate on"):
        make_trainer(*arguments("other", **options, eval_strategy="no"))


def test_fewer_clips_of_each_class(folder):
    found = find_videos("folder", folder, "train")
    drawn = draw_clips(found, 13, seed=1)
    assert sorted(Counter(drawn.videos["label"]).values()) == [2, 2, 2, 2, 2, 3]
    assert draw_clips(found, 13, seed=1).videos["video_id"] == drawn.videos["video_id"]
    assert draw_clips(found, 13, seed=2).videos["video_id"] != drawn.videos["video_id"]
    assert draw_clips(found, 99, seed=1) is found
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        draw_clips(found, 0, seed=1)


def test_a_preview_shows_what_the_network_sees(arguments, tmp_path):
    model, data, args = arguments(
        preview=18, flip=False, per_device_train_batch_size=4, short_side=[40, 40]
    )
    trainer = make_trainer(model, data, args)
    sheets = [
        np.asarray(Image.open(tmp_path / "run" / f"preview_{number}.png")) for number in (1, 2)
    ]
    row = CAPTION + 32
    assert [sheet.shape for sheet in sheets] == [(16 * row, 2 * 32, 3), (2 * row, 2 * 32, 3)]
    clips = trainer.train_dataset
    sampler = clips.source.make_sampler(clips.seed)
    sampler.set_epoch(PREVIEW_EPOCH)
    key = list(sampler)[17]
    pixels = clips[key]["pixel_values"]  # (T, 3, H, W)
    mean = torch.tensor(clips.augmentation.image_mean).view(3, 1, 1)
    std = torch.tensor(clips.augmentation.image_std).view(3, 1, 1)
    expected = ((pixels * std + mean) * 255).round().clamp(0, 255)
    for frame in range(2):
        seen = sheets[1][row + CAPTION : 2 * row, 32 * frame : 32 * frame + 32]
        np.testing.assert_allclose(seen, expected[frame].permute(1, 2, 0), atol=1)


def test_a_whole_run_with_everything_at_once(arguments, tmp_path):
    options = {
        "rand_augment": [2, 9],
        "random_erasing": 0.5,
        "random_resized_crop": [0.3, 1.0],
        "cutmix": 1.0,
    }
    options |= {
        "mixup": 0.4,
        "repeated_augmentation": 2,
        "ema_decay": 0.9,
        "class_weights": "balanced",
    }
    options |= {
        "max_train_samples": 12,
        "probe_passes": 1,
        "early_stopping_patience": 3,
        "preview": 2,
    }
    train(*arguments(**options))
    results = json.loads((tmp_path / "run" / "train_results.json").read_text())
    assert results["train_samples"] == 12
    assert np.isfinite(results["train_loss"])
    with pytest.raises(ValueError, match="--rand_augment takes two values, got 2"):
        make_trainer(*arguments("other", rand_augment=[2]))


def test_a_preview_of_shards_leaves_the_first_epoch_to_training(arguments, shards, tmp_path):
    options = {
        "dataset": "webdataset",
        "data_dir": str(shards),
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    plain = train(*arguments("plain", **options))
    seen = train(*arguments("seen", preview=9, **options))
    assert (tmp_path / "seen" / "preview_1.png").is_file()
    losses = [
        [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        for run in (plain, seen)
    ]
    assert losses[0] == losses[1]


def test_class_weights_by_the_clips_of_each_class(folder, shards):
    found = find_videos("folder", folder, "train")  # 4 clips of each of 6 classes, in their order
    found = replace(found, videos=found.videos.select([0, 1, 2, 3, 4, 8]))
    weights = find_class_weights("balanced", found, label_ids=[5, 4, 3, 2, 1, 0], num_labels=7)
    # Counts 4, 1, 1 of the classes that the model numbers 5, 4, 3: the mean weight over the 6 clips
    # is 1.
    assert weights.tolist() == pytest.approx([1, 1, 1, 2, 2, 0.5, 1])
    assert find_class_weights("none", found, [], 7) is None
    packed = find_videos("webdataset", shards, "train")  # no manifest: the tars are read
    assert packed.count_classes().tolist() == [4, 4, 4, 4, 4, 1]
    remote = replace(packed, describe=partial(describe_clips, ["http://host/a.tar"], []))
    with pytest.raises(ValueError, match=r"http://host/a\.tar is not on disk"):
        find_class_weights("balanced", remote, label_ids=[0, 1, 2, 3, 4, 5], num_labels=6)
    counted = replace(remote, class_counts=[4, 2, 0, 0, 0, 0])  # as a manifest tells
    weights = find_class_weights("balanced", counted, [0, 1, 2, 3, 4, 5], 6)
    assert weights.tolist() == [0.75, 1.5, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="the targets are numbers"):
        find_class_weights("balanced", replace(found, problem_type=REGRESSION), [], 1)
