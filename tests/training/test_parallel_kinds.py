"""`VideoTrainer` under DDP and FSDP in two processes: after three steps the weights of
one process, their averages too, from an image ViT whose temporal heads begin with parts of the clip.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from train_processes import assert_same_weights


# Each kind of parameter has a rate and a decay of its own, so that one which falls into the wrong
# group shows.
RATES = {
    "optim": "sgd", "optim_args": "momentum=0.5",
    "learning_rate": 0.1, "head_learning_rate": 0.3, "layer_decay": 0.5, "weight_decay": 0.5,
    "max_grad_norm": 0.5, "max_steps": 3, "mixup": 0, "label_smoothing_factor": 0.1,
}  # fmt: skip
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


@pytest.fixture(scope="module")
def options(folder, vit) -> list[str]:
    start = {"from_vit": vit, "temporal_start": "parts", "num_frames": 2, "image_size": 32}
    start |= {"config_overrides": "initializer_range=0.2", "load_best_model_at_end": False}
    given = start | RATES | TIMES | {"data_dir": folder}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def one(train, options, tmp_path_factory) -> Path:
    return run_one(train, options, tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def averaged(train, options, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "averaged"
    return run_one(train, [*options, "--ema_decay", "0.5"], output)


def run_one(train, options: list[str], output: Path) -> Path:
    """One process with the batch of two."""
    run = train(output, *options, "--per_device_train_batch_size", "6")
    assert run.returncode == 0, run.output
    return output


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_to_the_weights_of_one_and_go_on_exactly(
    train, options, averaged, one, kind, tmp_path
):
    """Averages are saved and evaluated; a run that goes on from them ends as if it had not stopped."""
    arguments = [*options, "--ema_decay", "0.5"]
    if KINDS[kind] is not None:
        (tmp_path / "fsdp.json").write_text(json.dumps(KINDS[kind]))
        arguments += ["--fsdp", "--fsdp_config", str(tmp_path / "fsdp.json")]
    run = train(tmp_path / kind, *arguments, processes=2)
    assert run.returncode == 0, run.output
    # accelerate could have left it out
    sharded = (tmp_path / kind / "checkpoint-2" / "pytorch_model_fsdp.bin").exists()
    assert sharded == kind.startswith("fsdp")
    assert_same_weights(averaged, tmp_path / kind, tolerance=2e-6)
    assert evaluation_losses(tmp_path / kind) == pytest.approx(
        evaluation_losses(averaged), rel=1e-5
    )
    arguments += ["--resume_from_checkpoint", str(tmp_path / kind / "checkpoint-2")]
    resumed = train(tmp_path / "resumed", *arguments, processes=2)
    assert resumed.returncode == 0, resumed.output
    assert len(resumed.steps()) == 1
    assert_same_weights(tmp_path / kind, tmp_path / "resumed", tolerance=0)
    # what is averaged is neither the last step's weights, nor those of a run of its own kind
    weights = [load_file(run / "model.safetensors") for run in (one, averaged)]
    differences = [(weights[0][name] - weights[1][name]).abs().max() for name in weights[0]]
    assert max(differences) > 1e-2


def evaluation_losses(run: Path) -> list[float]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry]
