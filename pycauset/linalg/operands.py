"""What the functions of this package ask of their operands: square matrices, kernels' element types, triangles as stored."""

from __future__ import annotations

import os
from typing import Any, Final, NamedTuple

import numpy as np

from pycauset.errors import ConfigError, DtypeError, ShapeError
from pycauset.indexing import SelectedStore, select
from pycauset.matrix import Matrix, asmatrix
from pycauset.properties import known
from pycauset.storage import ArrayStore, TileStore, default_chunks
from pycauset.tiling import Rect

__all__ = [
    "Triangle",
    "chunks_like",
    "dimensions",
    "in_memory",
    "kernel_type",
    "known_triangle",
    "opened",
    "right_hand_side",
    "square",
    "stored",
    "triangle_of",
]

Array = np.ndarray[Any, Any]

#: Tiles of one chunk that should fit under a limit. More would let blocks come closer to √S, but chunks finer than the
#: operand's cost more in small reads, writes and kernels than the bytes that they save.
_TILES: Final = 24
_KERNEL_TYPES: Final = ("float32", "float64", "complex64", "complex128")
#: Composition of operations: first the matrix's own, then another on top of it.
_COMPOSED: Final = {
    "N": {"N": "N", "T": "T", "H": "H", "C": "C"},
    "T": {"N": "T", "T": "N", "H": "C", "C": "H"},
    "H": {"N": "H", "T": "C", "H": "N", "C": "T"},
    "C": {"N": "C", "T": "H", "H": "T", "C": "N"},
}
_TRANS: Final = {0: "N", "N": "N", 1: "T", "T": "T", 2: "H", "C": "H", "H": "H"}


def dimensions(name: str, obj: Any, which: str) -> int:
    """One or two: the dimensions of an operand.

    Raises
    ------
    ShapeError, DtypeError
        If it has others, or is no array.
    """
    if isinstance(obj, (list, tuple)):
        try:
            shape = np.shape(obj)
        except ValueError as error:
            raise ShapeError(f"{name}: the {which} operand is no matrix: {error}") from None
    elif hasattr(obj, "shape"):
        shape = tuple(obj.shape)
    else:
        raise DtypeError(f"{name}: the {which} operand is a {type(obj).__qualname__}; it must be a Matrix or an array")
    if len(shape) not in (1, 2):
        raise ShapeError(f"{name}: the {which} operand has shape {tuple(shape)}; it must have one or two dimensions")
    return len(shape)


def opened(obj: Any) -> Any:
    """What lies at a path; anything else as it is."""
    if not isinstance(obj, (str, os.PathLike)):
        return obj
    from pycauset.files import open as open_matrix

    return open_matrix(obj)


def square(name: str, a: Any) -> Matrix:
    """A square matrix, or the one at a path.

    Raises
    ------
    ShapeError, DtypeError
        If it is something else.
    """
    a = opened(a)
    if dimensions(name, a, "first") == 1:
        raise ShapeError(f"{name}: a is a vector of shape {np.shape(a)}; it must be a square matrix of two dimensions")
    matrix = asmatrix(a)
    if matrix.shape[0] != matrix.shape[1]:
        raise ShapeError(f"{name}: a has shape {matrix.shape}; it must be square")
    return matrix


def kernel_type(name: str, *dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """The element type to compute in: NumPy's promotion to float32, float64, complex64 or complex128.

    Examples
    --------
    >>> kernel_type("solve", np.dtype("int32")), kernel_type("solve", np.dtype("float32"), np.dtype("complex64"))
    (dtype('float64'), dtype('complex64'))
    """
    found = np.result_type(*dtypes)
    if found.kind in "biu":
        return np.dtype("float64")
    if found.name == "float16":
        return np.dtype("float32")
    if found.name not in _KERNEL_TYPES:
        raise DtypeError(f"{name}: elements of {found} cannot be computed with; convert them with .astype('float64')")
    return found


def right_hand_side(name: str, b: Any, a: Matrix) -> tuple[Matrix, bool]:
    """The right-hand side, or the one at a path, as a matrix of as many rows as ``a``, and whether it was a vector.

    Raises
    ------
    ShapeError
        If it has another number of rows.
    """
    b = opened(b)
    vector = dimensions(name, b, "second") == 1
    matrix = asmatrix(b)
    if matrix.shape[0] != a.shape[0]:
        shape = (matrix.shape[0],) if vector else matrix.shape
        raise ShapeError(f"{name}: a has shape {a.shape} and b has shape {shape}; b must have {a.shape[0]} rows, as many as a")
    return matrix, vector


def in_memory(store: TileStore) -> Array | None:
    """All elements as an array, if they lie in this process's memory."""
    return store.view(Rect(0, store.shape[0], 0, store.shape[1]))


def stored(a: Matrix) -> TileStore:
    """The elements as they are meant: a store of its own for transposed and conjugated views."""
    if a.op == "N":
        return a.store
    if a._array is not None:
        return ArrayStore(a._array)
    return SelectedStore(a.store, a.op, select((slice(None), slice(None)), a.shape))


def known_triangle(a: Matrix) -> str | None:
    """``"L"`` or ``"U"`` if the matrix is known to be triangular."""
    flags = a._flags()
    if known(flags, "is_lower_triangular"):
        return "L"
    return "U" if known(flags, "is_upper_triangular") else None


class Triangle(NamedTuple):
    """``op`` of the triangle ``uplo`` ("L", "U") of a store, with a diagonal of ones if ``unit``."""

    store: TileStore
    uplo: str
    op: str
    unit: bool

    @property
    def n(self) -> int:
        return self.store.shape[0]


def triangle_of(name: str, a: Matrix, *, lower: bool | None, trans: Any = "N", unit: bool = False) -> Triangle:
    """The triangle of a square matrix, ``lower`` or not, as a kernel takes it; views cost nothing.

    Parameters
    ----------
    lower : bool or None
        None goes by the matrix's properties, and takes the upper triangle if they do not tell.
    trans : {0, 1, 2, "N", "T", "C"}
        SciPy's names for as it is, transposed, conjugate transposed.
    """
    trans = trans.item() if isinstance(trans, np.generic) else trans
    if not (isinstance(trans, (int, str)) and trans in _TRANS):
        raise ConfigError(f'{name}: trans is {trans!r}; it must be 0 or "N", 1 or "T", 2 or "C"')
    if lower is None:
        lower = known_triangle(a) == "L"
    unit = bool(unit) or known(a._flags(), "has_unit_diagonal") is True
    store, own = a.store, a.op
    real = a.dtype.kind != "c"
    if own == "N" and a._array is not None and a._array.flags.f_contiguous and not a._array.flags.c_contiguous:
        store, own = ArrayStore(a._array.T), "T"  # kernels read along rows
    op = _COMPOSED[own][_TRANS[trans]]
    if real:
        op = {"H": "T", "C": "N"}.get(op, op)
    if op == "C":
        # Kernels know no conjugation by itself: the elements are conjugated as they are read.
        conjugated = stored(Matrix._of_store(store, "C"))
        return Triangle(conjugated, "L" if lower == (_TRANS[trans] == "N") else "U", "N", unit)
    return Triangle(store, "L" if lower == (own not in "TH") else "U", op, unit)


def chunks_like(source: TileStore, shape: tuple[int, int], dtype: np.dtype[Any], limit: int | None) -> tuple[int, int]:
    """Square chunks of a result: a matrix's own if they are sensible (then tiles are whole chunks on both sides).

    Under a limit of host memory they are so small that a good many tiles of whole chunks fit.
    """
    height, width = source.chunks
    if source.path is not None and height == width and 1 << 20 <= height * width * dtype.itemsize <= 32 << 20:
        side = height
    else:
        side = max(default_chunks(shape, dtype))
    if limit is not None:
        most = max(limit // (_TILES * dtype.itemsize), 1)
        side = min(side, max(32, 1 << (most.bit_length() - 1) // 2))
    return side, side
