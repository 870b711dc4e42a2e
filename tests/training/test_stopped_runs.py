"""Runs in this process that SIGTERM stops, with what a recipe may have: averages, adapters, early
stopping, a fitted classifier. The same command goes on to where an unbroken run ends.
"""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_timesformer.training import run as flow
from hf_timesformer.training.adapters import BASE_FOLDER
from hf_timesformer.training.stopping import RunStopped
from hf_timesformer.training.trainer import VideoTrainer
from hf_timesformer.training.trainer_average import RAW_WEIGHTS


AUTO = {"resume_from_checkpoint": "auto"}
# Whatever has a larger loss is called better, so that the first evaluation stays the best one.
WORSE_AND_WORSE = {
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,
    "early_stopping_patience": 2,
}
WAYS = {
    "averages and early stopping": {"ema_decay": 0.5, **WORSE_AND_WORSE},
    "adapter": {"lora_r": 2},
    "adapter, averages and early stopping": {"lora_r": 2, "ema_decay": 0.5, **WORSE_AND_WORSE},
}


class StopAt(TrainerCallback):
    """SIGTERM once so many steps are done."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def weights_of(run) -> dict[str, torch.Tensor]:
    name = "adapter_model" if (run / "adapter_config.json").exists() else "model"
    return load_file(run / f"{name}.safetensors")


def assert_same(run, whole) -> None:
    expected, found = weights_of(whole), weights_of(run)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_recipe_has_survives_a_stop(way, arguments, monkeypatch, tmp_path, caplog):
    options = WAYS[way] | {"learning_rate": 0.3, "per_device_train_batch_size": 6, **AUTO}
    options |= {"num_train_epochs": 4, "data_seed": 1}
    if "lora_r" in options:
        pytest.importorskip("peft")
    whole = flow.train(*arguments("whole", **options))
    epochs = 3 if "early_stopping_patience" in options else 4
    assert whole.state.epoch == epochs
    callbacks = flow.make_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(flow, "make_callbacks", lambda args: [*callbacks(args), StopAt(5)])
        with pytest.raises(RunStopped, match="stopped by SIGTERM after step 6, saved in"):
            flow.train(*arguments("stopped", **options))
    checkpoint = tmp_path / "stopped" / "checkpoint-6"
    assert (checkpoint / RAW_WEIGHTS).exists() == ("ema_decay" in options)
    # another seed starts from other weights: those of the checkpoint, and its adapter's base, count
    resumed = flow.train(*arguments("stopped", **options, seed=7))
    assert resumed.state.epoch == epochs
    assert ("the base model of the checkpoint" in caplog.text) == ("lora_r" in options)
    assert resumed.state.best_metric == whole.state.best_metric
    assert_same(tmp_path / "stopped", tmp_path / "whole")
    if "lora_r" in options:
        assert_same(tmp_path / "stopped" / BASE_FOLDER, tmp_path / "whole" / BASE_FOLDER)
        with pytest.raises(ValueError, match="this one has other parameters"):
            flow.train(*arguments("stopped", **options, num_frames=4))


@pytest.mark.parametrize("step", [0, 4], ids=["before the training", "at its end"])
def test_a_stop_while_the_classifier_is_fitted(step, arguments, vit, monkeypatch, tmp_path):
    options = {"from_vit": str(vit), "num_frames": 2, "image_size": [32], "config_overrides": None}
    options |= {"temporal_start": "parts", "probe_passes": 1, "refit_classifier": True, **AUTO}
    options |= {"per_device_train_batch_size": 6}
    flow.train(*arguments("whole", **options))
    fit = VideoTrainer.fit_classifier

    def stopped_fit(trainer, **kwargs):
        if trainer.state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        fit(trainer, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(VideoTrainer, "fit_classifier", stopped_fit)
        with pytest.raises(RunStopped, match=f"stopped by SIGTERM after step {step}"):
            flow.train(*arguments("stopped", **options))
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    flow.train(*arguments("stopped", **options))
    assert_same(tmp_path / "stopped", tmp_path / "whole")
