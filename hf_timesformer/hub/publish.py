"""Publish a model on the Hub: weights, processors, code and card of one folder, in one commit or
not at all.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_token,
)
from huggingface_hub.utils import httpx
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.modelcard import extract_hyperparameters_from_trainer

from ..model.configuration_timesformer import TimeSformerConfig
from ..model.remote_code import AUTO_MAP, copy_code
from .model_card import fill_model_card, runs_in_plain_transformers


# What belongs in a model repository. Everything else in the folder stays at home: optimizer states
# and other pickles, checkpoints, and JSON reports, which hold paths of this machine (the card has
# their figures).
PUBLISHED = (
    "README.md", "config.json", "*.safetensors", "model.safetensors.index.json", "*.py",
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
    "confusion_matrix.png", "per_class.csv", "eval_*/confusion_matrix.png", "eval_*/per_class.csv",
)  # fmt: skip
WEIGHTS = re.compile(
    r"(model|pytorch_model|tf_model|flax_model)[^/]*\.(safetensors|bin|h5|msgpack)(\.index\.json)?"
)
TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")


def add_code(folder: str | Path) -> list[Path]:
    """Put the code into a saved model's folder and name it in `config.json`, for
    `trust_remote_code=True`.

    Returns the copies. Raises FileNotFoundError without a `config.json`.
    """
    folder = Path(folder)
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps(stored | {"auto_map": AUTO_MAP}, indent=2, sort_keys=True) + "\n",
        encoding="utf-8",
    )
    return copy_code(folder)


def save_for_hub(
    model: PreTrainedModel, folder: str | Path, *, processor: Any, code: bool | None = None
) -> Path:
    """Save a model with its processor and, where plain transformers cannot run it, the code;
    returns the folder.

    `code=True` adds the code in any case, so that `trust_remote_code=True` gives this package's
    classes.
    """
    folder = Path(folder)
    if getattr(model.config, "auto_map", None):
        del model.config.auto_map  # of the repository that it was loaded from
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if code or (code is None and not runs_in_plain_transformers(model.config)):
        add_code(folder)
    return folder


def complete_folder(
    folder: str | Path, repo_id: str, *, code: bool = False, new_card: bool = False, **card: Any
) -> None:
    """Add to a saved model's folder what publishing it needs, where it is missing: code and card.

    Args:
        folder: what `save_pretrained` wrote.
        repo_id: where it will be published; the card names it.
        code: add the code even where plain transformers runs the model.
        new_card: write the card anew where there is one.
        card: what goes to `fill_model_card`.

    Raises:
        FileNotFoundError: the folder has no `config.json`.
        ValueError: a file of the run, from which the card is filled, cannot be read.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json: give the folder that save_pretrained() wrote"
        )
    if code or not runs_in_plain_transformers(TimeSformerConfig.from_pretrained(folder)):
        add_code(folder)
    if new_card or not (folder / "README.md").is_file():
        fill_model_card(folder, repo_id=repo_id, **card).save(folder / "README.md")


def check_weights(folder: Path) -> None:
    """Raise FileNotFoundError or ValueError unless `folder` holds whole safetensors weights."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if not (folder / "model.safetensors").is_file() and index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    for path in (folder / name for name in sorted(names)):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: save the model with save_pretrained() before publishing"
            )
        try:
            with safe_open(path, framework="pt"):
                pass  # opening compares the header with the length of the file
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged ({error}): save the model again before publishing"
            ) from None


def check_code(folder: Path, config: TimeSformerConfig) -> None:
    """Raise ValueError where the code that `auto_map` names, or that the scheme needs, is not in
    `folder`.
    """
    auto_map = getattr(config, "auto_map", None) or {}
    if not auto_map and not runs_in_plain_transformers(config):
        raise ValueError(
            f"{folder}: plain transformers cannot run attention_type={config.attention_type!r}, so the code has to be"
            " published too: write the folder with hf_timesformer.publishing.save_for_hub"
        )
    missing = {f"{value.split('.')[0]}.py" for value in auto_map.values()} - {
        path.name for path in folder.iterdir()
    }
    if missing:
        raise ValueError(
            f"{folder}: config.json names code that is not there: {', '.join(sorted(missing))}"
        )


def refuse_tokens(paths: Iterable[Path], token: str | None = None) -> None:
    """Raise ValueError for a text file that holds `token` or anything that looks like a Hub token."""
    for path in paths:
        if path.suffix in {".safetensors", ".png"}:
            continue
        data = path.read_bytes()
        if TOKEN.search(data) or (token and token.encode() in data):
            raise ValueError(
                f"{path} holds a Hub access token: nothing was uploaded; remove it and revoke the token"
            )


def files_to_publish(folder: str | Path) -> list[Path]:
    """The files of `folder` that go to the Hub, after checking that together they are a whole
    model.

    Raises FileNotFoundError or ValueError, with the cure, where something is missing or broken.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json: give the folder that save_pretrained() wrote"
        )
    files = sorted(
        {path for pattern in PUBLISHED for path in folder.glob(pattern) if path.is_file()}
    )
    check_weights(folder)
    check_code(folder, TimeSformerConfig.from_pretrained(folder))
    names = {path.name for path in files}
    if not names & {
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "processor_config.json",
    }:
        raise FileNotFoundError(
            f"{folder} has no processor: save one there, or nobody knows how frames are prepared"
        )
    if "README.md" not in names:
        raise FileNotFoundError(
            f"{folder} has no README.md: write the card with fill_model_card(folder).save(...)"
        )
    ModelCard.load(folder / "README.md")  # ValueError where the metadata is broken
    return files


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Publish model",
    token: str | None = None,
    endpoint: str | None = None,
) -> CommitInfo:
    """Publish the model in a folder, in one commit.

    Weights of an earlier push that this one does not replace are deleted by the same commit, so
    no reader ever meets a mixture of two models. An upload that breaks leaves the repository as it
    was; run it again, and what already arrived is not sent twice.

    Args:
        folder: the model, as `complete_folder` left it.
        repo_id: the repository, made where it does not exist.
        private: of a repository that is made; None is the Hub's default.
        revision: the branch; None is `main`.
        commit_message: the commit's text.
        token: by default that of `hf auth login` or `HF_TOKEN`.
        endpoint: another Hub than the public one.

    Returns:
        What the Hub says of the commit.

    Raises:
        FileNotFoundError: weights or config are missing.
        ValueError: weights are damaged, code does not fit, or a file holds a token.
        HfHubHTTPError: the Hub refuses.
        ConnectionError: the upload breaks.
    """
    folder = Path(folder)
    files = files_to_publish(folder)
    refuse_tokens(files, token or get_token())
    api = HfApi(endpoint=endpoint, token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    head = api.repo_info(repo_id, revision=revision)
    names = [path.relative_to(folder).as_posix() for path in files]
    stale = [item.rfilename for item in head.siblings if WEIGHTS.fullmatch(item.rfilename)]
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
        for name, path in zip(names, files)
    ]
    operations += [CommitOperationDelete(path_in_repo=name) for name in stale if name not in names]
    try:
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message,
            revision=revision,
            parent_commit=head.sha,
        )
    # RuntimeError: a large file did not get through
    except (httpx.TransportError, RuntimeError) as error:
        reason = error.__cause__ or error
        raise ConnectionError(
            f"the upload to {repo_id} broke ({reason}); the repository is as it was before: run it again"
        ) from error


class PublishMixin:
    """For `Trainer`: `push_to_hub` that publishes code, processors and a filled card too.

        class MyTrainer(PublishMixin, Trainer): ...

    A token given as `hub_token` moves to `HF_TOKEN` of this process, because Trainer pickles its
    arguments into `training_args.bin`, which it uploads.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.hub_token is not None:
            os.environ["HF_TOKEN"], self.args.hub_token = self.args.hub_token, None

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's own; from here on every saved config names the code, and the code lies beside
        it.
        """
        super().init_hf_repo(*args, **kwargs)
        config = self.accelerator.unwrap_model(self.model).config
        if runs_in_plain_transformers(config) or not self.is_world_process_zero():
            return
        config.auto_map = dict(AUTO_MAP)
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        copy_code(folder)

    def create_model_card(
        self, *, license: str | None = None, finetuned_from: str | None = None, **kwargs: Any
    ) -> None:
        """Write the card that fills itself from the run, in place of Trainer's draft."""
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        base_model = finetuned_from or getattr(
            self.accelerator.unwrap_model(self.model).config, "name_or_path", None
        )
        recipe = extract_hyperparameters_from_trainer(self)
        repo_id = getattr(self, "hub_model_id", None)
        card = fill_model_card(
            folder, repo_id=repo_id, base_model=base_model, license=license, recipe=recipe
        )
        card.save(folder / "README.md")
