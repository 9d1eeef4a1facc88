"""Products that fit: one call of NumPy or cuBLAS on whole arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycauset import devices
from pycauset.devices.base import MemoryScope
from pycauset.devices.blas import gemm, takes_rows, trmm
from pycauset.errors import DeviceError
from pycauset.solver.factor import Factor, Layout, in_memory, triangular
from pycauset.solver.routes import Route
from pycauset.storage import TileStore
from pycauset.tiling import Rect

__all__ = ["matmul_in_core"]

Array = np.ndarray[Any, Any]


def matmul_in_core(
    route: Route, a: Factor, b: Factor, layout: Layout, out: TileStore, alpha: complex, beta: complex, scope: MemoryScope
) -> None:
    """Load what is not an array yet, multiply, store."""
    with scope.require("host", route.host_bytes, owner="arrays in core"):
        x, y = _array(a.store, layout.compute), _array(b.store, layout.compute)
        held = in_memory(out)
        direct = held is not None and held.dtype == layout.compute
        c = held if direct and held is not None else np.empty(layout.shape, layout.compute)
        if beta != 0 and not direct:
            out.read(_all(out), c)
        if route.device == "gpu":
            _cupy(a.op, x, b.op, y, c, alpha, beta, scope, route.device_bytes)
        elif layout.kernel == "trmm" and all(takes_rows(t, layout.compute) for t in (x, y, c)):
            triangle = triangular(a, b)
            assert triangle is not None
            side, uplo = triangle
            t, op, other = (x, a.op, _op(y, b.op)) if side == "L" else (y, b.op, _op(x, a.op))
            np.copyto(c, other)
            trmm(t, c, side=side, uplo=uplo, op=op, alpha=alpha)
        elif alpha == 1 and beta == 0:
            np.matmul(_op(x, a.op), _op(y, b.op), out=c)
        elif all(t.strides[1] == t.itemsize or t.shape[1] <= 1 for t in (x, y, c)):
            gemm(x, y, c, alpha=alpha, beta=beta, op_a=a.op, op_b=b.op)
        else:
            product = np.matmul(_op(x, a.op), _op(y, b.op))
            np.multiply(product, alpha, out=product)
            np.add(product, np.multiply(c, beta), out=c)
        if not direct:
            out.write(_all(out), c)


def _all(store: TileStore) -> Rect:
    return Rect(0, store.shape[0], 0, store.shape[1])


def _array(store: TileStore, dtype: np.dtype[Any]) -> Array:
    array = in_memory(store)
    if array is None:
        array = np.empty(store.shape, dtype)
        store.read(_all(store), array)
        return array
    return array.astype(dtype) if array.dtype != dtype else array


def _op(array: Array, op: str) -> Array:
    return array if op == "N" else array.T if op == "T" else array.conj().T


def _cupy(
    op_a: str, a: Array, op_b: str, b: Array, c: Array, alpha: complex, beta: complex, scope: MemoryScope, nbytes: int
) -> None:
    """Upload, multiply, download, on one stream; raw copies, because ``cupy.asarray`` would pin a staging copy of each array."""
    import cupy

    device = devices.gpu()
    if device is None:
        raise DeviceError("the GPU is gone; the work goes to the CPU")
    from pycauset.devices.cupy import TileView

    stream = device.stream("compute")
    with scope.require("device", nbytes, owner="arrays in core"), device.checked("multiplying in core"):
        views, held = [], []
        for array in (a, b, c):
            memory = cupy.cuda.alloc(max(array.nbytes, 1))
            held.append(memory)
            views.append(
                TileView(memory.ptr, array.shape[0], array.shape[1], max(array.shape[1], 1), array.dtype, array.dtype.name)
            )
        lane = device.plain_lane("compute")
        for array, view in zip((a, b, c) if beta != 0 else (a, b), views, strict=False):
            device.upload(np.ascontiguousarray(array) if array.strides[1] != array.itemsize else array, view, 0, 0, lane)
        device.kernels["gemm"](views[:2], views[2:], (alpha, beta, op_a, op_b), lane)
        if c.strides[1] == c.itemsize or c.shape[1] <= 1:
            device.download(views[2], 0, 0, c, lane)
            device.runtime.streamSynchronize(stream)
        else:
            whole = np.empty(c.shape, c.dtype)
            device.download(views[2], 0, 0, whole, lane)
            device.runtime.streamSynchronize(stream)
            c[...] = whole
        del held
