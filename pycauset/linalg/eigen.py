"""A few eigenvalues and eigenvectors of matrices of any size, with SciPy's signatures."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from pycauset import devices
from pycauset.drivers.ritz import GENERAL, HERMITIAN
from pycauset.errors import ConfigError, NonFiniteError, NotConvergedError
from pycauset.linalg.convergence import watched
from pycauset.linalg.krylov import EigenStatistics, Request, check_residuals, image_of, pairs, residuals_of, statistics_of
from pycauset.linalg.operators import Operator, limits_for, operator, seeded_start
from pycauset.linalg.results import check_options
from pycauset.linalg.spectral import Pencil, Transformed, pencil
from pycauset.linalg.whole import pairs_by_lapack
from pycauset.solver.products import Product
from pycauset.solver.run import Limits, clean_stop, named_limit

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
    Minv: Any = None,
    OPinv: Any = None,
    mode: str = "normal",
    rng: Any = None,
    *,
    block_size: int | None = None,
    check: bool = False,
    return_stats: bool = False,
    return_history: bool = False,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
    resume: Any = True,
) -> Any:
    """Find k eigenvalues and eigenvectors of a symmetric (Hermitian) matrix: ``A x = λ x``, or ``A x = λ M x``.

    Block thick-restart Lanczos with full reorthogonalisation. A matrix on disk is streamed, once for each step and by one
    triangle only; a last pass measures the residual of every pair that is returned.

    Parameters
    ----------
    A : Matrix, array_like, CuPy array, sparse matrix or LinearOperator (n, n), or path
        Hermitian, which is believed: of a matrix on disk only the tiles on and below the diagonal are read.
    k : int
        Eigenvalues wanted. From ``n - 1`` on, and for n up to 64, LAPACK takes the whole matrix.
    M : Matrix, array_like or sparse matrix (n, n), or path, optional
        Positive definite; factored by `cholesky`, and for that a sparse one becomes a dense array.
    sigma : float, optional
        Find the eigenvalues near sigma, by solves with ``A - sigma M``, which must be positive or negative definite: sigma on one
        side of all eigenvalues. (An indefinite factorisation comes with a later version.) SciPy sparse matrices take any sigma,
        and so does whatever comes with an ``OPinv``.
    which : {"LM", "SM", "LA", "SA", "BE"}
        Largest or smallest magnitude, largest or smallest algebraic, or half from each end; with sigma, of ``1 / (λ - sigma)``,
        or of what ``mode`` says.
        The smallest magnitudes lie inside most spectra, where only a large basis finds them: prefer ``sigma=0`` if A is definite.
    v0 : array_like (n,) or (n, p), optional
        Where to start.
    ncv : int, optional
        Size of the basis, at least ``k + block_size``; in `eigs` of a real matrix, unless it is known to be Hermitian, one more.
    maxiter : int, optional
        Restarts, at most; 10 n by default.
    tol : float
        Wanted: ``‖A x - λ x‖ <= tol ‖A‖``. Values up to ``4 ε``, such as 0, mean machine precision: as far as rounding allows, at
        worst about ``20 n^½ ε ‖A‖`` (``200 n^½ ε ‖A‖`` in `eigs`). Larger ones are kept, or `NotConvergedError` is raised.
        With M or sigma this is of the transformed problem that is iterated on. The statistics then have residuals
        ``‖A x - λ M x‖`` for ``‖x‖ = 1``, measured by a pass over A and M; one above ``tol^½ (‖A‖ + |λ| ‖M‖)`` is an error.
    return_eigenvectors : bool
    Minv : optional
        Not taken, nor is M as a LinearOperator: the basis is orthonormal in the inner product of M by its Cholesky factor.
        `eigs` takes both.
    OPinv : ndarray, sparse matrix or LinearOperator (n, n), optional
        ``(A - sigma M)⁻¹``, instead of a factorisation; multiplies blocks of vectors. A may then be a LinearOperator, which must
        multiply, too: residuals are measured with it.
    mode : {"normal", "buckling", "cayley"}
        With sigma: iterate on ``1 / (λ - sigma)``, on ``λ / (λ - sigma)`` (then A must be positive definite, M need not be),
        or on ``(λ + sigma) / (λ - sigma)``.
    rng : int or numpy.random.Generator, optional
        Draws the starting vector, if there is no v0. By default it is the same in each run.
    block_size : int, optional
        Vectors that each pass over A multiplies. Of a repeated eigenvalue as many copies as that are found for certain. More
        of them (with 1: a second one) are looked for in further passes, a search that can miss some.
    check : bool
        Compare A with its transpose first, in one more pass.
    return_stats, return_history : bool
        Return an `EigenStatistics` too, with the history of convergence.
    memory, gpu_memory : int or str, optional
        Bytes that the operation may take beyond what the process holds already.
    progress : bool or callable, optional
        As in `matmul`: a bar with passes, converged pairs and the present residual; a callable gets the number of converged pairs
        and k after each pass.
    resume : bool or "restart"
        With a matrix on disk (and without M and sigma), work of more than some seconds leaves a checkpoint at each restart, in
        the folder of the setting ``scratch`` or ``home``. True goes on from there if the same call was interrupted, to the same
        bits; ``"restart"`` removes the checkpoint and starts over; False neither reads nor writes any.

    Returns
    -------
    w : ndarray (k,)
        Ascending.
    v : ndarray (n, k)
        Orthonormal columns; with M, orthonormal in its inner product (with ``mode="buckling"`` in that of A).
    stats : EigenStatistics
        If asked for.

    Raises
    ------
    NotConvergedError
        If restarts run out, or the pass that measures residuals fails; it carries the pairs that converged.
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
    changed = pencil(a, M, sigma, mode=mode, minv=Minv, opinv=OPinv, hermitian=True)
    a = a if changed is None else changed.a
    v0 = seeded_start(name, a.shape[0], v0, rng)
    options = {"tol": tol, "maxiter": maxiter, "ncv": ncv, "block_size": block_size, "v0": v0}
    request = Request.of(name, a.shape[0], k, which, HERMITIAN, a.dtype, **options)
    check_options(progress, resume)
    request.resume = resume
    if check:
        a.check_hermitian(named_limit(memory, "memory"))
    values, vectors, stats = _find(request, "hermitian", a, changed, memory, gpu_memory, progress)
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
    Minv: Any = None,
    OPinv: Any = None,
    OPpart: Any = None,
    rng: Any = None,
    *,
    block_size: int | None = None,
    return_stats: bool = False,
    return_history: bool = False,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
    resume: Any = True,
) -> Any:
    """Find k eigenvalues and right eigenvectors of a general square matrix: ``A x = λ x``, or ``A x = λ M x``.

    Block Krylov-Schur with thick restarts. A real matrix stays in real arithmetic, and conjugate pairs stay together on the way;
    if the k-th value wanted is the first of a pair, its conjugate is not returned. A matrix that is known to be Hermitian (not
    with ``Minv``, or sigma and M) gets the cheaper iteration of `eigsh`, and its eigenvalues come out real. Those of a matrix
    that is known to be real skew-symmetric come out purely imaginary. Of both one triangle is read.

    Parameters
    ----------
    A, k, v0, ncv, maxiter, tol, return_eigenvectors, rng, block_size, return_stats, return_history, memory, gpu_memory
    progress, resume
        As in `eigsh`.
    M : Matrix, array_like or sparse matrix (n, n), or path, optional
        Hermitian positive definite, factored by `cholesky`. With ``Minv`` or ``sigma`` any matrix, or a LinearOperator; with
        sigma it may be singular.
    sigma : complex, optional
        Find the eigenvalues near sigma, by solves with ``A - sigma M``: of sparse matrices, of definite matrices that are
        known to be Hermitian, or by ``OPinv``. (An LU factorisation of others comes with a later version.) A complex shift
        makes the arithmetic complex.
    which : {"LM", "SM", "LR", "SR", "LI", "SI"}
        Largest or smallest magnitude, real part, or imaginary part (of a real matrix: its absolute value); with sigma, of
        ``1 / (λ - sigma)``.
    Minv, OPinv : ndarray, sparse matrix or LinearOperator (n, n), optional
        ``M⁻¹``, and ``(A - sigma M)⁻¹``, instead of factorisations. A and M multiply all the same.
    OPpart : optional
        Not taken: SciPy's way to complex shifts in real arithmetic.

    Returns
    -------
    w : ndarray (k,), complex
        The most wanted first.
    v : ndarray (n, k), complex
        Columns of length one; with M that is factored, in its inner product. Orthonormal if A is known to be Hermitian.
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
    if OPpart is not None:
        raise ConfigError(f"{name}: OPpart is {OPpart!r}; complex shifts are taken in complex arithmetic here, leave it out")
    changed = pencil(a, M, sigma, minv=Minv, opinv=OPinv, hermitian=False)
    a = a if changed is None else changed.a
    v0 = seeded_start(name, a.shape[0], v0, rng)
    kind = _kind(a, changed)
    options = {"tol": tol, "maxiter": maxiter, "ncv": ncv, "block_size": block_size, "v0": v0}
    options["conjugate"] = kind != "hermitian" and a.dtype.kind != "c"
    request = Request.of(name, a.shape[0], k, which, GENERAL, a.dtype, **options)
    check_options(progress, resume)
    request.resume = resume
    if kind == "hermitian":  # imaginary parts are all alike
        request.which = {"LR": "LA", "SR": "SA", "SM": "SM"}.get(which, "LM")
    values, vectors, stats = _find(request, kind, a, changed, memory, gpu_memory, progress)
    order = np.arange(len(values))
    values, vectors = (x.astype(np.result_type(x.dtype, np.complex64), copy=False) for x in (values, vectors))
    return _returned(values, vectors, stats, order, return_eigenvectors, return_stats, return_history)


def _kind(a: Operator, changed: Pencil | None) -> str:
    """The form of the iteration that `eigs` may take, by what is known of A and is left of it by a transformation."""
    if changed is not None and (changed.minv is not None or (changed.sigma is not None and changed.m is not None)):
        return "general"
    mirror, real = a.mirror(False), a.matrix is not None and a.matrix.dtype.kind != "c"
    sigma = None if changed is None else changed.sigma
    if (mirror == "hermitian" or (mirror == "symmetric" and real)) and not isinstance(sigma, complex):
        return "hermitian"
    return "skew" if mirror == "skew" and a.dtype.kind != "c" and sigma is None else "general"


def _find(
    request: Request, kind: str, a: Operator, pencil: Pencil | None, memory: Any, gpu_memory: Any, progress: Any
) -> tuple[Array, Array, EigenStatistics]:
    """The k most wanted pairs."""
    limits = limits_for(a, memory, gpu_memory)
    with clean_stop(), limits.scope(request.name) as scope, ExitStack() as stack:
        if request.k >= request.n - 1 or (request.small and pencil is None):
            return pairs_by_lapack(request, kind, a, pencil, scope)
        changed = None
        if pencil is not None:
            quiet = False if callable(progress) else progress  # a caller's function is told of pairs, not of operations
            changed = Transformed(pencil, scope, stack, memory, gpu_memory, quiet)
            request.start = None if request.start is None else changed.down(request.start)
        request.progress = stack.enter_context(watched(progress, request.name, request.k))
        mirror = a.mirror(kind == "hermitian")

        def open_product(width: int, left: Limits) -> Product:
            if changed is not None:
                return changed.open(width, left, (request.k + 1) * (2 if kind != "hermitian" and a.dtype.kind != "c" else 1))
            return a.product(width, left, scope, where, mirror=mirror)

        request.origin = a.origin(mirror) if changed is None else None
        where = a.device(limits, mirror) if changed is None else devices.cpu()
        costly = a.passes_cost(where) or changed is not None
        resident = a.resident is not None and changed is None
        machine, ritz, product = pairs(
            request, kind, open_product, limits, scope, stack, passes_cost=costly, where=where, resident=resident
        )
        count = min(request.k, len(ritz.values))
        values = ritz.values[:count]
        with where.checked(f"{request.name}: the last pass"):
            vectors = machine.vectors(ritz, count)
            if changed is None:
                residuals = residuals_of(image_of(product, vectors, request.dtype), vectors, values)
                stats = statistics_of(machine, product, residuals, machine.norm)
                check_residuals(request, machine, values, vectors, residuals, stats)
        if changed is not None:
            there = ritz.residuals[:count]  # of the transformed problem, as the iteration has them
            values, found = changed.pencil.values(values), None
            try:
                vectors = found = changed.back(vectors)
                residuals, norm = changed.residuals(values, vectors)
            except NonFiniteError:  # an A or M that the iteration did not look into: what was found means nothing
                raise
            except Exception as error:
                stats = statistics_of(machine, product, there, machine.norm)
                raise _unmeasured(request, values, found, stats, error) from error
            stats = statistics_of(machine, product, residuals, float(norm.max(initial=0.0)), 1)
            check_residuals(request, machine, values, vectors, there, stats)
            _check_original(request, changed.pencil, values, vectors, residuals, norm, stats)
        request.finished()
        return values, vectors, stats


def _unmeasured(
    request: Request, values: Array, vectors: Array | None, stats: EigenStatistics, error: Exception
) -> NotConvergedError:
    """What to raise when the last pass fails: the iteration may have taken hours, and what it found is there."""
    what = "back to the original problem" if vectors is None else "over A and M, which measures residuals,"
    return NotConvergedError(
        f"{request.name}: the iteration ended with {len(values)} pairs, but the pass {what} failed: {error}. The pairs are in "
        f"eigenvalues{'' if vectors is None else ' and eigenvectors'}, unchecked; the statistics have the residuals of the "
        "transformed problem",
        eigenvalues=values,
        eigenvectors=vectors,
        statistics=stats,
    )


def _check_original(
    request: Request,
    pencil: Pencil,
    values: Array,
    vectors: Array,
    residuals: Array,
    norm: Array,
    stats: EigenStatistics,
) -> None:
    """Raise if a pair of a transformed problem is none of the original: if half of the digits that were asked for are missing.

    How much of the accuracy a transformation loses depends on the condition of M and on the distance from the shift: the
    tolerance itself is kept for the transformed problem. A wrong inverse, or an M without symmetry, leaves nothing.
    """
    good = residuals <= request.tol**0.5 * norm
    if not good.all():
        worst = float((residuals / np.where(norm == 0, 1, norm)).max())
        both = "A" if pencil.m is None else "A and M"
        scale = "‖A‖ + |λ|" + " ‖M‖" * (pencil.m is not None)
        causes = []
        if pencil.sigma is not None:
            causes.append(f"sigma={pencil.sigma} is (almost) an eigenvalue: move it a little")
        if pencil.opinv is not None:
            causes.append(f"OPinv does not belong to {both} and sigma")
        if pencil.minv is not None:
            causes.append("Minv does not belong to M")
        elif pencil.m is not None:
            causes.append("M is not Hermitian positive definite where it must be, or too close to singular")
        raise NotConvergedError(
            f"{request.name}: {int(good.sum())} of {request.k} pairs are pairs of {both}, up to {request.tol**0.5:.1e} of "
            f"{scale} (worst residual {worst:.1e}), though the transformed problem has converged. Possible causes: "
            + "; or ".join(causes)
            + ". The pairs that are good are in eigenvalues and eigenvectors",
            eigenvalues=values[good],
            eigenvectors=vectors[:, good],
            statistics=stats,
        )


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
