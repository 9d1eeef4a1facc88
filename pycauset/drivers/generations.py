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
        self._content: dict[Tile, tuple[Tile, int]] = {}  # the tile a piece was cut from, and the generation it holds

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
        tile = self._content[tile][0] if tile in self._content else tile
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

    def cut(self, tile: Tile, parts: Sequence[Tile]) -> None:
        """A tile is about to be moved in pieces, which hold what it holds now."""
        if self._journals[tile.operand] is not None:
            content = tile, self._planned.get(tile, self.recorded(tile))
            for part in parts:
                self._content[part] = content

    def writer(self, piece: Tile, data: Any) -> Callable[[], None] | None:
        """The job that writes a tile, or a piece of one, through its journal; None if it has none."""
        journal = self._journals[piece.operand]
        if journal is None:
            return None
        tile, generation = self._content.get(piece) or (piece, self._planned[piece])
        return partial(journal.write, tile.rect, generation, piece.rect, data)

    def flush(self) -> None:
        """Make everything written durable."""
        for journal in self._journals:
            if journal is not None:
                journal.flush()
