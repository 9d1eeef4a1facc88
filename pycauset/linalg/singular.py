"""A few singular values and vectors of matrices of any size, by ``Aᴴ A`` in one pass over A, and norms that follow from them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from pycauset.errors import ConfigError, NotConvergedError
from pycauset.linalg.convergence import watched
from pycauset.linalg.krylov import EigenStatistics, Request, pairs, statistics_of
from pycauset.linalg.operators import Operator, limits_for, operator, seeded_start
from pycauset.linalg.results import check_options
from pycauset.progress import reporter
from pycauset.solver.products import Product
from pycauset.solver.run import Limits, clean_stop, operation_limits

__all__ = ["randomized_svd", "svds"]

Array = np.ndarray[Any, Any]


def svds(
    A: Any,
    k: int = 6,
    ncv: int | None = None,
    tol: float = 0,
    which: str = "LM",
    v0: Any = None,
    maxiter: int | None = None,
    return_singular_vectors: bool | str = True,
    solver: str = "arpack",
    rng: Any = None,
    options: dict[str, Any] | None = None,
    *,
    random_state: Any = None,
    block_size: int | None = None,
    return_stats: bool = False,
    return_history: bool = False,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
    resume: Any = True,
) -> Any:
    """Find the k largest or smallest singular values of a matrix, with their vectors: ``A v = s u``.

    Block Lanczos on ``Aᴴ A`` (``A Aᴴ`` of a wide matrix): each panel of rows serves both products while it is in memory, so that
    a step costs one pass over A. A last pass takes the singular values of A on the space that was found, which keeps small ones
    from being squared.

    Parameters
    ----------
    A : Matrix, array_like, CuPy array, sparse matrix or LinearOperator (m, n), or path
    k : int
        Up to ``min(m, n)``; from ``min(m, n) - 1`` on LAPACK takes the whole matrix.
    tol : float
        Wanted: ``‖Aᴴ u - s v‖ <= tol ‖A‖``; ``A v = s u`` holds to rounding. With the default 0: what rounding allows, about
        ``ε ‖A‖² / s``, so that vectors of singular values below ``ε^½ ‖A‖`` are poor (the statistics give their residuals).
    which : {"LM", "SM"}
        Largest or smallest.
    v0 : array_like (min(m, n),) or (min(m, n), p), optional
        Where to start.
    return_singular_vectors : bool, "u" or "vh"
        Which vectors to return; the others are None.
    solver : {"arpack"}
        There is one method, Lanczos as in ARPACK; SciPy's other names are refused.
    rng, random_state : int or numpy.random.Generator, optional
        Draws the starting vector, if there is no v0. One argument with SciPy's two names.
    options : optional
        Must be empty, as in SciPy.
    ncv, maxiter, block_size, return_stats, return_history, memory, gpu_memory, progress, resume
        As in `eigsh`.

    Returns
    -------
    u : ndarray (m, k)
    s : ndarray (k,)
        Ascending; alone without vectors.
    vh : ndarray (k, n)
    stats : EigenStatistics
        If asked for.

    Raises
    ------
    NotConvergedError, NonFiniteError, ConfigError, ShapeError, DtypeError, MemoryLimitError, StoreError
        As in `eigsh`.

    Examples
    --------
    >>> A = np.diag(np.arange(1.0, 101.0))[:, :90]
    >>> u, s, vh = svds(A, k=2)
    >>> s.round(6), bool(np.allclose(A @ vh.T, u * s))
    (array([89., 90.]), True)
    """
    name = "svds"
    if return_singular_vectors not in (True, False, "u", "vh"):
        raise ConfigError(f'{name}: return_singular_vectors is {return_singular_vectors!r}; it must be True, False, "u" or "vh"')
    if solver != "arpack":
        raise ConfigError(f'{name}: solver is {solver!r}; there is one method, block Lanczos on AᴴA, which answers to "arpack"')
    if options:
        raise ConfigError(f"{name}: options is {options!r}; there are none")
    a = operator(name, A, square=False)
    order = min(a.shape)
    v0 = seeded_start(name, order, v0, random_state if rng is None else rng)
    numbers = {"tol": tol, "maxiter": maxiter, "ncv": ncv, "block_size": block_size, "v0": v0}
    request = Request.of(name, order, k, which, ("LM", "SM"), a.dtype, **numbers)
    check_options(None, resume)
    request.resume = resume
    with clean_stop(), watched(progress, name, request.k) as request.progress:
        u, s, vh, stats = _by_lapack(request, a, memory) if request.small else _iterate(request, a, tol == 0, memory, gpu_memory)
    stats = stats if return_history else replace(stats, history=())
    told = (stats,) if return_stats or return_history else ()
    if return_singular_vectors is False:
        return (s, *told) if told else s
    left = u if return_singular_vectors in (True, "u") else None
    right = vh if return_singular_vectors in (True, "vh") else None
    return (left, s, right, *told)


def _iterate(
    request: Request, a: Operator, loosely: bool, memory: Any, gpu_memory: Any
) -> tuple[Array, Array, Array, EigenStatistics]:
    eps = float(np.finfo(a.dtype).eps)
    limits = limits_for(a, memory, gpu_memory)
    where = a.device(limits)
    tol = request.tol

    def scale(values: Array, norm: float) -> Array:
        """What ``‖Aᴴ A v - s² v‖`` is compared with, so that ``‖Aᴴ u - s v‖`` is below tol ‖A‖; never below rounding."""
        return np.asarray(np.maximum(np.sqrt(np.maximum(values, 0) * norm), 4 * eps * norm / tol))

    with limits.scope(request.name) as scope, ExitStack() as stack:

        def open_product(width: int, left: Limits) -> Product:
            return a.product(width, left, scope, where, gram=_gram(a))

        wanted = replace(request, which="LA" if request.which == "LM" else "SA", origin=a.origin(None))
        machine, ritz, product = pairs(
            wanted,
            "hermitian",
            open_product,
            limits,
            scope,
            stack,
            passes_cost=a.passes_cost(where),
            where=where,
            resident=a.resident is not None,
            scale=scale,
        )
        v = machine.vectors(ritz, min(request.k, len(ritz.values)))
        norm = machine.norm**0.5
        u, s, vh, residuals = _project(a, product, v, norm)
        stats = statistics_of(machine, product, residuals, norm)
    floor = 10 * eps * max(a.shape) ** 0.5
    allowed = np.full(len(s), max(tol, floor) * norm)
    if loosely:
        allowed = np.maximum(allowed, 100 * floor * norm * norm / np.maximum(s, eps * norm) if norm else 0)
    good = residuals <= allowed
    if not (machine.converged and good.all()):
        raise NotConvergedError(
            f"{request.name}: {int(good.sum())} of {request.k} singular values converged to tol={tol:.3g} in {machine.restarts} "
            f"restarts and {machine.passes} products (worst residual {residuals.max() / (norm or 1):.2e} ‖A‖); raise maxiter, "
            "ncv or block_size, or tol. The converged ones are in eigenvalues, their right vectors in eigenvectors",
            eigenvalues=s[good],
            eigenvectors=vh[good].conj().T,
            statistics=stats,
        )
    wanted.finished()
    return u, s, vh, stats


def _gram(a: Operator) -> str:
    return "tall" if a.shape[0] >= a.shape[1] else "wide"


def _project(a: Operator, product: Product, v: Array, norm: float) -> tuple[Array, Array, Array, Array]:
    """Singular triplets of A on the span of ``v`` (of its adjoint, for a wide matrix), ascending, with residuals; one pass."""
    import scipy.linalg

    image = product(v)
    assert product.forward is not None
    q, r = np.linalg.qr(product.forward)
    u1, s, v1h = scipy.linalg.svd(r)
    u1, s, v1 = u1[:, ::-1], s[::-1], v1h.conj().T[:, ::-1]
    far, near = q @ u1, v @ v1
    least = max(float(np.finfo(a.dtype).eps) * norm, float(np.finfo(a.dtype).tiny))
    residuals = np.asarray(np.linalg.norm((image @ v1 - near * s**2) / np.maximum(s, least), axis=0))
    if _gram(a) == "tall":
        return far, s, near.conj().T, residuals
    return near, s, far.conj().T, residuals


def _by_lapack(request: Request, a: Operator, memory: Any) -> tuple[Array, Array, Array, EigenStatistics]:
    import scipy.linalg

    with operation_limits(memory).scope(request.name) as scope, a.whole(scope, 3 * a.shape[0] * a.shape[1]):
        dense = a.dense()
        if not np.isfinite(dense).all():
            a.blame()
        u, s, vh = scipy.linalg.svd(dense, full_matrices=False, check_finite=False)
        norm = float(s[0]) if len(s) else 0.0
        pick = np.arange(len(s))[::-1]
        pick = pick[-request.k :] if request.which == "LM" else pick[: request.k]
        u, s, vh = u[:, pick], s[pick], vh[pick]
        residuals = np.asarray(np.linalg.norm(dense.conj().T @ u - vh.conj().T * s, axis=0))
    return u, s, vh, EigenStatistics(1, request.n, 0, 0, 0, 0, norm, residuals)


def randomized_svd(
    A: Any,
    k: int,
    oversample: int = 10,
    power_iterations: int = 2,
    *,
    seed: int | np.random.Generator = 0,
    return_stats: bool = False,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
) -> Any:
    """Approximate the k largest singular values and vectors from a few random combinations of rows: ``A ≈ u diag(s) vh``.

    Reads A ``power_iterations + 2`` times, with ``k + oversample`` vectors. What it misses is governed by the singular values
    behind: use `svds` where each one must be right.

    Parameters
    ----------
    A : Matrix, array_like, CuPy array, sparse matrix or LinearOperator (m, n), or path
    k : int
    oversample : int
        More random vectors than values wanted.
    power_iterations : int
        Each multiplies by ``Aᴴ A``, in one pass, and sharpens a slow decay.
    seed : int or numpy.random.Generator
    return_stats, memory, gpu_memory
        As in `eigsh`; the residuals are ``‖Aᴴ u - s v‖``.
    progress : bool or callable, optional
        As in `matmul`; a callable gets the passes that are done, and how many there are.

    Returns
    -------
    u : ndarray (m, k)
    s : ndarray (k,)
        Descending.
    vh : ndarray (k, n)
    stats : EigenStatistics
        If asked for.

    Raises
    ------
    NonFiniteError, ConfigError, ShapeError, DtypeError, MemoryLimitError, StoreError

    References
    ----------
    .. [1] N. Halko, P.-G. Martinsson and J. A. Tropp, "Finding structure with randomness", SIAM Review 53 (2011), algorithms
       4.4 and 5.1.

    Examples
    --------
    >>> A = np.outer(np.arange(1.0, 301.0), np.ones(200))
    >>> u, s, vh = randomized_svd(A, 1)
    >>> bool(np.allclose(u * s @ vh, A))
    True
    """
    name = "randomized_svd"
    a = operator(name, A, square=False)
    order = min(a.shape)
    request = Request.of(name, order, k, "LM", ("LM",), a.dtype)
    counts: dict[str, Any] = {"oversample": oversample, "power_iterations": power_iterations}
    for what, value in counts.items():
        if not isinstance(value, (int, np.integer)) or value < 0:
            raise ConfigError(f"{name}: {what} is {value!r}; it must be a whole number of at least 0")
    rng = np.random.default_rng(seed)
    width, passes = min(request.k + int(oversample), order), int(power_iterations) + 2
    x = rng.standard_normal((order, width)).astype(a.dtype)
    if a.dtype.kind == "c":
        x = x + 1j * rng.standard_normal((order, width)).astype(x.real.dtype)
    limits = limits_for(a, memory, gpu_memory)
    with clean_stop(), limits.scope(name) as scope:
        work = 3 * order * width * a.dtype.itemsize
        with (
            scope.require("host", work, owner=f"{name}: {width} vectors of {order}"),
            a.product(width, limits.less(work), scope, a.device(limits), gram=_gram(a)) as product,
            reporter(progress, name, float(passes)) as report,
        ):
            for done in range(1, passes):
                x, _ = np.linalg.qr(product(x))
                report(float(done), f"{done} of {passes} passes")
            u, s, vh, residuals = _project(a, product, x, 0.0)
            report(float(passes), f"{passes} of {passes} passes")
    pick = np.arange(len(s))[::-1][: request.k]
    stats = EigenStatistics(product.passes, product.columns, 0, 0, width, width, float(s.max(initial=0.0)), residuals[pick])
    return (u[:, pick], s[pick], vh[pick], stats) if return_stats else (u[:, pick], s[pick], vh[pick])
