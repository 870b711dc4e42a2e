"""The cards of the official model zoo hold the published figures, and the card of a run only what
the run recorded.
"""

import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard

from hf_timesformer.hub.model_card import cards_folder, fill_model_card, released_cards
from hf_timesformer.model.configuration_timesformer import TimeSformerConfig


# The table of the official repository's README: name -> dataset, frames, crop, top-1, top-5.
MODEL_ZOO = {
    "TimeSformer_divST_8x32_224_K400": ("Kinetics-400", 8, 224, 77.9, 93.2),
    "TimeSformer_divST_16x16_448_K400": ("Kinetics-400", 16, 448, 79.6, 94.0),
    "TimeSformer_divST_96x4_224_K400": ("Kinetics-400", 96, 224, 80.6, 94.7),
    "TimeSformer_divST_8x32_224_K600": ("Kinetics-600", 8, 224, 79.1, 94.4),
    "TimeSformer_divST_16x16_448_K600": ("Kinetics-600", 16, 448, 81.8, 95.8),
    "TimeSformer_divST_96x4_224_K600": ("Kinetics-600", 96, 224, 82.2, 95.6),
    "TimeSformer_divST_8_224_SSv2": ("Something-Something-V2", 8, 224, 59.1, 85.6),
    "TimeSformer_divST_16_448_SSv2": ("Something-Something-V2", 16, 448, 61.8, 86.9),
    "TimeSformer_divST_64_224_SSv2": ("Something-Something-V2", 64, 224, 62.0, 87.5),
    "TimeSformer_divST_8x32_224_HowTo100M": ("HowTo100M", 8, 224, 56.8, None),
    "TimeSformer_divST_32x32_224_HowTo100M": ("HowTo100M", 32, 224, 61.2, None),
    "TimeSformer_divST_64x32_224_HowTo100M": ("HowTo100M", 64, 448, 62.2, None),
    "TimeSformer_divST_96x32_224_HowTo100M": ("HowTo100M", 96, 224, 62.6, None),
}
CARDS = sorted(path for path in cards_folder().glob("timesformer-*.md"))
TRAINED = {
    "train_loss": 0.4321, "epoch": 3.0, "train_runtime": 61.0, "train_samples": 240, "dataset": "folder",
    "data_dir": "/home/me/clips/falling-things", "recipe": {"learning_rate": 0.005, "optim": "sgd"},
}  # fmt: skip
EVALUATED = {
    "top1_accuracy": 0.8125, "top5_accuracy": 1.0, "mean_class_accuracy": 0.79, "views": 3, "num_clips": 1,
    "num_crops": 3, "videos_expected": 50, "videos_evaluated": 48, "videos_failed": 2, "split": "test",
    "dataset": "folder", "data_dir": "/home/me/clips/falling-things",
    "protocol": "One clip, three crops of each video.",
}  # fmt: skip


def scores(card: ModelCard) -> dict[str, float]:
    assert all(isinstance(result, EvalResult) for result in card.data.eval_results)
    return {result.metric_name: result.metric_value for result in card.data.eval_results}


# the model zoo


def test_every_released_checkpoint_has_a_card() -> None:
    named = [
        re.search(r"`(TimeSformer_divST_\w+)\.pyth`", path.read_text(encoding="utf-8"))[1]
        for path in CARDS
    ]
    assert sorted(named) == sorted(MODEL_ZOO)


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_released_card_has_the_published_figures(path: Path) -> None:
    card = ModelCard.load(path)
    checkpoint = re.search(r"`(TimeSformer_divST_\w+)\.pyth`", card.text)[1]
    dataset, frames, crop, top1, top5 = MODEL_ZOO[checkpoint]
    expected = {"Top-1 accuracy": top1} | ({"Top-5 accuracy": top5} if top5 else {})
    assert scores(card) == expected
    for result in card.data.eval_results:
        assert (result.dataset_name, result.task_type) == (dataset, "video-classification")
        assert "Published" in result.source_name
        assert result.source_url.startswith("https://github.com/facebookresearch/TimeSformer")
    assert card.data.license == "cc-by-nc-4.0"
    assert "not measured by us" in card.text
    assert f"{frames} frames at {crop} × {crop}" in card.text
    assert f"num_frames={frames}" in card.text
    assert "2102.05095" in card.text
    assert "bertasius2021spacetime" in card.text


def test_released_cards_are_those_of_the_table() -> None:
    cards = {f"{name}.md": f"{card}\n" for name, card in released_cards().items()}
    stored = {path.name: path.read_text(encoding="utf-8") for path in CARDS}
    assert cards == stored, "run `python scripts/make_model_cards.py`"


# the card of a run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TimeSformerConfig(id2label={0: "falls", 1: "rises"}, image_size=[160, 224]).save_pretrained(
        tmp_path / "run"
    )
    return tmp_path / "run"


def write(
    folder: Path, train: dict | None = TRAINED, evaluated: dict | None = EVALUATED, where: str = "."
) -> None:
    if train is not None:
        (folder / "train_results.json").write_text(json.dumps(train))
    if evaluated is not None:
        (folder / where).mkdir(exist_ok=True)
        (folder / where / "eval_results.json").write_text(json.dumps(evaluated))


@pytest.mark.parametrize("where", [".", "eval_test", "eval_validation"])
def test_card_fills_itself_from_a_run(folder: Path, where: str) -> None:
    write(folder, where=where)
    card = fill_model_card(
        folder, repo_id="me/falling", base_model="facebook/timesformer-base-finetuned-k400"
    )
    again = ModelCard(str(card))  # what the Hub reads
    assert scores(again) == {
        "Top-1 accuracy": 81.25,
        "Top-5 accuracy": 100.0,
        "Mean class accuracy": 79.0,
    }
    result = again.data.eval_results[0]
    assert (result.dataset_name, result.dataset_split) == ("falling-things", "test")
    metadata = yaml.safe_load(again.data.to_yaml())
    assert metadata["license"] == "cc-by-nc-4.0"
    assert metadata["base_model"] == "facebook/timesformer-base-finetuned-k400"
    assert metadata["pipeline_tag"] == "video-classification"
    for text in (
        "Labels: falls, rises.", "160 × 224", "| learning_rate | 0.005 |", "3.0 epochs", "mean training loss 0.4321",
        "Protocol: One clip, three crops of each video.", "48 of 50 videos evaluated, 2 could not be read",
        'pipeline("video-classification", model="me/falling")', "transformers 5", "## Limits", "@inproceedings",
    ):  # fmt: skip
        assert text in card.text, text
    assert "/home/me" not in str(card)


def test_card_says_what_was_not_recorded(folder: Path) -> None:
    card = fill_model_card(folder, repo_id="me/falling")
    assert card.data.eval_results is None
    assert "model-index" not in str(card)
    for text in (
        "training data was not recorded",
        "hyperparameters were not recorded",
        "Not evaluated",
        "Not stated",
    ):
        assert text in card.text, text


def test_card_without_protocol_or_coverage_invents_none(folder: Path) -> None:
    write(folder, train=None, evaluated={"eval_top1_accuracy": 0.5})
    card = fill_model_card(folder, dataset="UCF101")
    assert scores(card) == {"Top-1 accuracy": 50.0}
    assert card.data.eval_results[0].dataset_name == "UCF101"
    assert "protocol (views) was not recorded" in card.text
    assert "How many videos were evaluated was not recorded" in card.text


def test_data_of_the_evaluation_is_not_taken_for_that_of_training(folder: Path) -> None:
    write(folder, train=None, evaluated=EVALUATED | {"dataset": "kinetics"})
    card = fill_model_card(folder)
    assert "training data was not recorded" in card.text
    assert card.data.eval_results[0].dataset_name == "Kinetics-2"


@pytest.mark.parametrize(
    ("scheme", "remote"), [("space_only", False), ("axial", True), ("sparse_local_global", True)]
)
def test_card_says_how_to_load(folder: Path, scheme: str, remote: bool) -> None:
    TimeSformerConfig(attention_type=scheme).save_pretrained(folder)
    card = fill_model_card(folder, repo_id="me/falling")
    assert ("trust_remote_code=True" in card.text) == remote
    assert f"`{scheme}` attention" in card.text
    assert "needs `pip" not in card.text


@pytest.mark.parametrize("base", ["facebook/timesformer-hr-finetuned-ssv2", "converted"])
def test_licence_of_the_official_weights_cannot_be_shed(
    folder: Path, tmp_path: Path, base: str
) -> None:
    if base == "converted":
        base = tmp_path / "converted"
        base.mkdir()
        (base / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# converted")
    with pytest.raises(ValueError, match=r"'mit'.*cc-by-nc-4\.0"):
        fill_model_card(folder, base_model=str(base), license="mit")
    assert fill_model_card(folder, base_model=str(base)).data.license == "cc-by-nc-4.0"


def test_licence_of_other_base_models_is_taken_over_or_replaced(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# a ViT")
    assert fill_model_card(folder, base_model=str(tmp_path)).data.license == "apache-2.0"
    assert fill_model_card(folder, base_model=str(tmp_path), license="mit").data.license == "mit"
    # a path means nothing elsewhere
    assert fill_model_card(folder, base_model=str(tmp_path)).data.base_model is None


@pytest.mark.parametrize(
    ("name", "text"), [("train_results.json", "{"), ("eval_results.json", "[1]")]
)
def test_broken_results_are_an_error_that_names_the_file(
    folder: Path, name: str, text: str
) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        fill_model_card(folder)
