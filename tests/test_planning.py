"""Plans of factorisations, systems and inverses are those that the operations follow, and are made without doing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycauset
from pycauset import errors, linalg
from pycauset.governor import governor
from pycauset.hardware import load_machine, use_probe
from pycauset.solver import blocked
from pycauset.units import format_bytes
from tests.linalg.cases import DTYPES, on_disk, random, spd, triangular

ROOT = Path(__file__).resolve().parents[1]
N = 700


@pytest.fixture
def operands(tmp_path: Path) -> dict[str, Any]:
    rng = np.random.default_rng()
    dtype = str(rng.choice(DTYPES))
    made: dict[str, Any] = {
        "spd": on_disk(spd(N, dtype, rng), tmp_path / "a.zarr", chunks=(64, 64)),
        "lower": on_disk(triangular(N, dtype, True, rng), tmp_path / "l.zarr", chunks=(64, 64)),
        "b": on_disk(random((N, 190), dtype, rng), tmp_path / "b.zarr", chunks=(64, 64)),
    }
    made["lower"].properties.is_lower_triangular = True
    return made


@pytest.mark.parametrize("operation", ["cholesky", "solve_triangular", "solve", "inv"])
def test_what_is_planned_is_what_is_followed(operands: dict[str, Any], operation: str, tmp_path: Path) -> None:
    """For operations of one step on disk, field by field."""
    given = [operands["spd"]] if operation == "cholesky" else [operands["lower"]]
    if operation.startswith("solve"):
        given.append(operands["b"])
    before = sorted(tmp_path.rglob("*"))
    planned = pycauset.plan(operation, *given, out_on_disk=True, memory="3MB")
    assert sorted(tmp_path.rglob("*")) == before
    getattr(linalg, operation)(*given, out=tmp_path / "out.zarr", memory="3MB")
    followed = blocked.last_plan()
    assert followed is not None
    assert (planned.route.device, planned.route.plan) == followed
    text = planned.explain()
    assert text.startswith(operation)
    for words in ("route: ", "stages: ", "tiles: ", "resident", "disk: ", "memory: ", "why: "):
        assert words in text


def test_what_is_planned_in_ram_is_what_is_followed() -> None:
    """Results in RAM under a limit: streamed where the operand lies, in core where LAPACK takes it."""
    rng = np.random.default_rng()
    a = spd(N, "float64", rng)
    planned = pycauset.plan("cholesky", a, memory="64MB")
    assert planned.route.name == "LAPACK in core"
    assert planned.result_bytes == a.nbytes
    assert f"{format_bytes(a.nbytes)} for the result" in planned.explain()
    tiny = pycauset.plan("cholesky", a, memory="4MB")
    assert tiny.route.streamed
    linalg.cholesky(a, memory="4MB")
    followed = blocked.last_plan()
    assert followed is not None
    assert tiny.route.plan == followed[1]


@pytest.mark.parametrize(
    ("operation", "names"),
    [("solve", ["cholesky", "solve_triangular", "solve_triangular"]), ("inv", ["cholesky", "inv", "inv"])],
)
@pytest.mark.parametrize("lower", [None, False])
def test_operations_of_several_steps(operands: dict[str, Any], operation: str, names: list[str], lower: bool | None) -> None:
    given = [operands["spd"]] + [operands["b"]] * (operation == "solve")
    planned = pycauset.plan(operation, *given, assume_a="pos", lower=lower, out_on_disk=True, memory="6MB")
    assert [step.operation for step in planned.steps] == names
    assert planned.seconds == pytest.approx(sum(step.route.seconds for step in planned.steps))
    assert planned.flops > planned.steps[0].flops
    text = planned.explain()
    assert text.startswith(f"{operation}: 3 steps, about ")
    assert text.count("route: ") == 3
    assert "step 3\n  " in text


def test_huge_problems_take_no_memory_to_plan() -> None:
    before = governor().in_use("host")
    a = pycauset.from_function(lambda i, j: 1.0 / (1 + abs(i[:, None] - j[None, :])), (100_000, 100_000), "float64")
    b = pycauset.random((100_000, 1000), seed=1)
    with use_probe(load_machine(ROOT / "profiles" / "no_gpu.json")):
        planned = pycauset.plan("solve", a, b, assume_a="pos", out_on_disk=True, memory="16GB")
        assert planned.seconds > 60
        assert planned.steps[0].route.plan.disk_write >= 4e10  # a triangle
        assert pycauset.plan("cholesky", a, out_on_disk=True, memory="16GB").route.host_bytes < 16e9
    assert governor().in_use("host") == before


def test_a_gpu_is_planned_for_without_one() -> None:
    a = pycauset.random((60_000, 60_000), seed=1)
    with use_probe(load_machine(ROOT / "profiles" / "h200.json")):
        text = pycauset.plan("cholesky", a, out_on_disk=True, memory="30GB", gpu_memory="8GB").explain()
    assert "route: streamed cuSOLVER" in text
    assert "PCIe: " in text


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: pycauset.plan("qr", np.eye(3)), errors.ConfigError, "'qr'.*'cholesky'"),
        (lambda: pycauset.plan("matmul", np.eye(3)), errors.ConfigError, "two operands"),
        (lambda: pycauset.plan("solve", np.eye(3)), errors.ConfigError, "two operands"),
        (lambda: pycauset.plan("inv", np.eye(3), np.eye(3)), errors.ConfigError, "one operand"),
        (lambda: pycauset.plan("cholesky", np.ones((3, 4))), errors.ShapeError, "square"),
        (lambda: pycauset.plan("solve_triangular", np.eye(3), np.eye(4)), errors.ShapeError, "3 rows"),
        (lambda: pycauset.plan("inv", np.ones((3, 3))), errors.ConfigError, "LU"),
        (lambda: pycauset.plan("cholesky", np.eye(0)), errors.ConfigError, "no elements"),
        (
            lambda: pycauset.plan("cholesky", pycauset.random((9000, 9000), seed=1), out_on_disk=True, memory="10kB").route,
            errors.MemoryLimitError,
            "no way through",
        ),
    ],
)
def test_what_cannot_be_planned(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_the_command_line(operands: dict[str, Any], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from pycauset.cli import app

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["plan", *words, "--memory", "6MB"])

    a, low, b = (str(tmp_path / name) for name in ("a.zarr", "l.zarr", "b.zarr"))
    assert "cholesky: (700, 700)" in run(a, "--op", "cholesky").stdout
    assert "solve: 3 steps" in run(a, b, "--op", "solve", "--assume-a", "pos").stdout
    assert "solve_triangular: (700, 190)" in run(low, b, "--op", "solve_triangular").stdout
    assert "(700, 700) @ (700, 190)" in run(a, b, "--transpose-a").stdout
    assert run(a).exit_code == 2
    assert run(a, "--op", "qr").exit_code == 2
