"""A matrix that a function computes: kernel matrices, causal matrices, test matrices. It needs no storage at all."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pycauset.errors import DtypeError, PycausetError, ShapeError, StoreError
from pycauset.storage.base import TileStore, check_structure, element_type
from pycauset.tiling import Rect, pieces

__all__ = ["FunctionStore"]

_UNIT_BYTES: Final = 4 << 20
_COPIES: Final = 4.0
_serial = itertools.count()


class FunctionStore(TileStore):
    """Elements ``f(rows, cols)``, computed when they are read, never kept.

    Parameters
    ----------
    f : callable
        Called as ``f(rows, cols)`` with two one-dimensional int64 arrays, the row indices (m,) and column indices (n,)
        of a tile, both consecutive and counted from 0. It returns the tile, an array of shape (m, n); (m, 1), (1, n)
        and a scalar are repeated to that shape. Write ``rows[:, None]`` and ``cols[None, :]`` to combine the two. A
        one-dimensional result is refused, since for a square tile it would fit by accident. ``f`` must depend on the indices
        alone; several threads call it at once, with tiles of at most ``chunks``.
    shape : (int, int)
    dtype : dtype
        ``f`` may return any type that casts to it by NumPy's "same_kind" rule (float64 to float32, int to float). What it
        raises reaches the reader as the cause of a `StoreError` that names the tile; pycauset's own errors, MemoryError and
        KeyboardInterrupt pass as they are.
    chunks : (int, int), optional
        Largest tile that ``f`` is asked for; 4 MiB by default.
    structure : str
        A claim about the values. In a ``"lower"`` or ``"upper"`` matrix the zero triangle is not computed, except where a
        tile crosses the diagonal; there, and for the other structures, ``f`` is believed.
    copies : float
        How many arrays of a tile's size, with 8-byte elements or larger, ``f`` holds at once, its result included.
        It only counts towards memory limits.

    Examples
    --------
    >>> import numpy as np
    >>> from pycauset.tiling import Rect
    >>> hilbert = FunctionStore(lambda i, j: 1 / (i[:, None] + j[None, :] + 1), (1000, 1000), "float64")
    >>> out = np.empty((1, 3))
    >>> hilbert.read(Rect(1, 2, 0, 3), out)
    >>> out.round(3).tolist()
    [[0.5, 0.333, 0.25]]
    """

    def __init__(
        self,
        f: Callable[[NDArray[np.int64], NDArray[np.int64]], Any],
        shape: tuple[int, int],
        dtype: DTypeLike,
        chunks: tuple[int, int] | None = None,
        *,
        structure: str = "full",
        copies: float = _COPIES,
    ) -> None:
        if not callable(f):
            raise DtypeError(f"{f!r} is not callable; a function matrix needs f(rows, cols)")
        self._f = f
        self._name = str(getattr(f, "__qualname__", repr(f)))
        self.dtype = element_type(dtype, f"the matrix of {self._name}")
        if min(shape) < 0:
            raise ShapeError(f"shape {shape} of the matrix of {self._name} must be at least 0")
        self.shape = (int(shape[0]), int(shape[1]))
        self.chunks = chunks or _unit(self.shape, self.dtype)
        if min(self.chunks) < 1:
            raise ShapeError(f"chunks {self.chunks} of the matrix of {self._name} must be at least 1")
        check_structure(structure, self.shape, (1, 1), self.dtype)
        self.structure = structure
        self.identity = ("function", next(_serial))
        self.attributes = {}
        self._copies = copies

    @property
    def generation(self) -> int | None:
        return 0

    def temporary_bytes(self, shape: tuple[int, int], dtype: DTypeLike) -> int:
        count = min(shape[0], self.chunks[0]) * min(shape[1], self.chunks[1])
        return int(self._copies * count * max(8, self.dtype.itemsize))

    def _read(self, rect: Rect, out: NDArray[Any]) -> None:
        for _, _, part in pieces(rect, self.chunks):
            dest = out[part.shift(-rect.r0, -rect.c0).slices]
            if self.is_zero(part):
                dest[...] = 0
            else:
                np.copyto(dest, self._tile(part), casting="same_kind")

    def _tile(self, rect: Rect) -> NDArray[Any]:
        rows, cols = np.arange(rect.r0, rect.r1, dtype=np.int64), np.arange(rect.c0, rect.c1, dtype=np.int64)
        where = f"rows {rect.r0}:{rect.r1}, columns {rect.c0}:{rect.c1}"
        try:
            answer = self._f(rows, cols)
        except (PycausetError, MemoryError) as error:
            error.add_note(f"while {self._name} computed {where} of a matrix")
            raise
        except Exception as error:
            raise StoreError(f"{self._name} failed for {where} of a matrix: {type(error).__name__}: {error}") from error
        m, n = rect.shape
        try:
            tile = np.asarray(answer)
        except Exception as error:
            raise ShapeError(f"{self._name} returned no array for {where}: {error}; it must return ({m}, {n})") from error
        if tile.shape not in ((m, n), (m, 1), (1, n), ()):
            raise ShapeError(
                f"{self._name} returned shape {tile.shape} for {m} rows and {n} columns ({where}); it must return ({m}, {n}): "
                "combine rows[:, None] with cols[None, :]"
            )
        if not np.can_cast(tile.dtype, self.dtype, "same_kind"):
            raise DtypeError(
                f"{self._name} returned {tile.dtype} for a matrix of {self.dtype} ({where}), which would lose information; "
                "declare another dtype or convert inside the function"
            )
        return tile

    def __repr__(self) -> str:
        return f"<FunctionStore {self._name} {self.shape[0]} x {self.shape[1]} {self.dtype}>"


def _unit(shape: tuple[int, int], dtype: np.dtype[Any]) -> tuple[int, int]:
    count = _UNIT_BYTES // max(8, dtype.itemsize)
    width = max(1, min(shape[1], max(1024, count // max(1, shape[0]))))
    return max(1, min(shape[0], count // width)), width
