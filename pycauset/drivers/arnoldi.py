"""ArnoldiDriver: a few eigenpairs of a matrix known by its products with blocks of vectors.

Mathematics: a block Krylov decomposition ``A V = V H + Q B`` with orthonormal ``[V Q]``. Each step takes the product of A with
the block Q, makes it orthonormal against all of V (in blocks, in two passes) and appends it; V grows by a block, at the cost of
one pass over A. Eigenpairs ``H y = λ y`` give approximations ``(λ, V y)`` with residual ``‖B y‖``. When V is full it is replaced
by the most wanted part of it (thick restart): eigenvectors of a Hermitian H, Schur vectors of a general one, and the
decomposition goes on. In the Hermitian case this is block thick-restart Lanczos with full reorthogonalisation.

This differs from ARPACK in three ways: blocks, so that one pass over A advances several directions and degenerate eigenvalues are
found up to the width of the block; explicit coefficients in H, so that restarts lose nothing; and a test of convergence
after each pass, since a pass may take minutes.

Bytes moved: A once per step. The driver does no products itself: ``y = yield x`` asks for one.

References
----------
.. [1] G. W. Stewart, "A Krylov-Schur algorithm for large eigenproblems", SIAM J. Matrix Anal. Appl. 23 (2002).
.. [2] Y. Zhou and Y. Saad, "Block Krylov-Schur method for large symmetric eigenvalue problems", Numer. Algorithms 47 (2008).
.. [3] K. Wu and H. Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM J. Matrix Anal. Appl.
   22 (2000).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from pycauset.drivers.orthogonal import orthonormalise
from pycauset.drivers.ritz import Ritz, kept_space, norm_from_below, ritz_pairs
from pycauset.tiling import ceil_div

__all__ = ["ArnoldiDriver", "ArnoldiPlan", "Progress", "plan_arnoldi"]

Array = np.ndarray[Any, Any]

#: Rows of the basis that a restart rotates at once.
_BAND: Final = 4096


@dataclass(frozen=True, slots=True)
class ArnoldiPlan:
    """Sizes of one computation.

    Attributes
    ----------
    n, k : int
        Order of the matrix, eigenpairs wanted.
    block : int
        Columns that each pass over A advances.
    ncv : int
        Columns of the basis when it is restarted, at most.
    basis_bytes : int
        Of the basis, with the block that stands at its end.
    """

    n: int
    k: int
    block: int
    ncv: int
    basis_bytes: int


def plan_arnoldi(
    n: int,
    k: int,
    dtype: np.dtype[Any],
    *,
    passes_cost: bool,
    interior: bool = False,
    block: int | None = None,
    ncv: int | None = None,
    room: int | None = None,
) -> ArnoldiPlan:
    """Choose the width of the block and the size of the basis.

    Where reading A is what a pass costs (``passes_cost``: it lies on disk, or behind PCIe) wide blocks and a large basis save
    passes.
    In RAM the bytes of A stream through the cores in either case, and a block of one needs the fewest products.

    Parameters
    ----------
    interior : bool
        Eigenvalues inside the spectrum are wanted, which only a large basis tells apart.
    room : int, optional
        Bytes that the basis may take.

    Examples
    --------
    >>> plan_arnoldi(12288, 8, np.dtype(float), passes_cost=True)
    ArnoldiPlan(n=12288, k=8, block=24, ncv=480, basis_bytes=49545216)
    >>> plan_arnoldi(12288, 8, np.dtype(float), passes_cost=False).block
    1
    """
    if block is None:
        narrow = 1 if n > 4000 else min(4, k + 1)
        block = min(32, max(24, ceil_div(k, 8) * 8), max(narrow, n // 8)) if passes_cost else narrow
    block = max(1, min(block, n))
    if ncv is None:
        ncv = max(20 * block, 3 * k + 2 * block) if passes_cost else max(2 * k + 4 * block, 40)
        if interior:
            ncv = max(ncv, 300)
        if room is not None:
            ncv = min(ncv, room // (n * dtype.itemsize) - block)
    ncv = min(max(ncv, k + 2 * block, k + 3), n)
    return ArnoldiPlan(n, k, block, ncv, n * (ncv + block) * dtype.itemsize)


class Progress(NamedTuple):
    """The state after one test of convergence: a line of the history."""

    passes: int
    restarts: int
    basis: int
    converged: int
    locked: int
    worst: float


@dataclass(slots=True)
class ArnoldiDriver:
    """The state machine of one computation.

    Parameters
    ----------
    plan : ArnoldiPlan
    basis : ndarray (n, ncv + block)
        Fortran-ordered memory for the basis, of the type to compute in.
    kind : {"hermitian", "skew", "general"}
    which : str
        Which eigenvalues are wanted, see :mod:`pycauset.drivers.ritz`.
    tol : float
        Wanted: ``residual <= tol * scale(values, norm)``.
    maxiter : int
        Restarts.
    start : ndarray (n, p), optional
        The first columns of the first block; the rest is random.
    scale : callable, optional
        ``scale(values, norm)``: what residuals are compared with; by default the norm of A.
    seed : int
        Of what is random.

    Attributes
    ----------
    passes, restarts, locked : int
    history : list of Progress
    norm : float
        A lower bound of ‖A‖₂: the largest of the norms that H had.
    converged : bool
    """

    plan: ArnoldiPlan
    basis: Array
    kind: str
    which: str
    tol: float
    maxiter: int
    start: Array | None = None
    scale: Callable[[Array, float], Any] | None = None
    seed: int = 0
    passes: int = 0
    restarts: int = 0
    locked: int = 0
    norm: float = 0.0
    converged: bool = False
    history: list[Progress] = field(default_factory=list)
    _h: Array = field(init=False)
    _size: int = 0

    def run(self) -> Generator[Array, Array, Ritz]:
        """Ask for products with blocks (n, p) until the wanted pairs are there, or the restarts are used up.

        Returns
        -------
        Ritz
            All pairs of the last projected matrix, the most wanted first; `vectors` gives eigenvectors of A.
        """
        plan, v = self.plan, self.basis
        block = plan.block
        rng = np.random.default_rng(self.seed)
        self._h = h = np.zeros((plan.ncv + block, plan.ncv), v.dtype)
        v[:, :block] = self._first(rng)
        j, p = 0, block
        while True:
            w = yield v[:, j : j + p]
            self.passes += 1
            new = orthonormalise(v[:, : j + p], w, rng)
            h[: j + p, j : j + p] = new.c
            width = new.q.shape[1]
            h[j + p : j + p + width, j : j + p] = new.r
            v[:, j + p : j + p + width] = new.q
            j, p = j + p, width
            full = width == 0 or j + width > plan.ncv
            if not (full or self._look(j)):
                continue
            ritz = self._extract(j, p)
            if self.converged or width == 0 or (full and self.restarts >= self.maxiter):
                self._size = j
                self.converged = self.converged or width == 0
                return ritz
            if full:
                j = self._restart(ritz, j, p)

    def vectors(self, ritz: Ritz, count: int) -> Array:
        """The first ``count`` eigenvectors of A, of length one (n, count)."""
        y = ritz.vectors[:, :count]
        v = self.basis[:, : self._size]
        if y.dtype.kind == "c" and v.dtype.kind != "c":
            x = np.empty((self.plan.n, y.shape[1]), np.result_type(v.dtype, np.complex64))
            x.real, x.imag = v @ y.real.astype(v.dtype), v @ y.imag.astype(v.dtype)
        else:
            x = v @ y.astype(v.dtype, copy=False)
        lengths = np.linalg.norm(x, axis=0)
        return np.asarray(x / np.where(lengths == 0, 1, lengths))

    # -- steps --------------------------------------------------------------------------------------------------------

    def _first(self, rng: np.random.Generator) -> Array:
        """An orthonormal block to start from."""
        n, block = self.plan.n, self.plan.block
        x = rng.standard_normal((n, block)).astype(self.basis.dtype)
        if x.dtype.kind == "c":
            x = x + 1j * rng.standard_normal((n, block)).astype(x.real.dtype)
        if self.start is not None:
            given = min(self.start.shape[1], block)
            x[:, :given] = self.start[:, :given]
        return orthonormalise(np.empty((n, 0), x.dtype), x, rng).q

    def _look(self, j: int) -> bool:
        """Whether a test of convergence is due: after each wide block, every few narrow ones."""
        k, block = self.plan.k, self.plan.block
        return j >= k + max(block, 4) and (block >= 4 or (j // block) % (8 // block) == 0)

    def _extract(self, j: int, p: int) -> Ritz:
        """Ritz pairs of the present basis, and how many of the wanted ones have converged."""
        h = self._h
        k = min(self.plan.k, j)
        ritz = ritz_pairs(h[:j, :j], h[j : j + p, :j], self.kind, self.which)
        self.norm = max(self.norm, float(np.abs(ritz.values).max()))
        if self.kind == "general":
            self.norm = max(self.norm, norm_from_below(h[: j + p, :j]))
        allowed = self.tol * self._scale(ritz.values)
        good = ritz.residuals <= allowed
        self.converged = bool(good[:k].all()) and k == self.plan.k
        relative = ritz.residuals[:k] / np.where(allowed[:k] == 0, 1, allowed[:k]) * self.tol
        self.history.append(
            Progress(self.passes, self.restarts, j, int(good[:k].sum()), self.locked, float(relative.max(initial=0)))
        )
        return ritz

    def _scale(self, values: Array) -> Array:
        scale = self.norm if self.scale is None else self.scale(values, self.norm)
        return np.broadcast_to(np.asarray(scale, float), values.shape)

    def _restart(self, ritz: Ritz, j: int, p: int) -> int:
        """Keep the most wanted part of the basis; returns its size. Pairs that are there already are locked.

        Locked pairs stay in the basis, and their coupling to what follows, far below the tolerance, is set to zero.
        """
        plan, h, v = self.plan, self._h, self.basis
        keep = min(plan.k + max((j - plan.k) // 2, plan.block), j - 2 * p)
        keep = max(keep, min(plan.k, j - p), 1)
        z = kept_space(h[:j, :j], ritz, keep, self.kind).astype(v.dtype, copy=False)
        if z.shape[1] + p > plan.ncv:
            z = kept_space(h[:j, :j], ritz, max(keep - 2, 1), self.kind).astype(v.dtype, copy=False)
        keep = int(z.shape[1])
        small = z.conj().T @ h[:j, :j] @ z
        coupling = h[j : j + p, :j] @ z
        if self.kind == "hermitian":
            small = np.diag(ritz.values[:keep]).astype(h.dtype)
            locked = np.linalg.norm(coupling, axis=0) <= 0.05 * self.tol * self._scale(ritz.values[:keep])
            coupling[:, locked] = 0
            self.locked = int(np.count_nonzero(locked[: plan.k]))
        for r in range(0, plan.n, _BAND):
            v[r : r + _BAND, :keep] = v[r : r + _BAND, :j] @ z
        v[:, keep : keep + p] = v[:, j : j + p].copy()
        h[...] = 0
        h[:keep, :keep] = small
        h[keep : keep + p, :keep] = coupling
        self.restarts += 1
        return keep
