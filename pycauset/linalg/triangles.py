"""Passes over one triangle of a matrix wherever it lies: loading, clearing, mirroring, looking for NaN, comparing, diagonals."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from pycauset.errors import NonFiniteError, NotHermitianError
from pycauset.governor import governor
from pycauset.hardware import cpu_info
from pycauset.linalg.operands import in_memory
from pycauset.storage import TileStore, aligned_empty
from pycauset.tiling import Rect, ceil_div, pieces, round_up

__all__ = ["check_finite", "check_hermitian", "clear_beyond", "diagonal", "load", "mirror", "rectangles"]

Array = np.ndarray[Any, Any]

_ELEMENTS: Final = 1 << 18  # of a rectangle, where chunks are smaller
_STRIP: Final = 256


def rectangles(store: TileStore, part: str = "full") -> Iterator[Rect]:
    """Rectangles along a store's chunks that cover all of it, or its ``"lower"`` or ``"upper"`` triangle."""
    (rows, cols), (h, w) = store.shape, store.chunks
    w = min(w, max(1, cols))
    h = min(max(1, rows), h * max(1, _ELEMENTS // (h * w)))
    for r0 in range(0, rows, h):
        r1 = min(r0 + h, rows)
        first = r0 // w * w if part == "upper" else 0
        for c0 in range(first, min(cols, r1) if part == "lower" else cols, w):
            c1 = min(c0 + w, cols)
            if part == "lower" and w > h:
                c1 = min(c1, r1)
            yield Rect(r0, r1, max(c0, r0) if part == "upper" and w > h else c0, c1)


@contextlib.contextmanager
def _buffer(store: TileStore, largest: int, owner: str, memory: int | None) -> Iterator[Array]:
    """A ticketed buffer for so many elements of a store."""
    nbytes = largest * store.dtype.itemsize
    with governor().scope(host=memory, owner=owner) as scope, scope.require("host", nbytes):
        yield aligned_empty(largest, store.dtype)


def load(store: TileStore, out: Array, part: str = "full") -> None:
    """Read a store, or one triangle of it (and what shares chunks with that), into an array."""
    for rect in rectangles(store, part):
        store.read(rect, out[rect.slices])


def clear_beyond(store: TileStore, part: str, tile: int, journal: Any = None) -> None:
    """Zeros in the triangle opposite to ``part``, where a store keeps it.

    Parameters
    ----------
    store : TileStore (n, n)
    part : {"lower", "upper"}
        The triangle that holds something.
    tile : int
        Side of the square tiles along the diagonal that hold zeros beyond it already; 0 if none do.
    journal : Journal, optional
        Of a store on disk that has one.
    """
    n = store.shape[0]
    if not n:
        return
    if store.structure != "full":
        _repair(store, tile, np.tril if part == "lower" else np.triu)
        return
    array = in_memory(store)
    if array is not None:

        def strip(start: int) -> None:
            stop = min(start + _STRIP, n)
            corner = array[start:stop, start:stop]
            if part == "lower":
                corner[...] = np.tril(corner)
                array[start:stop, stop:] = 0
            else:
                corner[...] = np.triu(corner)
                array[start:stop, :start] = 0

        # One thread writes zeros at a fraction of what memory takes.
        with ThreadPoolExecutor(min(8, cpu_info().cores)) as pool:
            list(pool.map(strip, range(0, n, _STRIP)))
        return
    for rect, put in _pieces_beyond(store, part, tile, journal):
        put(np.zeros(rect.shape, store.dtype))


def _repair(store: TileStore, tile: int, change: Callable[[Array], Array]) -> None:
    """Chunks on the diagonal of a store of one triangle are kept whole, and tiles smaller than chunks leave gaps in them."""
    n, side = store.shape[0], max(store.chunks)
    if not tile or tile % side == 0 or tile >= n:
        return
    for start in range(0, n, side):
        rect = Rect(start, min(start + side, n), start, min(start + side, n))
        block = np.empty(rect.shape, store.dtype)
        store.read(rect, block)
        store.write(rect, change(block))


def _pieces_beyond(store: TileStore, part: str, tile: int, journal: Any) -> Iterator[tuple[Rect, Callable[[Array], None]]]:
    """Pieces along chunks of the tiles opposite to ``part``, and what writes one: those that a journal has not on record."""
    n = store.shape[0]
    for start in range(0, n, tile):
        for other in range(start + tile, n, tile):
            whole = Rect(start, min(start + tile, n), other, min(other + tile, n))
            whole = whole if part == "lower" else whole.T
            if journal is not None and journal.generation(whole):
                continue
            for _, _, rect in pieces(whole, store.chunks):
                if journal is None:
                    yield rect, functools.partial(store.write, rect)
                else:
                    yield rect, functools.partial(journal.write, whole, 1, rect)


def mirror(store: TileStore, tile: int, memory: int | None, journal: Any = None) -> None:
    """Fill the upper triangle with the adjoint of the lower one where a store keeps it, tiles along the diagonal left alone."""
    from pycauset.devices.numpy import mirror_lower

    def mirrored(block: Array) -> Array:
        mirror_lower(block, store.dtype.kind == "c")
        return block

    array = in_memory(store)
    if array is not None:
        mirrored(array)
        return
    if store.structure != "full":
        _repair(store, tile, mirrored)
        return
    with _buffer(store, store.chunks[0] * store.chunks[1], "mirroring a triangle", memory) as buffer:
        for rect, put in _pieces_beyond(store, "lower", tile, journal):
            part = buffer[: rect.size].reshape(rect.T.shape)
            store.read(rect.T, part)
            put(part.conj().T)


def check_finite(name: str, store: TileStore, part: str = "full", *, what: str = "a", memory: int | None = None) -> None:
    """Raise `NonFiniteError` if a store, or one triangle of it, holds NaN or infinity; the error names an element and its tile.

    Each element is read once, from a disk by a few threads; what they have room for in ``memory`` bytes.
    """
    if store.dtype.kind not in "fc":
        return
    here = in_memory(store)
    rects = list(rectangles(store, part))
    largest = max((rect.size for rect in rects), default=0) if here is None else 0
    threads = 1
    if here is None and largest:
        room = 16 * _ELEMENTS if memory is None else memory // (4 * store.dtype.itemsize)
        threads = max(1, min(4, cpu_info().cores, len(rects), room // largest))
    spare: list[Array] = []

    def look(rect: Rect) -> NonFiniteError | None:
        if here is not None:
            return _non_finite(name, what, here[rect.slices], rect, part, "")
        flat = spare.pop()
        block = flat[: rect.size].reshape(rect.shape)
        try:
            store.read(rect, block)
            return _non_finite(
                name, what, block, rect, part, f", in the tile of rows {rect.r0}:{rect.r1}, columns {rect.c0}:{rect.c1}"
            )
        finally:
            spare.append(flat)

    with _buffer(store, threads * largest, f"{name}: looking for NaN and infinity", memory) as buffer:
        spare += [buffer[at * largest : (at + 1) * largest] for at in range(threads)]
        if threads == 1:
            found = next(filter(None, map(look, rects)), None)
        else:
            with ThreadPoolExecutor(threads) as pool:
                found = next(filter(None, pool.map(look, rects)), None)
                pool.shutdown(cancel_futures=True)
    if found is not None:
        raise found


def _non_finite(name: str, what: str, block: Array, rect: Rect, part: str, where: str) -> NonFiniteError | None:
    """The error of a block's first element that is not finite, as far as it lies in the triangle."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(block.sum()):  # at a fraction of what looking at each takes; an overflow only costs the look
            return None
    bad = ~np.isfinite(block)
    if part == "lower":
        bad = np.tril(bad, rect.r0 - rect.c0)
    elif part == "upper":
        bad = np.triu(bad, rect.r0 - rect.c0)
    found = np.argwhere(bad)
    if not len(found):
        return None
    i, j = (int(k) for k in found[0])
    return NonFiniteError(
        f"{name}: {what} holds {block[i, j]} at row {rect.r0 + i}, column {rect.c0 + j}{where}; NaN and infinity cannot "
        "be computed with"
    )


def check_hermitian(name: str, store: TileStore, memory: int | None) -> None:
    """Compare every element with its mirror image, exactly; `NotHermitianError` names the first pair that differs."""
    n = store.shape[0]
    unit = max(store.chunks)
    room = 1 << 20 if memory is None else max(1, memory // (8 * store.dtype.itemsize))
    side = max(1, min(n, unit if unit * unit <= room else int(room**0.5)))
    if unit * unit < room >> 2:
        side = min(n, round_up(int(room**0.5) // 2, unit))
    kind = "Hermitian" if store.dtype.kind == "c" else "symmetric"
    with _buffer(store, 2 * side * side, f"{name}: comparing with the transpose", memory) as buffer:
        for i in range(ceil_div(n, side)):
            for j in range(i + 1):
                rect = Rect(i * side, min((i + 1) * side, n), j * side, min((j + 1) * side, n))
                x = buffer[: rect.size].reshape(rect.shape)
                y = buffer[side * side : side * side + rect.size].reshape(rect.T.shape)
                store.read(rect, x)
                store.read(rect.T, y)
                with np.errstate(invalid="ignore"):
                    bad = (x != y.conj().T) & ~(np.isnan(x) & np.isnan(y.T)) if x.dtype.kind in "fc" else x != y.T
                if bad.any():
                    r, c = (int(k) for k in np.argwhere(np.tril(bad) if i == j else bad)[0])
                    row, col = rect.r0 + r, rect.c0 + c
                    pair = f" and a[{col}, {row}] is {y[c, r]}" if row != col else ", which has an imaginary part"
                    raise NotHermitianError(
                        f"{name}: a is not {kind}: a[{row}, {col}] is {x[r, c]}{pair}; "
                        "symmetrize it, (a + a.H) / 2, or drop check=True, which reads one triangle only",
                        index=(row, col),
                    )


def diagonal(store: TileStore) -> Array:
    """The main diagonal, read by small squares."""
    n = min(store.shape)
    array = in_memory(store)
    if array is not None:
        return array.diagonal().copy()
    found = np.empty(n, store.dtype)
    step = max(1, min(store.chunks)) if store.whole_chunks else max(1, min(_STRIP, *store.chunks))
    for start in range(0, n, step):
        stop = min(start + step, n)
        block = np.empty((stop - start, stop - start), store.dtype)
        store.read(Rect(start, stop, start, stop), block)
        found[start:stop] = block.diagonal()
    return found
