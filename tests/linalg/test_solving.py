"""Triangular and positive definite systems, inverses and determinants from every place, against residuals in higher precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg

import pycauset
from pycauset import Matrix, errors
from pycauset.linalg import cho_solve, cholesky, det, inv, logdet, slogdet, solve, solve_triangular
from pycauset.solver import last_statistics
from pycauset.storage import create_store
from tests.linalg.cases import DTYPES, PLACES, lay, norm1, on_disk, poisoned, random, solve_ratio, spd, triangular, wide

OPS = {"N": lambda a: a, "T": lambda a: a.T, "C": lambda a: a.conj().T}


@pytest.mark.parametrize("lower", [True, False], ids=["lower", "upper"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_triangular_systems(tmp_path: Path, dtype: str, place: str, lower: bool) -> None:
    """Every operation on every view; the triangle that is not named holds NaN, and so does a unit diagonal."""
    rng = np.random.default_rng()
    t = triangular(77, dtype, lower, rng)
    b = random((77, 35), dtype, rng)
    trap = poisoned(t, lower)
    plain = lay(trap, place, tmp_path, lower=lower)
    right = lay(b, "disk" if "disk" in place else place if place != "one triangle" else "ram", tmp_path, name="b")
    for trans, op in OPS.items():
        x = solve_triangular(plain, right, trans, lower)
        assert x.dtype == t.dtype
        assert solve_ratio(op(t), x, b) < 30
    solve_triangular(plain, right, 2, lower, memory="64MB", out=tmp_path / "x.zarr")
    assert solve_ratio(t.conj().T, pycauset.open(tmp_path / "x.zarr"), b) < 30
    np.fill_diagonal(trap, np.nan)
    unit = lay(trap, place, tmp_path, lower=lower)
    np.fill_diagonal(t, 1)
    x = solve_triangular(unit, right, "N", lower, unit_diagonal=True)
    assert solve_ratio(t, x, b) < 30
    v = solve_triangular(unit, b[:, 0].copy(), "T", lower, True)
    assert isinstance(v, np.ndarray)
    assert v.shape == (77,)
    assert solve_ratio(t.T, v, b[:, 0]) < 30


@pytest.mark.parametrize("lower", [True, False], ids=["lower", "upper"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_streamed_through_little_memory(tmp_path: Path, dtype: str, lower: bool) -> None:
    rng = np.random.default_rng()
    t, b = triangular(130, dtype, lower, rng), random((130, 130), dtype, rng)
    place = on_disk(poisoned(t, lower), tmp_path / "t.zarr")
    right = on_disk(b, tmp_path / "b.zarr")
    for trans in "NC":
        x = solve_triangular(place, right, trans, lower, memory=b.nbytes * 19 // 10)
        statistics = last_statistics()
        assert statistics is not None
        assert statistics.tasks > 30
        assert type(x.store).__name__ == "ZarrStore"
        assert solve_ratio(OPS[trans](t), x, b) < 30
    assert solve_triangular(place, right, "N", lower, overwrite_b=True, memory="64MB") is right
    assert solve_ratio(t, pycauset.open(tmp_path / "b.zarr"), b) < 30


def test_scipys_numbers_for_operations() -> None:
    t, b = triangular(9, "complex128", True, np.random.default_rng()), np.ones(9)
    for number, name in enumerate("NTC"):
        assert np.array_equal(solve_triangular(t, b, number, True), solve_triangular(t, b, name, True))


def test_properties_tell_the_triangle() -> None:
    t = triangular(20, "float64", True, np.random.default_rng())
    b = np.ones(20)
    lower = pycauset.asmatrix(t, is_lower_triangular=True)
    assert solve_ratio(t, solve_triangular(lower, b), b) < 30
    assert solve_ratio(t.T, solve_triangular(lower.T, b), b) < 30
    assert solve_ratio(np.diag(t.diagonal()), solve_triangular(t, b), b) < 30  # as SciPy: the upper triangle, and nothing above
    lower.properties.has_unit_diagonal = True
    np.fill_diagonal(t, 1)
    assert solve_ratio(t, solve_triangular(lower, b), b) < 30


@pytest.mark.parametrize("dtype", DTYPES)
def test_positive_definite_systems(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng()
    a, b = spd(60, dtype, rng), random((60, 7), dtype, rng)
    for lower in (True, False):
        trap = poisoned(a, lower)
        for place in ("ram", "disk", "adjoint on disk"):
            matrix = lay(trap, place, tmp_path, lower=lower)
            for limits in ({}, {"memory": "64MB"}):
                factor = cholesky(matrix, lower, **limits)
                assert solve_ratio(a, cho_solve((factor, lower), b, **limits), b) < 30
                assert solve_ratio(a, cho_solve(factor, b[:, 0], **limits), b[:, 0]) < 30
                assert solve_ratio(a, solve(matrix, b, lower, assume_a="pos", **limits), b) < 30
        conjugated = solve(lay(trap, "disk", tmp_path), b, lower, assume_a="positive definite", transposed=True)
        assert solve_ratio(a.T, conjugated, b) < 30
    claimed = pycauset.asmatrix(a, is_positive_definite=True)
    assert solve_ratio(a, solve(claimed, b), b) < 30
    x = solve(claimed, b, out=tmp_path / "x.zarr")
    assert solve_ratio(a, pycauset.open(tmp_path / "x.zarr"), b) < 30
    assert solve_ratio(a, x, b) < 30
    out = np.full(b.shape, np.nan, dtype)
    assert solve(claimed, b, out=out) is out
    assert solve_ratio(a, out, b) < 30
    c = scipy.linalg.cho_factor(a, lower=True)  # SciPy leaves what was there in the other triangle
    assert solve_ratio(a, cho_solve(c, b), b) < 30


def test_right_hand_sides_by_numpys_rules(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    a = spd(12, "float64", rng)
    for b in (rng.standard_normal(12), rng.standard_normal((12, 1)), rng.standard_normal((12, 0)), [1] * 12, np.arange(12)):
        x = solve(a, b, assume_a="pos")
        assert x.shape == np.linalg.solve(a, np.asarray(b)).shape
        assert isinstance(x, np.ndarray if np.ndim(b) == 1 else Matrix)
        assert x.dtype == "float64"
        assert solve_ratio(a, x, np.asarray(b, "float64")) < 30
    assert solve(a.astype("float32"), np.ones(12, "complex64"), assume_a="pos").dtype == "complex64"
    assert solve(np.zeros((0, 0)), np.zeros(0), assume_a="pos").shape == (0,)
    out = np.full(12, np.nan)
    assert solve(a, np.ones(12), assume_a="pos", out=out) is out
    assert solve_ratio(a, out, np.ones(12)) < 30
    b = np.ones(12)
    x = solve(a, b, assume_a="pos", overwrite_b=True)
    assert np.shares_memory(x, b)
    ints = np.ones(12, int)  # cannot hold it: SciPy's permission, not an order
    assert not np.shares_memory(solve(a, ints, assume_a="pos", overwrite_b=True), ints)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inverses(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng()
    eps = np.finfo(dtype).eps
    n = 70
    for memory in (None, 19 * n * n * np.dtype(dtype).itemsize // 10):
        for lower in (True, False):
            t = triangular(n, dtype, lower, rng)
            kind = "lower triangular" if lower else "upper triangular"
            place = on_disk(poisoned(t, lower), tmp_path / f"t{n}{lower}{memory}.zarr")
            w = inv(place, assume_a=kind, memory=memory)
            assert (w.properties.is_lower_triangular or w.properties.is_upper_triangular) is True
            x = np.asarray(w).astype(wide(dtype))
            assert not (np.triu(x, 1) if lower else np.tril(x, -1)).any()
            assert norm1(np.eye(n) - x @ t) / (n * norm1(t) * norm1(x) * eps) < 30
            a = spd(n, dtype, rng)
            given = create_store(tmp_path / f"f{n}{lower}{memory}.zarr", (n, n), dtype, chunks=(32, 32))
            for out in (None, tmp_path / f"{n}{lower}{memory}.zarr", Matrix(given)):
                place = on_disk(poisoned(a, lower), tmp_path / f"{rng.integers(1 << 60)}.zarr")
                g = inv(place, assume_a="pos", lower=lower, memory=memory and "40MB", out=out)
                assert g.properties.is_positive_definite
                x = np.asarray(g).astype(wide(dtype))
                assert np.array_equal(x, x.conj().T)
                assert norm1(np.eye(n) - x @ a) / (n * norm1(a) * norm1(x) * eps) < 30
    assert inv(np.zeros((0, 0)), assume_a="pos").shape == (0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_determinants(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng()
    a = spd(70, dtype, rng)
    logarithm = np.linalg.slogdet(a.astype("complex128" if np.dtype(dtype).kind == "c" else "float64"))[1]
    eps = float(np.finfo(dtype).eps)
    for place in ("ram", "disk", "function"):
        found = slogdet(lay(poisoned(a, True), place, tmp_path), assume_a="pos", memory="64MB")
        assert found.sign == 1
        assert found.logabsdet == pytest.approx(logarithm, rel=1e3 * eps)
        assert logdet(lay(poisoned(a, True), place, tmp_path), assume_a="pos") == pytest.approx(logarithm, rel=1e3 * eps)
    assert found.logabsdet.dtype == np.empty(0, dtype).real.dtype
    assert found.sign.dtype == dtype
    t = triangular(9, dtype, False, rng)
    if np.dtype(dtype).kind == "c":
        t *= np.exp(1j)
    t[4, 4] *= -1
    for place in ("ram", "disk", "adjoint on disk", "one triangle"):
        matrix = lay(t, place, tmp_path, lower=False)
        matrix.properties.is_upper_triangular = True
        assert det(matrix) == pytest.approx(np.linalg.det(t.astype("complex128")), rel=1e3 * eps)
        assert np.isnan(logdet(matrix))
    t[3, 3] = 0
    assert slogdet(t, assume_a="upper triangular") == (0, -np.inf)
    assert det(t, assume_a="upper triangular") == 0
    assert logdet(t, assume_a="upper triangular") == -np.inf
    assert slogdet(np.eye(500, dtype=dtype) * 1e20, assume_a="diagonal").logabsdet == pytest.approx(500 * np.log(1e20), rel=1e-6)
    assert np.isinf(det(np.eye(500, dtype=dtype) * 1e20, assume_a="diagonal"))
    identity = pycauset.eye(5)
    assert slogdet(identity) == (1, 0)
    empty = np.zeros((0, 0), dtype)
    permitted = t.copy()  # SciPy's second positional argument
    assert det(permitted, True, False, "upper triangular") == slogdet(permitted, True, True, "upper triangular").sign == 0
    assert np.array_equal(permitted, t)
    assert (det(empty, assume_a="pos"), det(empty, assume_a="diagonal")) == (1, 1)
    kept = a.copy()
    assert logdet(kept, assume_a="pos", overwrite_a=False, check_finite=False) == pytest.approx(logarithm, rel=1e3 * eps)
    assert np.array_equal(kept, a)
    assert logdet(kept, assume_a="pos", overwrite_a=True) == pytest.approx(logarithm, rel=1e3 * eps)
    assert np.abs(np.tril(kept) @ np.tril(kept).conj().T - a).max() < 1e3 * eps * np.abs(a).max()


def test_matrices_of_which_nothing_is_known_wait_for_lu() -> None:
    a = np.random.default_rng().standard_normal((4, 4))
    for call in (lambda: solve(a, a), lambda: inv(a), lambda: det(a), lambda: slogdet(a)):
        with pytest.raises(errors.ConfigError, match="LU, for all others, comes with a later version"):
            call()
    with pytest.raises(errors.ConfigError, match="has no method of its own"):
        solve(a, a, assume_a="sym")
    with pytest.raises(errors.ConfigError, match="must be one of"):
        solve(a, a, assume_a="sparse")


def test_what_is_no_permission_overwrites_nothing() -> None:
    a = spd(20, "float64", np.random.default_rng())
    known = pycauset.asmatrix(a.copy(), is_positive_definite=True)
    for call in (det, logdet, slogdet):
        for options in (("pos",), (False, "pos"), (None,)):
            with pytest.raises(errors.ConfigError, match="must be True or False"):
                call(known, *options)
    assert np.array_equal(known, a)
    assert logdet(known, np.False_, 1) == pytest.approx(np.linalg.slogdet(a)[1])


def test_numpys_functions() -> None:
    a = pycauset.asmatrix(spd(30, "float64", np.random.default_rng()), is_positive_definite=True)
    plain = a.to_numpy().copy()
    assert np.allclose(np.linalg.cholesky(a), np.linalg.cholesky(plain))
    assert np.allclose(np.linalg.cholesky(a, upper=True), np.linalg.cholesky(plain, upper=True))
    assert np.allclose(np.linalg.solve(a, plain[:, 0]), np.linalg.solve(plain, plain[:, 0]))
    assert np.allclose(np.linalg.inv(a), np.linalg.inv(plain))
    assert np.linalg.slogdet(a) == pytest.approx(np.linalg.slogdet(plain))
    assert np.linalg.det(a) == pytest.approx(np.linalg.det(plain))


def test_the_factor_may_take_the_place_of_an_array_only(tmp_path: Path) -> None:
    a = spd(40, "float64", np.random.default_rng())
    array, matrix = a.copy(), on_disk(a, tmp_path / "a.zarr")
    b = np.ones(40)
    for place in (array, matrix, np.eye(40, dtype=int)):
        kept = np.array(place, float)
        assert solve_ratio(kept, solve(place, b, overwrite_a=True, assume_a="pos"), b) < 30
    assert not np.array_equal(array, a)
    assert np.array_equal(matrix, a)


def test_operands_stay_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    a: Any = spd(50, "float64", rng)
    b = rng.standard_normal((50, 3))
    kept = a.copy(), b.copy()
    matrix = on_disk(a, tmp_path / "a.zarr")
    for place in (a, matrix):
        solve(place, b, assume_a="pos")
        inv(place, assume_a="pos")
        slogdet(place, assume_a="pos")
        cholesky(place)
    assert np.array_equal(a, kept[0])
    assert np.array_equal(b, kept[1])
    assert np.array_equal(matrix, kept[0])
