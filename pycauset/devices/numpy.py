"""The CPU as a device: kernels on host slots through BLAS, in place and without the GIL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pycauset.devices.base import Device, Lanes, MemoryScope, Mode, Slab
from pycauset.devices.blas import gemm, rank_k
from pycauset.devices.elementwise import ELEMENTWISE_KERNELS
from pycauset.devices.lanes import Failure, Span
from pycauset.devices.memory import PAGE, KeptMemory, pageable_slab
from pycauset.devices.triangular_kernels import TRIANGULAR_KERNELS
from pycauset.storage.base import TileStore
from pycauset.tiling import Rect, round_up

__all__ = ["NumpyDevice"]

Array = np.ndarray[Any, Any]


def _gemm(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...], lane: Any) -> None:
    """``C = alpha op(A) op(B) + beta C``; params (alpha, beta, op_a, op_b).

    Three more, (cols, row_b, row_c), ask for a part where op_b is "N": ``cols`` columns of A, rows of B and C from those on.
    """
    alpha, beta, op_a, op_b, *part = params
    a, b, c = reads[0], reads[1], writes[0]
    if part:
        cols, row_b, row_c = part
        a = a[:, :cols]
        rows, depth = a.shape if op_a == "N" else a.shape[::-1]
        b, c = b[row_b : row_b + depth], c[row_c : row_c + rows]
    gemm(a, b, c, alpha=alpha, beta=beta, op_a=op_a, op_b=op_b)


def _rank_k(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...], lane: Any) -> None:
    """``C = alpha op(A) op(A)ᵀ + beta C``, lower triangle, mirrored when it is the last one.

    Params (alpha, beta, op_a, hermitian, last), and "U" for the upper triangle instead.
    """
    alpha, beta, op_a, hermitian, last, *uplo = params
    c = writes[0]
    if hermitian and beta != 0 and c.dtype.kind == "c":
        np.fill_diagonal(c, c.diagonal().real)
    rank_k(reads[0], c, alpha=alpha, beta=beta, op_a=op_a, hermitian=hermitian, uplo=uplo[0] if uplo else "L")
    if last:
        mirror_lower(c, hermitian)


def _scale(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...], lane: Any) -> None:
    """``C = beta C``; params (beta,)."""
    if params[0] == 0:
        writes[0][...] = 0
    else:
        writes[0][...] *= params[0]


def mirror_lower(c: Array, hermitian: bool) -> None:
    """Copy the lower triangle of a square tile over the upper one, in strips that stay in cache."""
    n = c.shape[0]
    for i in range(0, n, 256):
        stop = min(i + 256, n)
        block = c[i:stop, i:stop]
        lower = np.tril(block, -1).T
        block[...] = np.tril(block) + (lower.conj() if hermitian else lower)
        c[i:stop, stop:] = c[stop:, i:stop].T.conj() if hermitian else c[stop:, i:stop].T


class NumpyDevice(Device):
    """BLAS on the host's cores. One compute lane: BLAS itself uses all cores.

    Slabs stay for the next run up to ``keep`` bytes; the governor should know :meth:`reclaim` then.
    """

    kind = "cpu"
    name = "CPU"
    unified = True

    def __init__(self, keep: int = 0) -> None:
        self._kept: KeptMemory[Array] = KeptMemory(lambda _: None, keep)
        self.kernels = {"gemm": _gemm, "rank_k": _rank_k, "scale": _scale, **ELEMENTWISE_KERNELS, **TRIANGULAR_KERNELS}

    def lanes(self, *, mode: Mode, failure: Failure, timeline: list[Span] | None, readers: int, writers: int) -> Lanes:
        read, compute, write = self.host_lanes(mode, failure, timeline, {"read": readers, "compute": 1, "write": writers})
        return Lanes(read, write, (compute,))

    def device_slab(self, nbytes: int, scope: MemoryScope, owner: str) -> Slab:
        kept = self._kept.take(round_up(max(nbytes, 1), PAGE), scope)
        if kept is None:
            self._kept.reclaim(nbytes)  # of other sizes: the process grows no further than its largest run
            slab = pageable_slab(nbytes, scope, owner)
        else:
            array, size, ticket = kept
            slab = Slab(size, ticket, array=array, address=array.__array_interface__["data"][0])
        assert slab.array is not None
        self._kept.own(slab, slab.array, scope)
        return slab

    host_slab = device_slab

    @property
    def kept_bytes(self) -> int:
        """Bytes of slabs that wait for the next run."""
        return self._kept.nbytes

    def reclaim(self, kind: str, nbytes: int) -> int:
        """Give kept slabs back to the governor; returns the bytes freed."""
        return self._kept.reclaim(nbytes) if kind in ("pinned", "host") else 0

    def view(self, slab: Slab, offset: int, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
        assert slab.array is not None
        return np.ndarray(shape, dtype, buffer=slab.array.data, offset=offset)

    def reaches(self, store: TileStore, dtype: np.dtype[Any]) -> bool:
        if store.dtype != dtype:
            return False
        view = store.view(Rect(0, store.shape[0], 0, store.shape[1]))
        return (
            view is not None
            and (view.strides[1] == view.itemsize or view.shape[1] <= 1)
            and view.strides[0] >= view.itemsize * view.shape[1]
        )
