"""The basis on disk: the same products as an array's, within its memory, and nothing left behind."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pycauset.devices.numpy import NumpyDevice
from pycauset.drivers.arnoldi import ArnoldiDriver
from pycauset.drivers.arnoldi_plan import ArnoldiPlan
from pycauset.drivers.basis import ArrayBasis
from pycauset.drivers.spilled import SpilledBasis, SpillPlan, plan_spill
from pycauset.errors import MemoryLimitError, StoreFullError
from pycauset.solver.products import drive
from pycauset.storage.scratch import scratch_store
from tests.drivers.fakes import fresh_governor, random_matrix, watchdog

DTYPES = ("float32", "float64", "complex64", "complex128")


def sizes(n: int, k: int, block: int, ncv: int) -> ArnoldiPlan:
    return ArnoldiPlan(n, k, block, ncv, 0)


@contextmanager
def spilled(plan: ArnoldiPlan, dtype: str, width: int, room: int) -> Iterator[tuple[SpilledBasis, SpillPlan]]:
    kind = np.dtype(dtype)
    spill = plan_spill(plan, kind, width, room)
    scope = fresh_governor().scope(host=room, owner="a test")
    with watchdog(), scope:
        make = lambda shape, chunks: scratch_store(shape, kind, chunks=chunks)  # noqa: E731
        with SpilledBasis(spill, plan.n, kind, width, NumpyDevice(), scope, make) as basis:
            yield basis, spill
    assert not scope.leaks


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [1, 3, 8])
def test_the_same_products_as_an_array(dtype: str, block: int) -> None:
    rng = np.random.default_rng()
    n, ncv = 1531, 31
    eps = float(np.finfo(dtype).eps)
    plan = sizes(n, 5, block, ncv)
    most = plan_spill(plan, np.dtype(dtype), 9, 10**9)
    room = most.fixed_bytes + (most.columns + 8) * (4096 + (n // 3) * block * np.dtype(dtype).itemsize) + 60_000
    array = ArrayBasis(np.zeros((ncv + block, n), dtype).T)
    with spilled(plan, dtype, 9, room) as (basis, spill):
        assert spill.rows < n  # several bands
        count = 0
        for _ in range(3):
            q = random_matrix(rng, (n, block), dtype)
            for each in (array, basis):
                each.put(count, q)
            count += block
        for keep in (count - 1, max(1, count // 2), 1):
            for p in (block, 1, 9):
                w, c = random_matrix(rng, (n, p), dtype), random_matrix(rng, (count, p), dtype)
                for name, arguments in (("inner", (count, w)), ("subtract", (count, w, c)), ("times", (c,))):
                    expected, found = (getattr(each, name)(*arguments) for each in (array, basis))
                    size = max(n**0.5, np.abs(expected).max())  # a sum of n terms may cancel
                    np.testing.assert_allclose(found, expected, atol=50 * eps * size, err_msg=name)
            z, tail = random_matrix(rng, (count, keep), dtype) / 4, block if keep > 1 else 0
            q = random_matrix(rng, (n, block), dtype)
            for each in (array, basis):
                each.put(count, q)
                each.rotate(z, tail)
            count = keep + tail
            expected = array.block(0, count)
            np.testing.assert_allclose(basis.block(0, count), expected, atol=50 * eps * np.abs(expected).max())
        assert basis.sweeps > 20


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_what_is_allocated_stays_within_the_room(dtype: str) -> None:
    """By Python's own count, blocks of vectors that belong to the caller aside."""
    rng = np.random.default_rng()
    n, block, ncv = 40_009, 3, 31
    size = np.dtype(dtype).itemsize
    plan = sizes(n, 5, block, ncv)
    room = n * ncv * size // 2
    q, c = random_matrix(rng, (n, block), dtype), random_matrix(rng, (ncv, block), dtype)

    def work() -> None:
        with spilled(plan, dtype, block, room) as (basis, _):
            for count in range(0, 30, block):
                basis.put(count, q)
            basis.inner(30, q)
            basis.subtract(30, q, c[:30])
            basis.rotate(np.eye(30, 15, dtype=dtype), block)

    work()  # modules are loaded
    tracemalloc.start()
    try:
        work()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert room // 2 < peak <= room + (256 << 10)  # the interpreter's own objects


def with_a_gap(kind: str, x: np.ndarray, many: int) -> np.ndarray:
    """A matrix whose largest eigenvalues stand off by so much that a few restarts find them, and never hundreds."""
    first, step = (8.0, 1 / 64) if kind == "skew" else (9.0, 1 / 2)
    diagonal = np.random.default_rng().uniform(0, 8, len(x))
    diagonal[:many] = first + step * np.arange(many)
    if kind == "hermitian":
        x = x + x.conj().T
    if kind != "skew":
        return x + np.diag(diagonal).astype(x.dtype)
    pairs = np.zeros_like(x)
    pairs[range(0, many, 2), range(1, many, 2)] = diagonal[:many:2]
    return x - x.T + pairs - pairs.T


@pytest.mark.parametrize("kind", ["hermitian", "skew", "general"])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_a_driver_gives_the_same_pairs(kind: str, dtype: str) -> None:
    rng = np.random.default_rng()
    n, k = 400, 4
    if kind == "skew" and dtype == "complex128":
        dtype = "float32"
    a = with_a_gap(kind, random_matrix(rng, (n, n), dtype) / n**0.5, 2 * k)
    plan = sizes(n, k, 3, 24)
    tol = 1e-5 if dtype == "float32" else 1e-9
    found = []
    with spilled(plan, dtype, 8, 600_000) as (basis, _):
        for each in (ArrayBasis(np.zeros((27, n), dtype).T), basis):
            driver = ArnoldiDriver(plan, each, kind, "LM", tol, 400)
            ritz = drive(driver.run(), lambda v: a @ v)
            assert driver.converged
            assert driver.restarts > 1
            v = driver.vectors(ritz, k)
            assert np.linalg.norm(a @ v - v * ritz.values[:k], axis=0).max() < 20 * tol * np.linalg.norm(a, 2)
            found.append(np.abs(ritz.values[:k]))
        np.testing.assert_allclose(*found, rtol=20 * tol)


def test_stores_are_gone_after_use_and_after_an_error(isolated: Path) -> None:
    def files() -> list[str]:
        return [p.name for p in isolated.rglob("*") if p.is_file() and p.name != "lock"]

    plan = sizes(600, 2, 2, 12)
    with spilled(plan, "float64", 4, 300_000) as (basis, _):
        basis.put(0, np.eye(600, 2))
        assert files()
    assert not files()
    with pytest.raises(ZeroDivisionError), spilled(plan, "float64", 4, 300_000) as (basis, _):
        basis.put(0, np.eye(600, 2))
        basis.inner(2, np.ones((600, 2)))
        raise ZeroDivisionError
    assert not files()


def test_a_disk_that_fills_up_while_a_restart_writes_leaves_nothing(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = sizes(600, 2, 2, 12)
    with pytest.raises(StoreFullError), spilled(plan, "float64", 4, 300_000) as (basis, _):
        basis.put(0, np.eye(600, 2))

        def full(*_: object) -> None:
            raise StoreFullError("no space left")

        monkeypatch.setattr(basis, "_make", full)
        basis.rotate(np.eye(2), 0)
    assert not [p for p in isolated.rglob("*") if p.is_file() and p.name != "lock"]


def test_too_little_memory_is_refused_with_numbers() -> None:
    with pytest.raises(
        MemoryLimitError, match=r"10 x 24 columns of 100000 float64 on disk needs 38\..* more than the 30.0 MB left"
    ):
        plan_spill(sizes(100_000, 8, 24, 168), np.dtype(float), 24, 30_000_000)


@pytest.mark.parametrize("room", [50_000_000, 80_000_000, 10**9, 10**11])
def test_plans_stay_within_the_room(room: int) -> None:
    spill = plan_spill(sizes(100_000, 8, 24, 168), np.dtype(float), 24, room)
    assert spill.slot_bytes + spill.fixed_bytes <= room
    assert spill.slots >= spill.columns + 2
    assert spill.rows == 100_000 or spill.rows * 8 % 4096 == 0
