"""Comparisons of matrices against NumPy's."""

from __future__ import annotations

import operator
from pathlib import Path

import numpy as np
import pytest

import pycauset
from pycauset import Matrix, errors
from pycauset.storage import create_store
from tests.matrices import DTYPES, PLACES, draw, lay


@np.errstate(invalid="ignore")  # NumPy warns of NaN in complex numbers
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("dtype", [*DTYPES, "bool", "int32"])
@pytest.mark.parametrize("sign", ["==", "!=", "<", "<=", ">", ">="])
def test_comparisons_are_numpys(tmp_path: Path, where: str, dtype: str, sign: str) -> None:
    a, b = draw((53, 37), dtype, 1), draw((53, 37), dtype, 2)
    b[::3] = a[::3]
    if a.dtype.kind in "fc":
        a[4, 5] = b[7, 8] = np.nan
        a[5, 5] = b[5, 5] = np.inf
    A = lay(a, where, tmp_path)
    for x, y in ((a, b), (a, b[0]), (a, b[:, :1]), (a, a[6, 7]), (a, 0), (a[7, 8], a), (b, a), (b.tolist(), a)):
        expected = eval(f"x {sign} y", {"x": np.asarray(x), "y": y})
        others = [y, lay(y, "zarr", tmp_path)] if x is a and np.ndim(y) == 2 else [y]
        for other in others:
            found = eval(f"x {sign} y", {"x": A if x is a else x, "y": A if y is a and x is not a else other})
            assert isinstance(found, Matrix)
            assert found.dtype == np.bool_
            np.testing.assert_array_equal(found.to_numpy(), expected)
    expected = eval(f"x {sign} y", {"x": a.T, "y": b.T})
    np.testing.assert_array_equal(eval(f"x.T {sign} y.T", {"x": A, "y": lay(b, "zarr", tmp_path)}).to_numpy(), expected)


def test_a_comparison_on_disk_is_packed_bits(tmp_path: Path, isolated: Path) -> None:
    a, b = np.random.default_rng().integers(0, 9, (2, 3503, 4001), "int8")
    A, B = lay(a, "npy", tmp_path), lay(b, "npy", tmp_path)
    out = Matrix(create_store(tmp_path / "c.zarr", a.shape, "bool", chunks=(256, 256)))
    assert np.less(A, B, out=out) is out
    np.testing.assert_array_equal(pycauset.open(tmp_path / "c.zarr").to_numpy(), a < b)
    assert sum(p.stat().st_size for p in (tmp_path / "c.zarr" / "c").rglob("*") if p.is_file()) < a.size / 4
    with pycauset.settings(memory="24MB"):
        C = A >= B
    assert C.store.path is not None
    assert isolated in C.store.path.parents
    np.testing.assert_array_equal(C.to_numpy(), a >= b)
    assert (C.sum(), C.any(), C.all()) == ((a >= b).sum(), True, False)


def test_matrices_have_no_hash_and_carry_no_claims_into_comparisons() -> None:
    A = Matrix(np.eye(3))
    with pytest.raises(TypeError, match="unhashable"):
        hash(A)
    A.properties.is_identity = True
    assert (A == A).properties_flags == (A == 0).properties_flags == (A.copy() < A).properties_flags == 0
    assert (A == A).all() is np.True_
    assert (A == None) is False  # noqa: E711 - what is no array is left to Python
    assert (A != "text") is True
    with pytest.raises(ValueError, match="ambiguous"):
        bool(A == A)
    assert bool(Matrix([[1.0]]) == 1)
    with pytest.raises(errors.ShapeError, match=r"equal: shapes \(3, 3\) and \(2, 2\)"):
        operator.eq(A, np.eye(2))
    with pytest.raises(TypeError):
        operator.lt(A, "text")
