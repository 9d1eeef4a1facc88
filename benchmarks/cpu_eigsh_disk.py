"""The 8 largest eigenpairs of a symmetric float64 matrix on disk, with little memory, against SciPy reading the same tiles.

SciPy's ``eigsh`` gets a LinearOperator that reads the stored tiles by the same direct I/O and uses each for both triangles.
The eigenvalues are ``i^-0.35``, hidden by a reflection; tol = 1e-8 for both; caches are cold; the two alternate. What the passes
may take is measured beside them: reading tiles with two threads, and multiplying tiles in RAM. Tiles that memory keeps from pass
to pass are not read again, so that a pass takes at least the longer of what it reads at the disk's rate and what it multiplies at
BLAS's. The peak of memory is measured in a fresh process that does only this.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from disk import add_child, bar_on_peak, print_peak
from report import POWER, Report, Sample, add_folder, drop_cache, parser, power_law_matrix, warm_up, work_folder

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

    from pycauset.solver.products import StreamedProduct
    from pycauset.storage import aligned_empty, open_store
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

    theirs, times, products, floors = [], [], [], []
    passes: list[tuple[float, int]] = []  # seconds, bytes read
    plain = StreamedProduct._multiply

    def timed(self: Any, x: np.ndarray) -> np.ndarray:
        begin, read = time.perf_counter(), self._streamer.statistics().bytes_read
        y = plain(self, x)
        passes.append((time.perf_counter() - begin, self._streamer.statistics().bytes_read - read))
        return y

    for _ in range(options.repeats):
        count[0] = 0
        drop_cache(path)
        start = time.perf_counter()
        scipy_eigsh(LinearOperator((n, n), multiply, dtype=np.float64), K, tol=TOL)
        theirs.append(time.perf_counter() - start)
        products.append(count[0])
        drop_cache(path)
        passes.clear()
        StreamedProduct._multiply = timed  # type: ignore[method-assign]
        start = time.perf_counter()
        w, v, stats = find(path, options.memory)
        times.append(time.perf_counter() - start)
        StreamedProduct._multiply = plain  # type: ignore[method-assign]
        drop_cache(path)
        tries = [alone(store, tiles, stats.block_size) for _ in range(5)]
        reading, computing = (float(np.median(seconds)) for seconds in zip(*tries, strict=True))
        least = [max(nbytes / store_bytes * reading, computing) for _, nbytes in passes]
        floors.append(sum(least) / sum(seconds for seconds, _ in passes))
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
    report.figure("all tiles read, multiplied alone", f"{reading:.3g} s, {computing:.3g} s")
    report.figure("seconds of a pass", ", ".join(f"{seconds:.3f}" for seconds, _ in passes))
    report.figure("tiles read of all", ", ".join(f"{nbytes / store_bytes:.2f}" for _, nbytes in passes))
    report.bar("rate of the passes over what binds", float(np.median(floors)), BAR_RATE, at_least=True)


def alone(store: Any, tiles: list[Any], block: int) -> tuple[float, float]:
    """Seconds of reading all tiles, with two threads, and of multiplying all of them in RAM."""
    from pycauset.storage import aligned_empty

    n, side = store.shape[0], store.chunks[0]
    buffers = [aligned_empty((side, side), "float64") for _ in range(2)]

    def read_half(which: int) -> None:
        for rect in tiles[which::2]:
            store.read(rect, buffers[which].reshape(-1)[: rect.size].reshape(rect.shape))

    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read_half, range(2)))
    reading = time.perf_counter() - start
    x, y = np.ones((n, block)), np.zeros((n, block))
    start = time.perf_counter()
    for rect in tiles:
        tile = buffers[0].reshape(-1)[: rect.size].reshape(rect.shape)
        y[rect.r0 : rect.r1] += tile @ x[rect.c0 : rect.c1]
        if rect.r0 != rect.c0:
            y[rect.c0 : rect.c1] += tile.T @ x[rect.r0 : rect.r1]
    return reading, time.perf_counter() - start


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
