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

__all__ = ["ArnoldiDriver", "ArnoldiPlan", "Progress", "Restart", "plan_arnoldi"]

Array = np.ndarray[Any, Any]

#: Residuals are estimates, exact up to rounding until a restart adds a little: the measured ones shall keep the tolerance.
_MARGIN: Final = 0.99
_MARGIN_RESTARTED: Final = 0.8
#: The fewest passes that a look for missed copies gets, and by which factor less than the average of a direction a random
#: vector may have, beside what the look finds out itself (`ArnoldiDriver._rising`).
_LOOK_LEAST: Final = 4
_LOOK_UNLUCKY: Final = 2.0
#: A look ends before that when the space shows that its random vectors have less than this part of an average share of any copy:
#: that happens by chance to one in sixty.
_LOOK_SHARE: Final = 0.02


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
    """All that the work goes on from, beside the ``size + width`` columns of the basis.

    Attributes
    ----------
    size, width : int
        Columns whose products are known, and of the block behind them.
    kept : int
        Columns that the last restart kept; blocks follow.
    h : ndarray (size + width, size)
        The coefficients.
    starts, round, latest, granted : int
        As in the driver.
    rng : dict
        State of the random numbers.
    """

    size: int
    width: int
    kept: int
    h: Array
    passes: int
    restarts: int
    locked: int
    norm: float
    starts: int
    round: int
    latest: int
    granted: int
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
        Restarts until the wanted pairs have converged, and as many again for each look for further copies.
    start : ndarray (n, p), optional
        The first columns of the first block; the rest is random.
    scale : callable, optional
        ``scale(values, norm)``: what residuals are compared with; by default the norm of A.
    seed : int
        Of what is random.
    on_step : callable, optional
        Called with a `Restart` after each step: who keeps it, and the basis, can go on from there.
    begun : Restart, optional
        Where an earlier run had come to; the basis holds its columns.

    Attributes
    ----------
    passes, restarts, locked : int
    starts : int
        Random directions that the space has grown from: so many copies of an eigenvalue it can have found.
    round : int
        Passes when the present look for further copies may end, 0 where there was none.
    latest : int
        Passes when it ends in any case, unless something was found.
    granted : int
        Restarts when it began.
    cut_short : bool
        The pairs have converged, but a look for further copies ran out of restarts.
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
    on_step: Callable[[Restart], None] | None = None
    begun: Restart | None = None
    passes: int = 0
    restarts: int = 0
    locked: int = 0
    norm: float = 0.0
    starts: int = 0
    round: int = 0
    latest: int = 0
    granted: int = 0
    converged: bool = False
    cut_short: bool = False
    history: list[Progress] = field(default_factory=list)
    _h: Array = field(init=False)
    _rng: np.random.Generator = field(init=False)
    _size: int = 0
    _kept: int = 0

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
            if self.on_step is not None and j:
                self.on_step(self._state(j, p))
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
            over = self.passes >= self.round or self._ruled_out(j, p)
            if not (full or (over and self._due(j))):
                continue
            ritz = self._extract(j, p)
            ended = self.converged and over and not self._rising(ritz)
            missing = self._may_have_copies(ritz) if ended and width else None
            if width == 0 or (missing is not None and not missing.any()):
                self._size, self.converged = j, True
                return ritz
            if missing is not None:
                j, p = self._begin_round(ritz, j, missing)
            elif full and self.restarts - self.granted >= self.maxiter:
                self._size, self.cut_short = j, self.converged
                return ritz
            elif full:
                j = self._restart(ritz, j, p)
            else:
                continue
            self._kept = j

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
        j, p, self._kept = begun.size, begun.width, begun.kept
        self._h[: j + p, :j] = begun.h
        self.passes, self.restarts, self.locked, self.norm = begun.passes, begun.restarts, begun.locked, begun.norm
        self.starts, self.round, self.latest, self.granted = begun.starts, begun.round, begun.latest, begun.granted
        self.history = list(begun.history)
        self._rng.bit_generator.state = begun.rng
        return j, p

    def _state(self, j: int, p: int) -> Restart:
        return Restart(
            j,
            p,
            self._kept,
            self._h[: j + p, :j],
            self.passes,
            self.restarts,
            self.locked,
            self.norm,
            self.starts,
            self.round,
            self.latest,
            self.granted,
            dict(self._rng.bit_generator.state),
            self.history,
        )

    def _due(self, j: int) -> bool:
        """Whether a test of convergence is due: after each costly pass, every few cheap ones, sooner if it should succeed."""
        if self.passes < self.round:
            return True  # a look is over sooner than was thought
        if j < self.plan.k + max(self.plan.block, 4):
            return False
        wait = self.plan.look
        if self.passes == self.round or not self.history:
            return self.passes == self.round or self.passes % wait == 0
        last = self.history[-1]
        if wait > 1 and len(self.history) > 1:
            before = self.history[-2]
            if 0 < last.worst < before.worst:
                fall = np.log(before.worst / last.worst) / (last.passes - before.passes)
                left = np.log(last.worst / (_MARGIN_RESTARTED * self.tol)) / fall
                wait = int(min(max(np.ceil(left), 1), wait))
        return self.passes >= last.passes + wait

    def _extract(self, j: int, p: int) -> Ritz:
        """Ritz pairs of the present basis, and how many of the wanted ones have converged."""
        h = self._h
        k = min(self.plan.k, j)
        ritz = ritz_pairs(h[:j, :j], h[j : j + p, :j], self.kind, self.which, self.basis.dense)
        self.norm = max(self.norm, float(np.abs(ritz.values).max()))
        if self.kind == "general":
            self.norm = max(self.norm, norm_from_below(h[: j + p, :j], self.basis.dense))
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
        keep = int(z.shape[1])
        small, coupling = self._small(ritz, j, z), self.basis.dense.product(h[j : j + p, :j], z)
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
        product = self.basis.dense.product
        return np.asarray(product(z.conj().T, product(self._h[:j, :j], z)))

    # -- eigenvalues that are repeated more often than the space has directions that it grew from --------------------------

    def _may_have_copies(self, ritz: Ritz) -> Array:
        """Of which of the wanted values copies can be missing.

        A space that grew from s random directions holds, of an eigenspace of dimension m, min(m, s) dimensions: fewer than s
        copies are all there are. Of values no better than the last one wanted, more copies would change nothing.
        """
        values = ritz.values[: self.plan.k]
        if len(values) == len(ritz.values):
            return np.zeros(len(values), bool)
        near = max(10 * self.tol, 10 * float(np.finfo(self.basis.dtype).eps) ** 0.5) * self.norm
        copies = np.count_nonzero(np.abs(values[:, None] - values[None, :]) <= near, axis=1)
        return np.asarray((self._ahead(values) > 10 * self.tol * self.norm) & (copies >= self.starts))

    def _ahead(self, values: Array) -> Array:
        """By how much each of the wanted values is better than the last of them."""
        return self._surplus(values, values)

    def _surplus(self, values: Array, wanted: Array) -> Array:
        return surplus(values, wanted, self.which, real=self.basis.dtype.kind != "c" and self.kind != "hermitian")

    def _rising(self, ritz: Ritz) -> bool:
        """Whether the residual of another Ritz value still reaches above the last wanted one, and there is time left."""
        k = self.plan.k
        others = self._surplus(ritz.values[k:], ritz.values[:k])
        return self.passes < self.latest and bool(((others < 0) & (others + ritz.residuals[k:] > 0)).any())

    def _passes_to_see(self, ritz: Ritz, missing: Array) -> int:
        """Passes after which a missing copy of one of the values ``missing`` is ahead of the last wanted one.

        Of a random vector the eigenspace has the share ``1/√n`` on average. In the Hermitian case a space of p steps lifts a Ritz
        value above ``λ - spread (tan φ / T(γ))²``, where φ is the angle between the two, T the Chebyshev polynomial of degree
        p - 1 and γ the place of λ when the unwanted eigenvalues lie in [-1, 1] (Kaniel, Paige and Saad).
        In other cases the passes tell that the wanted pairs took from the same share to an error of tol.
        """
        k, n = self.plan.k, self.plan.n
        first = next((entry.passes for entry in self.history if entry.converged >= k), self.passes)
        gap = self._ahead(ritz.values[:k])[missing]
        x = ritz.values.imag if self.kind == "skew" else ritz.values.real
        low, high = x[k:].min(), x[k:].max()
        outside = np.maximum(x[:k] - high, low - x[:k])[missing]
        angle = _LOOK_UNLUCKY * n**0.5
        if self.kind != "general" and (outside > 0).all():
            spread = x.max() - x.min()
            passes = np.ones(len(gap))
            if high > low:
                passes += np.arccosh(1 + angle * (spread / gap) ** 0.5) / np.arccosh(1 + 2 * outside / (high - low))
        else:
            passes = first * np.log(angle * (1 + 2 * self.norm / gap)) / np.log(angle / self.tol)
        # What took a pair to its tolerance shows more than there is to see here.
        return int(max(_LOOK_LEAST, min(np.ceil(passes.max()), first)))

    def _ruled_out(self, j: int, p: int) -> bool:
        """Whether the random vectors that a look began with are known to have next to nothing of a copy of any wanted value."""
        kept = self._kept
        if self.kind != "hermitian" or self.restarts != self.granted or j - kept < max(p, _LOOK_LEAST):
            return False
        values = np.diagonal(self._h)[:kept].real
        ahead = self._ahead(values)
        order = np.argsort(ahead)  # the nearest to the unwanted ones take longest
        wanted = values[order[ahead[order] > 10 * self.tol * self.norm]]
        return all(self._largest_share(value, j, p) <= _LOOK_SHARE * self.plan.n**-0.5 for value in wanted)

    def _largest_share(self, value: float, j: int, p: int) -> float:
        """An upper bound of what the first block of a look has of any unit eigenvector u of ``value`` outside the kept space.

        The components ``y = Vᴴ u`` and ``z = Qᴴ u`` in what the look has added to the space have together at most length one, and
        ``yᴴ (value - H) = zᴴ B``: a vector of the left null space of ``[H - value; B]``, for any spectrum. (With blocks of one
        the bound is the Christoffel function.) Where there is such a vector, the bound stays above its share.
        """
        kept, dense = self._kept, self.basis.dense
        both = self._h[kept : j + p, kept:j] - value * np.eye(j + p - kept, j - kept, dtype=self._h.dtype)
        return float(dense.svd(dense.qr(both)[0][:p, -p:])[1][0])

    def _begin_round(self, ritz: Ritz, j: int, missing: Array) -> tuple[int, int]:
        """Keep the converged pairs and let the space grow from new random directions.

        The coupling of what is kept, below the tolerance, is dropped: to keep it, the block of residuals would have to be
        multiplied along with the random one, and the passes of a look would cost twice the products.
        """
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
        self.granted = self.restarts
        passes = self._passes_to_see(ritz, missing)
        self.round, self.latest = self.passes + passes, self.passes + 2 * passes
        self.converged = False
        return keep, width
