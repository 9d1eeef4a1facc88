"""Elementwise operations and reductions from start to end: the result's place, its memory, the run, commit or discard."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from pycauset import config
from pycauset.drivers.elementwise import MapDriver, ReduceDriver, Term, run
from pycauset.governor import governor
from pycauset.storage import ArrayStore, TileStore, aligned_empty, scratch_store
from pycauset.tiling import Rect

__all__ = ["Term", "evaluate", "new_result", "reduce"]

#: Results below this are ordinary NumPy arrays, which nobody counts.
_UNCOUNTED: Final = 1 << 20
#: Host memory that a result in RAM leaves to the operation's slots.
_ROOM: Final = 64 << 20
#: Longest side of a chunk of a boolean result on disk.
_BIT_SIDE: Final = 1024


def in_ram(store: TileStore) -> np.ndarray[Any, Any] | None:
    """All of a store as an array, if it lies in memory."""
    return store.view(Rect(0, store.shape[0], 0, store.shape[1]))


def new_result(
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    limit: int | None,
    *,
    chunks: tuple[int, int] | None = None,
    structure: str = "full",
) -> TileStore:
    """A store for a result without a name: RAM under a ticket that lives as long as the array, else scratch.

    Parameters
    ----------
    shape : (int, int)
    dtype : numpy.dtype
    limit : int or None
        The operation's host memory, in bytes; at most half of it goes to the result.
    chunks, structure
        Of a scratch store.
    """
    nbytes = shape[0] * shape[1] * dtype.itemsize
    if limit is None or 2 * nbytes <= limit:
        if nbytes < _UNCOUNTED:
            return ArrayStore(np.empty(shape, dtype))
        ticket = governor().request("host", nbytes + _ROOM, owner=f"a result of shape {shape}")
        if ticket is not None:
            ticket.shrink(nbytes)
            array = aligned_empty(shape, dtype)
            # Views keep the array that owns the memory alive, not the one that they were taken from.
            owner = array.base if isinstance(array.base, np.ndarray) else array
            weakref.finalize(owner, ticket.release).atexit = False
            return ArrayStore(array)
    # A tile of the operands has the elements of a chunk of the result: bits are packed, what is compared is not.
    if chunks is None and dtype.kind == "b":
        chunks = min(max(1, shape[0]), _BIT_SIDE), min(max(1, shape[1]), _BIT_SIDE)
    return scratch_store(shape, dtype, chunks=chunks, structure=structure)


def evaluate(
    kernel: str,
    terms: Sequence[Term],
    params: tuple[Any, ...],
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    *,
    out: TileStore | None = None,
    owner: str,
    progress: Any = None,
    attributes: dict[str, Any] | None = None,
) -> TileStore:
    """Run a map into ``out``, or into a new store; it comes back committed, or is discarded when anything fails.

    Raises
    ------
    MemoryLimitError, StoreError
    """
    limit: int | None = config.get("memory")
    new = out is None
    target = new_result(shape, dtype, limit) if out is None else out
    if new and limit is not None and in_ram(target) is not None:
        limit -= target.nbytes
    driver = MapDriver(kernel, terms, target, params)
    try:
        if not new:
            target.begin_write()
        _run(driver, limit, owner, progress)
        target.commit(**(attributes or {}))
    except BaseException:
        target.discard()
        raise
    return target


def reduce(kernel: str, store: TileStore, params: tuple[Any, ...] = (), *, owner: str) -> np.ndarray[Any, Any]:
    """Run a reduction; returns the partial results that `ReduceDriver` describes."""
    driver = ReduceDriver(kernel, store, params)
    _run(driver, config.get("memory"), owner, None)
    return driver.partial


def _run(driver: MapDriver | ReduceDriver, limit: int | None, owner: str, progress: Any) -> None:
    with governor().scope(host=limit, owner=owner) as scope, contextlib.ExitStack() as stack:
        report = None
        if any(in_ram(store) is None for store in driver.stores):
            from pycauset.progress import reporter
            from pycauset.solver.run import clean_stop

            stack.enter_context(clean_stop())
            size = sum(store.dtype.itemsize for store in driver.stores)
            count = stack.enter_context(reporter(progress, owner, float(driver.work * size), unit="byte"))

            def report(elements: float) -> None:
                count(elements * size)

        run(driver, scope, on_progress=report)


@contextlib.contextmanager
def unfinished(store: TileStore) -> Iterator[None]:
    """A finished store is written in place: it looks unfinished until the block ends well."""
    store.begin_write(reserve=False)
    try:
        yield
        store.commit()
    except BaseException:
        store.discard()
        raise
