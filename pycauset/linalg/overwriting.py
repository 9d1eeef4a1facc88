"""When a factorisation in place fails: what each tile holds then, and bringing back what was there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pycauset.errors import ConfigError, DtypeError, NotPositiveDefiniteError, OverlapError, ShapeError
from pycauset.governor import governor
from pycauset.linalg.operands import in_memory, square, stored
from pycauset.matrix import Matrix
from pycauset.storage import TileStore, ZarrStore, aligned_empty
from pycauset.tiling import Rect, pieces

__all__ = [
    "RESTORED",
    "RESTORING",
    "after_lapack",
    "changed",
    "interrupted_restore",
    "restore",
    "restore_by_journal",
    "source_of",
    "told",
]

RESTORED: Final = 1 << 40
"""The generation of tiles in a journal that hold the matrix again. No operation has so many tasks."""

RESTORING: Final = {"restoring": "all"}
"""The plan of a journal by which all of a mixture is replaced before the work starts over."""

_SAYS: Final = {
    "factor": "hold the factor",
    "updated": "are updated in part",
    "original": "are as they were",
    "unspecified": "hold nothing that can be relied on",
}

Tiles = Mapping[str, list[Rect]]


def source_of(restore: Any, matrix: Matrix) -> TileStore | None:
    """What the argument ``restore`` of `cholesky` gives elements from, if there is one.

    Raises
    ------
    ShapeError, DtypeError, OverlapError
        If it cannot be what ``matrix`` holds, or would be overwritten with it.
    """
    if restore is None:
        return None
    source = square("cholesky", restore)
    if source.shape != matrix.shape:
        raise ShapeError(f"cholesky: restore has shape {source.shape} and a has shape {matrix.shape}; it must be the same matrix")
    if source.dtype != matrix.dtype:
        raise DtypeError(f"cholesky: restore is of {source.dtype} and a of {matrix.dtype}; it must be the same matrix")
    store = stored(source)
    if store.overlaps(matrix.store):
        raise OverlapError("cholesky: restore shares storage with a, and is overwritten with it; give a copy, or a function")
    return store


def after_lapack(pivot: int | None, n: int, lower: bool) -> dict[str, list[Rect]]:
    """What an array holds that LAPACK has given up at a pivot: the factor of all that comes before it."""
    order = pivot or 0
    rest = Rect(order, n, 0, n) if lower else Rect(0, n, order, n)
    return {"factor": [Rect(0, order, 0, order)] if order else [], "updated": [], "original": [], "unspecified": [rest]}


def changed(tiles: Tiles) -> list[Rect]:
    """Those that are not as they were."""
    return [rect for kind, rects in tiles.items() if kind != "original" for rect in rects]


def told(error: Exception, tiles: Tiles, what: str, *, restored: bool) -> Exception:
    """The error of a factorisation in place, which says what each tile holds."""
    touched = changed(tiles)
    if not touched:
        text = f"{what} is as it was"
    elif restored:
        text = f"{what} was overwritten in part; it has been restored, and is as it was"
        tiles = {kind: [rect for rects in tiles.values() for rect in rects] if kind == "original" else [] for kind in tiles}
    else:
        sides = {side for rect in touched for side in rect.shape}
        listed = "; ".join(f"{len(rects)} {_SAYS[kind]}{_first(rects)}" for kind, rects in tiles.items() if rects)
        text = (
            f"{what} was to be overwritten and is a mixture now, of tiles of up to {max(sides)} rows (error.tiles lists all): "
            f"{listed}. Make the matrix again; restore= does so by itself"
        )
    if not isinstance(error, NotPositiveDefiniteError):
        error.add_note(text)
        return error
    if touched:
        again = NotPositiveDefiniteError(f"{error}. {text}", pivot=error.pivot, value=error.value)
    else:
        again = error
        again.add_note(text)
    again.tiles = {kind: tuple(rects) for kind, rects in tiles.items()}
    return again


def _first(rects: list[Rect]) -> str:
    shown = ", ".join(f"[{r.r0}:{r.r1}, {r.c0}:{r.c1}]" for r in rects[:6])
    return f" ({shown}{', …' if len(rects) > 6 else ''})" if rects else ""


def restore(source: TileStore, store: TileStore, rects: Iterable[Rect], memory: int | None) -> None:
    """Write rectangles of a matrix again, from another one with the same elements."""
    array = in_memory(store)
    parts = [part for rect in rects for _, _, part in pieces(rect, store.chunks)]
    largest = 0 if array is not None else max((part.size for part in parts), default=0)
    nbytes = largest * store.dtype.itemsize
    with governor().scope(host=memory, owner="cholesky: restoring") as scope, scope.require("host", nbytes):
        buffer = aligned_empty(largest, store.dtype)
        for part in parts:
            if array is not None:
                source.read(part, array[part.slices])
            else:
                block = buffer[: part.size].reshape(part.shape)
                source.read(part, block)
                store.write(part, block)


def restore_by_journal(source: TileStore, journal: Any, store: ZarrStore, memory: int | None) -> None:
    """The same for all tiles that a journal has on record, or by the plan `RESTORING` for all chunks, through the journal.

    A kill meanwhile leaves tiles of known content.
    """
    tiles = journal.generations()
    if journal.plan == RESTORING:
        chunks = store.stored_chunks(Rect(0, store.shape[0], 0, store.shape[1]))
        tiles = {tile: tiles.get(tile, 0) for tile in (store.chunk_rect(i, j) for (i, j), _ in chunks)}
    size = store.chunks[0] * store.chunks[1]
    with (
        governor().scope(host=memory, owner="cholesky: restoring") as scope,
        scope.require("host", size * store.dtype.itemsize),
    ):
        buffer = aligned_empty(size, store.dtype)
        for tile, generation in tiles.items():
            if generation >= RESTORED:
                continue
            for (i, j), _ in list(store.stored_chunks(tile)):
                part = store.chunk_rect(i, j)
                block = buffer[: part.size].reshape(part.shape)
                source.read(part, block)
                journal.write(tile, RESTORED, part, block)
    journal.finish()


def interrupted_restore(journal: Any, source: TileStore | None) -> bool:
    """Whether a journal was left while its matrix was being restored.

    Raises
    ------
    ConfigError
        If there is nothing to go on from.
    """
    again = journal.plan == RESTORING
    if not again and not any(generation >= RESTORED for generation in journal.generations().values()):
        return False
    if source is None:
        why = "was to start over" if again else "turned out not to be positive definite"
        raise ConfigError(
            f"cholesky: {journal.target} {why} and was being restored when the process ended; give restore= again to have that "
            "finished"
        )
    return True
