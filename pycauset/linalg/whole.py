"""Eigenpairs of whole matrices by LAPACK: of small ones, and where nearly all are wanted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

import numpy as np

from pycauset.drivers.ritz import preference
from pycauset.errors import ConfigError
from pycauset.governor import Scope
from pycauset.linalg.krylov import EigenStatistics, Request, residuals_of
from pycauset.linalg.operators import Operator
from pycauset.linalg.spectral import Pencil, factored

__all__ = ["pairs_by_lapack"]

Array = np.ndarray[Any, Any]

#: Columns whose residuals are measured at once.
_BAND: Final = 64


def pairs_by_lapack(
    request: Request, kind: str, a: Operator, pencil: Pencil | None, scope: Scope
) -> tuple[Array, Array, EigenStatistics]:
    """The k most wanted pairs, the most wanted first.

    Parameters
    ----------
    kind : {"hermitian", "skew", "general"}
    pencil : Pencil or None
        With M: ``A x = λ M x``. A shift only says which pairs are wanted.

    Raises
    ------
    NonFiniteError, NotPositiveDefiniteError, MemoryLimitError
    """
    m = None if pencil is None else pencil.m
    real = a.dtype.kind != "c"
    # Measured: eigenvectors of a real general matrix are complex, and there for a moment in both forms.
    copies = 4 + 3 * (kind != "hermitian" and real) + 4 * (m is not None)
    with a.whole(scope, copies * a.shape[0] ** 2):
        dense = _elements(a, kind == "hermitian")
        times: Callable[[Array], Array] | None = None
        second = 1.0  # ‖M‖
        if pencil is not None and m is not None and kind == "general":
            elements = _elements(m, False).astype(a.dtype, copy=False)
            values, wanted, vectors = _general(dense, elements, pencil)
            times, second = elements.__matmul__, _largest(elements.copy())
        else:
            if pencil is not None and m is not None:
                values, vectors, times, second = _definite(dense, _factor(pencil, scope), kind)
            else:
                values, vectors = _standard(dense, kind)
            wanted = values if pencil is None else pencil.shifted(values)
        paired = real and kind != "hermitian" and not np.iscomplexobj(pencil.sigma if pencil is not None else 0)
        order = preference(wanted, request.which, real=paired)[: request.k]
        values, vectors = values[order], vectors[:, order]
        bands = [slice(c, c + _BAND) for c in range(0, len(values), _BAND)]
        residuals = np.concatenate(
            [
                residuals_of(dense @ vectors[:, c], vectors[:, c] if times is None else times(vectors[:, c]), values[c])
                for c in bands
            ]
        )
        if times is not None:
            residuals /= np.concatenate([np.linalg.norm(vectors[:, c], axis=0) for c in bands])
        norm = _largest(dense)
        if pencil is not None:
            finite = np.abs(values[np.isfinite(values)])
            norm = norm + float(finite.max()) * second if len(finite) else second
    return values, vectors, EigenStatistics(1, request.n, 0, 0, 0, 0, norm, residuals)


def _elements(a: Operator, mirrored: bool) -> Array:
    """All elements, found finite; ``mirrored`` from the lower triangle."""
    dense = a.dense()
    if not np.isfinite(dense).all():
        a.blame()
    if mirrored:
        for r in range(0, len(dense), _BAND):
            stop = min(r + _BAND, len(dense))
            dense[:r, r:stop] = dense[r:stop, :r].conj().T
            block = np.tril(dense[r:stop, r:stop])
            dense[r:stop, r:stop] = block + np.tril(block, -1).conj().T
    return dense


def _standard(dense: Array, kind: str) -> tuple[Array, Array]:
    """All eigenvalues and eigenvectors of one matrix."""
    import scipy.linalg

    if kind == "hermitian":
        values, vectors = scipy.linalg.eigh(dense, check_finite=False)
    elif kind == "skew":
        turned = np.empty(dense.shape, np.result_type(dense, np.complex64), "F")
        turned.real, turned.imag = 0, (dense - dense.T) / 2
        values, vectors = scipy.linalg.eigh(turned, overwrite_a=True, check_finite=False)
        values = -1j * values
    else:
        values, vectors = scipy.linalg.eig(dense, check_finite=False)
    return values, vectors


def _definite(dense: Array, factor: Array, kind: str) -> tuple[Array, Array, Callable[[Array], Array], float]:
    """All eigenvalues and eigenvectors of ``A x = λ M x`` by the factor K of M, the product with M, and ``‖M‖``."""
    import scipy.linalg

    def divided(x: Array) -> Array:
        return np.asarray(scipy.linalg.solve_triangular(factor, x, lower=True, check_finite=False))

    values, vectors = _standard(divided(divided(dense.conj().T).conj().T), kind)
    vectors = scipy.linalg.solve_triangular(factor, vectors, trans="C", lower=True, overwrite_b=True, check_finite=False)
    return values, vectors, lambda x: factor @ (factor.conj().T @ x), _largest(factor.copy()) ** 2


def _largest(a: Array) -> float:
    """The largest singular value of ``a``, which is overwritten."""
    import scipy.linalg

    return float(scipy.linalg.svdvals(a, overwrite_a=True, check_finite=False).max(initial=0.0))


def _general(a: Array, m: Array, pencil: Pencil) -> tuple[Array, Array, Array]:
    """All pairs of ``A x = λ M x`` by the QZ method, which takes any M, with the values that go by a shift.

    An eigenvalue is a ratio α / β, infinite where M is singular; that far from a shift it is the least wanted.
    """
    import scipy.linalg

    (above, below), vectors = scipy.linalg.eig(a, m, check_finite=False, homogeneous_eigvals=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(below == 0, np.inf, above / below)
        wanted = values if pencil.sigma is None else np.nan_to_num(below / (above - pencil.sigma * below))
    if pencil.sigma is None and pencil.minv is None:  # M is called definite: vectors of length one in its inner product
        square = np.concatenate(
            [np.einsum("ij,ij->j", x.conj(), m @ x).real for x in (vectors[:, c : c + _BAND] for c in range(0, len(m), _BAND))]
        )
        vectors /= np.where(square > 0, square, 1) ** 0.5
    return values, wanted, vectors


def _factor(pencil: Pencil, scope: Scope) -> Array:
    """The Cholesky factor of M."""
    assert pencil.m is not None
    if pencil.mode == "buckling":
        raise ConfigError(f'{pencil.a.name}: with mode="buckling" k must be below n - 1, which is {pencil.a.shape[0] - 1}')
    with ExitStack() as stack:
        return factored(pencil.m, "M", stack, scope, progress=False).to_numpy().astype(pencil.a.dtype, copy=False)
