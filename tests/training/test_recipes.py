"""Recipes: what they set, and how the command line wins over them."""

from argparse import ArgumentParser
from pathlib import Path

import pytest
from transformers import HfArgumentParser

from hf_timesformer.training.arguments import VideoTrainingArguments
from hf_timesformer.training.recipes import RECIPES, apply_recipe, find_recipe, list_recipes, read_recipe


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
