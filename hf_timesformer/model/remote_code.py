"""The code that a saved model carries, for `trust_remote_code=True` where this package is not
installed."""

import os
import shutil
from pathlib import Path

from .upstream import get_relative_import_files


AUTO_MAP = {
    "AutoConfig": "configuration_timesformer.TimeSformerConfig",
    "AutoModel": "modeling_timesformer.TimeSformerModel",
    "AutoModelForVideoClassification": "modeling_timesformer.TimeSformerForVideoClassification",
    "AutoVideoProcessor": "video_processing_timesformer.TimeSformerVideoProcessor",
    "AutoImageProcessor": "image_processing_timesformer.TimeSformerImageProcessor",
}


def complete_auto_map(auto_map: dict[str, str]) -> dict[str, str]:
    """`AUTO_MAP` under the entries of `auto_map` that name somebody else's classes, or ours in
    another repository.

    Where this file itself is remote code, only with the classes whose files transformers fetched
    beside it.
    """
    own = {name: reference for name, reference in AUTO_MAP.items() if _file(reference).is_file()}
    return own | {
        name: reference
        for name, reference in auto_map.items()
        if reference not in AUTO_MAP.values()
    }


def code_files() -> list[Path]:
    """The modules behind `AUTO_MAP` and what they import, all of them flat files of this package."""
    entries = {path for path in map(_file, AUTO_MAP.values()) if path.is_file()}
    imported = {Path(name) for entry in entries for name in get_relative_import_files(entry)}
    return sorted(entries | imported)


def copy_code(folder: str | os.PathLike) -> list[Path]:
    """Copy `code_files()` into `folder`; returns the copies."""
    return [
        Path(shutil.copy(path, folder))
        for path in code_files()
        if path.parent != Path(folder).resolve()
    ]


def _file(reference: str) -> Path:
    here, name = Path(__file__).resolve().parent, reference.split(".")[0] + ".py"
    beside = here.parent / "video" / name  # in the installed package; a saved folder is flat
    return beside if beside.is_file() else here / name
