"""One computation of eigenpairs: sizes, memory, the driver's run, the last pass that checks what is returned."""

from __future__ import annotations

import operator as operators
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pycauset.devices.base import Device
from pycauset.drivers.arnoldi import ArnoldiDriver, Progress
from pycauset.drivers.ritz import Ritz
from pycauset.errors import ConfigError, NonFiniteError, NotConvergedError, PycausetWarning, ShapeError
from pycauset.governor import Scope
from pycauset.linalg.checkpoint import Checkpoint
from pycauset.linalg.placing import Placed, Sizes, place
from pycauset.solver.products import Product, ResidentProduct, drive
from pycauset.solver.run import Limits
from pycauset.storage.direct import crc32c
from pycauset.storage.identity import versions

__all__ = [
    *("EigenStatistics", "Request", "check_residuals", "image_of", "pairs", "residuals_of", "statistics_of"),
]

Array = np.ndarray[Any, Any]

#: Rows that are worked on at once, so that no temporary is as long as a vector.
_ROWS: Final = 8192


@dataclass(frozen=True, slots=True)
class EigenStatistics:
    """What a computation of eigenvalues or singular values did.

    Attributes
    ----------
    passes : int
        Times that the whole matrix was read, the last check included.
    products : int
        Vectors that it was multiplied with.
    restarts, locked : int
        Thick restarts; wanted pairs that had converged when the last one began.
    block_size, ncv : int
        Columns of a block and, at most, of the basis; 0 where LAPACK took the whole matrix.
    norm : float
        The estimate of ‖A‖₂ that residuals are compared with, from below; with M or sigma, of ‖A‖ + |λ| ‖M‖ for the largest λ.
    residuals : ndarray (k,)
        ``‖A x - λ x‖₂`` of each returned pair, measured by the last pass; with M or sigma ``‖A x - λ M x‖₂ / ‖x‖₂``.
    sweeps : int
        Times that the basis was read from disk; 0 where it lay in RAM.
    reused : int
        Passes that an interrupted run had made, of those counted in ``passes``.
    history : tuple of Progress
        One entry for each test of convergence, with ``return_history=True``.
    """

    passes: int
    products: int
    restarts: int
    locked: int
    block_size: int
    ncv: int
    norm: float
    residuals: Array
    history: tuple[Progress, ...] = ()
    sweeps: int = 0
    reused: int = 0


@dataclass(slots=True)
class Request:
    """The arguments that all functions share, checked."""

    name: str
    n: int
    k: int
    which: str
    dtype: np.dtype[Any]
    tol: float
    #: No tolerance above machine precision was asked for: as far as rounding allows.
    loose: bool
    maxiter: int
    ncv: int | None
    block: int | None
    start: Array | None
    resume: Any = True
    #: Who the operand is; None if an interrupted run cannot be taken up.
    origin: dict[str, Any] | None = None
    checkpoint: Checkpoint | None = None
    progress: Callable[[ArnoldiDriver, float], object] | None = None

    @classmethod
    def of(
        cls,
        name: str,
        n: int,
        k: Any,
        which: Any,
        allowed: tuple[str, ...],
        dtype: np.dtype[Any],
        *,
        tol: Any = 0,
        maxiter: Any = None,
        ncv: Any = None,
        block_size: Any = None,
        v0: Any = None,
        conjugate: bool = False,
    ) -> Request:
        """Check the arguments.

        ``conjugate`` says that eigenvalues come in conjugate pairs, which a restart keeps whole: one column more.

        Raises
        ------
        ConfigError, ShapeError
            For any that cannot be.
        """
        k = _count(name, "k", k)
        if k > n:
            raise ConfigError(f"{name}: k is {k}, but a matrix of order {n} has only {n}")
        if which not in allowed:
            raise ConfigError(f"{name}: which is {which!r}; it must be one of {', '.join(map(repr, allowed))}")
        eps = float(np.finfo(dtype).eps)
        if not (isinstance(tol, (int, float, np.number)) and tol >= 0 and np.isfinite(tol)):
            raise ConfigError(f"{name}: tol is {tol!r}; it must be a number of at least 0 (0 means machine precision, {eps:.2g})")
        ncv = None if ncv is None else _count(name, "ncv", ncv)
        block = None if block_size is None else _count(name, "block_size", block_size)
        start = None
        if v0 is not None:
            start = np.asarray(v0)
            if start.dtype.kind not in "biufc":
                raise ConfigError(f"{name}: v0 holds {start.dtype}; it must hold numbers")
            start = start.reshape(-1, 1) if start.ndim == 1 else start
            if start.ndim != 2 or start.shape[0] != n or start.shape[1] == 0:
                raise ShapeError(f"{name}: v0 has shape {np.shape(v0)}; it must be ({n},), or ({n}, p) for a block")
            if start.dtype.kind == "c" and dtype.kind != "c":
                raise ConfigError(f"{name}: v0 is complex and the problem is real; give its real part")
            if not np.isfinite(start).all():
                raise ConfigError(f"{name}: v0 holds NaN or infinity")
            if block is not None and start.shape[1] > block:
                raise ConfigError(f"{name}: v0 has {start.shape[1]} columns, block_size is {block}; it must be at least as large")
        width = block or (1 if start is None else start.shape[1])
        least = min(k + width + conjugate, n)
        if ncv is not None and ncv < least and k < n:
            need = "k + block_size + 1, for a conjugate pair" if conjugate else "k + block_size"
            raise ConfigError(
                f"{name}: ncv is {ncv}; with k = {k} and blocks of {width} it must be at least {need}, which is {least}"
            )
        return cls(
            name,
            n,
            k,
            which,
            dtype,
            max(float(tol), 4 * eps),
            bool(tol <= 4 * eps),
            10 * n if maxiter is None else _count(name, "maxiter", maxiter),
            ncv,
            block,
            start,
        )

    def finished(self) -> None:
        """The result is there: nothing has to be taken up."""
        if self.checkpoint is not None:
            self.checkpoint.remove()

    @property
    def small(self) -> bool:
        """Whether LAPACK on the whole matrix takes less than an iteration would, or nothing else can give so many pairs."""
        return self.k >= self.n - 1 or self.n <= 64


def _count(name: str, what: str, value: Any) -> int:
    try:
        number = operators.index(value)
    except TypeError:
        raise ConfigError(f"{name}: {what} is {value!r}; it must be a whole number") from None
    if number < 1:
        raise ConfigError(f"{name}: {what} is {number}; it must be at least 1")
    return number


def pairs(
    request: Request,
    kind: str,
    open_product: Callable[[int, Limits], Product],
    limits: Limits,
    scope: Scope,
    stack: ExitStack,
    *,
    passes_cost: bool,
    where: Device,
    resident: bool = False,
    scale: Callable[[Array, float], Any] | None = None,
) -> tuple[ArnoldiDriver, Ritz, Product]:
    """Run the driver; the product stays open, for the caller's last pass, as long as ``stack`` does.

    Parameters
    ----------
    open_product : callable
        ``open_product(width, left)`` gives the product with blocks of up to ``width`` vectors, within the limits left.
    where : Device
        Where products are computed.
    resident : bool
        A lies in that device's memory.
    """
    doubled = 2 if kind != "hermitian" and request.dtype.kind != "c" else 1
    sizes = Sizes(
        request.name,
        request.n,
        request.k,
        request.dtype,
        request.k * doubled,
        passes_cost,
        request.which in ("SM", "SI"),
        request.block,
        request.ncv,
        None if where.unified else where,
        resident,
        1 if request.start is None else request.start.shape[1],
    )
    placed = place(sizes, open_product, limits, scope, stack)
    plan, product, basis = placed.plan, placed.product, placed.basis
    machine = ArnoldiDriver(plan, basis, kind, request.which, request.tol, request.maxiter, start=request.start, scale=scale)
    _keep_checkpoints(request, kind, placed, machine)
    tell = request.progress
    if tell is not None:
        product.report_to(lambda share: tell(machine, share))
        stack.callback(product.report_to, None)  # the driver's checkpoints know the product: no cycle is left

    def multiply(x: Any) -> Any:
        if tell is not None:
            tell(machine, 0.0)
        return product(x) if product.resident else basis.take(product(basis.give(x)))

    try:
        with where.checked(f"{request.name}: work on a basis"):
            ritz = drive(machine.run(), multiply)
    except NonFiniteError:
        if isinstance(product, ResidentProduct):
            product.blame()
        raise
    if tell is not None:
        tell(machine, 0.0)
    if machine.cut_short:
        warnings.warn(
            f"{request.name}: the pairs have converged, but the search for further copies of repeated eigenvalues ended too soon "
            f"(maxiter={request.maxiter}, ncv={plan.ncv}); raise one of the two, or block_size, which is {plan.block}",
            PycausetWarning,
            stacklevel=2,
        )
    return machine, ritz, product


def _keep_checkpoints(request: Request, kind: str, placed: Placed, machine: ArnoldiDriver) -> None:
    """Take up what an interrupted run left, and write checkpoints from now on; for operands that can be known again."""
    if request.origin is None or request.resume is False:
        return
    plan, basis, product = placed.plan, placed.basis, placed.product
    start = request.start
    asked = {
        **request.origin,
        "problem": [request.name, kind, request.which, request.n, request.k, request.dtype.name, request.tol],
        "start": None if start is None else [crc32c(np.ascontiguousarray(start)), list(start.shape)],
        # Whatever changes the order of sums.
        "plan": [plan.block, plan.ncv, getattr(getattr(basis, "plan", None), "rows", 0), type(basis).__name__],
        "product": [type(product).__name__, list(getattr(getattr(product, "plan", None), "tile", ()))],
        "versions": versions(),
    }
    checkpoint = request.checkpoint = Checkpoint(asked, request.resume)
    found = checkpoint.load(basis)
    if found is not None:
        machine.begun, product.columns = found
        product.passes = machine.begun.passes  # every second pass runs backwards
    machine.on_step = lambda begun: checkpoint.save(begun, basis, product.columns, plan.block)


def image_of(product: Callable[[Array], Array], vectors: Array, dtype: np.dtype[Any]) -> Array:
    """``A x`` of each vector, by one pass over A; of complex vectors, too, if A is real."""
    if vectors.dtype.kind != "c" or dtype.kind == "c":
        return product(np.ascontiguousarray(vectors))
    n, count = vectors.shape
    parts = np.empty((n, 2 * count), dtype)
    parts[:, :count], parts[:, count:] = vectors.real, vectors.imag
    both = product(parts)
    del parts
    image = np.empty((n, count), np.result_type(dtype, np.complex64))
    image.real, image.imag = both[:, :count], both[:, count:]
    return image


def residuals_of(image: Array, right: Array, values: Array) -> Array:
    """Lengths of the columns of ``image - right * values``; of ``right`` where a value is infinite."""
    squares = np.zeros(len(values))
    finite = np.isfinite(values)
    values = np.where(finite, values, -1)
    for r in range(0, len(image), _ROWS):
        band = slice(r, r + _ROWS)
        left = image[band] if finite.all() else np.where(finite, image[band], 0)
        squares += np.linalg.norm(left - right[band] * values, axis=0).astype(float) ** 2
    return np.sqrt(squares)


def statistics_of(machine: ArnoldiDriver, product: Product, residuals: Array, norm: float, passes: int = 0) -> EigenStatistics:
    """What the driver did; ``passes`` are those over the matrix that were not the product's."""
    return EigenStatistics(
        product.passes + passes,
        product.columns,
        machine.restarts,
        machine.locked,
        machine.plan.block,
        machine.plan.ncv,
        norm,
        residuals,
        tuple(machine.history),
        machine.basis.sweeps,
        machine.begun.passes if machine.begun is not None else 0,
    )


def check_residuals(
    request: Request, machine: ArnoldiDriver, values: Array, vectors: Array, residuals: Array, stats: EigenStatistics
) -> None:
    """Raise unless every pair is as good as was asked; where machine precision was, as rounding of the products allows.

    Raises
    ------
    NotConvergedError
    """
    # Each restart of a general problem leaves rounding errors of a Schur form behind.
    factor = 20 if machine.kind == "hermitian" else 200
    floor = factor * float(np.finfo(request.dtype).eps) * request.n**0.5
    good = residuals <= (max(request.tol, floor) if request.loose else request.tol) * machine.norm
    if good.all():
        return
    count = int(good.sum())
    found = machine.history[-1] if machine.history else None
    remedy = "raise maxiter, ncv or block_size, or tol"
    if machine.converged and request.tol < floor:
        remedy = f"rounding may allow no more: raise tol (tol=0 takes what rounding allows, here up to {floor:.1e})"
    raise NotConvergedError(
        f"{request.name}: {count} of {request.k} pairs converged to tol={request.tol:.3g} in {machine.restarts} restarts and "
        f"{machine.passes} products (worst residual {residuals.max() / (machine.norm or 1):.2e} ‖A‖"
        + (f", basis {found.basis}" if found else "")
        + f"); {remedy}. The converged pairs are in eigenvalues and eigenvectors",
        eigenvalues=values[good],
        eigenvectors=vectors[:, good],
        statistics=stats,
    )
