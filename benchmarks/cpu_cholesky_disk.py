"""A float64 Cholesky factorisation from disk to disk under a small memory limit, against SciPy with everything in RAM.

The two alternate in one run. SciPy gets a fresh Fortran-ordered copy each time, made outside its time, which it need neither copy
nor check. pycauset's time includes making, journalling and committing the factor; reads bypass the page cache where the file
system allows, and the matrix's pages are dropped before each run all the same. Where dask is installed,
``dask.array.linalg.cholesky`` factors the same files into a Zarr array, with its best of several chunkings (which must divide
n). The peak of memory is measured in a fresh process that does only this factorisation.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from disk import ON_DISK, add_child, bar_on_peak, pairs, print_peak, tell_pairs
from report import Report, add_folder, load, parser, warm_up, work_folder

BAR_SPEED, BAR_RESIDUAL = 0.95, 30.0


def write_matrix(path: Path, n: int) -> None:
    """The covariance matrix of n random points, all of it, in chunks of the default size."""
    from pycauset.copying import copy_store
    from pycauset.seeded import CovarianceStore

    copy_store(CovarianceStore(1, n, "float64"), path, progress=False)


def factor(a: Path, out: Path, memory: Any) -> None:
    """From disk to disk."""
    import pycauset

    shutil.rmtree(out, ignore_errors=True)
    pycauset.linalg.cholesky(a, out=out, memory=memory, progress=False)


def factor_with_dask(a: Path, out: Path, chunk: int) -> None:
    import dask.array as da

    matrix = da.from_zarr(str(a)).rechunk((chunk, chunk))
    da.to_zarr(da.linalg.cholesky(matrix, lower=True), str(out), overwrite=True)


def compare(report: Report, folder: Path, options: argparse.Namespace) -> None:
    from scipy.linalg import cholesky

    from pycauset.seeded import CovarianceStore
    from pycauset.storage import open_store
    from pycauset.stress_cholesky import tile_residual

    n = options.n
    write_matrix(folder / "a.zarr", n)
    a = load(folder / "a.zarr")
    copy = np.empty((n, n), order="F")

    def in_ram() -> float:
        np.copyto(copy, a)
        start = time.perf_counter()
        cholesky(copy, lower=True, overwrite_a=True, check_finite=False)
        return time.perf_counter() - start

    def timed(call: Callable[..., None], out: str, *arguments: Any) -> float:
        shutil.rmtree(folder / out, ignore_errors=True)
        start = time.perf_counter()
        call(folder / "a.zarr", folder / out, *arguments)
        return time.perf_counter() - start

    calls: dict[str, Callable[[], float]] = {
        "SciPy in RAM": in_ram,
        ON_DISK: lambda: timed(factor, "l.zarr", options.memory),
    }
    if options.dask and importlib.util.find_spec("dask") is not None:
        for chunk in options.dask_chunks:
            name = f"dask on disk, chunks of {chunk}"
            calls[name] = lambda chunk=chunk: timed(factor_with_dask, "dask.zarr", chunk)
    warm_up()
    times = pairs(report, calls, [folder / "a.zarr"], options.repeats)
    exact = CovarianceStore(1, n, "float64")
    report.bar(
        "scaled residual, sampled tiles",
        tile_residual(exact, open_store(folder / "l.zarr")),
        BAR_RESIDUAL,
        at_least=False,
        exact=True,
    )
    medians = tell_pairs(report, times, float(n) ** 3 / 3, "SciPy in RAM", BAR_SPEED)
    peers = [median for name, median in medians.items() if name.startswith("dask")]
    if peers:
        report.bar("speed over dask's best", min(peers) / medians[ON_DISK], 1.0, at_least=True)
    else:
        report.line("dask: not compared")


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=12288)
    made.add_argument("--memory", default="512MB")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--dask-chunks", nargs="+", type=int, default=[1024, 2048])
    made.add_argument("--no-dask", dest="dask", action="store_false", help="leave dask out")
    add_child(made)
    add_folder(made)
    options = made.parse_args()
    if options.child:
        here = options.child
        return print_peak(lambda: factor(here / "a.zarr", here / "peak.zarr", options.memory))
    if options.smoke:
        options.n, options.memory, options.repeats, options.dask_chunks = min(options.n, 1280), "128MB", 1, [256]
    with work_folder(options.folder) as folder:
        title = f"CPU, float64, Cholesky factor of order {options.n} from disk to disk, memory={options.memory}"
        report = Report(title, options, folder=folder, packages=("dask", "zarr"))
        compare(report, folder, options)
        bar_on_peak(report, folder, options.memory)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
