"""CholeskyDriver: ``A = L Lᴴ`` (or ``A = Uᴴ U``) for Hermitian positive definite matrices larger than memory.

Mathematics, for tiles i ≥ j of the lower triangle::

    L_jj = chol(A_jj - Σ_{k<j} L_jk L_jkᴴ)                 potrf after rank_k updates
    L_ij = (A_ij - Σ_{k<j} L_ik L_jkᴴ) L_jj⁻ᴴ              trsm after gemm updates

Order: see :mod:`pycauset.drivers.cholesky_plan`. In every order a tile's own sum runs over ascending k, one task for each k, so a
tile's state is told by how many tasks have written it, and each task reads finished tiles only, beside the one it updates. That
is what makes every variant resumable, in place or not.

Within a diagonal block the factorisation is right-looking with one step of look-ahead: the next diagonal tile is updated and
factored on the high-priority stream while the other updates of the step still run.

Only one triangle is read, computed and stored. An upper factor is the adjoint of a lower one: tile (j, i) of U holds L_ijᴴ,
and each kernel has its mirror image.

References
----------
.. [1] J. Choi et al., "Design and implementation of the ScaLAPACK LU, QR and Cholesky factorization routines", Scientific
   Programming 5 (1996).
.. [2] O. Beaumont, L. Eyraud-Dubois, M. Vérité and J. Langou, "I/O-optimal algorithms for symmetric linear algebra
   kernels", SPAA 2022, arXiv:2202.10217.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pycauset.devices.base import Device
from pycauset.devices.rates import Rates
from pycauset.drivers.blocked import BlockedDriver, slot_bytes
from pycauset.drivers.cholesky_plan import VARIANTS, CholeskyPlan, CholeskyProblem, plan_cholesky
from pycauset.drivers.generations import TileLedger
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.streamer import has_no_chunks
from pycauset.drivers.task import Operand, Tile, TileTask
from pycauset.drivers.triangle_blocks import blocks, layout
from pycauset.storage.base import TileJournal, TileStore
from pycauset.tiling import Rect, ceil_div

__all__ = ["CholeskyDriver"]

Pairs = Sequence[tuple[int, int]]


class CholeskyDriver(BlockedDriver):
    """The state machine of one factorisation.

    Parameters
    ----------
    a : TileStore (n, n)
        Hermitian positive definite; only its lower (upper) triangle is read.
    factor : TileStore (n, n)
        Takes the factor. It may be ``a`` itself: the factorisation is then in place.
    dtype : dtype
        What kernels compute in; tiles are converted on their way in and out.
    lower : bool
        Whether to compute L from the lower triangle, or U from the upper one.
    variant : {"left", "right", "triangle"}, optional
        The order; by default the planner chooses.
    journal : TileJournal, optional
        Keeps track of finished tiles.
    """

    plan_type = CholeskyPlan
    workspaces = ("potrf", "trsm")

    def __init__(
        self,
        a: TileStore,
        factor: TileStore,
        dtype: np.dtype[Any],
        *,
        lower: bool = True,
        variant: str | None = None,
        journal: TileJournal | None = None,
    ) -> None:
        self.in_place = a is factor
        self.stores = (factor,) if self.in_place else (factor, a)
        self.dtype = np.dtype(dtype)
        self.lower = lower
        self.variant = variant
        self.variants = VARIANTS if variant is None else (variant,)
        self.journal = journal
        self.n = factor.shape[0]
        self.sizes = (self.n,)
        self.followed: CholeskyPlan | None = None
        self._ledger = TileLedger(factor) if self.in_place and journal is None else None

    # -- planning -------------------------------------------------------------------------------------------------

    def problem(self, device: Device) -> CholeskyProblem:
        """What the planner needs to know about the matrix on this device."""
        factor, origin = self.stores[0], self.stores[-1]
        reached = all(device.reaches(store, self.dtype) for store in self.stores) and self.journal is None
        free = has_no_chunks(factor)
        unit = 1 if free else math.lcm(*factor.chunks)
        return CholeskyProblem(
            self.n,
            self.dtype,
            unit=unit if unit < self.n else 1 if free else max(self.n, 1),
            slotless=reached and device.unified and self.in_place,
            hostless=reached and not device.unified,
            in_itemsize=float(origin.dtype.itemsize) if origin.dtype.kind != "b" else 0.125,
            out_itemsize=float(factor.dtype.itemsize),
            grain=None if free else factor.chunks,
        )

    def plan(self, device: Device, limits: MatmulLimits, rates: Rates) -> CholeskyPlan:
        """Choose variant, tiles and blocks; MemoryLimitError with the numbers when nothing fits."""
        problem, piece = self.problem(device), self.piece_bytes(device)
        reserved = 0
        while True:  # what kernels need besides tiles grows with the tiles, and leaves less for them
            left = replace(limits, device=limits.device - reserved)
            plan = plan_cholesky(problem, left, rates, unified=device.unified, piece=piece, variant=self.variant)
            side = min(plan.tile[0], self.n)
            needed = sum(device.workspace_bytes(kernel, side, self.dtype) for kernel in self.workspaces)
            if needed <= reserved:
                return plan
            reserved = needed

    def operands(self, plan: CholeskyPlan) -> list[Operand]:
        """The one matrix: read from A until a tile has been written, then from the factor."""
        tile = min(plan.tile[0], self.n)
        origin = None if self.in_place else self.stores[1]
        return [Operand(self.stores[0], self.dtype, (tile, tile), plan.slots[0], "L", origin, self.journal, self._ledger)]

    def _fitting_blocks(self, plan: CholeskyPlan) -> Iterator[tuple[str, bool]]:
        count = ceil_div(self.n, plan.tile[0])
        most = count * (count + 1) // 2 + count + 8
        yield "tile", plan.tile[0] == plan.tile[1]
        yield "slots", len(plan.slots) == 1 and min(count, 3) <= plan.slots[0] <= most
        side = min(plan.tile[0], self.n)
        yield "device_bytes", plan.device_bytes == plan.slots[0] * slot_bytes(side, side, self.dtype.itemsize)
        yield "block", min(plan.block) >= 1 and max(plan.block) <= count
        yield "panel", (count if plan.variant == "left" else 1) <= plan.panel <= count
        yield "capacity", 1 <= plan.capacity <= plan.slots[0]

    # -- the algorithm --------------------------------------------------------------------------------------------

    def tasks(self, plan: CholeskyPlan) -> Iterator[TileTask]:
        """The tile tasks, in order."""
        self.followed = plan
        self._side = plan.tile[0]
        self._keep = plan.host_keep
        count = ceil_div(self.n, self._side)
        if plan.variant == "right":
            yield from self._right(count, plan.panel)
            return
        for first in range(0, count, plan.panel):
            last = min(first + plan.panel, count)
            yield from self._panel(first, last, count, plan.block, plan.keeps_corner)
            if last < count:
                for pairs in blocks(layout(count - last, plan.capacity, last), plan.capacity):
                    yield from self._update(pairs, range(first, last), finish=True)

    def _panel(self, first: int, last: int, count: int, block: tuple[int, int], keeps_corner: bool) -> Iterator[TileTask]:
        """Left-looking over blocks: tile columns ``first:last``, which have all updates from columns before ``first``."""
        height, width = block
        for j0 in range(first, last, width):
            cols = range(j0, min(j0 + width, last))
            below = [range(i0, min(i0 + height, count)) for i0 in range(cols.stop, count, height)]
            kept = range(first, first + self._keep) if below else range(0)
            pairs = [(i, j) for j in cols for i in range(j, cols.stop)]
            yield from self._update(pairs, range(first, j0), kept=kept, rows=cols)
            stays = keeps_corner and j0 == first and below
            for task in self._factor(cols):
                yield task._replace(drop=()) if stays else task
            for rows in below:
                pairs = [(i, j) for j in cols for i in rows]
                yield from self._update(pairs, range(first, j0), kept=kept if rows is not below[-1] else range(0), rows=cols)
                yield from self._solve(rows, cols, fresh=j0 == first)

    def _update(
        self, pairs: Pairs, depth: range, *, kept: range = range(0), rows: range = range(0), finish: bool = False
    ) -> Iterator[TileTask]:
        """``C_ij -= Σ_k L_ik L_jkᴴ`` for resident tiles (i, j); tiles of a step go when its last pair has used them.

        ``kept`` are the columns k whose tiles in ``rows`` the host level keeps; with ``finish`` tiles (i, j) go home afterwards.
        """
        last_use = {row: at for at, pair in enumerate(pairs) for row in pair}
        for k in depth:
            home = finish and k == depth[-1]
            for at, (i, j) in enumerate(pairs):
                drop = [self._tile(row, k) for row in ((i,) if i == j else (i, j)) if last_use[row] == at]
                if home:
                    drop.append(self._tile(i, j))
                forget = [self._tile(row, k) for row in (i, j) if not (k in kept and row in rows)]
                yield self._gemm(i, j, k, drop, forget)

    def _factor(self, cols: range) -> Iterator[TileTask]:
        """Factor a resident diagonal block, right-looking, the next diagonal tile one step ahead."""
        yield self._potrf(cols[0], 0, (self._tile(cols[0], cols[0]),) if len(cols) == 1 else ())
        for j in cols:
            below = range(j + 1, cols.stop)
            for i in below:
                yield self._trsm(i, j, 1 if i == j + 1 else 0, (self._tile(j, j),) if i == below[-1] else ())
            if not below:
                return
            ahead = j + 1
            alone = len(below) == 1
            yield self._gemm(ahead, ahead, j, [self._tile(ahead, j)] if alone else [], [], 1)
            yield self._potrf(ahead, 1, (self._tile(ahead, ahead),) if alone else ())
            for col in below:
                for i in range(col, cols.stop):
                    if (i, col) != (ahead, ahead):
                        # Row x of the panel serves as column x and in all columns before; the last row as long as there is one.
                        yield self._gemm(i, col, j, [self._tile(col, j)] if i == cols.stop - 1 else [], [])

    def _solve(self, rows: range, cols: range, *, fresh: bool) -> Iterator[TileTask]:
        """``L_ij = C_ij L_jj⁻ᴴ`` for a block below the diagonal block ``cols``, column by column.

        Right-looking, so that columns leave one by one while the next block arrives. A ``fresh`` block, of which nothing is
        resident yet, is solved left-looking, so that its own columns may arrive one by one.
        """
        if fresh:
            for j in cols:
                for col in range(cols.start, j):
                    for i in rows:
                        drop = [self._tile(j, col)] if i == rows.stop - 1 else []
                        if j == cols.stop - 1:
                            drop.append(self._tile(i, col))
                        yield self._gemm(i, j, col, drop, [self._tile(j, col)])
                for i in rows:
                    drop = [self._tile(j, j)] if i == rows.stop - 1 else []
                    if j == cols.stop - 1:
                        drop.append(self._tile(i, j))
                    yield self._trsm(i, j, 0, tuple(drop))
            return
        for j in cols:
            last = j == cols.stop - 1
            for i in rows:
                drop = [self._tile(j, j)] if i == rows.stop - 1 else []
                yield self._trsm(i, j, 0, (*drop, self._tile(i, j)) if last else tuple(drop))
            for col in range(j + 1, cols.stop):
                for i in rows:
                    drop = [self._tile(col, j)] if i == rows.stop - 1 else []
                    if col == cols.stop - 1:
                        drop.append(self._tile(i, j))
                    yield self._gemm(i, col, j, drop, [self._tile(col, j)])

    def _right(self, count: int, panel: int) -> Iterator[TileTask]:
        """Right-looking: a factored panel stays resident while the rest streams past; the next one is updated first and stays."""
        if panel >= count:  # all of it is resident
            yield from self._factor(range(count))
            return
        yield from self._factor_panel(range(panel), count, 0)
        for first in range(0, count, panel):
            cols = range(first, min(first + panel, count))
            after = range(cols.stop, min(cols.stop + panel, count))
            for j in range(cols.stop, count):
                for i in range(j, count):
                    for k in cols:
                        drop = []
                        if i == count - 1:
                            drop.append(self._tile(j, k))  # row j of the panel has met all columns up to its own
                        if k == cols[-1] and j not in after:
                            drop.append(self._tile(i, j))
                        yield self._gemm(i, j, k, drop, [])
                if after and j == after[-1]:
                    yield from self._factor_panel(after, count, 1)

    def _factor_panel(self, cols: range, count: int, stream: int) -> Iterator[TileTask]:
        """Factor resident tile columns, all their rows."""
        for j in cols:
            # Tiles above the trailing matrix are not needed again once their column is done.
            yield self._potrf(j, stream, (self._tile(j, j),) if j == count - 1 else ())
            for i in range(j + 1, count):
                yield self._trsm(i, j, stream, (self._tile(j, j),) if i == count - 1 else ())
            for col in range(j + 1, cols.stop):
                for i in range(col, count):
                    done = i == count - 1
                    yield self._gemm(i, col, j, [self._tile(col, j)] if done else [], [], stream)

    # -- what a failure in place leaves ---------------------------------------------------------------------------

    def contents(self, pivot: int | None, recorded: Mapping[Rect, int] | None = None) -> dict[str, list[Rect]]:
        """What each tile of the triangle holds after a run in place that failed.

        Parameters
        ----------
        pivot : int or None
            The pivot that was not positive; None if something else went wrong.
        recorded : mapping of Rect to int, optional
            The generation of each tile that a journal has on record.

        Returns
        -------
        dict
            Tiles under ``"factor"`` (final), ``"updated"`` (in part), ``"original"`` and ``"unspecified"``.
        """
        plan = self.followed
        found: dict[str, list[Rect]] = {"factor": [], "updated": [], "original": [], "unspecified": []}
        side = plan.tile[0] if plan is not None else self.n
        count = ceil_div(self.n, side) if self.n else 0
        self._side = side
        failed = None if pivot is None else self._tile(pivot // side, pivot // side)
        sound: dict[Rect, int] | None = None  # generations when the task that failed began
        if plan is not None and failed is not None:
            sound = {}
            for task in self.tasks(plan):
                (tile,) = task.writes
                if task.kernel == "potrf" and tile == failed:
                    break
                sound[tile.rect] = sound.get(tile.rect, 0) + 1
        in_slots = plan is None or not plan.unified or plan.device_bytes > 0
        held: Mapping[Rect, int] | None = recorded
        if held is None and self._ledger is not None:
            held = self._ledger.generations()
        for j in range(count):
            for i in range(j, count):
                rect = self._tile(i, j).rect
                if plan is None:
                    kind = "original"
                elif in_slots and held is not None:
                    generation = held.get(rect, 0)
                    # A GPU goes on, and its tiles home, until the host has seen the outcome.
                    wrong = generation < 0 or (sound is not None and generation > sound.get(rect, 0))
                    kind = "unspecified" if wrong else _kind(generation, j)
                elif sound is not None and (failed is None or rect != failed.rect):  # one kernel at a time, on the matrix itself
                    kind = _kind(sound.get(rect, 0), j)
                else:
                    kind = "unspecified"
                found[kind].append(rect)
        return found

    # -- one kernel each ------------------------------------------------------------------------------------------

    def _tile(self, i: int, j: int) -> Tile:
        """Tile (i, j) of L, where it is stored."""
        side, n = self._side, self.n
        rows, cols = (i * side, min((i + 1) * side, n)), (j * side, min((j + 1) * side, n))
        return Tile(0, *rows, *cols) if self.lower else Tile(0, *cols, *rows)

    def _gemm(self, i: int, j: int, k: int, drop: list[Tile], forget: list[Tile], stream: int = 0) -> TileTask:
        """``C_ij -= L_ik L_jkᴴ``."""
        c, a, b = self._tile(i, j), self._tile(i, k), self._tile(j, k)
        flops = self._flops(c, (a.c1 - a.c0) if self.lower else (a.r1 - a.r0))
        if i == j:
            params: tuple[Any, ...] = (-1.0, 1.0, "N" if self.lower else "H", True, False, "L" if self.lower else "U")
            return TileTask("rank_k", (a, c), (c,), params, flops / 2, tuple(drop), (*forget, c), stream)
        if self.lower:
            return TileTask("gemm", (a, b, c), (c,), (-1.0, 1.0, "N", "H"), flops, tuple(drop), (*forget, c), stream)
        return TileTask("gemm", (b, a, c), (c,), (-1.0, 1.0, "H", "N"), flops, tuple(drop), (*forget, c), stream)

    def _trsm(self, i: int, j: int, stream: int, drop: tuple[Tile, ...]) -> TileTask:
        """``C_ij ← C_ij L_jj⁻ᴴ``."""
        c, diagonal = self._tile(i, j), self._tile(j, j)
        params: tuple[Any, ...] = ("R", "L", "H", False, 1.0) if self.lower else ("L", "U", "H", False, 1.0)
        if stream == 0:  # where many follow one another with the same diagonal tile
            params = (*params, j)
        side = diagonal.c1 - diagonal.c0
        return TileTask("trsm", (diagonal, c), (c,), params, self._flops(c, side) / 2, drop, (diagonal, c), stream)

    def _potrf(self, j: int, stream: int, drop: tuple[Tile, ...]) -> TileTask:
        """``C_jj ← chol(C_jj)``."""
        c = self._tile(j, j)
        return TileTask("potrf", (c,), (c,), (c.r0, self.lower), self._flops(c, c.c1 - c.c0) / 6, drop, (c,), stream)

    def _flops(self, c: Tile, depth: int) -> float:
        return (8.0 if self.dtype.kind == "c" else 2.0) * (c.r1 - c.r0) * (c.c1 - c.c0) * depth


def _kind(generation: int, column: int) -> str:
    """What a tile of a tile column holds: one task has updated it for each column before its own, and one has made it final."""
    return "factor" if generation > column else "updated" if generation else "original"
