"""Checking a product without computing it again, by random probing.

Freivalds' algorithm [1]_: for random signs x, ``C x`` and ``A (B x)`` agree if ``C = A B``, and for a wrong row of C each x
shows the difference with probability 1/2 or more.

How far they may differ by rounding alone: an element of C is a sum of k products of independent numbers of mean zero, so
its rounding error grows like ``u ‖A_i‖ ‖B_j‖`` with no factor of k [2]_; n such errors times random signs add up to
``u ‖A_i‖ ‖B‖_F`` times a small number (Hoeffding). Adding up ``C x`` itself, in double precision (unit v), costs up to
``v √n ‖C_i‖``. The scaled residual ``max |Cx - A(Bx)|_i / (eps(u) ‖A_i‖ ‖B‖_F + eps(v) √n ‖C_i‖)`` is thus of the order of one,
or less, for every size, and the limit is LAPACK's customary 30.

References
----------
.. [1] R. Freivalds, "Probabilistic machines can use less running time", IFIP Congress 1977, 839-842.
.. [2] N. J. Higham and T. Mary, "Sharper probabilistic backward error analysis for basic linear algebra kernels with
   random data", SIAM J. Sci. Comput. 42 (2020), A3427-A3446.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pycauset.errors import ShapeError
from pycauset.hardware import probe
from pycauset.progress import ProgressOption, reporter
from pycauset.storage import TileStore
from pycauset.tiling import Rect

__all__ = ["RESIDUAL_LIMIT", "VECTORS", "freivalds"]

RESIDUAL_LIMIT: Final = 30.0
"""A scaled residual above this is a wrong result, not rounding."""

VECTORS: Final = 16
"""Random vectors unless told otherwise: a wrong row escapes with probability 2**-16 at most."""

_TILE_BYTES: Final = 32 << 20


def freivalds(
    c: TileStore,
    a: TileStore,
    b: TileStore | None = None,
    *,
    vectors: int = VECTORS,
    seed: int = 0,
    memory: int = 256 << 20,
    progress: ProgressOption = False,
) -> float:
    """Scaled residual of ``C = A B`` under random probing: of the order of 1 or less for rounding, huge for a wrong C.

    Every matrix is read once, A twice if it stands for B too, tile by tile; tiles beyond the diagonal of a triangle are not read.

    Parameters
    ----------
    c, a : TileStore (m, n), (m, k)
    b : TileStore (k, n), optional
        ``Aᴴ`` by default.
    vectors : int
        Random sign vectors: a wrong row of C escapes all of them with probability 2**-vectors at most.
    seed : int
        Of the signs.
    memory : int
        Bytes for tiles and vectors.
    progress : callable, bool or None

    Returns
    -------
    float
        The largest over all rows and vectors, as defined at the top of this module; infinite if C is not finite.

    Raises
    ------
    ShapeError
        If the shapes do not fit.

    Examples
    --------
    >>> from pycauset.storage import as_store
    >>> rng = np.random.default_rng(1)
    >>> x, y = rng.standard_normal((50, 30)), rng.standard_normal((30, 40))
    >>> z = x @ y
    >>> freivalds(as_store(z), as_store(x), as_store(y)) < RESIDUAL_LIMIT
    True
    >>> z[7, 11] += 1e-9
    >>> freivalds(as_store(z), as_store(x), as_store(y)) < RESIDUAL_LIMIT
    False
    """
    own = b is None
    b = a if b is None else b
    (m, k), (other, n) = a.shape, b.shape[::-1] if own else b.shape
    if k != other or c.shape != (m, n):
        raise ShapeError(f"C of shape {c.shape} cannot be the product of A {a.shape} and B {b.shape}")
    if not m or not n:
        return 0.0
    x = np.random.default_rng(seed).choice(np.array([-1.0, 1.0]), size=(n, vectors))
    total = c.nbytes + a.nbytes + b.nbytes
    with reporter(progress, "checking the product", total, unit="byte") as report:
        read = _Tally(report)
        bx, b_rows = _product(b, x, memory, read, adjoint=own)
        abx, a_rows = _product(a, bx, memory, read)
        cx, c_rows = _product(c, x, memory, read)
    wrong = np.abs(cx - abx).max(axis=1)
    eps = float(np.finfo(np.result_type(a.dtype, b.dtype, np.float32)).eps)
    scale = eps * np.sqrt(a_rows * b_rows.sum()) + float(np.finfo(np.float64).eps) * np.sqrt(n * c_rows)
    if not np.isfinite(wrong).all():
        return math.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(wrong == 0, 0.0, wrong / scale)
    return float(ratio.max())


class _Tally:
    """Bytes read so far, for the progress bar of the thread that waits."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report, self._bytes = report, 0

    def add(self, nbytes: int) -> None:
        self._bytes += nbytes
        self._report(self._bytes)


def _product(
    store: TileStore, x: NDArray[Any], memory: int, read: _Tally, *, adjoint: bool = False
) -> tuple[NDArray[Any], NDArray[Any]]:
    """``store @ x``, or ``storeᴴ @ x`` for real x, in double precision, and the squared norms of its rows; strips in parallel."""
    (m, n), (height, width) = (shape[::-1] if adjoint else shape for shape in (store.shape, store.chunks))
    kind = np.result_type(store.dtype, np.float64)
    workers = max(1, min(16, probe.cpu_info().cores))
    height, width = min(height, m), min(width, n)
    room = min(_TILE_BYTES, memory // (4 * workers)) // kind.itemsize
    height = max(1, min(height, room // max(1, width)))
    width = max(1, min(n, max(width, room // height // max(1, width) * width)))
    y = np.zeros((m, x.shape[1]), np.result_type(kind, x.dtype))
    norms = np.zeros(m)
    stop = threading.Event()
    local = threading.local()

    def strip(r0: int) -> int:
        rows = slice(r0, min(r0 + height, m))
        buffer: NDArray[Any] | None = getattr(local, "buffer", None)
        if buffer is None:
            buffer = local.buffer = np.empty(height * width, kind)
        for c0 in range(0, n, width):
            if stop.is_set():
                break
            cols = slice(c0, min(c0 + width, n))
            rect = Rect(rows.start, rows.stop, cols.start, cols.stop)
            rect = rect.T if adjoint else rect
            if store.is_zero(rect):
                continue
            tile = buffer[: rect.size].reshape(rect.shape)
            store.read(rect, tile)
            y[rows] += (tile.T @ x[cols]).conj() if adjoint else tile @ x[cols]
            for part in (tile.real, tile.imag) if kind.kind == "c" else (tile,):
                norms[rows] += np.einsum("ij,ij->j" if adjoint else "ij,ij->i", part, part)
        return (rows.stop - rows.start) * n * store.dtype.itemsize

    with ThreadPoolExecutor(workers, thread_name_prefix="pycauset-check") as pool:
        strips = [pool.submit(strip, r0) for r0 in range(0, m, height)]
        try:
            for done in as_completed(strips):
                read.add(done.result())
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return y, norms
