"""The rooms: which exist, and which way imports run between them."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import pixelize

ROOT = Path(__file__).parent.parent
# a room imports from the lines above its own, and from itself; rooms on one line do not know of each other
ORDER = (
    ("rewrites",),
    ("adapters",),
    ("errors", "version"),
    ("extras", "files", "tables"),
    ("algebra", "running"),
    ("layers",),
    ("inheritance",),
    ("measure", "benchmarking"),
    ("calibration", "diagnosis"),
    ("conversion",),
    ("refit", "checkpoints"),
    ("pages",),
    ("__init__",),
    ("demo",),
    ("sources",),
    ("recipes",),
    ("command_line",),
    ("__main__",),
)
# inside rewrites/: the same, from what is seen to what is done about it
INNER = {
    "rewrites": (
        ("site",),
        ("state",),
        ("seeing",),
        ("graph",),
        ("watching",),
        ("idioms",),
        ("finding",),
        ("applying",),
        ("__init__",),
    ),
}
RANK = {room: rank for rank, line in enumerate(ORDER) for room in line}


def sources() -> dict[str, Path]:
    """The package's modules by dotted name; rewrites/ and adapters/ lie beside pixelize/."""
    found = {}
    for folder, prefix in (("pixelize", ""), ("rewrites", "rewrites."), ("adapters", "adapters.")):
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[prefix + ".".join(parts)] = file
    return found


@cache
def imports(file: Path) -> frozenset[str]:
    """:func:`named_imports`, read once."""
    return frozenset(named_imports(file))


def named_imports(file: Path) -> Iterator[str]:
    """Names of this package that a file imports, less ``pixelize.``.

    What is imported for types alone does not count.
    """
    tree = ast.parse(file.read_text())
    left_out = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pixelize":
            yield node.module.removeprefix("pixelize").lstrip(".") or "__init__"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "pixelize":
                    yield alias.name.removeprefix("pixelize").lstrip(".") or "__init__"


def test_every_module_has_a_room() -> None:
    assert {name.split(".")[0] for name in sources()} == set(RANK)


@pytest.mark.parametrize("name", sorted(n for n in sources() if not n.endswith("__main__")))
def test_every_module_can_be_imported(name: str) -> None:
    try:
        importlib.import_module(f"pixelize.{name}".removesuffix(".__init__"))
    except pixelize.MissingExtraError as error:
        pytest.skip(str(error))
    except ModuleNotFoundError as error:
        if str(error.name).startswith("pixelize"):
            raise
        pytest.skip(f"{error.name} is not installed")


@pytest.mark.parametrize("name", sorted(sources()))
def test_imports_run_one_way(name: str) -> None:
    room = name.split(".")[0]
    for target in imports(sources()[name]):
        other = target.split(".")[0]
        assert other == room or RANK[other] < RANK[room], f"{name} imports {target}"


@pytest.mark.parametrize("room", sorted(INNER))
def test_imports_inside_a_room_run_one_way(room: str) -> None:
    rank = {part: place for place, line in enumerate(INNER[room]) for part in line}
    for name, file in sources().items():
        if not name.startswith(f"{room}."):
            continue
        part = name.split(".")[1]
        for target in imports(file):
            other = target.split(".")
            if other[0] == room and len(other) > 1 and other[1] != part:
                assert rank[other[1]] < rank[part], f"{name} imports {target}"


def test_there_are_no_circles() -> None:
    graph = {
        name: {t for t in imports(file) if t in sources()} | {f"{t}.__init__" for t in imports(file)}
        for name, file in sources().items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for target in graph.get(name, ()):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_module_shadows_a_public_name() -> None:
    top = {file.stem for file in (ROOT / "pixelize").iterdir() if file.name != "__pycache__"}
    assert not top & set(pixelize.__all__)
    for name in pixelize.__all__:
        assert not isinstance(getattr(pixelize, name), type(pixelize))


def test_every_package_is_packaged() -> None:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10; pytest brings this one
        import tomli as tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {name.removesuffix("__init__").rstrip(".") for name in sources() if name.endswith("__init__")}
    assert sorted(listed) == sorted(f"pixelize.{f}" if f else "pixelize" for f in folders)


def test_the_rooms_are_those_that_contributors_are_told_of() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    told = set(re.findall(r"^ *([a-z_]+)/(?: |$)", text, re.M))
    rooms = {f.parent.name for f in sources().values() if f.name == "__init__.py"}
    nested = {f.parent.name for f in sources().values() if f.parent.parent.name == "recipes"}
    assert told - {"tests"} == rooms - nested


def test_one_version_is_stated() -> None:
    assert f"version: {pixelize.__version__}\n" in (ROOT / "CITATION.cff").read_text()
