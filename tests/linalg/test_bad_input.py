"""What each function refuses, in which words, and that nothing is left behind or changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycauset
from pycauset import errors
from pycauset.linalg import cho_solve, cholesky, det, inv, logdet, lstsq, slogdet, solve, solve_triangular
from tests.linalg.cases import DTYPES, lay, on_disk, poisoned, spd, triangular


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("lower", [True, False], ids=["lower", "upper"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_not_positive_definite(tmp_path: Path, dtype: str, lower: bool) -> None:
    """The first bad leading minor, its pivot in the whole matrix and its value; the input intact, no output."""
    a = spd(130, dtype, np.random.default_rng())
    a[97, 97] = a[120, 120] = -4
    head = a[:97, :97].astype("complex128")
    column = a[:97, 97].astype("complex128")
    value = -4 - (column.conj() @ np.linalg.solve(head, column)).real
    for place in ("ram", "disk", "function"):
        matrix = lay(poisoned(a, lower), place, tmp_path, lower=lower)
        before = names(tmp_path)
        for options in ({}, {"out": tmp_path / "factor.zarr"}, {"out": tmp_path / "factor.npy"}, {"memory": "64MB"}):
            with pytest.raises(errors.NotPositiveDefiniteError, match=r"pivot 97 is -.* order 98 ") as caught:
                cholesky(matrix, lower, **options)
            assert isinstance(caught.value, np.linalg.LinAlgError)
            assert (caught.value.order, caught.value.pivot) == (98, 97)
            assert caught.value.value == pytest.approx(value, rel=1e3 * float(np.finfo(dtype).eps))
            assert names(tmp_path) == before
        assert np.array_equal(matrix, poisoned(a, lower), equal_nan=True)
    with pytest.raises(errors.NotPositiveDefiniteError):
        solve(a, a, lower, assume_a="pos")
    with pytest.raises(errors.NotPositiveDefiniteError):
        inv(a, assume_a="pos", lower=lower)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(70, 20), (70, 70), (0, 0)])
def test_nan_and_infinity(tmp_path: Path, value: float, where: tuple[int, int]) -> None:
    a = spd(90, "float64", np.random.default_rng())
    a[where] = a[where[::-1]] = value
    row, col = where
    for place in ("ram", "disk", "function"):
        matrix = lay(a, place, tmp_path)
        if not (value == -np.inf and row == col):  # that is a pivot that is not positive
            with pytest.raises(errors.NonFiniteError, match=f"at row {row}, column {col}"):
                cholesky(matrix)
        for call in (lambda a: cholesky(a, check_finite=False), lambda a: slogdet(a, assume_a="pos")):
            with pytest.raises((errors.NotPositiveDefiniteError, errors.NonFiniteError)):
                call(matrix)
    array = a.copy()
    with pytest.raises((errors.NonFiniteError, errors.NotPositiveDefiniteError)):
        cholesky(array, overwrite=True)
    assert np.array_equal(array, a, equal_nan=True)
    assert not [name for name in names(tmp_path) if not name.startswith("a-")]


def test_nan_in_systems(tmp_path: Path) -> None:
    t = triangular(80, "float64", True, np.random.default_rng())
    b = np.ones((80, 3))
    for i, j in ((60, 7), (60, 60)):
        for value in (np.nan, np.inf):
            bad = t.copy()
            bad[i, j] = value
            for place in ("ram", "disk"):
                with pytest.raises(errors.NonFiniteError, match="60"):
                    solve_triangular(lay(bad, place, tmp_path), b, lower=True, memory="64MB")
                with pytest.raises(errors.NonFiniteError, match="60"):
                    solve_triangular(lay(bad, place, tmp_path), b, lower=True)
    b[33, 2] = np.nan
    for place in ("ram", "disk"):
        with pytest.raises(errors.NonFiniteError, match="b holds nan at row 33, column 2"):
            solve_triangular(lay(t, place, tmp_path), b, lower=True)
    x = solve_triangular(t, b, lower=True, check_finite=False)
    assert np.isfinite(np.asarray(x)[:, :2]).all()
    assert np.isnan(np.asarray(x)[33:, 2]).any()
    with pytest.raises(errors.NonFiniteError, match="overflows"):
        solve_triangular(np.eye(3) * 1e-300, np.full(3, 1e300), lower=True)


@pytest.mark.parametrize("place", ["ram", "disk", "function"])
@pytest.mark.parametrize("n", [20, 90])
def test_singular_triangles(tmp_path: Path, n: int, place: str) -> None:
    t = triangular(n, "float64", True, np.random.default_rng())
    t[n - 6, n - 6] = 0
    matrix = lay(t, place, tmp_path)
    before = names(tmp_path)
    for options in ({}, {"memory": "64MB"}, {"out": tmp_path / "x.zarr"}):
        for call in (
            lambda **options: solve_triangular(matrix, np.ones((n, 2)), lower=True, **options),
            lambda **options: inv(matrix, assume_a="lower triangular", **options),
        ):
            with pytest.raises(errors.SingularMatrixError, match=f"index {n - 6}") as caught:
                call(**options)
            assert caught.value.index == n - 6
            assert isinstance(caught.value, np.linalg.LinAlgError)
            assert names(tmp_path) == before
    with pytest.raises(errors.SingularMatrixError):
        cho_solve((matrix, True), np.ones(n))
    b = np.ones((n, 2))
    with pytest.raises(errors.SingularMatrixError):
        solve_triangular(matrix, b, lower=True, overwrite_b=True)
    assert (b == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_not_symmetric(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng()
    a = spd(100, dtype, rng)
    for place in ("ram", "disk", "function", "npy", "transposed", "adjoint on disk"):
        cholesky(lay(a, place, tmp_path), check=True, memory="64MB")
        bad = a.copy()
        bad[3, 77] = np.nextafter(bad[3, 77].real, 100)
        matrix = lay(bad, place, tmp_path)
        for memory in (None, "64MB"):
            with pytest.raises(errors.NotHermitianError, match=r"a\[77, 3\] is .* and a\[3, 77\] is") as caught:
                cholesky(matrix, check=True, memory=memory)
            assert caught.value.index == (77, 3)
        cholesky(matrix)  # only the lower triangle is read
    if np.dtype(dtype).kind == "c":
        a[5, 5] += 1e-3j
        with pytest.raises(errors.NotHermitianError, match="which has an imaginary part"):
            cholesky(a, check=True)


def test_shapes() -> None:
    a, b = np.eye(4), np.ones(4)
    for call in (cholesky, inv, det, slogdet, lambda a: solve(a, b), lambda a: solve_triangular(a, b)):
        with pytest.raises(errors.ShapeError, match=r"a has shape \(3, 4\); it must be square"):
            call(np.ones((3, 4)))
        with pytest.raises(errors.ShapeError, match=r"vector of shape \(4,\)"):
            call(b)
        with pytest.raises(errors.ShapeError, match="one or two dimensions"):
            call(np.ones((2, 2, 2)))
        with pytest.raises(errors.DtypeError, match="it must be a Matrix or an array"):
            call(5)
    for wrong in (np.ones(3), np.ones((5, 2))):
        for solver in (
            lambda b: solve(a, b, assume_a="pos"),
            lambda b: solve_triangular(a, b),
            lambda b: cho_solve((a, True), b),
        ):
            with pytest.raises(
                errors.ShapeError, match=rf"a has shape \(4, 4\) and b has shape \({len(wrong)},.*must have 4 rows"
            ):
                solver(wrong)


def test_outputs_that_cannot_take_the_result(tmp_path: Path) -> None:
    a: Any = spd(40, "complex128", np.random.default_rng())
    for out, error, words in (
        (np.empty((40, 41), complex), errors.ShapeError, r"out has shape \(40, 41\), but the result has shape \(40, 40\)"),
        (np.empty((40, 40)), errors.DtypeError, "cannot hold"),
        (a, errors.OverlapError, "shares storage"),
        (a[::-1], errors.OverlapError, "shares storage"),
        (5, errors.DtypeError, "must be a Matrix, an array, or a path"),
        (pycauset.asmatrix(a.copy()).H, errors.ShapeError, "give the matrix itself"),
        (tmp_path / "nowhere" / "a.zarr", errors.StoreNotFoundError, "make it first"),
        (on_disk(a, tmp_path / "upper.zarr", structure="upper"), errors.ShapeError, "stored as upper"),
        (tmp_path / "upper.zarr", errors.StoreExistsError, "exists"),
        (pycauset.from_function(lambda i, j: i + j, (40, 40), complex), errors.StorePermissionError, "read-only"),
    ):
        with pytest.raises(error, match=words):
            cholesky(a, out=out)
    assert names(tmp_path) == {"upper.zarr"}
    with pytest.raises(errors.ConfigError, match="give one of them"):
        cholesky(a, overwrite=True, out=np.empty_like(a))
    with pytest.raises(errors.ConfigError, match="variant"):
        cholesky(a, variant="diagonal")


def test_what_cannot_be_overwritten(tmp_path: Path) -> None:
    a = spd(40, "float64", np.random.default_rng())
    frozen = a.copy()
    frozen.flags.writeable = False
    for matrix, error, words in (
        (
            pycauset.from_function(lambda i, j: a[np.ix_(i, j)], a.shape, a.dtype),
            errors.StorePermissionError,
            "computed or read-only",
        ),
        (frozen, errors.StorePermissionError, "computed or read-only"),
        (np.eye(3, dtype=int), errors.DtypeError, "cannot hold its factor"),
        (on_disk(a, tmp_path / "a.zarr").T, errors.ShapeError, "is a view"),
        (on_disk(a, tmp_path / "u.zarr", structure="upper"), errors.ShapeError, "give lower=False"),
    ):
        with pytest.raises(error, match=words):
            cholesky(matrix, overwrite=True)
    assert np.array_equal(pycauset.open(tmp_path / "a.zarr"), a)


@pytest.mark.parametrize("out", [None, "x.zarr"])
def test_limits_that_are_too_small_come_with_one_that_is_not(tmp_path: Path, out: str | None) -> None:
    rng = np.random.default_rng()
    a = spd(300, "float64", rng)
    chunks = (300, 300)
    matrix = on_disk(a, tmp_path / "a.zarr", chunks=chunks)
    factor = on_disk(np.linalg.cholesky(a), tmp_path / "l.zarr", chunks=chunks)
    b = on_disk(rng.standard_normal((300, 300)), tmp_path / "b.zarr", chunks=chunks)
    calls: list[Any] = [
        lambda **options: cholesky(matrix, **options),
        lambda **options: solve_triangular(factor, b, lower=True, **options),
        lambda **options: inv(factor, assume_a="lower triangular", **options),
    ]
    for number, call in enumerate(calls):
        place = {"out": tmp_path / f"{number}{out}"} if out else {}
        with pytest.raises(errors.MemoryLimitError, match=r"memory='[\d.]+MB' is enough for") as caught:
            call(memory="20kB", **place)
        call(memory=re.findall(r"memory='([\d.]+MB)' is enough", str(caught.value))[-1], **place)


def test_small_things(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    t, b = triangular(9, "complex128", True, rng), rng.standard_normal((9, 2))
    for number, name in enumerate("NTC"):
        for kind in (np.int64, np.uint8):
            assert np.array_equal(solve_triangular(t, b, kind(number), True), solve_triangular(t, b, name, True))
    for wrong in ("x", "lower", 1.5, None):
        with pytest.raises(errors.ConfigError, match=r"lower is .* in \(c, lower\); it must be True or False"):
            cho_solve((t, wrong), b)
    for lower in (True, np.True_, 1, np.int64(1)):
        assert np.array_equal(cho_solve((t, lower), b), cho_solve((t, True), b))
    rows = [[2.0, 0.0], [1.0, 3.0]]
    with pytest.raises(errors.ConfigError, match="which triangle"):
        cho_solve(rows, np.ones(2))
    assert cho_solve((rows, True), np.ones(2)).shape == (2,)
    bad = np.eye(3)
    bad[1, 1] = np.nan
    for call, name in ((det, "det"), (logdet, "logdet"), (slogdet, "slogdet")):
        with pytest.raises(errors.NonFiniteError, match=rf"^{name}: "):
            call(bad, assume_a="diagonal")
        with pytest.raises(errors.ShapeError, match=rf"^{name}: "):
            call(np.ones((2, 3)))
        with pytest.raises(errors.ConfigError, match=rf"^{name}: "):
            call(np.ones((2, 2)))
    a = spd(9, "float64", rng)
    for suffix in (".npy", ".zarr"):
        for name, array in (("a", a), ("b", b), ("t", np.tril(a))):
            pycauset.save(tmp_path / f"{name}{suffix}", array)
        a_path, b_path, t_path = (tmp_path / f"{name}{suffix}" for name in "abt")
        assert np.allclose(solve(a_path, str(b_path), assume_a="pos"), np.linalg.solve(a, b))
        assert np.allclose(lstsq(str(a_path), b_path).x, np.linalg.solve(a, b))
        assert np.allclose(solve_triangular(t_path, b_path, lower=True), np.linalg.solve(np.tril(a), b))
        assert np.allclose(cho_solve((t_path, True), b_path), np.linalg.solve(np.tril(a) @ np.tril(a).T, b))


def test_arguments_without_meaning() -> None:
    a = np.eye(3)
    with pytest.raises(errors.ConfigError, match="trans is 'X'"):
        solve_triangular(a, np.ones(3), "X")
    with pytest.raises(errors.ConfigError, match="which triangle"):
        cho_solve(pycauset.asmatrix(a), np.ones(3))
    with pytest.raises(errors.ConfigError, match="resume"):
        cholesky(a, out="x.zarr", resume="perhaps")
    with pytest.raises(errors.DtypeError, match=r"cannot be computed with|element type"):
        cholesky(np.eye(3, dtype="longdouble"))
