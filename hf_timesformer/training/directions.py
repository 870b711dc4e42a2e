"""Directions in the space of tokens, and waves over time: what temporal starts are made of."""

import torch


def right_angles(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """`count` random directions of length 1 at right angles to each other, `(count, size)`."""
    return torch.linalg.qr(torch.randn(size, size, generator=generator))[0][:count]


def cosines(count: int) -> torch.Tensor:
    """The cosines over `count` places but the constant one, of length 1 and at right angles,
    `(count - 1, count)`: half a wave, one wave, one and a half ...
    """
    places = torch.arange(count) + 0.5
    halves = torch.arange(1, count)[:, None]
    return (2 / count) ** 0.5 * torch.cos(torch.pi * halves * places / count)


def distances_to_parts(frames: int, num_parts: int) -> torch.Tensor:
    """From the middle of each frame to the middle of each part of the clip, in parts,
    `(num_parts, frames)`."""
    places = (torch.arange(frames) + 0.5) / frames * num_parts
    middles = torch.arange(num_parts) + 0.5
    return places - middles[:, None]
