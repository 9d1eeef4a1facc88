"""Eigenpairs of whole matrices by LAPACK: of small ones, and where nearly all are wanted."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np

from pycauset.drivers.ritz import preference
from pycauset.errors import ConfigError
from pycauset.governor import Scope
from pycauset.linalg.krylov import EigenStatistics, Request
from pycauset.linalg.operators import Operator
from pycauset.linalg.spectral import Pencil, factored

__all__ = ["pairs_by_lapack"]

Array = np.ndarray[Any, Any]


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
    import scipy.linalg

    with a.whole(scope):
        dense = a.dense()
        if not np.isfinite(dense).all():
            a.blame()
        if kind == "hermitian":
            dense = np.tril(dense) + np.tril(dense, -1).conj().T
        factor = None
        if pencil is not None and pencil.m is not None:
            factor = _factor(pencil, scope)
            dense = _divided(factor, _divided(factor, dense.conj().T).conj().T)
        if kind == "hermitian":
            values, vectors = scipy.linalg.eigh(dense, check_finite=False)
        elif kind == "skew":
            turned, vectors = scipy.linalg.eigh(0.5j * (dense - dense.T), check_finite=False)
            values = -1j * turned
        else:
            values, vectors = scipy.linalg.eig(dense, check_finite=False)
        wanted = values if pencil is None else pencil.shifted(values)
        real = dense.dtype.kind != "c" and kind != "hermitian" and not np.iscomplexobj(pencil.sigma if pencil is not None else 0)
        order = preference(wanted, request.which, real=real)[: request.k]
        values, vectors = values[order], vectors[:, order]
        residuals = np.linalg.norm(dense @ vectors - vectors * values, axis=0)
        norm = float(np.linalg.norm(dense, 2)) if request.n else 0.0
        if factor is not None:
            vectors = scipy.linalg.solve_triangular(factor, vectors, trans="C", lower=True, check_finite=False)
    return values, vectors, EigenStatistics(1, request.n, 0, 0, 0, 0, norm, residuals)


def _factor(pencil: Pencil, scope: Scope) -> Array:
    """The Cholesky factor of M."""
    assert pencil.m is not None
    if pencil.mode == "buckling":
        raise ConfigError(f'{pencil.a.name}: with mode="buckling" k must be below n - 1, which is {pencil.a.shape[0] - 1}')
    with ExitStack() as stack:
        return factored(pencil.m, "M", stack, scope, progress=False).to_numpy().astype(pencil.a.dtype)


def _divided(factor: Array, x: Array) -> Array:
    import scipy.linalg

    return np.asarray(scipy.linalg.solve_triangular(factor, x, lower=True, check_finite=False))
