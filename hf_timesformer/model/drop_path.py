"""Stochastic depth."""

from collections.abc import Callable

import torch
from torch import nn


class TimeSformerDropPath(nn.Module):
    """A residual branch is dropped for whole clips of the batch (Huang et al. 2016, "Deep Networks
    with Stochastic Depth"), and scaled in the others so that the mean stays."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    @property
    def is_active(self) -> bool:
        return self.training and self.rate > 0.0

    def draw(self, batch: int, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """Draw once for each clip: what is to be done to an update `(b, ..., d)`, or to several
        that go together."""
        if not self.is_active:
            return lambda update: update
        keep = torch.rand(batch, device=device) >= self.rate
        return lambda update: update * keep.view(-1, *[1] * (update.ndim - 1)) / (1 - self.rate)

    def forward(self, update: torch.Tensor) -> torch.Tensor:
        """`(b, ..., d)` -> the same. One number is drawn for each clip, whatever follows the
        batch."""
        return self.draw(update.shape[0], update.device)(update)
