"""NumPy's own functions on matrices, and matrices handed to others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycauset
from pycauset import Matrix, errors

CALLS: dict[str, Any] = {
    "add": lambda x, y: np.add(x, y),
    "subtract": lambda x, y: np.subtract(y, x),
    "multiply": lambda x, y: np.multiply(x, y),
    "divide": lambda x, y: np.divide(x, 4.0),
    "true_divide": lambda x, y: np.true_divide(x, 4.0),
    "matmul": lambda x, y: np.matmul(x, y.T),
    "linalg.matmul": lambda x, y: np.linalg.matmul(x, y.T),
    "dot": lambda x, y: np.dot(x, y.T),
    "dot with a scalar": lambda x, y: np.dot(x, 2.0),
    "negative": lambda x, y: np.negative(x),
    "positive": lambda x, y: np.positive(x),
    "absolute": lambda x, y: np.abs(x),
    "conj": lambda x, y: np.conj(x),
    "trace": lambda x, y: np.trace(x),
    "linalg.trace": lambda x, y: np.linalg.trace(x),
    "sum": lambda x, y: np.sum(x),
    "sum over rows": lambda x, y: np.sum(x, axis=0),
    "sum with keepdims": lambda x, y: np.sum(x, axis=1, keepdims=True),
    "sum with dtype": lambda x, y: np.sum(x, dtype="complex128"),
    "equal": lambda x, y: np.equal(x, y),
    "less": lambda x, y: np.less(y, x),
    "greater_equal": lambda x, y: np.greater_equal(x, 0.5),
    "all": lambda x, y: np.all(x),
    "any over columns": lambda x, y: np.any(x, axis=1, keepdims=True),
    "isclose": lambda x, y: np.isclose(y, x, rtol=0.5, atol=0.1),
    "isclose to a number": lambda x, y: np.isclose(x, 0.5, atol=0.3),
    "allclose": lambda x, y: np.allclose(x, y),
    "allclose with much room": lambda x, y: np.allclose(x, y, atol=1e3),
    "array_equal": lambda x, y: np.array_equal(x, y),
    "array_equal to itself": lambda x, y: np.array_equal(x, x),
    "norm": lambda x, y: np.linalg.norm(x),
    "norm 1": lambda x, y: np.linalg.norm(x, ord=1),
    "matrix_norm": lambda x, y: np.linalg.matrix_norm(x),
    "transpose": lambda x, y: np.transpose(x),
    "transpose by axes": lambda x, y: np.transpose(x, (1, 0)),
    "transpose not at all": lambda x, y: np.transpose(x, (0, 1)),
    "matrix_transpose": lambda x, y: np.matrix_transpose(x),
    "shape": lambda x, y: np.shape(x),
    "ndim": lambda x, y: np.ndim(x),
    "size": lambda x, y: np.size(x),
    "real": lambda x, y: np.real(x),
    "imag": lambda x, y: np.imag(x),
    "copy": lambda x, y: np.copy(x),
    "iscomplexobj": lambda x, y: np.iscomplexobj(x),
    "asarray": lambda x, y: np.asarray(x),
    "float32": lambda x, y: np.asarray(x.real, dtype="float32"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("other", ["array", "matrix"])
def test_numpys_functions(tmp_path: Path, name: str, dtype: str, other: str) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 31, 22))
    if dtype == "complex128":
        a, b = a + 1j * b, b - 2j * a
    Matrix(a).save(tmp_path / "a.zarr")
    expected = CALLS[name](a, b)
    for A in (Matrix(a), pycauset.open(tmp_path / "a.zarr")):
        found = CALLS[name](A, b if other == "array" else Matrix(b))
        assert np.shape(found) == np.shape(expected)
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "complex128", "int64", "bool"])
def test_equality_of_arrays(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng()
    a = (rng.standard_normal((41, 23)) * 9).astype(dtype)
    near, other = a.copy(), a.copy()
    other[-1, -1] = not other[-1, -1]
    if a.dtype.kind in "fc":
        near = a * np.array(1 + 1e-6, dtype)
        a[3, 4] = near[3, 4] = other[3, 4] = np.nan
        a[3, 5] = near[3, 5] = -np.inf
    Matrix(a).save(tmp_path / "a.zarr")
    for A in (Matrix(a), pycauset.open(tmp_path / "a.zarr")):
        for b in (a, a.copy(), near, other, a[:, :5], a[0], a[None], a + 1, "text"):
            for nan in (False, True):
                assert np.array_equal(A, b, equal_nan=nan) is np.array_equal(a, b, equal_nan=nan)
                assert np.array_equal(b, A, equal_nan=nan) is np.array_equal(b, a, equal_nan=nan)
                if np.ndim(b) == 2 and np.shape(b) == a.shape:
                    assert np.allclose(A, b, equal_nan=nan) is np.allclose(a, b, equal_nan=nan)
                    np.testing.assert_array_equal(np.isclose(b, A, equal_nan=nan), np.isclose(b, a, equal_nan=nan))
        assert np.allclose(A, a[0]) is np.allclose(a, a[0])


def test_large_integers_are_compared_exactly() -> None:
    a = np.full((3, 3), 2**60)
    assert not np.array_equal(Matrix(a), a + 1)
    assert not np.array_equal(Matrix(a), a + 1, equal_nan=True)
    with pytest.raises(errors.DtypeError, match="'text' is no array"):
        np.isclose(Matrix(a), "text")


def test_arrays_on_the_left_and_in_place() -> None:
    a, b = np.random.default_rng(2).standard_normal((2, 9, 9))
    B = Matrix(b)
    for found, expected in ((a + B, a + b), (a - B, a - b), (a * B, a * b), (a @ B, a @ b), (np.float64(2) * B, 2 * b)):
        assert isinstance(found, Matrix)
        np.testing.assert_allclose(found.to_numpy(), expected, rtol=1e-14)
    total = a.copy()
    total += B
    assert type(total) is np.ndarray
    np.testing.assert_array_equal(total, a + b)
    np.multiply(B, total, out=total)
    np.testing.assert_array_equal(total, (a + b) * b)
    with pytest.raises(errors.OverlapError, match="shares storage"):
        np.add(B, B.T, out=b)
    with pytest.raises(errors.ShapeError, match=r"\(9, 9\)"):
        np.add(B, B, out=np.empty((9, 8)))


def test_in_place_on_disk(tmp_path: Path) -> None:
    a = np.random.default_rng(3).standard_normal((60, 50))
    Matrix(a).save(tmp_path / "a.zarr")
    A = pycauset.open(tmp_path / "a.zarr")
    assert np.multiply(A, 3.0, out=A) is A
    np.testing.assert_array_equal(pycauset.open(tmp_path / "a.zarr").to_numpy(), 3 * a)


@pytest.mark.parametrize(
    "call",
    [
        lambda A: np.sin(A),
        lambda A: np.add.reduce(A),
        lambda A: np.add(A, A, where=np.eye(3) > 0),
        lambda A: np.power(A, 2),
        lambda A: np.logical_and(A, np.eye(3)),
        lambda A: np.linalg.pinv(A),
        lambda A: np.mean(A),
        lambda A: np.concatenate([A, A]),
        lambda A: np.sum(A, where=np.eye(3) > 0),
        lambda A: np.trace(A, offset=1),
    ],
)
def test_what_is_not_streamed_says_what_to_do(call: Any) -> None:
    with pytest.raises(TypeError, match=r"to_numpy\(\)") as caught:
        call(Matrix(np.eye(3)))
    assert isinstance(caught.value, errors.DtypeError)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda A: np.linalg.norm(A, axis=0), "np.linalg.norm of a Matrix takes no axis, only x, ord"),
        (lambda A: np.trace(A, offset=1), "np.trace of a Matrix takes no offset, only a"),
        (lambda A: np.trace(A, 1), "np.trace of a Matrix takes a alone, 2 arguments were given"),
        (lambda A: np.sum(A, 0, None, None), "np.sum of a Matrix takes "),
    ],
)
def test_messages_are_in_numpys_words(call: Any, words: str) -> None:
    with pytest.raises(errors.DtypeError) as caught:
        call(Matrix(np.eye(3)))
    assert str(caught.value).startswith(words)
    for ours in ("_norm", "_sum", "lambda"):
        assert ours not in str(caught.value)


def test_the_array_protocol(tmp_path: Path) -> None:
    a = np.random.default_rng(4).standard_normal((5, 4))
    A = Matrix(a)
    assert np.shares_memory(np.asarray(A), a)
    assert np.shares_memory(np.array(A, copy=False), a)
    assert not np.shares_memory(np.array(A), a)
    assert np.array(A, dtype="float32").dtype == np.float32
    A.save(tmp_path / "a.npy")
    with pytest.raises(BufferError, match="without a copy"):
        np.array(pycauset.open(tmp_path / "a.npy"), copy=False)


def test_dlpack_shares_memory(tmp_path: Path) -> None:
    a = np.random.default_rng(5).standard_normal((5, 4))
    A = Matrix(a)
    assert np.shares_memory(np.from_dlpack(A), a)
    np.testing.assert_array_equal(np.from_dlpack(A.T), a.T)
    A.save(tmp_path / "a.npy")
    with pytest.raises(errors.NotInMemoryError, match="to_numpy"):
        np.from_dlpack(pycauset.open(tmp_path / "a.npy"))
    with pytest.raises(BufferError):
        np.from_dlpack(Matrix(a + 1j).H)


def test_strangers_are_refused_by_name() -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(errors.DtypeError, match="toarray"):
        Matrix(scipy_sparse.eye(3).tocsr())
    with pytest.raises(errors.DtypeError, match="mask"):
        Matrix(np.ma.masked_array(np.eye(2)))
