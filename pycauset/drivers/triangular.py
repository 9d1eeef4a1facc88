"""Triangular solve (TRSM), inverse, product (TRMM) and product with the own adjoint, on matrices larger than memory.

Mathematics: with op(T) cut into tiles T_lk (l ≥ k in the order of computation: *positions* run backwards for an upper
triangle), right-hand sides into B_lj and results into X_lj,

* solve:    ``X_lj = T_ll⁻¹ (α B_lj − Σ_{k<l} T_lk X_kj)``,
* inverse:  the same with B = I, where only tiles with l ≥ j exist, and ``W_jj = T_jj⁻¹``,
* product:  ``C_lj = α Σ_{k≤l} T_lk B_kj``,
* gram:     ``G = P Pᴴ`` with P = op(T), one triangle of it, where again a third of the flops of a product is left.

On the right, ``X op(T) = α B`` is the same for transposed tiles. Order: left-looking over resident blocks of the result
(see :mod:`pycauset.drivers.triangular_plan` for their size and their bytes). Panels of *final* tiles stream past a block,
and each task writes exactly one tile of the result, so that an interrupted run can go on from the tiles that are on disk.
Only the named triangle of T is read, and within a diagonal tile only its triangle is used.

References
----------
.. [1] J. J. Du Croz and N. J. Higham, "Stability of methods for matrix inversion", IMA J. Numer. Anal. 12 (1992), method 1.
.. [2] S. Toledo, "A survey of out-of-core algorithms in numerical linear algebra", DIMACS 50 (1999).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pycauset.devices.base import Device
from pycauset.devices.rates import Rates
from pycauset.drivers.blocked import BlockedDriver, BlockedPlan
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.streamer import has_no_chunks
from pycauset.drivers.task import Operand, Tile, TileTask
from pycauset.drivers.triangular_plan import TriangularProblem, plan_triangular
from pycauset.storage.base import TileJournal, TileStore

__all__ = ["TriangularGramDriver", "TriangularInverseDriver", "TriangularProductDriver", "TriangularSolveDriver"]

_T, _X, _B = 0, 1, 2


class _TriangularDriver(BlockedDriver):
    """What the four share: positions, tiles, the problem as the planner sees it, and the operands."""

    kind = ""

    def __init__(
        self,
        t: TileStore,
        x: TileStore,
        dtype: np.dtype[Any],
        *,
        side: str = "L",
        uplo: str = "L",
        op: str = "N",
        unit: bool = False,
        alpha: complex = 1.0,
        b: TileStore | None = None,
        origin: TileStore | None = None,
        journal: TileJournal | None = None,
        checks: str = "",
    ) -> None:
        self.stores: Sequence[TileStore] = [store for store in (t, x, b or origin) if store is not None]
        self.dtype = np.dtype(dtype)
        self.side, self.uplo, self.op, self.unit, self.alpha = side, uplo, op, unit, alpha
        self.origin, self.journal, self.checks = origin, journal, checks
        self._t, self._x, self._b = t, x, b
        n = t.shape[0]
        self.sizes = (n, x.shape[1] if side == "L" else x.shape[0])
        #: Whether positions ascend along the matrix: op(T) is lower on the left, or upper on the right.
        self.forward = ((uplo == "L") == (op == "N")) == (side == "L")

    # -- planning -------------------------------------------------------------------------------------------------

    def problem(self, device: Device) -> TriangularProblem:
        """What the planner needs to know about the operands on this device."""
        n, m = self.sizes
        copies = self._copies(device)
        third = self.origin if copies else self._b
        stores = [self._t, self._x, *([] if third is None else [third])]
        reached = [device.reaches(store, self.dtype) for store in stores]
        if not copies:
            fills = self.origin is None or (not device.unified and device.reaches(self.origin, self.dtype))
            reached[_X] = reached[_X] and fills and self.journal is None
        none = (False,) * len(stores)
        return TriangularProblem(
            self.kind,
            n,
            m,
            self.dtype,
            units=self._units(device),
            slotless=tuple(reached) if device.unified else none,
            hostless=none if device.unified else tuple(reached),
            disk_itemsize=tuple(_itemsize(store) for store in stores),
            origin_itemsize=_itemsize(self.origin or self._x),
            grain=tuple(None if has_no_chunks(store) else store.chunks for store in stores),
            right=self.side == "R",
            forward=self.forward,
            checks=self.checks,
            copies=copies,
            adjoint_first=self.adjoint_first,
        )

    @property
    def adjoint_first(self) -> bool:
        return False

    def _copies(self, device: Device) -> bool:
        """Whether the result lies where kernels reach it, and is filled from elsewhere: then tiles are copied, not moved."""
        return device.unified and self.origin is not None and self.journal is None and device.reaches(self._x, self.dtype)

    def _units(self, device: Device) -> tuple[tuple[int, int], ...]:
        """Multiples for tile sides: whole chunks of the result first (it is written), then of T, then of the rest."""
        n, m = self.sizes
        along, across = (0, 1) if self.side == "L" else (1, 0)
        x, t = self._x, self._t
        third = self.origin or self._b

        def chunked(store: TileStore) -> bool:
            return not (device.reaches(store, self.dtype) or has_no_chunks(store))

        t_sides = [(t.chunks[0], n), (t.chunks[1], n)] if chunked(t) else []
        x_sides = ([(x.chunks[along], n)], [(x.chunks[across], m)]) if chunked(x) else ([], [])
        if self.journal is not None:  # what is final is final in whole chunks
            x_sides = ([(min(x.chunks[along], n), n + 1)], [(min(x.chunks[across], m), m + 1)])
        rest = ([(third.chunks[along], n)], [(third.chunks[across], m)]) if third is not None and chunked(third) else ([], [])
        options = [
            (_agree(*x_sides[0], *t_sides, *rest[0]), _agree(*x_sides[1], *rest[1])),
            (_agree(*x_sides[0], *t_sides), _agree(*x_sides[1])),
        ]
        if self.journal is None:  # tiles may be parts of the chunks of a tall, narrow matrix
            options.append((_agree(*t_sides), 1))
        return tuple(dict.fromkeys(options))

    def plan(self, device: Device, limits: MatmulLimits, rates: Rates) -> BlockedPlan:
        """Choose tiles, block and slots; MemoryLimitError with the numbers when nothing fits."""
        if self.kind == "inverse":
            limits = replace(limits, device=limits.device - device.workspace_bytes("trtri", self.sizes[0], self.dtype))
        return plan_triangular(self.problem(device), limits, rates, unified=device.unified, piece=self.piece_bytes(device))

    def operands(self, plan: BlockedPlan) -> list[Operand]:
        """T, the result and perhaps B as the streamer takes them."""
        n, m = self.sizes
        b, c = max(1, min(plan.tile[0], n)), max(1, min(plan.tile[1], m))
        shape = (b, c) if self.side == "L" else (c, b)
        third = self.origin if self.kind == "solve" else self._b
        copied = self.kind == "solve" and len(plan.slots) > _B
        made = [
            Operand(self._t, self.dtype, (b, b), plan.slots[_T], "T"),
            Operand(
                self._x, self.dtype, shape, plan.slots[_X], "X", origin=None if copied else self.origin, journal=self.journal
            ),
        ]
        if len(plan.slots) > _B and third is not None:
            made.append(Operand(third, self.dtype, shape, plan.slots[_B], "B"))
        return made

    # -- tiles by position ----------------------------------------------------------------------------------------

    def tasks(self, plan: BlockedPlan) -> Iterator[TileTask]:
        """The tile tasks, in order."""
        raise NotImplementedError

    def _span(self, position: int, plan: BlockedPlan) -> tuple[int, int]:
        """Rows of op(T) at a position."""
        n, b = self.sizes[0], plan.tile[0]
        index = position if self.forward else -(-n // b) - 1 - position
        return index * b, min((index + 1) * b, n)

    def _spans(self, plan: BlockedPlan) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Rows of op(T) by position, and columns of the other operand."""
        n, m = self.sizes
        b, c = plan.tile
        along = [self._span(position, plan) for position in range(-(-n // b))]
        return along, [(j, min(j + c, m)) for j in range(0, m, c)]

    def _factor(self, row: tuple[int, int], column: tuple[int, int]) -> Tile:
        """The tile of T, as stored, that couples result row ``l`` to row ``k``."""
        return Tile(_T, *row, *column) if (self.op == "N") == (self.side == "L") else Tile(_T, *column, *row)

    def _other(self, operand: int, row: tuple[int, int], column: tuple[int, int]) -> Tile:
        """A tile of the result or of B."""
        return Tile(operand, *row, *column) if self.side == "L" else Tile(operand, *column, *row)

    def _gemm(
        self,
        factor: Tile,
        other: Tile,
        target: Tile,
        scalars: tuple[complex, complex],
        drop: tuple[Tile, ...],
        forget: tuple[Tile, ...],
    ) -> TileTask:
        """``target = alpha op(factor) other + beta target``, or with the factor on the right."""
        left = self.side == "L"
        reads = (factor, other) if left else (other, factor)
        flags = (self.op, "N") if left else ("N", self.op)
        depth = _width((other.r0, other.r1) if left else (other.c0, other.c1))
        flops = 2 * self._unit_flops * _area(target) * depth
        return TileTask(
            "gemm", (*reads, target) if scalars[1] != 0 else reads, (target,), (*scalars, *flags), flops, drop, forget
        )

    @property
    def _unit_flops(self) -> float:
        return 4.0 if self.dtype.kind == "c" else 1.0


class TriangularSolveDriver(_TriangularDriver):
    """The state machine of ``op(T) X = alpha B`` or ``X op(T) = alpha B``.

    Parameters
    ----------
    t : TileStore
        (n, n); only the triangle that ``uplo`` names is read.
    x : TileStore
        The solution, (n, m), or (m, n) on the right.
    dtype : dtype
        What kernels compute in.
    origin : TileStore, optional
        The right-hand sides B. Without it they lie in ``x``, and are overwritten.
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
    check : bool
        Look for zeros and non-finite numbers on T's diagonal. In place that comes first, before anything is overwritten;
        otherwise with the first use of each diagonal tile.
    """

    kind = "solve"

    def __init__(
        self,
        t: TileStore,
        x: TileStore,
        dtype: np.dtype[Any],
        *,
        origin: TileStore | None = None,
        side: str = "L",
        uplo: str = "L",
        op: str = "N",
        unit: bool = False,
        alpha: complex = 1.0,
        journal: TileJournal | None = None,
        check: bool = True,
    ) -> None:
        checks = "" if unit or not check else "first" if origin is None else "inline"
        options: dict[str, Any] = {"side": side, "uplo": uplo, "op": op, "unit": unit, "alpha": alpha}
        super().__init__(t, x, dtype, origin=origin, journal=journal, checks=checks, **options)

    def tasks(self, plan: BlockedPlan) -> Iterator[TileTask]:
        """The tile tasks, in order."""
        return _substitute(self, plan, inverse=False)


class TriangularInverseDriver(_TriangularDriver):
    """The state machine of ``W = T⁻¹``: one triangle is read, computed and written, in n³/3 flops.

    Parameters
    ----------
    t : TileStore
        (n, n); only the triangle that ``uplo`` names is read.
    w : TileStore
        (n, n), another store; only tiles of the same triangle are written, with zeros in the rest of diagonal tiles.
    dtype : dtype
        What kernels compute in.
    uplo : {"L", "U"}
        Which triangle, as stored.
    unit : bool
        T's diagonal is taken as ones and not read.
    journal : TileJournal, optional
        Keeps what is final, for an operation that may be interrupted.
    """

    kind = "inverse"

    def __init__(
        self,
        t: TileStore,
        w: TileStore,
        dtype: np.dtype[Any],
        *,
        uplo: str = "L",
        unit: bool = False,
        journal: TileJournal | None = None,
    ) -> None:
        super().__init__(t, w, dtype, uplo=uplo, unit=unit, journal=journal, checks="" if unit else "inline")

    def tasks(self, plan: BlockedPlan) -> Iterator[TileTask]:
        """The tile tasks, in order."""
        return _substitute(self, plan, inverse=True)


def _substitute(
    driver: TriangularSolveDriver | TriangularInverseDriver, plan: BlockedPlan, *, inverse: bool
) -> Iterator[TileTask]:
    """Forward substitution over resident blocks, outer product by outer product; with ``inverse``, where B = I."""
    row, column = driver._spans(plan)
    if inverse:
        column = row
    if not row or not column:
        return
    h, w = plan.block
    rows, cols = len(row), len(column)
    copies = not inverse and len(plan.slots) > _B
    f = driver._unit_flops
    triangle = (driver.side, driver.uplo, driver.op, driver.unit)
    part = "lower" if driver.uplo == "L" else "upper"

    def factor(i: int, k: int) -> Tile:
        return driver._factor(row[i], row[k])

    def result(i: int, j: int) -> Tile:
        return driver._other(_X, row[i], column[j])

    def stays(i: int, k: int, most: int) -> bool:
        """Whether a tile of T is among the first ``most``, numbered by columns from the last one on."""
        return (rows - 1 - k) * (rows - k) // 2 + i - k < most

    def out(i: int, k: int, last: bool) -> tuple[Tile, ...]:
        """A tile of T that is given up after its last use in a step."""
        return (factor(i, k),) if last and not stays(i, k, plan.keep) else ()

    def passing(i: int, k: int) -> tuple[Tile, ...]:
        """A tile of T that the host level need not keep."""
        return () if stays(i, k, plan.host_keep) else (factor(i, k),)

    def filled(x: Tile) -> TileTask:
        b = Tile(_B, *x[1:])
        return TileTask("copy", (b,), (x,), (driver.alpha, "N", "full"), 0.0, (b,), (b,))

    def finish(k: int, j: int, last: bool, leaves: bool) -> Iterator[TileTask]:
        """Row k of the block: solve with the diagonal tile; ``leaves`` tells that no row of the block needs the result."""
        t, x = factor(k, k), result(k, j)
        first = k == 0
        if copies and first:
            yield filled(x)
        alpha = driver.alpha if first and not inverse and not copies else 1.0
        drop = out(k, k, last) + ((x,) if leaves else ())
        yield TileTask("trsm", (t, x), (x,), (*triangle, alpha), f * _area(t) * _width(column[j]), drop, (*passing(k, k), x))

    def invert(k: int, leaves: bool) -> Iterator[TileTask]:
        """The diagonal tile of the inverse."""
        t, x = factor(k, k), result(k, k)
        flops = f * _width(row[k]) ** 3 / 3
        yield TileTask("copy", (t,), (x,), (1.0, "N", part), 0.0, out(k, k, True), passing(k, k))
        yield TileTask("trtri", (x,), (x,), (driver.uplo, driver.unit, row[k][0]), flops, (x,) if leaves else ())

    def update(i: int, k: int, j: int, last: bool, leaves: bool) -> Iterator[TileTask]:
        """``X_ij −= T_ik X_kj``; ``last`` use of T_ik in this step, ``leaves`` the last one of X_kj."""
        t, y, x = factor(i, k), result(k, j), result(i, j)
        drop = out(i, k, last) + ((y,) if leaves else ())
        forget = (*passing(i, k), y, x)
        if inverse and j == k:  # the first update, and X_kk is triangular itself
            flops = f * _area(y) * _width(row[i])
            yield TileTask("trmm", (y, t), (x,), ("R", driver.uplo, "N", False, -1.0), flops, drop, forget)
            return
        beta: complex = 1.0
        if k == 0:
            if copies:
                yield filled(x)
            else:
                beta = driver.alpha
        yield driver._gemm(t, y, x, (-1.0, beta), drop, forget)

    if driver.checks == "first":
        for k in range(rows):
            yield TileTask("check_diagonal", (factor(k, k),), (), (row[k][0],), 0.0, out(k, k, True), passing(k, k))
    for left in range(0, cols, w):
        right = min(left + w, cols)
        for top in range(left if inverse else 0, rows, h):
            bottom = min(top + h, rows)
            for k in range(left if inverse else 0, bottom):
                js = range(left, min(right, k + 1) if inverse else right)
                below = range(max(top, k + 1), bottom)
                if k >= top:
                    if driver.checks == "inline" and left == 0:
                        yield TileTask("check_diagonal", (factor(k, k),), (), (row[k][0],), 0.0, (), passing(k, k))
                    for j in js:
                        if inverse and j == k:
                            yield from invert(k, not below)
                        else:
                            yield from finish(k, j, j == js[-1], not below)
                if k < top and plan.variant == "panel of T":
                    for j in js:
                        for i in below:
                            yield from update(i, k, j, j == js[-1], i == below[-1])
                else:
                    for i in below:
                        for j in js:
                            yield from update(i, k, j, j == js[-1], i == below[-1])


class TriangularProductDriver(_TriangularDriver):
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
        row, column = self._spans(plan)
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
                            self._factor(row[i], row[k]),
                            self._other(_B, row[k], column[j]),
                            self._other(_X, row[i], column[j]),
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
                            flops = self._unit_flops * _area(t) * _width(column[j])
                            yield TileTask("trmm", (t, b), (c,), params, flops, drop, forget)
                        else:
                            yield self._gemm(t, b, c, (self.alpha, 1.0), drop, forget)


class TriangularGramDriver(_TriangularDriver):
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
        row, _ = self._spans(plan)
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
                        a, b = self._factor(row[i], row[k]), self._factor(row[j], row[k])
                        g = Tile(_X, *row[j], *row[i]) if self.forward else Tile(_X, *row[i], *row[j])
                        drop: tuple[Tile, ...] = (a,) if j == js[-1] else ()
                        if i == of_row[-1] and left > top:
                            drop += (b,)
                        if k == 0:
                            drop += (g,)
                        yield from self._begin(a, b, g, part, drop) if i == k else self._add(a, b, g, k == 0, drop)

    def _begin(self, a: Tile, b: Tile, g: Tile, part: str, drop: tuple[Tile, ...]) -> Iterator[TileTask]:
        """The first contribution to a tile: a triangular tile times a tile's adjoint."""
        flops = self._unit_flops * _area(a)
        if a == b:
            yield TileTask("copy", (a,), (g,), (1.0, "N", part), 0.0, (), (a,))
            params = ("R" if self.op == "N" else "L", self.uplo, "H", False, 1.0)
            whole = g not in drop  # more comes, and the last one mirrors the triangle
            rest = flops * _width((a.r0, a.r1)) / 3
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
        flops *= _area(b) // _width((a.r0, a.r1))
        yield TileTask("trmm", (a, source), (g,), params, flops, drop, (a, b))

    def _add(self, a: Tile, b: Tile, g: Tile, last: bool, drop: tuple[Tile, ...]) -> Iterator[TileTask]:
        """``G_ij += P_ik P_jkᴴ``."""
        flops = self._unit_flops * _area(a)
        if a == b:
            side = _width((a.r0, a.r1)) if self.op == "N" else _width((a.c0, a.c1))
            yield TileTask("rank_k", (a, g), (g,), (1.0, 1.0, self.op, True, last), flops * side, drop, (a,))
            return
        first, second = (b, a) if self.forward else (a, b)
        flags = ("N", "H") if self.op == "N" else ("H", "N")
        side = _width((b.r0, b.r1)) if self.op == "N" else _width((b.c0, b.c1))
        yield TileTask("gemm", (first, second, g), (g,), (1.0, 1.0, *flags), 2 * flops * side, drop, (a, b))


def _agree(*sides: tuple[int, int]) -> int:
    """The largest chunk side of those that divide one another; ones that span the whole (chunk, size) ask for nothing."""
    unit = 1
    for side, size in sides:
        if side < size and (unit % side == 0 or side % unit == 0):
            unit = max(unit, side)
    return unit


def _itemsize(store: TileStore) -> float:
    return 0.125 if store.dtype.kind == "b" else float(store.dtype.itemsize)


def _area(tile: Tile) -> int:
    return (tile.r1 - tile.r0) * (tile.c1 - tile.c0)


def _width(span: tuple[int, int]) -> int:
    return span[1] - span[0]
