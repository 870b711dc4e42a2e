"""From pixels to tokens: the patch embedding, CLS, and their places in space and time."""

import torch
from torch import nn

from .attention_functions import at_least_float32
from .configuration_timesformer import TimeSformerConfig, pair
from .schemes import Grid, sides_of
from .upstream import is_transformed


class TimeSformerPatchEmbeddings(nn.Module):
    """A linear map of each patch."""

    def __init__(self, config: TimeSformerConfig):
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size = pair(config.patch_size)
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, self.patch_size, self.patch_size
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(b, t, channels, height, width) -> (b, h, w, t, d)`. Raises ValueError for sizes that
        do not fit."""
        if pixel_values.ndim != 5 or 0 in pixel_values.shape:
            raise ValueError(
                "pixel_values must be (batch, frames, channels, height, width), none of them 0, or with views after "
                f"the batch for the classifier; got the shape {tuple(pixel_values.shape)}."
            )
        _, frame_count, channels, *size = pixel_values.shape
        if channels != self.num_channels:
            raise ValueError(
                f"pixel_values has {channels} channels, the model takes {self.num_channels}."
            )
        for name, pixels, patch in zip(("height", "width"), size, self.patch_size):
            if pixels % patch:
                raise ValueError(
                    f"The frames' {name} {pixels} is no multiple of the patch {name} {patch}."
                )
        frames = pixel_values.flatten(0, 1)
        if (
            frames.device.type == "cpu" and not is_transformed()
        ):  # 96 frames: 106 ms in place of 196, with the copy; 8 frames: the same
            frames = frames.contiguous(memory_format=torch.channels_last)
        patches = self.projection(frames)  # (b*t, d, h, w)
        return patches.unflatten(0, (-1, frame_count)).permute(0, 3, 4, 1, 2)


class TimeSformerEmbeddings(nn.Module):
    """Patch tokens and CLS with their places in space and time."""

    def __init__(self, config: TimeSformerConfig):
        super().__init__()
        self.config = config
        rows, columns = config.grid_size
        self.patch_embeddings = TimeSformerPatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        kind = config.position_embedding_type
        self.position_embeddings = self.time_embeddings = None
        if kind != "none":
            self.position_embeddings = nn.Parameter(
                torch.zeros(1, rows * columns + 1, config.hidden_size)
            )
        if kind == "space_time" and config.attention_type != "space_only":
            self.time_embeddings = nn.Parameter(
                torch.zeros(1, config.num_frames, config.hidden_size)
            )

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        """`(b, t, channels, height, width) -> (b, 1 + h*w*t, d)` and the grid `(h, w, t)`."""
        patches = self.patch_embeddings(pixel_values)  # (b, h, w, t, d)
        batch, grid = pixel_values.shape[0], sides_of(patches)
        cls: torch.Tensor = self.cls_token
        mode = self.config.position_interpolation
        if self.position_embeddings is not None:
            positions = resize_positions(
                self.position_embeddings, self.config.grid_size, grid[:2], mode
            )
            cls = cls + positions[:, :1]
            patches = patches + positions[:, 1:].unflatten(1, grid[:2])[:, :, :, None]
        if self.time_embeddings is not None:
            patches = patches + resize_times(self.time_embeddings, grid[2], mode)[:, None, None]
        tokens = torch.cat((cls.expand(batch, -1, -1), patches.flatten(1, 3)), dim=1)
        return self.dropout(tokens), grid

    def absent_embeddings(self) -> dict[str, torch.Tensor]:
        """The embeddings that an ablation lacks, as zeros: they add nothing where stock reads
        them. Positions `(1, 1 + h*w, d)`, times `(1, t, d)`."""
        rows, columns = self.config.grid_size
        lengths = {"position_embeddings": rows * columns + 1}
        if self.config.attention_type != "space_only":
            lengths["time_embeddings"] = self.config.num_frames
        return {
            name: torch.zeros(1, length, self.config.hidden_size, dtype=self.cls_token.dtype)
            for name, length in lengths.items()
            if getattr(self, name) is None
        }


def resize_positions(
    embeddings: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int], mode: str
) -> torch.Tensor:
    """Resample `(1, 1 + rows*columns, d)` from `grid` to `new_grid`, CLS apart; `mode` is
    "nearest" or "bicubic"."""
    if tuple(grid) == tuple(new_grid):
        return embeddings
    cls, patches = embeddings[:, :1], embeddings[:, 1:].unflatten(1, grid)  # (1, rows, columns, d)
    patches = _resample(patches.permute(0, 3, 1, 2), new_grid, mode)
    return torch.cat((cls, patches.flatten(2).transpose(1, 2)), dim=1)


def resize_times(embeddings: torch.Tensor, num_frames: int, mode: str) -> torch.Tensor:
    """Resample `(1, frames, d)` to `num_frames`; linearly where `mode` is "bicubic", which has no
    form in one axis."""
    # an exported graph may leave it open
    if isinstance(num_frames, int) and embeddings.shape[1] == num_frames:
        return embeddings
    mode = "linear" if mode == "bicubic" else mode
    return _resample(embeddings.transpose(1, 2), (num_frames,), mode).transpose(1, 2)


def _resample(values: torch.Tensor, size: tuple[int, ...], mode: str) -> torch.Tensor:
    """`(1, d, *sizes) -> (1, d, *size)` by `nn.functional.interpolate`, in fp32 at least and given
    back as it was."""
    precise = values.to(at_least_float32(values.dtype))
    return nn.functional.interpolate(precise, size=tuple(size), mode=mode).to(values.dtype)
