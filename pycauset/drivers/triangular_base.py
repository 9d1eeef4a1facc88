"""What the triangular drivers share: positions, tiles, the problem as the planner sees it, and the operands."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pycauset.devices.base import Device
from pycauset.devices.rates import Rates
from pycauset.drivers.blocked import BlockedDriver, BlockedPlan, slot_bytes
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.streamer import has_no_chunks
from pycauset.drivers.task import Operand, Tile, TileTask
from pycauset.drivers.triangular_plan import TriangularProblem, plan_triangular
from pycauset.storage.base import TileJournal, TileStore
from pycauset.tiling import ceil_div

__all__ = ["FACTOR", "RESULT", "THIRD", "TriangularDriver", "area", "width"]

#: Numbers of the operands: T, the result, and right-hand sides that are an operand of their own.
FACTOR, RESULT, THIRD = 0, 1, 2


class TriangularDriver(BlockedDriver):
    """What the four share: positions, tiles, the problem as the planner sees it, and the operands."""

    kind = ""
    variants = ("panel of T", "panel of X")

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
            reached[RESULT] = reached[RESULT] and fills and self.journal is None
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
        """Whether tiles beside a triangular one must be transposed before they are multiplied with it."""
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
        copied = self.kind == "solve" and len(plan.slots) > THIRD
        made = [
            Operand(self._t, self.dtype, (b, b), plan.slots[FACTOR], "T"),
            Operand(
                self._x, self.dtype, shape, plan.slots[RESULT], "X", origin=None if copied else self.origin, journal=self.journal
            ),
        ]
        if len(plan.slots) > THIRD and third is not None:
            made.append(Operand(third, self.dtype, shape, plan.slots[THIRD], "B"))
        return made

    def _fitting_blocks(self, plan: BlockedPlan) -> Iterator[tuple[str, bool]]:
        rows, cols = (ceil_div(size, side) for size, side in zip(self.sizes, plan.tile, strict=True))
        h, w = plan.block
        tiles = rows * (rows + 1) // 2
        yield "tile", plan.tile[0] == plan.tile[1] or self.kind != "inverse"
        yield "block", 1 <= h <= rows and 1 <= w <= cols
        # One task takes a tile of T and two of the result; no planner asks for more than all tiles and two panels beside them.
        yield "slots", len(plan.slots) == 2 and 1 <= plan.slots[FACTOR] <= tiles + 3 * rows + 2
        yield "slots", min(2, rows) <= plan.slots[RESULT] <= rows * cols + 2 * cols + 4
        b, c = (min(side, size) for side, size in zip(plan.tile, self.sizes, strict=True))
        factor, result = (slot_bytes(b, side, self.dtype.itemsize) for side in (b, c))
        taken = plan.slots[RESULT] * result, plan.slots[FACTOR] * factor + plan.slots[RESULT] * result
        yield "device_bytes", plan.device_bytes in taken  # an array that kernels reach takes no slots

    # -- tiles by position ----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def tasks(self, plan: BlockedPlan) -> Iterator[TileTask]:
        """The tile tasks, in order."""

    def _span(self, position: int, plan: BlockedPlan) -> tuple[int, int]:
        """Rows of op(T) at a position."""
        n, b = self.sizes[0], plan.tile[0]
        index = position if self.forward else ceil_div(n, b) - 1 - position
        return index * b, min((index + 1) * b, n)

    def spans(self, plan: BlockedPlan) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Rows of op(T) by position, and columns of the other operand."""
        n, m = self.sizes
        b, c = plan.tile
        along = [self._span(position, plan) for position in range(ceil_div(n, b))]
        return along, [(j, min(j + c, m)) for j in range(0, m, c)]

    def factor(self, row: tuple[int, int], column: tuple[int, int]) -> Tile:
        """The tile of T, as stored, that couples result row ``l`` to row ``k``."""
        return Tile(FACTOR, *row, *column) if (self.op == "N") == (self.side == "L") else Tile(FACTOR, *column, *row)

    def other(self, operand: int, row: tuple[int, int], column: tuple[int, int]) -> Tile:
        """A tile of the result or of B."""
        return Tile(operand, *row, *column) if self.side == "L" else Tile(operand, *column, *row)

    def gemm(
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
        depth = width((other.r0, other.r1) if left else (other.c0, other.c1))
        flops = 2 * self.unit_flops * area(target) * depth
        return TileTask(
            "gemm", (*reads, target) if scalars[1] != 0 else reads, (target,), (*scalars, *flags), flops, drop, forget
        )

    @property
    def unit_flops(self) -> float:
        """Real floating-point operations of half a multiplication with addition."""
        return 4.0 if self.dtype.kind == "c" else 1.0


def _agree(*sides: tuple[int, int]) -> int:
    """The largest chunk side of those that divide one another; ones that span the whole (chunk, size) ask for nothing."""
    unit = 1
    for side, size in sides:
        if side < size and (unit % side == 0 or side % unit == 0):
            unit = max(unit, side)
    return unit


def _itemsize(store: TileStore) -> float:
    return 0.125 if store.dtype.kind == "b" else float(store.dtype.itemsize)


def area(tile: Tile) -> int:
    """Elements of a tile."""
    return (tile.r1 - tile.r0) * (tile.c1 - tile.c0)


def width(span: tuple[int, int]) -> int:
    """Length of a range of rows or columns."""
    return span[1] - span[0]
