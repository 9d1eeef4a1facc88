"""LAPACK through ctypes: factors and inverses in place, one triangle only, the GIL free."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import scipy.linalg

from pycauset.devices.lapack import potrf, trtri
from tests.devices.kernel_cases import DTYPES, TRIANGLE, positive_definite, triangle


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("n", [0, 1, 7, 300])
def test_potrf_is_scipys_and_leaves_the_other_triangle_alone(dtype, lower, n):
    rng = np.random.default_rng()
    a = positive_definite(rng, n, dtype) if n else np.empty((0, 0), dtype)
    used = TRIANGLE["L" if lower else "U"](np.ones((n, n), bool))
    c = np.where(used, a, np.array(np.nan, dtype))
    assert potrf(c, lower=lower) == 0
    if n:
        exact = scipy.linalg.cholesky(a, lower=lower)
        assert np.allclose(c[used], exact[used], rtol=0, atol=100 * n * np.finfo(dtype).eps)
    assert np.isnan(c[~used]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "order"), [(5, 3), (400, 1), (400, 333)])
@pytest.mark.parametrize("lower", [True, False])
def test_a_pivot_that_is_not_positive_stands_on_the_diagonal(dtype, n, order, lower):
    c = np.eye(n, dtype=dtype) * 4
    c[order - 1, order - 1] = -3
    c[n - 1, 0] = c[0, n - 1] = 1
    assert potrf(c, lower=lower) == order
    assert c[order - 1, order - 1] == -3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("uplo", ["L", "U"])
@pytest.mark.parametrize("unit", [False, True])
def test_trtri_leaves_the_other_triangle_alone(dtype, uplo, unit):
    stored, exact = triangle(np.random.default_rng(), 60, dtype, uplo, unit)
    assert trtri(stored, uplo=uplo, unit=unit) == 0
    used = TRIANGLE[uplo](np.ones((60, 60), bool), *([-1 if uplo == "L" else 1] if unit else []))
    assert np.isnan(stored[~used]).all()
    assert np.allclose(stored[used], np.linalg.inv(exact)[used], rtol=0, atol=100 * np.finfo(dtype).eps)


def test_trtri_tells_the_first_zero_and_leaves_the_tile_alone():
    t = np.tril(np.ones((6, 6)))
    t[2, 2] = t[4, 4] = 0
    before = t.copy()
    assert trtri(t) == 3
    assert np.array_equal(t, before)


def test_a_tile_that_is_not_row_major_is_refused():
    for routine in (potrf, trtri):
        with pytest.raises(ValueError, match="not row-major"):
            routine(np.ones((4, 8))[:, ::2])


def test_other_threads_run_during_a_factorisation():
    a = np.eye(2500) * 4
    begun, stop, turns = threading.Event(), threading.Event(), [0]

    def count() -> None:
        begun.set()
        while not stop.is_set():
            turns[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    begun.wait()
    counted = []
    for _ in range(3):
        before = turns[0]
        assert potrf(a) == 0
        counted.append(turns[0] - before)
    stop.set()
    thread.join()
    assert max(counted) > 100
