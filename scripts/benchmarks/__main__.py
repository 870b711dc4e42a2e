"""Speed, as ratios in one alternating run: `python scripts/benchmarks <what> [options]`, `-h` for
each.
"""

import argparse
import importlib
import sys


# Each module has `add_arguments(parser)` and `run(args)`; only the one that is asked for is
# imported.
PARTS = {
    "decode": "decode",
    "exported": "exported",
    "formats": "formats",
    "gpu": "gpu",
    "growth": "growth",
    "joints": "joints",
    "label": "label",
    "model": "model",
    "packing": "packing",
    "pipeline": "pipeline",
    "results": "results",
    "small_set": "small_set",
    "stronger": "stronger",
}


def main(argv: list[str] | None = None) -> None:
    """Hand over to the part of the benchmark that the first argument names."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=sorted(PARTS))
    name = parser.parse_args(argv[:1]).what
    part = importlib.import_module(PARTS[name])
    parser = argparse.ArgumentParser(prog=f"benchmarks {name}", description=part.__doc__)
    part.add_arguments(parser)
    part.run(parser.parse_args(argv[1:]))


if __name__ == "__main__":
    main()
