"""A float64 product with operands and result on disk under a small memory limit, against NumPy with everything in RAM.

The two alternate in one run. pycauset's time includes making and committing the result; reads bypass the page cache where
the file system allows, and the operands' pages are dropped before each run all the same. The peak of memory is
measured in a fresh process that does only this product: its peak RSS (pinned and shared pages included) over its RSS
after the import and one tiny product.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from report import (
    Report,
    Sample,
    add_folder,
    alternate,
    child,
    drop_cache,
    load,
    parser,
    product,
    sampled_error,
    warm_up,
    work_folder,
    write_operand,
)

from pycauset.units import format_bytes, format_flops, parse_bytes

BAR_SPEED, BAR_MEMORY = 0.95, 512e6


def measure_peak(folder: Path, memory: str) -> None:
    """In a process of its own: bytes at rest, at the peak, and whether the peak could be reset first."""
    import pycauset
    from pycauset.hardware import probe

    tiny = np.ones((8, 8))
    pycauset.matmul(tiny, tiny)
    idle = probe.current_rss()
    reset = probe.reset_peak_rss()
    product(folder / "a.zarr", folder / "b.zarr", folder / "peak.zarr", memory=memory)
    print(f"{idle} {probe.peak_rss()} {int(reset)}")


def compare(report: Report, folder: Path, options: argparse.Namespace) -> None:
    n = options.n
    for name, seed in (("a", 1), ("b", 2)):
        write_operand(folder / f"{name}.zarr", n, n, seed=seed)
    a, b = load(folder / "a.zarr"), load(folder / "b.zarr")
    c = np.zeros((n, n))

    def on_disk() -> None:
        product(folder / "a.zarr", folder / "b.zarr", folder / "c.zarr", memory=options.memory)

    def in_ram() -> None:
        np.matmul(a, b, out=c)

    warm_up()
    in_ram()
    samples = {}
    for _ in range(options.repeats):  # dropped pages are not part of either time
        for name in ("a", "b"):
            drop_cache(folder / f"{name}.zarr")
        for name, sample in alternate({"NumPy in RAM": in_ram, "pycauset on disk": on_disk}, 1).items():
            samples.setdefault(name, []).append(sample.values[0])
    flops = 2.0 * n**3
    for name, values in samples.items():
        median = float(np.median(values))
        report.figure(name, f"{Sample(tuple(values))}, {format_flops(flops / median)}")
    rows = np.random.default_rng(0).choice(n, 4, replace=False)
    report.figure("largest error, 4 rows", f"{sampled_error(load(folder / 'c.zarr')[rows], a[rows], b):.2g} of |A||B|")
    pairs = [ram / disk for ram, disk in zip(samples["NumPy in RAM"], samples["pycauset on disk"], strict=True)]
    report.figure("speed, pair by pair", ", ".join(f"{pair:.3f}" for pair in pairs))
    ratio = float(np.median(samples["NumPy in RAM"]) / np.median(samples["pycauset on disk"]))
    report.bar("speed over NumPy in RAM", ratio, BAR_SPEED, at_least=True)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=8192)
    made.add_argument("--memory", default="512MB")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    add_folder(made)
    options = made.parse_args()
    if options.child:
        measure_peak(options.child, options.memory)
        return 0
    if options.smoke:
        options.n, options.memory, options.repeats = min(options.n, 512), "64MB", 1
    with work_folder(options.folder) as folder:
        title = f"CPU, float64, n = {options.n}, operands and result on disk, memory={options.memory}"
        report = Report(title, options, folder=folder)
        compare(report, folder, options)
        idle, peak, reset = map(int, child(["--child", str(folder), "--memory", options.memory]).split()[-3:])
        since = "" if reset else " (since its start)"
        report.figure("memory, fresh process", f"{format_bytes(idle)} idle, {format_bytes(peak)} at the peak{since}")
        limit = min(BAR_MEMORY, parse_bytes(options.memory)) / 1e6
        report.bar("peak RSS over idle", (peak - idle) / 1e6, limit, at_least=False, unit=" MB", digits=1)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
