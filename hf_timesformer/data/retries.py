"""Network file systems have hiccups: what fails now may be read a second later, and is no broken
clip.
"""

import errno
import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import av.error


logger = logging.getLogger(__name__)

Result = TypeVar("Result")

PAUSES = (0.2, 1.0, 4.0)  # seconds before the second, third and fourth try
# What will be the same a second later: there is no such file, it is another kind of thing, its name
# is impossible.
LASTING = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


def read_with_retries(read: Callable[[], Result], name: str) -> Result:
    """`read()`, tried again where the file system failed (a stale handle, an I/O error, a time-out,
    no permission).

    Args:
        read: called up to four times; it must start anew each time.
        name: what is read, for the log.

    Raises:
        Exception: what `read` raised at last; at once where no file system is to blame, or the file
            is not there.
    """
    for pause in PAUSES:
        try:
            return read()
        except Exception as error:
            hiccup = file_system_error(error)
            if hiccup is None:
                raise
            logger.warning(
                "%s could not be read (%s), it is tried again in %g s", name, hiccup, pause
            )
            time.sleep(pause)
    return read()


def file_system_error(error: BaseException) -> OSError | None:
    """The error of the file system that `error` is, or comes from; None for any other, and for one
    that lasts.

    FFmpeg's own errors are among Python's (`av.error.OSError`), but tell of what is in the file.
    """
    for cause in _causes(error):
        if not isinstance(cause, OSError) or isinstance(cause, av.error.FFmpegError):
            continue
        if cause.errno is not None:
            return None if cause.errno in LASTING else cause
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
