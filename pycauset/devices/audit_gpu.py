"""Benchmarks of the GPU and its link: products, copies in both directions and of many sizes, latencies.

Only plain allocations, copies and cuBLAS are used: no kernel is compiled, no pool of CuPy grows, and everything is freed
before `measure_gpu` returns. Each item has a share of the time, so a slow GPU is measured on fewer and smaller sizes.
"""

from __future__ import annotations

import contextlib
import importlib
import statistics
import time
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from pycauset.devices.audit_cpu import growing, largest_order, noise, repeat_seconds
from pycauset.errors import DeviceError
from pycauset.hardware.probe import GpuInfo, import_cupy
from pycauset.hardware.profile import DTYPES, GpuProfile, RatePoint, TransferPoint, gemm_flops

__all__ = ["measure_gpu"]

_SIZES: Final = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
_GEMM: Final = {"float32": "sgemm", "float64": "dgemm", "complex64": "cgemm", "complex128": "zgemm"}
_COPIES: Final = tuple(2**i for i in (12, 14, 16, 18, 20, 22, 24, 26))
_SLAB: Final = 2**26
_SMALLEST_SLAB: Final = 2**20
_PATTERN: Final = 2**22
_SMALLEST_BUFFER: Final = 3 * 2**20
_START_FLOOR: Final = 0.2
_PIN_DEFAULT: Final = 1e9


def measure_gpu(info: GpuInfo, *, device: int = 0, seconds: float) -> GpuProfile:
    """Measure a GPU in about ``seconds``, start-up of CUDA aside.

    Parameters
    ----------
    info : GpuInfo
    device : int
    seconds : float
        Budget of all benchmarks together.

    Raises
    ------
    Exception
        Whatever CuPy, the driver or a missing library raises; the caller then does without the GPU.
    """
    cupy = import_cupy()
    if cupy is None:
        raise DeviceError(f"CuPy cannot be imported, so {info.name} cannot be measured; install cupy-cuda12x or cupy-cuda13x")
    begin = time.perf_counter()
    with cupy.cuda.Device(device):
        cupy.cuda.runtime.memGetInfo()  # creates the context
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            bench = _Bench(cupy, stream)
            # A context that somebody created before us starts in no time; nobody else's does.
            start = max(time.perf_counter() - begin, _START_FLOOR)
            try:
                return _measure(bench, info, start, seconds)
            finally:
                stream.synchronize()
                bench.close()


class _Bench:
    """Handles and device memory of one audit. All work goes to one stream, on which cuBLAS is set as well."""

    def __init__(self, cupy: Any, stream: Any) -> None:
        self.cupy = cupy
        self.runtime = cupy.cuda.runtime
        self.stream = stream
        self.cublas = importlib.import_module("cupy_backends.cuda.libs.cublas")
        self.handle = cupy.cuda.device.get_cublas_handle()
        self.memory: Any = None
        self.nbytes = 0

    def allocate(self) -> None:
        """Take room for three matrices of order 8192, or what half of the free memory holds; fill it with numbers."""
        free, _ = self.runtime.memGetInfo()
        wanted = min(3 * _SIZES[-1] ** 2 * 16, free // 2)
        while self.memory is None:
            try:
                self.memory = self.cupy.cuda.Memory(wanted)
            except Exception:  # cudaErrorMemoryAllocation, under CuPy's names for it
                wanted //= 2
                if wanted < _SMALLEST_BUFFER:
                    raise
        self.nbytes = int(wanted)
        pattern = noise(min(_PATTERN, self.nbytes))
        self.runtime.memcpyAsync(
            self.memory.ptr, pattern.ctypes.data, pattern.nbytes, self.runtime.memcpyHostToDevice, self.stream.ptr
        )
        filled = pattern.nbytes
        while filled < self.nbytes:
            step = min(filled, self.nbytes - filled)
            self.device_copy(self.memory.ptr + filled, self.memory.ptr, step)
            filled += step
        self.stream.synchronize()

    def close(self) -> None:
        """Give the device memory back (no pool holds it)."""
        self.memory = None

    def device_copy(self, target: int, source: int, nbytes: int) -> None:
        self.runtime.memcpyAsync(target, source, nbytes, self.runtime.memcpyDeviceToDevice, self.stream.ptr)

    def host_copy(self, direction: str, host: int, offset: int, nbytes: int, stream: Any) -> None:
        """Start a copy between host address ``host`` and ``offset`` in the device's buffer."""
        place = self.memory.ptr + offset
        if direction == "h2d":
            self.runtime.memcpyAsync(place, host, nbytes, self.runtime.memcpyHostToDevice, stream.ptr)
        else:
            self.runtime.memcpyAsync(host, place, nbytes, self.runtime.memcpyDeviceToHost, stream.ptr)

    def gemm(self, name: str, n: int, times: int) -> None:
        """Launch ``times`` products of order n; the output never overlaps the operands."""
        third = self.nbytes // 3 // 512 * 512
        one, zero = np.ones(1, name), np.zeros(1, name)
        call = getattr(self.cublas, _GEMM[name])
        a, b, c = (self.memory.ptr + i * third for i in range(3))
        for _ in range(times):
            call(self.handle, 0, 0, n, n, n, one.ctypes.data, a, n, b, n, zero.ctypes.data, c, n)

    def device_seconds(self, launch: Any) -> float:
        """Seconds between two events around whatever ``launch()`` puts on the stream."""
        first, last = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        first.record(self.stream)
        launch()
        last.record(self.stream)
        last.synchronize()
        return max(float(self.cupy.cuda.get_elapsed_time(first, last)) * 1e-3, 1e-9)


def _measure(bench: _Bench, info: GpuInfo, start: float, seconds: float) -> GpuProfile:
    bench.allocate()
    bench.gemm("float32", 16, 1)
    bench.stream.synchronize()
    free, total = bench.runtime.memGetInfo()
    # Other processes' memory is in this number as well; no context is as large as the bound.
    context = min(max(0, total - free - bench.nbytes), 2**31)

    def tiny() -> None:
        bench.gemm("float32", 16, 1)
        bench.stream.synchronize()

    launch = repeat_seconds(tiny, 0.01 * seconds, most=50, least=5)
    transfers, bandwidths, pin = _links(bench, 0.3 * seconds)
    copy = _device_copy(bench, 0.03 * seconds)
    end = time.perf_counter() + 0.6 * seconds
    gemm: dict[str, list[RatePoint]] = {}
    for done, name in enumerate(DTYPES):
        share = max(0.0, end - time.perf_counter()) / (len(DTYPES) - done)
        gemm[name] = _gemm_rates(bench, name, share)
    return GpuProfile(
        name=info.name,
        compute_capability=info.compute_capability,
        memory=info.memory,
        gemm=gemm,  # type: ignore[arg-type]  # its keys are DTYPES
        h2d_pinned=bandwidths["h2d_pinned"],
        d2h_pinned=bandwidths["d2h_pinned"],
        duplex_pinned=bandwidths["duplex_pinned"],
        h2d_pageable=bandwidths["h2d_pageable"],
        d2h_pageable=bandwidths["d2h_pageable"],
        transfers=transfers,  # type: ignore[arg-type]  # its keys are the four links
        launch_seconds=launch,
        copy_bandwidth=copy,
        pin_bandwidth=pin,
        start_seconds=start,
        context_bytes=context,
    )


def _gemm_rates(bench: _Bench, name: str, budget: float) -> list[RatePoint]:
    """Rates of products launched back to back, from small to large, until the next would overrun the budget."""
    largest = largest_order(bench.nbytes, np.dtype(name).itemsize)
    end = time.perf_counter() + budget
    points: list[RatePoint] = []
    taken: list[float] = []
    for n in _SIZES:
        flops = gemm_flops(name, n, n, n)
        left = end - time.perf_counter()
        # Two products at the last rate: one that loads the kernel, one that is timed.
        if points and (n > largest or 2 * flops / points[-1].flops > left):
            break
        bench.gemm(name, n, 1)
        bench.stream.synchronize()
        once = bench.device_seconds(lambda n=n: bench.gemm(name, n, 1))
        window = min(max(0.0, end - time.perf_counter()) / 4, 0.02)
        times = int(min(50, window / once))
        if times >= 2:
            once = bench.device_seconds(lambda n=n, times=times: bench.gemm(name, n, times)) / times
        points.append(RatePoint(n=n, flops=flops / once))
        taken.append(once)
    return [RatePoint(n=p.n, flops=gemm_flops(name, p.n, p.n, p.n) / s) for p, s in zip(points, growing(taken), strict=True)]


def _device_copy(bench: _Bench, budget: float) -> float:
    half = bench.nbytes // 2 // 512 * 512
    nbytes = min(half, 2**28)

    def copy() -> None:
        bench.device_copy(bench.memory.ptr + half, bench.memory.ptr, nbytes)

    copy()
    end = time.perf_counter() + budget
    times = [bench.device_seconds(copy)]
    while len(times) < 10 and time.perf_counter() < end:
        times.append(bench.device_seconds(copy))
    return nbytes / statistics.median(times)


def _links(bench: _Bench, budget: float) -> tuple[dict[str, list[TransferPoint]], dict[str, float], float]:
    """Curves of the four links, their bandwidths (and both directions at once), bytes pinned a second."""
    transfers: dict[str, list[TransferPoint]] = {}
    bandwidths: dict[str, float] = {}
    largest = min(_SLAB, bench.nbytes // 2)
    pageable = np.resize(noise(_SMALLEST_SLAB), largest)  # touched, so that no page faults are measured
    for direction in ("h2d", "d2h"):
        link = f"{direction}_pageable"
        transfers[link] = _curve(bench, direction, pageable.ctypes.data, largest, 0.22 * budget)
        bandwidths[link] = _bandwidth(transfers[link])
    with _pinned_slab(bench, largest) as (address, nbytes, pin):
        for direction in ("h2d", "d2h"):
            link = f"{direction}_pinned"
            if address:
                transfers[link] = _curve(bench, direction, address, nbytes, 0.15 * budget)
            else:  # pinning is denied, so whatever calls itself pinned will be pageable
                transfers[link] = transfers[f"{direction}_pageable"]
            bandwidths[link] = _bandwidth(transfers[link])
        slower = min(bandwidths["h2d_pinned"], bandwidths["d2h_pinned"])
        bandwidths["duplex_pinned"] = _duplex(bench, address, nbytes, 0.1 * budget) if address else slower
    return transfers, bandwidths, pin


def _curve(bench: _Bench, direction: str, host: int, largest: int, budget: float) -> list[TransferPoint]:
    """Seconds of single copies, each waited for, from small to large until the next would overrun the budget."""
    end = time.perf_counter() + budget
    points: list[TransferPoint] = []
    for nbytes in _COPIES:
        left = end - time.perf_counter()
        if points and (nbytes > largest or 2 * points[-1].seconds * nbytes / points[-1].nbytes > max(left, 0.0)):
            break

        def copy(nbytes: int = nbytes) -> None:
            bench.host_copy(direction, host, 0, nbytes, bench.stream)
            bench.stream.synchronize()

        copy()  # the first copy of a kind sets up its staging buffers
        points.append(TransferPoint(nbytes=nbytes, seconds=repeat_seconds(copy, max(left, 0.0) / 8, most=20)))
    seconds = growing([p.seconds for p in points])
    return [TransferPoint(nbytes=p.nbytes, seconds=s) for p, s in zip(points, seconds, strict=True)]


def _bandwidth(points: list[TransferPoint]) -> float:
    """Bytes a second of the largest copy, its fixed cost left out."""
    first, last = points[0], points[-1]
    if last.seconds > 1.5 * first.seconds:
        return (last.nbytes - first.nbytes) / (last.seconds - first.seconds)
    return last.nbytes / last.seconds


def _duplex(bench: _Bench, address: int, nbytes: int, budget: float) -> float:
    """Bytes a second of both directions together, on two streams and two halves of the slab."""
    half = nbytes // 2
    other = bench.cupy.cuda.Stream(non_blocking=True)

    def both() -> None:
        for _ in range(4):
            bench.host_copy("h2d", address, 0, half, bench.stream)
            bench.host_copy("d2h", address + half, half, half, other)
        bench.stream.synchronize()
        other.synchronize()

    both()
    return 8 * half / repeat_seconds(both, budget, most=5)


@contextlib.contextmanager
def _pinned_slab(bench: _Bench, largest: int) -> Iterator[tuple[int, int, float]]:
    """Pinned memory under a ticket: its address, its bytes and bytes pinned a second; address 0 if it is denied."""
    from pycauset.governor import governor

    nbytes = largest
    ticket = None
    while ticket is None and nbytes >= min(_SMALLEST_SLAB, largest):
        ticket = governor().request("pinned", nbytes, owner="hardware audit")
        if ticket is None:
            nbytes //= 4
    if ticket is None:
        yield 0, 0, _PIN_DEFAULT
        return
    try:
        begin = time.perf_counter()
        try:
            slab = bench.cupy.cuda.PinnedMemory(nbytes)
        except Exception:  # a lock limit of the system
            yield 0, 0, _PIN_DEFAULT
            return
        pin = nbytes / (time.perf_counter() - begin)
        np.copyto(np.frombuffer(bench.cupy.cuda.PinnedMemoryPointer(slab, 0), np.uint8, nbytes), 1)
        yield int(slab.ptr), nbytes, pin
        bench.stream.synchronize()
        del slab
    finally:
        ticket.release()
