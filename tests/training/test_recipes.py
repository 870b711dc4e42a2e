"""Recipes: what they set, and how the command line wins over them."""

from argparse import ArgumentParser
from pathlib import Path

import pytest
from tiny import tiny_model
from transformers import HfArgumentParser

from hf_timesformer.training.arguments import DataArguments, ModelArguments, VideoTrainingArguments
from hf_timesformer.training.optimization import parameter_groups
from hf_timesformer.training.recipes import (
    RECIPES,
    apply_recipe,
    find_recipe,
    list_recipes,
    read_recipe,
)


def parse(argv: list[str], default: str | None = None) -> tuple[VideoTrainingArguments, str | None]:
    parser = HfArgumentParser(VideoTrainingArguments)
    message = apply_recipe(parser, argv, default)
    return parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)[0], message


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "mine.json"
    path.write_text(
        '{"description": "x", "learning_rate": 0.25, "num_train_epochs": 7, "lr_milestones": [3, 5]}'
    )
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
    with pytest.raises(
        ValueError, match=r"recipe 'k400' is neither a file nor one of: .*k400-8x32-224"
    ):
        parse(["--recipe", "k400"])
    recipe.write_text('{"learning_rat": 1}')
    with pytest.raises(
        ValueError, match="'learning_rat', which is no argument; did you mean 'learning_rate'"
    ):
        parse(["--recipe", str(recipe)])
    for text, message in (("{", "is no JSON"), ("[1]", "should hold a JSON object, not list")):
        recipe.write_text(text)
        with pytest.raises(ValueError, match=message):
            parse(["--recipe", str(recipe)])


def sides(low: int, high: int, crop: int) -> dict:
    return {"TRAIN_JITTER_SCALES": [low, high], "TRAIN_CROP_SIZE": crop}


# configs/{Kinetics,SSv2}/TimeSformer_divST_*.yaml of facebookresearch/TimeSformer: what differs
# between them.
OFFICIAL = {
    "k400-8x32-224": {"NUM_FRAMES": 8, "SAMPLING_RATE": 32, **sides(256, 320, 224)},
    "k400-16x16-448": {
        "NUM_FRAMES": 16,
        "SAMPLING_RATE": 16,
        "TRAIN_JITTER_SCALES": [448, 512],
        "TRAIN_CROP_SIZE": 448,
    },
    "k400-96x4-224": {"NUM_FRAMES": 96, "SAMPLING_RATE": 4, **sides(256, 320, 224)},
    "ssv2-8-224": {"NUM_FRAMES": 8, **sides(256, 320, 224)},
    "ssv2-16-448": {"NUM_FRAMES": 16, **sides(448, 512, 448)},
    "ssv2-64-224": {"NUM_FRAMES": 64, **sides(256, 320, 224)},
}
SSV2 = {"RANDOM_FLIP": False, "INV_UNIFORM_SAMPLE": True}
# What they share, and what stands in timesformer/config/defaults.py, models/vit.py and
# models/optimizer.py.
SHARED = {
    "OPTIMIZING_METHOD": "sgd", "MOMENTUM": 0.9, "NESTEROV": True, "DAMPENING": 0.0, "BASE_LR": 0.005,
    "STEPS": [0, 11, 14], "LRS": [1, 0.1, 0.01], "MAX_EPOCH": 15, "WEIGHT_DECAY": 1e-4, "WARMUP_EPOCHS": 0.0,
    "GLOBAL_BATCH_SIZE": 64, "ATTENTION_TYPE": "divided_space_time", "drop_path_rate": 0.1, "MIXUP": False,
    "MEAN": [0.45] * 3, "STD": [0.225] * 3, "decays": "all", "clips_gradients": False, "LABEL_SMOOTHING": 0,
    "RANDOM_FLIP": True, "INV_UNIFORM_SAMPLE": False,
}  # fmt: skip


def in_official_terms(values: dict, args: VideoTrainingArguments) -> dict:
    """What a recipe sets, in the words of the official code; arguments that it leaves alone have
    their defaults.
    """
    options = dict(pair.split("=") for pair in args.optim_args.split(","))
    drops = [args.lr_factor**number for number in range(len(args.lr_milestones) + 1)]
    return {
        "NUM_FRAMES": values["num_frames"],
        "TRAIN_JITTER_SCALES": values["short_side"],
        "TRAIN_CROP_SIZE": values["image_size"],
        "OPTIMIZING_METHOD": args.optim,
        "MOMENTUM": float(options.pop("momentum")),
        "NESTEROV": options.pop("nesterov") == "true",
        "DAMPENING": float(options.pop("dampening", 0)),
        "BASE_LR": args.learning_rate,
        "STEPS": [0, *args.lr_milestones],
        "LRS": pytest.approx(drops),
        "MAX_EPOCH": args.num_train_epochs,
        "WEIGHT_DECAY": args.weight_decay,
        "WARMUP_EPOCHS": args.warmup_steps,
        "GLOBAL_BATCH_SIZE": args.reference_batch_size,
        "ATTENTION_TYPE": values["attention_type"],
        "drop_path_rate": values["drop_path_rate"],
        "MIXUP": bool(values.get("mixup", 0)),
        "MEAN": values["image_mean"],
        "STD": values["image_std"],
        "decays": "all" if args.decay_all else "matrices",
        "clips_gradients": args.max_grad_norm > 0,
        "LABEL_SMOOTHING": args.label_smoothing_factor,
        "RANDOM_FLIP": values.get("flip", True),
        "INV_UNIFORM_SAMPLE": values.get("inverse_short_side", False),
    }


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_papers_recipes_are_the_official_ones(name, tmp_path):
    """Field by field. Rates that differ among parameters would not be official either."""
    values = read_recipe(find_recipe(name))
    argv = ["--output_dir", str(tmp_path), "--data_dir", "clips", "--use_cpu", "--recipe", name]
    parser = HfArgumentParser((ModelArguments, DataArguments, VideoTrainingArguments))
    apply_recipe(parser, argv)
    args = parser.parse_args_into_dataclasses(argv)[2]
    expected = SHARED | OFFICIAL[name] | (SSV2 if name.startswith("ssv2") else {})
    if "SAMPLING_RATE" in expected:
        assert (values["sampling"], values["sampling_rate"], values["target_fps"]) == (
            "clip", expected.pop("SAMPLING_RATE"), 30,
        )  # fmt: skip
    else:
        assert values["sampling"] == "segments"
    assert expected == in_official_terms(values, args)
    assert args.head_learning_rate is args.temporal_learning_rate is None
    assert (args.layer_decay, args.freeze_depth) == (1, 0)
    (group,) = parameter_groups(
        tiny_model("axial"), learning_rate=1.0, weight_decay=0.5, decay_all=args.decay_all
    )
    assert group["weight_decay"] == 0.5


def test_diving48_is_trained_as_kinetics_is():
    """The paper, appendix; the official code has no configuration of its own for it."""
    for size in ("8x32-224", "16x16-448", "96x4-224"):
        assert read_recipe(find_recipe(f"diving48-{size}")) == read_recipe(
            find_recipe(f"k400-{size}")
        )
