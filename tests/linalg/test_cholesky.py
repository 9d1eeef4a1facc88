"""Cholesky factors from every place into every place, LAPACK's matrix types, and what the results know of themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pycauset
from pycauset import Matrix, errors
from pycauset.linalg import cholesky
from pycauset.solver import last_statistics
from pycauset.storage import create_store
from tests.linalg.cases import DTYPES, PLACES, factor_ratio, lay, on_disk, poisoned, random, spd, wide


def assert_factor(a: np.ndarray[Any, Any], factor: Any, lower: bool) -> None:
    x = np.asarray(factor)
    assert factor_ratio(a, x, lower) < 30
    other = np.triu(x, 1) if lower else np.tril(x, -1)
    assert not other.any(), "the other triangle is not zero"
    assert (x.diagonal().real > 0).all()
    assert not x.diagonal().imag.any()


@pytest.mark.parametrize("lower", [True, False], ids=["lower", "upper"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_place(tmp_path: Path, dtype: str, place: str, lower: bool) -> None:
    """In core, streamed to scratch or a path, small and large; the triangle that is not named holds NaN."""
    rng = np.random.default_rng()
    for n, limits in (
        (37, {}),
        (260 if dtype == "float32" else 90, {}),
        (101, {"memory": "64MB", "out": tmp_path / "factor.zarr"}),
    ):
        a = spd(n, dtype, rng)
        matrix = lay(poisoned(a, lower), place, tmp_path, lower=lower)
        factor = cholesky(matrix, lower, **limits)
        assert_factor(a, factor, lower)
        assert factor.dtype == a.dtype
        assert (factor.properties.is_lower_triangular, factor.properties.is_upper_triangular) == (
            lower or None,
            not lower or None,
        )
        if "out" in limits:
            again = pycauset.open(tmp_path / "factor.zarr")
            assert again.store.structure == ("lower" if lower else "upper")
            assert again.properties.is_lower_triangular is (lower or None)
            assert not [p.name for p in tmp_path.iterdir() if "journal" in p.name or p.name.startswith(".")]


@pytest.mark.parametrize("variant", [None, "left", "right", "triangle"])
@pytest.mark.parametrize("lower", [True, False], ids=["lower", "upper"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_streamed_through_little_memory(tmp_path: Path, dtype: str, lower: bool, variant: str | None) -> None:
    a = spd(170, dtype, np.random.default_rng())
    memory = a.nbytes * 19 // 10  # too little to have the factor in RAM
    factor = cholesky(on_disk(poisoned(a, lower), tmp_path / "a.zarr"), lower, variant=variant, memory=memory)
    assert type(factor.store).__name__ == "ZarrStore"
    assert factor.store.structure == ("lower" if lower else "upper")
    statistics = last_statistics()
    assert statistics is not None
    assert statistics.tasks >= 35
    assert statistics.reused == 0
    assert_factor(a, factor, lower)


@pytest.mark.parametrize("lower", [True, False], ids=["lower", "upper"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place(tmp_path: Path, dtype: str, lower: bool) -> None:
    rng = np.random.default_rng()
    a = spd(150, dtype, rng)
    for order in "CF":
        array = np.array(poisoned(a, lower), order=order)
        factor = cholesky(array, lower, overwrite_a=True)
        assert np.shares_memory(factor.to_numpy(), array)
        assert_factor(a, array, lower)
    for structure in (
        "full",
        "lower" if lower else "upper",
        *(("hermitian" if np.dtype(dtype).kind == "c" else "symmetric",) if lower else ()),
    ):
        matrix = on_disk(poisoned(a, lower) if structure == "full" else a, tmp_path / f"{structure}.zarr", structure=structure)
        matrix.properties.is_positive_definite = True
        view = matrix.T
        factor = cholesky(matrix, lower, overwrite=True, memory="64MB")
        assert factor is matrix
        assert_factor(a, factor, lower)
        assert matrix.properties.is_positive_definite is None
        assert view.properties.is_positive_definite is None
        again = pycauset.open(tmp_path / f"{structure}.zarr")
        assert again.store.structure == ("lower" if lower else "upper")
        assert again.properties.is_lower_triangular is (lower or None)
        assert_factor(a, again, lower)
        with pytest.raises(errors.ConfigError, match="is it the factor already"):
            cholesky(again, lower, overwrite=True)
    np.save(tmp_path / "a.npy", poisoned(a, lower))
    assert_factor(a, cholesky(pycauset.open(tmp_path / "a.npy"), lower, overwrite=True), lower)
    assert_factor(a, np.load(tmp_path / "a.npy"), lower)


def test_overwrite_a_is_a_permission_and_overwrite_an_order(tmp_path: Path) -> None:
    a = np.rint(spd(60, "float64", np.random.default_rng())) + 60 * np.eye(60)
    fixed = a.copy()
    fixed.flags.writeable = False
    matrix = on_disk(a, tmp_path / "a.zarr")
    for place in (a.astype("int64"), fixed, matrix.T, pycauset.from_function(lambda i, j: a[np.ix_(i, j)], a.shape, "float64")):
        assert_factor(a, cholesky(place, overwrite_a=True), True)
        assert np.array_equal(np.asarray(place), a)
        with pytest.raises((errors.DtypeError, errors.StorePermissionError, errors.ShapeError)):
            cholesky(place, overwrite=True)
    elsewhere = np.empty_like(a)
    assert cholesky(a, overwrite_a=True, out=elsewhere) is elsewhere
    assert_factor(a, elsewhere, True)
    assert cholesky(matrix, overwrite_a=True) is matrix
    assert_factor(a, matrix, True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_places_for_the_factor(tmp_path: Path, dtype: str) -> None:
    """Whatever was there before is overwritten, zeros beyond the triangle included."""
    a = spd(120, dtype, np.random.default_rng())
    for out in (
        np.full(a.shape, np.nan, dtype),
        np.full(a.shape, np.nan, dtype, order="F"),
        np.full((240, 240), np.nan, dtype)[::2, ::2],
    ):
        assert cholesky(a, out=out) is out
        assert_factor(a, out, True)
    old = on_disk(np.full(a.shape, np.nan, dtype), tmp_path / "old.zarr")
    assert cholesky(a, out=old) is old
    assert old.properties.is_lower_triangular
    assert_factor(a, pycauset.open(tmp_path / "old.zarr"), True)
    new = create_store(tmp_path / "new.zarr", a.shape, a.dtype, chunks=(50, 50), structure="upper")
    cholesky(a, False, out=Matrix(new))
    assert_factor(a, pycauset.open(tmp_path / "new.zarr"), False)
    factor = cholesky(a, out=tmp_path / "factor.npy")
    assert factor.properties.is_lower_triangular
    assert_factor(a, np.load(tmp_path / "factor.npy"), True)
    if np.dtype(dtype).itemsize > 8 or dtype == "float64":
        narrow = np.full(a.shape, np.nan, "complex64" if a.dtype.kind == "c" else "float32")
        cholesky(a, out=narrow)
        assert factor_ratio(a.astype(narrow.dtype), narrow, True) < 30


def test_integers_and_lists_are_computed_in_float64() -> None:
    for a in ([[4, 2], [2, 5]], np.array([[4, 2], [2, 5]]), np.array([[4, 2], [2, 5]], "float16"), np.eye(3, dtype=bool)):
        factor = cholesky(a)
        assert factor.dtype == ("float32" if getattr(a, "dtype", None) == "float16" else "float64")
        assert np.allclose(factor, np.linalg.cholesky(np.asarray(a, "float64")))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_the_smallest(tmp_path: Path, n: int) -> None:
    a = spd(n, "float64", np.random.default_rng())
    assert_factor(a, cholesky(a), True)
    assert_factor(a, cholesky(a, out=tmp_path / "l.zarr"), True)
    assert_factor(a, cholesky(a.copy(), overwrite=True), True)


@settings(max_examples=12)
@given(st.integers(1, 130), st.integers(8, 40), st.booleans(), st.sampled_from(DTYPES), st.integers(0, 2**32))
def test_ragged_sizes(n: int, chunk: int, lower: bool, dtype: str, seed: int) -> None:
    import tempfile

    a = spd(n, dtype, np.random.default_rng(seed))
    with tempfile.TemporaryDirectory() as folder:
        matrix = on_disk(poisoned(a, lower), Path(folder) / "a.zarr", chunks=(chunk, chunk))
        out = create_store(Path(folder) / "l.zarr", a.shape, a.dtype, chunks=(chunk, chunk))
        assert_factor(a, cholesky(matrix, lower, out=Matrix(out), memory="64MB"), lower)


# ---- LAPACK's matrix types -------------------------------------------------------------------------------------------


def with_spectrum(values: np.ndarray[Any, Any], dtype: str, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """``Q diag(values) Qᴴ``, put together in extended precision and rounded once."""
    n = len(values)
    q = np.linalg.qr(random((n, n), "complex128" if np.dtype(dtype).kind == "c" else "float64", rng))[0].astype(wide(dtype))
    for _ in range(2):  # orthogonal to the last bit of the extended type
        q = q @ (3 * np.eye(n) - q.conj().T @ q) / 2
    a = (q * values.astype(np.longdouble)) @ q.conj().T
    a = np.tril(a, -1)
    a = a + a.conj().T + np.diag((np.abs(q) ** 2 @ values.astype(np.longdouble)).astype(wide(dtype)))
    return a.astype(dtype)


def lapack_type(kind: int, n: int, dtype: str, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """xDRVPO's types: 1 diagonal, 2 condition 2, 3-5 a zero row and column, 6 and 7 ill-conditioned, 8 and 9 badly scaled."""
    info = np.finfo(dtype)
    condition = {6: (0.1 / info.eps) ** 0.5, 7: 0.1 / info.eps}.get(kind, 2.0)
    small = float(info.tiny / info.eps * 4)
    scale = {8: small, 9: 1 / small}.get(kind, 1.0)
    values = scale * condition ** -(np.arange(n, dtype=np.longdouble) / max(n - 1, 1))
    if kind == 1:
        return np.diag(values).astype(dtype)
    a = with_spectrum(values, dtype, rng)
    if kind in (3, 4, 5):
        row = {3: 0, 4: n - 1, 5: n // 2}[kind]
        a[row] = a[:, row] = 0
    return a


@pytest.mark.parametrize("kind", range(1, 10))
@pytest.mark.parametrize("dtype", DTYPES)
def test_lapack_types(tmp_path: Path, dtype: str, kind: int) -> None:
    """In core and streamed, both triangles; residual ratios below LAPACK's threshold, and the right pivot where there is none."""
    for lower in (True, False):
        # seeded: of matrices as ill-conditioned as type 7 rounding makes a few indefinite
        a = lapack_type(kind, 84, dtype, np.random.default_rng([kind, lower, DTYPES.index(dtype)]))
        matrix = on_disk(poisoned(a, lower), tmp_path / f"{lower}.zarr")
        for memory in (None, a.nbytes * 19 // 10):
            if kind in (3, 4, 5):
                with pytest.raises(errors.NotPositiveDefiniteError) as caught:
                    cholesky(matrix, lower, memory=memory)
                pivot = {3: 0, 4: 83, 5: 42}[kind]
                assert (caught.value.pivot, caught.value.order, caught.value.value) == (pivot, pivot + 1, 0)
            else:
                assert_factor(a, cholesky(matrix, lower, memory=memory), lower)
        assert {p.name for p in tmp_path.iterdir()} <= {"True.zarr", "False.zarr"}
