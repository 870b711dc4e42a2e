"""The house as CONTRIBUTING.md draws it: which folder may import which. Read from the source,
nothing is imported.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


PACKAGE = Path(__file__).resolve().parents[1] / "hf_timesformer"

# From the ground up. A folder imports from its own floor or from one below it, and no two folders
# import each other.
FLOORS = (
    ("model", "video", "versions", "run_lock"),
    ("data",),
    ("evaluation", "visualization", "hub", "conversion", "inference"),
    ("timeline", "training", "recipes"),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
CLOSED = ("model", "video")


@dataclass(frozen=True)
class Arrow:
    """One import of a file of this package by another; both are paths within the package."""

    importer: str
    imported: str
    line: int
    is_plain: bool  # `from .name import x` at the top of the file

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def room(file: str) -> str:
    """The folder of a file of the package; a file beside the folders is a room of its own."""
    return Path(file).parts[0].removesuffix(".py")


def find_arrows(package: Path) -> list[Arrow]:
    """All imports within the package: at the top of a file, in a function, under TYPE_CHECKING,
    relative or not.
    """
    return [arrow for path in sorted(package.rglob("*.py")) for arrow in _arrows_of(path, package)]


def _arrows_of(path: Path, package: Path) -> Iterator[Arrow]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for module in _imported_modules(node, path, package):
            is_plain = (
                isinstance(node, ast.ImportFrom)
                and node.level == 1
                and "." not in (node.module or ".")
                and node in tree.body
            )
            imported = _file_of(module, package)
            importer = path.relative_to(package).as_posix()
            yield Arrow(importer, imported.relative_to(package).as_posix(), node.lineno, is_plain)


def _imported_modules(node: ast.AST, path: Path, package: Path) -> list[tuple[str, ...]]:
    """Modules of this package that a statement imports, each as its names below the package."""
    if isinstance(node, ast.Import):
        dotted = [tuple(alias.name.split(".")) for alias in node.names]
        return [names[1:] for names in dotted if names[0] == package.name]
    if not isinstance(node, ast.ImportFrom):
        return []
    names = tuple(node.module.split(".")) if node.module else ()
    if node.level:
        here = path.relative_to(package).parent.parts
        # in data/readers/folder.py, `..records` is data.records
        names = here[: len(here) - (node.level - 1)] + names
    elif names[0] != package.name:
        return []
    else:
        names = names[1:]
    # `from .readers import folder` imports the file readers/folder.py; `from .folder import x`
    # imports folder.py.
    found = (names + (alias.name,) for alias in node.names)
    return sorted({module if _exists(module, package) else names for module in found})


def _exists(module: tuple[str, ...], package: Path) -> bool:
    return (
        package.joinpath(*module).with_suffix(".py").is_file()
        or package.joinpath(*module, "__init__.py").is_file()
    )


def _file_of(module: tuple[str, ...], package: Path) -> Path:
    if module and package.joinpath(*module).with_suffix(".py").is_file():
        return package.joinpath(*module).with_suffix(".py")
    return package.joinpath(*module, "__init__.py")


def complaints(package: Path) -> list[str]:
    """Everything in the package that is not as the floors have it, one line each."""
    arrows = find_arrows(package)
    return [
        *(
            f"{path.name} has no floor in FLOORS"
            for path in package.iterdir()
            if _is_homeless(path)
        ),
        *(
            f"{arrow}, which is missing"
            for arrow in arrows
            if not (package / arrow.imported).is_file()
        ),
        *(f"{arrow}: {room(arrow.importer)}/ is closed" for arrow in arrows if _opens_wing(arrow)),
        *(
            f"{arrow}: not as `from .name import x` at the top of the file"
            for arrow in arrows
            if _is_hidden(arrow)
        ),
        *(
            f"{arrow}: upwards"
            for arrow in arrows
            if _floor(arrow.imported) > _floor(arrow.importer)
        ),
        *(
            f"{arrow}: nothing in the package imports the package itself"
            for arrow in arrows
            if _imports_all(arrow)
        ),
        *(
            f"files in a circle: {' -> '.join(circle)}"
            for circle in find_circles(_between_files(arrows))
        ),
        *(
            f"folders in a circle: {' -> '.join(circle)}"
            for circle in find_circles(_between_rooms(arrows))
        ),
        *(f"{name} is in both of {' and '.join(CLOSED)}" for name in _names_taken_twice(package)),
    ]


def _is_homeless(path: Path) -> bool:
    return (path.suffix == ".py" or any(path.glob("*.py"))) and room(path.name) not in FLOOR_OF


def _floor(file: str) -> int:
    return FLOOR_OF.get(room(file), -1)


def _opens_wing(arrow: Arrow) -> bool:
    return room(arrow.importer) in CLOSED and room(arrow.imported) != room(arrow.importer)


def _is_hidden(arrow: Arrow) -> bool:
    return room(arrow.importer) in CLOSED and not arrow.is_plain


def _imports_all(arrow: Arrow) -> bool:
    return arrow.imported == "__init__.py"


def _between_files(arrows: list[Arrow]) -> set[tuple[str, str]]:
    return {(arrow.importer, arrow.imported) for arrow in arrows}


def _between_rooms(arrows: list[Arrow]) -> set[tuple[str, str]]:
    pairs = {(room(arrow.importer), room(arrow.imported)) for arrow in arrows}
    return {(importer, imported) for importer, imported in pairs if importer != imported}


def _names_taken_twice(package: Path) -> list[str]:
    """File names that both wings have: a saved model holds the files of both in one flat folder."""
    names = Counter(path.name for wing in CLOSED for path in (package / wing).rglob("*.py"))
    return sorted(name for name, count in names.items() if count > 1 and name != "__init__.py")


def find_circles(edges: set[tuple[str, str]]) -> list[list[str]]:
    """Paths that lead back to where they began, from a walk that enters each place once."""
    targets: dict[str, list[str]] = {}
    for importer, imported in sorted(edges):
        targets.setdefault(importer, []).append(imported)
    done: set[str] = set()
    circles: list[list[str]] = []

    def visit(place: str, trail: list[str]) -> None:
        if place in trail:
            circles.append([*trail[trail.index(place) :], place])
        elif place not in done:
            for target in targets.get(place, ()):
                visit(target, [*trail, place])
            done.add(place)

    for start in sorted(targets):
        visit(start, [])
    return circles


def test_arrows_only_point_down():
    found = complaints(PACKAGE)
    assert not found, "\n".join(["", *found])


# A small house in order, for planting what is not.
SMALL_HOUSE = {
    "__init__.py": "from .model.schemes import SCHEMES",
    "model/schemes.py": "",
    "model/outputs.py": "from .schemes import SCHEMES",
    "video/sampling.py": "",
    "data/records.py": "",
    "data/readers/folder.py": "from ..records import VideoRecords",
    "data/augmentation.py": "from hf_timesformer.model.schemes import SCHEMES",
    "data/clips.py": "from .augmentation import ClipAugmentation",
    "inference.py": "from .model.schemes import SCHEMES",
    "evaluation/report.py": "from ..inference import make_views",
    "hub/publish.py": "import torch",
    "training/trainer.py": "from ..hub.publish import PublishMixin",
    "cli/common.py": "",
    "cli/train.py": "from . import common",
}


@pytest.mark.parametrize(
    ("file", "code", "complaint"),
    [
        ("data/records.py", "from .clips import TrainingClips", None),
        ("training/trainer.py", "def f():\n    from ..data.readers import folder", None),
        (
            "data/records.py",
            "from ..training.trainer import VideoTrainer",
            "imports training/trainer.py: upwards",
        ),
        ("data/records.py", "from ..cli import common", "imports cli/common.py: upwards"),
        ("data/readers/folder.py", "from ...hub import publish", "imports hub/publish.py: upwards"),
        ("data/records.py", "import hf_timesformer.inference", "imports inference.py: upwards"),
        (
            "data/records.py",
            "from .. import TimeSformerConfig",
            "nothing in the package imports the package itself",
        ),
        (
            "data/records.py",
            "def f():\n    from ..hub.publish import x",
            "imports hub/publish.py: upwards",
        ),
        (
            "data/records.py",
            "if TYPE_CHECKING:\n    from ..hub.publish import x",
            "imports hub/publish.py: upwards",
        ),
        (
            "data/augmentation.py",
            "from .clips import x",
            "in a circle: data/augmentation.py -> data/clips.py",
        ),
        (
            "inference.py",
            "from .evaluation.report import x",
            "folders in a circle: evaluation -> inference -> eval",
        ),
        ("model/schemes.py", "from ..video.sampling import sample_indices", "model/ is closed"),
        ("video/sampling.py", "from ..model.schemes import SCHEMES", "video/ is closed"),
        ("video/sampling.py", "from ..data.records import x", "video/ is closed"),
        ("model/outputs.py", "from . import schemes", "not as `from .name import x`"),
        ("model/outputs.py", "import hf_timesformer.model.schemes", "not as `from .name import x`"),
        (
            "model/outputs.py",
            "def f():\n    from .schemes import SCHEMES",
            "not as `from .name import x`",
        ),
        ("model/outputs.py", "from .nowhere import x", "which is missing"),
        ("video/schemes.py", "", "schemes.py is in both of model and video"),
        ("attic/old.py", "", "attic has no floor"),
        ("attic.py", "", "attic.py has no floor"),
    ],
)
def test_a_planted_import_is_found(file: str, code: str, complaint: str | None, tmp_path: Path):
    package = tmp_path / PACKAGE.name
    house = SMALL_HOUSE | {file: f"{SMALL_HOUSE.get(file, '')}\n{code}\n"}
    for name, text in house.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).parent.joinpath("__init__.py").touch()
        (package / name).write_text(text, encoding="utf-8")
    found = complaints(package)
    if complaint is None:
        assert not found
    else:
        assert any(complaint in line for line in found), found


def _table(file: str, name: str) -> str:
    """The dictionary that a file assigns to a name, as the dump of its syntax tree."""
    for node in ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.dump(node.value)
    raise AssertionError(f"{file} assigns no {name}")


def test_both_wings_name_the_same_processor_types():
    """Neither wing may import the other, and both must know what a processor that is saved alone
    calls itself.
    """
    table = _table("video/processor_type.py", "TYPES")
    assert table == _table("model/configuration_timesformer.py", "PROCESSOR_TYPES")
    assert "VIDEO_PROCESSOR_NAME" in table
