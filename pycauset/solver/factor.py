"""What the solver knows of an operand, and the kernel registry: operation × properties → kernel and layout of the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pycauset.errors import DtypeError, ShapeError
from pycauset.properties import known
from pycauset.storage import TileStore, default_chunks
from pycauset.tiling import Rect

__all__ = ["Factor", "Layout", "in_memory", "kernel_of", "layout_of", "triangular"]

_KERNELS_FOR = ("float32", "float64", "complex64", "complex128")


@dataclass(frozen=True, slots=True)
class Factor:
    """An operand: ``op(store)`` with op "N" (as stored), "T" (transposed) or "H" (conjugate transposed), and property flags."""

    store: TileStore
    op: str = "N"
    flags: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.store.shape
        return (rows, cols) if self.op == "N" else (cols, rows)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.store.dtype


class Layout(NamedTuple):
    """What a product looks like: shape, element type, the type that kernels compute in, chunks, structure, kernel."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    compute: np.dtype[Any]
    chunks: tuple[int, int]
    structure: str
    kernel: str


def in_memory(store: TileStore) -> np.ndarray[Any, Any] | None:
    """The store's elements as an array, if they lie in this process's memory."""
    return store.view(Rect(0, store.shape[0], 0, store.shape[1]))


def kernel_of(a: Factor, b: Factor) -> tuple[str, str]:
    """The kernel for ``a @ b`` and the structure of the result: the registry that properties are looked up in.

    ``rank_k`` (SYRK, HERK) when ``b`` is ``a``'s own transpose or conjugate transpose, ``trmm`` when one is a triangle and the
    other lies as it is meant, else ``gemm``.
    """
    if a.store.identity == b.store.identity and a.dtype.kind != "b" and {a.op, b.op} in ({"N", "T"}, {"N", "H"}):
        hermitian = "H" in (a.op, b.op) and a.dtype.kind == "c"
        return "rank_k", "hermitian" if hermitian else "symmetric"
    if triangular(a, b) and (a.dtype.kind, b.dtype.kind) != ("b", "b"):
        return "trmm", "full"
    return "gemm", "full"


def triangular(a: Factor, b: Factor) -> tuple[str, str] | None:
    """Side (``"L"``, ``"R"``) and triangle (``"L"``, ``"U"``, as stored) of the operand that TRMM can take, if there is one."""
    for side, t, other in (("L", a, b), ("R", b, a)):
        uplo = _triangle(t)
        if uplo and (other.op == "N" or (other.op == "T" and in_memory(other.store) is not None)):
            return side, uplo
    return None


def _triangle(a: Factor) -> str | None:
    """The triangle that holds all of a square matrix as stored, if it is known to be triangular."""
    if a.shape[0] != a.shape[1]:
        return None
    if a.store.structure in ("lower", "upper"):
        return "L" if a.store.structure == "lower" else "U"
    for name, uplo in (("is_lower_triangular", "LU"), ("is_upper_triangular", "UL")):
        if known(a.flags, name):
            return uplo[a.op != "N"]
    return None


def layout_of(a: Factor, b: Factor) -> Layout:
    """The layout of ``a @ b``.

    Raises
    ------
    ShapeError, DtypeError
        If the shapes do not fit, or the element types have no product here.
    """
    (m, k), (other, n) = a.shape, b.shape
    if k != other:
        raise ShapeError(
            f"matmul: the first operand has shape {a.shape}, the second {b.shape}; "
            f"{k} columns meet {other} rows, which must be equal"
        )
    dtype: np.dtype[Any]
    compute: np.dtype[Any]
    if a.dtype.kind == "b" and b.dtype.kind == "b":
        # Counts up to k: float32 holds integers exactly to 2**24, float64 to 2**53.
        dtype, compute = np.dtype("int64"), np.dtype("float32" if k < 1 << 24 else "float64")
    else:
        dtype = compute = np.result_type(a.dtype, b.dtype)
        if dtype.kind in "iu":
            raise DtypeError(
                f"matmul of {a.dtype} and {b.dtype} would need exact integers; convert one operand with .astype('float64')"
            )
        if dtype.name not in _KERNELS_FOR:
            dtype = compute = np.dtype("float32") if dtype.name == "float16" else np.dtype("float64")
    kernel, structure = kernel_of(a, b)
    if kernel == "rank_k" and dtype != a.dtype:
        kernel, structure = "gemm", "full"
    chunks = _chunks(a, b, (m, n), dtype, square=structure != "full")
    return Layout((m, n), dtype, compute, chunks, structure, kernel)


def _chunks(a: Factor, b: Factor, shape: tuple[int, int], dtype: np.dtype[Any], *, square: bool) -> tuple[int, int]:
    """The operands' own rows and columns per chunk where their product is a sensible chunk: then tiles are whole chunks."""
    height = a.store.chunks[0 if a.op == "N" else 1]
    width = b.store.chunks[1 if b.op == "N" else 0]
    sensible = 1 << 20 <= height * width * dtype.itemsize <= 32 << 20 and max(height, width) <= 4 * min(height, width)
    if (a.store.path or b.store.path) and sensible and (height == width or not square):
        return min(height, max(shape[0], 1)), min(width, max(shape[1], 1))
    return default_chunks(shape, dtype)
