"""The same product from disk to disk by pycauset, dask.array + zarr, np.memmap and blosc2, each with cold caches.

Each run is a process of its own. Before it the operands are synced and dropped from the page cache (``fsync``, then
``posix_fadvise(DONTNEED)``); imports are not timed, the product and its way to disk are. The peers have all of RAM, pycauset
has ``--memory``. dask reads the very matrices that pycauset reads and is given its best of several chunkings; np.memmap gets
``.npy`` files, blosc2 its own format, the same elements.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from report import (
    Report,
    Sample,
    add_folder,
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

PEERS = ("dask", "memmap", "blosc2")
NEEDS = {"dask": "dask", "blosc2": "blosc2", "memmap": "numpy", "pycauset": "pycauset"}


def run_pycauset(folder: Path, options: argparse.Namespace) -> float:
    warm_up()
    start = time.perf_counter()
    product(folder / "a.zarr", folder / "b.zarr", folder / "c-pycauset.zarr", memory=options.memory)
    return time.perf_counter() - start


def run_dask(folder: Path, options: argparse.Namespace) -> float:
    import dask.array as da

    start = time.perf_counter()
    a, b = (da.from_zarr(str(folder / f"{name}.zarr"), chunks=(options.chunk, options.chunk)) for name in "ab")
    with warnings.catch_warnings(action="ignore"):
        da.to_zarr(a @ b, str(folder / "c-dask.zarr"), overwrite=True)
    return time.perf_counter() - start


def run_memmap(folder: Path, options: argparse.Namespace) -> float:
    n = options.n
    start = time.perf_counter()
    a, b = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in "ab")
    c = np.lib.format.open_memmap(folder / "c-memmap.npy", mode="w+", dtype=np.float64, shape=(n, n))
    np.matmul(a, b, out=c)
    c.flush()
    return time.perf_counter() - start


def run_blosc2(folder: Path, options: argparse.Namespace) -> float:
    import blosc2

    start = time.perf_counter()
    a, b = (blosc2.open(str(folder / f"{name}.b2nd"), mode="r") for name in "ab")
    blosc2.matmul(a, b, urlpath=str(folder / "c-blosc2.b2nd"), mode="w")
    return time.perf_counter() - start


RUNS = {"pycauset": run_pycauset, "dask": run_dask, "memmap": run_memmap, "blosc2": run_blosc2}


def result_rows(folder: Path, who: str, rows: Any) -> Any:
    """Some rows of a contestant's result: everybody must have computed the product."""
    if who == "memmap":
        return np.load(folder / "c-memmap.npy", mmap_mode="r")[rows]
    if who == "blosc2":
        import blosc2

        found = blosc2.open(str(folder / "c-blosc2.b2nd"), mode="r")
        return np.stack([np.asarray(found[int(row) : int(row) + 1])[0] for row in rows])
    return load(folder / f"c-{who}.zarr")[rows]


def prepare(folder: Path, n: int, contestants: list[str]) -> tuple[Any, Any]:
    """Operands in every format."""
    for name, seed in (("a", 1), ("b", 2)):
        write_operand(folder / f"{name}.zarr", n, n, seed=seed)
    a, b = load(folder / "a.zarr"), load(folder / "b.zarr")
    for name, array in (("a", a), ("b", b)):
        if "memmap" in contestants:
            np.save(folder / f"{name}.npy", array)
        if "blosc2" in contestants:
            import blosc2

            blosc2.asarray(array, urlpath=str(folder / f"{name}.b2nd"), mode="w")
    return a, b


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=8192)
    made.add_argument("--memory", default="512MB")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    made.add_argument("--dask-chunks", nargs="+", type=int, default=[1024, 2048, 4096])
    made.add_argument("--child", choices=tuple(RUNS), help=argparse.SUPPRESS)
    made.add_argument("--chunk", type=int, default=0, help=argparse.SUPPRESS)
    add_folder(made)
    options = made.parse_args()
    if options.child:
        print(RUNS[options.child](options.folder, options))
        return 0
    if options.smoke:
        options.n, options.memory, options.repeats, options.dask_chunks = min(options.n, 384), "64MB", 1, [256]
    with work_folder(options.folder) as folder:
        title = f"CPU, float64, n = {options.n}, disk to disk, cold caches"
        report = Report(title, options, folder=folder, packages=("dask", "zarr", "blosc2"))
        contestants = ["pycauset", *(peer for peer in options.peers if importlib.util.find_spec(NEEDS[peer]) is not None)]
        a, b = prepare(folder, options.n, contestants)
        runs = [(who, chunk) for who in contestants for chunk in (options.dask_chunks if who == "dask" else [0])]
        times: dict[tuple[str, int], list[float]] = {run: [] for run in runs}
        for _ in range(options.repeats):
            for who, chunk in runs:
                drop_cache(folder)
                arguments = ["--child", who, "--chunk", str(chunk), "--n", str(options.n)]
                out = child([*arguments, "--memory", options.memory, "--folder", str(folder)])
                times[who, chunk].append(float(out.split()[-1]))
        samples = {run: Sample(tuple(values)) for run, values in times.items()}
        for (who, chunk), sample in samples.items():
            report.figure(who + (f", chunks of {chunk}" if chunk else ""), sample)
        rows = np.random.default_rng(0).choice(options.n, 4, replace=False)
        for who in contestants:
            error = sampled_error(result_rows(folder, who, rows), a[rows], b)
            report.figure(f"largest error, 4 rows, {who}", f"{error:.2g} of |A||B|")
        for peer in contestants[1:]:
            best = min(sample.median for (who, _), sample in samples.items() if who == peer)
            report.bar(f"speed over {peer}", best / samples["pycauset", 0].median, 1.0, at_least=True)
        for peer in set(options.peers) - set(contestants):
            report.figure(peer, "not installed, not compared")
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
