"""Which versions a result was made with, for reports and model cards."""

import platform
from importlib.metadata import PackageNotFoundError, version


PACKAGES = (
    "hf-timesformer",
    "transformers",
    "torch",
    "torchvision",
    "datasets",
    "accelerate",
    "av",
    "numpy",
)


def installed_versions() -> dict[str, str]:
    """Versions of Python (`python`) and of the packages that figures depend on, as far as they are
    installed.

    A package that is only on the path, such as a checkout or the code of a Space, has no version
    and is left out.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
