"""Generations of tiles: what a journal has on record, and what is on its way there.

The generation of a tile is the number of tasks that have written it, in the driver's order, over the whole operation and all
its runs. A task whose tile is on record with this generation or a later one need not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pycauset.drivers.task import Tile, TileTask
from pycauset.storage.base import TileJournal

__all__ = ["Generations"]


class Generations:
    """Keep count for the journalled operands of one run.

    Parameters
    ----------
    journals : sequence of TileJournal or None
        One for each operand.
    """

    def __init__(self, journals: Sequence[TileJournal | None]) -> None:
        self._journals = list(journals)
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

    def flush(self) -> None:
        """Make everything written durable."""
        for journal in self._journals:
            if journal is not None:
                journal.flush()
