"""A float64 product of ordinary NumPy arrays on a GPU with a small memory limit, against cuBLASXt on the same arrays.

Operands and outputs of both are allocated and touched beforehand. cuBLASXt (``cublasXtDgemm``) streams tiles from host
memory as pycauset does; it runs once for each block dimension, after a small warm-up, since one call takes many seconds, and its
best time counts. It has all of VRAM, pycauset has ``--gpu-memory``.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from gpu_matmul_pinned import fill, sampled
from report import Report, Sample, alternate, gpu_or_exit, parser, product, warm_up

from pycauset.units import format_flops

BAR = 8.0
_N = 0  # CUBLAS_OP_N


def cublas(cupy: Any) -> ctypes.CDLL:
    """The cuBLAS library that CuPy has loaded, found among this process's mapped files."""
    square = cupy.ones((8, 8))
    cupy.matmul(square, square)
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            path = line.split(maxsplit=5)[-1].strip()
            if "/libcublas.so" in path:
                return ctypes.CDLL(path)
    raise RuntimeError("CuPy has loaded no libcublas.so")


class CublasXt:
    """cublasXtDgemm on row-major arrays: a row-major array is its transpose in column-major order."""

    def __init__(self, library: ctypes.CDLL, block: int) -> None:
        self._library = library
        self._handle = ctypes.c_void_p()
        self._check("cublasXtCreate", ctypes.byref(self._handle))
        self._check("cublasXtDeviceSelect", self._handle, ctypes.c_int(1), (ctypes.c_int * 1)(0))
        self._check("cublasXtSetBlockDim", self._handle, ctypes.c_int(block))

    def _check(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} returned status {status}")

    def matmul(self, a: Any, b: Any, c: Any) -> None:
        m, k = a.shape
        n = b.shape[1]
        one, zero = ctypes.c_double(1.0), ctypes.c_double(0.0)
        size, pointer = ctypes.c_size_t, ctypes.c_void_p
        self._check(
            "cublasXtDgemm",
            self._handle,
            ctypes.c_int(_N),
            ctypes.c_int(_N),
            size(n),
            size(m),
            size(k),
            ctypes.byref(one),
            pointer(b.ctypes.data),
            size(n),
            pointer(a.ctypes.data),
            size(k),
            ctypes.byref(zero),
            pointer(c.ctypes.data),
            size(n),
        )

    def close(self) -> None:
        self._check("cublasXtDestroy", self._handle)


def baseline(cupy: Any, report: Report, a: Any, b: Any, c: Any, blocks: Sequence[int]) -> list[float]:
    """cuBLASXt's seconds for each block size."""
    library = cublas(cupy)
    times = []
    for block in blocks:
        xt = CublasXt(library, block)
        small = np.ones((512, 512))
        xt.matmul(small, small, np.ones((512, 512)))
        cupy.cuda.runtime.deviceSynchronize()
        start = time.perf_counter()
        xt.matmul(a, b, c)
        cupy.cuda.runtime.deviceSynchronize()
        times.append(time.perf_counter() - start)
        xt.close()
        report.figure(f"cuBLASXt, block {block}", f"{times[-1]:.4g} s (once), {format_flops(2.0 * len(a) ** 3 / times[-1])}")
    return times


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=32768)
    made.add_argument("--gpu-memory", default="8GB")
    made.add_argument("--blocks", nargs="+", type=int, default=[4096, 8192])
    made.add_argument("--repeats", type=int, default=5)
    options = made.parse_args()
    if options.smoke:
        options.n, options.gpu_memory, options.blocks, options.repeats = min(options.n, 4096), "250MB", [1024], 1
    n = options.n
    report = Report(f"GPU, float64, n = {n}, ordinary NumPy arrays, gpu_memory={options.gpu_memory}", options)
    cupy = gpu_or_exit(report)
    from pycauset import cuda
    from pycauset.solver import last_statistics

    a, b, c, other = (np.empty((n, n)) for _ in range(4))
    fill(a, 1)
    fill(b, 2)
    fill(c, 3)  # touched
    fill(other, 4)
    xt = baseline(cupy, report, a, b, other, options.blocks)
    warm_up()
    with cuda.force_backend("gpu"):

        def streamed() -> None:
            product(a, b, c, gpu_memory=options.gpu_memory)

        streamed()
        sample: Sample = alternate({"pycauset": streamed}, options.repeats)["pycauset"]
    report.figure("pycauset", f"{sample}, {format_flops(2.0 * n**3 / sample.median)}")
    done = last_statistics()
    assert done is not None, "the product was not streamed"
    for name, lane in done.lanes.items():
        report.figure(f"lane {name}", f"{lane.jobs} jobs, busy {lane.busy:.3f} s, stalled {lane.stalled:.3f} s")
    report.figure("largest error, pycauset", f"{sampled(c, a, b):.2g} of |A||B|")
    report.figure("largest error, cuBLASXt", f"{sampled(other, a, b):.2g} of |A||B|")
    report.bar(f"speed over cuBLASXt, block {options.blocks[0]}", xt[0] / sample.median, BAR, at_least=True)
    for block, seconds in zip(options.blocks[1:], xt[1:], strict=True):
        report.figure(
            f"speed over cuBLASXt, block {block}", f"{seconds / sample.median:.3f} (no bar: 8 × would be above cuBLAS in core)"
        )
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
