"""A float64 Cholesky factorisation in place in pinned host memory on a GPU with a small limit, against cuSOLVER in VRAM.

The two alternate in one run, on the same matrix: the covariance of n random points, of which one triangle is generated again
before each. cuSOLVER is its 64-bit ``Xpotrf`` or ``Dpotrf``, whichever was faster on a first try, with matrix and workspace in
VRAM before its time begins; its ``devInfo`` is checked. pycauset's time includes planning, taking and freeing its slots, and both
copies over PCIe. Both leave the other triangle alone; what ``pycauset.linalg.cholesky`` takes, which clears it, is printed beside
them.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from report import Report, Sample, gpu_or_exit, parser, warm_up

from pycauset.hardware import probe
from pycauset.seeded import CovarianceStore
from pycauset.tiling import Rect
from pycauset.units import format_bytes, format_flops, parse_bytes

BAR_SPEED, BAR_RESIDUAL = 1.15, 30.0
_R_64F = 1  # cudaDataType
_UPPER = 1  # column-major: the lower triangle as NumPy stores it


def fill(array: Any, store: CovarianceStore) -> None:
    """Generate the lower triangle, in strips."""
    n, height = len(array), 512

    def strip(r0: int) -> None:
        r1 = min(r0 + height, n)
        store.read(Rect(r0, r1, 0, r1), array[r0:r1, :r1])

    with ThreadPoolExecutor(max(1, probe.cpu_info().cores)) as pool:
        list(pool.map(strip, range(0, n, height)))


class CusolverInCore:
    """``potrf`` of a whole matrix in VRAM, through ctypes on the library that CuPy has loaded."""

    def __init__(self, cupy: Any, n: int, wide: bool) -> None:
        from pycauset.devices.cusolver import _library

        self._library, self._n, self._wide = _library(), n, wide
        self._handle, self._params = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cusolverDnCreate", ctypes.byref(self._handle))
        self._info = cupy.full(1, -1, np.int32)
        if wide:
            self._call("cusolverDnCreateParams", ctypes.byref(self._params))
            device, host = ctypes.c_size_t(), ctypes.c_size_t()
            self._call("cusolverDnXpotrf_bufferSize", *self._head(None), ctypes.byref(device), ctypes.byref(host))
            self._work, self._host = cupy.empty(max(device.value, 1), np.uint8), np.empty(max(host.value, 1), np.uint8)
            self._sizes = device.value, host.value
        else:
            elements = ctypes.c_int()
            self._call("cusolverDnDpotrf_bufferSize", *self._head(None), ctypes.byref(elements))
            self._work, self._elements = cupy.empty(max(elements.value, 1), np.float64), elements.value

    @property
    def workspace(self) -> int:
        """Bytes of VRAM beside the matrix."""
        return int(self._work.nbytes)

    def factor(self, address: int) -> None:
        """Queue the factorisation of the matrix at ``address``."""
        work, info = ctypes.c_void_p(self._work.data.ptr), ctypes.c_void_p(self._info.data.ptr)
        if self._wide:
            host = ctypes.c_void_p(self._host.ctypes.data)
            device_size, host_size = (ctypes.c_size_t(size) for size in self._sizes)
            self._call("cusolverDnXpotrf", *self._head(address), work, device_size, host, host_size, info)
        else:
            self._call("cusolverDnDpotrf", *self._head(address), work, ctypes.c_int(self._elements), info)

    def check(self) -> None:
        """Raise unless the last factorisation succeeded."""
        if int(self._info.get()[0]):
            raise RuntimeError(f"cuSOLVER reports devInfo {int(self._info.get()[0])}")

    def close(self) -> None:
        self._call("cusolverDnDestroy", self._handle)

    def _head(self, address: int | None) -> tuple[Any, ...]:
        matrix = ctypes.c_void_p(address)
        if self._wide:
            n, kind = ctypes.c_int64(self._n), ctypes.c_int(_R_64F)
            return self._handle, self._params, ctypes.c_int(_UPPER), n, kind, matrix, n, kind
        n32 = ctypes.c_int(self._n)
        return self._handle, ctypes.c_int(_UPPER), n32, matrix, n32

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} returned status {status}")


def in_core(cupy: Any, report: Report, a: Any) -> Callable[[], float]:
    """A call that uploads the matrix, factors it and returns the seconds of the factorisation, by the faster routine."""
    n = len(a)
    on_device = cupy.empty((n, n))
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()

    def timed(routine: CusolverInCore) -> float:
        on_device.set(a)
        cupy.cuda.runtime.deviceSynchronize()
        start.record(cupy.cuda.Stream.null)
        routine.factor(on_device.data.ptr)
        stop.record(cupy.cuda.Stream.null)
        stop.synchronize()
        routine.check()
        return float(cupy.cuda.get_elapsed_time(start, stop)) / 1e3

    tried: dict[str, tuple[float, CusolverInCore]] = {}
    for name, wide in (("Xpotrf", True), ("Dpotrf", False)):
        try:
            routine = CusolverInCore(cupy, n, wide)
            timed(routine)  # the first call loads kernels
            tried[name] = timed(routine), routine
        except (AttributeError, RuntimeError) as error:
            report.figure(f"cuSOLVER {name}", f"not usable: {error}")
    if not tried:
        raise RuntimeError("cuSOLVER offers no routine for this matrix")
    for name, (seconds, routine) in tried.items():
        rate = format_flops(n**3 / 3 / seconds)
        report.figure(f"cuSOLVER {name}, first try", f"{seconds:.4g} s, {rate}, workspace {format_bytes(routine.workspace)}")
    name = min(tried, key=lambda key: tried[key][0])
    report.figure("baseline", name)
    for other in set(tried) - {name}:
        tried.pop(other)[1].close()
    chosen = tried[name][1]
    return lambda: timed(chosen)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=65536)
    made.add_argument("--gpu-memory", default="8GB")
    made.add_argument("--variant", choices=["left", "right", "triangle"], help="the order; the planner's choice by default")
    made.add_argument("--repeats", type=int, default=3)
    options = made.parse_args()
    if options.smoke:
        options.n, options.gpu_memory, options.repeats = min(options.n, 4096), "100MB", 1
    n = options.n
    report = Report(f"GPU, float64, Cholesky factor of order {n} in pinned memory, gpu_memory={options.gpu_memory}", options)
    cupy = gpu_or_exit(report)
    import pycauset
    from pycauset import cuda
    from pycauset.drivers.cholesky import CholeskyDriver
    from pycauset.solver import blocked, last_statistics
    from pycauset.storage import as_store
    from pycauset.stress_cholesky import tile_residual

    exact = CovarianceStore(1, n, "float64")
    flops = n**3 / 3
    cuda.set_pinning_budget(n * n * 8 + parse_bytes("1GB"))
    a = cuda.pinned_empty((n, n))
    a[...] = np.nan
    begin = time.perf_counter()
    fill(a, exact)
    report.figure("matrix", f"{format_bytes(a.nbytes)}, one triangle generated in {time.perf_counter() - begin:.1f} s")
    host_seconds: list[float] = []

    def streamed() -> float:
        fill(a, exact)
        begin, thread = time.perf_counter(), time.thread_time()
        store = as_store(a)
        driver = CholeskyDriver(store, store, a.dtype, variant=options.variant)
        operation = blocked.BlockedOperation(
            "cholesky", driver, flops, gpu_memory=options.gpu_memory, progress=False, repeatable=False
        )
        blocked.run(operation)
        host_seconds.append(time.thread_time() - thread)
        return time.perf_counter() - begin

    warm_up()
    with cuda.force_backend("gpu"):
        resident = in_core(cupy, report, a)
        streamed()
        host_seconds.clear()
        times: dict[str, list[float]] = {"cuSOLVER in core": [], "pycauset streamed": []}
        for _ in range(options.repeats):
            times["pycauset streamed"].append(streamed())
            fill(a, exact)
            times["cuSOLVER in core"].append(resident())
        streamed()
        done, followed = last_statistics(), blocked.last_plan()
        residual = tile_residual(exact, as_store(a))
        fill(a, exact)
        begin = time.perf_counter()
        pycauset.linalg.cholesky(a, overwrite_a=True, check_finite=False, gpu_memory=options.gpu_memory, progress=False)
        whole = time.perf_counter() - begin
    assert done is not None, "the factorisation was not streamed"
    assert followed is not None
    samples = {name: Sample(tuple(values)) for name, values in times.items()}
    for name, sample in samples.items():
        report.figure(name, f"{sample}, {format_flops(flops / sample.median)}")
    report.figure("pycauset.linalg.cholesky", f"{whole:.4g} s, the other triangle cleared")
    plan = followed[1]
    report.figure(
        "plan", f"{plan.variant}, tiles of {plan.tile[0]}, blocks of {plan.block[0]} × {plan.block[1]}, {plan.slots[0]} slots"
    )
    report.figure("predicted", f"{plan.seconds:.4g} s")
    report.figure("tasks", done.tasks)
    report.figure("bytes up, down", f"{format_bytes(done.bytes_uploaded)}, {format_bytes(done.bytes_downloaded)}")
    report.figure("bytes ÷ bound", f"{plan.link_bytes / plan.bound:.3f}")
    for name, lane in done.lanes.items():
        report.figure(f"lane {name}", f"{lane.jobs} jobs, busy {lane.busy:.3f} s, stalled {lane.stalled:.3f} s")
    per_task = Sample(tuple(seconds / done.tasks for seconds in host_seconds))
    report.figure("submitting thread, CPU per task", per_task)
    report.bar("scaled residual, sampled tiles", residual, BAR_RESIDUAL, at_least=False, exact=True)
    ratio = samples["cuSOLVER in core"].median / samples["pycauset streamed"].median
    report.bar("speed over cuSOLVER in core", ratio, BAR_SPEED, at_least=True)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
