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

from pycauset.drivers.arnoldi_plan import ArnoldiPlan, plan_arnoldi
from pycauset.drivers.basis import Basis
from pycauset.drivers.orthogonal import orthonormalise, random_block
from pycauset.drivers.ritz import Ritz, kept_space, norm_from_below, ritz_pairs, surplus
from pycauset.tiling import ceil_div

__all__ = ["ArnoldiDriver", "ArnoldiPlan", "Progress", "Restart", "plan_arnoldi"]

Array = np.ndarray[Any, Any]

#: Residuals are estimates, exact up to rounding until a restart adds a little: the measured ones shall keep the tolerance.
_MARGIN: Final = 0.99
_MARGIN_RESTARTED: Final = 0.8
#: Of the passes so far, the share that a look for missed copies may take at most, and the fewest passes it gets.
_LOOK_SHARE: Final = 3
_LOOK_LEAST: Final = 4


class Progress(NamedTuple):
    """The state after one test of convergence: a line of the history."""

    passes: int
    restarts: int
    basis: int
    converged: int
    locked: int
    worst: float


@dataclass(slots=True)
class Restart:
    """All that goes on from a thick restart, beside the ``size + width`` columns of the basis.

    Attributes
    ----------
    size, width : int
        Columns kept, and of the block behind them.
    h : ndarray (size + width, size)
        The coefficients.
    starts, round : int
        As in the driver.
    rng : dict
        State of the random numbers.
    """

    size: int
    width: int
    h: Array
    passes: int
    restarts: int
    locked: int
    norm: float
    starts: int
    round: int
    rng: dict[str, Any]
    history: list[Progress]


@dataclass(slots=True)
class ArnoldiDriver:
    """The state machine of one computation.

    Parameters
    ----------
    plan : ArnoldiPlan
    basis : Basis
        Room for ``ncv + block`` columns, of the type to compute in.
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
    on_restart : callable, optional
        Called with a `Restart` after each one: who keeps it, and the basis, can go on from there.
    begun : Restart, optional
        Where an earlier run had come to; the basis holds its columns.

    Attributes
    ----------
    passes, restarts, locked : int
    starts : int
        Random directions that the space has grown from: so many copies of an eigenvalue it can have found.
    round : int
        Passes when the look for further copies began, 0 where there was none.
    history : list of Progress
    norm : float
        A lower bound of ‖A‖₂: the largest of the norms that H had.
    converged : bool
    """

    plan: ArnoldiPlan
    basis: Basis
    kind: str
    which: str
    tol: float
    maxiter: int
    start: Array | None = None
    scale: Callable[[Array, float], Any] | None = None
    seed: int = 0
    on_restart: Callable[[Restart], None] | None = None
    begun: Restart | None = None
    passes: int = 0
    restarts: int = 0
    locked: int = 0
    norm: float = 0.0
    starts: int = 0
    round: int = 0
    converged: bool = False
    history: list[Progress] = field(default_factory=list)
    _h: Array = field(init=False)
    _rng: np.random.Generator = field(init=False)
    _size: int = 0

    def run(self) -> Generator[Any, Any, Ritz]:
        """Ask for products with blocks (n, p) of the basis until the wanted pairs are there, or the restarts are used up.

        Returns
        -------
        Ritz
            All pairs of the last projected matrix, the most wanted first; `vectors` gives eigenvectors of A.
        """
        plan, basis = self.plan, self.basis
        self._rng = np.random.default_rng(self.seed)
        self._h = h = np.zeros((plan.ncv + plan.block, plan.ncv), basis.dtype)
        j, p = self._take_up(self.begun) if self.begun is not None else self._first()
        while True:
            w = yield basis.block(j, j + p)
            self.passes += 1
            new = orthonormalise(basis, j + p, w, self._rng)
            h[: j + p, j : j + p] = new.c
            width = new.q.shape[1]
            h[j + p : j + p + width, j : j + p] = new.r
            basis.put(j + p, new.q)
            self.starts += width - min(width, new.rank)
            j, p = j + p, width
            full = width == 0 or j + width > plan.ncv or j + 2 * width > plan.ncv + plan.block
            if not (full or self._look(j, p)):
                continue
            ritz = self._extract(j, p)
            if width == 0 or (self.converged and self._complete(ritz)) or (full and self.restarts >= self.maxiter):
                self._size = j
                self.converged = self.converged or width == 0
                return ritz
            if self.converged and (self.round == 0 or self._settled(ritz)):
                j, p = self._begin_round(ritz, j)
            elif full:
                j = self._restart(ritz, j, p)
            else:
                continue
            if self.on_restart is not None:
                self.on_restart(self._state(j, p))

    def vectors(self, ritz: Ritz, count: int) -> Array:
        """The first ``count`` eigenvectors of A (n, count): of length one, of a Hermitian matrix orthonormal, too."""
        y, kind = ritz.vectors[:, :count], self.basis.dtype
        if y.dtype.kind == "c" and kind.kind != "c":
            both = self.basis.give(self.basis.times(np.hstack([y.real, y.imag]).astype(kind)))
            x = np.empty((self.plan.n, y.shape[1]), np.result_type(kind, np.complex64))
            x.real, x.imag = both[:, : y.shape[1]], both[:, y.shape[1] :]
        else:
            block = self.basis.times(y.astype(kind, copy=False))
            if self.kind == "hermitian":  # the basis is orthonormal up to some thousand times rounding
                block, _ = self.basis.qr(block)
            x = self.basis.give(block)
        lengths = np.linalg.norm(x, axis=0)
        return np.asarray(x / np.where(lengths == 0, 1, lengths))

    # -- steps --------------------------------------------------------------------------------------------------------

    def _first(self) -> tuple[int, int]:
        """An orthonormal block to start from."""
        n, block, basis = self.plan.n, self.plan.block, self.basis
        x = random_block(self._rng, (n, block), basis.dtype)
        given = 0
        if self.start is not None:
            given = min(self.start.shape[1], block)
            x[:, :given] = self.start[:, :given]
        basis.put(0, orthonormalise(basis, 0, basis.take(x), self._rng).q)
        self.starts = max(1, block - given)
        return 0, block

    def _take_up(self, begun: Restart) -> tuple[int, int]:
        j, p = begun.size, begun.width
        self._h[: j + p, :j] = begun.h
        self.passes, self.restarts, self.locked, self.norm = begun.passes, begun.restarts, begun.locked, begun.norm
        self.starts, self.round, self.history = begun.starts, begun.round, list(begun.history)
        self._rng.bit_generator.state = begun.rng
        return j, p

    def _state(self, j: int, p: int) -> Restart:
        return Restart(
            j,
            p,
            self._h[: j + p, :j],
            self.passes,
            self.restarts,
            self.locked,
            self.norm,
            self.starts,
            self.round,
            dict(self._rng.bit_generator.state),
            self.history,
        )

    def _look(self, j: int, p: int) -> bool:
        """Whether a test of convergence is due: after each costly pass, every few cheap ones."""
        every = max(1, self.plan.look // 2 if self.round else self.plan.look)
        return j >= self.plan.k + max(self.plan.block, 4) and self.passes % every == 0

    def _extract(self, j: int, p: int) -> Ritz:
        """Ritz pairs of the present basis, and how many of the wanted ones have converged."""
        h = self._h
        k = min(self.plan.k, j)
        ritz = ritz_pairs(h[:j, :j], h[j : j + p, :j], self.kind, self.which)
        self.norm = max(self.norm, float(np.abs(ritz.values).max()))
        if self.kind == "general":
            self.norm = max(self.norm, norm_from_below(h[: j + p, :j]))
        tol = max(self.tol * (_MARGIN_RESTARTED if self.restarts else _MARGIN), 4 * float(np.finfo(h.dtype).eps))
        allowed = tol * self._scale(ritz.values)
        good = ritz.residuals <= allowed
        self.converged = bool(good[:k].all()) and k == self.plan.k
        relative = ritz.residuals[:k] / np.where(allowed[:k] == 0, 1, allowed[:k]) * tol
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
        plan, h, kind = self.plan, self._h, self.basis.dtype
        keep = min(plan.k + max((j - plan.k) // 2, plan.block), j - 2 * p)
        keep = max(keep, min(plan.k, j - p), 1)
        z = kept_space(h[:j, :j], ritz, keep, self.kind).astype(kind, copy=False)
        if z.shape[1] + p > plan.ncv:
            z = kept_space(h[:j, :j], ritz, max(keep - 2, 1), self.kind).astype(kind, copy=False)
        keep = int(z.shape[1])
        small, coupling = self._small(ritz, j, z), h[j : j + p, :j] @ z
        if self.kind == "hermitian":
            locked = np.linalg.norm(coupling, axis=0) <= 0.05 * self.tol * self._scale(ritz.values[:keep])
            coupling[:, locked] = 0
            self.locked = int(np.count_nonzero(locked[: plan.k]))
        self.basis.rotate(z, p)
        h[...] = 0
        h[:keep, :keep] = small
        h[keep : keep + p, :keep] = coupling
        self.restarts += 1
        return keep

    def _small(self, ritz: Ritz, j: int, z: Array) -> Array:
        """``zᴴ H z``."""
        if self.kind == "hermitian":
            return np.asarray(np.diag(ritz.values[: z.shape[1]]).astype(self._h.dtype))
        return np.asarray(z.conj().T @ self._h[:j, :j] @ z)

    # -- eigenvalues that are repeated more often than the space has directions that it grew from --------------------------

    def _complete(self, ritz: Ritz) -> bool:
        """Whether no copy of a wanted eigenvalue can be missing.

        A space that grew from s random directions holds, of an eigenspace of dimension m, min(m, s) dimensions: fewer than s
        copies are all there are. Of values no better than the last one wanted, more copies would change nothing.
        """
        if self.round and not self._settled(ritz):
            return False
        values = ritz.values[: self.plan.k]
        if len(values) == len(ritz.values):
            return True
        near = max(10 * self.tol, 10 * float(np.finfo(self.basis.dtype).eps) ** 0.5) * self.norm
        copies = np.count_nonzero(np.abs(values[:, None] - values[None, :]) <= near, axis=1)
        better = surplus(values, values, self.which, real=self._real) > 10 * self.tol * self.norm
        return not bool((better & (copies >= self.starts)).any())

    @property
    def _real(self) -> bool:
        return self.basis.dtype.kind != "c" and self.kind != "hermitian"

    def _settled(self, ritz: Ritz) -> bool:
        """Whether the best of the others, each within its residual, stays behind the wanted ones: nothing was missed."""
        k = self.plan.k
        passes = self.passes - self.round
        if passes >= max(_LOOK_LEAST, ceil_div(self.round, _LOOK_SHARE)):
            return True
        others = slice(k, k + 3)
        ahead = surplus(ritz.values[others], ritz.values[:k], self.which, real=self._real) + ritz.residuals[others]
        return passes >= 2 and bool((ahead <= 0).all())

    def _begin_round(self, ritz: Ritz, j: int) -> tuple[int, int]:
        """Keep the converged pairs, whose coupling is below the tolerance, and let the space grow from new random directions."""
        plan, h = self.plan, self._h
        z = kept_space(h[:j, :j], ritz, plan.k, self.kind).astype(self.basis.dtype, copy=False)
        keep = int(z.shape[1])
        # A second round has reason to expect more copies.
        wide = min(self.starts, max(plan.block, plan.k), (plan.ncv - keep) // 4) if self.round else 0
        width = min(max(plan.block, wide - wide % plan.block), plan.ncv - keep, plan.n - keep)
        small = self._small(ritz, j, z)
        self.basis.rotate(z, 0)
        x = self.basis.take(random_block(self._rng, (plan.n, width), self.basis.dtype))
        new = orthonormalise(self.basis, keep, x, self._rng)
        self.basis.put(keep, new.q)
        h[...] = 0
        h[:keep, :keep] = small
        self.starts += width
        self.restarts += 1
        self.round = self.passes
        self.converged = False
        return keep, width
