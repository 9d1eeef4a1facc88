"""Positive definite and triangular matrices in every place, with traps in them, and residuals in extended precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import pycauset
from pycauset import Matrix
from pycauset.storage import FunctionStore, create_store
from pycauset.tiling import Rect

DTYPES = ["float32", "float64", "complex64", "complex128"]
#: Where an operand lies, and how: as an array, on disk in chunks or as one triangle, computed, or a view of another matrix.
PLACES = ["ram", "fortran", "disk", "one triangle", "npy", "function", "transposed", "adjoint", "adjoint on disk"]
CHUNKS = (32, 32)

Array = np.ndarray[Any, Any]


def wide(dtype: Any) -> Any:
    """A more precise type of the same kind; products of extended ones are plain loops, for small matrices only."""
    return {"float32": np.float64, "float64": np.longdouble, "complex64": np.complex128, "complex128": np.clongdouble}[
        np.dtype(dtype).name
    ]


def random(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> Array:
    x = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        x = x + 1j * rng.standard_normal(shape)
    return np.asarray(x).astype(dtype)


def spd(n: int, dtype: str, rng: np.random.Generator) -> Array:
    """Exactly Hermitian, well-conditioned."""
    x = random((n, n), dtype, rng)
    square = x @ x.conj().T
    lower, diagonal = np.tril(square, -1), square.diagonal().real + 2 * n
    return (lower + lower.conj().T + np.diag(diagonal)).astype(dtype)


def triangular(n: int, dtype: str, lower: bool, rng: np.random.Generator) -> Array:
    x = random((n, n), dtype, rng) / max(n, 1) ** 0.5
    x += np.diag(3 + rng.random(n)).astype(dtype)
    return np.tril(x) if lower else np.triu(x)


def poisoned(a: Array, lower: bool) -> Array:
    """NaN in the triangle that is not to be read."""
    other = np.triu(np.ones(a.shape, bool), 1) if lower else np.tril(np.ones(a.shape, bool), -1)
    return np.where(other, a.dtype.type(np.nan), a)


def on_disk(a: Array, path: Path, *, structure: str = "full", chunks: tuple[int, int] = CHUNKS) -> Matrix:
    store = create_store(path, a.shape, a.dtype, chunks=chunks, structure=structure)
    store.write(Rect(0, a.shape[0], 0, a.shape[1]), a)
    store.commit()
    return pycauset.open(path)


def lay(a: Array, place: str, folder: Path, *, lower: bool = True, name: str = "a") -> Matrix:
    """The array as a matrix that lies in the given place."""
    path = folder / f"{name}-{len(list(folder.iterdir()))}.zarr"
    if place == "fortran":
        return pycauset.asmatrix(np.asfortranarray(a))
    if place == "disk":
        return on_disk(a, path)
    if place == "one triangle":
        return on_disk(a, path, structure="lower" if lower else "upper")
    if place == "npy":
        np.save(path.with_suffix(".npy"), a)
        return pycauset.open(path.with_suffix(".npy"))
    if place == "function":
        return Matrix(FunctionStore(lambda i, j: a[i[0] : i[-1] + 1, j[0] : j[-1] + 1], a.shape, a.dtype, (24, 40)))
    if place == "transposed":
        return pycauset.asmatrix(a.T.copy()).T
    if place == "adjoint":
        return pycauset.asmatrix(a.conj().T.copy()).H
    if place == "adjoint on disk":
        return on_disk(a.conj().T.copy(), path).H
    return pycauset.asmatrix(a.copy())


def norm1(a: Array) -> float:
    return float(np.abs(a).sum(axis=0).max()) if a.size else 0.0


def factor_ratio(a: Array, factor: Array, lower: bool) -> float:
    """LAPACK's ``‖A - L Lᴴ‖₁ / (n ‖A‖₁ ε)``, the product in extended precision; below 30 is sound."""
    if not a.size:
        return 0.0
    x = np.asarray(factor).astype(wide(a.dtype))
    x = x if lower else x.conj().T
    return norm1(a - x @ x.conj().T) / (len(a) * norm1(a) * np.finfo(a.dtype).eps)


def solve_ratio(a: Array, x: Array, b: Array, dtype: Any = None) -> float:
    """LAPACK's ``‖B - A X‖₁ / (n ‖A‖₁ ‖X‖₁ ε)``."""
    x, b = np.asarray(x), np.asarray(b)
    eps = np.finfo(dtype or x.dtype).eps
    if not x.size:
        return 0.0
    r = b - a.astype(wide(a.dtype)) @ x.astype(wide(x.dtype))
    columns = (np.abs(v).sum(axis=0) for v in (r.reshape(len(b), -1), x.reshape(len(x), -1)))
    residual, size = columns
    return float((residual / np.maximum(size * len(a) * norm1(a) * eps, np.finfo(eps.dtype).tiny)).max())
