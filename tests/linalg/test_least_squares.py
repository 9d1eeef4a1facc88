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


def graded(shape: tuple[int, int], condition: float, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """A matrix of this condition number, its singular values evenly spread on a logarithmic scale."""
    q, _ = np.linalg.qr(random(shape, dtype, rng))
    w, _ = np.linalg.qr(random((shape[1], shape[1]), dtype, rng))
    return ((q * np.geomspace(1, 1 / condition, shape[1])) @ w).astype(dtype)


@pytest.mark.parametrize("condition", [1e8, 3e11])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_ill_conditioned_problems_are_solved_as_well_as_by_svd(tmp_path: Path, dtype: str, condition: float) -> None:
    """Consistent and not, in RAM and from disk under a limit; operands stay as they are."""
    rng = np.random.default_rng()
    a, exact = graded((307, 41), condition, dtype, rng), random((41, 2), dtype, rng)
    b = a @ exact
    b[:, 1] += 1e-6 * random((307,), dtype, rng)
    before = a.copy(), b.copy()
    reference = np.linalg.lstsq(a, b, rcond=0)[0]
    eps = np.finfo(dtype).eps
    for x, residual in (lstsq(a, b, overwrite_a=True, overwrite_b=True), lstsq(lay(a, "disk", tmp_path), b, memory="64MB")):
        x = np.asarray(x)
        assert np.abs(x - exact)[:, 0].max() < 1e3 * eps * condition
        # The solution is as small as the reference's, and leaves no more.
        left, least = (np.linalg.norm(b - a @ y, axis=0) for y in (x, reference))
        rounding = 100 * eps * np.linalg.norm(x, axis=0)
        assert (left <= least + rounding).all()
        assert (np.abs(np.sqrt(residual) - left) <= rounding).all()
        assert (np.abs(a.conj().T @ (b - a @ x)).max(axis=0) <= rounding).all()
    assert np.array_equal(a, before[0])
    assert np.array_equal(b, before[1])


def test_scipys_drivers_are_names_for_the_one_method() -> None:
    rng = np.random.default_rng()
    a, b = rng.standard_normal((50, 7)), rng.standard_normal(50)
    for driver in (None, "gelsd", "gelsy", "gelss"):
        assert np.array_equal(lstsq(a, b, None, True, True, True, driver).x, lstsq(a, b).x)
    for wrong in ("gels", "", 3, ["gelsd"]):
        with pytest.raises(errors.ConfigError, match=r"lapack_driver is .*None or one of gelsd, gelsy, gelss"):
            lstsq(a, b, lapack_driver=wrong)


@pytest.mark.parametrize("dtype", DTYPES)
def test_problems_without_full_rank_are_refused_with_their_condition_number(dtype: str) -> None:
    rng = np.random.default_rng()
    eps = float(np.finfo(dtype).eps)
    for digits in (0.3, 0.5, 0.8):
        condition = eps**-digits
        a = graded((60, 12), condition, dtype, rng)
        with pytest.raises(errors.IllConditionedError, match="condition number of a is about") as caught:
            lstsq(a, np.ones(60, dtype), cond=2 / condition)
        assert condition / 10 < caught.value.condition < 12 * condition
        with pytest.raises(errors.IllConditionedError) as again:
            lstsq(a, np.ones(60, dtype), rcond=2 / condition)
        assert again.value.condition == caught.value.condition
    a = random((60, 8), dtype, rng)
    a[:, 5] = a[:, 2] + a[:, 3]
    for matrix in (a, np.diag([1, 1, 0]).astype(dtype)):
        with pytest.raises(errors.IllConditionedError, match="full rank") as caught:
            lstsq(matrix, np.ones(len(matrix), dtype))
        assert 0.01 / eps < caught.value.condition < np.inf
    with pytest.raises(errors.IllConditionedError, match="zero") as caught:
        lstsq(np.zeros((5, 2), dtype), np.ones(5))
    assert caught.value.condition == np.inf


def test_the_condition_that_is_accepted() -> None:
    for options in ({"cond": -0.1}, {"rcond": 1.0}, {"cond": "small"}, {"cond": np.nan}, {"cond": 0.1, "rcond": 0.2}):
        with pytest.raises(errors.ConfigError, match="cond is"):
            lstsq(np.eye(3), np.ones(3), **options)
    assert lstsq(np.eye(3), np.ones(3), 0.5, rcond=0.5).x == pytest.approx(np.ones(3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_condition_estimate(dtype: str) -> None:
    rng = np.random.default_rng()
    for a in (spd(40, dtype, rng), np.diag(np.logspace(0, 3, 40)).astype(dtype)):
        factor = cholesky(a)
        exact = np.linalg.cond(np.asarray(factor).astype("complex128"), 1)
        assert exact / 4 < condition_estimate(factor) < exact * 1.01
        twice = np.linalg.cond(np.asarray(factor).astype("complex128") @ np.asarray(factor), 1)
        assert twice / 16 < condition_estimate(factor, factor) < twice * 1.01
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
