"""The basis of a Krylov space: orthonormal columns, and the few products with them that a driver needs.

Blocks are appended; a restart replaces all columns by combinations of them. Where the columns lie, in RAM, in GPU memory or in a
store on disk (:mod:`pycauset.drivers.spilled`), only the basis itself knows. Blocks of vectors that it gives and takes lie in
RAM too, or in GPU memory beside it; small matrices of coefficients are always in RAM.
"""

from __future__ import annotations

import abc
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from pycauset.devices.blas import adjoint_product, product
from pycauset.devices.dense import KERNELS, NUMPY, Dense

__all__ = ["ArrayBasis", "Basis", "DeviceBasis"]

Array = np.ndarray[Any, Any]

#: Rows of the basis that a restart rotates at once.
_BAND: Final = 4096
#: Condition, with columns scaled to one length, up to which a block is factored through its Gram matrix: q is orthogonal to
#: ε times its square.
_CONDITION: Final = 100.0
#: Share of a column that must be left after two projections for what is left to be right.
_CANCELLED: Final = 1e-4


class Basis(abc.ABC):
    """Columns V (n, ·), of which the first so many are in use.

    Attributes
    ----------
    n : int
    dtype : dtype
    sweeps : int
        Times that all columns were read from disk.
    dense : Dense
        What solves small problems on the host between two products.
    """

    n: int
    dtype: np.dtype[Any]
    sweeps: int = 0
    dense: Dense = KERNELS

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

    # -- blocks of vectors, wherever they lie -------------------------------------------------------------------------

    def take(self, x: Array) -> Any:
        """A block in RAM, brought to where the basis has its blocks."""
        return x

    def give(self, x: Any) -> Array:
        """A block of the basis in RAM."""
        return np.asarray(x)

    def lengths(self, w: Any) -> Array:
        """Of the columns (p,); along an axis NumPy adds squares, otherwise it would call its own BLAS."""
        return np.asarray(np.linalg.norm(w, axis=0))

    def combine(self, w: Any, r: Array) -> Any:
        """``w r``, a fresh block."""
        return product(w, r)

    def join(self, first: Any, second: Any) -> Any:
        """One block of the columns of both."""
        return np.hstack([first, second])

    def split(self, count: int, w: Any) -> tuple[Any, Array, Array] | None:
        """``w = V c + q r`` with orthonormal q, orthogonal to V, for a w of good condition; None if a slower way is due."""
        return None

    def qr(self, w: Any) -> tuple[Any, Array]:
        """``w = q r`` with orthonormal q, up to some thousand times rounding, and triangular r (p, p)."""
        if w.shape[1] == 1:
            length = self.lengths(w)
            return w / length, length.astype(w.dtype).reshape(1, 1)
        import scipy.linalg  # whose threads the kernels wake as well, see pycauset.devices.blas.product

        q, r = scipy.linalg.qr(w, mode="economic", check_finite=False)
        return q, r

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


class DeviceBasis(Basis):
    """Columns in GPU memory, worked on through an array module with NumPy's interface.

    Parameters
    ----------
    v : array (n, columns)
        Of the module, Fortran-ordered.
    xp : module
        CuPy; NumPy serves as a stand-in.
    room : int
        Bytes of GPU memory that a restart may take beside the basis.

    Examples
    --------
    >>> basis = DeviceBasis(np.zeros((3, 4)).T, np)
    >>> basis.put(0, np.eye(4)[:, :2])
    >>> basis.inner(2, np.arange(4.0)[:, None]).ravel()
    array([0., 1.])
    """

    dense = NUMPY

    def __init__(self, v: Any, xp: Any, room: int = 64 << 20) -> None:
        self._v, self._xp, self._room = v, xp, room
        self.n, self.dtype = len(v), np.dtype(v.dtype)
        self._home = getattr(xp, "asnumpy", np.asarray)

    def block(self, start: int, stop: int) -> Any:
        return self._v[:, start:stop]

    def put(self, start: int, q: Any) -> None:
        self._v[:, start : start + q.shape[1]] = q

    def inner(self, count: int, w: Any) -> Array:
        return np.asarray(self._home(_adjoint_product(self._v[:, :count], w)))

    def subtract(self, count: int, w: Any, c: Array) -> Any:
        return w - self.combine(self._v[:, :count], c)

    def times(self, y: Array) -> Any:
        return self.combine(self._v[:, : len(y)], y)

    def rotate(self, z: Array, tail: int) -> None:
        v, (count, keep) = self._v, z.shape
        z = self._xp.asarray(z)
        band = max(1, self._room // ((count + keep) * self.dtype.itemsize))  # the module copies rows that lie apart
        for r in range(0, self.n, band):
            v[r : r + band, :keep] = v[r : r + band, :count] @ z
        if tail:
            v[:, keep : keep + tail] = v[:, count : count + tail].copy()

    def take(self, x: Array) -> Any:
        return self._xp.asarray(x)

    def give(self, x: Any) -> Array:
        return np.asarray(self._home(self._xp.ascontiguousarray(x)))  # reordered there, where memory is fast

    def lengths(self, w: Any) -> Array:
        return np.asarray(self._home(self._xp.linalg.norm(w, axis=0)))

    def combine(self, w: Any, r: Array) -> Any:
        return w @ self._send(r)

    def _send(self, r: Array) -> Any:
        """A small matrix, straight into its place: a module's own conversion goes by way of pinned memory."""
        there = self._xp.empty(r.shape, r.dtype)
        if isinstance(there, np.ndarray):
            return r
        there.set(np.ascontiguousarray(r))
        return there

    def join(self, first: Any, second: Any) -> Any:
        return self._xp.concatenate([first, second], axis=1)

    def split(self, count: int, w: Any) -> tuple[Any, Array, Array] | None:
        """Both projections, then twice through the Gram matrix: two waits for the device in all."""
        v = self._v[:, :count]
        first = _adjoint_product(v, w)
        w = w - v @ first
        second = _adjoint_product(v, w)
        w = w - v @ second
        both = np.asarray(self._home(self._xp.concatenate([first + second, w.T.conj() @ w])))
        c, gram = both[:count], both[count:]
        own = np.abs(np.diagonal(gram))
        before = own + (np.abs(c) ** 2).sum(axis=0)
        if not (np.isfinite(before).all() and (own > _CANCELLED**2 * before).all()):
            return None
        found = _gram_factor(gram)
        if found is None:
            return None
        q = self.combine(w, found[1])
        again = _gram_factor(np.asarray(self._home(q.T.conj() @ q)))
        if again is None:
            return None
        return self.combine(q, again[1]), c, np.asarray(again[0] @ found[0])

    def qr(self, w: Any) -> tuple[Any, Array]:
        found = _gram_factor(np.asarray(self._home(w.T.conj() @ w)))
        if found is None:
            q, r = self._xp.linalg.qr(w)
            return q, np.asarray(self._home(r))
        return self.combine(w, found[1]), found[0]


def _adjoint_product(v: Any, w: Any) -> Any:
    """``vᴴ w``, without a conjugate copy of the large v."""
    return (v.T @ w.conj()).conj()


def _gram_factor(gram: Array) -> tuple[Array, Array] | None:
    """Triangular r with ``rᴴ r = gram``, and its inverse; None if rounding could spoil them."""
    lengths = np.sqrt(np.abs(np.diagonal(gram)))
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        return None
    try:
        r = np.linalg.cholesky(gram / np.outer(lengths, lengths)).conj().T
    except np.linalg.LinAlgError:
        return None
    inverse = np.linalg.inv(r)
    if _frobenius(r) * _frobenius(inverse) > _CONDITION * len(r):
        return None
    return np.asarray(r * lengths), np.asarray(inverse / lengths[:, None])


def _frobenius(a: Array) -> float:
    return float(np.sqrt((np.abs(a) ** 2).sum()))
