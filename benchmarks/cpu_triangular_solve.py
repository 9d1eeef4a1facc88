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
from report import (
    Report,
    Sample,
    add_folder,
    alternate,
    child,
    drop_cache,
    load,
    parser,
    sampled_error,
    warm_up,
    work_folder,
    write_operand,
)

from pycauset.units import format_bytes, format_flops, parse_bytes

BAR_SPEED, BAR_MEMORY = 0.95, 512e6


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

    shutil.rmtree(out, ignore_errors=True)  # a finished result would be opened, not computed again
    factor, right = pycauset.open(t), pycauset.open(b)
    pycauset.linalg.solve_triangular(factor, right, lower=True, check_finite=False, out=out, memory=memory, progress=False)


def measure_peak(folder: Path, memory: str) -> None:
    """In a process of its own: bytes at rest, at the peak, and whether the peak could be reset first."""
    import pycauset
    from pycauset.hardware import probe

    tiny = np.ones((8, 8))
    pycauset.matmul(tiny, tiny)
    idle = probe.current_rss()
    reset = probe.reset_peak_rss()
    solve(folder / "t.zarr", folder / "b.zarr", folder / "peak.zarr", memory=memory)
    print(f"{idle} {probe.peak_rss()} {int(reset)}")


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
    samples: dict[str, list[float]] = {}
    for _ in range(options.repeats):  # dropped pages are not part of either time
        for name in ("t", "b"):
            drop_cache(folder / f"{name}.zarr")
        for name, sample in alternate({"SciPy in RAM": in_ram, "pycauset on disk": on_disk}, 1).items():
            samples.setdefault(name, []).append(sample.values[0])
    for name, values in samples.items():
        report.figure(name, f"{Sample(tuple(values))}, {format_flops(float(n) ** 2 * m / float(np.median(values)))}")
    rows = np.random.default_rng(0).choice(n, 4, replace=False)
    x = load(folder / "x.zarr")
    report.figure("largest error, 4 rows", f"{sampled_error(b[rows], t[rows], x):.2g} of |A||B|")
    pairs = [ram / disk for ram, disk in zip(samples["SciPy in RAM"], samples["pycauset on disk"], strict=True)]
    report.figure("speed, pair by pair", ", ".join(f"{pair:.3f}" for pair in pairs))
    ratio = float(np.median(samples["SciPy in RAM"]) / np.median(samples["pycauset on disk"]))
    report.bar("speed over SciPy in RAM", ratio, BAR_SPEED, at_least=True)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=12288)
    made.add_argument("--columns", type=int, default=4096)
    made.add_argument("--memory", default="512MB")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    add_folder(made)
    options = made.parse_args()
    if options.child:
        measure_peak(options.child, options.memory)
        return 0
    if options.smoke:
        options.n, options.columns, options.repeats = min(options.n, 1500), min(options.columns, 300), 1
        options.memory = "128MB"
    with work_folder(options.folder) as folder:
        title = f"CPU, float64, n = {options.n}, {options.columns} right-hand sides, all on disk, memory={options.memory}"
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
