"""Eigenvalues of small projected matrices: which of them are wanted, how far they are, what a restart keeps.

All by LAPACK, through SciPy, on matrices of a few hundred rows.

References
----------
.. [1] G. W. Stewart, "A Krylov-Schur algorithm for large eigenproblems", SIAM J. Matrix Anal. Appl. 23 (2002).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

__all__ = ["GENERAL", "HERMITIAN", "Ritz", "kept_space", "norm_from_below", "preference", "ritz_pairs"]

Array = np.ndarray[Any, Any]

HERMITIAN: Final = ("LM", "SM", "LA", "SA", "BE")
GENERAL: Final = ("LM", "SM", "LR", "SR", "LI", "SI")


class Ritz(NamedTuple):
    """Eigenvalues of the projected matrix, the most wanted first, its eigenvectors (columns) and their residuals."""

    values: Array
    vectors: Array
    residuals: Array


def preference(values: Array, which: str, *, real: bool = False) -> Array:
    """The order of ``values`` in which they are wanted.

    ``real`` says that they belong to a real matrix: then "LI" and "SI" go by the absolute imaginary part, as in ARPACK.

    Examples
    --------
    >>> values = np.array([-3.0, 1.0, 2.0, 4.0])
    >>> [values[preference(values, which)].tolist() for which in ("LM", "SA", "BE")]
    [[4.0, -3.0, 2.0, 1.0], [-3.0, 1.0, 2.0, 4.0], [4.0, -3.0, 2.0, 1.0]]
    """
    if which == "BE":
        up = np.argsort(values.real, kind="stable")
        order = np.empty(len(up), int)
        order[0::2] = up[::-1][: (len(up) + 1) // 2]
        order[1::2] = up[: len(up) // 2]
        return order
    if which[1] == "I":
        key = np.abs(values.imag) if real else values.imag
    else:
        key = np.abs(values) if which[1] == "M" else values.real
    key = np.asarray(key, float)
    if real and values.dtype.kind == "c":  # both members of a conjugate pair side by side, the upper one first
        scale = float(np.abs(values).max(initial=0.0)) or 1.0
        key = np.round(key / scale, 12)
        return np.lexsort((-values.imag, np.round(np.abs(values.imag) / scale, 12), -key if which[0] == "L" else key))
    return np.argsort(-key if which[0] == "L" else key, kind="stable")


def ritz_pairs(h: Array, b: Array, kind: str, which: str) -> Ritz:
    """Ritz pairs of a Krylov decomposition ``A V = V h + Q b``, the residuals as the decomposition gives them.

    Parameters
    ----------
    h : ndarray (j, j)
    b : ndarray (p, j)
    kind : {"hermitian", "skew", "general"}
        What rounding has to be kept from spoiling.
    which : str
        One of `HERMITIAN` or `GENERAL`.
    """
    import scipy.linalg

    real = h.dtype.kind != "c"
    if kind == "hermitian":
        values, vectors = scipy.linalg.eigh((h + h.conj().T) / 2, check_finite=False)
    elif kind == "skew":
        turned, vectors = scipy.linalg.eigh(0.5j * (h - h.conj().T), check_finite=False)
        values = -1j * turned
    else:
        values, vectors = scipy.linalg.eig(h, check_finite=False)
    order = preference(values, which, real=real and kind != "hermitian")
    values, vectors = values[order], vectors[:, order]
    return Ritz(values, vectors, np.linalg.norm(b @ vectors, axis=0))


def norm_from_below(h: Array) -> float:
    """A lower bound of ``‖h‖₂``, mostly within a few percent: a few steps of the power method on ``hᴴ h``.

    Examples
    --------
    >>> round(norm_from_below(np.diag([1.0, 2.0, 5.0])), 3)
    5.0
    """
    x = np.linalg.norm(h, axis=0).astype(h.dtype)
    bound = float(np.abs(x).max(initial=0.0))
    for _ in range(12):
        length = float(np.linalg.norm(x))
        if length == 0 or not np.isfinite(length):
            break
        y = h @ (x / length)
        bound = max(bound, float(np.linalg.norm(y)))
        x = h.conj().T @ y
    return bound


def kept_space(h: Array, ritz: Ritz, keep: int, kind: str) -> Array:
    """An orthonormal basis (j, about ``keep``) of the span of the most wanted eigenvectors of ``h``.

    For a Hermitian matrix the eigenvectors themselves; else leading Schur vectors, in real arithmetic for a real
    matrix: a conjugate pair is kept whole, and one more column with it.
    """
    if kind == "hermitian":
        return ritz.vectors[:, :keep]
    from scipy.linalg import lapack, schur

    real = h.dtype.kind != "c"
    t, z = schur(h, output="real" if real else "complex", check_finite=False)
    (trsen,) = lapack.get_lapack_funcs(("trsen",), (t,))
    none = np.zeros(len(h), np.int32)
    found = trsen(none, t, z, job="N")
    values = found[2] + 1j * found[3] if real else found[2]
    select = none.copy()
    which = _nearest(values, ritz.values[:keep])
    select[which] = 1
    if real:
        select[1:] |= np.where((values[1:].imag < 0) & (select[:-1] == 1), 1, 0).astype(np.int32)
        select[:-1] |= np.where((values[:-1].imag > 0) & (select[1:] == 1), 1, 0).astype(np.int32)
    moved = trsen(select, t, z, job="N")
    space: Array = moved[1][:, : int(select.sum())]
    return space


def _nearest(values: Array, wanted: Array) -> list[int]:
    """For each wanted eigenvalue the nearest of ``values`` that is not taken yet."""
    free = np.ones(len(values), bool)
    found = []
    for value in wanted:
        distance = np.where(free, np.abs(values - value), np.inf)
        best = int(np.argmin(distance))
        free[best] = False
        found.append(best)
    return found
