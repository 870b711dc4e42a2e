"""Packaging of hf_timesformer: `pip install .` (users), `pip install -e ".[test]"` (developers)."""

import re
from pathlib import Path

from setuptools import find_packages, setup


# 1.21 to 1.24 gave wrong int8 results on an Intel processor with AMX; none after them is for Python
# 3.10.
ONNX_RUNTIME = "onnxruntime>=1.26; python_version >= '3.11'"
EXTRAS = {
    "app": ["gradio>=6.0"],
    "viz": ["matplotlib>=3.8.4"],
    # With 0.19 a quantised base with adapters failed. This is for `peft.get_peft_model`, which is what
    # this package calls; transformers' own `add_adapter` asks for more (0.22, transformers 5.24).
    "peft": ["peft>=0.20"],
    "onnx": ["onnx>=1.18", "onnxscript>=0.6.2", ONNX_RUNTIME],
    # transformers' exporters are of 5.23
    "openvino": ["openvino>=2026.3", "nncf>=3.1", "transformers>=5.23"],
}
EXTRAS["test"] = [
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff>=0.8",
    "mypy>=1.15",
    "setuptools>=77",
    "twine>=6",
    "tensorboard>=2.18",
    "nbclient>=0.10",
    "ipykernel>=6.29",
    *(package for extra in EXTRAS.values() for package in extra),
]

HERE = Path(__file__).parent
# The public address of this repository's files, once it has one, with a slash at its end: links
# and pictures of the package's page on PyPI then lead there.
REPOSITORY = ""


def long_description() -> str:
    """README.md for PyPI, which resolves no relative link: pictures are left out, and links become
    the names of the files, which the source archive has.
    """
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    local = r"\]\((?!https?://|#)([^)]+)\)"
    if REPOSITORY:
        return re.sub(local, rf"]({REPOSITORY}\1)", readme)
    without_pictures = re.sub(r"!\[[^\]]*" + local, "", readme)
    return re.sub(r"\[([^\]]*)" + local, r"\1 (`\2` in the source archive)", without_pictures)


VERSION = re.search(
    r'^__version__ = "(.+)"$',
    (HERE / "hf_timesformer/__init__.py").read_text(encoding="utf-8"),
    re.M,
)

setup(
    name="hf-timesformer",
    version=VERSION[1],
    description="TimeSformer for Hugging Face Transformers: five space-time attention schemes, exact video decoding",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    author="The authors of hf-timesformer",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    project_urls={
        "Paper": "https://arxiv.org/abs/2102.05095",
        "Original code": "https://github.com/facebookresearch/TimeSformer",
    },
    keywords=[
        "timesformer",
        "video classification",
        "action recognition",
        "transformers",
        "pytorch",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        *(
            f"Programming Language :: Python :: {version}"
            for version in ("3.10", "3.11", "3.12", "3.13", "3.14")
        ),
        "Topic :: Multimedia :: Video",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=[*find_packages(include=["hf_timesformer*"]), "hf_timesformer.model_cards"],
    package_dir={"hf_timesformer.model_cards": "model_cards"},
    py_modules=["timesformer_command"],
    entry_points={"console_scripts": ["timesformer = timesformer_command:main"]},
    package_data={
        "hf_timesformer": ["py.typed"],
        "hf_timesformer.model_cards": ["*.md", "*.json"],
        "hf_timesformer.recipes": ["*.json"],
    },
    install_requires=[
        "transformers>=5.20",
        "torch>=2.10",
        "torchvision>=0.25",
        "datasets>=4.0",
        "accelerate>=1.7",
        "evaluate>=0.4.3",
        "huggingface-hub>=1.31",
        "av>=17.1",
        "filelock>=3.12",
    ],
    extras_require=EXTRAS,
)
