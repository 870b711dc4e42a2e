"""Speed, as ratios in one alternating run: `python scripts/benchmark.py <what> [options]`, `-h` for each."""

import argparse
import importlib
import sys
from pathlib import Path


# Each module has `add_arguments(parser)` and `run(args)`; only the one that is asked for is imported.
PARTS = {
    "decode": "benchmark_decode",
    "growth": "benchmark_growth",
    "model": "benchmark_model",
    "pipeline": "benchmark_pipeline",
}


def main(argv: list[str] | None = None) -> None:
    """Hand over to the part of the benchmark that the first argument names."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=sorted(PARTS))
    name = parser.parse_args(argv[:1]).what
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    part = importlib.import_module(PARTS[name])
    parser = argparse.ArgumentParser(prog=f"benchmark.py {name}", description=part.__doc__)
    part.add_arguments(parser)
    part.run(parser.parse_args(argv[1:]))


if __name__ == "__main__":
    main()
