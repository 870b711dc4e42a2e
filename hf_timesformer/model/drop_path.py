"""Stochastic depth."""

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

    def forward(self, update: torch.Tensor) -> torch.Tensor:
        """`(b, ..., d)` -> the same. One number is drawn for each clip, whatever follows the
        batch."""
        if not self.is_active:
            return update
        keep = (
            torch.rand(update.shape[0], *[1] * (update.ndim - 1), device=update.device) >= self.rate
        )
        return update * keep / (1 - self.rate)
