"""What a killed run left on disk, set against its journal, and whether the call at hand may go on from there."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from pycauset.errors import CorruptTileError, JournalError, ShapeError
from pycauset.storage.direct import crc32c
from pycauset.storage.identity import differences
from pycauset.storage.journalfile import JournalFile, remedy, unusable
from pycauset.storage.native import ZarrStore
from pycauset.storage.output import RESERVE_NAME, UNFINISHED, journal_path, resumable_folder, resumable_tiles
from pycauset.tiling import Rect

__all__ = ["Resume", "clean_up", "last_records", "look", "mark", "overwritten", "recover", "refuse_mixture", "remove_orphans"]

Resume = bool | Literal["restart"]

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


def overwritten(header: Mapping[str, Any], tiles: Mapping[Rect, Any]) -> bool:
    """Whether a journal's matrix is no longer what it was when it was opened: a mixture of old and new tiles."""
    return bool(header.get("in_place") and (tiles or header.get("mixture")))


def look(
    file: JournalFile, target: Path, asked: dict[str, Any], resume: Resume, *, replaceable: bool = False
) -> tuple[bool, bool]:
    """Whether the work on record is finished, and whether it is what is asked for; a journal without use is cleared.

    ``replaceable`` as `open_journal` takes it.

    Raises
    ------
    JournalError
        If it is neither, nor to be started over.
    """
    if not file.header:
        if resume == "restart":
            if not replaceable:
                refuse_mixture(target, file.path)
        elif not file.made:
            # Started over, and stopped before the first step that has a plan: unfinished, and nothing is written yet.
            begun_again = replaceable and file.empty
            if resumable_tiles(target) or ((target / UNFINISHED).is_file() and not begun_again):
                what = "its header is destroyed, and tiles that only it can tell of lie beside it"
                raise unusable(file.path, what, mixture=False if replaceable else None)
        return False, False
    tiles = last_records(file.records)
    changed = differences(file.header["request"], asked)
    if _is_finished(file, target):
        mine = differences(_without_own(file.header["request"], target), _without_own(asked, target))
        return True, resume is True and not mine
    in_place = file.header["in_place"]
    changed_already = overwritten(file.header, tiles)
    if in_place:
        # A finished matrix in the place of one that was partly overwritten: somebody has made it again.
        live = (target / UNFINISHED).is_file() or ((target / "zarr.json").is_file() and not changed_already)
    else:
        live = resumable_folder(target).is_dir()
    if not live:
        file.clear()
        return False, False
    mixture = changed_already and not replaceable
    if resume is True:
        if not changed:
            return False, True
        raise JournalError(
            f"the journal {file.path} is of other work: {'; '.join(changed)}; call as before to go on, or "
            f"{remedy(file.path, mixture=mixture)}"
        )
    if resume is False:
        raise JournalError(
            f"the journal {file.path} of an unfinished {file.header['request'].get('operation')} is in the way; go on with "
            f"resume=True, or {remedy(file.path, mixture=mixture)}"
        )
    if in_place:
        if mixture:
            refuse_mixture(target, file.path)
        if (target / UNFINISHED).is_file() and not changed_already:
            os.replace(target / UNFINISHED, target / "zarr.json")
        remove_orphans(os.fspath(target), None)
    file.clear()
    return False, False


def refuse_mixture(target: Path, journal: Path) -> None:
    """In place there is nothing to start over from."""
    if (target / UNFINISHED).is_file():
        raise unusable(journal, 'resume="restart" is for outputs that have a place of their own', mixture=True)


def _is_finished(file: JournalFile, target: Path) -> bool:
    """Whether the run was killed after its last step that matters: what it finished is under the final name."""
    marks = {record["finished"] for record in file.records if "finished" in record}
    if not marks or (not file.header["in_place"] and resumable_folder(target).is_dir()):
        return False
    with contextlib.suppress(OSError):
        return mark((target / "zarr.json").read_bytes()) in marks
    return False


def clean_up(target: Path) -> None:
    """What a run that was killed in its last steps did not get to."""
    from pycauset.storage.opening import open_store

    (target / UNFINISHED).unlink(missing_ok=True)
    remove_orphans(os.fspath(target), None)
    store = open_store(target)
    if isinstance(store, ZarrStore):
        store.trim()


def mark(text: bytes) -> str:
    """What tells finished metadata."""
    return f"{crc32c(np.frombuffer(text, np.uint8)):08x}"


def _without_own(request: dict[str, Any], target: Path) -> dict[str, Any]:
    """A request without what finishing the work in place changes of its own operand."""
    real, operands = os.path.realpath(target), {}
    for name, identity in request.get("operands", {}).items():
        own = isinstance(identity, dict) and identity.get("path") == real
        changes = ("generation", "metadata", "structure") if own else ()
        operands[name] = {k: v for k, v in identity.items() if k not in changes} if own else identity
    return {**request, "operands": operands}


def recover(
    store: ZarrStore, records: Mapping[Rect, Record], *, in_place: bool, started_ns: int, mixture: bool = True
) -> dict[Rect, int]:
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
    mixture : bool
        For errors: as :func:`remedy` takes it.

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
    tiles = _expected(store, records)
    if in_place:
        _check_age(store, tiles, started_ns, mixture)
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
                f"{tile.generation}), and what was there before has been overwritten; {remedy(_journal(store), mixture=mixture)}"
            )
    for staged, final in moves:
        os.replace(staged, final)
    remove_orphans(store.chunk_path(""), None if in_place else kept)
    store.resume(index for rect in safe for index, _ in store.stored_chunks(rect))
    return safe


def _expected(store: ZarrStore, records: Mapping[Rect, Record]) -> list[_Tile]:
    """What should lie on disk."""
    tiles: list[_Tile] = []
    seen: set[str] = set()
    for rect, record in records.items():
        chunks = []
        try:
            if rect.r1 > store.shape[0] or rect.c1 > store.shape[1]:
                raise ShapeError(f"{store} is smaller")
            for _, key in store.stored_chunks(rect):
                if key in seen or key not in record["chunks"]:
                    raise ShapeError(f"chunk {key} is missing, or in two tiles")
                seen.add(key)
                paths = store.staged_path(key, record["generation"]), store.chunk_path(key)
                chunks.append((*paths, int(record["chunks"][key], 16)))
        except ShapeError as error:
            raise unusable(_journal(store), f"its record of tile {tuple(rect)} does not fit: {error}") from None
        tiles.append(_Tile(rect, record["generation"], chunks))
    return tiles


def _journal(store: ZarrStore) -> Path:
    assert store.path is not None
    return journal_path(store.path)


def _inspect(store: ZarrStore, tile: _Tile) -> list[tuple[str, str]] | None:
    """The renames that make a tile what its record says, ``None`` if nothing can."""
    moves = []
    for staged, final, checksum in tile.chunks:
        if store.checksum_of(staged) == checksum:
            moves.append((staged, final))
        elif store.checksum_of(final) != checksum:
            return None
    return moves


def _check_age(store: ZarrStore, tiles: list[_Tile], started_ns: int, mixture: bool) -> None:
    """A journal that lost its last lines would have tiles computed twice: their files tell."""
    known = {final for tile in tiles for _, final, _ in tile.chunks}
    for _, key in store.stored_chunks(Rect(0, store.shape[0], 0, store.shape[1])):
        path = store.chunk_path(key)
        if path not in known:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_mtime_ns > started_ns:
                    raise JournalError(
                        f"chunk {path} was written after the journal {_journal(store)} began, which does not know of it: lines "
                        f"are missing from its end; restore the journal, or else {remedy(_journal(store), mixture=mixture)}"
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
