"""A float64 triangular solve, everything on disk under a small memory limit, against scipy.linalg.solve_triangular in RAM.

The two alternate in one run. SciPy gets Fortran-ordered arrays, which it need not copy, and no check of its input. pycauset's
time includes making and committing the result; reads bypass the page cache where the file system allows, and the operands'
pages are dropped before each run all the same. The peak of memory is measured in a fresh process that does only this solve.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from disk import ON_DISK, add_child, bar_on_peak, pairs, print_peak, tell_pairs
from report import Report, add_folder, load, parser, sampled_error, warm_up, work_folder, write_operand

BAR_SPEED = 0.95


def write_factor(path: Path, n: int) -> None:
    """A well-conditioned lower triangular matrix on disk, tile by tile: random below a diagonal between 1 and 2."""
    from pycauset.storage import create_store
    from pycauset.tiling import Rect

    rng = np.random.default_rng(1)
    store = create_store(path, (n, n), "float64", structure="lower")
    b = store.chunks[0]
    noise = rng.uniform(-1, 1, (3, b, b)) / np.sqrt(n)
    for number, (r, c) in enumerate([(i, j) for i in range(0, n, b) for j in range(0, i + 1, b)]):
        tile = noise[number % 3] * (1 + number % 7 / 7)
        if r == c:
            tile = np.tril(tile, -1) + np.diag(rng.uniform(1, 2, b))
        rect = Rect(r, min(r + b, n), c, min(c + b, n))
        store.write(rect, np.ascontiguousarray(tile[: rect.shape[0], : rect.shape[1]]))
    store.commit()
    store.close()


def solve(t: Path, b: Path, out: Path, *, memory: Any) -> None:
    """``T X = B`` from disk to disk."""
    import pycauset

    shutil.rmtree(out, ignore_errors=True)  # what is there is never overwritten unasked
    factor, right = pycauset.open(t), pycauset.open(b)
    pycauset.linalg.solve_triangular(factor, right, lower=True, check_finite=False, out=out, memory=memory, progress=False)


def compare(report: Report, folder: Path, options: argparse.Namespace) -> None:
    from scipy.linalg import solve_triangular

    n, m = options.n, options.columns
    write_factor(folder / "t.zarr", n)
    write_operand(folder / "b.zarr", n, m, seed=2)
    t, b = (np.asfortranarray(load(folder / name)) for name in ("t.zarr", "b.zarr"))

    def on_disk() -> None:
        solve(folder / "t.zarr", folder / "b.zarr", folder / "x.zarr", memory=options.memory)

    def in_ram() -> None:
        solve_triangular(t, b, lower=True, check_finite=False)

    warm_up()
    operands = [folder / "t.zarr", folder / "b.zarr"]
    times = pairs(report, {"SciPy in RAM": in_ram, ON_DISK: on_disk}, operands, options.repeats)
    rows = np.random.default_rng(0).choice(n, 4, replace=False)
    x = load(folder / "x.zarr")
    report.figure("largest error, 4 rows", f"{sampled_error(b[rows], t[rows], x):.2g} of |A||B|")
    tell_pairs(report, times, float(n) ** 2 * m, "SciPy in RAM", BAR_SPEED)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=12288)
    made.add_argument("--columns", type=int, default=4096)
    made.add_argument("--memory", default="512MB")
    made.add_argument("--repeats", type=int, default=3)
    add_child(made)
    add_folder(made)
    options = made.parse_args()
    if options.child:
        here = options.child
        return print_peak(lambda: solve(here / "t.zarr", here / "b.zarr", here / "peak.zarr", memory=options.memory))
    if options.smoke:
        options.n, options.columns, options.repeats = min(options.n, 1500), min(options.columns, 300), 1
        options.memory = "128MB"
    with work_folder(options.folder) as folder:
        title = f"CPU, float64, n = {options.n}, {options.columns} right-hand sides, all on disk, memory={options.memory}"
        report = Report(title, options, folder=folder)
        compare(report, folder, options)
        bar_on_peak(report, folder, options.memory)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
