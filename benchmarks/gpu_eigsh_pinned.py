"""The 8 largest eigenpairs of a symmetric float64 matrix in pinned memory that VRAM cannot hold, each pass at PCIe's speed.

The eigenvalues are ``i^-0.35``, hidden by a reflection. A pass reads the lower triangle once, less what VRAM kept of it from the
pass before: its rate is what was uploaded over the seconds of all passes, the vectors' way included. What PCIe can do is measured
in the same run, by large copies from the same memory.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from report import POWER, Report, gpu_or_exit, parser, power_law_strips, warm_up

BAR_RATE = 0.9
K, TOL = 8, 1e-8


def link_rate(cupy: Any, a: np.ndarray, width: int | None = None, *, beside: bool = False) -> float:
    """Bytes per second of copying 128 MiB at once to the GPU: whole rows or ``width`` columns; ``beside`` products with them."""
    runtime, n, size = cupy.cuda.runtime, len(a), a.itemsize
    width = n if width is None else min(width, n)
    height = max(1, min(n, (128 << 20) // (width * size)))
    target = cupy.empty((height, width))
    stream, other = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
    x, copied = cupy.ones((width, 16)), cupy.cuda.Event(disable_timing=True)
    target @ x  # loads the kernel
    rows = range(0, n - height + 1, height)
    rows = rows[:: max(1, len(rows) // 32)]
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        for r in rows:
            source = a.ctypes.data + r * n * size
            runtime.memcpy2DAsync(target.data.ptr, width * size, source, n * size, width * size, height, 1, stream.ptr)
            if beside:
                copied.record(stream)
                other.wait_event(copied)
                with other:
                    target @ x
        stream.synchronize()
        rates.append(len(rows) * height * width * size / (time.perf_counter() - start))
    return float(np.median(rates))


def compare(report: Report, cupy: Any, options: argparse.Namespace) -> None:
    from pycauset import cuda
    from pycauset.governor import governor
    from pycauset.linalg import eigsh
    from pycauset.solver import last_statistics, products
    from pycauset.stress_gauges import Peaks, gpu_bytes
    from pycauset.units import format_bytes, parse_bytes

    n = options.n
    cuda.set_pinning_budget(n * n * 8 + parse_bytes("2GB"))
    begin = time.perf_counter()
    a = cuda.pinned_empty((n, n))
    for r, strip in power_law_strips(cupy, n):
        strip.get(out=a[r : r + len(strip)])
    report.figure("matrix", f"{format_bytes(a.nbytes)}, pinned and filled in {time.perf_counter() - begin:.1f} s")
    rate = link_rate(cupy, a)
    report.figure("PCIe, whole rows", f"{rate / 1e9:.1f} GB/s")
    for width in (2048, 4096, 8192):
        alone, beside = (link_rate(cupy, a, width, beside=beside) / 1e9 for beside in (False, True))
        report.figure(f"PCIe, rows of {width // 128} KiB", f"{alone:.1f} GB/s alone, {beside:.1f} GB/s beside products")
    passes: list[float] = []
    plain = products.StreamedProduct._multiply

    def timed(self: Any, x: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        y = plain(self, x)
        passes.append(time.perf_counter() - start)
        return y

    products.StreamedProduct._multiply = timed  # type: ignore[method-assign]
    try:
        warm_up()
        eigsh(a[:2048, :2048], K, tol=1e-2)  # loads kernels
        governor().reclaim("device")
        cupy.get_default_memory_pool().free_all_blocks()
        idle = gpu_bytes()
        eigsh(a, K, tol=1e-2, gpu_memory=options.gpu_memory)  # pins slots
        passes.clear()
        with Peaks(Path("."), gpu=True) as peaks:
            start = time.perf_counter()
            w, _, stats = eigsh(a, K, tol=TOL, gpu_memory=options.gpu_memory, return_stats=True)
            whole = time.perf_counter() - start
    finally:
        products.StreamedProduct._multiply = plain  # type: ignore[method-assign]
    done = last_statistics()
    assert done is not None, "the passes were not streamed"
    triangle = n * (n + 1) // 2 * 8
    report.figure(
        "pycauset eigsh", f"{whole:.3g} s, {stats.passes} passes of blocks of {stats.block_size}, {stats.restarts} restarts"
    )
    report.figure("seconds of a pass", ", ".join(f"{seconds:.3f}" for seconds in passes))
    report.figure("beside the passes", f"{whole - sum(passes):.3f} s")
    report.figure(
        "uploaded",
        f"{format_bytes(done.bytes_uploaded)}, {done.bytes_uploaded / (len(passes) * triangle):.3f} of a triangle a pass",
    )
    for name, lane in done.lanes.items():
        report.figure(f"lane {name}", f"{lane.jobs} jobs, busy {lane.busy:.3f} s, stalled {lane.stalled:.3f} s")
    exact = np.arange(1, K + 1)[::-1] ** POWER
    report.bar(
        "largest error of an eigenvalue", float(np.abs(w - exact).max()) * 1e12, 10, at_least=False, unit="e-12", exact=True
    )
    report.bar("worst residual / (tol |A|)", float(stats.residuals.max()) / (TOL * stats.norm), 1, at_least=False, exact=True)
    report.bar(
        "peak GPU memory over idle / limit",
        (peaks.gpu_bytes - idle) / parse_bytes(options.gpu_memory),
        1,
        at_least=False,
        exact=True,
    )
    report.bar("upload rate of the passes over PCIe", done.bytes_uploaded / sum(passes) / rate, BAR_RATE, at_least=True)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=65536)
    made.add_argument("--gpu-memory", default="8GB")
    options = made.parse_args()
    if options.smoke:
        options.n, options.gpu_memory = min(options.n, 3000), "100MB"
    report = Report(
        f"GPU, float64, {K} largest eigenpairs of order {options.n} in pinned memory, gpu_memory={options.gpu_memory}", options
    )
    cupy = gpu_or_exit(report)
    from pycauset import cuda

    with cuda.force_backend("gpu"):
        compare(report, cupy, options)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
