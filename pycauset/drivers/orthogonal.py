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
from pycauset.errors import NonFiniteError

__all__ = ["Orthonormal", "orthonormalise", "random_block"]

Array = np.ndarray[Any, Any]


class Orthonormal(NamedTuple):
    """``W = V C + Q R`` with orthonormal ``Q``, orthogonal to ``V``; rows of ``R`` for refilled columns are zero."""

    q: Any
    c: Array
    r: Array
    rank: int


def orthonormalise(basis: Basis, count: int, w: Any, rng: np.random.Generator) -> Orthonormal:
    """Split a block into its part in the span of a basis and an orthonormal rest.

    Parameters
    ----------
    basis : Basis
    count : int
        Columns of it that are in use, V.
    w : array (n, p)
        The block, where the basis has its blocks; left alone.
    rng : numpy.random.Generator
        Columns that depend on the others, or on V, are replaced by random ones as long as there are any: the
        block keeps its width, and directions that it had lost can come back.

    Raises
    ------
    NonFiniteError
        If the block holds NaN or infinity.

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
    fast = basis.split(count, w) if width == w.shape[1] else None
    if fast is not None:
        return Orthonormal(*fast, width)
    before = basis.lengths(w)
    if not np.isfinite(before).all():
        raise NonFiniteError("a block of vectors holds NaN or infinity")
    c = basis.inner(count, w)
    q, r, rank = _factor(basis, basis.subtract(count, w, c), before)
    if rank < width:
        q = basis.join(q[:, :rank], _fresh(basis, count, q[:, :rank], width - rank, rng))
        r = np.vstack([r[:rank], np.zeros((width - rank, w.shape[1]), r.dtype)])
    else:
        q, r = q[:, :width], r[:width]
    again = basis.inner(count, q)
    q, s = basis.qr(basis.subtract(count, q, again))
    small = basis.dense.product
    return Orthonormal(q, c + small(again, r), small(s, r), rank)


def _factor(basis: Basis, w: Any, scale: Array) -> tuple[Any, Array, int]:
    """``w = q r`` and its numerical rank, where ``scale`` are the lengths that its columns had before they were projected."""
    floor = 20 * np.finfo(w.dtype).eps * float(scale.max(initial=0.0))
    if w.shape[1] == 1:
        length = basis.lengths(w)
        rank = int(length[0] > floor)
        return (w / length[0] if rank else w), length.astype(w.dtype).reshape(1, 1), rank
    import scipy.linalg

    tall, small = basis.qr(w)  # pivots are looked for in the small factor: among long columns they cost more than the rest
    q, r, order = scipy.linalg.qr(small, mode="economic", pivoting=True, check_finite=False)
    rank = int(np.count_nonzero(np.abs(np.diagonal(r)) > floor))
    back = np.empty_like(r)
    back[:, order] = r
    return basis.combine(tall, q), back, rank


def _fresh(basis: Basis, count: int, q: Any, width: int, rng: np.random.Generator) -> Any:
    """Random orthonormal columns, orthogonal to the basis and to ``q``."""
    known = basis.give(q)
    x = random_block(rng, (basis.n, width), basis.dtype)
    for _ in range(3):
        block = basis.take(x)
        x = basis.give(basis.subtract(count, block, basis.inner(count, block)))
        x = basis.give(basis.qr(basis.take(x - product(known, adjoint_product(known, x))))[0])
    return basis.take(x.astype(basis.dtype, copy=False))


def random_block(rng: np.random.Generator, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    """Evenly distributed around 0, for a complex type in both parts; in single precision: as random for this, and sooner made."""
    x = rng.random(shape, np.float32).astype(dtype)
    if dtype.kind == "c":
        x.imag = rng.random(shape, np.float32)
        x -= 0.5j
    x -= 0.5
    return x
