"""Decoded pictures to RGB pixels in one tensor: colour conversion, scaling, orientation."""

from collections.abc import Sequence
from typing import cast

import av
import numpy as np
import torch
from av.sidedata.sidedata import SideData
from av.video.reformatter import Interpolation, VideoReformatter
from transformers.utils import logging

from .decoding_limits import VideoDecodeError
from .decoding_source import VideoFile


logger = logging.get_logger(__name__)

# PyAV's own default, so that frames of full size equal `to_ndarray("rgb24")`; and for scaling,
# swscale widens its triangle to the scale, which is what "antialiased bilinear" means. Costlier
# flags come no nearer.
FLAGS = Interpolation.BILINEAR


class FrameWriter:
    """Writes converted frames to their places in a uint8 tensor `(T, H, W, 3)`; other frames are
    never converted.
    """

    def __init__(
        self, numbers: list[int], short_side: int | None, size_change: str, video: VideoFile
    ):
        self.places: dict[int, list[int]] = {}
        for place, number in enumerate(numbers):
            self.places.setdefault(number, []).append(place)
        self.frames: torch.Tensor | None = None
        self._count = len(numbers)
        self._short_side = short_side
        self._size_change = size_change
        self._video = video
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None  # height and width of the video's first frame
        self.missing = set(self.places)  # frame numbers asked for and not written yet

    def clamp(self, count: int) -> None:
        """Let frame `count - 1` stand for all later ones."""
        for number in [number for number in self.missing if number >= count]:
            self.places.setdefault(count - 1, []).extend(self.places.pop(number))
            self.missing.discard(number)
            self.missing.add(count - 1)

    def learn_size(self, frame: av.VideoFrame) -> None:
        """Take the size of the first frame that this is told of for the video's."""
        if self._size is None:
            self._size = (frame.height, frame.width)

    def see(self, number: int, frame: av.VideoFrame) -> None:
        """Write `frame` where it is asked for and not there yet."""
        if number == 0:
            self.learn_size(frame)
        if number in self.missing:
            self.write(number, frame)

    def take_back(self, numbers: list[int]) -> None:
        """Count these frames as not written: they were decoded from something damaged."""
        self.missing.update(number for number in numbers if number in self.places)

    def write(self, number: int, frame: av.VideoFrame) -> None:
        """Convert `frame` and copy it to every place that asks for frame `number`.

        Raises:
            VideoDecodeError: the frame has another size than the first, and that is to be
                refused.
        """
        self.learn_size(frame)
        if self._size != (frame.height, frame.width):
            self._check_size_change(number, frame)
        pixels = orient(self._to_rgb(frame), display_matrix(frame))  # (h, w, 3)
        if self.frames is None:
            self.frames = torch.empty((self._count, *pixels.shape), dtype=torch.uint8)
        if pixels.shape != self.frames.shape[1:]:
            (height, width), first = pixels.shape[:2], self.frames.shape[1:3]
            message = f"turns on its side: frame {number} is {width}x{height}, others are {first[1]}x{first[0]}"
            raise VideoDecodeError(self._video.name, "frame-size", message)
        target = self.frames.numpy()
        for place in self.places[number]:
            target[place] = pixels
        self.missing.discard(number)
        self._video.check.restart()

    def _check_size_change(self, number: int, frame: av.VideoFrame) -> None:
        assert self._size is not None  # `write` has told it
        first = f"{self._size[1]}x{self._size[0]}"
        message = f"changes its frame size: frame {number} is {frame.width}x{frame.height}, the first is {first}"
        if self._size_change == "refuse":
            raise VideoDecodeError(self._video.name, "frame-size", message)
        logger.warning_once(
            f"{self._video.name}: changes its frame size; all frames are scaled to {first}"
        )

    def _to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """A frame of the decoder as uint8 RGB `(h, w, 3)`, scaled, not yet turned for display."""
        assert self._size is not None  # `write` has told it
        height, width = scaled_size(*self._size, self._short_side)
        if height * width > self._video.limits.max_pixels:
            message = (
                f"has frames of {width}x{height} pixels, more than {self._video.limits.max_pixels}"
            )
            raise VideoDecodeError(
                self._video.name, "limit", f"{message} (DecodeLimits.max_pixels)"
            )
        # One thread: swscale's pool would hang in a forked DataLoader worker.
        return self._reformatter.reformat(
            frame, width, height, format="rgb24", interpolation=FLAGS, threads=1
        ).to_ndarray()


def scaled_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Height and width once the shorter side is `short_side` (torchvision truncates the longer)."""
    if short_side is None or min(height, width) == 0:
        return height, width
    long_side = int(short_side * max(height, width) / min(height, width))
    return (short_side, long_side) if height <= width else (long_side, short_side)


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int] | None:
    """The 2x2 part `(a, b, c, d)` of the frame's display matrix, which maps (x, y) to (ax + cy, bx
    + dy).
    """
    # By number: up to PyAV 18 one iterates over the data, from 19 on over their types.
    side_data = cast("Sequence[SideData]", frame.side_data)
    for data in (side_data[number] for number in range(len(side_data))):
        if data.type.name == "DISPLAYMATRIX":
            values = np.frombuffer(bytes(data), np.int32)
            return int(values[0]), int(values[1]), int(values[3]), int(values[4])
    return None


def orient(pixels: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
    """Turn and flip `(h, w, 3)` as the display matrix says, to the nearest quarter turn."""
    if matrix is None:
        return pixels
    a, b, c, d = matrix
    if abs(a) + abs(d) >= abs(b) + abs(c):
        flip_x, flip_y = a < 0, d < 0
    else:
        pixels = pixels.swapaxes(0, 1)  # (h, w, 3) -> (w, h, 3)
        flip_x, flip_y = c < 0, b < 0
    return pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
