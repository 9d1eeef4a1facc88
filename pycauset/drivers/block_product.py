"""BlockProductDriver: ``Y = op(A) X`` for a block X of a few vectors, and ``Z = op(A)ᴴ op(A) X`` in one pass over A.

Mathematics: with A cut into tiles, ``Y_i = Σ_j op(A)_ij X_j``. Of a matrix that equals ± its own (conjugate) transpose only
the tiles on and below the diagonal are read, cut off at it, and their columns before it serve twice: ``Y_i += A_ij X_j`` and
``Y_j += ± A_ijᴴ X_i``.
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
from pycauset.tiling import Rect, ceil_div, cut, round_up
from pycauset.units import format_bytes

__all__ = ["LOOKAHEAD", "MIRRORS", "BlockProductDriver", "BlockProductPlan"]

_A, _X, _Y, _Z = 0, 1, 2, 3
_SMALLEST: Final = 4 << 20
_PIECE: Final = 16 << 20
#: Rows and columns of a tile of an array without chunks.
_FREE: Final = 1024
#: The same for a GPU: rows, and bytes of a row. While kernels read GPU memory, rows of 32 KiB reach an H200 at 88 % of the
#: link's rate, rows of 64 KiB at all of it; alone both do.
_ROWS_ON_GPU, _ROW_BYTES_ON_GPU = 2048, 64 << 10
#: Rows of a tile, and bytes of one, down to which it is made smaller so that a panel of tiles fits: rows of 16 KiB take the link
#: 1.6 times as long as those of 64 KiB, and a panel that does not fit takes it twice.
_FEWEST, _SHORTEST = 128, 16 << 10
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
    slots : int
        Slots for tiles of A. Every tile of X, Y and Z has one of its own, on a device that does not reach them.
    resident : int
        Tiles of A that stay from pass to pass.
    """

    tile: tuple[int, int]
    slots: int
    resident: int
    disk_read: int
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
        size = self.dtype.itemsize
        reached = device.unified and device.reaches(a, self.dtype)
        beside = sum(
            s.shape[0] * self.width * size for s in self.stores[1:] if not (device.unified and device.reaches(s, self.dtype))
        )
        tile = self._tile((room - beside) // 3, device)
        count, elements = self._count(tile)
        slot = round_up(tile[0] * tile[1] * size, 4096)
        sides = [] if device.unified else self._sides(tile)
        small = [round_up(side * self.width * size, 4096) for _, side in sides]
        vectors = sum(ceil_div(rows, side) * nbytes for (rows, side), nbytes in zip(sides, small, strict=True))
        held = 0 if reached else min(count + 1, (room - vectors) // slot)
        if held < 2 and not reached:
            raise MemoryLimitError(
                f"tiles of {tile[0]} x {tile[1]} {self.dtype} take {format_bytes(slot)}, and two of them beside the "
                f"vectors do not fit in the {format_bytes(room)} left; raise it, or store the matrix in smaller chunks"
            )
        host_slots = host_slot = 0
        if not device.unified:
            chunk = a.chunks[0] * a.chunks[1] * size
            free = has_no_chunks(a)
            piece = max(chunk, 1 << 20) if free else chunk
            host_slot = round_up(min(slot, piece if a.whole_chunks and not free else min(piece, _PIECE)), 4096)
            parts = len(cut(Rect(0, tile[0], 0, tile[1]), None if free else a.chunks, size, host_slot))
            least = max(parts, *(ceil_div(nbytes, host_slot) for nbytes in small)) * 2 + 2
            host_slots = max(least, min(64, host_room // host_slot))
            if host_slots * host_slot > host_room:
                raise MemoryLimitError(
                    f"{host_slots} host slots of {format_bytes(host_slot)} do not fit in the {format_bytes(host_room)} left"
                )
        return BlockProductPlan(
            tile,
            int(held),
            count if held > count else max(0, int(held) - (self.readers(device) if device.unified else 0) - _AHEAD),
            elements * a.dtype.itemsize,
            host_slots,
            host_slot,
        )

    def _tile(self, most: int, device: Device) -> tuple[int, int]:
        """Whole chunks of a few megabytes, or what suits the device of an array; parts of that where memory is short."""
        a = self.stores[_A]
        m, n = max(a.shape[0], 1), max(a.shape[1], 1)
        size = self.dtype.itemsize
        free = has_no_chunks(a)
        on_gpu = free and not device.unified
        if not free:
            height, width = a.chunks
        else:
            height, width = (_ROWS_ON_GPU, _ROW_BYTES_ON_GPU // size) if on_gpu else (_FREE, _FREE)
        square = self.mirror and not free and width < n  # a chunk is not cut by the diagonal of another
        if square:
            height = width = max(height, width)
        height, width = min(height, m), min(width, n)
        while height * width * size < _SMALLEST and (height < m or width < n) and 4 * height * width * size <= most:
            height, width = min(2 * height, m), min(2 * width, n)
        if on_gpu and self.gram:
            height, width = self._thin((height, width), 3 * most)
        while height * width * size > most and not a.whole_chunks and height * width > 1:
            if square:
                height = width = ceil_div(height, 2)
            elif height > 1:
                height = ceil_div(height, 2)
            else:
                width = ceil_div(width, 2)
        return height, width

    def _thin(self, tile: tuple[int, int], room: int) -> tuple[int, int]:
        """A smaller tile, with which a panel of op(A) fits and so serves twice; the same if there is none that is any good."""
        (m, n), (h, w), size = self.stores[_A].shape, tile, self.dtype.itemsize
        if self.op == "N":
            while h > _FEWEST and ceil_div(n, w) * h * w * size > room:
                h = ceil_div(h, 2)
            return (h, w) if ceil_div(n, w) * h * w * size <= room else tile
        while w * size > _SHORTEST and ceil_div(m, h) * h * w * size > room:
            w = ceil_div(w, 2)
        return (h, w) if ceil_div(m, h) * h * w * size <= room else tile

    def _count(self, tile: tuple[int, int]) -> tuple[int, int]:
        """How many tiles there are, and the elements that they have together, without making them."""
        (m, n), (h, w) = self.stores[_A].shape, tile
        if not self.mirror:
            return ceil_div(m, h) * ceil_div(n, w), m * n
        whole, rest = divmod(n, h)
        elements = h * h * whole * (whole + 1) // 2 + rest * n
        if n <= w:
            return ceil_div(n, h), elements
        # The first w / h rows of tiles have one tile, the next two, and so on.
        steps, more = divmod(whole, w // h)
        return w // h * steps * (steps + 1) // 2 + more * (steps + 1) + (ceil_div(n, w) if rest else 0), elements

    def _tiles(self, tile: tuple[int, int]) -> Iterator[Tile]:
        """Tiles of A, row by row: all of them, or those up to the diagonal, cut off where the rows meet it."""
        (m, n), (h, w) = self.stores[_A].shape, tile
        for r in range(0, m, h):
            r1 = min(r + h, m)
            end = r1 if self.mirror else n
            for c in range(0, end, w):
                yield Tile(_A, r, r1, c, min(c + w, end))

    def _sides(self, tile: tuple[int, int]) -> list[tuple[int, int]]:
        """The rows of X, of Y and of Z, and how many a tile of each has: as many as the side of a tile of A that it meets.

        Next to one triangle vectors are met by rows and by columns of tiles: then theirs are as long as a tile of A is wide, and
        rows of tiles, of which a whole number makes that width, meet a piece of one.
        """
        (m, n), (h, w) = self.stores[_A].shape, tile
        if self.mirror:
            assert n <= w or w % h == 0, "rows of tiles would meet two tiles of vectors"
            return [(n, w), (n, w)]
        down, across = (m, h), (n, w)
        sides = [across, down, across] if self.op == "N" else [down, across, down]
        return sides[: len(self.stores) - 1]

    # -- what the streamer is built from ------------------------------------------------------------------------------

    def operands(self, plan: BlockProductPlan) -> list[Operand]:
        """A and the blocks as the streamer takes them."""
        blocks = [
            Operand(store, self.dtype, (side, self.width), ceil_div(rows, side), name)
            for store, (rows, side), name in zip(self.stores[1:], self._sides(plan.tile), "XYZ", strict=False)
        ]
        return [Operand(self.stores[_A], self.dtype, plan.tile, plan.slots, "A"), *blocks]

    def readers(self, device: Device) -> int:
        """Threads that fetch tiles."""
        return max(2, min(8, cpu_info().cores // 2))

    def writers(self, device: Device) -> int:
        """Threads that write tiles."""
        return 1

    # -- tasks --------------------------------------------------------------------------------------------------------

    def tasks(self, plan: BlockProductPlan, columns: int, *, backwards: bool = False) -> Iterator[TileTask]:
        """One pass over A, for the first ``columns`` vectors."""
        vectors = tuple(tile for tiles in self._vectors(plan, columns) for tile in tiles)
        last: TileTask | None = None
        for task in self._panels(plan, columns, backwards) if self.gram else self._rows(plan, columns):
            if last is not None:
                yield last
            last = task
        if last is not None:  # the next pass brings other vectors
            yield last._replace(drop=last.drop + vectors)

    def _vectors(self, plan: BlockProductPlan, columns: int) -> list[list[Tile]]:
        """The tiles of X, of Y and of Z."""
        return [
            [Tile(i, r, min(r + side, rows), 0, columns) for r in range(0, rows, side)]
            for i, (rows, side) in enumerate(self._sides(plan.tile), start=_X)
        ]

    def _rows(self, plan: BlockProductPlan, columns: int) -> Iterator[TileTask]:
        a, vectors = self.stores[_A], self._vectors(plan, columns)
        begun: set[Tile] = set()

        def product(
            tile: Tile, cols: int, source: int, target: int, op: str, alpha: float, drop: tuple[Tile, ...]
        ) -> Iterator[TileTask]:
            """Multiply the first ``cols`` columns of a tile by X from row ``source`` on, and add that to Y from ``target`` on."""
            x, y = (tiles[at // tiles[0].shape[0]] for tiles, at in zip(vectors, (source, target), strict=True))
            if y not in begun:  # each task writes a piece of it
                begun.add(y)
                yield TileTask("scale", (), (y,), (0.0,))
            params = (alpha, 1.0, op, "N", cols, source - x.r0, target - y.r0)
            # X changes from pass to pass: no level below the device may keep it.
            yield TileTask("gemm", (tile, x, y), (y,), params, self._flops(tile.shape[0], cols, columns), drop, (x,))

        staying = self._staying(plan)
        for tile in self._tiles(plan.tile):
            if a.is_zero(tile.rect):
                continue
            drop = () if tile in staying else (tile,)
            source, target = (tile.c0, tile.r0) if self.op == "N" else (tile.r0, tile.c0)
            mirrored = max(0, min(tile.c1, tile.r0) - tile.c0) if self.mirror else 0  # columns that serve twice
            yield from product(tile, tile.shape[1], source, target, self.op, 1.0, () if mirrored else drop)
            if self.mirror and mirrored:
                op, factor = MIRRORS[self.mirror]
                yield from product(tile, mirrored, target, source, op, factor, drop)
        for y in vectors[1]:
            if y not in begun:  # nothing but zeros there
                yield TileTask("scale", (), (y,), (0.0,))

    def _staying(self, plan: BlockProductPlan) -> set[Tile]:
        """The tiles that stay, of those that fill their slots first: evenly spread, but a pass begins with one that comes."""
        tiles = list(self._tiles(plan.tile))
        whole = [tile for tile in tiles if tile.shape == plan.tile]
        ragged = [tile for tile in tiles if tile.shape != plan.tile]
        first = min(plan.resident, len(whole))
        groups = (whole, first), (ragged, plan.resident - first)
        return {group[((i + 1) * len(group) - 1) // stay] for group, stay in groups for i in range(stay)}

    def _panels(self, plan: BlockProductPlan, columns: int, backwards: bool) -> Iterator[TileTask]:
        plain = self.op == "N"
        across, panels, _ = self._vectors(plan, columns)
        a = self.stores[_A]
        begun: set[Tile] = set()
        forth, back = (self.op, "H") if plain else (self.op, "N")
        turn = backwards
        for y in panels[:: -1 if backwards else 1]:
            panel = y.r0, y.r1
            tiles = [Tile(_A, *panel, x.r0, x.r1) if plain else Tile(_A, x.r0, x.r1, *panel) for x in across]
            there = [(t, x) for t, x in zip(tiles, across, strict=True) if not a.is_zero(t.rect)][:: -1 if turn else 1]
            for number, (tile, x) in enumerate(there):
                reads = (tile, x, y) if number else (tile, x)
                flops = self._flops(*tile.shape, columns)
                yield TileTask("gemm", reads, (y,), (1.0, float(number > 0), forth, "N"), flops, forget=(x,))
            if not there:
                yield TileTask("scale", (), (y,), (0.0,))
            for tile, x in there[::-1]:
                z = x._replace(operand=_Z)
                reads = (tile, y, z) if z in begun else (tile, y)
                flops = self._flops(*tile.shape, columns)
                yield TileTask("gemm", reads, (z,), (1.0, float(z in begun), back, "N"), flops)
                begun.add(z)
            turn = not turn
        for x in across:
            z = x._replace(operand=_Z)
            if z not in begun:
                yield TileTask("scale", (), (z,), (0.0,))

    def _flops(self, rows: int, cols: int, columns: int) -> float:
        return (8.0 if self.dtype.kind == "c" else 2.0) * rows * cols * columns

    def first_unfit(self, plan: BlockProductPlan) -> Iterator[Rect]:
        """The tiles of A that a pass reads, for looking at them one by one."""
        return (tile.rect for tile in self._tiles(plan.tile))
