"""Blocks of vectors made orthonormal against a basis and among themselves: in blocks, in two passes. Arrays in RAM only.

References
----------
.. [1] E. Carson, K. Lund, M. Rozložník and S. Thomas, "Block Gram-Schmidt algorithms and their stability properties",
   Linear Algebra Appl. 638 (2022): the variant BCGSI+.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = ["Orthonormal", "inner", "orthonormalise"]

Array = np.ndarray[Any, Any]


class Orthonormal(NamedTuple):
    """``W = V C + Q R`` with orthonormal ``Q``, orthogonal to ``V``; rows of ``R`` for refilled columns are zero."""

    q: Array
    c: Array
    r: Array
    rank: int


def inner(v: Array, w: Array) -> Array:
    """``vᴴ w`` without a conjugated copy of ``v``, the larger of the two."""
    if v.dtype.kind != "c":
        return np.asarray(v.T @ w)
    return np.asarray((w.conj().T @ v).conj().T)


def orthonormalise(v: Array, w: Array, rng: np.random.Generator) -> Orthonormal:
    """Split a block into its part in the span of a basis and an orthonormal rest.

    Parameters
    ----------
    v : ndarray (n, j)
        Orthonormal columns.
    w : ndarray (n, p)
        The block; left alone.
    rng : numpy.random.Generator
        Columns that depend on the others, or on ``v``, are replaced by random ones as long as there are any: the
        block keeps its width, and directions that it had lost can come back.

    Examples
    --------
    >>> v = np.eye(4)[:, :2]
    >>> w = np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 6.0], [0.0, 0.0]])
    >>> q, c, r, rank = orthonormalise(v, w, np.random.default_rng(0))
    >>> rank, bool(np.allclose(v @ c + q @ r, w)), bool(np.allclose(q.T @ q, np.eye(2)))
    (1, True, True)
    """
    n, j = v.shape
    width = min(w.shape[1], n - j)
    before = np.linalg.norm(w, axis=0)
    c = inner(v, w)
    rest = w - v @ c
    q, r, rank = _factor(rest, before)
    if rank < width:
        q = np.hstack([q[:, :rank], _fresh(v, q[:, :rank], width - rank, rng)])
        r = np.vstack([r[:rank], np.zeros((width - rank, w.shape[1]), r.dtype)])
    else:
        q, r = q[:, :width], r[:width]
    again = inner(v, q)
    q = q - v @ again
    q, s = _qr(q)
    return Orthonormal(q, c + again @ r, s @ r, rank)


def _qr(w: Array) -> tuple[Array, Array]:
    if w.shape[1] == 1:
        length = np.linalg.norm(w)
        return w / length, np.full((1, 1), length, w.dtype)
    q, r = np.linalg.qr(w)
    return q, r


def _factor(w: Array, scale: Array) -> tuple[Array, Array, int]:
    """``w = q r`` and its numerical rank, where ``scale`` are the lengths that its columns had before they were projected."""
    floor = 20 * np.finfo(w.dtype).eps * float(scale.max(initial=0.0))
    if w.shape[1] == 1:
        length = float(np.linalg.norm(w))
        rank = int(length > floor)
        return (w / length if rank else w), np.full((1, 1), length, w.dtype), rank
    import scipy.linalg

    tall, small = np.linalg.qr(w)  # pivots are looked for in the small factor: among long columns they cost more than the rest
    q, r, order = scipy.linalg.qr(small, mode="economic", pivoting=True, check_finite=False)
    q = tall @ q
    rank = int(np.count_nonzero(np.abs(np.diagonal(r)) > floor))
    back = np.empty_like(r)
    back[:, order] = r
    return q, back, rank


def _fresh(v: Array, q: Array, count: int, rng: np.random.Generator) -> Array:
    """Random orthonormal columns, orthogonal to ``v`` and ``q``."""
    x = rng.standard_normal((v.shape[0], count)).astype(v.dtype)
    if v.dtype.kind == "c":
        x = x + 1j * rng.standard_normal(x.shape).astype(x.real.dtype)
    for _ in range(3):
        x = x - v @ inner(v, x)
        x = x - q @ inner(q, x)
        x, _ = _qr(x)
    return x.astype(v.dtype, copy=False)
