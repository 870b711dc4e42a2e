"""CHANGELOG.md tells who used a name of an earlier version where it went: what it names is there."""

import re
from pathlib import Path

import pytest

import hf_timesformer


ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (`.+`) \| (`.+`)(?: itself)? \|$", TEXT, re.M)


def is_there(path: str) -> bool:
    """Whether a module of the package, or a name in one, exists; it is read, not imported."""
    module, _, name = path.rpartition(".")
    folder = ROOT / "hf_timesformer"
    if (folder / f"{path.replace('.', '/')}.py").is_file():
        return True
    file = folder / f"{module.replace('.', '/')}.py"
    pattern = rf"^(def|class) {name}\b|^{name}\b.*="
    return file.is_file() and bool(re.search(pattern, file.read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize(("was", "now"), ROWS, ids=[was[:40] for was, _ in ROWS])
def test_what_moved_is_where_it_says(was: str, now: str) -> None:
    places = re.findall(r"`([\w.]+)`", now)
    assert places == ["torch.nn.Linear"] or all(map(is_there, places)), now
    for old in re.findall(r"`([\w.]+)`", was):
        name = old.rpartition(".")[2]
        # a name that went to a module keeps its name there
        if "." in old and all(is_there(place) and is_a_module(place) for place in places):
            assert any(is_there(f"{place}.{name}") for place in places), old


def is_a_module(path: str) -> bool:
    """Whether it is a file of the package."""
    return (ROOT / "hf_timesformer" / f"{path.replace('.', '/')}.py").is_file()


def test_the_changelog_is_of_this_version() -> None:
    assert re.findall(r"^## (\S+)", TEXT, re.M)[0] == hf_timesformer.__version__
    assert len(ROWS) > 80
