"""Learning rates, freezing, recipes, reports and checkpoints, each against numbers worked out by hand."""

import logging
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HfArgumentParser
from transformers.trainer_utils import EvalPrediction

from hf_timesformer.data.targets import NO_CLIP, UNREADABLE
from hf_timesformer.model.configuration_timesformer import TimeSformerConfig
from hf_timesformer.model.modeling_timesformer import TimeSformerForVideoClassification
from hf_timesformer.training import checkpoints
from hf_timesformer.training.arguments import VideoTrainingArguments
from hf_timesformer.training.checkpoints import (
    INCOMPLETE,
    RUN_LOCK,
    find_checkpoint,
    list_checkpoints,
    only_run_in,
    remove_half_written,
)
from hf_timesformer.training.learning_curve import draw_curve
from hf_timesformer.training.optimization import freeze_parameters, parameter_groups, step_schedule
from hf_timesformer.training.recipes import RECIPES, apply_recipe, find_recipe, list_recipes, read_recipe
from hf_timesformer.training.starting_point import (
    load_network,
    make_processor,
    parse_overrides,
)
from hf_timesformer.training.trainer import VideoTrainer, clip_metrics


TINY = {
    "image_size": 32, "num_frames": 2, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip


def make_network(attention_type="divided_space_time", **options) -> TimeSformerForVideoClassification:
    config = TimeSformerConfig(**{"num_labels": 3} | TINY | options, attention_type=attention_type)
    return TimeSformerForVideoClassification(config)


def rates_by_name(model, groups) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_learning_rate_and_weight_decay_of_each_parameter():
    model = make_network()
    groups = parameter_groups(model, learning_rate=1.0, head_learning_rate=5.0, weight_decay=0.1, layer_decay=0.5)
    found = rates_by_name(model, groups)
    assert found.keys() == dict(model.named_parameters()).keys()
    layer = "timesformer.encoder.layer"
    expected = {
        "classifier.weight": (5.0, 0.1),
        "classifier.bias": (5.0, 0.0),
        "timesformer.layernorm.weight": (1.0, 0.0),
        f"{layer}.1.attention.attention.qkv.weight": (1.0, 0.1),
        f"{layer}.1.temporal_attention.attention.qkv.bias": (1.0, 0.0),
        f"{layer}.0.intermediate.dense.weight": (0.5, 0.1),
        f"{layer}.0.temporal_layernorm.weight": (0.5, 0.0),
        "timesformer.embeddings.patch_embeddings.projection.weight": (0.25, 0.1),
        "timesformer.embeddings.cls_token": (0.25, 0.0),
        "timesformer.embeddings.position_embeddings": (0.25, 0.0),
        "timesformer.embeddings.time_embeddings": (0.25, 0.0),
    }
    assert {name: found[name] for name in expected} == expected
    assert groups[0]["lr"] == 1.0  # what Trainer logs


def test_what_an_image_vit_does_not_have_learns_at_its_own_rate():
    model = make_network("axial")
    groups = parameter_groups(model, learning_rate=1.0, temporal_learning_rate=8.0, layer_decay=0.5)
    found = {name: rate for name, (rate, _) in rates_by_name(model, groups).items()}
    layer = "timesformer.encoder.layer"
    expected = {
        "classifier.weight": 1.0,
        "timesformer.layernorm.weight": 1.0,
        f"{layer}.1.attention.attention.qkv.weight": 1.0,
        f"{layer}.1.temporal_attention.attention.qkv.weight": 8.0,
        f"{layer}.1.width_attention.attention.qkv.bias": 8.0,
        f"{layer}.0.temporal_layernorm.weight": 4.0,
        f"{layer}.0.temporal_dense.weight": 4.0,
        f"{layer}.0.intermediate.dense.weight": 0.5,
        "timesformer.embeddings.position_embeddings": 0.25,
        "timesformer.embeddings.time_embeddings": 2.0,
    }
    assert {name: found[name] for name in expected} == expected
    freeze_parameters(model, "spatial")
    learning = {
        name for name, parameter in model.named_parameters() if parameter.requires_grad and "class" not in name
    }
    assert {name for name, rate in found.items() if rate in (8, 4, 2)} == learning
    assert groups[0]["lr"] == 1.0  # what Trainer logs


@pytest.mark.parametrize(
    ("scheme", "learning"),
    [
        ("divided_space_time", {"temporal", "time_embeddings", "classifier"}),
        ("axial", {"temporal", "width", "time_embeddings", "classifier"}),
        ("sparse_local_global", {"local", "time_embeddings", "classifier"}),
        ("joint_space_time", {"time_embeddings", "classifier"}),
    ],
)
def test_freeze_spatial_leaves_what_the_image_vit_did_not_have(scheme, learning):
    model = make_network(scheme)
    freeze_parameters(model, "spatial")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == any(word in name for word in learning), name


def test_blocks_that_do_not_learn_are_not_dropped():
    model = make_network(num_hidden_layers=4, drop_path_rate=0.3)
    rates = [layer.drop_path.rate for layer in model.timesformer.encoder.layer]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    freeze_parameters(model, "none", 0.5)
    rates = [layer.drop_path.rate for layer in model.timesformer.encoder.layer]
    assert rates == pytest.approx([0, 0, 0.2, 0.3])
    freeze_parameters(model, "backbone")
    assert not any(layer.drop_path.rate for layer in model.timesformer.encoder.layer)


def test_freeze_backbone_and_none():
    model = make_network()
    freeze_parameters(model, "backbone")
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]
    groups = parameter_groups(model, learning_rate=1.0)
    assert sum(len(group["params"]) for group in groups) == 2
    freeze_parameters(model, "none")
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="freeze 'all' is unknown"):
        freeze_parameters(model, "all")


def test_step_schedule():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=8.0)
    schedule, rates = step_schedule(optimizer, [4, 6], factor=0.5, num_warmup_steps=1), []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [4, 8, 8, 8, 4, 4, 2, 2]


def make_arguments(folder, **options) -> VideoTrainingArguments:
    return VideoTrainingArguments(output_dir=str(folder), use_cpu=True, eval_strategy="no", **options)


def make_trainer(tmp_path, **options) -> VideoTrainer:
    args = make_arguments(tmp_path, load_best_model_at_end=False, **options)
    return VideoTrainer(model=make_network(), args=args)


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
    assert sorted({group["lr"] for group in trainer.create_optimizer().param_groups}) == [0.005, 0.01, 0.02]


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
    metrics = clip_metrics(EvalPrediction(predictions=logits, label_ids=labels))
    assert metrics["top1_accuracy"] == pytest.approx(2 / 3)
    assert (metrics["videos"], metrics["videos_unreadable"]) == (3, 1)
    assert metrics["clip_loss"] == pytest.approx(np.log(np.e + 5) - 2 / 3)
    with pytest.raises(ValueError, match="no validation clip can be read"):
        clip_metrics(EvalPrediction(predictions=logits, label_ids=np.full(5, UNREADABLE)))


def test_curve(tmp_path):
    history = [{"epoch": 0.5, "loss": 2.0}, {"epoch": 1.0, "eval_loss": 1.5, "eval_top1_accuracy": 0.4}]
    assert draw_curve(history, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_no_curve_without_matplotlib_is_said_in_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert not draw_curve([], tmp_path / "curve.png")
    assert caplog.messages == ["no learning curve is drawn: pip install matplotlib (extra `viz`)"]


def make_checkpoint(folder: Path, step: int, *, whole: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "trainer_state.json").write_text("{}")
    if not whole:
        (path / INCOMPLETE).touch()
    return path


def test_only_whole_checkpoints_are_gone_on_from(tmp_path):
    with pytest.raises(ValueError, match="no whole checkpoint"):
        find_checkpoint(tmp_path, "last")
    for step in (9, 10, 100):
        make_checkpoint(tmp_path, step, whole=step != 100)
    (tmp_path / "checkpoint-11").mkdir()  # killed before its first file
    assert find_checkpoint(tmp_path, "last") == tmp_path / "checkpoint-10"
    assert find_checkpoint(tmp_path, "True") == tmp_path / "checkpoint-10"
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoint-9")) == tmp_path / "checkpoint-9"
    with pytest.raises(ValueError, match="checkpoint-100' is not whole"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-100"))
    with pytest.raises(ValueError, match="is no folder"):
        find_checkpoint(tmp_path, "nowhere")
    remove_half_written(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-10", "checkpoint-9"]
    assert list_checkpoints(tmp_path) == [tmp_path / "checkpoint-9", tmp_path / "checkpoint-10"]


def test_a_folder_has_one_run_at_a_time_and_a_kill_gives_it_back(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "run"
    folder.mkdir()
    path = str(folder / RUN_LOCK)
    hold = f"import filelock; lock = filelock.FileLock({path!r}); lock.acquire(); print('held', flush=True); input()"
    monkeypatch.setattr(checkpoints, "WAIT_SECONDS", 0)
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="another run is at work in"), only_run_in(folder):
            pass
        assert f"holds {folder}: waiting up to 0 s" in caplog.text
        other.kill()
    for _ in range(2):
        with only_run_in(folder), pytest.raises(ValueError, match="another run"), only_run_in(folder):
            pass


def parse(argv: list[str], default: str | None = None) -> tuple[VideoTrainingArguments, str | None]:
    parser = HfArgumentParser(VideoTrainingArguments)
    message = apply_recipe(parser, argv, default)
    return parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)[0], message


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "mine.json"
    path.write_text('{"description": "x", "learning_rate": 0.25, "num_train_epochs": 7, "lr_milestones": [3, 5]}')
    return path


def test_the_command_line_wins_over_the_recipe(recipe, tmp_path):
    argv = ["--output_dir", str(tmp_path), "--recipe", str(recipe), "--num-train-epochs=2"]
    args, message = parse(argv)
    assert (args.learning_rate, args.num_train_epochs, args.lr_milestones) == (0.25, 2, [3, 5])
    assert message == (
        "recipe mine sets learning_rate=0.25, lr_milestones=[3, 5]; the command line sets num_train_epochs instead"
    )
    assert parse([*argv, "--recipe", "none"])[1] is None


def test_a_model_on_the_command_line_takes_the_place_of_the_recipes_vit():
    parser = ArgumentParser()
    for name in read_recipe(find_recipe("ssv2-8-224")).keys() | {"model", "recipe"}:
        parser.add_argument(f"--{name}")
    for argv, expected in (([], "google/vit-base-patch16-224-in21k"), (["--model", "m"], None)):
        apply_recipe(parser, [*argv, "--recipe", "ssv2-8-224"])
        assert parser.parse_args(argv).from_vit == expected
        parser.set_defaults(from_vit=None)


def test_a_recipe_holds_what_differs_from_its_base(tmp_path):
    (tmp_path / "one.json").write_text('{"base": "two", "seed": 1, "description": "x"}')
    (tmp_path / "two.json").write_text('{"base": "k400-8x32-224", "seed": 2, "num_frames": 3}')
    expected = read_recipe(RECIPES / "k400-8x32-224.json") | {"seed": 1, "num_frames": 3}
    assert read_recipe(tmp_path / "one.json") == expected
    assert (expected["sampling_rate"], expected["optim"]) == (32, "sgd")
    (tmp_path / "two.json").write_text('{"base": "one"}')
    with pytest.raises(ValueError, match="cannot be based on each other: one -> two -> one"):
        read_recipe(tmp_path / "one.json")


def test_every_recipe_is_described_in_one_line():
    assert {"paper", "small-set", "demo", "k400-8x32-224"} <= list_recipes().keys()
    assert all(10 < len(line) < 100 for line in list_recipes().values())


def test_recipes_that_cannot_be(recipe):
    with pytest.raises(ValueError, match=r"recipe 'k400' is neither a file nor one of: .*k400-8x32-224"):
        parse(["--recipe", "k400"])
    recipe.write_text('{"learning_rat": 1}')
    with pytest.raises(ValueError, match="'learning_rat', which is no argument; did you mean 'learning_rate'"):
        parse(["--recipe", str(recipe)])
    for text, message in (("{", "is no JSON"), ("[1]", "should hold a JSON object, not list")):
        recipe.write_text(text)
        with pytest.raises(ValueError, match=message):
            parse(["--recipe", str(recipe)])


def test_the_papers_recipe():
    """Paper, appendix: 15 epochs, initial rate 0.005, divided by 10 at epochs 11 and 14, batch of 64."""
    values = read_recipe(find_recipe("k400-8x32-224"))
    expected = {
        "optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.005, "weight_decay": 0.0001,
        "num_train_epochs": 15, "lr_milestones": [11, 14], "lr_factor": 0.1, "reference_batch_size": 64,
        "num_frames": 8, "sampling_rate": 32, "image_size": 224, "short_side": [256, 320],
    }  # fmt: skip
    assert {name: values[name] for name in expected} == expected


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    labels = {0: "run", 1: "jump", 2: "sit"}
    model = make_network(id2label=labels, label2id={name: i for i, name in labels.items()})
    model.save_pretrained(folder)
    return folder


def test_networks_to_start_from(checkpoint):
    model, ids = load_network(["jump", "run", "sit"], model=str(checkpoint))
    assert ids == [1, 0, 2]
    fresh, ids = load_network(["fall", "fly", "run"], model=str(checkpoint), new_head=True)
    assert (ids, fresh.config.id2label) == ([0, 1, 2], {0: "fall", 1: "fly", 2: "run"})
    torch.testing.assert_close(fresh.timesformer.state_dict(), model.timesformer.state_dict())
    assert not torch.equal(fresh.classifier.weight, model.classifier.weight)
    assert load_network(["a"], model=str(checkpoint), new_head=True)[0].config.num_labels == 1
    assert load_network(["a", "b"], config_overrides=TINY, num_frames=4)[0].config.num_frames == 4
    with pytest.raises(ValueError, match="nothing to start from"):
        load_network(["a"])
    with pytest.raises(ValueError, match="exclude each other"):
        load_network(["a"], model="m", from_vit="v")


def test_processor_of_the_run(checkpoint, tmp_path):
    config = TimeSformerConfig(**TINY)
    processor = make_processor(config, None, image_size=48, sampling="segments")
    assert (processor.num_frames, processor.sampling, processor.crop_size["height"]) == (2, "segments", 48)
    assert processor.size["shortest_edge"] == 48
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "num_frames": 5}')
    processor = make_processor(config, str(tmp_path), num_frames=3)
    assert (list(processor.image_mean), processor.num_frames) == ([0.1, 0.2, 0.3], 3)
    with pytest.raises(ValueError, match="image_size 100 is no multiple of the patch size 16: take 96 or 112"):
        make_processor(config, None, image_size=100)
    with pytest.raises(ValueError, match="made for frames of 32x48: give a square --image_size"):
        make_processor(TimeSformerConfig(**TINY | {"image_size": [32, 48]}), None)


def test_config_overrides():
    assert parse_overrides("hidden_size=96, drop_path_rate=0.1,attention_type=axial") == {
        "hidden_size": 96,
        "drop_path_rate": 0.1,
        "attention_type": "axial",
    }
    assert parse_overrides(None) == {}
    with pytest.raises(ValueError, match="takes name=value pairs"):
        parse_overrides("hidden_size")
