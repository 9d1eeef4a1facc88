"""A covariance matrix larger than the memory limit, factored into one triangle on disk, checked and measured.

The matrix is never stored: :class:`~pycauset.seeded.CovarianceStore` computes each element from a seed and its place, for the
factorisation and again for the checks. Two of them read the factor as it lies on disk:

* random probing, ``L (Lᴴ x)`` against ``A x`` for random signs x (:func:`~pycauset.freivalds.freivalds`);
* sampled tiles, ``|A_ij - Σ_k L_ik L_jkᴴ|`` element by element against ``√n ε ‖L_i‖ ‖L_j‖``, which is what rounding a
  sum of n products costs with high probability [1]_.

References
----------
.. [1] N. J. Higham and T. Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41 (2019),
   A2815-A2835.
"""

from __future__ import annotations

import gc
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pycauset import config, devices, linalg, solver
from pycauset.errors import JournalError, StoreExistsError
from pycauset.freivalds import RESIDUAL_LIMIT, VECTORS, freivalds
from pycauset.governor import governor
from pycauset.hardware import probe
from pycauset.matrix import Matrix
from pycauset.progress import ProgressOption
from pycauset.seeded import CovarianceStore
from pycauset.solver.blocked import last_plan
from pycauset.storage import TileStore, aligned_empty, create_store, open_store
from pycauset.storage.output import journal_path, resumable_folder
from pycauset.stress import memory_rows, verdict
from pycauset.tiling import Rect
from pycauset.units import format_bytes, format_flops, format_rate, format_seconds

__all__ = ["CholeskyStressResult", "run", "tile_residual"]

SAMPLES: Final = 8
"""Sampled tiles unless told otherwise."""

_TILE: Final = 256
_DEPTH: Final = 2048
_ROOM: Final = {"left": "left-looking", "right": "right-looking", "triangle": "triangle blocks"}
_DISK_BYTES: Final = 1 << 30  # written and read to measure the disk


@dataclass(frozen=True, slots=True)
class CholeskyStressResult:
    """What a Cholesky stress run measured. Bytes, seconds, and floating-point operations a second.

    Attributes
    ----------
    n, size : int
        Order of the matrix, and bytes of all its elements; the factor takes little more than half of them on disk.
    seconds, rate : float
        Of the factorisation, generating the matrix and writing the factor included; without the tasks that were reused.
    link : str
        Whose bytes ``moved``, ``planned`` and ``bound`` count: the disk's (the matrix counts as if it lay there) or PCIe's.
    moved, planned, bound : int
        Bytes moved, those of the plan, and the fewest: ``n³/(3√S)`` elements plus reading and writing the triangle once.
    generated, read, written : int
        Bytes of the matrix that were computed, and bytes of the factor read and written.
    disk_read, disk_write : float
        The disk's bandwidth, measured before and after in the same folder.
    disk_seconds : float
        What the plan's disk bytes take at that bandwidth.
    peak, limit : int
        Most host memory occupied beyond the idle process, checks included, and what was allowed.
    gpu_peak, gpu_limit : int or None
        The same on the GPU, without the CUDA context; None if the CPU computed.
    reused, tasks : int
        Tasks whose results an interrupted run had left, and all tasks.
    residual, tile_residual : float
        See the module; up to ``RESIDUAL_LIMIT`` is rounding.
    output : Path or None
        The factor, if it was kept.
    """

    n: int
    dtype: str
    seed: int
    size: int
    route: str
    seconds: float
    rate: float
    link: str
    moved: int
    planned: int
    bound: int
    generated: int
    read: int
    written: int
    disk_read: float
    disk_write: float
    disk_seconds: float
    peak: int
    limit: int
    gpu_peak: int | None
    gpu_limit: int | None
    reused: int
    tasks: int
    residual: float
    tile_residual: float
    vectors: int
    samples: int
    check_seconds: float
    output: Path | None

    what = "factor"

    @property
    def correct(self) -> bool:
        """Whether the factor passed both checks."""
        return self.residual < RESIDUAL_LIMIT and self.tile_residual < RESIDUAL_LIMIT

    @property
    def within_limits(self) -> bool:
        """Whether host and GPU memory stayed below their limits."""
        return self.peak <= self.limit and (self.gpu_peak is None or self.gpu_limit is None or self.gpu_peak <= self.gpu_limit)

    @property
    def passed(self) -> bool:
        """Both."""
        return self.correct and self.within_limits

    def rows(self) -> list[tuple[str, str]]:
        """The table that the command line prints: names and values."""
        rows = [
            ("matrix", f"{self.n} × {self.n} {self.dtype}, {format_bytes(self.size)}, seed {self.seed}"),
            ("route", self.route),
            ("time", format_seconds(self.seconds)),
            ("rate", format_flops(self.rate)),
            (
                f"{self.link} bytes",
                f"{format_bytes(self.moved)}, {self.moved / self.planned:.3f} × the plan, "
                f"{self.moved / self.bound:.2f} × the bound of {format_bytes(self.bound)}",
            ),
            (
                "tiles",
                f"{format_bytes(self.generated)} generated, {format_bytes(self.read)} read, {format_bytes(self.written)} written",
            ),
            ("disk", f"{format_rate(self.disk_read)} read, {format_rate(self.disk_write)} written, measured in this run"),
            (
                "planned disk bytes",
                f"{format_seconds(self.disk_seconds)} at that speed; the time is {self.seconds / self.disk_seconds:.2f} times it",
            ),
            ("reused", f"{self.reused} of {self.tasks} tasks"),
            *memory_rows(self.peak, self.limit, self.gpu_peak, self.gpu_limit),
            (
                "check",
                f"scaled residual {self.residual:.2g} with {self.vectors} random vectors, limit {RESIDUAL_LIMIT:g}: "
                f"{verdict(self.residual < RESIDUAL_LIMIT)}",
            ),
            (
                "check of tiles",
                f"scaled residual {self.tile_residual:.2g} in {self.samples} sampled tiles, limit {RESIDUAL_LIMIT:g}: "
                f"{verdict(self.tile_residual < RESIDUAL_LIMIT)} (both {format_seconds(self.check_seconds)})",
            ),
        ]
        if self.output is not None:
            rows.append(("result", os.fspath(self.output)))
        return rows


def run(
    n: int,
    kind: np.dtype[Any],
    limit: int,
    gpu_limit: int | None,
    seed: int,
    folder: Path,
    keep: bool,
    progress: ProgressOption,
) -> CholeskyStressResult:
    """Factor the covariance matrix of n points within the limits; the factor goes to ``factor.zarr`` in ``folder``.

    A run that was killed left a journal there, and goes on where it stopped.
    """
    path = folder / "factor.zarr"
    matrix = _Tallied(seed, n, kind)
    idle = _idle_memory()
    if config.get("backend") != "cpu" and devices.gpu() is not None:
        idle = probe.current_rss()  # CUDA's own memory counts as idle
    rates = [_disk_rates(folder, matrix.chunks, kind, 2 * path_bytes(n, kind))]
    gpu_before = governor().statistics().device.peak
    try:
        probe.reset_peak_rss()
        begin = perf_counter()
        factor = linalg.cholesky(Matrix(matrix), out=path, memory=limit, gpu_memory=gpu_limit, progress=progress)
        elapsed = perf_counter() - begin
        gpu_peak = governor().statistics().device.peak
        followed, statistics = last_plan(), solver.last_statistics()
        assert followed is not None
        assert statistics is not None
        generated = matrix.generated
        del factor
        begin = perf_counter()
        written = open_store(path)  # what a reader finds, not what the writer believes
        residual = freivalds(matrix, written, _Adjoint(written), seed=seed, memory=limit // 4, progress=progress)
        sampled = tile_residual(matrix, written, seed=seed)
        check_seconds = perf_counter() - begin
        peak = max(0, probe.peak_rss() - idle)
        rates.append(_disk_rates(folder, matrix.chunks, kind, 2 * path_bytes(n, kind)))
    except (JournalError, StoreExistsError):
        raise  # what lies there is somebody else's
    except BaseException:
        if not keep:
            _remove(path)
        raise
    if not keep:
        _remove(path)
    device, plan = followed
    on_gpu = device == "gpu"
    reading, writing = (float(np.median(values)) for values in zip(*rates, strict=True))
    flops = (4.0 if kind.kind == "c" else 1.0) * n**3 / 3
    looked = _lower_tiles(n, plan.tile[0]) * kind.itemsize
    generated = min(generated, looked, statistics.bytes_read)  # the journal looks at a few elements, too
    first = statistics.bytes_uploaded + statistics.bytes_downloaded
    return CholeskyStressResult(
        n=n,
        dtype=kind.name,
        seed=seed,
        size=matrix.nbytes,
        route=f"{'cuSOLVER' if on_gpu else 'LAPACK'}, {_ROOM[plan.variant]}, tiles of {plan.tile[0]}, blocks of "
        f"{plan.block[0]} × {plan.block[1]}",
        seconds=elapsed,
        rate=flops * (1 - statistics.reused / plan.tasks) / elapsed,
        link="PCIe" if on_gpu else "disk",
        moved=first if on_gpu else statistics.bytes_read + statistics.bytes_written,
        planned=plan.link_bytes,
        bound=round(plan.bound),
        generated=generated,
        read=max(0, statistics.bytes_read - generated),
        written=statistics.bytes_written,
        disk_read=reading,
        disk_write=writing,
        disk_seconds=max(0, plan.disk_read - looked) / reading + plan.disk_write / writing,
        peak=peak,
        limit=limit,
        # The governor keeps the peak of the whole process: an earlier one that was higher hides ours, then the plan's counts.
        gpu_peak=None if not on_gpu else gpu_peak if gpu_peak > gpu_before else plan.device_bytes,
        gpu_limit=gpu_limit,
        reused=statistics.reused,
        tasks=plan.tasks,
        residual=residual,
        tile_residual=sampled,
        vectors=VECTORS,
        samples=SAMPLES,
        check_seconds=check_seconds,
        output=path if keep else None,
    )


def path_bytes(n: int, kind: np.dtype[Any]) -> int:
    """Bytes of one triangle."""
    return n * (n + 1) // 2 * kind.itemsize


def _lower_tiles(n: int, tile: int) -> int:
    """Elements of the square tiles on and below the diagonal."""
    whole, ragged = divmod(n, tile)
    return tile**2 * whole * (whole + 1) // 2 + n * ragged


def _remove(path: Path) -> None:
    """The factor, or what an interruption left of it."""
    shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(resumable_folder(path), ignore_errors=True)
    with suppress(OSError):
        journal_path(path).unlink()


class _Tallied(CovarianceStore):
    """Counts the bytes that it computes."""

    def __init__(self, seed: int, n: int, dtype: DTypeLike) -> None:
        super().__init__(seed, n, dtype)
        self._lock = threading.Lock()
        self.generated = 0

    def _read(self, rect: Rect, out: NDArray[Any]) -> None:
        super()._read(rect, out)
        with self._lock:
            self.generated += out.size * self.dtype.itemsize


def _idle_memory() -> int:
    """What the process occupies when everything is imported and the kernels have run once."""
    import pycauset.devices.audit
    import pycauset.drivers.cholesky
    import pycauset.storage.journal

    pycauset.devices.audit.load_profile()
    linalg.cholesky(np.eye(8)).to_numpy()
    gc.collect()
    return probe.current_rss()


# -- the checks --------------------------------------------------------------------------------------------------------


class _Adjoint(TileStore):
    """``Lᴴ`` of a lower triangle, for reading."""

    def __init__(self, lower: TileStore) -> None:
        self._lower = lower
        self.shape, self.chunks = lower.shape[::-1], lower.chunks[::-1]
        self.dtype, self.structure = lower.dtype, "upper"
        self.identity = ("adjoint", lower.identity)
        self.attributes = {}

    def _read(self, rect: Rect, out: NDArray[Any]) -> None:
        buffer = np.empty(rect.shape[::-1], self.dtype)
        self._lower.read(rect.T, buffer)
        np.conjugate(buffer.T, out=buffer.T)
        np.copyto(out, buffer.T, casting="same_kind")


def tile_residual(a: TileStore, factor: TileStore, *, samples: int = SAMPLES, seed: int = 0) -> float:
    """Largest ``|A_ij - Σ_k l_ik conj(l_jk)| / (√n ε ‖l_i‖ ‖l_j‖)`` in a few tiles, among them the diagonal's first and last.

    Summed in double precision; of the order of 1 or less for rounding, infinite if the factor is not finite. Takes ten megabytes.

    Parameters
    ----------
    a, factor : TileStore (n, n)
        The matrix and its lower Cholesky factor, of which only the lower triangle is looked at.
    samples, seed : int
        How many tiles, and which.

    Examples
    --------
    >>> from pycauset.storage import as_store
    >>> a = CovarianceStore(1, 300, "float64")
    >>> whole = np.empty((300, 300))
    >>> a.read(Rect(0, 300, 0, 300), whole)
    >>> l = np.linalg.cholesky(whole)
    >>> tile_residual(a, as_store(l)) < RESIDUAL_LIMIT
    True
    >>> l[299, 3] *= 1.001
    >>> tile_residual(a, as_store(l)) < RESIDUAL_LIMIT
    False
    """
    n = a.shape[0]
    if not n:
        return 0.0
    scale = math.sqrt(n) * float(np.finfo(np.result_type(factor.dtype, np.float32)).eps)
    kind = np.result_type(factor.dtype, np.float64)
    worst = 0.0
    for r0, c0 in _sampled(n, samples, seed):
        r1, c1 = min(r0 + _TILE, n), min(c0 + _TILE, n)
        exact = np.empty((r1 - r0, c1 - c0), kind)
        a.read(Rect(r0, r1, c0, c1), exact)
        rows, cols = np.zeros(r1 - r0), np.zeros(c1 - c0)
        for k0 in range(0, r1, _DEPTH):
            left, right = np.empty((r1 - r0, min(_DEPTH, n - k0)), kind), np.empty((c1 - c0, min(_DEPTH, n - k0)), kind)
            for part, first in ((left, r0), (right, c0)):
                factor.read(Rect(first, first + len(part), k0, k0 + part.shape[1]), part)
                if k0 + part.shape[1] > first:
                    part[...] = np.tril(part, first - k0)
            exact -= left @ right.conj().T
            rows += np.einsum("ij,ij->i", left, left.conj()).real
            cols += np.einsum("ij,ij->i", right, right.conj()).real
        if not (np.isfinite(exact).all() and rows.all() and cols.all()):
            return math.inf
        worst = max(worst, float((np.abs(exact) / np.sqrt(rows[:, None] * cols)).max()) / scale)
    return worst


def _sampled(n: int, samples: int, seed: int) -> Iterator[tuple[int, int]]:
    """Corners of tiles in the lower triangle: first and last on the diagonal, the bottom left one, others at random."""
    last = (n - 1) // _TILE
    chosen = dict.fromkeys([(last, last), (0, 0), (last, 0)])
    rng = np.random.default_rng(seed)
    for at in range(max(0, samples - len(chosen))):
        i, j = sorted((int(x) for x in rng.integers(0, last + 1, 2)), reverse=True)
        chosen.setdefault((i, i if at == 0 else j))
    return ((i * _TILE, j * _TILE) for i, j in chosen)


# -- the disk ----------------------------------------------------------------------------------------------------------


def _disk_rates(folder: Path, chunks: tuple[int, int], kind: np.dtype[Any], nbytes: int) -> tuple[float, float]:
    """Bytes a second of reading and of writing whole chunks in this folder, with the threads that a streamed run has."""
    readers, writers = (8, 4) if probe.cpu_info().cores >= 8 else (2, 1)
    height, width = chunks
    count = max(2 * readers, min(_DISK_BYTES, nbytes) // (height * width * kind.itemsize))
    rects = [Rect(0, height, at * width, (at + 1) * width) for at in range(count)]
    path = folder / f"bandwidth-{os.getpid()}.zarr"
    with create_store(path, (height, count * width), kind, chunks=chunks) as store:
        written = _rate(store.write, rects, writers, chunks, kind)
        read = _rate(store.read, rects, readers, chunks, kind)
    return read, written


def _rate(
    move: Callable[[Rect, NDArray[Any]], None], rects: list[Rect], threads: int, shape: tuple[int, int], kind: np.dtype[Any]
) -> float:
    buffers = [aligned_empty(shape, kind) for _ in range(threads)]
    for buffer in buffers:
        buffer[...] = 1

    def share(number: int) -> None:
        for rect in rects[number::threads]:
            move(rect, buffers[number])

    with ThreadPoolExecutor(threads, thread_name_prefix="pycauset-disk") as pool:
        begin = perf_counter()
        list(pool.map(share, range(threads)))
        return len(rects) * buffers[0].nbytes / (perf_counter() - begin)
