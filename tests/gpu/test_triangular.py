"""Triangular drivers on a real GPU: every dtype, side, triangle and operation, under limits that force streaming."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest

from pycauset import devices
from pycauset.config import settings
from pycauset.drivers.triangular import (
    TriangularGramDriver,
    TriangularInverseDriver,
    TriangularProductDriver,
    TriangularSolveDriver,
)
from pycauset.errors import SingularMatrixError
from pycauset.properties import mask
from pycauset.solver import Factor, last_statistics, multiply
from pycauset.storage import ArrayStore
from pycauset.tiling import Rect
from tests.drivers.fakes import OP, random_matrix
from tests.drivers.triangles import ratio, solve_ratio, triangular
from tests.gpu import streams

pytestmark = pytest.mark.gpu
DTYPES = ("float32", "float64", "complex64", "complex128")
stream = partial(streams.stream, limit=6 << 20, host=64 << 20)


@pytest.fixture(scope="module")
def gpu():
    device = devices.gpu()
    if device is None:
        pytest.skip("no GPU")
    return device


def double(x: np.ndarray) -> np.ndarray:
    """The same numbers in double precision: BLAS has no wider type, and the sizes here are too large to do without it."""
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("side", "uplo", "op"), list(itertools.product("LR", "LU", "NTH")))
def test_solve_and_product(gpu, dtype, side, uplo, op):
    rng = np.random.default_rng()
    n, m = 733, 641
    unit = bool(rng.integers(2))
    stored, exact = triangular(rng, n, dtype, uplo, unit)
    b = random_matrix(rng, (n, m) if side == "L" else (m, n), dtype)
    alpha = 0.5 - 2j if np.dtype(dtype).kind == "c" else -0.75
    options = {"side": side, "uplo": uplo, "op": op, "unit": unit, "alpha": alpha}
    results = []
    for mode, in_place in (("async", False), ("sync", False), ("async", True)):
        x = b.copy() if in_place else np.full_like(b, np.nan)
        origin = None if in_place else ArrayStore(b)
        stream(gpu, TriangularSolveDriver(ArrayStore(stored), ArrayStore(x), b.dtype, origin=origin, **options), mode=mode)
        assert solve_ratio(x, exact, b, side=side, op=op, alpha=alpha, widen=double) < 30
        results.append(x)
    assert np.array_equal(results[0], results[1]), "asynchronous and synchronous bits differ"
    c = np.full_like(b, np.nan)
    stream(gpu, TriangularProductDriver(*map(ArrayStore, (stored, b, c)), b.dtype, **options))
    p, q = (OP[op](exact), b) if side == "L" else (b, OP[op](exact))
    assert ratio(c, alpha * (double(p) @ double(q)), exact, b, np.array([abs(alpha)])) < 30


def test_the_solver_streams_products_with_a_triangle(gpu):
    rng = np.random.default_rng()
    n, m = 733, 641
    stored, exact = triangular(rng, n, "float64", "L")
    b = rng.standard_normal((m, n))
    factors = Factor(ArrayStore(b)), Factor(ArrayStore(stored), flags=mask("is_lower_triangular"))
    with settings(backend="gpu"):
        product = multiply(*factors, memory="256MB", gpu_memory="128MB", route="streamed CuPy")
    found = product.view(Rect(0, m, 0, n))
    assert ratio(found, b @ exact, exact, b) < 30
    assert last_statistics().flops < 1.5 * n * n * m


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("uplo", "LU")
@pytest.mark.parametrize("limit", [3 << 20, 64 << 20])
def test_inverse_and_gram(gpu, dtype, uplo, limit):
    rng = np.random.default_rng()
    n = 733
    stored, exact = triangular(rng, n, dtype, uplo)
    w = np.full_like(exact, np.nan)
    stream(gpu, TriangularInverseDriver(ArrayStore(stored), ArrayStore(w), exact.dtype, uplo=uplo), limit=limit)
    w = np.tril(w) if uplo == "L" else np.triu(w)
    assert ratio(double(exact) @ double(w), np.eye(n), exact, w) < 30
    for op in "NH":
        g = np.full_like(exact, np.nan)
        stream(gpu, TriangularGramDriver(ArrayStore(stored), ArrayStore(g), exact.dtype, uplo=uplo, op=op), limit=limit)
        p = double(OP[op](exact))
        g = np.tril(g) + np.tril(g, -1).conj().T
        assert np.array_equal(g, g.conj().T)
        assert ratio(g, p @ p.conj().T, exact, exact) < 30


def test_a_singular_factor_is_refused_and_nothing_is_overwritten(gpu):
    rng = np.random.default_rng()
    stored, _ = triangular(rng, 700, "float64", "L")
    stored[613, 613] = 0
    b = random_matrix(rng, (700, 300), "float64")
    x = b.copy()
    with pytest.raises(SingularMatrixError, match="613"):
        stream(gpu, TriangularSolveDriver(ArrayStore(stored), ArrayStore(x), b.dtype))
    assert np.array_equal(x, b)
    w = np.full_like(stored, np.nan)
    with pytest.raises(SingularMatrixError, match="613"):
        stream(gpu, TriangularInverseDriver(ArrayStore(stored), ArrayStore(w), b.dtype))
