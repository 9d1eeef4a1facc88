"""Least squares against NumPy's SVD, and the problems that normal equations must refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pycauset
from pycauset import errors
from pycauset.linalg import cholesky, lstsq
from pycauset.linalg.least_squares import condition_estimate
from tests.linalg.cases import DTYPES, lay, random, spd, triangular


@pytest.mark.parametrize("place", ["ram", "disk", "function", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_solution_and_residual(tmp_path: Path, dtype: str, place: str) -> None:
    rng = np.random.default_rng()
    a, b = random((170, 23), dtype, rng), random((170, 3), dtype, rng)
    matrix = lay(a, place, tmp_path)
    wide = "complex128" if np.dtype(dtype).kind == "c" else "float64"
    expected, sums = np.linalg.lstsq(a.astype(wide), b.astype(wide))[:2]
    tolerance = 200 * float(np.finfo(dtype).eps)
    x, residual = lstsq(matrix, lay(b, "disk" if place == "disk" else "ram", tmp_path, name="b"), memory="80MB")
    assert x.dtype == dtype
    assert np.abs(np.asarray(x) - expected).max() < tolerance
    assert residual == pytest.approx(sums, rel=tolerance)
    v, residual = lstsq(matrix, b[:, 0])
    assert isinstance(v, np.ndarray)
    assert v.shape == (23,)
    assert np.abs(v - expected[:, 0]).max() < tolerance
    assert residual == pytest.approx(sums[:1], rel=tolerance)
    out = np.full((23, 3), np.nan, dtype)
    assert lstsq(matrix, b, out=out).x is out
    assert np.abs(out - expected).max() < tolerance
    y, _ = lstsq(matrix, b, out=tmp_path / "x.zarr")
    assert np.array_equal(y, pycauset.open(tmp_path / "x.zarr"))


def test_refinement_reaches_what_normal_equations_alone_do_not() -> None:
    """Condition 1e6, consistent right-hand side: the error is that of a stable method, not of its square."""
    rng = np.random.default_rng()
    q, _ = np.linalg.qr(rng.standard_normal((200, 20)))
    w, _ = np.linalg.qr(rng.standard_normal((20, 20)))
    a = (q * np.logspace(0, -5, 20)) @ w.T
    x = rng.standard_normal(20)
    b = a @ x
    plain = np.linalg.solve(a.T @ a, a.T @ b)
    refined = lstsq(a, b).x
    assert np.abs(refined - x).max() < 1e-9
    assert np.abs(refined - x).max() < np.abs(plain - x).max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_ill_conditioned_problems_are_refused(dtype: str) -> None:
    rng = np.random.default_rng()
    a = random((60, 8), dtype, rng)
    a[:, 5] = a[:, 2] + a[:, 3] * np.finfo(dtype).eps
    with pytest.raises(errors.IllConditionedError, match=r"condition|full rank") as caught:
        lstsq(a, np.ones(60))
    assert caught.value.condition > 1 / np.finfo(dtype).eps ** 0.5 / 10
    with pytest.raises(errors.IllConditionedError):
        lstsq(np.zeros((5, 2), dtype), np.ones(5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_condition_estimate(dtype: str) -> None:
    rng = np.random.default_rng()
    for a in (spd(40, dtype, rng), np.diag(np.logspace(0, 3, 40)).astype(dtype)):
        factor = cholesky(a)
        exact = np.linalg.cond(np.asarray(factor).astype("complex128"), 1)
        assert exact / 4 < condition_estimate(factor) < exact * 1.01
    t = triangular(40, dtype, True, rng)
    exact = np.linalg.cond(t.astype("complex128"), 1)
    assert exact / 4 < condition_estimate(pycauset.asmatrix(t, is_lower_triangular=True)) < exact * 1.01


def test_shapes() -> None:
    with pytest.raises(errors.ShapeError, match="at least as many rows"):
        lstsq(np.ones((2, 3)), np.ones(2))
    with pytest.raises(errors.ShapeError, match="b must have 4 rows"):
        lstsq(np.ones((4, 3)), np.ones(3))
    with pytest.raises(errors.ShapeError, match="two dimensions"):
        lstsq(np.ones(4), np.ones(4))
    x, residual = lstsq(np.ones((4, 0)), np.ones(4))
    assert x.shape == (0,)
    assert residual == pytest.approx([4.0])
    assert lstsq(np.eye(3), np.ones((3, 0))).x.shape == (3, 0)
    with pytest.raises(errors.NonFiniteError, match="b holds"):
        lstsq(np.eye(3), [1, np.nan, 2])
    with pytest.raises(errors.NonFiniteError):
        lstsq(np.full((3, 1), np.inf), np.ones(3), check_finite=False)
