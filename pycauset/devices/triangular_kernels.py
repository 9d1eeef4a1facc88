"""Kernels of the CPU device for factorisations and triangular solves, and the copies and fills that go with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from pycauset.devices.blas import trmm, trsm
from pycauset.devices.lapack import potrf, trtri
from pycauset.devices.pivots import non_finite, not_positive_definite, singular
from pycauset.storage.base import place

__all__ = ["TRIANGULAR_KERNELS"]

Array = np.ndarray[Any, Any]

_STRIP: Final = 256  # rows per step: what a step writes stays in the second-level cache


def _potrf(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...], lane: Any) -> None:
    """``C = L`` with ``C = L Lᴴ``, or ``C = U`` with ``C = Uᴴ U``, rest zero; params (offset, lower)."""
    offset, lower = params
    c = writes[0]
    order = potrf(c, lower=lower)
    diagonal = c.diagonal().real
    # LAPACK compares with zero, which lets NaN and infinity pass: what they do to a row always shows on its diagonal.
    known = diagonal[: order - 1] if order else diagonal
    bad = np.flatnonzero(~(np.isfinite(known) & (known > 0)))
    if bad.size or order:
        pivot = int(bad[0]) if bad.size else order - 1
        raise not_positive_definite(offset + pivot, float(diagonal[pivot]))
    _clear(c, lower)


def _trsm(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...], lane: Any) -> None:
    """``X = alpha op(T)⁻¹ X`` or ``alpha X op(T)⁻¹``; params (side, uplo, op, unit, alpha), and a key that GPUs use."""
    side, uplo, op, unit, alpha, *_ = params
    trsm(reads[0], writes[0], side=side, uplo=uplo, op=op, unit=unit, alpha=alpha)


def _trmm(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...], lane: Any) -> None:
    """``C = alpha op(T) B`` or ``alpha B op(T)``; params (side, uplo, op, unit, alpha)."""
    side, uplo, op, unit, alpha = params
    np.copyto(writes[0], reads[1])
    trmm(reads[0], writes[0], side=side, uplo=uplo, op=op, unit=unit, alpha=alpha)


def _trtri(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...], lane: Any) -> None:
    """``T = T⁻¹`` of a triangle, written in full: rest zero, ones on a unit diagonal; params (uplo, unit, offset)."""
    uplo, unit, offset = params
    t = writes[0]
    order = trtri(t, uplo=uplo, unit=unit)
    if order:
        raise singular(offset + order - 1)
    _clear(t, uplo == "L")
    if unit:
        np.fill_diagonal(t, 1)


def _check_diagonal(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...], lane: Any) -> None:
    """Refuse zeros, NaN and infinity on the tile's diagonal; params (offset,)."""
    diagonal = reads[0].diagonal()
    bad = np.flatnonzero(~np.isfinite(diagonal) | (diagonal == 0))
    if bad.size:
        index, value = params[0] + int(bad[0]), diagonal[bad[0]].item()
        raise singular(index) if value == 0 else non_finite(index, value)


def _copy(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...], lane: Any) -> None:
    """``C = alpha op(A)``, of which only a part is kept and the rest zero; params (alpha, op, part of full, lower, upper)."""
    alpha, op, part = params
    a, c = reads[0], writes[0]
    if c.dtype.kind != "c":
        alpha = complex(alpha).real
    rows, cols = c.shape
    for start in range(0, rows, _STRIP):
        stop = min(start + _STRIP, rows)
        first = min(start, cols) if part == "upper" else 0
        last = min(stop, cols) if part == "lower" else cols
        strip = c[start:stop]
        strip[:, :first] = 0
        strip[:, last:] = 0
        block = strip[:, first:last]
        if alpha == 0:
            block[...] = 0
        elif op in "TH":
            place(block, a[first:last, start:stop], "hermitian" if op == "H" else "symmetric")
        else:
            np.copyto(block, a[start:stop, first:last])
            if op == "C" and block.dtype.kind == "c":
                np.conjugate(block, out=block)
        if alpha not in (0, 1):
            with np.errstate(all="ignore"):
                block *= alpha
        if part != "full":
            corner = c[start:stop, start : min(stop, cols)]
            corner[...] = np.tril(corner) if part == "lower" else np.triu(corner)


def _fill_identity(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...], lane: Any) -> None:
    """``C = value I``; params (value,)."""
    c = writes[0]
    c[...] = 0
    np.fill_diagonal(c, params[0])


def _clear(c: Array, lower: bool) -> None:
    """Zero the triangle of a square tile beyond the lower or upper one."""
    n = c.shape[0]
    for start in range(0, n, _STRIP):
        stop = min(start + _STRIP, n)
        corner = c[start:stop, start:stop]
        corner[...] = np.tril(corner) if lower else np.triu(corner)
        if lower:
            c[start:stop, stop:] = 0
        else:
            c[start:stop, :start] = 0


TRIANGULAR_KERNELS: Final[Mapping[str, Callable[..., None]]] = {
    "check_diagonal": _check_diagonal,
    "copy": _copy,
    "fill_identity": _fill_identity,
    "potrf": _potrf,
    "trmm": _trmm,
    "trsm": _trsm,
    "trtri": _trtri,
}
