"""A float64 product of matrices on disk on a GPU, under limits of RAM and VRAM: time over what the machine allows.

What it allows is the larger of two times: the product at cuBLAS's in-core rate, and the plan's disk bytes at the disk's
bandwidth. Both are measured in the same run: the bandwidth by the chunk reads and writes, threads and all, that the
product itself uses, once before and once after it. Where cgroups can be written, the process first puts itself under a memory
limit of ``--ram``, operands' page cache included; ``--memory`` leaves the rest of it to the interpreter and CUDA.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from report import (
    Report,
    Sample,
    add_folder,
    gpu_or_exit,
    operand_rows,
    parser,
    product,
    sampled_error,
    warm_up,
    work_folder,
    write_operand,
)

from pycauset.hardware import probe
from pycauset.storage import aligned_empty, create_store, default_chunks, open_store
from pycauset.tiling import Rect
from pycauset.units import format_bytes, format_flops, format_rate, parse_bytes

BAR = 1.25


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[str]:
    """Put this process under a memory limit of its own (cgroup v2, else v1); yields what came of it, in words."""
    for root, knob in ((Path("/sys/fs/cgroup"), "memory.max"), (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")):
        folder, home = root / f"pycauset-benchmark-{os.getpid()}", root / own_cgroup(knob == "memory.max")
        try:
            if knob == "memory.max" and "memory" not in (root / "cgroup.subtree_control").read_text().split():
                (root / "cgroup.subtree_control").write_text("+memory")
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / knob).write_text(str(limit))
            (folder / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            folder.rmdir()
            continue
        try:
            yield f"memory limit {format_bytes(limit)} by {knob}"
        finally:
            with contextlib.suppress(OSError):
                (home / "cgroup.procs").write_text(str(os.getpid()))
                folder.rmdir()
        return
    yield "no cgroup could be written: the limit of RAM is pycauset's own"


def own_cgroup(v2: bool) -> str:
    """The memory cgroup that this process is in, relative to the hierarchy's root."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if (number == "0") if v2 else ("memory" in controllers.split(",")):
            return path.strip("/")
    return ""


def rate(move: Callable[[Rect, Any], None], rects: list[Rect], threads: int, shape: tuple[int, int]) -> float:
    """Bytes per second of reading or writing chunks on several threads."""
    local = threading.local()
    moved = [0]
    lock = threading.Lock()

    def one(rect: Rect) -> None:
        if not hasattr(local, "buffer"):
            local.buffer = aligned_empty(shape, "float64")
            local.buffer[...] = 1
        move(rect, local.buffer)
        with lock:
            moved[0] += local.buffer.nbytes

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, rects[:threads]))  # buffers touched
        moved[0] = 0
        start = time.perf_counter()
        list(pool.map(one, rects[threads:]))
        return moved[0] / (time.perf_counter() - start)


def disk_rates(folder: Path, nbytes: int, readers: int, writers: int) -> tuple[float, float]:
    """Read and write bandwidth with whole chunks, as the streamer moves them."""
    a = open_store(folder / "a.zarr")
    height, width = a.chunks
    rects = [
        Rect(r, r + height, c, c + width)
        for r in range(0, a.shape[0] - height + 1, height)
        for c in range(0, a.shape[1] - width + 1, width)
    ]
    rects = rects[: max(4 * readers, nbytes // (height * width * 8))]
    reading = rate(a.read, rects, readers, a.chunks)
    side = max(8, min(len(rects), 256) // 8)
    target = create_store(folder / "bandwidth.zarr", (side * height, 8 * width), "float64", chunks=a.chunks)
    rects = [Rect(i * height, (i + 1) * height, j * width, (j + 1) * width) for i in range(side) for j in range(8)]
    writing = rate(target.write, rects, writers, a.chunks)
    target.discard()
    return reading, writing


def cublas_rate(cupy: Any, n: int) -> float:
    """FLOP/s of an in-core DGEMM."""
    a, b, c = (cupy.full((n, n), value) for value in (0.5, 0.25, 0.0))
    cupy.matmul(a, b, out=c)
    times = []
    for _ in range(3):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        cupy.matmul(a, b, out=c)
        stop.record()
        stop.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, stop) / 1e3)
    del a, b, c
    cupy.get_default_memory_pool().free_all_blocks()
    return 2.0 * n**3 / float(np.median(times))


def verify(folder: Path, n: int) -> float:
    """Error of sampled rows, in the columns of one chunk; A's rows are computed again, not read."""
    rng = np.random.default_rng(0)
    b, c = open_store(folder / "b.zarr"), open_store(folder / "c.zarr")
    width = min(512, n)
    first = int(rng.integers(0, n - width + 1))
    strip = np.empty((n, width))
    b.read(Rect(0, n, first, first + width), strip)
    rows = [int(row) for row in rng.choice(n, min(n, 8), replace=False)]
    found = np.empty((len(rows), width))
    for index, row in enumerate(rows):
        c.read(Rect(row, row + 1, first, first + width), found[index : index + 1])
    a = operand_rows(rows, n, seed=1, dtype="float64", chunks=default_chunks((n, n), "float64"))
    return sampled_error(found, a, strip)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=40960)
    made.add_argument("--ram", type=parse_bytes, default=parse_bytes("16GB"), help="limit of the whole process")
    made.add_argument("--memory", default="14GB", help="limit given to the product: --ram less interpreter and CUDA")
    made.add_argument("--gpu-memory", default="8GB")
    made.add_argument("--pinning", default=None, help="pinning budget; pycauset's own choice by default")
    made.add_argument("--repeats", type=int, default=2)
    made.add_argument("--readers", type=int, default=4)
    made.add_argument("--writers", type=int, default=4)
    add_folder(made)
    options = made.parse_args()
    if options.smoke:
        options.n, options.memory, options.gpu_memory, options.repeats = min(options.n, 4096), "1GB", "250MB", 1
    with work_folder(options.folder) as folder, memory_cgroup(options.ram) as limited:
        limits = f"RAM {format_bytes(options.ram)}, gpu_memory={options.gpu_memory}"
        report = Report(f"GPU, float64, n = {options.n} on disk, {limits}", options, folder=folder)
        report.figure("RAM", limited)
        cupy = gpu_or_exit(report)
        run(report, cupy, folder, options)
    return report.finish()


def run(report: Report, cupy: Any, folder: Path, options: Any) -> None:
    from pycauset import cuda
    from pycauset.solver import Factor, last_statistics, plan

    n = options.n
    start = time.perf_counter()
    for name, seed in (("a", 1), ("b", 2)):
        write_operand(folder / f"{name}.zarr", n, n, seed=seed, threads=options.writers)
    report.figure("operands", f"{format_bytes(n * n * 8)} each, written in {time.perf_counter() - start:.1f} s")
    if options.pinning is not None:
        cuda.set_pinning_budget(options.pinning)
    warm_up()
    amount = min(4 << 30, n * n * 8 // 2)
    rates = [disk_rates(folder, amount, options.readers, options.writers)]
    flops_rate = cublas_rate(cupy, min(16384, n))
    times, statistics = [], []
    with cuda.force_backend("gpu"):
        factors = [Factor(open_store(folder / f"{name}.zarr")) for name in "ab"]
        predicted = plan("matmul", *factors, out_on_disk=True, memory=options.memory, gpu_memory=options.gpu_memory)
        report.line(predicted.explain())
        for _ in range(options.repeats):
            shutil.rmtree(folder / "c.zarr", ignore_errors=True)
            probe.reset_peak_rss()
            begin = time.perf_counter()
            product(folder / "a.zarr", folder / "b.zarr", folder / "c.zarr", memory=options.memory, gpu_memory=options.gpu_memory)
            times.append(time.perf_counter() - begin)
            statistics.append(last_statistics())
    report.figure("peak RSS, CUDA included", format_bytes(probe.peak_rss()))
    rates.append(disk_rates(folder, amount, options.readers, options.writers))
    reading, writing = (Sample(tuple(values), "B/s") for values in zip(*rates, strict=True))
    for name, sample in (("disk read", reading), ("disk write", writing)):
        report.figure(name, f"{format_rate(sample.median)} ({', '.join(format_rate(value) for value in sample.values)})")
    best = predicted.route.plan
    if best is None or statistics[-1] is None:
        raise RuntimeError(f"the product took the route {predicted.route.name!r}, which does not stream; lower --gpu-memory")
    compute = 2.0 * n**3 / flops_rate
    disk = best.disk_read / reading.median + best.disk_write / writing.median
    report.figure("compute at cuBLAS's rate", f"{compute:.3g} s ({format_flops(flops_rate)})")
    planned = f"{format_bytes(best.disk_read)} read, {format_bytes(best.disk_write)} written"
    report.figure("planned bytes / bandwidth", f"{disk:.3g} s ({planned})")
    done = statistics[-1]
    report.figure("bytes moved", f"{format_bytes(done.bytes_read)} read, {format_bytes(done.bytes_written)} written")
    for name, lane in done.lanes.items():
        report.figure(f"lane {name}", f"{lane.jobs} jobs, busy {lane.busy:.3f} s, stalled {lane.stalled:.3f} s")
    sample = Sample(tuple(times))
    report.figure("product, disk to disk", f"{sample}, {format_flops(2.0 * n**3 / sample.median)}")
    report.figure("largest error, 8 rows", f"{verify(folder, n):.2g} of |A||B|")
    report.bar("time over the larger of the two", sample.median / max(compute, disk), BAR, at_least=False)


if __name__ == "__main__":
    raise SystemExit(main())
