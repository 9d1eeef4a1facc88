"""A few eigenvalues and eigenvectors of matrices of any size, with SciPy's signatures."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from pycauset.drivers.ritz import GENERAL, HERMITIAN, preference
from pycauset.errors import ConfigError
from pycauset.linalg.krylov import EigenStatistics, Request, check_residuals, pairs, pairs_residuals
from pycauset.linalg.operators import Operator, operator
from pycauset.linalg.spectral import Transformed, transformed
from pycauset.linalg.triangles import check_hermitian
from pycauset.solver.products import Product
from pycauset.solver.run import clean_stop, operation_limits

__all__ = ["eigs", "eigsh"]

Array = np.ndarray[Any, Any]


def eigsh(
    A: Any,
    k: int = 6,
    M: Any = None,
    sigma: float | None = None,
    which: str = "LM",
    v0: Any = None,
    ncv: int | None = None,
    maxiter: int | None = None,
    tol: float = 0,
    return_eigenvectors: bool = True,
    mode: str = "normal",
    *,
    block_size: int | None = None,
    check: bool = False,
    return_stats: bool = False,
    return_history: bool = False,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
) -> Any:
    """Find k eigenvalues and eigenvectors of a symmetric (Hermitian) matrix: ``A x = λ x``, or ``A x = λ M x``.

    Block thick-restart Lanczos with full reorthogonalisation. A matrix on disk is streamed, once for each step and by one
    triangle only; a last pass measures the residual of every pair that is returned.

    Parameters
    ----------
    A : Matrix, array_like, sparse matrix or LinearOperator (n, n), or path
        Hermitian, which is believed: of a matrix on disk only the tiles on and below the diagonal are read.
    k : int
        Eigenvalues wanted. From ``n - 1`` on, and for n up to 64, LAPACK takes the whole matrix.
    M : Matrix or array_like (n, n), optional
        Positive definite; factored by `cholesky`.
    sigma : float, optional
        Find the eigenvalues near sigma, by solves with ``A - sigma M``, which must be positive or negative definite: sigma on one
        side of all eigenvalues. (An indefinite factorisation comes with a later version.) SciPy sparse matrices take any sigma.
    which : {"LM", "SM", "LA", "SA", "BE"}
        Largest or smallest magnitude, largest or smallest algebraic, or half from each end; with sigma, of ``1 / (λ - sigma)``.
        The smallest magnitudes lie inside most spectra, where only a large basis finds them: prefer ``sigma=0`` if A is definite.
    v0 : array_like (n,) or (n, p), optional
        Where to start.
    ncv : int, optional
        Size of the basis.
    maxiter : int, optional
        Restarts, at most; 10 n by default.
    tol : float
        Wanted: ``‖A x - λ x‖ <= tol ‖A‖``. Values below machine precision, such as 0, mean machine
        precision: as far as rounding allows, at worst about ``20 n^½ ε ‖A‖`` (``200 n^½ ε ‖A‖`` in `eigs`).
    return_eigenvectors : bool
    mode : {"normal"}
    block_size : int, optional
        Vectors that each pass over A multiplies. An eigenvalue that is repeated more often than that may be found less often.
    check : bool
        Compare A with its transpose first, in one more pass.
    return_stats, return_history : bool
        Return an `EigenStatistics` too, with the history of convergence.
    memory, gpu_memory : int or str, optional
        Bytes that the operation may take beyond what the process holds already.
    progress : callable, optional
        Called with the number of converged pairs and k after each test of convergence.

    Returns
    -------
    w : ndarray (k,)
        Ascending.
    v : ndarray (n, k)
        Orthonormal columns; with M, orthonormal in its inner product.
    stats : EigenStatistics
        If asked for.

    Raises
    ------
    NotConvergedError
        If restarts run out; it carries the pairs that converged.
    NonFiniteError
        If A holds NaN or infinity; names the tile.
    NotHermitianError
        If A is not symmetric (Hermitian) and ``check`` is set.
    ConfigError, ShapeError, DtypeError, MemoryLimitError, NotPositiveDefiniteError, StoreError

    References
    ----------
    .. [1] Y. Zhou and Y. Saad, "Block Krylov-Schur method for large symmetric eigenvalue problems", Numer. Algorithms 47 (2008).

    Examples
    --------
    >>> A = np.diag(np.arange(1.0, 101.0))
    >>> w, v = eigsh(A, k=3, which="LA")
    >>> w.round(6)
    array([ 98.,  99., 100.])
    """
    name = "eigsh"
    a = operator(name, A)
    if mode != "normal":
        raise ConfigError(f'{name}: mode is {mode!r}; there is "normal" (buckling and Cayley need an indefinite factorisation)')
    if sigma is not None and np.iscomplexobj(sigma):
        raise ConfigError(f"{name}: sigma is {sigma!r}; the eigenvalues of a Hermitian matrix are real, so must be the shift")
    options = {"tol": tol, "maxiter": maxiter, "ncv": ncv, "block_size": block_size, "v0": v0, "progress": progress}
    request = Request.of(name, a.shape[0], k, which, HERMITIAN, a.dtype, **options)
    if check and a.matrix is not None:
        check_hermitian(name, a.matrix.store, operation_limits(memory, gpu_memory).memory)
    with clean_stop():
        if M is not None or sigma is not None:
            with transformed(request, a, M, sigma, memory, gpu_memory) as changed:
                found = _find(request, "hermitian", a, memory, gpu_memory, changed)
        else:
            found = _find(request, "hermitian", a, memory, gpu_memory, None)
    values, vectors, stats = found
    order = np.argsort(values.real, kind="stable")
    return _returned(values[order].real, vectors[:, order], stats, order, return_eigenvectors, return_stats, return_history)


def eigs(
    A: Any,
    k: int = 6,
    M: Any = None,
    sigma: complex | None = None,
    which: str = "LM",
    v0: Any = None,
    ncv: int | None = None,
    maxiter: int | None = None,
    tol: float = 0,
    return_eigenvectors: bool = True,
    *,
    block_size: int | None = None,
    return_stats: bool = False,
    return_history: bool = False,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
) -> Any:
    """Find k eigenvalues and right eigenvectors of a general square matrix: ``A x = λ x``.

    Block Krylov-Schur with thick restarts. A real matrix stays in real arithmetic, and conjugate pairs stay together on the way;
    if the k-th value wanted is the first of a pair, its conjugate is not returned. The eigenvalues of a matrix that is known to
    be real skew-symmetric come out purely imaginary, and one triangle of it is read.

    Parameters
    ----------
    A, k, v0, ncv, maxiter, tol, return_eigenvectors, block_size, return_stats, return_history, memory, gpu_memory, progress
        As in `eigsh`.
    M, sigma : optional
        Need an LU factorisation, which matrices do not have yet; SciPy sparse matrices take sigma. For Hermitian
        problems see `eigsh`.
    which : {"LM", "SM", "LR", "SR", "LI", "SI"}
        Largest or smallest magnitude, real part, or imaginary part (of a real matrix: its absolute value).

    Returns
    -------
    w : ndarray (k,), complex
        The most wanted first.
    v : ndarray (n, k), complex
        Columns of length one.
    stats : EigenStatistics
        If asked for.

    Raises
    ------
    NotConvergedError, NonFiniteError, ConfigError, ShapeError, DtypeError, MemoryLimitError, StoreError
        As in `eigsh`.

    References
    ----------
    .. [1] G. W. Stewart, "A Krylov-Schur algorithm for large eigenproblems", SIAM J. Matrix Anal. Appl. 23 (2002).

    Examples
    --------
    >>> A = np.diag(np.arange(1.0, 101.0)) + np.eye(100, k=1)
    >>> w, v = eigs(A, k=2)
    >>> w.real.round(6), bool(np.allclose(A @ v, v * w))
    (array([100.,  99.]), True)
    """
    name = "eigs"
    a = operator(name, A)
    options = {"tol": tol, "maxiter": maxiter, "ncv": ncv, "block_size": block_size, "v0": v0, "progress": progress}
    request = Request.of(name, a.shape[0], k, which, GENERAL, a.dtype, **options)
    if M is not None or sigma is not None:
        raise ConfigError(
            f"{name}: {'M' if M is not None else 'sigma'} needs an LU factorisation, which comes with a later version; "
            "eigsh takes both for Hermitian problems, and scipy.sparse.linalg.eigs for matrices that fit in memory"
        )
    kind = "skew" if a.mirror(False) == "skew" and a.dtype.kind != "c" else "general"
    with clean_stop():
        values, vectors, stats = _find(request, kind, a, memory, gpu_memory, None)
    order = np.arange(len(values))
    return _returned(values, vectors, stats, order, return_eigenvectors, return_stats, return_history)


def _find(
    request: Request, kind: str, a: Operator, memory: Any, gpu_memory: Any, changed: Transformed | None
) -> tuple[Array, Array, EigenStatistics]:
    """The k most wanted pairs."""
    limits = operation_limits(memory, gpu_memory)
    with limits.scope(request.name) as scope, ExitStack() as stack:
        if request.small and changed is None:
            with a.whole(scope):
                return _by_lapack(request, kind, a)
        mirror = a.mirror(kind == "hermitian")

        def open_product(width: int, taken: int) -> Product:
            if changed is not None:
                return changed.product
            return a.product(width, limits, scope, mirror=mirror, taken=taken)

        costly = a.passes_cost(limits) or changed is not None
        machine, ritz, product = pairs(request, kind, open_product, limits, scope, stack, passes_cost=costly)
        count = min(request.k, len(ritz.values))
        values, vectors = ritz.values[:count], machine.vectors(ritz, count)
        residuals = pairs_residuals(product, values, vectors, request.dtype)
        stats = _statistics(machine, product, residuals)
        check_residuals(request, machine, values, vectors, residuals, stats)
        if changed is not None:
            values, vectors = changed.back(values, vectors)
    return values, vectors, stats


def _statistics(machine: Any, product: Product, residuals: Array) -> EigenStatistics:
    return EigenStatistics(
        product.passes,
        product.columns,
        machine.restarts,
        machine.locked,
        machine.plan.block,
        machine.plan.ncv,
        machine.norm,
        residuals,
        tuple(machine.history),
    )


def _by_lapack(request: Request, kind: str, a: Operator) -> tuple[Array, Array, EigenStatistics]:
    import scipy.linalg

    from pycauset.linalg.operands import in_memory
    from pycauset.solver.products import blame
    from pycauset.storage import ArrayStore
    from pycauset.tiling import Rect

    dense = a.dense()
    if not np.isfinite(dense).all():
        store = a.matrix.store if a.matrix is not None else ArrayStore(dense)
        blame(store if in_memory(store) is None else ArrayStore(dense), [Rect(0, request.n, 0, request.n)])
    if kind == "hermitian":
        values, vectors = scipy.linalg.eigh(dense, check_finite=False)
    elif kind == "skew":
        turned, vectors = scipy.linalg.eigh(0.5j * (dense - dense.T), check_finite=False)
        values = -1j * turned
    else:
        values, vectors = scipy.linalg.eig(dense, check_finite=False)
    order = preference(values, request.which, real=dense.dtype.kind != "c" and kind != "hermitian")[: request.k]
    values, vectors = values[order], vectors[:, order]
    if kind == "hermitian":
        dense = np.tril(dense) + np.tril(dense, -1).conj().T
    residuals = np.linalg.norm(dense @ vectors - vectors * values, axis=0)
    norm = float(np.linalg.norm(dense, 2)) if request.n else 0.0
    return values, vectors, EigenStatistics(1, request.n, 0, 0, 0, 0, norm, residuals)


def _returned(
    values: Array, vectors: Array, stats: EigenStatistics, order: Array, with_vectors: bool, told: bool, past: bool
) -> Any:
    result: list[Any] = [values]
    if with_vectors:
        result.append(vectors)
    if told or past:
        stats = replace(stats, residuals=stats.residuals[order], history=stats.history if past else ())
        result.append(stats)
    return tuple(result) if len(result) > 1 else values
