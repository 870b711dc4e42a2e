"""The console command `timesformer`, beside the package, so that `timesformer --help` need not wait
for the package.

`import hf_timesformer` registers its classes with transformers. For that it imports transformers
and torch, which takes seconds, and it comes before the import of any file of the package, the
commands' own included. So this file makes the package known without running its `__init__.py`,
looks at the command line, and runs `__init__.py` unless only help is asked for or an argument is
wrong. Neither then waits, and a command that works finds the package as everybody else does.
`python -m hf_timesformer` and `python -m hf_timesformer.cli.train` do the same work; only their help
waits.
"""

import importlib.util
import sys
from collections.abc import Callable
from functools import partial


def make_known(name: str) -> Callable[[], None]:
    """Make a package importable without running its `__init__.py`; returns what runs it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    return partial(spec.loader.exec_module, package)


def main() -> None:
    """Run the command that the command line names."""
    run_package = make_known("hf_timesformer")
    from hf_timesformer.cli import __main__ as commands

    if not commands.only_prints(sys.argv[1:]):
        commands.check_arguments(sys.argv[1:])
        run_package()
    commands.main(sys.argv[1:])


if __name__ == "__main__":
    main()
