"""Diagonal matrices: nothing but the diagonal counts, wherever A, B and the result lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg

import pycauset
from pycauset.errors import ConfigError, NonFiniteError, OverlapError, SingularMatrixError, StoreExistsError
from pycauset.linalg import inv, slogdet, solve
from pycauset.storage import ArrayStore
from pycauset.tiling import Rect
from tests.drivers.fakes import random_matrix
from tests.solver.test_solver import on_disk

DTYPES = ["float32", "float64", "complex64", "complex128"]


def trapped(n: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """A matrix that holds NaN beside its diagonal, which lies away from zero; and the diagonal."""
    rng = np.random.default_rng()
    d = random_matrix(rng, (n, 1), dtype)[:, 0]
    d += np.where(d.real < 0, -1, 1).astype(dtype)
    a = np.full((n, n), np.nan, dtype)
    np.fill_diagonal(a, d)
    return a, d


def test_as_scipy() -> None:
    a, b = [[2.0, 0.0], [7.0, 4.0]], [1.0, 1.0]
    np.testing.assert_array_equal(solve(a, b, assume_a="diagonal"), [0.5, 0.25])
    np.testing.assert_array_equal(solve(a, b, assume_a="diagonal"), scipy.linalg.solve(a, b, assume_a="diagonal"))
    np.testing.assert_array_equal(inv(a, assume_a="diagonal").to_numpy(), [[0.5, 0.0], [0.0, 0.25]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_systems_and_inverses(dtype: str, tmp_path: Path) -> None:
    n, m = 130, 37
    rng = np.random.default_rng()
    a, d = trapped(n, dtype)
    b = random_matrix(rng, (n, m), dtype)
    expected = b / d[:, None]
    close = {"rtol": 16 * np.finfo(dtype).eps, "atol": 0}
    np.testing.assert_allclose(solve(a, b, assume_a="diagonal").to_numpy(), expected, **close)
    np.testing.assert_allclose(solve(a, b[:, 0], assume_a="diagonal", transposed=True), expected[:, 0], **close)
    stored = pycauset.Matrix(on_disk(tmp_path / "a.zarr", a, (32, 32)))
    right = pycauset.Matrix(on_disk(tmp_path / "b.zarr", b, (24, 40)))
    x = solve(stored.H, right, assume_a="diagonal", out=tmp_path / "x.zarr", memory="20MB", overwrite_b=True)
    np.testing.assert_allclose(x.to_numpy(), b / d.conj()[:, None], **close)
    np.testing.assert_array_equal(right.to_numpy(), b)
    for inverse in (inv(a, assume_a="diagonal"), inv(stored, assume_a="diagonal", out=tmp_path / "i.zarr")):
        assert inverse.properties.is_diagonal
        np.testing.assert_allclose(inverse.to_numpy(), np.diag(1 / d), **close)
    assert pycauset.open(tmp_path / "i.zarr").properties.is_diagonal
    with pytest.raises(StoreExistsError):
        solve(a, b, assume_a="diagonal", out=tmp_path / "x.zarr")


def test_places_of_the_callers() -> None:
    a, d = trapped(40, "float64")
    rng = np.random.default_rng()
    b = rng.standard_normal((40, 3))
    expected = b / d[:, None]
    out = np.empty((40, 3), "float32")
    assert solve(a, b, assume_a="diagonal", out=out) is out
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    with pytest.raises(OverlapError):
        solve(a, b, assume_a="diagonal", out=b)
    inside = b.copy()
    solve(a, inside, assume_a="diagonal", overwrite_b=True)
    np.testing.assert_array_equal(inside, expected)
    kept = b.copy()
    kept.flags.writeable = False  # a permission that cannot be used
    np.testing.assert_array_equal(solve(a, kept, assume_a="diagonal", overwrite_b=True).to_numpy(), expected)
    matrix = pycauset.asmatrix(np.diag(d))
    matrix.properties.is_diagonal = True
    np.testing.assert_array_equal(solve(matrix, b).to_numpy(), expected)
    unit = pycauset.asmatrix(a.copy())
    unit.properties.update({"is_diagonal": True, "has_unit_diagonal": True})
    np.testing.assert_array_equal(solve(unit, b).to_numpy(), b)


def test_only_the_diagonal_is_read() -> None:
    class Counting(ArrayStore):
        elements = 0

        def view(self, rect: Rect) -> None:
            return None

        def read(self, rect: Rect, out: np.ndarray) -> None:
            Counting.elements += rect.size
            super().read(rect, out)

    n = 2000
    a, d = trapped(n, "float64")
    matrix = pycauset.Matrix(Counting(a))
    for call in (lambda: solve(matrix, d, assume_a="diagonal"), lambda: inv(matrix, assume_a="diagonal")):
        Counting.elements = 0
        call()
        assert Counting.elements <= 512 * n


def test_what_cannot_be_divided_by() -> None:
    a, _ = trapped(30, "float64")
    a[7, 7] = 0
    for call in (lambda: solve(a, np.ones(30), assume_a="diagonal"), lambda: inv(a, assume_a="diagonal")):
        with pytest.raises(SingularMatrixError, match="zero at index 7") as caught:
            call()
        assert caught.value.index == 7
        assert isinstance(caught.value, np.linalg.LinAlgError)
    a[7, 7] = np.inf
    with pytest.raises(NonFiniteError, match="inf at index 7"):
        solve(a, np.ones(30), assume_a="diagonal")
    assert solve(a, np.ones(30), assume_a="diagonal", check_finite=False)[7] == 0
    assert solve(np.empty((0, 0)), np.empty((0, 2)), assume_a="diagonal").shape == (0, 2)
    assert inv(np.empty((0, 0)), assume_a="diagonal").shape == (0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_quotients_beyond_the_range(dtype: str) -> None:
    a, _ = trapped(30, dtype)
    a[7, 7] = np.finfo(dtype).smallest_subnormal
    b = np.ones((30, 2), dtype)
    with np.errstate(all="raise"):  # errors of their own, not NumPy's
        with pytest.raises(NonFiniteError, match=r"overflows .* at index 7"):
            inv(a, assume_a="diagonal")
        with pytest.raises(NonFiniteError, match="solution overflows"):
            solve(a, b, assume_a="diagonal")
        assert not np.isfinite(inv(a, assume_a="diagonal", check_finite=False)[7, 7])
    b[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"b holds .*nan.* at row 3, column 1"):
        solve(a, b, assume_a="diagonal")


def test_limits_and_plans() -> None:
    a, _ = trapped(30, "float64")
    for limits in ({"memory": "much"}, {"gpu_memory": "much"}):
        for call in (
            lambda limits=limits: solve(a, np.ones(30), assume_a="diagonal", **limits),
            lambda limits=limits: inv(a, assume_a="diagonal", **limits),
            lambda limits=limits: slogdet(a, assume_a="diagonal", **limits),
        ):
            with pytest.raises(ConfigError, match="much"):
                call()
    for operands in (("inv", a), ("solve", a, np.ones(30))):
        with pytest.raises(ConfigError, match="nothing to plan"):
            pycauset.plan(*operands, assume_a="diagonal")
