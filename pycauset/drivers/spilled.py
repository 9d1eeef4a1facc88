"""SpilledBasis: the basis of a Krylov space in stores on disk, streamed through a few tiles in memory.

V lies in tiles of so many rows and a block of columns; a block that is narrower leaves the rest of its tiles zero. With W a block
of vectors in memory, ``Vᴴ W`` sums ``V_isᴴ W_i`` over the row bands i, and ``W - V C`` subtracts ``V_is C_s``; every second
sweep runs backwards, so that the tiles that memory holds serve two. A restart writes ``V Z`` to a new store, band by band, with
all tiles of a band in memory at once, and removes the old one.

Bytes moved: all of V for each sweep. A step of the driver takes four sweeps, a restart reads V once and writes what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import numpy as np

from pycauset.devices.base import Device, MemoryScope
from pycauset.drivers.arnoldi_plan import ArnoldiPlan
from pycauset.drivers.basis import Basis
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.drivers.task import Operand, Tile, TileTask
from pycauset.errors import MemoryLimitError
from pycauset.storage.array import ArrayStore
from pycauset.storage.base import TileStore
from pycauset.storage.direct import ALIGNMENT, aligned_empty
from pycauset.tiling import Rect, ceil_div, round_up
from pycauset.units import format_bytes

__all__ = ["SpillPlan", "SpilledBasis", "plan_spill"]

Array = np.ndarray[Any, Any]

_V, _W, _C = 0, 1, 2
_TILE: Final = 4 << 20
_READERS: Final = 2
_BUFFERS: Final = _READERS + 2  # of the threads, for tiles that cannot be moved directly
_LEAST_ROWS: Final = 16


@dataclass(frozen=True, slots=True)
class SpillPlan:
    """Tiles of a basis on disk.

    Attributes
    ----------
    rows, block : int
        Of one tile.
    columns : int
        Blocks of columns of the store.
    slots : int
        Tiles that memory holds.
    slot_bytes, fixed_bytes : int
        For the slots and the buffers of threads, and for two blocks of vectors and coefficients.
    """

    rows: int
    block: int
    columns: int
    slots: int
    slot_bytes: int
    fixed_bytes: int


def plan_spill(plan: ArnoldiPlan, dtype: np.dtype[Any], width: int, room: int) -> SpillPlan:
    """Choose tiles for a basis on disk.

    Parameters
    ----------
    width : int
        Most vectors that are multiplied at once.
    room : int
        Bytes.

    Raises
    ------
    MemoryLimitError
        If the tiles of a band of a few rows do not fit.

    Examples
    --------
    >>> plan = ArnoldiPlan(10**6, 8, 24, 480, 10**6 * 504 * 8)
    >>> spill = plan_spill(plan, np.dtype(float), 24, 10**9)
    >>> spill.rows * spill.block * 8, spill.slots
    (4128768, 144)
    """
    n, block, size = plan.n, plan.block, dtype.itemsize
    columns = ceil_div(plan.ncv, block) + 3
    fixed = 2 * n * width * size + columns * block * (columns * block + width) * size
    left = max(room - fixed - 3 * _BUFFERS * ALIGNMENT, 0)
    most = left // (columns + 2 + _BUFFERS)
    rows = min(n, max(min(_TILE, most - most % ALIGNMENT) // (block * size), min(1, most // ALIGNMENT)))
    if rows < min(n, _LEAST_ROWS):
        raise MemoryLimitError(
            f"a basis of {columns} x {block} columns of {n} {dtype} on disk needs {format_bytes(fixed)} and a few rows of all "
            f"columns in memory, more than the {format_bytes(room)} left; raise the limit, or lower ncv or block_size"
        )
    line = ALIGNMENT // size
    rows = n if rows >= n else max(rows - rows % line, min(rows, line))
    one = round_up(rows * block * size, ALIGNMENT)
    slots = min(left // one - _BUFFERS, columns * ceil_div(n, rows) + 2)
    return SpillPlan(rows, block, columns, slots, (slots + _BUFFERS) * one + 3 * _BUFFERS * ALIGNMENT, fixed)


class SpilledBasis(Basis):
    """Columns on disk.

    Parameters
    ----------
    plan : SpillPlan
    n : int
    dtype : dtype
    width : int
        Most vectors that are multiplied at once.
    where : Device
        The CPU.
    scope : MemoryScope
        Grants the memory.
    make : callable
        ``make(shape, chunks)`` gives a store for the columns, which is gone when it is closed.
    """

    def __init__(
        self,
        plan: SpillPlan,
        n: int,
        dtype: np.dtype[Any],
        width: int,
        where: Device,
        scope: MemoryScope,
        make: Callable[[tuple[int, int], tuple[int, int]], TileStore],
    ) -> None:
        self.plan, self.n, self.dtype = plan, n, np.dtype(dtype)
        self.sweeps = 0
        self._backwards = True
        self._where, self._scope, self._make = where, scope, make
        self._streamer: AsyncStreamer | None = None
        self._ticket = scope.require("host", plan.fixed_bytes, owner="blocks of vectors beside a basis on disk")
        self._work = np.zeros((n, width), self.dtype)
        self._coefficients = np.zeros((plan.columns * plan.block, width), self.dtype)
        self._tail: tuple[int, Array] | None = None
        try:
            self._open(self._new_store(), [])
        except BaseException:
            self._ticket.release()
            raise

    # -- columns ------------------------------------------------------------------------------------------------------

    def block(self, start: int, stop: int) -> Array:
        if self._tail is not None and (start, stop) == (self._tail[0], self._tail[0] + self._tail[1].shape[1]):
            return self._tail[1]
        out = np.empty((self.n, stop - start), self.dtype)
        whole = aligned_empty((self.n, self.plan.block), self.dtype)
        at = 0
        for number, count in enumerate(self._widths):
            lo, hi = max(start, at), min(stop, at + count)
            if lo < hi:
                self._store.read(self._rect(number), whole)
                out[:, lo - start : hi - start] = whole[:, lo - at : hi - at]
            at += count
        return out

    def put(self, start: int, q: Array) -> None:
        block, width = self.plan.block, q.shape[1]
        for first in range(0, width, block):
            part = q[:, first : first + block]
            data = np.ascontiguousarray(part)
            if part.shape[1] < block:
                data = np.zeros((self.n, block), self.dtype)
                data[:, : part.shape[1]] = part
            self._store.write(self._rect(len(self._widths)), data)
            self._widths.append(part.shape[1])
        self._tail = (start, np.array(q))

    def inner(self, count: int, w: Array) -> Array:
        p = w.shape[1]
        if count and p:
            self._work[:, :p] = w
            self._sweep(self._inner_tasks(p))
        return self._coefficients[self._places(count), :p]

    def subtract(self, count: int, w: Array, c: Array) -> Array:
        p = w.shape[1]
        if not (count and p):
            return np.array(w)
        self._work[:, :p] = w
        self._spread(c)
        self._sweep(self._update_tasks(p, -1.0, True))
        return self._work[:, :p].copy()

    def times(self, y: Array) -> Array:
        out = np.empty((self.n, y.shape[1]), self.dtype)
        step = self._work.shape[1]
        for first in range(0, y.shape[1], step):
            part = y[:, first : first + step]
            self._spread(part)
            self._sweep(self._update_tasks(part.shape[1], 1.0, False))
            out[:, first : first + step] = self._work[:, : part.shape[1]]
        return out

    def rotate(self, z: Array, tail: int) -> None:
        plan, keep = self.plan, z.shape[1]
        behind = self.block(len(z), len(z) + tail) if tail else None
        targets = ceil_div(keep, plan.block)
        turn = np.zeros((len(self._widths) * plan.block, targets * plan.block), self.dtype)
        turn[self._places(len(z)), :keep] = z
        sources = len(self._widths)
        old, new = self._store, None
        self._stop()
        try:
            new = self._new_store()
            operands = [self._operand(old), self._operand(new), Operand(ArrayStore(turn), self.dtype, turn.shape, 0, "Z")]
            with self._streamer_of(operands) as streamer:
                streamer.run(self._rotation(sources, targets))
        except BaseException:
            if new is not None:
                new.close()
            raise
        finally:
            old.close()
        self.sweeps += 1
        widths = [min(plan.block, keep - first) for first in range(0, keep, plan.block)]
        self._open(new, widths)
        if behind is not None:
            self.put(keep, behind)

    def clear(self) -> None:
        self._widths.clear()
        self._tail = None

    def close(self) -> None:
        self.__exit__(None, None, None)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._stop(kind, error, trace)
        finally:
            self._store.close()
            self._ticket.release()

    # -- tasks --------------------------------------------------------------------------------------------------------

    def _inner_tasks(self, p: int) -> Iterator[TileTask]:
        bands, numbers = self._order()
        for count, band in enumerate(bands):
            w = Tile(_W, *band, 0, p)
            for s in numbers:
                v, c = self._tile(_V, band, s), self._coefficient(s, p)
                yield TileTask("gemm", (v, w, c) if count else (v, w), (c,), (1.0, float(count > 0), "H", "N"))

    def _update_tasks(self, p: int, alpha: float, onto: bool) -> Iterator[TileTask]:
        bands, numbers = self._order()
        for band in bands:
            w = Tile(_W, *band, 0, p)
            for count, s in enumerate(numbers):
                v, c = self._tile(_V, band, s), self._coefficient(s, p)
                more = onto or count > 0
                yield TileTask("gemm", (v, c, w) if more else (v, c), (w,), (alpha, float(more), "N", "N"))

    def _rotation(self, sources: int, targets: int) -> Iterator[TileTask]:
        block = self.plan.block
        for band in self._bands():
            for t in range(targets):
                new = self._tile(1, band, t)
                for s in range(sources):
                    v, z = self._tile(_V, band, s), Tile(2, s * block, (s + 1) * block, t * block, (t + 1) * block)
                    drop = ((v,) if t == targets - 1 else ()) + ((new,) if s == sources - 1 else ())
                    yield TileTask("gemm", (v, z, new) if s else (v, z), (new,), (1.0, float(s > 0), "N", "N"), drop=drop)

    def _bands(self) -> list[tuple[int, int]]:
        return [(r, min(r + self.plan.rows, self.n)) for r in range(0, self.n, self.plan.rows)]

    def _order(self) -> tuple[list[tuple[int, int]], list[int]]:
        self._backwards = not self._backwards
        step = -1 if self._backwards else 1
        return self._bands()[::step], list(range(len(self._widths)))[::step]

    def _tile(self, operand: int, band: tuple[int, int], s: int) -> Tile:
        return Tile(operand, *band, s * self.plan.block, (s + 1) * self.plan.block)

    def _coefficient(self, s: int, p: int) -> Tile:
        return Tile(_C, s * self.plan.block, (s + 1) * self.plan.block, 0, p)

    # -- the store and what streams it --------------------------------------------------------------------------------

    def _places(self, count: int) -> list[int]:
        """Rows of the coefficients that belong to the first ``count`` columns."""
        block = self.plan.block
        return [s * block + i for s, width in enumerate(self._widths) for i in range(width)][:count]

    def _spread(self, c: Array) -> None:
        self._coefficients[:, : c.shape[1]] = 0
        self._coefficients[self._places(len(c)), : c.shape[1]] = c

    def _sweep(self, tasks: Iterator[TileTask]) -> None:
        assert self._streamer is not None
        for task in tasks:
            self._streamer.submit(task)
        self._streamer.flush()
        self.sweeps += 1

    def _rect(self, number: int) -> Rect:
        return Rect(0, self.n, number * self.plan.block, (number + 1) * self.plan.block)

    def _new_store(self) -> TileStore:
        plan = self.plan
        return self._make((self.n, plan.columns * plan.block), (plan.rows, plan.block))

    def _operand(self, store: TileStore) -> Operand:
        return Operand(store, self.dtype, (self.plan.rows, self.plan.block), self.plan.slots, "V")

    def _streamer_of(self, operands: list[Operand]) -> AsyncStreamer:
        return AsyncStreamer(self._where, operands, self._scope, readers=_READERS, writers=1)

    def _open(self, store: TileStore, widths: list[int]) -> None:
        self._store, self._widths, self._tail, self._backwards = store, widths, None, True
        others = [Operand(ArrayStore(x), self.dtype, x.shape, 0, "W") for x in (self._work, self._coefficients)]
        streamer = self._streamer_of([self._operand(store), *others])
        try:
            self._streamer = streamer.__enter__()
        except BaseException:
            store.close()
            raise

    def _stop(self, *error: Any) -> None:
        streamer, self._streamer = self._streamer, None
        if streamer is not None:
            streamer.__exit__(*(error or (None, None, None)))
