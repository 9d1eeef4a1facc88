"""The basis in GPU memory, NumPy standing in for CuPy: the same pairs, fast paths and slow ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from pycauset.drivers.arnoldi import ArnoldiDriver, plan_arnoldi
from pycauset.drivers.basis import ArrayBasis, DeviceBasis
from pycauset.drivers.orthogonal import orthonormalise
from pycauset.errors import MemoryLimitError
from pycauset.governor import governor
from pycauset.solver.products import ResidentProduct, drive
from tests.drivers.fakes import random_matrix

DTYPES = ("float32", "float64", "complex64", "complex128")


def bases(n: int, columns: int, dtype: str) -> tuple[ArrayBasis, DeviceBasis]:
    one, other = (np.full((columns, n), np.nan, dtype).T for _ in range(2))
    return ArrayBasis(one), DeviceBasis(other, np)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["random", "graded", "dependent", "inside", "one"])
def test_blocks_are_split(dtype: str, kind: str) -> None:
    rng = np.random.default_rng()
    n, count, p = 83, 21, 5
    eps = float(np.finfo(dtype).eps)
    _, basis = bases(n, 40, dtype)
    v = np.linalg.qr(random_matrix(rng, (n, count), dtype))[0]
    basis.put(0, v)
    w = random_matrix(rng, (n, p), dtype)
    if kind == "graded":
        w = (w @ np.diag(10.0 ** -np.arange(p)).astype(dtype)).astype(dtype)
    elif kind == "dependent":
        w[:, 3] = w[:, 1]
    elif kind == "inside":
        w[:, 2] = v @ random_matrix(rng, (count, 1), dtype)[:, 0]
    elif kind == "one":
        w = w[:, :1]
    found = orthonormalise(basis, count, w, rng)
    assert found.q.shape == w.shape
    assert found.rank == w.shape[1] - (kind in ("dependent", "inside"))
    whole = np.hstack([v, found.q])
    np.testing.assert_allclose(whole.conj().T @ whole, np.eye(whole.shape[1]), atol=100 * eps)
    np.testing.assert_allclose(v @ found.c + found.q @ found.r, w, atol=300 * eps * np.linalg.norm(w))
    assert (basis.split(count, w) is None) == (kind in ("dependent", "inside"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["hermitian", "general"])
def test_the_driver_gives_the_same_pairs(dtype: str, kind: str) -> None:
    rng = np.random.default_rng()
    n, k = 150, 4
    a = random_matrix(rng, (n, n), dtype)
    a = (a + a.conj().T if kind == "hermitian" else a) + np.diag(np.arange(n) ** 1.5).astype(dtype)  # gaps: no ties
    plan = plan_arnoldi(n, k, np.dtype(dtype), passes_cost=True, block=4, ncv=40)
    found = []
    for basis in bases(n, plan.ncv + plan.block, dtype):
        machine = ArnoldiDriver(plan, basis, kind, "LM", 100 * float(np.finfo(dtype).eps), 200)
        ritz = drive(machine.run(), lambda x: a @ x)
        x, values = machine.vectors(ritz, k), ritz.values[:k]
        scale = np.linalg.norm(a, 2)
        np.testing.assert_allclose(a @ x, x * values, atol=1000 * np.finfo(dtype).eps * scale)
        found.append(np.sort_complex(values))
    np.testing.assert_allclose(found[0], found[1], atol=1000 * np.finfo(dtype).eps * scale)


def test_a_resident_plan_looks_seldom() -> None:
    plan = plan_arnoldi(16384, 8, np.dtype(float), passes_cost=False, resident=True)
    assert plan.block == 16
    assert plan.look > 1
    assert plan.ncv % plan.block == 0


@pytest.fixture
def device_memory() -> Iterator[None]:
    governor().set_device_memory(1 << 30, 1 << 30)
    yield
    governor().set_device_memory(0, 0)


@pytest.mark.usefixtures("device_memory")
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_with_a_matrix_in_gpu_memory(dtype: str) -> None:
    rng = np.random.default_rng()
    a, x, wide = (random_matrix(rng, shape, dtype) for shape in ((90, 40), (40, 3), (90, 3)))
    h = a.conj().T
    with governor().scope(device=1 << 20, owner="a test") as scope:
        for gram, block, exact in (("", x, a @ x), ("tall", x, h @ (a @ x)), ("wide", wide, a @ (h @ wide))):
            with ResidentProduct(a, np, np.dtype(dtype), gram=gram, scope=scope) as product:
                tolerance = 100 * np.finfo(dtype).eps * np.abs(exact).max()
                np.testing.assert_allclose(product(block), exact, atol=tolerance)
                if gram:
                    np.testing.assert_allclose(product.forward, a @ x if gram == "tall" else h @ wide, atol=tolerance)
            assert scope.in_use("device") == 0


@pytest.mark.usefixtures("device_memory")
def test_another_element_type_in_gpu_memory_is_copied_under_a_ticket() -> None:
    a = np.random.default_rng().integers(-9, 9, (100, 100))
    with governor().scope(device=100_000, owner="a test") as scope:
        with ResidentProduct(a, np, np.dtype("float64"), scope=scope) as product:
            assert scope.in_use("device") == 80_000
            np.testing.assert_array_equal(product(np.eye(100)), a)
        assert scope.in_use("device") == 0
        with scope.require("device", 50_000, owner="somebody"), pytest.raises(MemoryLimitError, match="int64 matrix as float64"):
            ResidentProduct(a, np, np.dtype("float64"), scope=scope)
