"""Where a video's bytes come from, what is refused before FFmpeg sees a byte, and how a container
is opened.
"""

import io
import os
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import av
from av.stream import Discard, Disposition

from .decoding_limits import LIBRARY_ERRORS, Budget, DecodeLimits, VideoDecodeError


# Demuxers that read one self-contained media file. Playlists (HLS, DASH, concat, SDP), image
# sequences, devices and filter graphs are left out on purpose: they open further files or
# addresses. (`jpeg_pipe` is what a bare MJPEG stream is taken for: pictures one after another in
# the one file.)
CONTAINERS = (
    "mov,matroska,avi,flv,mpegts,mpeg,mpegvideo,h264,hevc,m4v,mjpeg,jpeg_pipe,gif,apng,ogg,asf,ivf,obu,rm,mxf,"
    "yuv4mpegpipe"
)

# How much PyAV asks of the file object at a time. FFmpeg seeks a lot while it probes, and refills
# all of it each time.
BUFFER_SIZE = 1 << 16

# Tags in whatever encoding keep no video from being opened: PyAV 19 takes them as they are, and knows
# no such argument any more.
FORGIVING: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)

Source = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO


def describe_source(source: Source) -> str:
    """A short printable name of `source` for messages and reports."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>"
    if isinstance(source, (str, os.PathLike)):
        text = os.fsdecode(source)
        return text if len(text) <= 200 else text[:90] + "..." + text[-90:]
    name = getattr(source, "name", None)
    return (
        f"<{type(source).__name__} {name!r}>"
        if isinstance(name, str)
        else f"<{type(source).__name__}>"
    )


class Reader:
    """The only door between FFmpeg and a video's bytes: a seekable file object with a size, a
    deadline and no name.

    After an exception it is at its end: PyAV passes on one exception, and prints those that come on
    top of it. FFmpeg may take a failed read for the end of the file, so `error` keeps what the file
    system said.
    """

    def __init__(self, file: BinaryIO, size: int, check: Budget):
        self._file = file
        self._size = size
        self._check = check
        self._has_failed = False
        self._at = 0  # others read from the same file in between
        self.error: OSError | None = None

    def read(self, size: int) -> bytes:
        if self._has_failed:
            return b""
        self._has_failed = True  # unless the next lines return
        try:
            self._file.seek(self._at)
            data = self._file.read(size)
        except OSError as error:
            self.error = error
            raise
        # PyAV copies whatever comes back into a buffer of `size` bytes, so a careless file object
        # would overrun it.
        data = bytes(data[:size]) if data else b""
        self._at += len(data)
        self._check(len(data))
        self._has_failed = False
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at


@dataclass
class VideoFile:
    """The bytes of one video, open: a seekable file object, its size, and what every step needs to
    bound itself.
    """

    file: BinaryIO
    size: int
    name: str
    limits: DecodeLimits
    check: Budget

    def read_at(self, position: int, size: int) -> bytes:
        """Up to `size` bytes of the file from `position` on."""
        self.file.seek(position)
        data = self.file.read(size)
        self.check(len(data))
        return bytes(data)

    @contextmanager
    def open_stream(self) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
        """Open the container anew and yield it with its first video stream, on one thread; always
        closed again.

        Accepts the demuxers of `CONTAINERS` only, with no protocol and no nested resource.

        Raises:
            VideoDecodeError: no accepted container, too damaged to open, or no video stream that
                can be decoded.
        """
        reader = Reader(self.file, self.size, self.check)
        try:
            container = av.open(
                reader,
                mode="r",
                options={"max_pixels": str(self.limits.max_pixels), "threads": "1"},
                container_options={"format_whitelist": CONTAINERS, "protocol_whitelist": "none"},
                **FORGIVING,
                buffer_size=BUFFER_SIZE,
                io_open=_refuse_nested,
            )
        except VideoDecodeError:
            raise
        except LIBRARY_ERRORS as error:
            self._refuse_failed_read(reader)
            message = f"cannot be opened as a video: {error} (accepted containers: {CONTAINERS.replace(',', ', ')})"
            raise VideoDecodeError(self.name, "container", message) from error
        try:
            yield container, _video_stream(container, self.name, self.limits)
            self._refuse_failed_read(reader)
        except VideoDecodeError:
            self._refuse_failed_read(reader)
            raise
        finally:
            container.close()

    def _refuse_failed_read(self, reader: Reader) -> None:
        """Raise where a read has failed: what came of it, frames or a complaint, is not what the
        file holds.
        """
        if reader.error is not None:
            raise VideoDecodeError(
                self.name, "read", f"could not be read to its end: {reader.error}"
            ) from reader.error


def _refuse_nested(url: str, flags: int, options: dict) -> BinaryIO:
    raise PermissionError(f"a video may not open another resource: {url[:80]!r}")


def _video_stream(
    container: av.container.InputContainer, name: str, limits: DecodeLimits
) -> av.VideoStream:
    """The video stream that players show, made ready to decode on one thread; the others are muted.

    That is the first marked as default, or else the first; cover pictures are none.
    """
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
    if not streams:
        raise VideoDecodeError(name, "no-video-stream", "has no video stream")
    stream = next(
        (stream for stream in streams if stream.disposition & Disposition.default), streams[0]
    )
    decoder = stream.codec_context
    if decoder is None:
        raise VideoDecodeError(name, "codec", "has a video stream that FFmpeg has no decoder for")
    if decoder.width * decoder.height > limits.max_pixels:
        message = (
            f"has frames of {decoder.width}x{decoder.height} pixels, more than {limits.max_pixels}"
        )
        raise VideoDecodeError(name, "limit", f"{message} (DecodeLimits.max_pixels)")
    decoder.thread_count = 1
    decoder.thread_type = "NONE"
    decoder.options = {"max_pixels": str(limits.max_pixels)}
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    return stream


@contextmanager
def open_source(source: Source, limits: DecodeLimits, allow_urls: bool) -> Iterator[VideoFile]:
    """Open `source` for `VideoFile.open_stream`; closes only what it opened itself.

    Raises:
        VideoDecodeError: missing, no regular file, an address that is not allowed, or over the
            limit of size.
    """
    name = describe_source(source)
    check = Budget(name, limits)
    with _open_file(source, name, limits, allow_urls) as (file, size):
        yield VideoFile(file, size, name, limits, check)


@contextmanager
def _open_file(
    source: Source, name: str, limits: DecodeLimits, allow_urls: bool
) -> Iterator[tuple[BinaryIO, int]]:
    """Yield a seekable binary file object for `source` and its size in bytes."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        _check_size(name, len(source), limits)
        yield io.BytesIO(source), len(source)
    elif isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        if "://" in path and urlsplit(path).scheme.lower() in ("http", "https"):
            data = _fetch(path, limits, allow_urls)
            yield io.BytesIO(data), len(data)
            return
        with _open_path(path, name) as file:
            yield file, os.fstat(file.fileno()).st_size
    elif hasattr(source, "read"):
        file = source if _is_seekable(source) else io.BytesIO(_read_all(source, name, limits))
        size = file.seek(0, os.SEEK_END)
        size = file.tell() if size is None else size
        yield file, size
    else:
        raise TypeError(
            f"A video is a path, bytes or a binary file object; got {type(source).__name__}: {str(source)[:80]}"
        )


def _open_path(path: str, name: str) -> BinaryIO:
    """Open a regular file for reading; anything else (directory, pipe, device, missing, an address)
    is refused.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise VideoDecodeError(name, "not-a-file", "is not a regular file")
        return open(path, "rb", buffering=0)
    except (OSError, ValueError) as error:
        if isinstance(error, VideoDecodeError):
            raise
        if "://" in path:
            message = "is an address, not a file; only http(s) addresses can be read, with allow_urls=True"
            raise VideoDecodeError(name, "url", message) from error
        reason = "not-found" if isinstance(error, FileNotFoundError) else "not-a-file"
        raise VideoDecodeError(name, reason, f"cannot be opened: {error}") from error


def _check_size(name: str, size: int, limits: DecodeLimits) -> None:
    if size > limits.max_bytes:
        raise VideoDecodeError(
            name,
            "limit",
            f"is {size} bytes long, more than the limit of {limits.max_bytes} (DecodeLimits.max_bytes)",
        )


def _is_seekable(file: BinaryIO) -> bool:
    seekable = getattr(file, "seekable", None)
    return hasattr(file, "seek") and hasattr(file, "tell") and (seekable is None or seekable())


def _read_all(file: BinaryIO, name: str, limits: DecodeLimits) -> bytes:
    """Read a stream that cannot seek to its end, in pieces, stopping at the limits of size and
    time.
    """
    check = Budget(name, limits, time.monotonic)
    pieces: list[bytes] = []
    total = 0
    while piece := file.read(1 << 20):
        check()
        pieces.append(piece)
        total += len(piece)
        if total > limits.max_bytes:
            message = (
                f"has more bytes than the limit of {limits.max_bytes} (DecodeLimits.max_bytes)"
            )
            raise VideoDecodeError(name, "limit", message)
    return b"".join(pieces)


def _fetch(url: str, limits: DecodeLimits, allow_urls: bool) -> bytes:
    """Download `url` with Python's own client: http(s) only (redirects too), bounded in size and
    time.
    """
    if not allow_urls:
        raise VideoDecodeError(
            url,
            "url",
            "is an address; addresses are refused unless allow_urls=True (download it first, or allow it)",
        )
    # no file:, ftp: or data: handlers, whatever a redirect says
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers={"User-Agent": "hf_timesformer"})
    try:
        with opener.open(request, timeout=min(30.0, limits.max_seconds)) as response:
            declared = response.headers.get("Content-Length")
            if declared is not None and declared.isdigit():
                _check_size(url, int(declared), limits)
            return _read_all(response, url, limits)
    except VideoDecodeError:
        raise
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise VideoDecodeError(url, "fetch", f"could not be downloaded: {error}") from error
