"""The 8 largest eigenpairs of a symmetric float64 matrix on disk, with little memory, against SciPy reading the same tiles.

SciPy's ``eigsh`` gets a LinearOperator that reads the stored tiles by the same direct I/O and uses each for both triangles.
The eigenvalues are ``i^-0.35``, hidden by a reflection; tol = 1e-8 for both; caches are cold; the two alternate.

Tiles that memory keeps from pass to pass are not read again: a pass is held against the longer of what it reads at the disk's
rate and what it multiplies at BLAS's. Both are measured right before and right after each run: reading all tiles with one thread
and with as many as the passes have (the faster counts), and multiplying as many in RAM. The peak of memory is measured in a fresh
process that does only this.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
from disk import add_child, bar_on_peak, print_peak
from report import POWER, Report, Sample, add_folder, drop_cache, parser, power_law_matrix, warm_up, work_folder

if TYPE_CHECKING:
    from pycauset.storage import TileStore
    from pycauset.tiling import Rect

BAR_TIME, BAR_PASSES, BAR_RATE = 0.18, 1 / 3, 0.9
K, TOL = 8, 1e-8
BLOCK = 16  # that the planner chooses


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

    from pycauset import devices
    from pycauset.drivers.block_product import BlockProductDriver
    from pycauset.storage import ArrayStore, aligned_empty, open_store
    from pycauset.tiling import Rect

    n = options.n
    store = open_store(path)
    side = store.chunks[0]
    tiles = [Rect(r, min(r + side, n), c, min(c + side, n)) for r in range(0, n, side) for c in range(0, r + 1, side)]
    store_bytes = sum(rect.size for rect in tiles) * 8
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

    block = ArrayStore(np.zeros((n, BLOCK)))
    readers = BlockProductDriver(store, block, block, block.dtype).readers(devices.cpu())
    theirs, times, products, rates = [], [], [], []
    for _ in range(options.repeats):
        count[0] = 0
        drop_cache(path)
        start = time.perf_counter()
        scipy_eigsh(LinearOperator((n, n), multiply, dtype=np.float64), K, tol=TOL)
        theirs.append(time.perf_counter() - start)
        products.append(count[0])
        tries = [alone(store, tiles, readers, number) for number in range(3)]
        drop_cache(path)
        with timed_passes(store_bytes) as passes:
            start = time.perf_counter()
            w, v, stats = find(path, options.memory)
            times.append(time.perf_counter() - start)
        assert stats.block_size == BLOCK
        tries += [alone(store, tiles, readers, number) for number in range(3)]
        one, several, multiplying = np.median(tries, axis=0)
        reading = min(one, several)
        rates.append(sum(max(share * reading, multiplying) for share, _ in passes) / sum(seconds for _, seconds in passes))
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
    report.figure("all tiles read alone", f"{one:.3f} s by one thread, {several:.3f} s by {readers}")
    report.figure("all tiles multiplied alone", f"{multiplying:.3f} s")
    report.figure("tiles read of all", ", ".join(f"{share:.2f}" for share, _ in passes))
    report.figure("seconds of a pass", ", ".join(f"{seconds:.3f}" for _, seconds in passes))
    report.figure("rate over what binds, run by run", ", ".join(f"{rate:.3f}" for rate in rates))
    report.bar("rate of the passes over what binds", float(np.median(rates)), BAR_RATE, at_least=True)


@contextmanager
def timed_passes(store_bytes: int) -> Iterator[list[tuple[float, float]]]:
    """Of each pass within: the share of all tiles that it reads, and its seconds."""
    from pycauset.solver.products import StreamedProduct

    passes: list[tuple[float, float]] = []
    plain = StreamedProduct._multiply

    def timed(self: Any, x: np.ndarray) -> np.ndarray:
        before, start = self._streamer.statistics().bytes_read, time.perf_counter()
        y = plain(self, x)
        seconds = time.perf_counter() - start
        passes.append(((self._streamer.statistics().bytes_read - before) / store_bytes, seconds))
        return y

    StreamedProduct._multiply = timed  # type: ignore[method-assign]
    try:
        yield passes
    finally:
        StreamedProduct._multiply = plain  # type: ignore[method-assign]


def alone(store: TileStore, tiles: list[Rect], readers: int, number: int) -> tuple[float, float, float]:
    """Seconds of reading all tiles by one thread and by several, in turns the other way round, and of multiplying them."""
    from pycauset.devices.blas import gemm
    from pycauset.storage import aligned_empty

    n, side = store.shape[0], store.chunks[0]
    buffers = [aligned_empty((side, side), "float64") for _ in range(8)]  # more than caches hold
    free: SimpleQueue[np.ndarray] = SimpleQueue()
    for buffer in buffers:
        buffer[...] = 1.0  # pages never written would all be the one of zeros
        free.put(buffer)

    def read_one(rect: Rect) -> None:
        buffer = free.get()
        store.read(rect, buffer.reshape(-1)[: rect.size].reshape(rect.shape))
        free.put(buffer)

    def read_all(threads: int) -> float:
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            list(pool.map(read_one, tiles))
            return time.perf_counter() - start

    order = (1, readers)[:: 1 if number % 2 else -1]
    readings = {threads: read_all(threads) for threads in order}
    x, y = np.ones((n, BLOCK)), np.zeros((n, BLOCK))
    start = time.perf_counter()
    for i, rect in enumerate(tiles):  # by the BLAS of the passes: the threads of another one would still spin when a pass begins
        tile = buffers[i % len(buffers)].reshape(-1)[: rect.size].reshape(rect.shape)
        gemm(tile, x[rect.c0 : rect.c1], y[rect.r0 : rect.r1], beta=1.0)
        if rect.r0 != rect.c0:
            gemm(tile, x[rect.r0 : rect.r1], y[rect.c0 : rect.c1], beta=1.0, op_a="T")
    return readings[1], readings[readers], time.perf_counter() - start


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
