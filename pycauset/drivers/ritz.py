"""Eigenvalues of small projected matrices: which of them are wanted, how far they are, what a restart keeps.

All by LAPACK, on matrices of a few hundred rows, by the library that the basis names, see :mod:`pycauset.devices.dense`; but for
Schur forms, which only SciPy has.

References
----------
.. [1] G. W. Stewart, "A Krylov-Schur algorithm for large eigenproblems", SIAM J. Matrix Anal. Appl. 23 (2002).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from pycauset.devices.dense import KERNELS, Dense

__all__ = ["GENERAL", "HERMITIAN", "Ritz", "kept_space", "norm_from_below", "preference", "ritz_pairs", "surplus"]

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
        high = np.round(np.abs(values.imag) / scale, 12)
        order = np.lexsort((-values.imag, high, -key if which[0] == "L" else key))
        # Equal pairs stand there as all upper and then all lower members: each gets its turn, and the k-th cuts one pair at most.
        run = np.stack([key, high, np.sign(values.imag)])[:, order]
        first = np.append(True, (np.diff(run) != 0).any(axis=0))
        places = np.arange(len(order))
        turn = places - np.maximum.accumulate(np.where(first, places, 0))
        pair = np.cumsum(np.append(True, (np.diff(run[:2]) != 0).any(axis=0)))
        return np.asarray(order[np.lexsort((places, turn, pair))])
    return np.argsort(-key if which[0] == "L" else key, kind="stable")


def surplus(values: Array, wanted: Array, which: str, *, real: bool = False) -> Array:
    """By how much each of ``values`` is wanted more than the last of those ``wanted``; negative if less.

    Examples
    --------
    >>> surplus(np.array([5.0, 2.5, -9.0]), np.array([3.0, 4.0]), "LA")
    array([  2. ,  -0.5, -12. ])
    """
    if which == "BE":
        up = np.sort(wanted.real)
        high, low = up[len(up) // 2 :], up[: len(up) // 2]
        above = values.real - high[0]
        return np.asarray(np.maximum(above, low[-1] - values.real) if len(low) else above)

    def key(x: Array) -> Array:
        if which[1] == "I":
            return np.abs(x.imag) if real else np.asarray(x.imag)
        return np.asarray(np.abs(x) if which[1] == "M" else x.real)

    return np.asarray(key(values) - key(wanted).min() if which[0] == "L" else key(wanted).max() - key(values))


def ritz_pairs(h: Array, b: Array, kind: str, which: str, dense: Dense = KERNELS) -> Ritz:
    """Ritz pairs of a Krylov decomposition ``A V = V h + Q b``, the residuals as the decomposition gives them.

    Parameters
    ----------
    h : ndarray (j, j)
    b : ndarray (p, j)
    kind : {"hermitian", "skew", "general"}
        What rounding has to be kept from spoiling.
    which : str
        One of `HERMITIAN` or `GENERAL`.
    dense : Dense
        What solves it.
    """
    real = h.dtype.kind != "c"
    if kind == "hermitian":
        values, vectors = dense.eigh((h + h.conj().T) / 2)
        values, vectors = _sorted_out(values, vectors, b, dense)
    elif kind == "skew":
        turned, vectors = dense.eigh(0.5j * (h - h.conj().T))
        turned, vectors = _sorted_out(turned, vectors, b, dense)
        values = -1j * turned
    else:
        values, vectors = dense.eig(h)
    order = preference(values, which, real=real and kind != "hermitian")
    values, vectors = values[order], vectors[:, order]
    return Ritz(values, vectors, np.linalg.norm(dense.product(b.astype(vectors.dtype, copy=False), vectors), axis=0))


def _sorted_out(values: Array, vectors: Array, b: Array, dense: Dense) -> tuple[Array, Array]:
    """Among eigenvalues that rounding cannot tell apart, the combinations with the smallest residuals first.

    LAPACK mixes them at will: copies that have converged with one that has just come up, over and over.
    """
    near = 16 * float(np.finfo(values.dtype).eps) * float(np.abs(values).max(initial=0.0))
    ends = [*(np.flatnonzero(np.diff(values) > near) + 1).tolist(), len(values)]
    start = 0
    for stop in ends:
        if stop - start > 1:
            group = slice(start, stop)
            values[group] = values[group].mean()
            if len(b):
                mixed = vectors[:, group]
                turn = dense.svd(dense.product(b.astype(mixed.dtype, copy=False), mixed))[2].conj().T[:, ::-1]
                vectors[:, group] = dense.product(mixed, turn)
        start = stop
    return values, vectors


def norm_from_below(h: Array, dense: Dense = KERNELS) -> float:
    """A lower bound of ``‖h‖₂``, mostly within a few percent: a few steps of the power method on ``hᴴ h``.

    Examples
    --------
    >>> round(norm_from_below(np.diag([1.0, 2.0, 5.0])), 3)
    5.0
    """
    x = np.linalg.norm(h, axis=0).astype(h.dtype)[:, np.newaxis]
    bound = float(np.abs(x).max(initial=0.0))
    for _ in range(12):
        length = float(np.linalg.norm(x))
        if length == 0 or not np.isfinite(length):
            break
        y = dense.product(h, x / length)
        bound = max(bound, float(np.linalg.norm(y)))
        x = dense.product(h.conj().T, y)
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
    select[_nearest(values, ritz.values[:keep], pairs=real)] = 1
    moved = trsen(select, t, z, job="N")
    space: Array = moved[1][:, : int(select.sum())]
    return space


def _nearest(values: Array, wanted: Array, *, pairs: bool) -> list[int]:
    """For each wanted eigenvalue the nearest of ``values`` that is not taken yet.

    With ``pairs`` the members of a conjugate pair stand side by side, the upper one first, and are taken together.
    """
    free = np.ones(len(values), bool)
    if pairs:
        free[values.imag < 0] = False
    found: list[int] = []
    spare = 0  # lower members that came with upper ones
    for value in wanted:
        if spare and value.imag <= 0:
            spare -= 1
            continue
        best = int(np.argmin(np.where(free, np.abs(values - value), np.inf)))
        free[best] = False
        found.append(best)
        if pairs and values[best].imag > 0:
            found.append(best + 1)
            spare += 1
    return found
