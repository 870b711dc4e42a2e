"""`VideoTrainer` under DDP and FSDP in two processes, from an image ViT whose temporal heads begin with
parts of the clip: after a fit of the classifier, three steps and another fit the weights of one
process, their averages too, with adapters and without.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_processes import assert_same_weights
from transformers import AutoModelForVideoClassification

from hf_timesformer.training.adapters import BASE_FOLDER
from hf_timesformer.training.trainer_average import RAW_WEIGHTS


# Each kind of parameter has a rate and a decay of its own, so that one which falls into the wrong
# group shows.
RATES = {
    "optim": "sgd", "optim_args": "momentum=0.5",
    "learning_rate": 0.1, "head_learning_rate": 0.3, "layer_decay": 0.5, "weight_decay": 0.5,
    "max_grad_norm": 0.5, "max_steps": 3, "mixup": 0, "label_smoothing_factor": 0.1,
}  # fmt: skip
# 24 clips, once as in training, and at the end as an evaluation sees them, too.
FITS = {"probe_passes": 1, "refit_classifier": True}
# Evaluations come between the steps, so that averages and raw weights change places.
TIMES = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 2}
# Accelerate wants a GPU for sync_module_states; both processes make the network from one seed.
KINDS = {
    "ddp": None,
    "fsdp1": {
        "version": 1,
        "sync_module_states": False,
        "transformer_layer_cls_to_wrap": ["TimeSformerLayer"],
    },
    "fsdp2": {"version": 2, "transformer_layer_cls_to_wrap": ["TimeSformerLayer"]},
}
# the kind of parallel run, and what is trained
CASES = {
    "ddp": ("ddp", []),
    "fsdp1": ("fsdp1", []),
    "fsdp2": ("fsdp2", []),
    "fsdp2 in shards, adapters": ("fsdp2", ["--lora_r", "2"]),
}


@pytest.fixture(scope="module")
def options(folder, vit) -> list[str]:
    start = {"from_vit": vit, "temporal_start": "parts", "num_frames": 2, "image_size": 32}
    start |= {"config_overrides": "initializer_range=0.2", "load_best_model_at_end": False}
    given = start | RATES | FITS | TIMES | {"data_dir": folder, "ema_decay": 0.5}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def one(train, options, tmp_path_factory) -> dict[str, Path]:
    """Runs of one process with the batch of two, without adapters and with them."""
    runs = {}
    for name, more in (("model", []), ("adapter_model", ["--lora_r", "2"])):
        runs[name] = tmp_path_factory.mktemp("runs") / name
        run = train(runs[name], *options, *more, "--per_device_train_batch_size", "6")
        assert run.returncode == 0, run.output
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_to_the_weights_of_one_and_go_on_exactly(
    train, options, one, case, tmp_path
):
    """Averages are saved and evaluated; a run that goes on from them ends as if it had not stopped."""
    kind, more = CASES[case]
    arguments, name = [*options, *more], "adapter_model" if more else "model"
    whole, two = one[name], tmp_path / "two"
    if KINDS[kind] is not None:
        form = "SHARDED_STATE_DICT" if "shards" in case else "FULL_STATE_DICT"
        (tmp_path / "fsdp.json").write_text(json.dumps(KINDS[kind] | {"state_dict_type": form}))
        arguments += ["--fsdp", "--fsdp_config", str(tmp_path / "fsdp.json")]
    run = train(two, *arguments, processes=2)
    assert run.returncode == 0, run.output
    for views in (24, 48):
        assert run.output.count(f"classifier fitted to {views} views") == 1
    # accelerate could have left it out
    assert any((two / "checkpoint-2").glob("pytorch_model_fsdp*")) == kind.startswith("fsdp")
    # the classifier is fitted to features that differ in their last digits
    assert_same_weights(whole, two, name=name, tolerance=2e-6, classifier=5e-4)
    assert evaluation_losses(two) == pytest.approx(evaluation_losses(whole), rel=1e-4)

    # the model at its end is a whole one, adapters or not
    arguments += ["--resume_from_checkpoint", str(two / "checkpoint-2"), "--lora_merge", "true"]
    resumed = train(tmp_path / "resumed", *arguments, processes=2)
    assert resumed.returncode == 0, resumed.output
    assert len(resumed.steps()) == 1
    if more:
        assert_same_weights(whole / BASE_FOLDER, two / BASE_FOLDER, tolerance=0)
        clip = torch.randn(1, 2, 3, 32, 32)
        with torch.no_grad():
            expected, found = (
                AutoModelForVideoClassification.from_pretrained(folder)(clip).logits
                for folder in (two, tmp_path / "resumed")
            )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    else:
        assert_same_weights(two, tmp_path / "resumed", tolerance=0)


@pytest.mark.slow
def test_averages_are_not_the_weights_in_training(one):
    """Else the runs above would show nothing of them."""
    checkpoint = one["model"] / "checkpoint-3"
    averages, raw = (load_file(checkpoint / name) for name in ("model.safetensors", RAW_WEIGHTS))
    assert max((averages[name] - raw[name]).abs().max() for name in raw) > 1e-2


def evaluation_losses(run: Path) -> list[float]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry]
