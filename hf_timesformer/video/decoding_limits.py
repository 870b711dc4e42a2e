"""What a video may cost, and the one error of one that cannot be decoded as asked."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import av.error


# What PyAV raises for bad input: its own family, what its I/O callbacks pass on, and the built-in
# errors of its Python layer (rates of 0/0, sizes that do not fit, text that does not decode,
# allocations that FFmpeg refuses).
LIBRARY_ERRORS = (
    av.error.FFmpegError,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    IndexError,
    MemoryError,
    ZeroDivisionError,
    RuntimeError,
)


class VideoDecodeError(ValueError):
    """A video that cannot be decoded as asked. A `ValueError`.

    Args:
        source: names the video.
        reason: a short word that stays the same between versions: `not-found`, `not-a-file`,
            `read` (the file system failed), `url`, `fetch`, `container`, `no-video-stream`,
            `codec`, `damaged`, `limit`, `index`, `segment`, `frame-size` or `pictures`; `unknown`
            where torch raised it again, in another process, from its text alone.
        message: what was wrong and where; the error's text is source and message.
    """

    def __init__(self, source: str, reason: str = "unknown", message: str | None = None):
        # One text alone is how torch re-raises in the main process what a DataLoader worker raised.
        super().__init__(source if message is None else f"{source}: {message}")
        self.source = source
        self.reason = reason
        self.message = message

    def __reduce__(self):
        # Exceptions are pickled by `args`; DataLoader workers send this one to the main process.
        return type(self), (self.source, self.reason, self.message)


@dataclass(frozen=True)
class DecodeLimits:
    """How much one video may cost before it is refused. A local file may be of any size: what is
    read of it counts.

    Attributes:
        max_bytes: bytes that are held in memory (a video given as bytes, or downloaded).
        max_read_bytes: bytes that are read of a local file for one wanted frame.
        max_pixels: pixels of a frame, decoded or scaled.
        max_frames: frames of the video.
        max_seconds: seconds of work for one wanted frame (CPU time; for a download, time by the
            wall).
    """

    max_bytes: int = 2 * 1024**3
    max_read_bytes: int = 64 * 1024**3
    max_pixels: int = 8192 * 4608
    max_frames: int = 4_000_000
    max_seconds: float = 120.0

    @classmethod
    def of(cls, given: "DecodeLimits | Mapping[str, Any] | None") -> "DecodeLimits | None":
        """Limits as they are, or from a dict of some of them.

        Args:
            given: a `DecodeLimits`, a dict such as `{"max_seconds": 600}`, or None.

        Returns:
            The limits, with the defaults for what the dict leaves out; None for None.

        Raises:
            ValueError: the dict has a name that is no limit.
        """
        if given is None or isinstance(given, DecodeLimits):
            return given
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise ValueError(f"limits has no {name!r}: choose of {', '.join(known)}")
        return cls(**given)


class Budget:
    """Called now and then with the bytes just read; raises `VideoDecodeError` where one frame costs
    too much.

    Work is measured in CPU time (`clock`), so that a busy machine breaks no video; waiting for a
    server, by the wall.
    """

    def __init__(
        self, name: str, limits: DecodeLimits, clock: Callable[[], float] = time.thread_time
    ):
        self._name = name
        self._limits = limits
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Begin anew: a wanted frame is there."""
        self._num_bytes = 0
        self._end = self._clock() + self._limits.max_seconds

    def __call__(self, num_bytes: int = 0) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes > self._limits.max_read_bytes:
            message = f"needs more than {self._limits.max_read_bytes} bytes read for one frame"
            raise VideoDecodeError(self._name, "limit", f"{message} (DecodeLimits.max_read_bytes)")
        if self._clock() > self._end:
            message = f"took longer than the limit of {self._limits.max_seconds:g} s for one frame"
            raise VideoDecodeError(self._name, "limit", f"{message} (DecodeLimits.max_seconds)")
