"""Product with a triangular matrix (TRMM), and of a triangular matrix with its own adjoint: no more flops than there are.

See :mod:`pycauset.drivers.triangular` for the mathematics and :mod:`pycauset.drivers.triangular_plan` for the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pycauset.drivers.blocked import BlockedPlan
from pycauset.drivers.task import Tile, TileTask
from pycauset.drivers.triangular_base import RESULT, THIRD, TriangularDriver, area, width
from pycauset.storage.base import TileJournal, TileStore

__all__ = ["TriangularGramDriver", "TriangularProductDriver"]


class TriangularProductDriver(TriangularDriver):
    """The state machine of ``C = alpha op(T) B`` or ``C = alpha B op(T)``: half the flops of a full product.

    Parameters
    ----------
    t : TileStore
        (n, n); only the triangle that ``uplo`` names is read.
    b, c : TileStore
        (n, m), or (m, n) on the right; two different stores.
    dtype : dtype
        What kernels compute in.
    side : {"L", "R"}
        Where T stands.
    uplo : {"L", "U"}
        Which triangle of T holds the matrix, as stored.
    op : {"N", "T", "H"}
        T as stored, transposed, conjugate transposed.
    unit : bool
        T's diagonal is taken as ones and not read.
    alpha : scalar
    journal : TileJournal, optional
        Keeps what is final, for an operation that may be interrupted.
    """

    kind = "product"

    def __init__(
        self,
        t: TileStore,
        b: TileStore,
        c: TileStore,
        dtype: np.dtype[Any],
        *,
        side: str = "L",
        uplo: str = "L",
        op: str = "N",
        unit: bool = False,
        alpha: complex = 1.0,
        journal: TileJournal | None = None,
    ) -> None:
        super().__init__(t, c, dtype, b=b, side=side, uplo=uplo, op=op, unit=unit, alpha=alpha, journal=journal)

    def tasks(self, plan: BlockedPlan) -> Iterator[TileTask]:
        """The tile tasks, in order."""
        row, column = self.spans(plan)
        h, w = plan.block
        rows, cols = len(row), len(column)
        for left in range(0, cols, w):
            js = range(left, min(left + w, cols))
            for top in range(0, rows, h):
                bottom = min(top + h, rows)
                for k in range(bottom - 1, -1, -1):  # downwards: each row of C begins with its triangular tile
                    below = range(max(top, k), bottom)
                    pairs = (
                        [(i, j) for j in js for i in below]
                        if plan.variant == "panel of T"
                        else [(i, j) for i in below for j in js]
                    )
                    for i, j in pairs:
                        t, b, c = (
                            self.factor(row[i], row[k]),
                            self.other(THIRD, row[k], column[j]),
                            self.other(RESULT, row[i], column[j]),
                        )
                        number = (rows - 1 - k) * (rows - k) // 2 + i - k  # tiles of T by columns, from the last one on
                        drop: tuple[Tile, ...] = (t,) if j == js[-1] and number >= plan.keep else ()
                        if i == below[-1]:
                            drop += (b,)
                        if k == 0:
                            drop += (c,)
                        forget = (b,) if number < plan.host_keep else (t, b)
                        if i == k:
                            params = (self.side, self.uplo, self.op, self.unit, self.alpha)
                            flops = self.unit_flops * area(t) * width(column[j])
                            yield TileTask("trmm", (t, b), (c,), params, flops, drop, forget)
                        else:
                            yield self.gemm(t, b, c, (self.alpha, 1.0), drop, forget)


class TriangularGramDriver(TriangularDriver):
    """The state machine of ``G = P Pᴴ`` with P = op(T): the lower triangle of tiles, in n³/3 flops.

    With ``uplo="L", op="H"`` and T = L⁻¹ that is ``L⁻ᴴ L⁻¹ = (L Lᴴ)⁻¹``, the last step of an inverse by Cholesky; with
    ``op="N"`` it puts a matrix together from its factor.

    Parameters
    ----------
    t : TileStore
        (n, n); only the triangle that ``uplo`` names is read.
    g : TileStore
        (n, n), another store; the lower triangle of tiles is written, diagonal tiles whole.
    dtype : dtype
        What kernels compute in.
    uplo : {"L", "U"}
        Which triangle of T holds the matrix, as stored.
    op : {"N", "H"}
        T as stored, or conjugate transposed.
    journal : TileJournal, optional
        Keeps what is final, for an operation that may be interrupted.
    """

    kind = "gram"

    def __init__(
        self,
        t: TileStore,
        g: TileStore,
        dtype: np.dtype[Any],
        *,
        uplo: str = "L",
        op: str = "N",
        journal: TileJournal | None = None,
    ) -> None:
        super().__init__(t, g, dtype, uplo=uplo, op=op, journal=journal)

    @property
    def adjoint_first(self) -> bool:
        """Whether tiles beside a triangular one must be transposed before they are multiplied with it."""
        return (self.op == "N") != self.forward

    def tasks(self, plan: BlockedPlan) -> Iterator[TileTask]:
        """The tile tasks, in order.

        With positions i ≤ j, ``G_ij = Σ_{k≤i} P_ik P_jkᴴ``, begun with the triangular P_ii. Where positions ascend, the tile
        of the lower triangle is G_ji.
        """
        row, _ = self.spans(plan)
        h, rows = plan.block[0], len(row)
        part = "lower" if self.uplo == "L" else "upper"
        starts = range(0, rows, h)
        for top, left in [(first, second) for first in starts for second in range(first, rows, h)]:
            bottom, right = min(top + h, rows), min(left + h, rows)
            for k in range(bottom - 1, -1, -1):
                js = range(max(left, k), right)
                for j in js:
                    of_row = range(max(top, k), min(bottom, j + 1))
                    for i in of_row:
                        a, b = self.factor(row[i], row[k]), self.factor(row[j], row[k])
                        g = Tile(RESULT, *row[j], *row[i]) if self.forward else Tile(RESULT, *row[i], *row[j])
                        drop: tuple[Tile, ...] = (a,) if j == js[-1] else ()
                        if i == of_row[-1] and left > top:
                            drop += (b,)
                        if k == 0:
                            drop += (g,)
                        yield from self._begin(a, b, g, part, drop) if i == k else self._add(a, b, g, k == 0, drop)

    def _begin(self, a: Tile, b: Tile, g: Tile, part: str, drop: tuple[Tile, ...]) -> Iterator[TileTask]:
        """The first contribution to a tile: a triangular tile times a tile's adjoint."""
        flops = self.unit_flops * area(a)
        if a == b:
            yield TileTask("copy", (a,), (g,), (1.0, "N", part), 0.0, (), (a,))
            params = ("R" if self.op == "N" else "L", self.uplo, "H", False, 1.0)
            whole = g not in drop  # more comes, and the last one mirrors the triangle
            rest = flops * width((a.r0, a.r1)) / 3
            yield TileTask("trmm", (a, g), (g,), params, rest, drop if whole else (), (a,))
            if not whole:
                yield TileTask("rank_k", (a, g), (g,), (0.0, 1.0, self.op, True, True), 0.0, drop, (a,))
            return
        adjoint = {"N": "H", "H": "N"}[self.op]
        params = ("R", self.uplo, adjoint, False, 1.0) if self.forward else ("L", self.uplo, self.op, False, 1.0)
        source = b
        if self.adjoint_first:
            source = g
            yield TileTask("copy", (b,), (g,), (1.0, "H", "full"), 0.0, (), (b,))
        flops *= area(b) // width((a.r0, a.r1))
        yield TileTask("trmm", (a, source), (g,), params, flops, drop, (a, b))

    def _add(self, a: Tile, b: Tile, g: Tile, last: bool, drop: tuple[Tile, ...]) -> Iterator[TileTask]:
        """``G_ij += P_ik P_jkᴴ``."""
        flops = self.unit_flops * area(a)
        if a == b:
            side = width((a.r0, a.r1)) if self.op == "N" else width((a.c0, a.c1))
            yield TileTask("rank_k", (a, g), (g,), (1.0, 1.0, self.op, True, last), flops * side, drop, (a,))
            return
        first, second = (b, a) if self.forward else (a, b)
        flags = ("N", "H") if self.op == "N" else ("H", "N")
        side = width((b.r0, b.r1)) if self.op == "N" else width((b.c0, b.c1))
        yield TileTask("gemm", (first, second, g), (g,), (1.0, 1.0, *flags), 2 * flops * side, drop, (a, b))
