"""A few singular values and vectors of matrices of any size, by ``Aᴴ A`` in one pass over A, and norms that follow from them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

import numpy as np

from pycauset.devices.base import Device
from pycauset.devices.blas import adjoint_product
from pycauset.devices.blas import product as multiplied
from pycauset.drivers.arnoldi_plan import plan_arnoldi
from pycauset.errors import ConfigError, NotConvergedError
from pycauset.linalg.convergence import watched
from pycauset.linalg.krylov import EigenStatistics, Request, pairs, residuals_of, statistics_of
from pycauset.linalg.operators import Operator, limits_for, operator, seeded_start
from pycauset.linalg.results import check_options
from pycauset.progress import reporter
from pycauset.solver.products import Product
from pycauset.solver.run import Limits, clean_stop, operation_limits

__all__ = ["randomized_svd", "svds"]

Array = np.ndarray[Any, Any]

#: Bytes that LAPACK may take for a matrix of which few singular values are wanted.
_WHOLE_BYTES: Final = 64 << 20
#: Rows of a band of long vectors.
_ROWS: Final = 1024


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
        Up to ``min(m, n)``. LAPACK takes a matrix as a whole if that needs no more than 64 MB and ``min(m, n) <= 64``, or from
        ``k = min(m, n) - 1`` on, if memory allows.
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
    u: Array | None
    vh: Array | None
    v0 = seeded_start(name, order, v0, random_state if rng is None else rng)
    numbers = {"tol": tol, "maxiter": maxiter, "ncv": ncv, "block_size": block_size, "v0": v0}
    request = Request.of(name, order, k, which, ("LM", "SM"), a.dtype, **numbers)
    check_options(progress, resume)
    request.resume = resume
    # Vectors of the longer side take most of the memory: only if they are asked for.
    long = return_singular_vectors is True or return_singular_vectors == ("u" if _gram(a) == "tall" else "vh")
    with clean_stop(), watched(progress, name, request.k) as request.progress:
        if _is_small(request, a, memory):
            u, s, vh, stats = _by_lapack(request, a, memory)
        else:
            u, s, vh, stats = _iterate(request, a, long, memory, gpu_memory)
    stats = stats if return_history else replace(stats, history=())
    told = (stats,) if return_stats or return_history else ()
    if return_singular_vectors is False:
        return (s, *told) if told else s
    left = u if return_singular_vectors in (True, "u") else None
    right = vh if return_singular_vectors in (True, "vh") else None
    return (left, s, right, *told)


def _is_small(request: Request, a: Operator, memory: Any) -> bool:
    """Whether LAPACK takes the whole matrix: all elements, not just the shorter side, are few, or nearly all values wanted."""
    room, nbytes = operation_limits(memory).host, _lapack_elements(a) * a.dtype.itemsize
    if request.k >= request.n - 1:
        return nbytes <= max(room, _WHOLE_BYTES)
    return request.n <= 64 and nbytes <= _WHOLE_BYTES


def _lapack_elements(a: Operator) -> int:
    """The matrix, a copy that is overwritten, the longer vectors, all and those wanted; the shorter ones and working space."""
    return 4 * a.shape[0] * a.shape[1] + 8 * min(a.shape) ** 2


def _long_elements(a: Operator, where: Device, width: int, kept: int) -> int:
    """Elements of blocks as long as the longer side that no product holds: ``kept`` columns, and ``A X`` itself."""
    own = 0 if a.streamed(where) else 1 if a.linear is None else 2
    step = _step(width)
    return max(a.shape) * (kept + own * width) + (-(-max(a.shape) // step) + 3) * width**2 + 3 * min(step, max(a.shape)) * width


def _iterate(
    request: Request, a: Operator, long: bool, memory: Any, gpu_memory: Any
) -> tuple[Array | None, Array, Array | None, EigenStatistics]:
    eps = float(np.finfo(a.dtype).eps)
    limits = limits_for(a, memory, gpu_memory)
    where = a.device(limits)
    costly = a.passes_cost(where)
    tol = request.tol

    def scale(values: Array, norm: float) -> Array:
        """What ``‖Aᴴ A v - s² v‖`` is compared with, so that ``‖Aᴴ u - s v‖`` is below tol ‖A‖; never below rounding."""
        return np.asarray(np.maximum(np.sqrt(np.maximum(values, 0) * norm), 4 * eps * norm / tol))

    with limits.scope(request.name) as scope, ExitStack() as stack:
        block = plan_arnoldi(request.n, request.k, a.dtype, passes_cost=costly, block=request.block).block
        block = max(request.k, block, 1 if request.start is None else request.start.shape[1])
        owner = f"{request.name}: vectors of {max(a.shape)}"

        def work_of(width: int) -> int:
            return a.dtype.itemsize * _long_elements(a, where, width, request.k * long)

        work = work_of(block)
        stack.enter_context(scope.require("host", work, owner=owner))
        wider = stack.enter_context(ExitStack())

        def open_product(width: int, left: Limits) -> Product:
            more = max(0, work_of(width) - work)  # blocks are wider than planned where the basis goes to disk
            wider.close()  # of the attempt before
            wider.enter_context(scope.require("host", more, owner=owner))
            return a.product(width, left.less(more), scope, where, gram=_gram(a))

        wanted = replace(request, which="LA" if request.which == "LM" else "SA", origin=a.origin(None))
        machine, ritz, product = pairs(
            wanted,
            "hermitian",
            open_product,
            limits.less(work),
            scope,
            stack,
            passes_cost=costly,
            where=where,
            resident=a.resident is not None,
            scale=scale,
        )
        norm = machine.norm**0.5
        with where.checked(f"{request.name}: the last pass"):
            v = machine.vectors(ritz, min(request.k, len(ritz.values)))
            u, s, vh, residuals = _project(a, product, v, norm, slice(None, None, -1), long)
        stats = statistics_of(machine, product, residuals, norm)
    floor = 10 * eps * max(a.shape) ** 0.5
    allowed = np.full(len(s), tol * norm)
    if request.loose:
        allowed = np.maximum(floor * norm, 100 * floor * norm * norm / np.maximum(s, eps * norm) if norm else 0)
    good = residuals <= allowed
    if not (machine.converged and good.all()):
        raise NotConvergedError(
            f"{request.name}: {int(good.sum())} of {request.k} singular values converged to tol={tol:.3g} in {machine.restarts} "
            f"restarts and {machine.passes} products (worst residual {residuals.max() / (norm or 1):.2e} ‖A‖); raise maxiter, "
            "ncv or block_size, or tol (0 takes what rounding allows). The converged ones are in eigenvalues, their right "
            "vectors, if they were asked for, in eigenvectors",
            eigenvalues=s[good],
            eigenvectors=None if vh is None else vh[good].conj().T,
            statistics=stats,
        )
    wanted.finished()
    return u, s, vh, stats


def _gram(a: Operator) -> str:
    return "tall" if a.shape[0] >= a.shape[1] else "wide"


def _project(
    a: Operator, product: Product, v: Array, norm: float, pick: slice, long: bool
) -> tuple[Array | None, Array, Array | None, Array]:
    """Singular triplets of A on the span of ``v`` (of its adjoint, for a wide matrix), with residuals; one pass.

    Parameters
    ----------
    pick : slice
        Of the triplets, the largest first.
    long : bool
        Whether the vectors of the longer side are wanted; they are None without.
    """
    import scipy.linalg

    image = product(v)
    assert product.forward is not None
    forward = product.forward
    if a.linear is not None:  # may be the operator's own, or v itself
        forward = np.array(forward, a.dtype)
    tops, r = _orthonormal(forward)
    u1, s, v1h = scipy.linalg.svd(r)
    u1, s, v1 = u1[:, pick], s[pick], np.ascontiguousarray(v1h.conj().T[:, pick])
    far = None
    if long:
        far = np.empty((len(forward), len(s)), a.dtype)
        _combined(forward, tops, u1, far)
    near = np.empty((len(v), len(s)), a.dtype)
    squares = np.zeros(len(s))
    for r0 in range(0, len(v), _ROWS):
        band = slice(r0, r0 + _ROWS)
        near[band] = multiplied(v[band], v1)
        squares += np.linalg.norm(multiplied(image[band], v1) - near[band] * s**2, axis=0).astype(float) ** 2
    least = max(float(np.finfo(a.dtype).eps) * norm, float(np.finfo(a.dtype).tiny))
    residuals = np.sqrt(squares) / np.maximum(s, least)
    if _gram(a) == "tall":
        return far, s, near.conj().T, residuals
    return near, s, None if far is None else far.conj().T, residuals


def _orthonormal(y: Array) -> tuple[list[Array], Array]:
    """``Y = Q R`` band after band, each with the R of those before (sequential TSQR [1]_): nothing as long as Y is made.

    The bands ``Qᵢ`` of ``[Rᵢ₋₁; Yᵢ] = [Tᵢ; Qᵢ] Rᵢ`` replace those of Y. Returns the Tᵢ, which `_combined` takes, and R.

    References
    ----------
    .. [1] J. Demmel, L. Grigori, M. Hoemmen and J. Langou, "Communication-optimal parallel and sequential QR and LU
       factorizations", SIAM J. Sci. Comput. 34 (2012).
    """
    import scipy.linalg

    tops: list[Array] = []
    r = np.empty((0, y.shape[1]), y.dtype)
    for band in _bands(y):
        above = len(r)
        both = np.empty((above + len(y[band]), y.shape[1]), y.dtype, "F")
        both[:above], both[above:] = r, y[band]
        q, r = scipy.linalg.qr(both, mode="economic", overwrite_a=True, check_finite=False)
        y[band] = q[above:]
        tops.append(q[:above].copy())
    return tops, r


def _combined(bands: Array, tops: list[Array], c: Array, out: Array) -> None:
    """``Q c`` of what `_orthonormal` left, into ``out``, which may be the bands themselves."""
    for band, top in zip(reversed(_bands(bands)), reversed(tops), strict=True):
        out[band] = multiplied(bands[band], np.ascontiguousarray(c))
        c = multiplied(top, c)


def _step(width: int) -> int:
    return max(_ROWS, 8 * width)


def _bands(y: Array) -> list[slice]:
    step = _step(y.shape[1])
    return [slice(r, min(r + step, len(y))) for r in range(0, len(y), step)]


def _by_lapack(request: Request, a: Operator, memory: Any) -> tuple[Array, Array, Array, EigenStatistics]:
    import scipy.linalg

    with operation_limits(memory).scope(request.name) as scope, a.whole(scope, _lapack_elements(a)):
        dense = a.dense()
        if not np.isfinite(dense).all():
            a.blame()
        u, s, vh = scipy.linalg.svd(dense, full_matrices=False, check_finite=False)
        norm = float(s[0]) if len(s) else 0.0
        pick = np.arange(len(s))[::-1]
        pick = pick[-request.k :] if request.which == "LM" else pick[: request.k]
        u, s, vh = u[:, pick], s[pick], vh[pick]
        residuals = residuals_of(adjoint_product(dense, u), vh.conj().T, s)
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

    Reads A ``power_iterations + 2`` times, with ``k + oversample`` vectors: each pass but the last multiplies by ``Aᴴ A``, and
    the last takes the singular values of A on the space that was found. One pass fewer would do, with ``(Aᴴ Y) R⁻¹`` for
    ``Y = A X = Q R``; but that loses what lies below ``ε^½ ‖A‖``, and half a power iteration. What the space misses is
    governed by the singular values behind: use `svds` where each one must be right.

    Parameters
    ----------
    A : Matrix, array_like, CuPy array, sparse matrix or LinearOperator (m, n), or path
    k : int
    oversample : int
        More random vectors than values wanted.
    power_iterations : int
        Further products with ``Aᴴ A``, each in one pass, which sharpen a slow decay.
    seed : int or numpy.random.Generator
    return_stats, memory, gpu_memory
        As in `eigsh`; the residuals are ``‖Aᴴ u - s v‖``.
    progress : bool or callable, optional
        As in `matmul`; a callable gets the passes that are done, with the share of the present one, and how many there are.

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
    limits = limits_for(a, memory, gpu_memory)
    where = a.device(limits)
    with clean_stop(), limits.scope(name) as scope:
        own = 2 if a.streamed(where) else 3
        work = (_long_elements(a, where, width, request.k) + order * (own * width + request.k)) * a.dtype.itemsize
        with (
            scope.require("host", work, owner=f"{name}: {width} vectors of {order}, and of {max(a.shape)}"),
            a.product(width, limits.less(work), scope, where, gram=_gram(a)) as product,
            where.checked(f"{name}: the passes"),
            reporter(progress, name, float(passes)) as report,
        ):
            done = 0
            product.report_to(lambda share: report(done + share, f"{done} of {passes} passes, the next at {share:.0%}"))
            x = _normal(rng, (order, width), a.dtype)
            while done < passes - 1:
                y = product(x)
                if a.linear is not None:  # may be the operator's own, or x itself, and is split in place
                    y = np.array(y, a.dtype)
                tops, _ = _orthonormal(y)
                _combined(y, tops, np.eye(width, dtype=a.dtype), x)
                done += 1
                report(float(done), f"{done} of {passes} passes")
            u, s, vh, residuals = _project(a, product, x, 0.0, slice(0, request.k), True)
            report(float(passes), f"{passes} of {passes} passes")
    stats = EigenStatistics(product.passes, product.columns, 0, 0, width, width, float(s.max(initial=0.0)), residuals)
    return (u, s, vh, stats) if return_stats else (u, s, vh)


def _normal(rng: np.random.Generator, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    """Normally distributed numbers, of a complex type in both parts."""
    x = np.empty(shape, dtype)
    for part in (x.real, x.imag) if dtype.kind == "c" else (x,):
        for r in range(0, shape[0], _ROWS):
            band = part[r : r + _ROWS]
            band[...] = rng.standard_normal(band.shape)
    return x
