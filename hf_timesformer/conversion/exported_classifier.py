"""A graph that was exported, called as the model is: what all formats share, and how a folder's
format is told.
"""

import importlib
import os
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from transformers import AutoConfig
from transformers.modeling_outputs import ImageClassifierOutput

from ..model.configuration_timesformer import TimeSformerConfig


INPUT, OUTPUT = "pixel_values", "logits"
PRECISIONS = ("fp32", "bf16", "int8")


def check_precision(precision: str | None) -> None:
    """Raises ValueError for a precision that no format has; None stands for a format's own."""
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")


class ExportedClassifier(nn.Module):
    """A graph with fixed frames and sizes and any batch. Subclasses set `shape` and `precision` and
    run clips.

    Args:
        folder: it holds the config beside the graph.

    Attributes:
        config: the model's, with its labels.
        shape: what a clip must be, `[frames, channels, height, width]`.
        precision: what the graph computes in, such as "fp32", "bf16" or "int8".
    """

    shape: list[int]
    precision: str

    def __init__(self, folder: str | os.PathLike):
        super().__init__()
        self.config: TimeSformerConfig = AutoConfig.from_pretrained(folder)

    def run(self, clips: torch.Tensor) -> torch.Tensor:
        """Logits `(n, labels)` of `clips` `(n, frames, channels, height, width)`, fp32 on the CPU."""
        raise NotImplementedError

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        """Logits of `(b, t, c, h, w)`, or of `(b, views, t, c, h, w)`: then their mean over the
        views.

        Raises:
            ValueError: for clips of another shape than the graph's.
        """
        views = pixel_values.shape[1] if pixel_values.ndim == 6 else None
        clips = pixel_values.flatten(0, 1) if views is not None else pixel_values
        if list(clips.shape[1:]) != self.shape:
            raise ValueError(
                f"This graph takes clips (frames, channels, height, width) = {tuple(self.shape)}, got "
                f"{tuple(clips.shape[1:])}: prepare them with the processor beside it, or export another graph."
            )
        logits = self.run(clips.float().cpu())
        if views is not None:
            # (b*views, labels) -> (b, labels)
            logits = logits.unflatten(0, (-1, views)).mean(dim=1)
        return ImageClassifierOutput(logits=logits)


def require(name: str, extra: str) -> ModuleType:
    """The module of that name. Raises ModuleNotFoundError that says which extra brings it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        message = f"This export needs {error.name}: pip install 'hf-timesformer[{extra}]'"
        raise ModuleNotFoundError(message, name=error.name) from error


def refuse_own_folder(model: str, folder: Path) -> None:
    """Raises ValueError where an export would be written over the model that it is made from."""
    if folder.resolve() == Path(model).resolve():
        raise ValueError(f"{folder} holds the model itself: give another folder")
