"""A saved processor names its class only if no model config is in the folder.

The Auto classes go by that name, and where there is none by the model's config. The config is the
better guide: it leads to our classes where this package is imported, and to stock's elsewhere. A
processor saved without a model has only the name. A video processor then names stock's class: our
registration leads from there to ours, and plain transformers knows no other.
"""

import json
import os
from pathlib import Path

from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME


# file -> its key, and the class that a processor without a model names
TYPES = {
    IMAGE_PROCESSOR_NAME: ("image_processor_type", "TimeSformerImageProcessor"),
    VIDEO_PROCESSOR_NAME: ("video_processor_type", "TimesformerVideoProcessor"),
}


def name_class(folder: str | os.PathLike, file_name: str) -> None:
    """Write the class's name into a processor's file in `folder`, unless a model's config is there."""
    if not Path(folder, CONFIG_NAME).exists():
        key, name = TYPES[file_name]
        file = Path(folder, file_name)
        _write(file, json.loads(file.read_text(encoding="utf-8")) | {key: name})


def forget_class(folder: str | os.PathLike, file_name: str) -> None:
    """Remove the name that `name_class` writes from a processor's file, if both are there; other
    names stay.
    """
    key, name = TYPES[file_name]
    file = Path(folder, file_name)
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if settings.get(key) == name:
        del settings[key]
        _write(file, settings)


def _write(file: Path, settings: dict) -> None:
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
