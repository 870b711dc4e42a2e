"""`--temporal_start auto`: what it takes for which clips, and that the run is none the worse for it."""

import copy
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import ViTConfig, ViTModel

from hf_timesformer.model.modeling_timesformer import TimeSformerForVideoClassification
from hf_timesformer.training import first_process, run_start, temporal_choice
from hf_timesformer.training.arguments import DataArguments, ModelArguments, VideoTrainingArguments
from hf_timesformer.training.classifier_fit import best_shrinkage, held_out_logits
from hf_timesformer.training.optimization import freeze_parameters
from hf_timesformer.training.run import train
from hf_timesformer.training.temporal_choice import (
    USUAL,
    TemporalStart,
    choose_start,
    clips_to_look_at,
    saved_start,
)
from hf_timesformer.training.temporal_start import STARTS, start_blocks, start_time_embeddings


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> str:
    """An image ViT of three blocks and three heads."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3}
    config = ViTConfig(
        **sizes, intermediate_size=96, image_size=32, patch_size=8, initializer_range=0.2
    )
    ViTModel(config).save_pretrained(folder)
    return str(folder)


def make_network(vit: str, num_labels: int = 2) -> TimeSformerForVideoClassification:
    network = TimeSformerForVideoClassification.from_vit(vit, num_frames=8, num_labels=num_labels)
    freeze_parameters(network, "none", 0.33)
    torch.manual_seed(0)
    start_time_embeddings(network)
    return network


def pictures(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of two classes that differ in what is seen: bright at the top or at the bottom."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    clips = torch.randn(count, 8, 3, 32, 32, generator=generator)
    clips[labels == 0, ..., :16, :] += 3
    return clips, labels


def batches(clips: torch.Tensor, labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [
        {"pixel_values": some, "labels": which}
        for some, which in zip(clips.split(16), labels.split(16))
    ]


def test_pictures_that_differ_are_told_by_the_usual_start(vit):
    clips, labels = pictures()
    choice = choose_start(
        make_network(vit), batches(clips, labels), range(len(clips)), clips=clips[:6]
    )
    assert (choice.name, choice.clips) == (USUAL, len(clips))
    assert choice.percent_right[USUAL] > 95


def test_percentages_are_those_of_the_whole_network_with_each_start(vit):
    clips, labels = pictures()
    labels[3] = -100  # could not be read
    network = make_network(vit)
    before = copy.deepcopy(network.state_dict())
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    groups = torch.arange(60) // 4
    choice = choose_start(network, batches(clips, labels), groups.tolist(), clips=clips[:6])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert choice.clips == 59
    counts = labels >= 0
    for start in STARTS:
        network.load_state_dict(before)
        start_blocks(network, start, clips[:6])
        with torch.no_grad():
            features = network.eval().timesformer(clips).last_hidden_state[counts, 0].double()
        targets = functional.one_hot(labels[counts], 2).double()
        shrinkage = best_shrinkage(features, targets)
        (logits,), _ = held_out_logits(features, targets, groups[counts], [shrinkage])
        right = (logits.argmax(-1) == labels[counts]).double().mean().item()
        assert choice.percent_right[start] == pytest.approx(100 * right, abs=2)


@pytest.mark.parametrize(
    ("knows", "better", "taken"),
    [(3, 6, "parts"), (3, 20, "changes"), (2, 6, "changes"), (2, 30, "changes"), (2, 1, "parts")],
)
def test_another_start_must_be_better_by_two_standard_errors_or_nothing_be_lost(
    knows, better, taken, monkeypatch
):
    """Groups of 2 clips: the usual start is right about half of the clips, as guesses are, or about
    three quarters, the other one about some groups more, and about one clip less."""
    usual = torch.arange(80) % 4 < knows
    other = usual.clone()
    other[[row for row in range(80) if not usual[row]][:better]] = True
    other[0] = False
    answers = {"parts": usual, "changes": other}

    def logits_of(features, targets, groups, shrinkages):  # of features that are right or wrong
        return torch.where(features > 0, targets, 1 - targets)[None], torch.ones(80).bool()

    monkeypatch.setattr(temporal_choice, "held_out_logits", logits_of)
    targets = functional.one_hot(torch.arange(80) % 2, 2)
    features = {start: right.double()[:, None] for start, right in answers.items()}
    choice = temporal_choice.compare_starts(features, targets, torch.arange(80) // 2)
    more = (other.double() - usual.double()).view(40, 2).mean(dim=1)
    assert choice.standard_errors["changes"] == pytest.approx(100 * (more.std() / 40**0.5).item())
    assert choice.percent_right["changes"] == pytest.approx(25 * knows + 100 * (better - 1) / 80)
    errors = (choice.percent_right["changes"] - 25 * knows) / choice.standard_errors["changes"]
    assert {1: errors == 0, 6: 1 < errors < 2, 20: errors > 2, 30: errors > 2}[better]
    assert choice.name == taken


def test_few_groups_tell_nothing():
    features = {start: torch.randn(8, 4) for start in STARTS}
    targets = functional.one_hot(torch.arange(8) % 2, 2)
    choice = temporal_choice.compare_starts(features, targets, torch.zeros(8, dtype=torch.long))
    assert choice == TemporalStart(USUAL)
    assert "too few groups to tell" in choice.describe()


@pytest.mark.parametrize(
    ("clips", "looked_at"), [(39, 0), (40, 40), (90, 60), (150, 100), (5000, 200)]
)
def test_how_many_clips_are_looked_at(clips, looked_at):
    assert clips_to_look_at(clips) == looked_at


# In a run


@pytest.fixture
def run(folder, tmp_path, vit, monkeypatch):
    """A run of one epoch with few clips; its trainer."""
    monkeypatch.setattr(temporal_choice, "FEWEST_CLIPS", 4)

    def train_with(start: str, output: str, **options):
        model = ModelArguments(
            from_vit=vit, temporal_start=start, num_frames=4, sampling="segments"
        )
        data = DataArguments(data_dir=str(folder))
        args = VideoTrainingArguments(
            output_dir=str(tmp_path / output),
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            dataloader_num_workers=0,
            num_train_epochs=2,
            learning_rate=0.001,
            freeze_depth=0.33,
            **options,
        )
        return train(model, data, args)

    return train_with


def test_a_run_that_chose_is_the_run_that_was_told(run, tmp_path, caplog):
    caplog.set_level("INFO")
    trainer = run("auto", "auto")
    chosen = trainer.temporal_start
    assert f"--temporal_start auto takes {chosen.name}: of {chosen.clips} training" in caplog.text
    run(chosen.name, "named")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("auto", "named"))
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name
    assert saved_start(next((tmp_path / "auto").glob("checkpoint-*"))) == chosen


def test_a_run_that_goes_on_takes_the_start_that_it_began_with(run, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(run_start, "choose_start", lambda *_, **__: TemporalStart("changes", 9))
    monkeypatch.setattr(TemporalStart, "describe", lambda self: self.name)
    run("auto", "run", max_steps=2, save_strategy="steps", save_steps=2, eval_strategy="no")
    monkeypatch.delattr(run_start, "choose_start")  # it is not chosen again
    again = run("auto", "run", resume_from_checkpoint="auto")
    assert again.temporal_start == TemporalStart("changes", 9)
    assert "--temporal_start auto took changes when the run of" in caplog.text
    assert run_start._go_on(tmp_path).name == USUAL  # an older version's checkpoint
    assert "does not say how its run started" in caplog.text


def test_comparisons_in_a_run_that_goes_on(run, tmp_path, caplog):
    """It looks at the same clips again, and its temporal half learns more slowly."""
    caplog.set_level("INFO")
    options = {"temporal_learning_rate": 0.01, "eval_strategy": "no", "save_strategy": "epoch"}
    trainer = run("comparisons", "whole", **options)
    line = "--temporal_start comparisons: the temporal half learns at 0.1 times --temporal_learning_rate"
    assert f"{line}, 0.001" in caplog.text
    assert trainer.args.temporal_learning_rate == pytest.approx(0.001)
    run("comparisons", "parted", **options)
    last = max((tmp_path / "parted").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    shutil.rmtree(last)
    run("comparisons", "parted", **options, resume_from_checkpoint="auto")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parted"))
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


def test_comparisons_need_clips_that_can_be_seen(vit, folder, monkeypatch):
    network = make_network(vit)
    with pytest.raises(ValueError, match="give some"):
        start_blocks(network, "comparisons")
    with pytest.raises(ValueError, match="shards are read from the front: give parts"):
        run_start._some_clips(SimpleNamespace(shards=["a.tar"]), None, [0, 1])


@pytest.mark.parametrize("name", ["auto", "comparisons"])
def test_without_temporal_attention_only_time_embeddings_start(name, vit, caplog):
    caplog.set_level("INFO")
    network = TimeSformerForVideoClassification.from_vit(
        vit, num_frames=8, attention_type="joint_space_time"
    )
    start = run_start.start_network(network, name, None, None, None, label_ids=[0, 1])
    assert start == TemporalStart("attention")
    assert "no temporal attention learns that could start" in caplog.text
    assert network.timesformer.embeddings.time_embeddings.any()


def test_other_processes_take_what_the_first_chose(vit, monkeypatch):
    def broadcast(choice):
        choice[0] = TemporalStart("changes", 50)

    monkeypatch.setattr(first_process, "broadcast_object_list", broadcast)
    monkeypatch.setattr(run_start, "_obstacle", lambda *_: None)
    args = SimpleNamespace(process_index=1, world_size=2, device="cpu", bf16=False, fp16=False)
    network = make_network(vit)
    start = run_start.start_network(network, "auto", None, None, args, label_ids=[0, 1])
    assert start.name == "changes"
    assert network.timesformer.encoder.layer[1].temporal_dense.weight.any()


def test_other_processes_take_what_the_first_learned(vit, monkeypatch):
    """Of comparisons: they look at no clips of their own."""
    first, other = make_network(vit), make_network(vit)
    sent = []

    def broadcast(result):
        if not sent:
            sent.extend(result)
        result[:] = sent

    monkeypatch.setattr(first_process, "broadcast_object_list", broadcast)
    monkeypatch.setattr(run_start, "_some_clips", lambda *_: pictures(6)[0])
    for index, network in enumerate((first, other)):
        args = SimpleNamespace(
            process_index=index, world_size=2, device="cpu", bf16=False, fp16=False
        )
        torch.manual_seed(0)  # as every process of a run does
        run_start.start_network(network, "comparisons", None, None, args, label_ids=[0, 1])
        monkeypatch.setattr(run_start, "_some_clips", lambda *_: pytest.fail("it looked at clips"))
    for name, weight in first.timesformer.state_dict().items():
        assert torch.equal(weight, other.timesformer.state_dict()[name]), name
    assert other.timesformer.encoder.layer[1].temporal_dense.weight.any()


def found(count: int = 100, **fields):
    values = {"videos": range(count), "shards": None, "problem_type": "single_label_classification"}
    return SimpleNamespace(**values | fields)


@pytest.mark.parametrize(
    ("clips", "arguments", "reason"),
    [
        (found(39), {}, "39 clips are too few to tell"),
        (found(shards=["a.tar"]), {}, "tar shards"),
        (found(problem_type="regression"), {}, "the problem is regression"),
        (found(), {"deepspeed": "zero2.json"}, "DeepSpeed may have spread"),
    ],
)
def test_where_it_cannot_choose_it_says_so(clips, arguments, reason, vit, caplog):
    caplog.set_level("INFO")
    args = SimpleNamespace(
        **{"deepspeed": None, "device": "cpu", "bf16": False, "fp16": False} | arguments
    )
    start = run_start.start_network(make_network(vit), "auto", clips, None, args, label_ids=[0, 1])
    assert start == TemporalStart(USUAL)
    assert f"--temporal_start auto takes {USUAL}: " in caplog.text
    assert reason in caplog.text
