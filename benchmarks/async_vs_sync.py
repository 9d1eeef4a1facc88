"""Asynchronous against synchronous execution of one plan whose operands stream from disk: speed and equal bits.

The product is an inner-product shape, (n, k) @ (k, n) with k large: every byte is read once, so that n sets the ratio of disk
time to compute time. n is chosen from the measured profile and corrected by a trial, until the two times, measured by
the synchronous run itself, are within 2× of each other. Both modes run the same tasks on the same slots and drop the
operands' pages before each run.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from report import Report, Sample, add_folder, drop_cache, load, parser, work_folder, write_operand

from pycauset import devices
from pycauset.devices.audit import load_profile
from pycauset.devices.base import Mode
from pycauset.devices.rates import Rates
from pycauset.drivers.matmul import MatmulDriver
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.governor import governor
from pycauset.storage import create_store, open_store
from pycauset.units import format_bytes, parse_bytes

BAR = 1.3


class Run(NamedTuple):
    seconds: float
    disk: float
    compute: float


def once(folder: Path, mode: Mode, memory: int) -> Run:
    """One product; seconds in all, and on the disk and in kernels."""
    a, b = open_store(folder / "a.zarr"), open_store(folder / "b.zarr")
    drop_cache(folder)
    start = time.perf_counter()
    c = create_store(folder / f"{mode}.zarr", (a.shape[0], b.shape[1]), a.dtype, overwrite=True)
    device = devices.cpu()
    driver = MatmulDriver(a, b, c, np.dtype(np.float64))
    plan = driver.plan(device, MatmulLimits(memory), Rates(load_profile(), "cpu", np.float64, {"disk"}))
    with (
        governor().scope(host=2 * memory, owner="async_vs_sync") as scope,
        AsyncStreamer(device, driver.operands(plan), scope, mode=mode) as streamer,
    ):
        streamer.run(driver.tasks(plan))
        done = streamer.statistics()
    c.commit()
    return Run(time.perf_counter() - start, done.lanes["read"].busy + done.lanes["write"].busy, done.lanes["compute"].busy)


def choose(folder: Path, options: argparse.Namespace, report: Report) -> int:
    """The n at which disk and compute times are close, operands of it on disk."""
    profile = load_profile()
    n = options.n
    if not n:
        # 2n²k / rate = 16nk / bandwidth
        n = 8 * profile.gemm_rate("cpu", "float64", 1024) / profile.disk.read_bandwidth
    for _ in range(4):
        n = int(min(4096, max(128, round(n / 128) * 128)))
        k = max(options.bytes // (8 * n) // 1024, 4) * 1024
        side = min(n, 1024)
        for name, shape, chunks, seed in (("a", (n, k), (side, 1024), 1), ("b", (k, n), (1024, side), 2)):
            write_operand(folder / f"{name}.new", *shape, seed=seed, chunks=chunks)
            replace_store(folder / f"{name}.new", folder / f"{name}.zarr")
        trial = once(folder, "sync", options.memory)
        report.figure(f"trial, ({n}, {k}) @ ({k}, {n})", f"disk {trial.disk:.3g} s, compute {trial.compute:.3g} s")
        if options.smoke or options.n or 0.7 < trial.disk / trial.compute < 1.4:
            break
        n *= trial.disk / trial.compute
    return n


def replace_store(new: Path, old: Path) -> None:
    import shutil

    shutil.rmtree(old, ignore_errors=True)
    new.rename(old)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=0, help="rows of A and columns of B; chosen by trial if 0")
    made.add_argument("--bytes", type=parse_bytes, default=parse_bytes("2GB"), help="size of each operand")
    made.add_argument("--memory", type=parse_bytes, default=parse_bytes("512MB"), help="bytes of slots")
    made.add_argument("--repeats", type=int, default=5)
    add_folder(made)
    options = made.parse_args()
    if options.smoke:
        options.n, options.bytes, options.repeats = 256, 8 << 20, 1
    with work_folder(options.folder) as folder:
        title = f"asynchronous against synchronous, operands of {format_bytes(options.bytes)} on disk"
        report = Report(title, options, folder=folder)
        choose(folder, options, report)
        runs: dict[Mode, list[Run]] = {"sync": [], "async": []}
        for _ in range(options.repeats):
            for mode, found in runs.items():
                found.append(once(folder, mode, options.memory))
        samples = {mode: Sample(tuple(run.seconds for run in found)) for mode, found in runs.items()}
        for mode, sample in samples.items():
            report.figure(mode, sample)
        disk, compute = (Sample(tuple(getattr(run, part) for run in runs["sync"])) for part in ("disk", "compute"))
        report.figure("disk time (synchronous run)", disk)
        report.figure("compute time (synchronous run)", compute)
        apart = max(disk.median / compute.median, compute.median / disk.median)
        report.bar("larger / smaller of the two", apart, 2.0, at_least=False)
        report.bar("speed-up", samples["sync"].median / samples["async"].median, BAR, at_least=True)
        bits = [load(folder / f"{mode}.zarr").view(np.uint64) for mode in runs]
        differ = int(np.count_nonzero(bits[0] != bits[1]))
        report.bar("elements whose bits differ", differ, 0, at_least=False, digits=0, exact=True)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
