"""`timesformer train` as a user runs it: what it leaves behind, and what it says to mistakes."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.transforms import v2
from transformers import ViTConfig, ViTModel

from hf_timesformer.cli.train import main
from hf_timesformer.cli.train_help import make_train_parser
from hf_timesformer.data.found_videos import FoundVideos
from hf_timesformer.data.synthetic import make_motion_dataset
from hf_timesformer.model.modeling_timesformer import TimeSformerForVideoClassification
from hf_timesformer.training import run as flow
from hf_timesformer.training.arguments import DataArguments, ModelArguments, VideoTrainingArguments
from hf_timesformer.training.recipes import apply_recipe
from hf_timesformer.training.run_clips import make_augmentation
from hf_timesformer.training.starting_point import load_network, parse_overrides
from hf_timesformer.training.temporal_start import DENSE
from hf_timesformer.video.video_processing_timesformer import TimeSformerVideoProcessor


NETWORK = (
    "image_size=32,patch_size=16,hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,"
    "num_frames=2"
)


@pytest.fixture
def train(capsys, tmp_path):
    """Run the command with some arguments; its exit code and the last line of its errors."""

    def run(*arguments: object, start: tuple = ("--config_overrides", NETWORK)) -> tuple[int, str]:
        argv = ["--recipe", "none", "--sampling_rate", "2", "--use_cpu", "--disable_tqdm", "true"]
        argv += [
            "--dataloader_num_workers",
            "0",
            "--num_train_epochs",
            "2",
            "--output_dir",
            tmp_path / "run",
        ]
        code = 0
        try:
            main(list(map(str, [*argv, *start, *arguments])))
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err.strip().rpartition("\n")[2]

    return run


@pytest.fixture
def clips(tmp_path) -> Path:
    return make_motion_dataset(tmp_path / "clips", splits={"train": 3}, num_frames=6, size=40)


def test_a_run_with_broken_clips_leaves_everything_that_is_needed(train, clips, tmp_path):
    for folder in sorted((clips / "train").iterdir())[2:]:
        for clip in folder.iterdir():
            clip.rename(clip.with_name(f"{clip.stem}-.mp4"))
    down = sorted((clips / "train" / "down").iterdir())
    (clips / "train" / "down" / "text.mp4").write_text("no video")
    cut_off = clips / "train" / "growing" / "cut.mp4"
    cut_off.write_bytes(down[0].read_bytes()[:800])
    assert (
        train(
            "--data_dir",
            clips,
            "--report_to",
            "tensorboard",
            "--validation_fraction",
            0.3,
            "--seed",
            1,
        )[0]
        == 0
    )
    run = tmp_path / "run"
    results = json.loads((run / "train_results.json").read_text())
    state = json.loads((run / "trainer_state.json").read_text())
    evaluations = [entry for entry in state["log_history"] if "eval_loss" in entry]
    assert (
        results["train_samples"]
        + evaluations[0]["eval_videos"]
        + evaluations[0]["eval_videos_unreadable"]
        == 20
    )
    assert results["bad_clips"] + evaluations[0]["eval_videos_unreadable"] == 2
    assert set(results["bad_clip_names"]) <= {"down/text.mp4", "growing/cut.mp4"}
    assert sum(results["bad_clips_by_reason"].values()) == results["bad_clips"]
    assert results["best_metric"] == max(entry["eval_top1_accuracy"] for entry in evaluations)
    assert len(evaluations) == 2
    assert 0 <= results["data_wait_percent"] <= 100
    model = TimeSformerForVideoClassification.from_pretrained(run)
    assert sorted(model.config.id2label.values()) == [
        "down",
        "growing",
        "left",
        "right",
        "shrinking",
        "up",
    ]
    processor = TimeSformerVideoProcessor.from_pretrained(run)
    assert (processor.num_frames, processor.sampling_rate, processor.crop_size["width"]) == (
        2,
        2,
        32,
    )
    assert (run / "training_curve.png").read_bytes().startswith(b"\x89PNG")
    scalars = EventAccumulator(str(next(run.rglob("events.*")).parent)).Reload().Tags()["scalars"]
    assert {
        "train/loss",
        "train/data_wait_percent",
        "eval/top1_accuracy",
        "eval/top5_accuracy",
    } <= set(scalars)


def test_the_best_model_is_the_one_saved(train, clips, tmp_path):
    make_motion_dataset(clips, splits={"val": 2}, num_frames=6, size=40, seed=1)
    assert train("--data_dir", clips, "--learning_rate", 0.05, "--num_train_epochs", 3)[0] == 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    best = TimeSformerForVideoClassification.from_pretrained(
        state["best_model_checkpoint"]
    ).state_dict()
    saved = TimeSformerForVideoClassification.from_pretrained(tmp_path / "run").state_dict()
    torch.testing.assert_close(saved, best, rtol=0, atol=0)


def test_without_evaluation(train, clips, tmp_path):
    assert train("--data_dir", clips, "--validation_fraction", 0, "--num_train_epochs", 1)[0] == 0
    results = json.loads((tmp_path / "run" / "train_results.json").read_text())
    assert (results["train_samples"], results["best_metric"]) == (18, None)
    code, error = train("--data_dir", clips, "--validation_fraction", 0)
    assert code == 2
    assert (
        f"{tmp_path / 'run'} has the checkpoints of another run: pass --resume_from_checkpoint (with the"
        in error
    )


def empty(clips: Path) -> None:
    for clip in clips.rglob("*.mp4"):
        clip.unlink()


def unreadable_class(clips: Path) -> None:
    for clip in (clips / "train" / "up").iterdir():
        clip.write_text("no video")


def many_unreadable(clips: Path) -> None:
    for folder in (clips / "train").iterdir():
        sorted(folder.iterdir())[0].write_text("no video")


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (empty, [], "has no video clip"),
        (unreadable_class, [], "no readable clip in class 'up' (up/up_000.mp4: "),
        (
            many_unreadable,
            ["--max_bad_fraction", 0.2],
            "training clips cannot be read, more than max_bad_fraction 0.2: ",
        ),
        (None, ["--image_size", 40], "image_size=40 must be a multiple of the patch"),
        (None, ["--data_dir", "/nowhere"], "'/nowhere' does not exist"),
        (None, ["--train_split", "test"], "has no test split"),
        (None, ["--short_side", 20, 30], "short-side jitter 20 to 30 does not fit crops of 32"),
        (None, ["--resume_from_checkpoint"], "holds no whole checkpoint"),
        (None, ["--recipe", "best"], "recipe 'best' is neither a file nor one of"),
        (None, ["--config_overrides", f"{NETWORK},attention_type=diagonal"], "diagonal"),
    ],
)
def test_mistakes_get_one_line(train, clips, damage, arguments, message):
    if damage is not None:
        damage(clips)
    code, error = train("--data_dir", clips, "--validation_fraction", 0, *arguments)
    assert code == 2
    assert error.startswith("error: ")
    assert message in error


def test_labels_that_the_checkpoint_does_not_have(train, clips, tmp_path):
    labels = {0: "left", 1: "right"}
    network, _ = load_network(list(labels.values()), config_overrides=parse_overrides(NETWORK))
    network.save_pretrained(tmp_path / "model")
    start = ("--model", tmp_path / "model")
    code, error = train("--data_dir", clips, start=start)
    assert code == 2
    assert "4 of 6 classes of the data are not among the model's 2: 'down'" in error
    assert "--new_head" in error
    assert (
        train("--data_dir", clips, "--ignore_mismatched_sizes", "--max_steps", 1, start=start)[0]
        == 0
    )


@pytest.mark.parametrize(
    ("start", "kept"),
    [
        ({}, set()),
        ({"model": "m"}, {"freeze_depth"}),
        ({"model": "m", "new_head": True}, {"freeze_depth", "probe_passes", "refit_classifier"}),
        (
            {"from_vit": "v"},
            {"freeze_depth", "probe_passes", "refit_classifier", "temporal_learning_rate"},
        ),
    ],
)
def test_what_makes_no_sense_for_a_start_is_left_out_of_a_copy(start, kept, tmp_path):
    wanted = {
        "freeze_depth": 0.5,
        "probe_passes": 2,
        "refit_classifier": True,
        "temporal_learning_rate": 0.5,
    }
    args = VideoTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **wanted)
    settled = flow.settle_arguments(ModelArguments(**start), args)
    assert {name for name in wanted if getattr(settled, name)} == kept
    assert {name: getattr(args, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("given", "num_clips", "depth"),
    [(None, 199, 0.67), (None, 999, 0.67), (None, 1000, 0.33), (None, 10_000, 0), (0.5, 199, 0.5)],
)
def test_depth_of_freezing_by_the_number_of_clips(given, num_clips, depth, tmp_path, caplog):
    args = VideoTrainingArguments(output_dir=str(tmp_path), use_cpu=True, freeze_depth=given)
    found = FoundVideos(range(num_clips), ["a"], num_clips, num_clips)
    with caplog.at_level(logging.INFO, logger="hf_timesformer"):
        assert flow.settle_depth(args, found).freeze_depth == depth
    assert (f"does not learn from {num_clips} clips" in caplog.text) == (given is None)
    shards = replace(found, shards=["a.tar", "b.tar"], shard_sizes=[num_clips - 1, 1])
    assert flow.settle_depth(args, shards).freeze_depth == depth
    uncounted = replace(found, shards=["a.tar"])
    assert flow.settle_depth(args, uncounted).freeze_depth == (given or 0)


def test_network_and_processor_of_a_run(tmp_path):
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(tmp_path / "vit")
    start = ModelArguments(
        from_vit=str(tmp_path / "vit"), num_frames=2, image_size=48, drop_path_rate=0.2
    )
    network, label_ids, processor = flow.make_network(start, ["left", "right"])
    assert (network.config.num_frames, network.config.drop_path_rate, label_ids) == (2, 0.2, [0, 1])
    assert (processor.num_frames, processor.crop_size["height"]) == (2, 48)


@pytest.mark.parametrize("lora_r", [None, 2])
def test_a_run_for_few_clips_starts_the_temporal_half_of_what_learns(folder, lora_r, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    vit = ViTConfig(**sizes, intermediate_size=32, image_size=32, patch_size=16)
    ViTModel(vit).save_pretrained(tmp_path / "vit")
    vit = ["--from_vit", str(tmp_path / "vit"), "--num_frames", "2", "--image_size", "32"]
    argv = ["--data_dir", str(folder), "--output_dir", str(tmp_path / "run"), "--use_cpu", *vit]
    argv += [] if lora_r is None else ["--lora_r", str(lora_r)]
    parser = make_train_parser("train")
    apply_recipe(parser, argv, default="small-set")
    trainer = flow.make_trainer(*parser.parse_args_into_dataclasses(argv))
    assert trainer.args.freeze_depth == 0.67
    assert trainer.temporal_start.name == "parts"  # the clips are too few to choose by
    network = trainer.model if lora_r is None else trainer.model.get_base_model()
    base = network.timesformer
    assert 0.01 < base.embeddings.time_embeddings.std() < 0.06
    scales = [layer.temporal_dense.weight.diagonal().mean().item() for layer in base.encoder.layer]
    assert scales == pytest.approx([0, 0, DENSE])
    if lora_r is not None:  # what the adapter is for has it, too
        saved = TimeSformerForVideoClassification.from_pretrained(tmp_path / "run" / "base")
        times = saved.timesformer.embeddings.time_embeddings
        assert torch.equal(times, base.embeddings.time_embeddings)


@pytest.mark.parametrize(
    ("dataset", "flip", "mirrors"),
    [("ssv2", True, False), ("folder", True, True), ("folder", False, False)],
)
def test_ssv2_is_never_mirrored(dataset, flip, mirrors):
    data = DataArguments(data_dir="x", dataset=dataset, flip=flip)
    steps = make_augmentation(TimeSformerVideoProcessor(), data).transform.transforms
    assert any(isinstance(step, v2.RandomHorizontalFlip) for step in steps) == mirrors
