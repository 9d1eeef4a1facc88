"""Arrays of every element type, laid out as matrices in every place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import pycauset
from pycauset import Matrix
from pycauset.storage import create_store
from pycauset.tiling import Rect

DTYPES = ["float32", "float64", "complex64", "complex128"]
PLACES = ["ram", "fortran", "memmap", "zarr", "npy", "function"]


def draw(shape: tuple[int, ...], dtype: str = "float64", seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        a = a + 1j * rng.standard_normal(shape)
    if dtype == "bool":
        return a > 0
    return (a * 10 if np.dtype(dtype).kind == "i" else a).astype(dtype)


def lay(a: np.ndarray[Any, Any], where: str, folder: Path, chunks: tuple[int, int] = (16, 16)) -> Matrix:
    """The array as a Matrix that lies in the given place."""
    name = folder / f"{np.random.default_rng().integers(1 << 60)}"
    if where == "ram":
        return pycauset.asmatrix(a)
    if where == "fortran":
        return pycauset.asmatrix(np.asfortranarray(a))
    if where == "memmap":
        np.save(f"{name}.npy", a)
        return pycauset.asmatrix(np.load(f"{name}.npy", mmap_mode="r"))
    if where == "npy":
        np.save(f"{name}.npy", a)
        return pycauset.open(f"{name}.npy")
    if where == "function":
        return pycauset.from_function(lambda i, j: a[i[0] : i[-1] + 1, j[0] : j[-1] + 1], a.shape, a.dtype)
    store = create_store(f"{name}.zarr", a.shape, a.dtype, chunks=chunks)
    store.write(Rect(0, a.shape[0], 0, a.shape[1]), a)
    store.commit()
    return pycauset.open(f"{name}.zarr")
