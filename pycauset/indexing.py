"""``A[rows, cols]``: which elements NumPy's index notation means, and moving them between a store and an array.

Slices, integers, lists of integers and boolean masks are understood along each axis; lists along both axes select the
block where they cross, written with ``np.ix_`` as in NumPy.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from pycauset.errors import OutOfBoundsError
from pycauset.storage.base import TileStore
from pycauset.tiling import Rect, pieces

__all__ = ["SelectedStore", "Selection", "gather", "read", "scatter", "select"]

Array = np.ndarray[Any, Any]
_BUFFER: Final = 16 << 20  # bytes read at once for a selection that is not one rectangle
_SPAN: Final = 1 << 16


class Selection(NamedTuple):
    """Rows and columns, as ranges or lists of indices from 0; ``drop`` says which axis an integer has taken away."""

    rows: range | Array
    cols: range | Array
    drop: tuple[bool, bool]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the block, two-dimensional."""
        return len(self.rows), len(self.cols)

    @property
    def result_shape(self) -> tuple[int, ...]:
        """What NumPy's result has: axes that integers took away are gone."""
        return tuple(n for n, gone in zip(self.shape, self.drop, strict=True) if not gone)

    @property
    def ranges(self) -> tuple[range, range] | None:
        """Both axes, if they are ranges."""
        return (self.rows, self.cols) if isinstance(self.rows, range) and isinstance(self.cols, range) else None


def select(key: Any, shape: tuple[int, int]) -> Selection:
    """Parse an index of a matrix of this shape.

    Raises
    ------
    OutOfBoundsError
        If an index lies outside, there are more than two, or it is of a kind that matrices do not take.

    Examples
    --------
    >>> select((3, slice(None, None, -1)), (5, 4))
    Selection(rows=range(3, 4), cols=range(3, -1, -1), drop=(True, False))
    """
    keys = list(key) if isinstance(key, tuple) else [key]
    ellipses = sum(k is Ellipsis for k in keys)
    if ellipses > 1:
        raise OutOfBoundsError(f"the index {key!r} has {ellipses} ellipses; one is allowed")
    if ellipses:
        at = next(i for i, k in enumerate(keys) if k is Ellipsis)
        keys[at : at + 1] = [slice(None)] * (3 - len(keys))
    if len(keys) > 2:
        raise OutOfBoundsError(f"the index {key!r} has {len(keys)} parts; a matrix has two axes")
    keys += [slice(None)] * (2 - len(keys))
    if all(isinstance(k, np.ndarray) and k.ndim == 2 for k in keys) and keys[0].shape[1] == 1 and keys[1].shape[0] == 1:
        keys = [keys[0][:, 0], keys[1][0]]  # np.ix_
    elif all(isinstance(k, (list, np.ndarray)) and np.ndim(k) for k in keys):
        raise OutOfBoundsError("lists along both axes select single elements in NumPy; write A[np.ix_(rows, cols)] for the block")
    (rows, no_rows), (cols, no_cols) = (_axis(k, n, axis) for axis, (k, n) in enumerate(zip(keys, shape, strict=True)))
    return Selection(rows, cols, (no_rows, no_cols))


def _axis(key: Any, size: int, axis: int) -> tuple[range | Array, bool]:
    name = ("row", "column")[axis]
    if isinstance(key, slice):
        try:
            return range(*key.indices(size)), False
        except (TypeError, ValueError) as error:
            raise OutOfBoundsError(f"{name}s {key!r}: {error}") from None
    if isinstance(key, (list, np.ndarray)) and np.ndim(key) == 1:
        return _list(np.asarray(key), size, name), False
    try:
        if isinstance(key, (bool, np.bool_)) or key is None:
            raise TypeError
        index = operator.index(key)
    except TypeError:
        raise OutOfBoundsError(
            f"{key!r} is no {name} index; use an integer, a slice, a list of integers or a mask of {size} booleans"
        ) from None
    if not -size <= index < size:
        raise OutOfBoundsError(f"{name} {index} lies outside a matrix with {size} {name}s, numbered {-size} to {size - 1}")
    index += size if index < 0 else 0
    return range(index, index + 1), True


def _list(indices: Array, size: int, name: str) -> Array:
    if indices.dtype.kind == "b":
        if len(indices) != size:
            raise OutOfBoundsError(f"a mask of {len(indices)} booleans for {size} {name}s; both must be equal")
        return np.flatnonzero(indices)
    if not len(indices):
        return np.zeros(0, np.int64)
    if indices.dtype.kind not in "iu":
        raise OutOfBoundsError(f"{name} indices of type {indices.dtype}; they must be integers or booleans")
    indices = indices.astype(np.int64)
    wrong = indices[(indices < -size) | (indices >= size)]
    if len(wrong):
        raise OutOfBoundsError(f"{name} {wrong[0]} lies outside a matrix with {size} {name}s")
    return np.where(indices < 0, indices + size, indices)


def read(store: TileStore, op: str, rect: Rect, out: Array) -> None:
    """Fill ``out`` with the elements ``rect`` of ``op(store)``; op is N, T, H or C (conjugated)."""
    if op in "TH":
        store.read(rect.T, out.T)
    else:
        store.read(rect, out)
    if op in "HC" and out.dtype.kind == "c":
        np.conjugate(out, out=out)


def gather(store: TileStore, op: str, rows: range | Array, cols: range | Array, out: Array) -> None:
    """Fill ``out`` (rows, columns) with the selected elements of ``op(store)``.

    Raises
    ------
    StoreError
        If the store cannot be read.
    """
    if op in "TH":
        rows, cols, out = cols, rows, out.T
    whole = _rect(rows, cols)
    if whole is not None:
        store.read(whole, out)
    else:
        for rect, at_rows, at_cols, in_rows, in_cols in _blocks(store, rows, cols):
            buffer = np.empty(rect.shape, store.dtype)
            store.read(rect, buffer)
            out[np.ix_(at_rows, at_cols)] = buffer[np.ix_(in_rows, in_cols)]
    if op in "HC" and out.dtype.kind == "c":
        np.conjugate(out, out=out)


def scatter(store: TileStore, op: str, rows: range | Array, cols: range | Array, values: Callable[[Rect], Array]) -> None:
    """Write ``values`` over the selected elements of ``op(store)``.

    ``values`` is asked for rectangles of the selection, as it stands in ``op(store)``. Partly covered chunks are read,
    changed and written back.

    Raises
    ------
    StoreError
        If the store cannot be read or written.
    """
    transposed = op in "TH"
    if transposed:
        rows, cols = cols, rows

    def block(rect: Rect) -> Array:
        array = values(rect.T).T if transposed else values(rect)
        return array.conj() if op in "HC" and array.dtype.kind == "c" else array

    whole = _rect(rows, cols)
    if whole is not None:
        for _, _, rect in pieces(whole, store.chunks):
            store.write(rect, block(rect.shift(-whole.r0, -whole.c0)))
        return
    for rect, at_rows, at_cols, in_rows, in_cols in _blocks(store, rows, cols):
        buffer = np.empty(rect.shape, store.dtype)
        store.read(rect, buffer)
        span = Rect(int(at_rows.min()), int(at_rows.max()) + 1, int(at_cols.min()), int(at_cols.max()) + 1)
        part = block(span)[np.ix_(at_rows - span.r0, at_cols - span.c0)]
        with np.errstate(all="ignore"):
            buffer[np.ix_(in_rows, in_cols)] = part
        store.write(rect, buffer)


def _rect(rows: range | Array, cols: range | Array) -> Rect | None:
    """The selection as one rectangle, if it is one."""
    if isinstance(rows, range) and isinstance(cols, range) and rows.step == 1 and cols.step == 1:
        return Rect(rows.start, max(rows.start, rows.stop), cols.start, max(cols.start, cols.stop))
    if len(rows) == 0 or len(cols) == 0:
        return Rect(0, len(rows), 0, 0) if len(rows) else Rect(0, 0, 0, len(cols))
    return None


def _blocks(store: TileStore, rows: range | Array, cols: range | Array) -> Iterator[tuple[Rect, Array, Array, Array, Array]]:
    """Rectangles of the store that cover a selection: each with positions in the selection and in the rectangle."""
    row_list, col_list = np.asarray(rows, dtype=np.int64), np.asarray(cols, dtype=np.int64)
    for at_cols in _runs(col_list, _SPAN):
        c0, c1 = int(col_list[at_cols[0]]), int(col_list[at_cols[-1]]) + 1
        height = max(1, _BUFFER // ((c1 - c0) * store.dtype.itemsize))
        for at_rows in _runs(row_list, height):
            r0, r1 = int(row_list[at_rows[0]]), int(row_list[at_rows[-1]]) + 1
            yield Rect(r0, r1, c0, c1), at_rows, at_cols, row_list[at_rows] - r0, col_list[at_cols] - c0


def _runs(indices: Array, span: int) -> Iterator[Array]:
    """Positions of the indices in ascending order, cut so that each run spans at most ``span``."""
    order = np.argsort(indices, kind="stable")
    ascending = indices[order]
    start = 0
    while start < len(order):
        stop = int(np.searchsorted(ascending, ascending[start] + span))
        yield order[start:stop]
        start = stop


class SelectedStore(TileStore):
    """The selected elements of ``op(store)`` as a read-only store of their own: the source of a streamed copy."""

    def __init__(self, store: TileStore, op: str, selection: Selection) -> None:
        self._store, self._op, self._selection = store, op, selection
        self.shape, self.dtype = selection.shape, store.dtype
        rows, cols = store.chunks[::-1] if op in "TH" else store.chunks
        self.chunks = max(1, min(rows, self.shape[0])), max(1, min(cols, self.shape[1]))
        self.identity = ("selection", store.identity, op, repr(selection))
        self.attributes = {}

    def temporary_bytes(self, shape: tuple[int, int], dtype: Any) -> int:
        """The rectangle that is read around a selection with steps, and what the store itself needs."""
        within = self._store.temporary_bytes(shape[::-1] if self._op in "TH" else shape, dtype)
        whole = _rect(self._selection.rows, self._selection.cols) is not None
        return within + (0 if whole else 2 * _BUFFER)

    def _read(self, rect: Rect, out: Array) -> None:
        rows, cols = self._selection.rows[rect.r0 : rect.r1], self._selection.cols[rect.c0 : rect.c1]
        gather(self._store, self._op, rows, cols, out)
