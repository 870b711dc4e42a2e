"""`VideoTrainer` under DDP, FSDP and DeepSpeed in two processes: after three steps the weights of
one process.
"""

import json
from pathlib import Path

import pytest
from train_processes import NETWORK, assert_same_weights


# Each kind of parameter has a rate and a decay of its own, so that one which falls into the wrong
# group shows.
RATES = {
    "optim": "sgd", "learning_rate": 0.1, "head_learning_rate": 0.3, "layer_decay": 0.5, "weight_decay": 0.5,
    "max_grad_norm": 0.5, "max_steps": 3, "mixup": 0, "label_smoothing_factor": 0.1,
}  # fmt: skip
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


# DeepSpeed, where it is installed; on CPUs with DS_ACCELERATOR=cpu in the environment.
ZERO = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


@pytest.fixture(scope="module")
def options(folder) -> list[str]:
    network = f"{NETWORK},num_frames=2,initializer_range=0.2"
    rates = [word for name, value in RATES.items() for word in (f"--{name}", str(value))]
    return ["--data_dir", str(folder), "--config_overrides", network, *rates]


@pytest.fixture(scope="module")
def one(train, options, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "one"
    run = train(output, *options, "--per_device_train_batch_size", "6")
    assert run.returncode == 0, run.output
    return output


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_to_the_weights_of_one(train, options, one, kind, tmp_path):
    arguments = []
    if KINDS[kind] is not None:
        (tmp_path / "fsdp.json").write_text(json.dumps(KINDS[kind]))
        arguments = ["--fsdp", "--fsdp_config", str(tmp_path / "fsdp.json")]
    run = train(tmp_path / kind, *options, *arguments, processes=2)
    assert run.returncode == 0, run.output
    assert_same_weights(one, tmp_path / kind, tolerance=2e-6)
    assert evaluation_losses(tmp_path / kind) == pytest.approx(evaluation_losses(one), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_trains_to_the_weights_of_one_process(train, options, one, stage, tmp_path):
    pytest.importorskip("deepspeed")
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": stage == 3}
    (tmp_path / "zero.json").write_text(json.dumps(ZERO | {"zero_optimization": zero}))
    run = train(
        tmp_path / "zero", *options, "--deepspeed", str(tmp_path / "zero.json"), processes=2
    )
    assert run.returncode == 0, run.output
    assert_same_weights(one, tmp_path / "zero", tolerance=2e-6)


def evaluation_losses(run: Path) -> list[float]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry]
