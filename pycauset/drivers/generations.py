"""Generations of tiles: what a journal has on record, and what is on its way there.

The generation of a tile is the number of tasks that have written it, in the driver's order, over the whole operation and all
its runs. A task whose tile is on record with this generation or a later one need not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from numpy.typing import NDArray

from pycauset.drivers.task import Operand, Tile, TileTask
from pycauset.storage.base import TileJournal, TileStore
from pycauset.tiling import Rect

__all__ = ["Generations", "TileLedger"]


class Generations:
    """Keep count for the operands of one run that have a journal or a ledger.

    Parameters
    ----------
    operands : sequence of Operand
    """

    def __init__(self, operands: Sequence[Operand]) -> None:
        self._ledgers = [operand.ledger for operand in operands]
        self._journals: list[TileJournal | None] = [operand.journal or operand.ledger for operand in operands]
        self._asked: dict[Tile, int] = {}  # tasks submitted, those of earlier runs included
        self._planned: dict[Tile, int] = {}  # what a tile holds once everything planned has run
        self._recorded: dict[Tile, int] = {}
        self._owner: dict[Tile, Tile] = {}  # the tile that a piece was cut from
        self._content: dict[Tile, int] = {}  # the generation that a piece in host memory holds

    def __bool__(self) -> bool:
        return any(journal is not None for journal in self._journals)

    def on_record(self, task: TileTask) -> bool:
        """Count a task that was submitted; True if an earlier run has left its result on record."""
        for tile in task.writes:
            if self._journals[tile.operand] is not None:
                self._asked[tile] = generation = self._asked.get(tile, 0) + 1
                if generation <= self.recorded(tile):
                    return True
        return False

    def recorded(self, tile: Tile) -> int:
        """The generation that an earlier run left on record, 0 if none."""
        tile = self._owner.get(tile, tile)
        known = self._recorded.get(tile)
        if known is None:
            journal = self._journals[tile.operand]
            known = self._recorded[tile] = 0 if journal is None else journal.generation(tile.rect)
        return known

    def tiles(self) -> tuple[int, int]:
        """How many tiles the tasks submitted so far write under a journal, and how many an earlier run left on record."""
        kept = [tile for tile in self._asked if self._ledgers[tile.operand] is None]
        return len(kept), sum(1 for tile in kept if self._recorded.get(tile))

    def planned(self, task: TileTask) -> None:
        """A task is going to run: what it writes is of the next generation."""
        for tile in task.writes:
            if self._journals[tile.operand] is not None:
                self._planned[tile] = self._planned.get(tile, self.recorded(tile)) + 1

    def cut(self, tile: Tile, parts: Sequence[Tile]) -> int:
        """A tile is going to be moved in pieces; returns the generation that it holds now."""
        if self._journals[tile.operand] is None:
            return 0
        for part in parts:
            self._owner[part] = tile
        return self._planned.get(tile, self.recorded(tile))

    def fetched(self, parts: Sequence[Tile], generation: int) -> None:
        """Pieces of a tile of this generation are going to lie in host memory."""
        for part in parts:
            self._content[part] = generation

    def held(self, piece: Tile) -> int:
        """The generation of a tile, or of a piece in host memory, as planned."""
        return self._content[piece] if piece in self._owner else self._planned.get(piece, 0)

    def writer(self, piece: Tile, generation: int, data: Any) -> Callable[[], None] | None:
        """The job that writes a tile, or a piece of one, through its journal; None if it has none."""
        journal = self._journals[piece.operand]
        if journal is None:
            return None
        return partial(journal.write, self._owner.get(piece, piece).rect, generation, piece.rect, data)

    def noter(self, tile: Tile, part: Tile) -> Callable[[], None] | None:
        """What tells the ledger that a part of a tile, as planned so far, is on its way home by itself; None if there is none."""
        ledger = self._ledgers[tile.operand]
        return None if ledger is None else partial(ledger.note, tile.rect, self._planned.get(tile, 0), part.rect)

    def flush(self) -> None:
        """Make everything written durable."""
        for journal in self._journals:
            if journal is not None:
                journal.flush()


class TileLedger:
    """Which generation of each tile a store holds that is overwritten without a journal: so that a failure can say so."""

    def __init__(self, store: TileStore) -> None:
        self._store = store
        self._parts: dict[Rect, dict[Rect, int]] = {}

    def generation(self, tile: Rect) -> int:
        """Nothing is left from earlier runs."""
        return 0

    def write(self, tile: Rect, generation: int, part: Rect, data: NDArray[Any]) -> None:
        """Write a part of a tile."""
        self.note(tile, -1, part)  # until it is whole
        self._store.write(part, data)
        self.note(tile, generation, part)

    def note(self, tile: Rect, generation: int, part: Rect) -> None:
        """See `Ledger`. Threads write different parts."""
        self._parts.setdefault(tile, {})[part] = generation

    def flush(self) -> None:
        """Nothing waits."""

    def generations(self) -> dict[Rect, int]:
        """The generation of each tile that was written, -1 where its parts are of several, or of none."""
        found = {}
        for tile, parts in self._parts.items():
            held = set(parts.values())
            whole = sum(part.size for part in parts) == tile.size and len(held) == 1
            found[tile] = held.pop() if whole else -1
        return found
