"""Systems and inverses with diagonal matrices: only the diagonal is read, and one pass over the result does it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from pycauset.errors import NonFiniteError, SingularMatrixError
from pycauset.governor import governor
from pycauset.linalg.operands import in_memory, stored
from pycauset.linalg.results import Result
from pycauset.linalg.triangles import check_finite as refuse_non_finite
from pycauset.linalg.triangles import diagonal, rectangles
from pycauset.matrix import Matrix
from pycauset.properties import known, mask
from pycauset.storage import TileStore, aligned_empty
from pycauset.tiling import Rect

__all__ = ["invert_diagonal", "solve_diagonal"]

Array = np.ndarray[Any, Any]


def solve_diagonal(
    a: Matrix,
    right: Matrix,
    vector: bool,
    dtype: np.dtype[Any],
    *,
    check_finite: bool,
    overwrite: bool,
    out: Any,
    limits: dict[str, Any],
) -> Any:
    """``X = B / diag(A)``, row by row; B in RAM may be overwritten.

    Raises
    ------
    SingularMatrixError, NonFiniteError, MemoryLimitError, StoreError
    """
    limit = _limit(limits)
    pivots = _pivots("solve", a, dtype, check_finite)
    source = stored(right)
    array = right._array if right.op == "N" else None
    in_place = overwrite and out is None and array is not None and right.store.writable and right.dtype == dtype
    reads = (a.store,) if in_place else (a.store, right.store)
    chunks = source.chunks if source.path is not None else None
    with Result("solve", right.shape, dtype, right if in_place else out, reads=reads, limit=limit, chunks=chunks) as result:
        finite = True

        def divide(rect: Rect, block: Array) -> None:
            nonlocal finite
            source.read(rect, block)
            with np.errstate(all="ignore"):  # an error follows, with the element's place
                block /= pivots[rect.r0 : rect.r1, None]
            finite = finite and (not check_finite or bool(np.isfinite(block).all()))

        _fill("solve", result, dtype, divide, limit, limits["progress"])
        if not finite:
            if not in_place:
                refuse_non_finite("solve", source, what="b", memory=limit)
            raise NonFiniteError(f"solve: the solution overflows {dtype}" + (", or b held NaN or infinity" if in_place else ""))
        solution = result.finish(vector=vector)
    if in_place and array is not None:
        return array[:, 0] if vector else right
    return solution


def invert_diagonal(a: Matrix, dtype: np.dtype[Any], *, check_finite: bool, out: Any, limits: dict[str, Any]) -> Matrix:
    """``diag(1 / a_ii)``.

    Raises
    ------
    SingularMatrixError, NonFiniteError, MemoryLimitError, StoreError
    """
    limit = _limit(limits)
    pivots = _pivots("inv", a, dtype, check_finite)
    with np.errstate(all="ignore"):  # an error follows, with the index
        inverses = 1 / pivots
    if check_finite and not np.isfinite(inverses).all():
        raise NonFiniteError(f"inv: the inverse overflows {dtype} at index {int(np.flatnonzero(~np.isfinite(inverses))[0])}")

    def spread(rect: Rect, block: Array) -> None:
        block[...] = 0
        across = np.arange(max(rect.r0, rect.c0), min(rect.r1, rect.c1))
        block[across - rect.r0, across - rect.c0] = inverses[across]

    with Result("inv", a.shape, dtype, out, structure="lower", reads=(a.store,), limit=limit) as result:
        _fill("inv", result, dtype, spread, limit, limits["progress"])
        inverse: Matrix = result.finish(mask("is_diagonal"))
        return inverse


def _limit(limits: dict[str, Any]) -> int | None:
    """The host limit in bytes; one for the GPU, which is not used, must be a size all the same."""
    from pycauset.solver.run import named_limit

    named_limit(limits["gpu_memory"], "gpu_memory")
    return named_limit(limits["memory"], "memory")


def _pivots(name: str, a: Matrix, dtype: np.dtype[Any], check_finite: bool) -> Array:
    """The diagonal, which can be divided by."""
    if known(a._flags(), "has_unit_diagonal"):
        return np.ones(a.shape[0], dtype)
    found = diagonal(stored(a)).astype(dtype)
    zeros = np.flatnonzero(found == 0)
    if len(zeros):
        index = int(zeros[0])
        raise SingularMatrixError(
            f"{name}: the diagonal matrix is singular: it has a zero at index {index}; a least-squares solution exists without "
            "this row and column",
            index=index,
        )
    bad = np.flatnonzero(~np.isfinite(found))
    if check_finite and len(bad):
        raise NonFiniteError(f"{name}: the diagonal of a holds {found[bad[0]]} at index {int(bad[0])}")
    return found


def _fill(
    name: str, result: Result, dtype: np.dtype[Any], compute: Callable[[Rect, Array], None], limit: int | None, progress: Any
) -> None:
    """Compute a result along its chunks, each block where it lies or in a buffer."""
    from pycauset.progress import reporter
    from pycauset.solver.run import clean_stop

    store: TileStore = result.store
    rects = [rect for rect in rectangles(store, store.structure) if rect.size]
    held = in_memory(store)
    direct = held is not None and held.dtype == dtype
    largest = 0 if direct else max((rect.size for rect in rects), default=0)
    left = None if limit is None else max(1, limit - result.nbytes)
    with contextlib.ExitStack() as stack:
        stack.enter_context(clean_stop())
        scope = stack.enter_context(governor().scope(host=left, owner=name))
        stack.enter_context(scope.require("host", largest * dtype.itemsize, owner="a block on its way"))
        total = sum(rect.size for rect in rects) * dtype.itemsize
        report = stack.enter_context(reporter(progress, name, float(total), unit="byte"))
        buffer, done = aligned_empty(largest, dtype), 0
        for rect in rects:
            if direct and held is not None:
                compute(rect, held[rect.slices])
            else:
                block = buffer[: rect.size].reshape(rect.shape)
                compute(rect, block)
                store.write(rect, block)
            done += rect.size * dtype.itemsize
            report(float(done))
