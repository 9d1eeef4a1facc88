"""The shape of the house: who may import whom, who may touch what, and what no file is called."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pycauset"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the ground up: a room imports itself and what stands on lines above its own.
FLOORS = (
    {"errors", "config", "units"},
    {"properties", "propagation", "tiling", "progress"},
    {"storage"},
    {"hardware"},
    {"governor"},
    {"devices"},
    {"drivers"},
    {"solver"},
)
# What users see; everything that is not listed above must be listed here.
TOP = {
    *("__init__", "__main__", "block", "cli", "copying", "creation", "cuda", "evaluate", "files", "freivalds", "indexing"),
    *("interop", "linalg", "matrix", "operations", "operators", "planning", "seeded", "stress", "stress_cholesky"),
    *("factor_check", "stress_gauges"),
}
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms} | dict.fromkeys(TOP, len(FLOORS))

# The executor; every other file in drivers/ is an algorithm and does none of what these may do.
EXECUTOR = ("streamer", "slots", "cache", "timeline")
FORBIDDEN_TO_ALGORITHMS = {
    "cupy",
    "cupyx",
    "threading",
    "concurrent",
    "multiprocessing",
    "asyncio",
    "io",
    "os",
    "mmap",
    "tempfile",
}

# Files longer than 500 lines that were looked at twice, and why each still holds one idea.
LONG: dict[str, str] = {}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every import with its line: also inside functions and under TYPE_CHECKING, and by ``import_module("...")``."""
    package = ["pycauset", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "pycauset":
                yield from ((node.lineno, f"pycauset.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def _top(module: str) -> str:
    return module.split(".")[0]


def test_every_module_stands_in_a_room() -> None:
    assert MODULES
    assert sorted({_room(path) for path in MODULES} - FLOOR.keys()) == []


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_point_down(path: Path) -> None:
    room = _room(path)
    upward = []
    for line, module in _imports(path):
        parts = module.split(".")
        if parts[0] != "pycauset":
            continue
        # a name of the package itself that is no room (a version, a function) lives in __init__
        target = parts[1] if len(parts) > 1 and parts[1] in FLOOR else "__init__"
        ground = FLOOR[room] == 0 or FLOOR[room] == len(FLOORS)  # files that share a floor may know each other there
        if target != room and FLOOR[target] > FLOOR[room] - (0 if ground or {target, room} <= FLOORS[1] else 1):
            upward.append(f"{_name(path)}:{line} imports {module}")
    assert upward == []


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_the_links_at_the_root_are_never_imported(path: Path) -> None:
    assert [module for _, module in _imports(path) if _top(module) in ("drivers", "governor")] == []


def test_the_links_at_the_root_lead_into_the_package() -> None:
    for room in ("drivers", "governor"):
        assert (ROOT / room).is_symlink()
        assert (ROOT / room).resolve() == (PACKAGE / room).resolve()


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_only_the_probe_asks_the_machine(path: Path) -> None:
    if path != PACKAGE / "hardware" / "probe.py":
        assert [line for line, module in _imports(path) if _top(module) == "psutil"] == []


# The in-core route is one library call on whole arrays: it has no tiles that a device could own.
CUPY = ("devices", "hardware", "solver/incore.py")


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_only_devices_the_probe_and_the_in_core_route_touch_cupy(path: Path) -> None:
    if not path.relative_to(PACKAGE).as_posix().startswith(CUPY):
        assert [line for line, module in _imports(path) if _top(module) in ("cupy", "cupyx", "cupy_backends")] == []


@pytest.mark.parametrize("path", [p for p in MODULES if _room(p) == "drivers" and not p.stem.startswith(EXECUTOR)], ids=_name)
def test_algorithms_own_loops_and_barriers_and_nothing_else(path: Path) -> None:
    touched = [f"line {line}: {module}" for line, module in _imports(path) if _top(module) in FORBIDDEN_TO_ALGORITHMS]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if called in ("open", "open_store", "create_store", "scratch_store", "Thread", "ThreadPoolExecutor"):
                touched.append(f"line {node.lineno}: {called}()")
    assert touched == []


EVERYWHERE = sorted(path for folder in ("pycauset", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", EVERYWHERE, ids=_name)
def test_files_are_short_or_looked_at_twice(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    excused = bool(LONG.get(_name(path)))
    assert excused is (lines > 500), (
        f"{lines} lines: split it, or say in LONG why it still holds one idea (short ones must not be there)"
    )


@pytest.mark.parametrize("path", EVERYWHERE, ids=_name)
def test_no_module_is_a_drawer(path: Path) -> None:
    words = set(path.stem.lower().split("_")) | {part.lower() for part in path.relative_to(ROOT).parts[:-1]}
    assert words & {"util", "utils", "helper", "helpers", "common", "misc", "manager", "managers"} == set()


def test_the_checker_sees_hidden_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The import finder itself: lazy, relative, conditional and by name."""
    package = tmp_path / "pycauset"
    (package / "storage").mkdir(parents=True)
    path = package / "storage" / "x.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..drivers import task\n"
        "def f():\n    import cupy.linalg\n    from pycauset import matrix\n    from .base import TileStore\n"
        "    import importlib\n    importlib.import_module('pycauset.cli')\n"
    )
    monkeypatch.setattr(f"{__name__}.PACKAGE", package)
    found = {module for _, module in _imports(path)}
    assert {"pycauset.drivers", "cupy.linalg", "pycauset.matrix", "pycauset.storage.base", "pycauset.cli"} <= found
