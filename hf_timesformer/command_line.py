"""What the scripts share at their edge."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# Python puts a script's own folder first on the path, where our evaluate.py would hide the package `evaluate`.
if Path(sys.path[0], "evaluate.py").is_file():
    del sys.path[0]


@contextmanager
def user_errors() -> Iterator[None]:
    """Print a user's mistake (ValueError, OSError) as one line `error: ...` and leave with exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
