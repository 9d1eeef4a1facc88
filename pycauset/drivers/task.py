"""The vocabulary between a driver and the streamer: operands, tiles, tasks and barriers. Plain data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from pycauset.storage.base import TileJournal, TileStore
from pycauset.tiling import Rect

__all__ = ["Barrier", "Ledger", "Operand", "Tile", "TileTask"]


class Tile(NamedTuple):
    """Rows ``r0:r1`` and columns ``c0:c1`` of operand number ``operand``, as stored (before any transposition)."""

    operand: int
    r0: int
    r1: int
    c0: int
    c1: int

    @property
    def rect(self) -> Rect:
        return Rect(*self[1:])

    @property
    def shape(self) -> tuple[int, int]:
        return self.r1 - self.r0, self.c1 - self.c0


class TileTask(NamedTuple):
    """One kernel on a few tiles.

    A tile in ``writes`` but not in ``reads`` is overwritten whole and never fetched. Tiles of an operand that is
    written must be equal or disjoint: hazards are found by comparing tiles, not by intersecting rectangles.
    """

    kernel: str
    reads: tuple[Tile, ...]
    writes: tuple[Tile, ...]
    params: tuple[Any, ...] = ()
    flops: float = 0.0
    #: Tiles whose slots are given up after this task (written back first when dirty).
    drop: tuple[Tile, ...] = ()
    #: Tiles that need no copy in the level below once they have been fetched for this task.
    forget: tuple[Tile, ...] = ()
    #: 0 is the ordinary compute stream, 1 the high-priority one.
    stream: int = 0


class Barrier(NamedTuple):
    """``value = yield Barrier(tiles)``: wait for everything submitted so far and hand back host copies of ``tiles``."""

    tiles: tuple[Tile, ...] = ()


class Ledger(TileJournal, Protocol):
    """A journal for this process alone, of a store that devices may write directly, too."""

    def note(self, tile: Rect, generation: int, part: Rect) -> None:
        """``part`` of a tile is going to be of this generation, whatever happens to other work."""


@dataclass(slots=True)
class Operand:
    """A store as an algorithm sees it: the element type that kernels work in, and the slots its tiles get.

    ``tile`` is the shape of its largest tile and ``slots`` the number of device-level slots for such tiles; operands that
    name the same ``pool`` share slots. Until a tile has been written for the first time it is read from ``origin``, where
    there is one; with a ``journal`` each write goes through it, and what it has on record is not computed again. A ``ledger`` is
    only told what has been written.
    """

    store: TileStore
    dtype: np.dtype[Any]
    tile: tuple[int, int]
    slots: int
    pool: str
    origin: TileStore | None = None
    journal: TileJournal | None = None
    ledger: Ledger | None = None

    @property
    def slot_bytes(self) -> int:
        return self.tile[0] * self.tile[1] * self.dtype.itemsize
