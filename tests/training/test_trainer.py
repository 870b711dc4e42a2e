"""`VideoTrainer` in one process: losses, rates, what it is given and what it logs."""

import logging
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Trainer, default_data_collator
from transformers.trainer_utils import EvalPrediction

from hf_timesformer import run_lock
from hf_timesformer.data.clips import TrainingClips
from hf_timesformer.data.row_source import RecordSource
from hf_timesformer.data.targets import NO_CLIP, UNREADABLE
from hf_timesformer.model.configuration_timesformer import TimeSformerConfig
from hf_timesformer.model.modeling_timesformer import TimeSformerForVideoClassification
from hf_timesformer.training.arguments import VideoTrainingArguments
from hf_timesformer.training.checkpoints import BAD_CLIPS, DATA_ORDER, INCOMPLETE
from hf_timesformer.training.learning_curve import draw_curve
from hf_timesformer.training.objective import ClipMetrics, balanced_weights
from hf_timesformer.training.trainer import VideoTrainer


TINY = {
    "image_size": 32, "num_frames": 2, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip


def make_network(
    attention_type="divided_space_time", **options
) -> TimeSformerForVideoClassification:
    config = TimeSformerConfig(**{"num_labels": 3} | TINY | options, attention_type=attention_type)
    return TimeSformerForVideoClassification(config)


def make_arguments(folder, **options) -> VideoTrainingArguments:
    return VideoTrainingArguments(
        output_dir=str(folder), use_cpu=True, **{"eval_strategy": "no"} | options
    )


def make_trainer(tmp_path, *, trainer: dict | None = None, **options) -> VideoTrainer:
    """A trainer with `options` among its arguments and `trainer` beside them."""
    options = {
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "save_strategy": "no",
        "logging_steps": 1,
    } | options
    torch.manual_seed(0)
    start = {} if "model_init" in (trainer or {}) else {"model": make_network()}
    return VideoTrainer(**start, args=make_arguments(tmp_path, **options), **(trainer or {}))


def make_items(count: int, labels: list[int] | None = None) -> list[dict]:
    """A plain data set: no clips of ours, nothing but what the model takes."""
    pixels = torch.randn(count, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = labels or [number % 3 for number in range(count)]
    return [{"pixel_values": pixels[number], "labels": labels[number]} for number in range(count)]


def test_learning_rates_scale_with_the_total_batch_and_say_so(tmp_path, caplog):
    options = {"learning_rate": 0.005, "head_learning_rate": 0.01, "temporal_learning_rate": 0.02}
    options |= {"per_device_train_batch_size": 4, "reference_batch_size": 64}
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=2, **options)
    with caplog.at_level(logging.INFO, logger="hf_timesformer"):
        rates = {group["lr"] for group in trainer.create_optimizer().param_groups}
    assert sorted(rates) == pytest.approx([0.005 / 8, 0.01 / 8, 0.02 / 8])
    assert "learning rate 0.005 is for a batch of 64: 0.000625 for a total of 8" in caplog.text
    assert trainer.args.learning_rate == 0.005
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=16, **options)
    assert sorted({group["lr"] for group in trainer.create_optimizer().param_groups}) == [
        0.005,
        0.01,
        0.02,
    ]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_of_hard_and_soft_labels(tmp_path, smoothing):
    trainer = make_trainer(tmp_path, label_smoothing_factor=smoothing)
    clips = torch.randn(4, 2, 3, 32, 32)
    logits = trainer.model(pixel_values=clips).logits.detach()
    log_probabilities = logits.log_softmax(-1)
    hard = torch.tensor([0, 2, NO_CLIP, UNREADABLE])
    soft = torch.tensor([[1.0, 0, 0], [0, 0.25, 0.75], [0, 1, 0], [0.5, 0.5, 0]])
    for labels, targets in ((hard, torch.eye(3)[[0, 2]]), (soft, soft)):
        for training in (True, False):
            trainer.model.train(training)
            amount = smoothing if training else 0
            smooth = targets * (1 - amount) + amount / 3
            expected = -(smooth * log_probabilities[: len(targets)]).sum(-1).mean()
            loss, outputs = trainer.compute_loss(
                trainer.model, {"pixel_values": clips, "labels": labels}, return_outputs=True
            )
            torch.testing.assert_close(loss, expected)
            torch.testing.assert_close(outputs["logits"], logits)


def test_metrics_count_what_could_be_read():
    logits = np.eye(6)[[0, 1, 2, 3, 4]]
    labels = np.array([0, 1, 0, UNREADABLE, NO_CLIP])
    metrics = ClipMetrics()(EvalPrediction(predictions=logits, label_ids=labels))
    assert metrics["top1_accuracy"] == pytest.approx(2 / 3)
    assert (metrics["videos"], metrics["videos_unreadable"]) == (3, 1)
    assert metrics["clip_loss"] == pytest.approx(np.log(np.e + 5) - 2 / 3)
    with pytest.raises(ValueError, match="no validation clip can be read"):
        ClipMetrics()(EvalPrediction(predictions=logits, label_ids=np.full(5, UNREADABLE)))


@pytest.mark.parametrize(
    "options", [{"num_train_epochs": 3}, {"max_steps": 9}, {"max_steps": 9, "num_train_epochs": 1}]
)
def test_milestones_are_epochs_however_the_length_is_given(options, tmp_path, caplog):
    options |= {
        "optim": "sgd",
        "learning_rate": 1.0,
        "per_device_train_batch_size": 4,
        "lr_milestones": [1, 2, 9],
    }
    trainer = make_trainer(tmp_path, trainer={"train_dataset": make_items(12)}, **options)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates == pytest.approx([1.0] * 3 + [0.1] * 3 + [0.01] * 3)
    assert "1 of the 3 --lr_milestones come after the last of 9 steps (3 an epoch)" in caplog.text


class OutOfMemoryAbove:
    """A collator that runs out of memory where a batch has more than `largest` clips."""

    def __init__(self, largest: int):
        self.largest = largest

    def __call__(self, items):
        if len(items) > self.largest:
            raise RuntimeError("CUDA out of memory.")
        return default_data_collator(items)


def test_a_batch_size_that_is_found_scales_the_learning_rates(tmp_path):
    options = {
        "optim": "sgd",
        "learning_rate": 1.0,
        "per_device_train_batch_size": 8,
        "reference_batch_size": 16,
    }
    pieces = {"train_dataset": make_items(8), "data_collator": OutOfMemoryAbove(5)}
    trainer = make_trainer(
        tmp_path, trainer=pieces, auto_find_batch_size=True, max_steps=1, **options
    )
    trainer.train()
    found = trainer._train_batch_size
    assert found <= 5
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {found / 16}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_accumulated_steps_are_those_of_one_batch(smoothing, tmp_path):
    """Also where the parts have unequal numbers of clips that count: 3 and 1, then 2."""
    items = make_items(6, [0, 1, 2, 1, NO_CLIP, UNREADABLE])
    weights = []
    for size, accumulation in ((6, 1), (3, 2), (2, 3)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        options |= {
            "optim": "sgd",
            "learning_rate": 0.5,
            "max_steps": 1,
            "label_smoothing_factor": smoothing,
        }
        trainer = make_trainer(tmp_path, trainer={"train_dataset": items}, **options)
        trainer.train()
        weights.append(trainer.model.state_dict())
    for other in weights[1:]:
        for name, weight in weights[0].items():
            torch.testing.assert_close(other[name], weight, rtol=1e-5, atol=1e-6, msg=name)


def test_a_loss_of_the_users_own(tmp_path):
    seen = []

    def loss(outputs, labels, num_items_in_batch=None):
        seen.append((tuple(outputs.logits.shape), labels.tolist(), num_items_in_batch))
        return outputs.logits.sum() / num_items_in_batch

    pieces = {
        "train_dataset": make_items(4),
        "eval_dataset": make_items(2),
        "compute_loss_func": loss,
    }
    options = {"max_steps": 1, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    trainer = make_trainer(tmp_path, trainer=pieces, **options)
    trainer.train()
    trainer.evaluate()
    assert [(shape, items) for shape, _, items in seen] == [((2, 3), 4), ((2, 3), 4), ((2, 3), 2)]


def test_optimizers_of_the_users_own(tmp_path):
    rule = (torch.optim.Adagrad, {"lr_decay": 0.25})
    trainer = make_trainer(
        tmp_path, trainer={"optimizer_cls_and_kwargs": rule}, weight_decay=0.1, learning_rate=2.0
    )
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, torch.optim.Adagrad)
    assert {(group["lr"], group["lr_decay"], group["weight_decay"]) for group in optimizer.param_groups} == {
        (2.0, 0.25, 0.1), (2.0, 0.25, 0.0),
    }  # fmt: skip
    model = make_network()
    mine = torch.optim.SGD(model.parameters(), lr=7.0)
    args = make_arguments(tmp_path, reference_batch_size=64)
    assert VideoTrainer(model=model, args=args, optimizers=(mine, None)).create_optimizer() is mine
    trainer = make_trainer(tmp_path, optim="galore_adamw", optim_target_modules="all-linear")
    # as GaLore's own does
    trainer.get_optimizer_cls_and_kwargs = lambda *_: (torch.optim.AdamW, {"params": []})
    with pytest.raises(ValueError, match="--optim galore_adamw chooses by itself which parameters"):
        trainer.create_optimizer()


def test_model_init_makes_the_network_that_is_trained(tmp_path):
    made = []

    def make():
        made.append(make_network())
        return made[-1]

    trainer = make_trainer(
        tmp_path, trainer={"model_init": make, "train_dataset": make_items(4)}, max_steps=1
    )
    trainer.train()
    assert trainer.model is made[-1]
    assert len(made) == 2
    assert {id(p) for group in trainer.optimizer.param_groups for p in group["params"]} == set(
        map(id, made[1].parameters())
    )


def test_class_weights_are_in_the_loss(tmp_path):
    weights = [0.5, 1.0, 4.0]
    trainer = make_trainer(tmp_path, trainer={"class_weights": weights})
    items = make_items(3, [2, 0, NO_CLIP])
    batch = default_data_collator(items)
    logits = trainer.model(batch["pixel_values"]).logits.detach()
    each = -logits.log_softmax(-1)[[0, 1], [2, 0]]
    expected = (4.0 * each[0] + 0.5 * each[1]) / 2
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected)
    assert balanced_weights([30, 10, 0]).tolist() == pytest.approx([2 / 3, 2, 1])
    model = make_network(num_labels=1, problem_type="regression")
    with pytest.raises(ValueError, match="class_weights are for classes"):
        VideoTrainer(model=model, args=make_arguments(tmp_path), class_weights=[1.0])


@pytest.mark.parametrize("choice", ["stop", "go_on"])
@pytest.mark.parametrize("save_strategy", ["epoch", "no"])
def test_logits_that_are_not_finite(choice, save_strategy, tmp_path, caplog):
    pieces = {
        "train_dataset": make_items(4),
        "eval_dataset": make_items(3),
        "compute_metrics": ClipMetrics(),
    }
    options = {
        "eval_strategy": "epoch",
        "save_strategy": save_strategy,
        "on_non_finite": choice,
        "learning_rate": 0.0,
    }
    trainer = make_trainer(
        tmp_path, trainer=pieces, num_train_epochs=2, metric_for_best_model="loss", **options
    )
    with torch.no_grad():
        trainer.model.timesformer.layernorm.bias.fill_(float("nan"))
    message = "3 validation clips are NaN or infinite at step 1: .*--on_non_finite go_on"
    with pytest.raises(ValueError, match=message) if choice == "stop" else nullcontext():
        trainer.train()
    assert (
        "the logits of 3 clips are NaN or infinite: they count as wrong, the loss as infinite"
        in caplog.text
    )
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == (1 if choice == "stop" else 2)
    assert (evaluations[0]["eval_top1_accuracy"], evaluations[0]["eval_loss"]) == (0, np.inf)
    assert (tmp_path / "checkpoint-1").is_dir() == (save_strategy == "epoch")


def test_the_data_seed_orders_the_clips(tmp_path):
    clips = TrainingClips(RecordSource(list(range(50))), None, None, label_ids=[], seed=0)
    orders = []
    for seeds in ({"seed": 1}, {"seed": 1, "data_seed": 2}, {"seed": 2}):
        trainer = make_trainer(tmp_path, trainer={"train_dataset": clips}, **seeds)
        orders.append([key.index for key in trainer._get_train_sampler()])
    assert orders[0] != orders[1] == orders[2]


def test_columns_that_the_model_does_not_take(tmp_path):
    """Clips keep their names and faults; of plain data the rest goes."""
    items = [item | {"title": object()} for item in make_items(4)]
    trainer = make_trainer(
        tmp_path, trainer={"train_dataset": items}, remove_unused_columns=True, max_steps=1
    )
    trainer.train()
    collator = trainer._get_collator_with_removed_columns(lambda items: items)
    clip = {"pixel_values": 0, "labels": 1, "video_id": "a", "faults": [], "entropy": [1]}
    assert collator([clip]) == [clip]


@pytest.mark.parametrize(
    ("evaluations", "saves", "more", "loads_best"),
    [
        ("epoch", "epoch", {}, True),
        ("epoch", "steps", {}, False),
        ("epoch", "best", {}, True),
        ("epoch", "no", {}, False),
        ("steps", "steps", {"eval_steps": 10, "save_steps": 30}, True),
        ("steps", "steps", {"eval_steps": 20, "save_steps": 30}, False),
        ("steps", "steps", {"logging_steps": 10, "save_steps": 30}, True),
    ],
)
def test_the_best_model_is_loaded_where_it_can_be(
    evaluations, saves, more, loads_best, tmp_path, caplog
):
    args = make_arguments(tmp_path, eval_strategy=evaluations, save_strategy=saves, **more)
    assert args.load_best_model_at_end is loads_best
    is_said = "the model saved at the end is the last one, not the best" in caplog.text
    assert is_said == (saves == "steps" and not loads_best)


def test_train_itself_keeps_other_runs_out_of_its_folder(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, trainer={"train_dataset": make_items(4)}, max_steps=1)
    folder = trainer.args.output_dir
    with run_lock.only_run_in(folder, run_lock.Work("train")):
        monkeypatch.setattr(run_lock, "_held", set())  # as if it were another process
        with pytest.raises(ValueError, match=f"another run is at work in {folder}: process "):
            trainer.train()


def test_a_checkpoint_is_pushed_when_it_is_whole(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(
        Trainer,
        "_push_from_checkpoint",
        lambda self, folder: pushed.append({p.name for p in Path(folder).iterdir()}),
    )
    monkeypatch.setattr(VideoTrainer, "init_hf_repo", lambda self: None)
    monkeypatch.setattr(VideoTrainer, "_finish_current_push", lambda self: None)
    pieces = {"train_dataset": make_items(4)}
    options = {
        "push_to_hub": True,
        "hub_strategy": "checkpoint",
        "save_strategy": "epoch",
        "num_train_epochs": 1,
    }
    make_trainer(tmp_path, trainer=pieces, **options).train()
    assert len(pushed) == 1
    assert {BAD_CLIPS, DATA_ORDER, "trainer_state.json", "optimizer.pt"} <= pushed[0]
    assert INCOMPLETE not in pushed[0]


def test_curve(tmp_path):
    history = [
        {"epoch": 0.5, "loss": 2.0},
        {"epoch": 1.0, "eval_loss": 1.5, "eval_top1_accuracy": 0.4},
    ]
    assert draw_curve(history, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_no_curve_without_matplotlib_is_said_in_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert not draw_curve([], tmp_path / "curve.png")
    assert caplog.messages == ["no learning curve is drawn: pip install matplotlib (extra `viz`)"]
