"""Blocks of vectors made orthonormal against a basis and among themselves: in blocks, in two passes.

References
----------
.. [1] E. Carson, K. Lund, M. Rozložník and S. Thomas, "Block Gram-Schmidt algorithms and their stability properties",
   Linear Algebra Appl. 638 (2022): the variant BCGSI+.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pycauset.devices.blas import adjoint_product, product
from pycauset.drivers.basis import Basis

__all__ = ["Orthonormal", "gaussian", "orthonormalise"]

Array = np.ndarray[Any, Any]


class Orthonormal(NamedTuple):
    """``W = V C + Q R`` with orthonormal ``Q``, orthogonal to ``V``; rows of ``R`` for refilled columns are zero."""

    q: Array
    c: Array
    r: Array
    rank: int


def orthonormalise(basis: Basis, count: int, w: Array, rng: np.random.Generator) -> Orthonormal:
    """Split a block into its part in the span of a basis and an orthonormal rest.

    Parameters
    ----------
    basis : Basis
    count : int
        Columns of it that are in use, V.
    w : ndarray (n, p)
        The block; left alone.
    rng : numpy.random.Generator
        Columns that depend on the others, or on V, are replaced by random ones as long as there are any: the
        block keeps its width, and directions that it had lost can come back.

    Examples
    --------
    >>> from pycauset.drivers.basis import ArrayBasis
    >>> v = np.eye(4)[:, :2]
    >>> w = np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 6.0], [0.0, 0.0]])
    >>> q, c, r, rank = orthonormalise(ArrayBasis(v), 2, w, np.random.default_rng(0))
    >>> rank, bool(np.allclose(v @ c + q @ r, w)), bool(np.allclose(q.T @ q, np.eye(2)))
    (1, True, True)
    """
    width = min(w.shape[1], basis.n - count)
    before = np.linalg.norm(w, axis=0)
    c = basis.inner(count, w)
    q, r, rank = _factor(basis.subtract(count, w, c), before)
    if rank < width:
        q = np.hstack([q[:, :rank], _fresh(basis, count, q[:, :rank], width - rank, rng)])
        r = np.vstack([r[:rank], np.zeros((width - rank, w.shape[1]), r.dtype)])
    else:
        q, r = q[:, :width], r[:width]
    again = basis.inner(count, q)
    q, s = _qr(basis.subtract(count, q, again))
    return Orthonormal(q, c + product(again, r), product(s, r), rank)


def _qr(w: Array) -> tuple[Array, Array]:
    if w.shape[1] == 1:
        length = _length(w)
        return w / length, np.full((1, 1), length, w.dtype)
    import scipy.linalg  # whose threads the kernels wake as well, see pycauset.devices.blas.product

    q, r = scipy.linalg.qr(w, mode="economic", check_finite=False)
    return q, r


def _length(w: Array) -> float:
    """Of a single column; along an axis NumPy adds squares, otherwise it would call its own BLAS."""
    return float(np.linalg.norm(w, axis=0)[0])


def _factor(w: Array, scale: Array) -> tuple[Array, Array, int]:
    """``w = q r`` and its numerical rank, where ``scale`` are the lengths that its columns had before they were projected."""
    floor = 20 * np.finfo(w.dtype).eps * float(scale.max(initial=0.0))
    if w.shape[1] == 1:
        length = _length(w)
        rank = int(length > floor)
        return (w / length if rank else w), np.full((1, 1), length, w.dtype), rank
    import scipy.linalg

    tall, small = _qr(w)  # pivots are looked for in the small factor: among long columns they cost more than the rest
    q, r, order = scipy.linalg.qr(small, mode="economic", pivoting=True, check_finite=False)
    q = product(tall, q)
    rank = int(np.count_nonzero(np.abs(np.diagonal(r)) > floor))
    back = np.empty_like(r)
    back[:, order] = r
    return q, back, rank


def _fresh(basis: Basis, count: int, q: Array, width: int, rng: np.random.Generator) -> Array:
    """Random orthonormal columns, orthogonal to the basis and to ``q``."""
    x = gaussian(rng, (basis.n, width), basis.dtype)
    for _ in range(3):
        x = basis.subtract(count, x, basis.inner(count, x))
        x = x - product(q, adjoint_product(q, x))
        x, _ = _qr(x)
    return x.astype(basis.dtype, copy=False)


def gaussian(rng: np.random.Generator, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    """Normally distributed, for a complex type in both parts."""
    x = rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "c":
        x = x + 1j * rng.standard_normal(shape).astype(x.real.dtype)
    return x
