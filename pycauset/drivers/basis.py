"""The basis of a Krylov space: orthonormal columns, and the few products with them that a driver needs.

Blocks are appended; a restart replaces all columns by combinations of them. Where the columns lie, in an array or in a store on
disk (:mod:`pycauset.drivers.spilled`), only the basis itself knows.
"""

from __future__ import annotations

import abc
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from pycauset.devices.blas import adjoint_product, product

__all__ = ["ArrayBasis", "Basis"]

Array = np.ndarray[Any, Any]

#: Rows of the basis that a restart rotates at once.
_BAND: Final = 4096


class Basis(abc.ABC):
    """Columns V (n, ·), of which the first so many are in use.

    Attributes
    ----------
    n : int
    dtype : dtype
    sweeps : int
        Times that all columns were read from disk.
    """

    n: int
    dtype: np.dtype[Any]
    sweeps: int = 0

    @abc.abstractmethod
    def block(self, start: int, stop: int) -> Array:
        """Columns ``start:stop`` (n, stop - start), to be read only."""

    @abc.abstractmethod
    def put(self, start: int, q: Array) -> None:
        """Append columns: ``start`` is the number that is there."""

    @abc.abstractmethod
    def inner(self, count: int, w: Array) -> Array:
        """``Vᴴ w`` (count, p) of the first ``count`` columns."""

    @abc.abstractmethod
    def subtract(self, count: int, w: Array, c: Array) -> Array:
        """``w - V c`` (n, p), a fresh array."""

    @abc.abstractmethod
    def times(self, y: Array) -> Array:
        """``V y`` (n, p) of the first ``len(y)`` columns, a fresh array."""

    @abc.abstractmethod
    def rotate(self, z: Array, tail: int) -> None:
        """Replace the first ``len(z)`` columns by ``V z``; the ``tail`` columns behind them follow."""

    def clear(self) -> None:  # noqa: B027 - an array can be overwritten as it is
        """Forget all columns."""

    def close(self) -> None:  # noqa: B027 - an array holds nothing else
        """Give back what is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class ArrayBasis(Basis):
    """Columns in RAM.

    Parameters
    ----------
    v : ndarray (n, columns)
        Fortran-ordered, so that blocks of columns lie together.

    Examples
    --------
    >>> basis = ArrayBasis(np.zeros((3, 4)).T)
    >>> basis.put(0, np.eye(4)[:, :2])
    >>> basis.inner(2, np.arange(4.0)[:, None]).ravel()
    array([0., 1.])
    """

    def __init__(self, v: Array) -> None:
        self._v = v
        self.n, self.dtype = len(v), v.dtype

    def block(self, start: int, stop: int) -> Array:
        return self._v[:, start:stop]

    def put(self, start: int, q: Array) -> None:
        self._v[:, start : start + q.shape[1]] = q

    def inner(self, count: int, w: Array) -> Array:
        return adjoint_product(self._v[:, :count], w)

    def subtract(self, count: int, w: Array, c: Array) -> Array:
        return np.asarray(w - product(self._v[:, :count], c))

    def times(self, y: Array) -> Array:
        return product(self._v[:, : len(y)], y)

    def rotate(self, z: Array, tail: int) -> None:
        v, (count, keep) = self._v, z.shape
        for r in range(0, self.n, _BAND):
            v[r : r + _BAND, :keep] = product(v[r : r + _BAND, :count], z)
        if tail:
            v[:, keep : keep + tail] = v[:, count : count + tail].copy()
