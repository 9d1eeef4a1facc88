"""The 8 largest eigenpairs of a symmetric float64 matrix on disk, with little memory, against SciPy reading the same tiles.

SciPy's ``eigsh`` gets a LinearOperator that reads the stored tiles by the same direct I/O and uses each for both triangles.
The eigenvalues are ``i^-0.35``, hidden by a reflection; tol = 1e-8 for both; caches are cold; the two alternate.

Tiles that memory keeps from pass to pass are not read again, so that a pass takes at least the longer of what it reads at the
disk's rate and what it multiplies at BLAS's. Both are measured right after each pass, for the disk's rate changes from second to
second: one thread and then two read as many tiles as the pass did, and all tiles are multiplied in RAM. The number of threads
that took less over all passes counts. These runs are not the timed ones. The peak of memory is measured in a fresh process that
does only this.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from disk import add_child, bar_on_peak, print_peak
from report import POWER, Report, Sample, add_folder, drop_cache, parser, power_law_matrix, warm_up, work_folder

if TYPE_CHECKING:
    from pycauset.storage import TileStore
    from pycauset.tiling import Rect

BAR_TIME, BAR_PASSES, BAR_RATE = 0.18, 1 / 3, 0.9
K, TOL = 8, 1e-8


def write_matrix(path: Path, n: int) -> None:
    """The lower triangle, in chunks of the default size."""
    from pycauset.storage import create_store
    from pycauset.tiling import Rect

    element = power_law_matrix(n)
    store = create_store(path, (n, n), "float64", structure="symmetric")
    side = store.chunks[0]
    for r in range(0, n, side):
        for c in range(0, r + 1, side):
            rect = Rect(r, min(r + side, n), c, min(c + side, n))
            store.write(rect, element(np.arange(rect.r0, rect.r1), np.arange(rect.c0, rect.c1)))
    store.commit()


def find(path: Path, memory: str) -> Any:
    """The 8 largest pairs of the matrix on disk."""
    import pycauset

    return pycauset.linalg.eigsh(pycauset.open(path), K, tol=TOL, memory=memory, return_stats=True)


def compare(report: Report, path: Path, options: argparse.Namespace) -> None:
    from scipy.sparse.linalg import LinearOperator
    from scipy.sparse.linalg import eigsh as scipy_eigsh

    from pycauset.storage import aligned_empty, open_store
    from pycauset.tiling import Rect

    n = options.n
    store = open_store(path)
    side = store.chunks[0]
    tiles = [Rect(r, min(r + side, n), c, min(c + side, n)) for r in range(0, n, side) for c in range(0, r + 1, side)]
    buffer = aligned_empty((side, side), "float64")
    count = [0]

    def multiply(x: np.ndarray) -> np.ndarray:
        count[0] += 1
        x, y = x.ravel(), np.zeros(n)
        for rect in tiles:
            height, width = rect.shape
            tile = buffer.reshape(-1)[: height * width].reshape(height, width)
            store.read(rect, tile)
            y[rect.r0 : rect.r1] += tile @ x[rect.c0 : rect.c1]
            if rect.r0 != rect.c0:
                y[rect.c0 : rect.c1] += tile.T @ x[rect.r0 : rect.r1]
        return y

    theirs, times, products = [], [], []
    passes: list[Pass] = []
    for _ in range(options.repeats):
        count[0] = 0
        drop_cache(path)
        start = time.perf_counter()
        scipy_eigsh(LinearOperator((n, n), multiply, dtype=np.float64), K, tol=TOL)
        theirs.append(time.perf_counter() - start)
        products.append(count[0])
        drop_cache(path)
        start = time.perf_counter()
        w, v, stats = find(path, options.memory)
        times.append(time.perf_counter() - start)
        drop_cache(path)
        passes += each_pass(path, options.memory, store, tiles)
    report.figure("SciPy eigsh, same tiles", f"{Sample(tuple(theirs))}, {', '.join(map(str, products))} products")
    report.figure("pycauset eigsh", Sample(tuple(times)))
    report.figure("passes", f"{stats.passes}, blocks of {stats.block_size}, {stats.restarts} restarts")
    exact = np.arange(1, K + 1)[::-1] ** POWER
    report.bar(
        "largest error of an eigenvalue", float(np.abs(w - exact).max()) * 1e12, 1, at_least=False, unit="e-12", exact=True
    )
    residual = float(np.linalg.norm(np.column_stack([multiply(x) for x in v.T]) - v * w, axis=0).max())
    report.bar("worst residual / (tol |A|)", residual / TOL, 1, at_least=False, exact=True)
    report.bar("passes over SciPy's products", stats.passes / min(products), BAR_PASSES, at_least=False)
    report.bar("time over SciPy's", float(np.median(times) / np.median(theirs)), BAR_TIME, at_least=False)
    last = passes[-stats.passes :]
    report.figure("tiles read in a pass", ", ".join(str(one.tiles) for one in last) + f" of {len(tiles)}")
    report.figure("seconds of a pass", ", ".join(f"{one.seconds:.3f}" for one in last))
    for which, name in enumerate(("one thread", "two")):
        report.figure(f"… of reading these tiles alone, {name}", ", ".join(f"{one.reading[which]:.3f}" for one in last))
    report.figure("… of multiplying alone", ", ".join(f"{one.multiplying:.3f}" for one in last))
    readings = min(zip(*(one.reading for one in passes), strict=True), key=sum)
    rates = np.array([max(alone, one.multiplying) / one.seconds for one, alone in zip(passes, readings, strict=True)])
    quarters = ", ".join(f"{rate:.3f}" for rate in np.quantile(rates, (0, 0.25, 0.5, 0.75, 1)))
    report.figure(f"rates of {len(passes)} passes, quartiles", quarters)
    report.bar("rate of a pass over what binds, median", float(np.median(rates)), BAR_RATE, at_least=True)


class Pass(NamedTuple):
    """A pass and what it is held against, in seconds; reading by one thread, and by two."""

    tiles: int
    seconds: float
    reading: tuple[float, float]
    multiplying: float


def each_pass(path: Path, memory: str, store: TileStore, tiles: list[Rect]) -> list[Pass]:
    """Find the pairs, and after each pass do alone what it did at once."""
    from pycauset.solver.products import StreamedProduct

    passes: list[Pass] = []
    plain = StreamedProduct._multiply

    def timed(self: Any, x: np.ndarray) -> np.ndarray:
        before, start = self._streamer.statistics().bytes_read, time.perf_counter()
        y = plain(self, x)
        seconds = time.perf_counter() - start
        share = (self._streamer.statistics().bytes_read - before) / sum(rect.size * 8 for rect in tiles)
        some = [tiles[i] for i in np.linspace(0, len(tiles) - 1, round(share * len(tiles))).astype(int)]
        passes.append(Pass(len(some), seconds, *alone(store, some, tiles, x.shape[1])))
        return y

    StreamedProduct._multiply = timed  # type: ignore[method-assign]
    try:
        find(path, memory)
    finally:
        StreamedProduct._multiply = plain  # type: ignore[method-assign]
    return passes


def alone(store: TileStore, read: list[Rect], multiplied: list[Rect], block: int) -> tuple[tuple[float, float], float]:
    """Seconds of reading tiles, by one thread and by two, and of multiplying tiles in RAM."""
    from pycauset.devices.blas import gemm
    from pycauset.storage import aligned_empty

    n, side = store.shape[0], store.chunks[0]
    free: SimpleQueue[np.ndarray] = SimpleQueue()
    for _ in range(2):
        buffer = aligned_empty((side, side), "float64")
        buffer[...] = 1.0  # pages never written would all be the one of zeros
        free.put(buffer)

    def read_one(rect: Rect) -> None:
        buffer = free.get()
        store.read(rect, buffer.reshape(-1)[: rect.size].reshape(rect.shape))
        free.put(buffer)

    def read_all(threads: int) -> float:
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            list(pool.map(read_one, read))
            return time.perf_counter() - start

    readings = read_all(1), read_all(2)
    x, y = np.ones((n, block)), np.zeros((n, block))
    start = time.perf_counter()
    for rect in multiplied:  # by the BLAS of the passes: the threads of another one would still spin when the next pass begins
        tile = buffer.reshape(-1)[: rect.size].reshape(rect.shape)
        gemm(tile, x[rect.c0 : rect.c1], y[rect.r0 : rect.r1], beta=1.0)
        if rect.r0 != rect.c0:
            gemm(tile, x[rect.r0 : rect.r1], y[rect.c0 : rect.c1], beta=1.0, op_a="T")
    return readings, time.perf_counter() - start


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=12288)
    made.add_argument("--memory", default="512MB")
    made.add_argument("--repeats", type=int, default=3)
    add_child(made)
    add_folder(made)
    options = made.parse_args()
    if options.child:
        return print_peak(lambda: find(options.child / "a.zarr", options.memory))
    if options.smoke:
        options.n, options.memory, options.repeats = min(options.n, 1500), "128MB", 1
    with work_folder(options.folder) as folder:
        title = f"CPU, float64, {K} largest eigenpairs of order {options.n} on disk, memory={options.memory}"
        report = Report(title, options, folder=folder, packages=("zarr",))
        write_matrix(folder / "a.zarr", options.n)
        warm_up()
        compare(report, folder / "a.zarr", options)
        bar_on_peak(report, folder, options.memory)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
