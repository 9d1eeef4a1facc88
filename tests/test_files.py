"""`open`, `save`, outputs by path, pickling: what is said to whoever asks for something that cannot be."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

import pycauset
from pycauset import Matrix
from pycauset.errors import (
    ConfigError,
    DtypeError,
    MemoryLimitError,
    OverlapError,
    ShapeError,
    StoreError,
    StoreExistsError,
    StoreNotFoundError,
)
from pycauset.storage import create_store, open_store, scratch_store
from tests.matrices import DTYPES, draw


@pytest.fixture
def square() -> np.ndarray:
    return np.random.default_rng().standard_normal((37, 37))


# ---- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.zarr", "a.npy"])
def test_paths_may_be_bytes(tmp_path: Path, square: np.ndarray, name: str) -> None:
    path = str(tmp_path / name).encode()
    pycauset.save(path, square)
    np.testing.assert_array_equal(pycauset.open(path).to_numpy(), square)


@pytest.mark.parametrize("path", [5, None, 2.5, ["a.zarr"]])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(DtypeError, match="the path is "):
        pycauset.open(path)
    with pytest.raises(DtypeError, match="the path is "):
        pycauset.save(path, np.eye(2))
    with pytest.raises(DtypeError, match="the path is "):
        create_store(path, (2, 2), "float64")


@pytest.mark.parametrize(("path", "match"), [("a\0b", "null character"), ("~nobody-of-this-name/a.zarr", "home folder")])
def test_paths_that_nothing_can_have(path: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        pycauset.open(path)
    with pytest.raises(ConfigError, match=match):
        pycauset.save(path, np.eye(2))


def test_a_dataset_named_by_the_path_of_its_file(tmp_path: Path, square: np.ndarray) -> None:
    with h5py.File(tmp_path / "h.h5", "w") as file:
        file["x"] = square
        for inside in ("x", "g/y"):
            with pytest.raises(StoreError, match=rf"h5 is an HDF5 file; .*\['{inside}'\]"):
                pycauset.open(tmp_path / "h.h5" / inside)
    (tmp_path / "text").write_text("nothing")
    with pytest.raises(StoreNotFoundError, match="text is a file, not a folder"):
        pycauset.open(tmp_path / "text" / "a.zarr")


@pytest.mark.parametrize("name", ["s.zarr", "s.npy"])
def test_a_product_at_the_path_of_an_operand(tmp_path: Path, square: np.ndarray, name: str) -> None:
    path = tmp_path / name
    pycauset.save(path, square)
    S = pycauset.open(path)
    for a, b in ((S, square), (square, S.T)):
        with pytest.raises(OverlapError, match="still to be read; give another path"):
            pycauset.matmul(a, b, out=path)
    with pytest.raises(StoreExistsError, match=r"choose another name, or remove it first$"):
        pycauset.matmul(square, square, out=path)
    with pytest.raises(StoreExistsError, match="or pass overwrite=True"):
        pycauset.save(path, square)
    np.testing.assert_array_equal(pycauset.open(path).to_numpy(), square)


def test_an_inverse_at_the_path_of_its_operand(tmp_path: Path, square: np.ndarray) -> None:
    lower = np.tril(square) + 10 * np.eye(37)
    pycauset.save(tmp_path / "l.zarr", pycauset.asmatrix(lower, is_lower_triangular=True))
    with pytest.raises(OverlapError, match="still to be read; give another path"):
        pycauset.linalg.inv(pycauset.open(tmp_path / "l.zarr"), out=tmp_path / "l.zarr")
    np.testing.assert_array_equal(pycauset.open(tmp_path / "l.zarr").to_numpy(), lower)


# ---- pickles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["A", "A.T", "A.H", "A.conj()"])
@pytest.mark.parametrize("where", ["ram", "a.zarr", "a.npy", "zarr array"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pickles_give_the_matrix_again(tmp_path: Path, where: str, view: str, dtype: str) -> None:
    a = draw((13, 13), dtype, 5)
    a[np.triu_indices(13, 1)] = 0
    if where == "ram":
        A = pycauset.asmatrix(a)
    elif where == "zarr array":
        zarr.create_array(tmp_path / "z", data=a, chunks=(5, 5))  # compressed
        A = pycauset.open(tmp_path / "z")
    else:
        pycauset.save(tmp_path / where, a)
        A = pycauset.open(tmp_path / where)
    A.properties.is_lower_triangular = True
    V = eval(view, {"A": A})
    W = pickle.loads(pickle.dumps(V))
    assert isinstance(W, Matrix)
    np.testing.assert_array_equal(W.to_numpy(), V.to_numpy())
    assert W.properties == V.properties
    assert W.store.path == V.store.path
    if where != "ram":
        assert len(pickle.dumps(V)) < 1000 + len(str(tmp_path))


def test_pickles_of_a_matrix_that_was_replaced(tmp_path: Path, square: np.ndarray) -> None:
    pycauset.save(tmp_path / "a.zarr", square)
    text = pickle.dumps(pycauset.open(tmp_path / "a.zarr"))
    pycauset.save(tmp_path / "a.zarr", np.ones((3, 4)), overwrite=True)
    with pytest.raises(StoreNotFoundError, match=r"is 3 x 4 float64, and was 37 x 37 "):
        pickle.loads(text)


def test_what_cannot_be_pickled(tmp_path: Path, square: np.ndarray) -> None:
    with pytest.raises(StoreError, match="no file to open again; save it"):
        pickle.dumps(pycauset.random(5, seed=1))
    with pytest.raises(StoreError, match=r"temporary result.*save it"):
        pickle.dumps(_scratch(square))
    for name in ("a.zarr", "a.npy"):
        pycauset.save(tmp_path / name, square)
        store = open_store(tmp_path / name)
        store.begin_write()
        with pytest.raises(StoreError, match="unfinished"):
            pickle.dumps(Matrix(store))
        store.commit()


def _scratch(a: np.ndarray) -> Matrix:
    from pycauset.tiling import Rect

    store = scratch_store(a.shape, a.dtype)
    store.write(Rect(0, a.shape[0], 0, a.shape[1]), a)
    store.commit()
    return Matrix(store)


# ---- claims, arguments ------------------------------------------------------------------------------------------------


def test_a_npy_file_keeps_no_claims(tmp_path: Path, square: np.ndarray) -> None:
    S = pycauset.asmatrix(square + square.T, is_symmetric=True)
    pycauset.save(tmp_path / "s.npy", S)
    pycauset.save(tmp_path / "s.zarr", S)
    assert pycauset.open(tmp_path / "s.npy").properties.is_symmetric is None
    assert pycauset.open(tmp_path / "s.zarr").properties.is_symmetric
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), square + square.T)


def test_properties_that_are_none(square: np.ndarray) -> None:
    A = pycauset.asmatrix(square)
    for value in (5, None, "is_symmetric", ["is_symmetric"]):
        with pytest.raises(ConfigError, match="give a dict of claims"):
            A.properties = value  # type: ignore[assignment]
    with pytest.raises(AttributeError, match=r"'is_foo'; there are is_zero, .*is_symmetric"):
        A.properties.is_foo  # noqa: B018
    assert not hasattr(A.properties, "is_foo")
    assert len(A.properties) == 0


def test_views_outlive_their_matrix(tmp_path: Path, square: np.ndarray) -> None:
    pycauset.save(tmp_path / "a.zarr", square)
    for A in (pycauset.asmatrix(square), pycauset.open(tmp_path / "a.zarr")):
        V = A.T
        A.close()
        np.testing.assert_array_equal(V.to_numpy(), square.T)
        with pytest.raises(StoreError, match="closed"):
            A.sum()


def test_arguments_of_the_makers() -> None:
    for seed in ("x", 1.5, [1]):
        with pytest.raises(ConfigError, match="seed is "):
            pycauset.random(3, seed=seed)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="eye: n is 'a'"):
        pycauset.eye("a")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"eye: m is 2\.5"):
        pycauset.eye(3, 2.5)  # type: ignore[arg-type]
    assert pycauset.eye(np.int64(2)).shape == (2, 2)


@pytest.mark.filterwarnings("ignore::pycauset.errors.PycausetWarning")
@pytest.mark.parametrize("size", [1 << 59, 1 << 63, 1 << 80])
def test_a_pinned_array_larger_than_any_memory(size: int) -> None:
    with pytest.raises(MemoryLimitError, match=rf"shape \({size},\) of float64 takes .* make it smaller"):
        pycauset.cuda.pinned_empty(size)
