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
from disk import ON_DISK, add_child, bar_on_peak, pairs, print_peak, tell_pairs
from report import Report, add_folder, load, parser, product, sampled_error, warm_up, work_folder, write_operand

BAR_SPEED = 0.95


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
    operands = [folder / "a.zarr", folder / "b.zarr"]
    times = pairs(report, {"NumPy in RAM": in_ram, ON_DISK: on_disk}, operands, options.repeats)
    rows = np.random.default_rng(0).choice(n, 4, replace=False)
    report.figure("largest error, 4 rows", f"{sampled_error(load(folder / 'c.zarr')[rows], a[rows], b):.2g} of |A||B|")
    tell_pairs(report, times, 2.0 * n**3, "NumPy in RAM", BAR_SPEED)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=8192)
    made.add_argument("--memory", default="512MB")
    made.add_argument("--repeats", type=int, default=3)
    add_child(made)
    add_folder(made)
    options = made.parse_args()
    if options.child:
        here = options.child
        return print_peak(lambda: product(here / "a.zarr", here / "b.zarr", here / "peak.zarr", memory=options.memory))
    if options.smoke:
        options.n, options.memory, options.repeats = min(options.n, 512), "64MB", 1
    with work_folder(options.folder) as folder:
        title = f"CPU, float64, n = {options.n}, operands and result on disk, memory={options.memory}"
        report = Report(title, options, folder=folder)
        compare(report, folder, options)
        bar_on_peak(report, folder, options.memory)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
