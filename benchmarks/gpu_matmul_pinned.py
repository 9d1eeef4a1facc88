"""A float64 product of arrays in pinned host memory on a GPU with a small memory limit, against cuBLAS with everything in VRAM.

The two alternate in one run. cuBLAS multiplies operands that lie in VRAM already; pycauset's time includes planning, taking
and freeing its slots, and both copies over PCIe. The CPU time of the submitting thread (``time.thread_time``) over
the whole call, divided by the tasks it issued, is the host's share of a task.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from report import Report, Sample, gpu_or_exit, parser, product, sampled_error, warm_up

from pycauset.units import format_bytes, format_flops, parse_bytes

BAR_SPEED, BAR_HOST = 0.95, 50.0


def fill(array: Any, seed: int) -> None:
    """Random numbers, fast: one strip of them, scaled anew for each strip of the array."""
    rng = np.random.default_rng(seed)
    strip = rng.random((min(256, len(array)), array.shape[1])) - 0.5

    def put(row: int) -> None:
        part = array[row : row + len(strip)]
        np.multiply(strip[: len(part)], 1 + (row // len(strip) % 97) / 97, out=part)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(0, len(array), len(strip))))


def sampled(c: Any, a: Any, b: Any) -> float:
    """Largest relative error in a few rows and columns."""
    rng = np.random.default_rng(0)
    rows, cols = (rng.choice(size, min(size, 32), replace=False) for size in c.shape)
    return sampled_error(c[np.ix_(rows, cols)], a[rows], b[:, cols])


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=32768)
    made.add_argument("--gpu-memory", default="8GB")
    made.add_argument("--repeats", type=int, default=5)
    options = made.parse_args()
    if options.smoke:
        options.n, options.gpu_memory, options.repeats = min(options.n, 4096), "250MB", 1
    n = options.n
    report = Report(f"GPU, float64, n = {n}, host arrays in pinned memory, gpu_memory={options.gpu_memory}", options)
    cupy = gpu_or_exit(report)
    from pycauset import cuda
    from pycauset.solver import last_statistics

    cuda.set_pinning_budget(3 * n * n * 8 + parse_bytes("1GB"))
    a, b, c = (cuda.pinned_empty((n, n)) for _ in range(3))
    fill(a, 1)
    fill(b, 2)
    c[...] = np.nan
    on_device = [cupy.asarray(a), cupy.asarray(b), cupy.empty((n, n))]
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    host_seconds: list[float] = []

    def in_core() -> float:
        start.record()
        cupy.matmul(on_device[0], on_device[1], out=on_device[2])
        stop.record()
        stop.synchronize()
        return float(cupy.cuda.get_elapsed_time(start, stop)) / 1e3

    def streamed() -> float:
        begin, thread = time.perf_counter(), time.thread_time()
        product(a, b, c, gpu_memory=options.gpu_memory)
        host_seconds.append(time.thread_time() - thread)
        return time.perf_counter() - begin

    warm_up()
    with cuda.force_backend("gpu"):
        in_core()
        streamed()
        host_seconds.clear()
        times: dict[str, list[float]] = {"cuBLAS in core": [], "pycauset streamed": []}
        for _ in range(options.repeats):
            times["cuBLAS in core"].append(in_core())
            times["pycauset streamed"].append(streamed())
    samples = {name: Sample(tuple(values)) for name, values in times.items()}
    for name, sample in samples.items():
        report.figure(name, f"{sample}, {format_flops(2.0 * n**3 / sample.median)}")
    done = last_statistics()
    assert done is not None, "the product was not streamed"
    report.figure("tasks", done.tasks)
    report.figure("bytes up, down", f"{format_bytes(done.bytes_uploaded)}, {format_bytes(done.bytes_downloaded)}")
    for name, lane in done.lanes.items():
        report.figure(f"lane {name}", f"{lane.jobs} jobs, busy {lane.busy:.3f} s, stalled {lane.stalled:.3f} s")
    report.figure("largest error, 32 × 32 entries", f"{sampled(c, a, b):.2g} of |A||B|")
    ratio = samples["cuBLAS in core"].median / samples["pycauset streamed"].median
    report.bar("speed over cuBLAS in core", ratio, BAR_SPEED, at_least=True)
    per_task = Sample(tuple(seconds / done.tasks for seconds in host_seconds))
    report.figure("submitting thread, CPU per task", per_task)
    report.bar("submitting thread, CPU per task", per_task.median * 1e6, BAR_HOST, at_least=False, unit=" µs", digits=1)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
