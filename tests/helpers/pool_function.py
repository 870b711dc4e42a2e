"""A function for worker processes, in a file that imports nothing heavy."""

import os
import signal


def square_or_die(number: int) -> int:
    """The square; 3 kills its process."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return number * number
