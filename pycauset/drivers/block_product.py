"""BlockProductDriver: ``Y = op(A) X`` for a block X of a few vectors, and ``Z = op(A)ᴴ op(A) X`` in one pass over A.

Mathematics: with A cut into tiles, ``Y_i = Σ_j op(A)_ij X_j``. Of a matrix that equals ± its own (conjugate) transpose only
the tiles on and below the diagonal are read, and each one off it serves twice: ``Y_i += A_ij X_j`` and ``Y_j += ± A_ijᴴ X_i``.
The other product takes A in panels of rows of op(A): ``T_i = op(A)_i X``, then ``Z += op(A)_iᴴ T_i`` while the panel is resident.

Order: row by row. Of the tiles, as many as memory can hold stay there for good, spread evenly over the pass, and the others come
and go through a few slots: while a pass works on tiles that are there, those to come are on their way. The other product takes
every second pass backwards instead, so that the tiles that memory can hold serve two passes.

Bytes moved: A once, n²; with symmetry n²/2. X and Y stay where kernels reach them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pycauset.devices.base import Device
from pycauset.drivers.streamer import has_no_chunks
from pycauset.drivers.task import Operand, Tile, TileTask
from pycauset.errors import MemoryLimitError
from pycauset.hardware import cpu_info
from pycauset.storage.base import TileStore
from pycauset.tiling import Rect, ceil_div, round_up
from pycauset.units import format_bytes

__all__ = ["LOOKAHEAD", "MIRRORS", "BlockProductDriver", "BlockProductPlan"]

_A, _X, _Y, _Z = 0, 1, 2, 3
_SMALLEST: Final = 4 << 20
_PIECE: Final = 16 << 20
#: Rows and columns of a tile of an array without chunks; long rows are copied to a GPU at the link's full rate.
_FREE, _FREE_ON_GPU = 1024, 4096
#: Slots for tiles that come and go.
_AHEAD: Final = 3
#: Tasks of `Y = op(A) X` that must be known before the first starts: the driver itself says what stays.
LOOKAHEAD: Final = 2

#: How the tile above the diagonal follows from the one below: operation and factor.
MIRRORS: Final = {"symmetric": ("T", 1.0), "hermitian": ("H", 1.0), "skew": ("T", -1.0), "skew-hermitian": ("H", -1.0)}


@dataclass(frozen=True, slots=True)
class BlockProductPlan:
    """Tiles and slots of one product; ``disk_read`` is what a pass reads when no tile is left from the one before.

    Attributes
    ----------
    tile : (int, int)
        Largest tile of A.
    slots : (int, int)
        Slots for tiles of A, and for those of X and Y on a device that does not reach them.
    resident : int
        Tiles of A that stay from pass to pass.
    mirrored : bool
        Only one triangle is read.
    """

    tile: tuple[int, int]
    slots: tuple[int, int]
    resident: int
    mirrored: bool
    disk_read: int
    tasks: int
    device_bytes: int
    host_bytes: int
    host_slots: int
    host_slot_bytes: int


class BlockProductDriver:
    """The state machine of products with one matrix and blocks of up to ``width`` vectors.

    Parameters
    ----------
    a : TileStore
    x, y : TileStore
        Arrays in RAM of ``width`` columns, whose first columns each pass uses. With ``gram`` ``y`` holds ``op(A) X`` after it.
    dtype : dtype
        What kernels compute in.
    op : {"N", "T", "H"}
    mirror : str, optional
        One of `MIRRORS`: what A is known to be. Then ``op`` is "N".
    z : TileStore, optional
        Asks for ``Z = op(A)ᴴ op(A) X``.
    """

    def __init__(
        self,
        a: TileStore,
        x: TileStore,
        y: TileStore,
        dtype: np.dtype[Any],
        *,
        op: str = "N",
        mirror: str | None = None,
        z: TileStore | None = None,
    ) -> None:
        self.stores: Sequence[TileStore] = (a, x, y) if z is None else (a, x, y, z)
        self.dtype = np.dtype(dtype)
        self.op = op
        height, width = a.chunks
        free = has_no_chunks(a)
        self.mirror = mirror if mirror is not None and z is None and (free or height == width or min(a.shape) <= width) else None
        self.gram = z is not None
        self.width = x.shape[1]

    # -- planning -----------------------------------------------------------------------------------------------------

    def plan(self, device: Device, room: int, host_room: int = 0) -> BlockProductPlan:
        """Choose tiles and slots.

        Parameters
        ----------
        room, host_room : int
            Bytes for slots: at the device level, and (unless the device is unified) at the host level.

        Raises
        ------
        MemoryLimitError
            If two tiles do not fit.
        """
        a = self.stores[_A]
        m, n = a.shape
        size = self.dtype.itemsize
        reached = device.reaches(a, self.dtype)
        others = sum(
            0 if device.unified and device.reaches(s, self.dtype) else ceil_div(max(s.shape), 1) for s in self.stores[1:]
        )
        beside = others * self.width * size
        tile = self._tile((room - beside) // 3, _FREE if device.unified else _FREE_ON_GPU)
        rows, cols = ceil_div(m, tile[0]), ceil_div(n, tile[1])
        count = rows * (rows + 1) // 2 if self.mirror else rows * cols
        slot = round_up(tile[0] * tile[1] * size, 4096)
        small = round_up(max(tile) * self.width * size, 4096)
        vectors = 0 if device.unified else len(self.stores[1:]) * max(rows, cols)
        held = 0 if reached and device.unified else min(count + 1, (room - vectors * small) // slot)
        if held < 2 and not (reached and device.unified):
            raise MemoryLimitError(
                f"tiles of {tile[0]} x {tile[1]} {self.dtype} take {format_bytes(slot)}, and two of them beside the "
                f"vectors do not fit in the {format_bytes(room)} left; raise it, or store the matrix in smaller chunks"
            )
        host_slots = host_slot = 0
        if not device.unified:
            pieces = min(max(a.chunks[0] * a.chunks[1] * size, 1 << 20), _PIECE)
            host_slot = round_up(min(slot, pieces), 4096)
            if not has_no_chunks(a) and a.whole_chunks:
                host_slot = slot
            least = ceil_div(max(slot, small), host_slot) * 2 + 2
            host_slots = max(least, min(64, host_room // host_slot))
            if host_slots * host_slot > host_room:
                raise MemoryLimitError(
                    f"{host_slots} host slots of {format_bytes(host_slot)} do not fit in the {format_bytes(host_room)} left"
                )
        share = count / max(rows * cols, 1)
        per_tile = 2 if self.mirror or self.gram else 1
        return BlockProductPlan(
            tile,
            (int(held), vectors),
            count if held > count else max(0, int(held) - (self.readers(device) if device.unified else 0) - _AHEAD),
            self.mirror is not None,
            int(m * n * a.dtype.itemsize * share),
            count * per_tile,
            int(held) * slot + vectors * small,
            host_slots * host_slot,
            host_slots,
            host_slot,
        )

    def _tile(self, most: int, free: int) -> tuple[int, int]:
        """Whole chunks of a few megabytes, or ``free`` rows and columns of an array; parts of that where memory is short."""
        a = self.stores[_A]
        m, n = max(a.shape[0], 1), max(a.shape[1], 1)
        size = self.dtype.itemsize
        height, width = (free, free) if has_no_chunks(a) else (min(a.chunks[0], m), min(a.chunks[1], n))
        if self.mirror:
            height = width = max(height, width)
        while height * width * size < _SMALLEST and (height < m or width < n) and 4 * height * width * size <= most:
            height, width = 2 * height, 2 * width
        while height * width * size > most and not a.whole_chunks and height * width > 1:
            if self.mirror:
                height = width = ceil_div(height, 2)
            elif height > 1:
                height = ceil_div(height, 2)
            else:
                width = ceil_div(width, 2)
        return min(height, m), min(width, n)

    # -- what the streamer is built from ------------------------------------------------------------------------------

    def operands(self, plan: BlockProductPlan) -> list[Operand]:
        """A and the blocks as the streamer takes them."""
        held, vectors = plan.slots
        side = max(plan.tile)
        blocks = (Operand(store, self.dtype, (side, self.width), vectors, "X") for store in self.stores[1:])
        return [Operand(self.stores[_A], self.dtype, plan.tile, held, "A"), *blocks]

    def readers(self, device: Device) -> int:
        """Threads that fetch tiles."""
        return max(2, min(8, cpu_info().cores // 2))

    def writers(self, device: Device) -> int:
        """Threads that write tiles."""
        return 1

    # -- tasks --------------------------------------------------------------------------------------------------------

    def tasks(self, plan: BlockProductPlan, columns: int, *, backwards: bool = False) -> Iterator[TileTask]:
        """One pass over A, for the first ``columns`` vectors."""
        rows, cols = self._grid(plan)
        places = sorted({*rows, *cols})
        ends = tuple(Tile(i, *place, 0, columns) for i in range(1, len(self.stores)) for place in places)
        last: TileTask | None = None
        for task in self._panels(plan, columns, backwards) if self.gram else self._rows(plan, columns):
            if last is not None:
                yield last
            last = task
        if last is not None:  # the next pass brings other vectors
            yield last._replace(drop=last.drop + ends)

    def _grid(self, plan: BlockProductPlan) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        (m, n), (h, w) = self.stores[_A].shape, plan.tile
        return [(r, min(r + h, m)) for r in range(0, m, h)], [(c, min(c + w, n)) for c in range(0, n, w)]

    def _rows(self, plan: BlockProductPlan, columns: int) -> Iterator[TileTask]:
        rows, cols = self._grid(plan)
        a = self.stores[_A]
        begun: set[Tile] = set()

        def product(
            tile: Tile, source: tuple[int, int], target: tuple[int, int], op: str, alpha: float, drop: tuple[Tile, ...]
        ) -> TileTask:
            x, y = Tile(_X, *source, 0, columns), Tile(_Y, *target, 0, columns)
            beta = 1.0 if y in begun else 0.0
            begun.add(y)
            reads = (tile, x, y) if beta else (tile, x)
            # X changes from pass to pass: no level below the device may keep it.
            return TileTask("gemm", reads, (y,), (alpha, beta, op, "N"), self._flops(tile, columns), drop, (x,))

        number, total = 0, len(rows) * (len(rows) + 1) // 2 if self.mirror else len(rows) * len(cols)
        for i in range(len(rows)):
            for j in range(i + 1) if self.mirror else range(len(cols)):
                number += 1
                stays = number * plan.resident // total > (number - 1) * plan.resident // total
                tile = Tile(_A, *rows[i], *cols[j])
                if a.is_zero(tile.rect):
                    continue
                twice = self.mirror is not None and i != j
                drop = () if stays else (tile,)
                ends = (cols[j], rows[i]) if self.op == "N" else (rows[i], cols[j])
                yield product(tile, *ends, self.op, 1.0, () if twice else drop)
                if self.mirror and twice:
                    op, factor = MIRRORS[self.mirror]
                    yield product(tile, rows[i], cols[j], op, factor, drop)
        for place in rows if self.op == "N" else cols:  # nothing but zeros there
            y = Tile(_Y, *place, 0, columns)
            if y not in begun:
                yield TileTask("scale", (), (y,), (0.0,))

    def _panels(self, plan: BlockProductPlan, columns: int, backwards: bool) -> Iterator[TileTask]:
        rows, cols = self._grid(plan)
        plain = self.op == "N"
        panels, across = (rows, cols) if plain else (cols, rows)
        a = self.stores[_A]
        begun: set[Tile] = set()
        forth, back = (self.op, "H") if plain else (self.op, "N")
        turn = backwards
        for panel in panels[:: -1 if backwards else 1]:
            y = Tile(_Y, *panel, 0, columns)
            tiles = [Tile(_A, *panel, *c) if plain else Tile(_A, *c, *panel) for c in across]
            there = [(t, c) for t, c in zip(tiles, across, strict=True) if not a.is_zero(t.rect)][:: -1 if turn else 1]
            for number, (tile, c) in enumerate(there):
                x = Tile(_X, *c, 0, columns)
                reads = (tile, x, y) if number else (tile, x)
                yield TileTask("gemm", reads, (y,), (1.0, float(number > 0), forth, "N"), self._flops(tile, columns), forget=(x,))
            if not there:
                yield TileTask("scale", (), (y,), (0.0,))
            for tile, c in there[::-1]:
                z = Tile(_Z, *c, 0, columns)
                reads = (tile, y, z) if z in begun else (tile, y)
                yield TileTask("gemm", reads, (z,), (1.0, float(z in begun), back, "N"), self._flops(tile, columns))
                begun.add(z)
            turn = not turn
        for c in across:
            z = Tile(_Z, *c, 0, columns)
            if z not in begun:
                yield TileTask("scale", (), (z,), (0.0,))

    def _flops(self, tile: Tile, columns: int) -> float:
        return (8.0 if self.dtype.kind == "c" else 2.0) * tile.shape[0] * tile.shape[1] * columns

    def first_unfit(self, plan: BlockProductPlan) -> Iterator[Rect]:
        """The tiles of A that a pass reads, for looking at them one by one."""
        rows, cols = self._grid(plan)
        for i, r in enumerate(rows):
            for j, c in enumerate(cols):
                if not (self.mirror and j > i):
                    yield Rect(*r, *c)
