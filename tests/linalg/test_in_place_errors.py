"""Factorisations in place that fail: nothing is destroyed that need not be, what is left is told, and what can be is restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycauset
from pycauset import Matrix, errors
from pycauset.linalg import cholesky
from pycauset.storage import FunctionStore, open_store
from pycauset.storage.journal import read_journal
from tests.linalg.cases import DTYPES, on_disk, spd

PLACES = ["array", "Fortran", "small", "strided", "npy", "disk", "one triangle"]
Array = np.ndarray[Any, Any]


def laid(a: Array, place: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """A matrix to overwrite, and options that force what the place stands for."""
    if place == "small":  # LAPACK has the whole of it
        return a.copy(), {}
    if place == "Fortran":
        return np.asfortranarray(a), {}
    if place == "strided":  # no kernel takes it as it lies
        wide = np.zeros((2 * len(a), 2 * len(a)), a.dtype)
        wide[::2, ::2] = a
        return wide[::2, ::2], {"memory": a.nbytes}
    if place == "npy":
        np.save(folder / "a.npy", a)
        matrix = pycauset.open(folder / "a.npy")
        matrix.store.chunks = (32, 32)  # as of a larger file
        return matrix, {"memory": a.nbytes * 3 // 4}
    if place == "array":
        return a.copy(), {"variant": "right", "memory": a.nbytes}
    return on_disk(a, folder / "a.zarr", structure="full" if place == "disk" else "lower"), {"memory": a.nbytes * 3 // 4}


def generated(a: Array, broken: Any = None) -> Matrix:
    """The same elements, from a function."""

    def f(rows: Array, cols: Array) -> Array:
        if broken is not None:
            broken()
        return a[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]

    return Matrix(FunctionStore(f, a.shape, a.dtype, (24, 40)))


def raw(place: str, matrix: Any, folder: Path, shape: tuple[int, int]) -> Array:
    """What lies there, as far as it can be read, also of a mixture."""
    if place == "npy":
        return np.fromfile(folder / "a.npy", matrix.dtype)[-shape[0] * shape[1] :].reshape(shape)
    if "array" in place or place in ("Fortran", "small", "strided"):
        return np.asarray(matrix)
    out = np.zeros(shape, matrix.dtype)
    for file in (folder / "a.zarr" / "c").rglob("*"):
        if file.is_file():
            i, j = int(file.parent.name), int(file.name)
            part = out[32 * i : 32 * i + 32, 32 * j : 32 * j + 32]
            part[...] = np.fromfile(file, matrix.dtype).reshape(32, 32)[: part.shape[0], : part.shape[1]]
    return out


@pytest.mark.parametrize(
    ("place", "dtype"), [*((place, "float64") for place in PLACES), *(("disk", dtype) for dtype in DTYPES if dtype != "float64")]
)
def test_the_error_tells_what_each_tile_holds(tmp_path: Path, place: str, dtype: str) -> None:
    n, pivot = 270, 200
    a = spd(n, dtype, np.random.default_rng())
    expected = np.linalg.cholesky(a)
    a[pivot, pivot] = -1
    matrix, options = laid(a, place, tmp_path)
    with pytest.raises(errors.NotPositiveDefiniteError, match=r"hold the factor.*restore= does so") as caught:
        cholesky(matrix, overwrite=True, **options)
    error = caught.value
    assert (error.pivot, error.order) == (pivot, pivot + 1)
    assert error.tiles is not None
    assert error.tiles["factor"]
    assert sum(rect.size for rects in error.tiles.values() for rect in rects) > n * n / 2
    held = raw(place, matrix, tmp_path, a.shape)
    tolerance = 1e4 * float(np.finfo(dtype).eps)
    for kind, whole in (("factor", expected), ("original", a)):
        for rect in error.tiles[kind]:
            on = np.tril(np.ones(a.shape, bool))[rect.slices]
            np.testing.assert_allclose(held[rect.slices][on], whole[rect.slices][on], rtol=tolerance, atol=n * tolerance)
    if place in ("npy", "disk", "one triangle"):
        with pytest.raises(errors.StoreError):
            pycauset.open(tmp_path / ("a.npy" if place == "npy" else "a.zarr"))
        assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("lower", [True, False], ids=["lower", "upper"])
@pytest.mark.parametrize("place", PLACES[:-1])
def test_a_generated_operand_restores_them(tmp_path: Path, place: str, lower: bool) -> None:
    n = 270
    a = spd(n, "complex64" if place == "disk" else "float64", np.random.default_rng())
    a[200, 200] = -1
    matrix, options = laid(a, place, tmp_path)
    source = generated(a)
    with pytest.raises(errors.NotPositiveDefiniteError, match="has been restored, and is as it was") as caught:
        cholesky(matrix, lower, overwrite=True, restore=source, **options)
    error = caught.value
    assert error.tiles is not None
    assert [kind for kind, rects in error.tiles.items() if rects] == ["original"]
    assert sum(rect.size for rect in error.tiles["original"]) >= n * n / 2
    if place in ("npy", "disk"):
        path = tmp_path / ("a.npy" if place == "npy" else "a.zarr")
        matrix = pycauset.open(path)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
        assert matrix.store.structure == "full"
        assert matrix.properties.is_lower_triangular is None
    assert np.array_equal(matrix, a)
    if place == "disk":  # and it is a matrix as any other
        a[200, 200] = a[199, 199]
        matrix[200, 200] = a[199, 199]
        assert np.isfinite(cholesky(matrix, lower, overwrite=True, restore=generated(a)).to_numpy()).all()


def test_restoring_survives_a_kill(tmp_path: Path) -> None:
    """The next call restores the rest, and says what was wrong."""

    class Killed(BaseException):
        pass

    a = spd(270, "float64", np.random.default_rng())
    a[250, 250] = -1
    matrix, options = laid(a, "one triangle", tmp_path)
    calls = [0]

    def broken() -> None:
        calls[0] += 1
        if calls[0] > 30:
            raise Killed

    with pytest.raises(Killed):
        cholesky(matrix, overwrite=True, restore=generated(a, broken), **options)
    generations = {record["generation"] for record in read_journal(tmp_path / "a.zarr.journal")[1] if "tile" in record}
    assert max(generations) >= 1 << 40
    path = tmp_path / "a.zarr"
    with pytest.raises(errors.ConfigError, match="give restore= again"):
        cholesky(path, overwrite=True, **options)
    with pytest.raises(errors.NotPositiveDefiniteError, match="is as it was") as caught:
        cholesky(path, overwrite=True, restore=generated(a), **options)
    assert caught.value.pivot == 250
    assert np.array_equal(np.tril(pycauset.open(path).to_numpy()), np.tril(a))
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_nothing_is_lost_where_the_first_pivot_is_bad(tmp_path: Path) -> None:
    a = -spd(90, "float64", np.random.default_rng())
    matrix = on_disk(a, tmp_path / "a.zarr")
    with pytest.raises(errors.NotPositiveDefiniteError) as caught:
        cholesky(matrix, overwrite=True, memory="64MB")
    assert caught.value.pivot == 0
    assert any("as it was" in note for note in caught.value.__notes__)
    assert caught.value.tiles is not None
    assert not caught.value.tiles["factor"]
    assert np.array_equal(pycauset.open(tmp_path / "a.zarr"), a)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("place", ["npy", "disk", "one triangle"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_is_found_before_anything_is_overwritten(tmp_path: Path, place: str, value: float) -> None:
    a = spd(270, "float64", np.random.default_rng())
    a[230, 130] = value
    matrix, options = laid(a, place, tmp_path)
    with pytest.raises(errors.NonFiniteError, match=r"at row 230, column 130, in the tile of rows \d+:\d+, columns"):
        cholesky(matrix, overwrite=True, **options)
    path = tmp_path / ("a.npy" if place == "npy" else "a.zarr")
    again = pycauset.open(path)
    assert np.array_equal(np.tril(again.to_numpy()), np.tril(a), equal_nan=True)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if place == "disk":
        again[5, 260] = np.nan  # the other triangle is nobody's business
        again[230, 130] = 0.0
        assert np.isfinite(cholesky(again, overwrite=True, **options).to_numpy()).all()


@pytest.mark.parametrize("place", ["array", "npy", "disk"])
def test_nan_is_found_after_restoring_without_reading_all_of_it_before(tmp_path: Path, place: str) -> None:
    a = spd(270, "float64", np.random.default_rng())
    a[230, 130] = a[130, 230] = np.nan
    matrix, options = laid(a, place, tmp_path)
    with pytest.raises(errors.NonFiniteError, match="at row 230, column 130"):
        cholesky(matrix, overwrite=True, restore=generated(a), **options)
    if place != "array":
        matrix = pycauset.open(tmp_path / ("a.npy" if place == "npy" else "a.zarr"))
    assert np.array_equal(matrix, a, equal_nan=True)
    if place != "array":
        (tmp_path / "b").mkdir()
        with pytest.raises(errors.NotPositiveDefiniteError, match="NaN") as caught:
            cholesky(laid(a, place, tmp_path / "b")[0], overwrite=True, check_finite=False, **options)
        assert caught.value.tiles is not None
        assert caught.value.tiles["factor"]


def test_what_cannot_restore(tmp_path: Path) -> None:
    a = spd(40, "float64", np.random.default_rng())
    matrix = on_disk(a, tmp_path / "a.zarr")
    for restore, error, words in (
        (np.eye(41), errors.ShapeError, "must be the same matrix"),
        (np.eye(40, dtype="float32"), errors.DtypeError, "must be the same matrix"),
        (matrix, errors.OverlapError, "shares storage"),
        (tmp_path / "a.zarr", errors.OverlapError, "shares storage"),
    ):
        with pytest.raises(error, match=words):
            cholesky(matrix, overwrite=True, restore=restore)
    with pytest.raises(errors.ConfigError, match="overwrite=True"):
        cholesky(a, restore=a.copy())
    assert np.array_equal(open_store(tmp_path / "a.zarr").shape, (40, 40))
    assert np.array_equal(pycauset.open(tmp_path / "a.zarr"), a)


def test_a_random_matrix_restores_by_its_seed(tmp_path: Path) -> None:
    noise = pycauset.random((150, 150), seed=3)
    pycauset.save(tmp_path / "a.zarr", noise)
    with pytest.raises(errors.NotPositiveDefiniteError, match="as it was"):
        cholesky(tmp_path / "a.zarr", overwrite=True, restore=pycauset.random((150, 150), seed=3))
    assert np.array_equal(pycauset.open(tmp_path / "a.zarr"), noise)
