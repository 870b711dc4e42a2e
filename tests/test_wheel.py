"""What `pip install` brings: the sdist and the wheel that are built, and the demo's way by
`timesformer` alone.

The wheel goes into a virtual environment of its own, which finds its dependencies in the
environment of the tests, and not this checkout: nothing is downloaded.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from tiny_models import write_clips, write_model

from hf_timesformer import __version__


ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "hf_timesformer",
    "model_cards",
    "timesformer_command.py",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "MANIFEST.in",
    "docs",
    "pictures",
    "LICENSE",
)
# the wheel from the unpacked sdist: what is missing there is missing in it
BUILD = """
import os, tarfile
from pathlib import Path
from setuptools import build_meta

dist = Path("dist").resolve()
sdist = dist / build_meta.build_sdist(str(dist))
with tarfile.open(sdist) as archive:
    archive.extractall("unpacked", filter="data")
os.chdir(next(Path("unpacked").iterdir()))
build_meta.build_wheel(str(dist))
"""
# all in one process, since each that starts takes seconds
USE = """
import json, sys
from hf_timesformer.cli.__main__ import main

for command_line in json.loads(sys.argv[1]):
    try:
        main(command_line)
    except SystemExit as end:
        if end.code:
            raise
"""

pytestmark = pytest.mark.slow


def run(*command: object, folder: Path, **environment: str) -> str:
    """Standard output of a command that must succeed, run without this checkout on its path."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "PIP_NO_INDEX": "1",
    } | environment
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel made from it; built in a copy, as building leaves
    folders behind.
    """
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source, target = ROOT / name, copy / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    run(sys.executable, "-c", BUILD, folder=copy)
    return copy / "dist"


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a virtual environment with the wheel; its dependencies are those of
    the tests.
    """
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", environment, folder=built)
    (programs,) = (
        path.parent
        for path in environment.glob("*/python*")
        if path.name in ("python", "python.exe")
    )
    (wheel,) = built.glob("*.whl")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        programs / "python",
        "install",
        "--no-deps",
        wheel,
        folder=built,
    )
    (site,) = environment.rglob("site-packages")
    (site / "of_the_tests.pth").write_text(
        f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n"
    )
    return programs


def test_archives_are_whole_and_ready_for_the_index(built: Path):
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    in_checkout = {
        path.relative_to(ROOT).as_posix() for path in ROOT.glob("hf_timesformer/**/*.py")
    }
    assert in_checkout | {"timesformer_command.py", "hf_timesformer/py.typed"} <= set(names)
    assert {
        "hf_timesformer/recipes/small-set.json",
        "hf_timesformer/model_cards/template.md",
    } <= set(names)
    assert not [name for name in names if name.startswith(("tests", "scripts"))]
    for line in (
        f"Version: {__version__}",
        "License-Expression: Apache-2.0",
        "Requires-Python: >=3.10",
    ):
        assert line in metadata.splitlines()
    description = metadata.partition("\n\n")[2]
    # PyPI resolves neither relative links nor pictures
    assert not re.findall(r"\]\((?!https?://|#)", description)
    assert "(`docs/classify.md` in the source archive)" in description
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "setup.py",
        "LICENSE",
        "README.md",
        "docs/classify.md",
        "pictures/demo.png",
        "model_cards/template.md",
        "hf_timesformer/recipes/demo.json",
    } <= in_sdist
    pytest.importorskip("twine")
    assert "PASSED" in run(
        sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, folder=built
    )


def test_help_answers_within_a_second(installed: Path, tmp_path: Path):
    seconds = []
    for command in ([], ["predict"], ["evaluate"]):
        started = time.perf_counter()
        assert "usage: timesformer" in run(
            installed / "timesformer", *command, "--help", folder=tmp_path
        )
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1, seconds  # the machine may be busy
    assert run(installed / "timesformer", "--version", folder=tmp_path) == f"{__version__}\n"


def test_the_demos_way_by_timesformer_alone(installed: Path, tmp_path: Path):
    """Train, evaluate, predict and export a tiny model in a folder that holds nothing of this
    checkout.
    """

    where = "import importlib.util; print(importlib.util.find_spec('hf_timesformer').origin)"
    origin = Path(run(installed / "python", "-c", where, folder=tmp_path).strip())
    assert installed.parent in origin.parents
    write_clips(tmp_path / "clips")
    shutil.copytree(tmp_path / "clips/test", tmp_path / "clips/train")
    write_model(tmp_path / "start")
    has_onnx = importlib.util.find_spec("onnxruntime") is not None
    predict = "predict clips/test/up/0.mp4 --top_k 6 --json"
    command_lines = [
        "train --data_dir clips --model start --recipe demo --short_side 32 36 --max_steps 2 "
        "--per_device_train_batch_size 2 --dataloader_num_workers 0 --use_cpu "
        "--max_bad_fraction 0.5 --output_dir run",
        "evaluate --model run --data_dir clips --num_workers 0 --cpu",
        f"{predict} --model run --dtype float32",
        *(["export run run-onnx", f"{predict} --export run-onnx"] if has_onnx else []),
    ]
    as_json = json.dumps([line.split() for line in command_lines])
    out = run(installed / "python", "-c", USE, as_json, folder=tmp_path)
    assert json.loads((tmp_path / "run/train_results.json").read_text())["train_samples"] > 0
    results = json.loads((tmp_path / "run/eval_test/eval_results.json").read_text())
    assert (results["videos_evaluated"], results["videos_failed"]) == (12, 1)
    answers = [json.loads(text)[0] for text in re.findall(r"^\[$.*?^\]$", out, re.M | re.S)]
    scores = [{row["label"]: row["score"] for row in of["predictions"]} for of in answers]
    assert len(scores) == 1 + has_onnx, out
    assert sum(scores[0].values()) == pytest.approx(1, abs=1e-4)
    assert scores[-1] == pytest.approx(scores[0], abs=1e-4)
