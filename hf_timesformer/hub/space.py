"""A Hub Space: the page, this package and what they need, in one folder."""

import shutil
from importlib.metadata import requires
from pathlib import Path

from huggingface_hub import SpaceCardData


GRADIO = "gradio>=6.0"
APP = """\"\"\"The page of `timesformer app`, as a Hub Space.\"\"\"

from hf_timesformer.cli.app import main


main()
"""


def requirements() -> list[str]:
    """What this package and the page need, as lines of a `requirements.txt`."""
    return [line for line in requires("hf-timesformer") or [] if "extra ==" not in line] + [GRADIO]


def export_space(folder: str | Path, *, model: str) -> Path:
    """Write a Gradio Space that serves our page with a model.

    Args:
        folder: where the Space's files go; it must be empty or missing.
        model: the model's id on the Hub.

    Returns:
        The folder.

    Raises:
        ValueError: the model is a folder of this machine, or the folder is not empty.
    """
    folder = Path(folder)
    if Path(model).exists():
        raise ValueError(
            f"a Space cannot read the folder {model}: publish the model first and give its Hub id"
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "app.py").write_text(APP, encoding="utf-8")
    package = Path(__file__).resolve().parents[1]
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "MODEL").write_text(f"{model}\n", encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    card = SpaceCardData(title="TimeSformer", sdk="gradio", app_file="app.py", models=[model])
    text = f"---\n{card.to_yaml()}\n---\n\nDrop a video, see what `{model}` takes it for, and where it looked.\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder
