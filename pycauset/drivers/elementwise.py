"""Elementwise maps and reductions on matrices larger than memory: each tile is read once, used, and forgotten.

Maps: ``C = f(op(A), op(B))`` tile by tile, where op is N (as stored), T, H or C (conjugated) and an operand with one
row or column is repeated, as in NumPy. Reductions: each tile adds to *partial results*, a small store in RAM that the
caller combines. With nothing to reuse there is nothing to plan but the shape of a tile: whole chunks of the output if
it is on disk (so that each chunk is written once), else of the first operand on disk.

Bytes moved: every stored input element once, every output element once. Matrices that all lie in RAM are worked on in
place, in the caller's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pycauset.devices.base import Device
from pycauset.devices.elementwise import BAND_BYTES
from pycauset.drivers.slots import temporary_bytes
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.drivers.task import Operand, Tile, TileTask
from pycauset.governor.scope import Scope
from pycauset.storage.array import ArrayStore
from pycauset.storage.base import TileStore
from pycauset.tiling import Rect, ceil_div, round_up

__all__ = ["MapDriver", "ReduceDriver", "Term", "run"]

_READERS: Final = 2
_WRITERS: Final = 1
_SLOTS: Final = 4  # one at work, one ready, one for each reader
_SMALLEST, _LARGEST = 1 << 20, 16 << 20  # bytes of a tile, as far as chunks and memory allow
_MOST: Final = 256 << 20  # bytes of all slots: more would not be faster


@dataclass(frozen=True, slots=True)
class Term:
    """``op(store)`` as an operand of a map; op is N, T, H (conjugate transpose) or C (conjugate)."""

    store: TileStore
    op: str = "N"

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.store.shape
        return (cols, rows) if self.op in "TH" else (rows, cols)

    @property
    def chunks(self) -> tuple[int, int]:
        """Chunks in the orientation of ``op(store)``."""
        rows, cols = self.store.chunks
        return (cols, rows) if self.op in "TH" else (rows, cols)

    def rect(self, rect: Rect) -> Rect:
        """The stored elements that ``rect`` of the result needs."""
        rows, cols = self.shape
        rect = Rect(*((0, 1) if rows == 1 else rect[:2]), *((0, 1) if cols == 1 else rect[2:]))
        return rect.T if self.op in "TH" else rect


class MapDriver:
    """``out = kernel(terms)``, elementwise.

    Parameters
    ----------
    kernel : str
        Of `pycauset.devices.elementwise`: "axpby", "binary", "isclose", "scalar" or "unary".
    terms : sequence of Term
    out : TileStore (m, n)
        Every term has this shape, or 1 in place of m or n. Of a structure other than "full" only stored tiles are computed.
    params : tuple
        The kernel's parameters without the operations of the terms, which follow them.

    Examples
    --------
    >>> from pycauset.governor import governor
    >>> a, c = np.arange(6.0).reshape(2, 3), np.full((3, 2), np.nan)
    >>> driver = MapDriver("scalar", [Term(ArrayStore(a), "T")], ArrayStore(c), ("multiply", 10.0, False))
    >>> with governor().scope(owner="example") as scope:
    ...     run(driver, scope)
    >>> c.tolist()
    [[0.0, 30.0], [10.0, 40.0], [20.0, 50.0]]
    """

    def __init__(self, kernel: str, terms: Sequence[Term], out: TileStore, params: tuple[Any, ...] = ()) -> None:
        self.kernel = kernel
        self.terms = tuple(terms)
        self.out = out
        self.params = (*params, *(term.op for term in terms))
        self.shape = out.shape
        self.work = out.shape[0] * out.shape[1]

    @property
    def stores(self) -> list[TileStore]:
        return [*(term.store for term in self.terms), self.out]

    def grain(self) -> tuple[int, int]:
        """The tile that the stores would like best."""
        if not _in_ram(self.out):
            return self.out.chunks
        for term in self.terms:
            if not _in_ram(term.store) and term.shape == self.shape:
                return term.chunks
        turned = any(term.op in "TH" for term in self.terms)
        return (512, 512) if turned else self.shape

    def operands(self, tile: tuple[int, int], slots: int) -> list[Operand]:
        shapes = [term.rect(Rect(0, tile[0], 0, tile[1])).shape for term in self.terms]
        return [
            Operand(store, store.dtype, shape, slots, f"operand {i}" if i < len(self.terms) else "result")
            for i, (store, shape) in enumerate(zip(self.stores, [*shapes, tile], strict=True))
        ]

    def tasks(self, tile: tuple[int, int]) -> Iterator[TileTask]:
        """For each tile of the result: read, combine, write."""
        for rect in _tiles(self.shape, tile):
            if not self._stored(rect):
                continue
            reads = tuple(Tile(i, *term.rect(rect)) for i, term in enumerate(self.terms))
            writes = (Tile(len(self.terms), *rect),)
            yield TileTask(self.kernel, reads, writes, self.params, float(rect.size), drop=reads + writes)

    def _stored(self, rect: Rect) -> bool:
        """Whether the output keeps any chunk of the tile."""
        height, width = self.out.chunks
        if self.out.structure == "full":
            return True
        if self.out.structure == "upper":
            return round_up(rect.c1, width) > rect.r0
        return round_up(rect.r1, height) > rect.c0


class ReduceDriver:
    """Partial results of a reduction over one store.

    Parameters
    ----------
    kernel : {"sums", "square_sum", "max_abs", "trace"}
        Of `pycauset.devices.elementwise`.
    store : TileStore (m, n)
    params : tuple
        For "sums": (axis, absolute).

    Attributes
    ----------
    partial : ndarray
        After `run`: for "sums" sum and lost bits by column (2, n) or row (m, 2), to be added up; for "trace" the same,
        (1, 2); integers and booleans have no lost bits. For "square_sum" scale and sum of squares by tile (tiles, 2).
        For "max_abs" (1, 1).
    """

    def __init__(self, kernel: str, store: TileStore, params: tuple[Any, ...] = ()) -> None:
        self.kernel = kernel
        self.store = store
        self.params = params
        self.shape = store.shape
        self.work = store.shape[0] * store.shape[1]
        if kernel == "trace":
            self.work = min(store.shape)
        self.partial: np.ndarray[Any, Any] = np.zeros((0, 0))

    @property
    def stores(self) -> list[TileStore]:
        return [self.store]

    def grain(self) -> tuple[int, int]:
        """The tile that the store would like best; square along the diagonal for the trace."""
        if self.kernel == "trace":
            side = min(*self.store.chunks, 1024)
            return side, side
        return self.shape if _in_ram(self.store) else self.store.chunks

    def partial_shape(self, tile: tuple[int, int]) -> tuple[tuple[int, int], np.dtype[Any]]:
        """Shape and dtype of the partial results."""
        rows, cols = self.shape
        kind = self.store.dtype.kind
        exact = kind in "biu" and not (self.kernel == "sums" and self.params[1])
        dtype = np.dtype({"u": "uint64", "c": "complex128", "f": "float64"}.get(kind, "int64" if exact else "float64"))
        lines = 1 if exact else 2
        if self.kernel == "sums":
            if self.params[1]:
                dtype = np.dtype(np.float64)
            return ((lines, cols) if self.params[0] == 0 else (rows, lines)), dtype
        if self.kernel == "trace":
            return (1, lines), dtype
        if self.kernel == "max_abs":
            return (1, 1), np.dtype(np.float64)
        return (ceil_div(rows, tile[0]) * ceil_div(cols, tile[1]), 2), np.dtype(np.float64)

    def operands(self, tile: tuple[int, int], slots: int) -> list[Operand]:
        return [Operand(self.store, self.store.dtype, tile, slots, "operand 0")]

    def tasks(self, tile: tuple[int, int]) -> Iterator[TileTask]:
        """For each tile that is not known to be zero: add it to its partial result."""
        height, width = self.partial.shape
        rects = _diagonal(self.shape, tile[0]) if self.kernel == "trace" else _tiles(self.shape, tile)
        for i, rect in enumerate(rects):
            if self.store.is_zero(rect):
                continue
            target = Tile(1, 0, height, 0, width)
            if self.kernel == "sums":
                target = Tile(1, 0, height, rect.c0, rect.c1) if self.params[0] == 0 else Tile(1, rect.r0, rect.r1, 0, width)
            elif self.kernel == "square_sum":
                target = Tile(1, i, i + 1, 0, 2)
            read = Tile(0, *rect)
            yield TileTask(self.kernel, (read, target), (target,), self.params, float(rect.size), drop=(read,))


def run(driver: MapDriver | ReduceDriver, scope: Scope, *, on_progress: Callable[[float], None] | None = None) -> None:
    """Run a map or a reduction on the CPU within the scope's memory.

    Parameters
    ----------
    driver : MapDriver or ReduceDriver
    scope : Scope
        Grants slots and temporaries.
    on_progress : callable, optional
        Called with the elements done so far.

    Raises
    ------
    MemoryLimitError
        If not even the smallest tile fits.
    StoreError
        If a store cannot be read or written; the output is left unfinished.
    """
    from pycauset.devices import cpu

    device = cpu()
    if driver.work == 0:
        if isinstance(driver, ReduceDriver):
            driver.partial = np.zeros(*driver.partial_shape((1, 1)))
        return
    if all(_in_ram(store) for store in driver.stores):
        tile = _clip(driver.grain(), driver.shape)
        operands = _with_partial(driver, driver.operands(tile, 0), tile)
        for task in driver.tasks(tile):
            views = [operands[t.operand].store.view(t.rect) for t in task.reads + task.writes]
            count = len(task.reads)
            device.kernels[task.kernel](views[:count], views[count:], task.params, None)
        return
    tile, slots = _fit(driver, device, scope.available("host"))
    # The kernels' own bands and the partial results, beside the streamer's slots.
    with scope.require("host", _kernel_bytes(tile) + _partial_bytes(driver, tile), owner="elementwise kernels"):
        operands = _with_partial(driver, driver.operands(tile, slots), tile)
        with AsyncStreamer(device, operands, scope, readers=_READERS, writers=_WRITERS, on_progress=on_progress) as streamer:
            streamer.run(driver.tasks(tile))


def _with_partial(driver: MapDriver | ReduceDriver, operands: list[Operand], tile: tuple[int, int]) -> list[Operand]:
    """The operands, and for a reduction fresh partial results."""
    if isinstance(driver, ReduceDriver):
        shape, dtype = driver.partial_shape(tile)
        driver.partial = np.zeros(shape, dtype)
        operands.append(Operand(ArrayStore(driver.partial), dtype, shape, 1, "partial results"))
    return operands


def _partial_bytes(driver: MapDriver | ReduceDriver, tile: tuple[int, int]) -> int:
    if isinstance(driver, MapDriver):
        return 0
    shape, dtype = driver.partial_shape(tile)
    return shape[0] * shape[1] * dtype.itemsize


def _in_ram(store: TileStore) -> bool:
    return store.view(Rect(0, store.shape[0], 0, store.shape[1])) is not None


def _clip(tile: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    return max(1, min(tile[0], shape[0])), max(1, min(tile[1], shape[1]))


def _tiles(shape: tuple[int, int], tile: tuple[int, int]) -> Iterator[Rect]:
    for r in range(0, shape[0], tile[0]):
        for c in range(0, shape[1], tile[1]):
            yield Rect(r, min(r + tile[0], shape[0]), c, min(c + tile[1], shape[1]))


def _diagonal(shape: tuple[int, int], side: int) -> Iterator[Rect]:
    for i in range(0, min(shape), side):
        stop = min(i + side, *shape)
        yield Rect(i, stop, i, stop)


def _kernel_bytes(tile: tuple[int, int]) -> int:
    return 4 * max(BAND_BYTES, 16 * max(tile))


def _fit(driver: MapDriver | ReduceDriver, device: Device, available: int) -> tuple[tuple[int, int], int]:
    """Tile shape and slots per operand: the stores' own grain, grown if tiny, cut if it does not fit the memory."""
    itemsize = max(store.dtype.itemsize for store in driver.stores)
    unit = driver.grain()
    height, width = _clip(unit, driver.shape)
    square = isinstance(driver, ReduceDriver) and driver.kernel == "trace"
    while not square and height * width * itemsize < _SMALLEST and (height, width) != driver.shape:
        # Wider first: rows lie together in most stores.
        if width < driver.shape[1] and (width <= height or height >= driver.shape[0]):
            width = min(width + unit[1], driver.shape[1])
        else:
            height = min(height + unit[0], driver.shape[0])

    def needed(tile: tuple[int, int], slots: int) -> int:
        operands = driver.operands(tile, slots)
        total = temporary_bytes(device, operands, _READERS, _WRITERS)
        total += _kernel_bytes(tile) + _partial_bytes(driver, tile)
        return total + sum(slots * round_up(op.slot_bytes, 4096) for op in operands if not device.reaches(op.store, op.dtype))

    limit = min(available, _MOST)
    cheapest: tuple[int, tuple[int, int], int] | None = None
    while True:
        tile = (height, width)
        if height * width * itemsize <= _LARGEST or (unit[0] >= height and unit[1] >= width and len(driver.stores) > 1):
            for slots in (_SLOTS, 2, 1):
                bytes_needed = needed(tile, slots)
                if bytes_needed <= limit:
                    return tile, slots
            # Smaller tiles may need more: parts of chunks are read, changed and written back in buffers of whole chunks.
            if cheapest is None or bytes_needed < cheapest[0]:
                cheapest = bytes_needed, tile, 1
        if height * width * itemsize <= 4096 and cheapest is not None:
            return cheapest[1:]  # the scope refuses it, with the numbers
        if square:
            height = width = ceil_div(height, 2)
        elif height >= width:
            height = ceil_div(height, 2)
        else:
            width = ceil_div(width, 2)
