"""The windows of a video that are done, kept on disk while the rest is made, so that a killed run
goes on.
"""

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .rows import Rows


class Journal:
    """A file of one JSON line a window, after a first line with the settings that the windows were
    made with.

    `resume=True` reads what is there into `scores` and `features`; else the file begins anew and
    they are empty. A last line that a kill cut short is dropped. Raises ValueError where the file
    was made with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, resume: bool):
        self.path = path
        self.scores, self.features = Rows(), Rows()
        settings = json.loads(json.dumps(settings))  # as they come back from the file
        if not (resume and path.is_file() and self._read(settings)):
            path.write_text(json.dumps(settings) + "\n", encoding="utf-8")

    def _read(self, settings: dict[str, Any]) -> bool:
        """Take over what the file holds; False where it does not even hold its first line."""
        lines = self.path.read_text(encoding="utf-8").split("\n")
        whole, cut = lines[:-1], lines[-1]
        if not whole:
            return False
        found = json.loads(whole[0])
        for name in sorted(settings.keys() | found.keys()):
            if settings.get(name) != found.get(name):
                raise ValueError(
                    f"{self.path} was begun with {name}={found.get(name)!r}, now it is {settings.get(name)!r}: "
                    "go on with the same settings, or leave out --resume to begin anew"
                )
        for line in whole[1:]:
            row = json.loads(line)
            self.scores.append(_unpack(row["scores"]))
            if "features" in row:
                self.features.append(_unpack(row["features"]))
        if cut:
            self.path.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
        return True

    def add(self, rows: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> None:
        """Have the next windows on disk: scores `(labels,)` and, where they are kept, features
        `(hidden,)` of each."""
        with self.path.open("a", encoding="utf-8") as file:
            for scores, features in rows:
                row = {"scores": _pack(scores)}
                if features is not None:
                    row["features"] = _pack(features)
                file.write(json.dumps(row) + "\n")


def _pack(values: np.ndarray) -> str:
    """Scores `(labels,)` or features `(hidden,)` as base64 text of float32 numbers."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _unpack(text: str) -> np.ndarray:
    """The float32 numbers `(n,)` that `_pack` made a text of."""
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
