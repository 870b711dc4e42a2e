"""Videos that are pictures: a folder or a list of picture files, and animated WebP, which FFmpeg
does not decode.

Read with Pillow. Frames are RGB as the other decoders give them: turned as their EXIF data says,
transparency laid on white, more than 8 bits scaled to 8.
"""

import io
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, Protocol

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from transformers.video_utils import VideoMetadata

from .decoding_limits import DecodeLimits, VideoDecodeError
from .decoding_pixels import scaled_size
from .decoding_segment import FrameTimes, TimedVideoMetadata, frames_in_segment
from .decoding_source import Source, describe_source, open_source
from .frame_folder import PICTURE_FORMATS, FrameFiles
from .memory_frames import frames_to_tensor, to_channels, to_levels
from .timed_frames import choose_frames, cut_metadata


# What Pillow's readers of these formats raise for files that are damaged or too large.
PICTURE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    IndexError,
    MemoryError,
    struct.error,
    PIL.Image.DecompressionBombError,
)


class Pictures(Protocol):
    """A video that is pictures: how many, how large, when each is shown, and each by its number."""

    name: str
    count: int
    size: tuple[int, int]  # (height, width) of the first

    def times(self) -> FrameTimes | None: ...

    def read(self, number: int) -> PIL.Image.Image: ...


class PictureFiles:
    """The files of a `FrameFiles`."""

    def __init__(self, files: FrameFiles, limits: DecodeLimits):
        self.name, self.count = files.name, len(files.paths)
        self._files, self._limits = files, limits
        self.size = self._open(0, lambda picture: (picture.height, picture.width))

    def times(self) -> FrameTimes | None:
        rate = self._files.frame_rate
        return FrameTimes.evenly(self.count, rate) if rate else None

    def read(self, number: int) -> PIL.Image.Image:
        return self._open(number, lambda picture: PIL.ImageOps.exif_transpose(picture).copy())

    def _open(self, number: int, use: Callable[[PIL.Image.Image], object]):
        path = self._files.paths[number]
        with (
            open_source(path, self._limits, allow_urls=False) as opened,
            _named(self.name, f"picture {path}"),
        ):
            opened.file.seek(0)
            with PIL.Image.open(opened.file, formats=PICTURE_FORMATS) as picture:
                _check_pixels(picture, self.name, self._limits)
                return use(picture)


class AnimatedWebp:
    """The frames of one WebP file; those before a frame are decoded for it, so ask in ascending
    order.
    """

    def __init__(self, file: BinaryIO, name: str, limits: DecodeLimits):
        self.name = name
        with _named(name, "WebP file"):
            content = file.read()
            self._milliseconds = _webp_durations(content)
            self._picture = PIL.Image.open(io.BytesIO(content), formats=("WEBP",))
            _check_pixels(self._picture, name, limits)
            self.count = getattr(self._picture, "n_frames", 1)
        self.size = self._picture.height, self._picture.width

    def times(self) -> FrameTimes | None:
        durations = self._milliseconds
        if len(durations) != self.count or sum(durations) == 0:
            return None
        starts = np.cumsum([0, *durations[:-1]])
        return FrameTimes(starts / 1000, 0.0005)

    def read(self, number: int) -> PIL.Image.Image:
        with _named(self.name, f"frame {number}"):
            self._picture.seek(number)
            return self._picture.copy()


def _webp_durations(content: bytes) -> list[int]:
    """How long each frame of an animated WebP is shown, in milliseconds; empty for one that is
    still.

    The file is a list of chunks (4 letters, a size of 4 bytes, content padded to an even number of
    bytes). That of a frame, ANMF, has its duration in bytes 12 to 15 of the content.
    """
    durations, at = [], 12  # after RIFF, size, WEBP
    while at + 8 <= len(content):
        kind, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        if kind == b"ANMF":
            durations.append(int.from_bytes(content[at + 20 : at + 23], "little"))
        at += 8 + size + size % 2
    return durations


@contextmanager
def open_pictures(
    source: Source | FrameFiles, limits: DecodeLimits, frame_rate: float | None
) -> Iterator[Pictures | None]:
    """Yield the pictures that `source` consists of, or None where it is for FFmpeg to open.

    Raises:
        VideoDecodeError: a folder that is no video, or a first picture that cannot be read.
        ValueError: a frame rate that is not positive, or one for a file, which has its own.
    """
    if frame_rate is not None and not frame_rate > 0:
        raise ValueError(
            f"frame_rate must be a positive number of frames a second, got {frame_rate!r}"
        )
    if isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
        source = FrameFiles.from_folder(source, frame_rate)
    if isinstance(source, FrameFiles):
        if len(source.paths) > limits.max_frames:
            message = f"has {len(source.paths)} pictures, more than {limits.max_frames} (DecodeLimits.max_frames)"
            raise VideoDecodeError(source.name, "limit", message)
        yield PictureFiles(source, limits)
    elif frame_rate is not None:
        message = (
            f"frame_rate={frame_rate} is for folders and lists of pictures; "
            f"{describe_source(source)} has its own"
        )
        raise ValueError(message)
    elif _begins_as_webp(source):
        with open_source(source, limits, allow_urls=False) as opened:
            if opened.size > limits.max_bytes:
                message = f"is {opened.size} bytes long, more than the limit of {limits.max_bytes}"
                raise VideoDecodeError(opened.name, "limit", f"{message} (DecodeLimits.max_bytes)")
            opened.file.seek(0)
            yield AnimatedWebp(opened.file, opened.name, limits)
    else:
        yield None


def _begins_as_webp(source: Source) -> bool:
    """Whether the first bytes are those of WebP; what cannot be looked at is left to FFmpeg's side
    to refuse.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        head = bytes(source[:12])
    elif isinstance(source, (str, os.PathLike)):
        if not os.path.isfile(source):
            return False
        try:
            with open(source, "rb") as file:
                head = file.read(12)
        except OSError:
            return False
    elif hasattr(source, "seek") and (not hasattr(source, "seekable") or source.seekable()):
        source.seek(0)
        head = source.read(12)
        source.seek(0)
    else:
        return False
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def describe_pictures(
    pictures: Pictures, start: float | None, end: float | None
) -> tuple[TimedVideoMetadata, range]:
    """The metadata of a segment of a video of pictures, and the numbers that its frames have in the
    whole.
    """
    times = pictures.times()
    numbers = frames_in_segment(pictures.name, lambda: times, pictures.count, start, end)
    height, width = pictures.size
    metadata = TimedVideoMetadata(
        total_num_frames=pictures.count,
        fps=_mean_rate(times),
        width=width,
        height=height,
        video_backend="pillow",
    )
    cut_metadata(metadata, times, numbers)
    return metadata, numbers


def _mean_rate(times: FrameTimes | None) -> float | None:
    """Frames a second from the first frame's begin to the last one's."""
    if times is None or len(times.seconds) < 2 or times.seconds[-1] == 0:
        return None
    return (len(times.seconds) - 1) / float(times.seconds[-1])


def decode_pictures(
    pictures: Pictures,
    indices: Iterable[int] | Callable[[VideoMetadata], Iterable[int]],
    short_side: int | None,
    start: float | None,
    end: float | None,
) -> tuple[torch.Tensor, VideoMetadata]:
    """As `decode_video`: frames `(T, 3, H, W)`, uint8, by their numbers, and the metadata.

    Raises VideoDecodeError for a number that is no frame, and for a picture that cannot be read or
    is of another size.
    """
    metadata, numbers = describe_pictures(pictures, start, end)
    chosen = choose_frames(pictures.name, metadata, indices)
    metadata._times = None
    read: dict[int, torch.Tensor] = {}
    for index in sorted(set(chosen)):
        read[index] = picture_to_frame(pictures.read(numbers[index]), short_side)
        first = next(iter(read.values()))
        if read[index].shape != first.shape:
            (height, width), (first_height, first_width) = read[index].shape[1:], first.shape[1:]
            message = (
                f"changes its frame size: frame {numbers[index]} is {width}x{height}, others are "
            )
            raise VideoDecodeError(
                pictures.name, "frame-size", f"{message}{first_width}x{first_height}"
            )
    empty = torch.empty((0, 3, *pictures.size), dtype=torch.uint8)
    frames = torch.stack([read[index] for index in chosen]) if chosen else empty
    metadata.frames_indices = chosen
    metadata.height, metadata.width = frames.shape[2:]
    return frames, metadata


def picture_to_frame(picture: PIL.Image.Image, short_side: int | None) -> torch.Tensor:
    """A picture of any mode to uint8 `(3, H, W)`; scaled as `FrameWriter` scales, with an
    antialiased triangle.
    """
    frames = frames_to_tensor([picture], num_channels=3)  # (1, c, h, w)
    frame = to_channels(to_levels(frames), 3)[0].round().to(torch.uint8)
    height, width = scaled_size(frame.shape[1], frame.shape[2], short_side)
    if (height, width) == frame.shape[1:]:
        return frame
    image = PIL.Image.fromarray(frame.permute(1, 2, 0).numpy())  # (3, h, w) -> (h, w, 3)
    scaled = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).contiguous()


def _check_pixels(picture: PIL.Image.Image, name: str, limits: DecodeLimits) -> None:
    if picture.width * picture.height > limits.max_pixels:
        message = (
            f"has frames of {picture.width}x{picture.height} pixels, more than {limits.max_pixels}"
        )
        raise VideoDecodeError(name, "limit", f"{message} (DecodeLimits.max_pixels)")


@contextmanager
def _named(name: str, what: str) -> Iterator[None]:
    """Turn what Pillow raises into a `VideoDecodeError` that names the video and the picture."""
    try:
        yield
    except VideoDecodeError:
        raise
    except PICTURE_ERRORS as error:
        raise VideoDecodeError(name, "damaged", f"{what} cannot be read: {error}") from error
