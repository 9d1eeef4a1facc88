"""What a killed run left on disk, set against its journal."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

from pycauset.errors import CorruptTileError, JournalError
from pycauset.storage.native import UNFINISHED, ZarrStore
from pycauset.storage.output import RESERVE_NAME
from pycauset.tiling import Rect

__all__ = ["last_records", "recover", "remove_orphans"]

_THREADS: Final = 3  # each keeps a buffer of 4 MiB or one chunk's row
_TEMPORARY: Final = re.compile(r"\.(g\d+\.pending|\d+-\d+\.tmp|\d+\.tmp)$")

Record = dict[str, Any]


class _Tile(NamedTuple):
    rect: Rect
    generation: int
    chunks: list[tuple[str, str, int]]
    """Staged file, file in place, checksum."""


def last_records(records: list[Record]) -> dict[Rect, Record]:
    """The last record of each tile."""
    return {Rect(*record["tile"]): record for record in records if "tile" in record}


def recover(store: ZarrStore, records: Mapping[Rect, Record], *, in_place: bool, started_ns: int) -> dict[Rect, int]:
    """Finish what a journal has on record and remove what it has not; every chunk on record is read once.

    A chunk on record is either still beside its place (then it is put there) or already in it; its checksum decides.

    Parameters
    ----------
    store : ZarrStore
        From :meth:`ZarrStore.reopen`; open when this returns.
    records : mapping
        The last record of each tile.
    in_place : bool
        The store held a matrix before: chunks without a record still belong to it. In a new output they are removed, and a
        tile that is damaged is simply forgotten.
    started_ns : int
        When the journal began. In place, no chunk without a record can be younger.

    Returns
    -------
    dict
        The generation of each tile that is safe.

    Raises
    ------
    CorruptTileError
        In place, if a tile on record is not what its record says.
    JournalError
        If records do not fit the store, or chunks have been changed that the journal knows nothing of.
    """
    tiles = [_expected(store, rect, record) for rect, record in records.items()]
    if in_place:
        _check_age(store, tiles, started_ns)
    with ThreadPoolExecutor(_THREADS, "pycauset-verify") as pool:
        found = list(pool.map(lambda tile: _inspect(store, tile), tiles))
    moves: list[tuple[str, str]] = []
    safe: dict[Rect, int] = {}
    kept: set[str] = set()
    for tile, steps in zip(tiles, found, strict=True):
        if steps is not None:
            safe[tile.rect] = tile.generation
            moves += steps
            kept.update(final for _, final, _ in tile.chunks)
        elif in_place:
            r0, r1, c0, c1 = tile.rect
            raise CorruptTileError(
                f"rows {r0}:{r1}, columns {c0}:{c1} of {store} are not what the journal recorded of them (generation "
                f"{tile.generation}), and what was there before has been overwritten; make the matrix at {store.path} again"
            )
    for staged, final in moves:
        os.replace(staged, final)
    remove_orphans(store.chunk_path(""), None if in_place else kept)
    store.resume(index for rect in safe for index, _ in store.stored_chunks(rect))
    return safe


def _expected(store: ZarrStore, rect: Rect, record: Record) -> _Tile:
    generation = int(record["generation"])
    chunks = []
    for _, key in store.stored_chunks(rect):
        if key not in record["chunks"]:
            raise JournalError(f"the journal's record of tile {tuple(rect)} of {store} lacks chunk {key}")
        checksum = int(record["chunks"][key], 16)
        chunks.append((store.staged_path(key, generation), store.chunk_path(key), checksum))
    return _Tile(rect, generation, chunks)


def _inspect(store: ZarrStore, tile: _Tile) -> list[tuple[str, str]] | None:
    """The renames that make a tile what its record says, ``None`` if nothing can."""
    moves = []
    for staged, final, checksum in tile.chunks:
        if store.checksum_of(staged) == checksum:
            moves.append((staged, final))
        elif store.checksum_of(final) != checksum:
            return None
    return moves


def _check_age(store: ZarrStore, tiles: list[_Tile], started_ns: int) -> None:
    """A journal that lost its last lines would have tiles computed twice: their files tell."""
    known = {final for tile in tiles for _, final, _ in tile.chunks}
    for _, key in store.stored_chunks(Rect(0, store.shape[0], 0, store.shape[1])):
        path = store.chunk_path(key)
        if path not in known:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_mtime_ns > started_ns:
                    raise JournalError(
                        f"chunk {path} was written after its journal began, and the journal does not know of it: lines are "
                        f"missing from its end; restore the journal, or make the matrix at {store.path} again"
                    )


def remove_orphans(root: str, kept: Container[str] | None) -> None:
    """Remove temporary files of a store, and all chunks but those ``kept``; None keeps all."""
    base = Path(root)
    for folder, _, names in os.walk(base):
        for name in names:
            path = os.path.join(folder, name)
            ours = kept is not None and name not in (UNFINISHED, RESERVE_NAME) and path not in kept
            if ours or _TEMPORARY.search(name):
                with contextlib.suppress(OSError):
                    os.unlink(path)
