"""Triangular solve (TRSM), inverse, product (TRMM) and product with the own adjoint, on matrices larger than memory.

Mathematics: with op(T) cut into tiles T_lk (l ≥ k in the order of computation: *positions* run backwards for an upper
triangle), right-hand sides into B_lj and results into X_lj,

* solve:    ``X_lj = T_ll⁻¹ (α B_lj − Σ_{k<l} T_lk X_kj)``,
* inverse:  the same with B = I, where only tiles with l ≥ j exist, and ``W_jj = T_jj⁻¹``,
* product:  ``C_lj = α Σ_{k≤l} T_lk B_kj``,
* gram:     ``G = P Pᴴ`` with P = op(T), one triangle of it, where again a third of the flops of a product is left.

On the right, ``X op(T) = α B`` is the same for transposed tiles. Order: left-looking over resident blocks of the result
(see :mod:`pycauset.drivers.triangular_plan` for their size and their bytes). Panels of *final* tiles stream past a block,
and each task writes exactly one tile of the result, so that an interrupted run can go on from the tiles that are on disk.
Only the named triangle of T is read, and within a diagonal tile only its triangle is used.

References
----------
.. [1] J. J. Du Croz and N. J. Higham, "Stability of methods for matrix inversion", IMA J. Numer. Anal. 12 (1992), method 1.
.. [2] S. Toledo, "A survey of out-of-core algorithms in numerical linear algebra", DIMACS 50 (1999).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pycauset.drivers.blocked import BlockedPlan
from pycauset.drivers.task import Tile, TileTask
from pycauset.drivers.triangular_base import RESULT, THIRD, TriangularDriver, area, width
from pycauset.drivers.triangular_product import TriangularGramDriver, TriangularProductDriver
from pycauset.storage.base import TileJournal, TileStore

__all__ = ["TriangularGramDriver", "TriangularInverseDriver", "TriangularProductDriver", "TriangularSolveDriver"]


class TriangularSolveDriver(TriangularDriver):
    """The state machine of ``op(T) X = alpha B`` or ``X op(T) = alpha B``.

    Parameters
    ----------
    t : TileStore
        (n, n); only the triangle that ``uplo`` names is read.
    x : TileStore
        The solution, (n, m), or (m, n) on the right.
    dtype : dtype
        What kernels compute in.
    origin : TileStore, optional
        The right-hand sides B. Without it they lie in ``x``, and are overwritten.
    side : {"L", "R"}
        Where T stands.
    uplo : {"L", "U"}
        Which triangle of T holds the matrix, as stored.
    op : {"N", "T", "H"}
        T as stored, transposed, conjugate transposed.
    unit : bool
        T's diagonal is taken as ones and not read.
    alpha : scalar
    journal : TileJournal, optional
        Keeps what is final, for an operation that may be interrupted.
    check : bool
        Look for zeros and non-finite numbers on T's diagonal. In place that comes first, before anything is overwritten;
        otherwise with the first use of each diagonal tile.
    """

    kind = "solve"

    def __init__(
        self,
        t: TileStore,
        x: TileStore,
        dtype: np.dtype[Any],
        *,
        origin: TileStore | None = None,
        side: str = "L",
        uplo: str = "L",
        op: str = "N",
        unit: bool = False,
        alpha: complex = 1.0,
        journal: TileJournal | None = None,
        check: bool = True,
    ) -> None:
        checks = "" if unit or not check else "first" if origin is None else "inline"
        options: dict[str, Any] = {"side": side, "uplo": uplo, "op": op, "unit": unit, "alpha": alpha}
        super().__init__(t, x, dtype, origin=origin, journal=journal, checks=checks, **options)

    def tasks(self, plan: BlockedPlan) -> Iterator[TileTask]:
        """The tile tasks, in order."""
        return _substitute(self, plan, inverse=False)


class TriangularInverseDriver(TriangularDriver):
    """The state machine of ``W = T⁻¹``: one triangle is read, computed and written, in n³/3 flops.

    Parameters
    ----------
    t : TileStore
        (n, n); only the triangle that ``uplo`` names is read.
    w : TileStore
        (n, n), another store; only tiles of the same triangle are written, with zeros in the rest of diagonal tiles.
    dtype : dtype
        What kernels compute in.
    uplo : {"L", "U"}
        Which triangle, as stored.
    unit : bool
        T's diagonal is taken as ones and not read.
    journal : TileJournal, optional
        Keeps what is final, for an operation that may be interrupted.
    """

    kind = "inverse"

    def __init__(
        self,
        t: TileStore,
        w: TileStore,
        dtype: np.dtype[Any],
        *,
        uplo: str = "L",
        unit: bool = False,
        journal: TileJournal | None = None,
    ) -> None:
        super().__init__(t, w, dtype, uplo=uplo, unit=unit, journal=journal, checks="" if unit else "inline")

    def tasks(self, plan: BlockedPlan) -> Iterator[TileTask]:
        """The tile tasks, in order."""
        return _substitute(self, plan, inverse=True)


def _substitute(
    driver: TriangularSolveDriver | TriangularInverseDriver, plan: BlockedPlan, *, inverse: bool
) -> Iterator[TileTask]:
    """Forward substitution over resident blocks, outer product by outer product; with ``inverse``, where B = I."""
    row, column = driver.spans(plan)
    if inverse:
        column = row
    if not row or not column:
        return
    h, w = plan.block
    rows, cols = len(row), len(column)
    copies = not inverse and len(plan.slots) > THIRD
    f = driver.unit_flops
    triangle = (driver.side, driver.uplo, driver.op, driver.unit)
    part = "lower" if driver.uplo == "L" else "upper"

    def factor(i: int, k: int) -> Tile:
        return driver.factor(row[i], row[k])

    def result(i: int, j: int) -> Tile:
        return driver.other(RESULT, row[i], column[j])

    def stays(i: int, k: int, most: int) -> bool:
        """Whether a tile of T is among the first ``most``, numbered by columns from the last one on."""
        return (rows - 1 - k) * (rows - k) // 2 + i - k < most

    def out(i: int, k: int, last: bool) -> tuple[Tile, ...]:
        """A tile of T that is given up after its last use in a step."""
        return (factor(i, k),) if last and not stays(i, k, plan.keep) else ()

    def passing(i: int, k: int) -> tuple[Tile, ...]:
        """A tile of T that the host level need not keep."""
        return () if stays(i, k, plan.host_keep) else (factor(i, k),)

    def filled(x: Tile) -> TileTask:
        b = Tile(THIRD, *x[1:])
        return TileTask("copy", (b,), (x,), (driver.alpha, "N", "full"), 0.0, (b,), (b,))

    def finish(k: int, j: int, last: bool, leaves: bool) -> Iterator[TileTask]:
        """Row k of the block: solve with the diagonal tile; ``leaves`` tells that no row of the block needs the result."""
        t, x = factor(k, k), result(k, j)
        first = k == 0
        if copies and first:
            yield filled(x)
        alpha = driver.alpha if first and not inverse and not copies else 1.0
        drop = out(k, k, last) + ((x,) if leaves else ())
        yield TileTask("trsm", (t, x), (x,), (*triangle, alpha), f * area(t) * width(column[j]), drop, (*passing(k, k), x))

    def invert(k: int, leaves: bool) -> Iterator[TileTask]:
        """The diagonal tile of the inverse."""
        t, x = factor(k, k), result(k, k)
        flops = f * width(row[k]) ** 3 / 3
        yield TileTask("copy", (t,), (x,), (1.0, "N", part), 0.0, out(k, k, True), passing(k, k))
        yield TileTask("trtri", (x,), (x,), (driver.uplo, driver.unit, row[k][0]), flops, (x,) if leaves else ())

    def update(i: int, k: int, j: int, last: bool, leaves: bool) -> Iterator[TileTask]:
        """``X_ij −= T_ik X_kj``; ``last`` use of T_ik in this step, ``leaves`` the last one of X_kj."""
        t, y, x = factor(i, k), result(k, j), result(i, j)
        drop = out(i, k, last) + ((y,) if leaves else ())
        forget = (*passing(i, k), y, x)
        if inverse and j == k:  # the first update, and X_kk is triangular itself
            flops = f * area(y) * width(row[i])
            yield TileTask("trmm", (y, t), (x,), ("R", driver.uplo, "N", False, -1.0), flops, drop, forget)
            return
        beta: complex = 1.0
        if k == 0:
            if copies:
                yield filled(x)
            else:
                beta = driver.alpha
        yield driver.gemm(t, y, x, (-1.0, beta), drop, forget)

    if driver.checks == "first":
        for k in range(rows):
            yield TileTask("check_diagonal", (factor(k, k),), (), (row[k][0],), 0.0, out(k, k, True), passing(k, k))
    for left in range(0, cols, w):
        right = min(left + w, cols)
        for top in range(left if inverse else 0, rows, h):
            bottom = min(top + h, rows)
            for k in range(left if inverse else 0, bottom):
                js = range(left, min(right, k + 1) if inverse else right)
                below = range(max(top, k + 1), bottom)
                if k >= top:
                    if driver.checks == "inline" and left == 0:
                        yield TileTask("check_diagonal", (factor(k, k),), (), (row[k][0],), 0.0, (), passing(k, k))
                    for j in js:
                        if inverse and j == k:
                            yield from invert(k, not below)
                        else:
                            yield from finish(k, j, j == js[-1], not below)
                if k < top and plan.variant == "panel of T":
                    for j in js:
                        for i in below:
                            yield from update(i, k, j, j == js[-1], i == below[-1])
                else:
                    for i in below:
                        for j in js:
                            yield from update(i, k, j, j == js[-1], i == below[-1])
