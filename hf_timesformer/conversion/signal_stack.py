"""The stack that signal handlers of this thread run on, put back after OpenVINO has replaced it.

OpenVINO's CPU plugin (seen in 2026.4) gives the thread that loads it a signal stack of its own, for
the registers of AMX. It frees that stack with the plugin, but puts the old one back only where the
plugins end in the reverse order and in the thread that loaded them. Otherwise the thread keeps a
stack that is gone, and the next signal with a handler in Python ends the process without a word: a
DataLoader with workers sets such a handler for SIGCHLD, so the end of any child process is enough.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """`stack_t` of Linux: the address, flags, and the size in bytes."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    )


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """What runs inside may load and drop plugins; afterwards this thread's signal stack is the one
    it was. Outside Linux, where OpenVINO replaces nothing, this does nothing.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    before = _current()
    try:
        yield
    finally:
        if _current().address != before.address:
            # Refused (-1) where the old stack is too small for AMX: OpenVINO's then stays.
            ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)


def _current() -> _Stack:
    stack = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack
