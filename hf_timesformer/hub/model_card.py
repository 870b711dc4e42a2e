"""Model cards: one that fills itself from the files of a run, and those of the official model zoo."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from ..model.configuration_timesformer import STOCK_SCHEMES, TimeSformerConfig, pair
from ..versions import installed_versions


OFFICIAL_CODE = "https://github.com/facebookresearch/TimeSformer"
OFFICIAL_LICENSE = "cc-by-nc-4.0"  # of every released weight; what is made from one keeps it
METRICS = {  # key in eval_results.json -> (metric type of the Hub, name for people)
    "top1_accuracy": ("accuracy", "Top-1 accuracy"),
    "top5_accuracy": ("top_5_accuracy", "Top-5 accuracy"),
    "mean_class_accuracy": ("mean_class_accuracy", "Mean class accuracy"),
}
DATASETS = {
    "kinetics": "Kinetics-{labels}",
    "ssv2": "Something-Something-V2",
    "diving48": "Diving-48",
}


def cards_folder() -> Path:
    """The folder of templates and released cards: inside the installed package, beside it in a
    checkout.
    """
    here = Path(__file__).resolve().parents[1]
    return here / "model_cards" if (here / "model_cards").is_dir() else here.parent / "model_cards"


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); write it again or remove it"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def _lookup(results: Mapping[str, Any], name: str) -> Any:
    """`results[name]`, also where Trainer put `eval_` or `test_` in front of it; None where it was
    not recorded.
    """
    return next(
        (
            results[key]
            for key in (name, f"eval_{name}", f"test_{name}")
            if results.get(key) is not None
        ),
        None,
    )


def inherited_license(base_model: str | None) -> str | None:
    """The licence that weights made from `base_model` (a folder or a Hub id) are bound to, as far
    as its card says.
    """
    if not base_model:
        return None
    if str(base_model).startswith("facebook/timesformer-"):
        return OFFICIAL_LICENSE
    folder = Path(base_model)
    try:
        if folder.is_dir():
            card = folder / "README.md"
            return ModelCard.load(card).data.license if card.is_file() else None
        return ModelCard.load(str(base_model)).data.license
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError):
        # no card, no network, or a card without readable metadata: the licence is not known
        return None


def _evaluations(folder: Path) -> list[Path]:
    """Where an evaluation of the model in `folder` may have left its files, the test split before
    others.
    """
    return [folder, folder / "eval_test", *sorted(folder.glob("eval_*"))]


def _results(folder: Path) -> dict[str, Any]:
    return next(
        (
            found
            for path in _evaluations(folder)
            if (found := _read_json(path / "eval_results.json"))
        ),
        {},
    )


def _picture(folder: Path) -> str | None:
    pictures = (path / "confusion_matrix.png" for path in _evaluations(folder))
    return next(
        (picture.relative_to(folder).as_posix() for picture in pictures if picture.is_file()), None
    )


def runs_in_plain_transformers(config: TimeSformerConfig) -> bool:
    """Whether a model of `config` opens without this package and without its code."""
    return config.attention_type in STOCK_SCHEMES and config.classifier_hidden_size is None


def _dataset_name(run: Mapping[str, Any], labels: int) -> str | None:
    """What people call the data of a run: the benchmark's name, or that of its folder."""
    if run.get("dataset") in DATASETS:
        return DATASETS[run["dataset"]].format(labels=labels)
    place = str(run.get("data_dir") or "").rstrip("/")
    return run.get("dataset_name") or (Path(place).name if place else None)


def _protocol(results: Mapping[str, Any]) -> dict[str, Any]:
    """How the results were obtained, as far as the evaluation recorded it."""
    return {
        "sentence": _lookup(results, "protocol"), "views": _lookup(results, "views"),
        "clips": _lookup(results, "num_clips"), "crops": _lookup(results, "num_crops"),
        "expected": _lookup(results, "videos_expected"), "evaluated": _lookup(results, "videos_evaluated"),
        "failed": _lookup(results, "videos_failed"),
    }  # fmt: skip


def _eval_results(results: Mapping[str, Any], dataset: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="video-classification",
            task_name="Video Classification",
            metric_type=kind,
            metric_name=name,
            dataset_type="-".join(dataset.lower().split()),
            dataset_name=dataset,
            dataset_split=_lookup(results, "split"),
            metric_value=round(100 * value, 2),
        )
        for key, (kind, name) in METRICS.items()
        if isinstance(value := _lookup(results, key), (int, float))
    ]


def _checked_license(license: str | None, base_model: str | None) -> str | None:
    bound = inherited_license(base_model)
    if license and bound == OFFICIAL_LICENSE and license != OFFICIAL_LICENSE:
        raise ValueError(
            f"licence {license!r}: weights made from {base_model} stay under {OFFICIAL_LICENSE}"
        )
    return license or bound


def fill_model_card(
    folder: str | Path,
    *,
    repo_id: str | None = None,
    base_model: str | None = None,
    dataset: str | None = None,
    license: str | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> ModelCard:
    """The card of the model in `folder`, filled from its config, `train_results.json` and
    `eval_results.json`.

    What the files do not say and the arguments do not add is left out or said to be unknown, never
    made up; figures are in percent. `dataset` is what it was trained on. `recipe`: hyperparameters
    by name (default: `recipe` in `train_results.json`). `license` defaults to the one of
    `base_model`. Raises OSError without a `config.json`, and ValueError for JSON that cannot be
    read and for another licence on weights made from the official ones.
    """
    folder = Path(folder)
    config = TimeSformerConfig.from_pretrained(folder)
    train, results = _read_json(folder / "train_results.json"), _results(folder)
    base_model = base_model or train.get("base_model") or train.get("model_name_or_path")
    base_name: str | None
    base_id: str | None
    if base_model and Path(base_model).exists():
        # a path of this machine helps nobody else
        base_name, base_id = Path(base_model).resolve().name, None
    else:
        base_name = base_id = base_model
    dataset = dataset or _dataset_name(train, config.num_labels)
    tested_on = _dataset_name(results, config.num_labels) or dataset or "unnamed dataset"
    scores = _eval_results(results, tested_on)
    repo_id = repo_id or folder.resolve().name
    data = ModelCardData(
        model_name=repo_id.split("/")[-1],
        license=_checked_license(license, base_model),
        library_name="transformers",
        pipeline_tag="video-classification",
        tags=["timesformer", "video-classification", config.attention_type.replace("_", "-")],
        base_model=base_id,
        metrics=[score.metric_type for score in scores] or None,
        eval_results=scores or None,
    )
    height, width = pair(config.image_size)
    return ModelCard.from_template(
        data,
        template_path=str(cards_folder() / "template.md"),
        name=data.model_name, repo_id=repo_id, scheme=config.attention_type, plain=runs_in_plain_transformers(config),
        frames=config.num_frames, height=height, width=width,
        labels=[config.id2label[index] for index in range(config.num_labels)],
        base_name=base_name, base_id=base_id, dataset=dataset, train=train,
        recipe=dict(recipe or train.get("recipe") or {}), license=data.license,
        scores=scores, tested_on=tested_on, split=_lookup(results, "split"), protocol=_protocol(results),
        picture=_picture(folder), versions=installed_versions(),
    )  # fmt: skip


# the official model zoo


SOURCES = {
    "Kinetics-400": "YouTube clips of human actions, about ten seconds each",
    "Kinetics-600": "YouTube clips of human actions, about ten seconds each",
    "Something-Something-V2": "short clips that crowd workers filmed of everyday objects being handled",
    "HowTo100M": "narrated instructional videos from YouTube",
}
PROTOCOLS = {
    "Kinetics-400": "The official configuration tests with one clip and three spatial crops of each video.",
    "Something-Something-V2": "The official configuration tests with one clip and three spatial crops of each video.",
}


def _coverage(released: Mapping[str, Any]) -> str | None:
    if "clip_seconds" in released:
        return f"{released['clip_seconds']} s"
    if "sampling_rate" in released:
        return f"{released['frames'] * released['sampling_rate'] / 30:.1f} s at 30 frames a second"
    return None


def released_cards() -> dict[str, ModelCard]:
    """The cards of the official model zoo by name, from the figures in `model_cards/released.json`."""
    cards = {}
    for released in json.loads((cards_folder() / "released.json").read_text(encoding="utf-8")):
        dataset = released["dataset"]
        metrics = [
            ("accuracy", "Top-1 accuracy", "top1"),
            ("top_5_accuracy", "Top-5 accuracy", "top5"),
        ]
        data = ModelCardData(
            model_name=released["card"],
            license=OFFICIAL_LICENSE,
            library_name="transformers",
            pipeline_tag="video-classification",
            tags=["timesformer", "video-classification", "divided-space-time"],
            metrics=[kind for kind, _, key in metrics if key in released],
            eval_results=[
                EvalResult(
                    task_type="video-classification", task_name="Video Classification", metric_type=kind,
                    dataset_type=dataset.lower(), dataset_name=dataset, metric_name=name, metric_value=released[key],
                    source_name="Published in the official model zoo", source_url=f"{OFFICIAL_CODE}#model-zoo",
                )
                for kind, name, key in metrics
                if key in released
            ],
        )  # fmt: skip
        sampling = 'sampling="segments"'
        if "sampling_rate" in released:
            sampling = f"sampling_rate={released['sampling_rate']}"
        cards[released["card"]] = ModelCard.from_template(
            data,
            template_path=str(cards_folder() / "released_template.md"),
            **released,
            protocol=PROTOCOLS.get(dataset),
            source=SOURCES[dataset],
            coverage=_coverage(released),
            tokens=released["frames"] * (released["crop"] // 16) ** 2,
            processor_settings=f"num_frames={released['frames']}, {sampling}, num_crops=3",
        )
    return cards
