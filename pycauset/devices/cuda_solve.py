"""Solves with large triangles on the GPU, as products.

A solve depends on itself row after row, and with a large triangle cuBLAS's own trsm stays well behind gemm. Here the triangle's
diagonal blocks of order 512 are inverted once, in one batch, and each solve is products with the inverses and with the triangle.
The residuals of solves are tested to the same bound as on the CPU (``tests/gpu/test_kernels.py``);
``benchmarks/gpu_cholesky_pinned.py`` checks a whole factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pycauset.devices.cublas import Cublas
from pycauset.tiling import round_up

if TYPE_CHECKING:
    from pycauset.devices.cuda_kernels import CudaKernels
    from pycauset.devices.cuda_lane import CudaLane
    from pycauset.devices.cupy import TileView

__all__ = ["BLOCK", "ITEMSIZE", "part", "solve", "solve_by_blocks", "workspace_bytes"]

#: Order of the diagonal blocks that are inverted.
BLOCK: Final = 512
ITEMSIZE: Final = {"float32": 4, "float64": 8, "complex64": 8, "complex128": 16}
_OPPOSITE: Final = {"L": "R", "R": "L"}
_MIRRORED: Final = {"L": "U", "U": "L"}
_POINTERS: Final = 4096  # bytes of a batch's addresses
_TO_DEVICE, _WITHIN = 1, 3  # directions of copies


def workspace_bytes(n: int, longest: int, dtype: str) -> int:
    """Device memory for a triangle of order ``n`` and right-hand sides with sides up to ``longest``."""
    return _POINTERS + (round_up(n, BLOCK) + longest) * BLOCK * ITEMSIZE[dtype]


def part(t: TileView, row: int, col: int, rows: int, cols: int) -> TileView:
    """A rectangle of a tile."""
    return t._replace(address=t.address + (row * t.ld + col) * ITEMSIZE[t.kind], rows=rows, cols=cols)


def solve(blas: Cublas, t: TileView, x: TileView, side: str, uplo: str, op: str, unit: bool, alpha: complex) -> None:
    """``X = alpha op(T)⁻¹ X`` or ``alpha X op(T)⁻¹``: one call to cuBLAS, which sees transposes of row-major tiles."""
    blas.trsm(x.kind, _OPPOSITE[side], _MIRRORED[uplo], op, unit, x.cols, x.rows, alpha, t.address, t.ld, x.address, x.ld)


def solve_by_blocks(
    kernels: CudaKernels, t: TileView, x: TileView, params: tuple[Any, ...], key: Any, address: int, lane: CudaLane
) -> None:
    """``X = op(T)⁻¹ X`` or ``X op(T)⁻¹``, right-looking; params (side, uplo, op, unit).

    The inverses stay at ``address`` until this lane is asked for those of another ``key``.
    """
    side, uplo, op, unit = params
    n, size = t.rows, ITEMSIZE[t.kind]
    inverses = _inverses(kernels, t, uplo, unit, key, address, lane)
    scratch = address + _POINTERS + round_up(n, BLOCK) * BLOCK * size
    downwards = ((uplo == "L") == (op == "N")) == (side == "L")
    order = range(len(inverses))
    for index in order if downwards else reversed(order):
        first, rows = index * BLOCK, inverses[index].rows
        start, stop = (first + rows, n) if downwards else (0, first)  # what still depends on this block
        here = part(x, first, 0, rows, x.cols) if side == "L" else part(x, 0, first, x.rows, rows)
        copy = here._replace(address=scratch, ld=here.cols)
        kernels.runtime.memcpy2DAsync(
            scratch, here.cols * size, here.address, here.ld * size, here.cols * size, here.rows, _WITHIN, lane.stream
        )
        # A full product: faster here than cuBLAS's trmm in place.
        _product(kernels, inverses[index], copy, here, side, op, 1.0, 0.0, lane)
        if start == stop:
            continue
        # op(T)[rest, block] on the left, op(T)[block, rest] on the right; as stored, the other way round unless op is "N".
        if (side == "L") == (op == "N"):
            panel = part(t, start, first, stop - start, rows)
        else:
            panel = part(t, first, start, rows, stop - start)
        rest = part(x, start, 0, stop - start, x.cols) if side == "L" else part(x, 0, start, x.rows, stop - start)
        _product(kernels, panel, here, rest, side, op, -1.0, 1.0, lane)


def _product(
    kernels: CudaKernels,
    t: TileView,
    x: TileView,
    c: TileView,
    side: str,
    op: str,
    alpha: float,
    beta: float,
    lane: CudaLane,
) -> None:
    """``C = alpha op(T) X + beta C`` or ``alpha X op(T) + beta C``."""
    if side == "L":
        kernels.table["gemm"]((t, x), (c,), (alpha, beta, op, "N"), lane)
    else:
        kernels.table["gemm"]((x, t), (c,), (alpha, beta, "N", op), lane)


def _inverses(
    kernels: CudaKernels, t: TileView, uplo: str, unit: bool, key: Any, address: int, lane: CudaLane
) -> Sequence[TileView]:
    """The inverses of T's diagonal blocks, one behind the other, zero in the other triangle."""
    known = address, t.rows, t.kind, uplo, unit, key
    size = ITEMSIZE[t.kind]
    first = address + _POINTERS
    inverses = []
    for start in range(0, t.rows, BLOCK):
        rows = min(BLOCK, t.rows - start)
        inverses.append(t._replace(address=first + start * BLOCK * size, rows=rows, cols=rows, ld=rows))
    if lane.kept == known:
        return inverses
    lane.kept = None
    assert lane.blas is not None
    whole = t.rows // BLOCK
    for inverse in inverses:
        kernels.table["fill_identity"]((), (inverse,), (1.0,), lane)
    if whole:
        step = BLOCK * (t.ld + 1) * size
        addresses = np.array(
            [[t.address + i * step for i in range(whole)], [inverses[i].address for i in range(whole)]], np.uint64
        )
        kernels.runtime.memcpyAsync(address, addresses.ctypes.data, addresses.nbytes, _TO_DEVICE, lane.stream)
        # T X = I with row-major tiles is Xᵀ Tᵀ = I for cuBLAS.
        lane.blas.trsm_batched(
            t.kind, "R", _MIRRORED[uplo], "N", unit, BLOCK, BLOCK, 1.0, address, t.ld, address + 8 * whole, BLOCK, whole
        )
    if whole < len(inverses):
        last = inverses[-1]
        solve(lane.blas, part(t, whole * BLOCK, whole * BLOCK, last.rows, last.rows), last, "L", uplo, "N", unit, 1.0)
    lane.kept = known
    return inverses
