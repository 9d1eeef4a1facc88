"""A covariance matrix larger than the memory limit, factored in place on disk, checked and measured.

One triangle of the matrix is written to disk, chunk by chunk, and becomes its factor there, under a journal.
:class:`~pycauset.seeded.CovarianceStore` computes each element from a seed and its place, so that the checks can generate the
matrix again. They read the factor as it lies on disk:

* random probing, ``L (Lᴴ x)`` against ``A x`` for random signs x (:func:`~pycauset.freivalds.freivalds`);
* sampled tiles, element by element (:func:`~pycauset.factor_check.tile_residual`).

How far a run has come is told by what lies in its folder: nothing, the matrix, a matrix with a journal, or a factor whose
metadata say what its making measured. So the same call goes on after an interruption in any of them.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from pycauset import config, devices, linalg, solver
from pycauset.errors import PycausetError, StoreExistsError
from pycauset.factor_check import SAMPLES, tile_residual
from pycauset.files import open as open_matrix
from pycauset.freivalds import RESIDUAL_LIMIT, VECTORS, freivalds
from pycauset.governor import governor
from pycauset.hardware import probe
from pycauset.linalg.operands import chunks_like
from pycauset.progress import ProgressOption, reporter
from pycauset.seeded import CovarianceStore
from pycauset.solver.blocked import last_plan
from pycauset.storage import TileStore, ZarrStore, aligned_empty, create_store, open_store
from pycauset.storage.base import store_error
from pycauset.storage.output import journal_path
from pycauset.stress import memory_rows, verdict
from pycauset.stress_gauges import Peaks, disk_bytes, disk_rates, gpu_bytes
from pycauset.tiling import Rect
from pycauset.units import format_bytes, format_flops, format_rate, format_seconds

__all__ = ["CholeskyStressResult", "build", "default_folder", "run", "tile_residual"]

_ROOM: Final = {"left": "left-looking", "right": "right-looking", "triangle": "triangle blocks"}
_NOTE: Final = "stress"  # the attribute of the store that says which run it belongs to


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What the factorisation measured, as `CholeskyStressResult` describes it."""

    route: str
    seconds: float
    rate: float
    build_seconds: float
    link: str
    moved: int
    planned: int
    bound: int
    read: int
    written: int
    disk_peak: int
    peak: int
    gpu_peak: int | None
    gpu_measured: int | None
    reused: int
    tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CholeskyStressResult(_Measured):
    """What a Cholesky stress run measured. Bytes, seconds, and floating-point operations a second.

    Attributes
    ----------
    n, size : int
        Order of the matrix, and bytes of all its elements; on disk it takes little more than half of them.
    seconds, rate : float
        Of the factorisation, without the tasks that were reused.
    build_seconds : float
        Of generating the matrix and writing its triangle to disk; 0 if an interrupted run had done so.
    link : str
        Whose bytes ``moved``, ``planned`` and ``bound`` count: the disk's or PCIe's.
    moved, planned, bound : int
        Bytes moved, those of the plan, and the fewest: ``n³/(3√S)`` elements plus reading and writing the triangle once.
    read, written : int
        Bytes read from disk and written to it.
    disk_read, disk_write : float
        The disk's bandwidth, measured before and after in the same folder.
    disk_seconds : float
        What the plan's disk bytes take at that bandwidth.
    disk_peak : int
        Most bytes on the disk beyond what was there before, the matrix included.
    peak, limit : int
        Most host memory occupied beyond the idle process, checks included, and what was allowed.
    gpu_peak, gpu_measured, gpu_limit : int or None
        GPU memory: most that was granted for tiles and workspaces; most that the driver counted in use beyond the idle process
        (which has a CUDA context and has factored a small matrix); what was allowed. None if the CPU computed.
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
    disk_read: float
    disk_write: float
    disk_seconds: float
    limit: int
    gpu_limit: int | None
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
        on_gpu = (peak for peak in (self.gpu_peak, self.gpu_measured) if peak is not None)
        return self.peak <= self.limit and (self.gpu_limit is None or all(peak <= self.gpu_limit for peak in on_gpu))

    @property
    def passed(self) -> bool:
        """Both."""
        return self.correct and self.within_limits

    def rows(self) -> list[tuple[str, str]]:
        """The table that the command line prints: names and values."""
        planned = f"{format_seconds(self.disk_seconds)} at that speed"
        if not self.reused:
            planned += f"; the time is {self.seconds / self.disk_seconds:.2f} times it"
        rows = [
            ("matrix", f"{self.n} × {self.n} {self.dtype}, {format_bytes(self.size)}, seed {self.seed}"),
            ("built on disk", f"one triangle in {format_seconds(self.build_seconds)}" if self.build_seconds else "before"),
            ("route", f"in place, {self.route}"),
            ("time", format_seconds(self.seconds)),
            ("rate", format_flops(self.rate)),
            (
                f"{self.link} bytes",
                f"{format_bytes(self.moved)}, {self.moved / self.planned:.3f} × the plan, "
                f"{self.moved / self.bound:.2f} × the bound of {format_bytes(self.bound)}",
            ),
            ("tiles", f"{format_bytes(self.read)} read, {format_bytes(self.written)} written"),
            ("disk", f"{format_rate(self.disk_read)} read, {format_rate(self.disk_write)} written, measured in this run"),
            ("planned disk bytes", planned),
            ("peak disk use", f"{format_bytes(self.disk_peak)}, the matrix included"),
            ("reused", f"{self.reused} of {self.tasks} tasks"),
            *memory_rows(self.peak, self.limit, self.gpu_peak, self.gpu_limit),
        ]
        if self.gpu_measured is not None:
            fits = self.gpu_limit is None or self.gpu_measured <= self.gpu_limit
            rows.append(("GPU memory in use", f"{format_bytes(self.gpu_measured)} over idle at most, measured: {verdict(fits)}"))
        rows += [
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Factored(_Measured):
    """Kept with the factor until that is checked."""

    plan_read: int
    plan_write: int


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
    """Factor the covariance matrix of n points within the limits, in place, as ``factor.zarr`` in ``folder``.

    A run that was interrupted, by whatever, leaves what it has; the next one goes on from there. What cannot be gone on with
    is removed, and so is a factor that has been checked, unless ``keep``.
    """
    try:
        return _run(n, kind, limit, gpu_limit, seed, folder, keep, progress)
    except KeyboardInterrupt as error:
        path = folder / "factor.zarr"
        if path.exists():
            error.add_note(f"what is done stays in {path}, and the same command goes on with it")
        raise


def _run(
    n: int,
    kind: np.dtype[Any],
    limit: int,
    gpu_limit: int | None,
    seed: int,
    folder: Path,
    keep: bool,
    progress: ProgressOption,
) -> CholeskyStressResult:
    path = folder / "factor.zarr"
    note = {"seed": seed, "n": n, "dtype": kind.name}
    matrix = CovarianceStore(seed, n, kind)
    chunks = chunks_like(matrix, matrix.shape, kind, limit if gpu_limit is None else min(limit, gpu_limit))
    there, factored = _found(path, note)
    idle, gpu_idle = _idle_memory(kind)
    rates = [disk_rates(folder, chunks, kind, 2 * triangle_bytes(n, kind))]
    probe.reset_peak_rss()
    if factored is None:
        before, ours = disk_bytes(folder, path), there
        try:
            with Peaks(folder, gpu=gpu_idle > 0) as peaks:
                begin = perf_counter()
                if not there:
                    build(matrix, path, chunks, note, limit, progress)
                    ours = True
                built = perf_counter() - begin if not there else 0.0
                factored = _factor(path, kind, limit, gpu_limit, progress, built)
        except Exception:
            if ours and not keep and not journal_path(path).exists():  # with a journal it can be gone on with
                _remove(path)
            raise
        factored = replace(
            factored,
            disk_peak=max(0, peaks.disk_bytes - before),
            peak=max(0, probe.peak_rss() - idle),
            gpu_measured=None if factored.gpu_peak is None else max(0, peaks.gpu_bytes - gpu_idle),
        )
        open_store(path).commit(**{_NOTE: {**note, "factored": asdict(factored)}})
    _give_back()
    begin = perf_counter()
    written = open_store(path)  # what a reader finds, not what the writer believes
    residual = freivalds(matrix, written, seed=seed, memory=limit // 4, progress=progress)
    sampled = tile_residual(matrix, written, seed=seed)
    check_seconds = perf_counter() - begin
    peak = max(factored.peak, probe.peak_rss() - idle)
    rates.append(disk_rates(folder, chunks, kind, 2 * triangle_bytes(n, kind)))
    if keep:
        open_store(path).commit(**{_NOTE: {**note, "checked": True}})
    else:
        _remove(path)
    reading, writing = (float(np.median(values)) for values in zip(*rates, strict=True))
    measured = asdict(replace(factored, peak=peak))
    disk_seconds = measured.pop("plan_read") / reading + measured.pop("plan_write") / writing
    return CholeskyStressResult(
        n=n,
        dtype=kind.name,
        seed=seed,
        size=matrix.nbytes,
        disk_read=reading,
        disk_write=writing,
        disk_seconds=disk_seconds,
        limit=limit,
        gpu_limit=gpu_limit,
        residual=residual,
        tile_residual=sampled,
        vectors=VECTORS,
        samples=SAMPLES,
        check_seconds=check_seconds,
        output=path if keep else None,
        **measured,
    )


def build(
    matrix: TileStore, path: Path, chunks: tuple[int, int], note: dict[str, Any], memory: int, progress: ProgressOption = None
) -> None:
    """Write one triangle of a Hermitian matrix to disk, chunk by chunk, in several threads."""
    kind, n = matrix.dtype, matrix.shape[0]
    threads = max(1, min(8, probe.cpu_info().cores, memory // (4 * chunks[0] * chunks[1] * kind.itemsize)))
    local = threading.local()

    def write(rect: Rect) -> int:
        if not hasattr(local, "buffer"):
            local.buffer = aligned_empty(chunks, kind).reshape(-1)
        block = local.buffer[: rect.size].reshape(rect.shape)
        matrix.read(rect, block)
        store.write(rect, block)
        return rect.size * kind.itemsize

    structure = "hermitian" if kind.kind == "c" else "symmetric"
    attributes = {_NOTE: note}
    with create_store(path, matrix.shape, kind, chunks=chunks, structure=structure, attributes=attributes) as store:
        side = chunks[0]
        rects = [Rect(i, min(i + side, n), j, min(j + side, n)) for i in range(0, n, side) for j in range(0, i + 1, side)]
        total = sum(rect.size for rect in rects) * kind.itemsize
        with (
            reporter(progress, "building the matrix", total, unit="byte") as report,
            ThreadPoolExecutor(threads, thread_name_prefix="pycauset-build") as pool,
        ):
            done = 0
            try:
                for nbytes in pool.map(write, rects):
                    done += nbytes
                    report(done)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        store.commit()


def _factor(
    path: Path, kind: np.dtype[Any], limit: int, gpu_limit: int | None, progress: ProgressOption, built: float
) -> _Factored:
    """Factor what lies at ``path``, or go on with it."""
    gpu_before = governor().statistics().device.peak
    begin = perf_counter()
    # A covariance is finite: looking for NaN would read all of it once more.
    linalg.cholesky(path, overwrite=True, check_finite=False, memory=limit, gpu_memory=gpu_limit, progress=progress)
    seconds = perf_counter() - begin
    gpu_peak = governor().statistics().device.peak
    followed, statistics = last_plan(), solver.last_statistics()
    assert followed is not None
    assert statistics is not None
    device, plan = followed
    on_gpu = device == "gpu"
    flops = (4.0 if kind.kind == "c" else 1.0) * plan.sizes[0] ** 3 / 3
    crossed = statistics.bytes_uploaded + statistics.bytes_downloaded
    return _Factored(
        route=f"{'cuSOLVER' if on_gpu else 'LAPACK'}, {_ROOM[plan.variant]}, tiles of {plan.tile[0]}, blocks of "
        f"{plan.block[0]} × {plan.block[1]}",
        seconds=seconds,
        rate=flops * (1 - statistics.reused / plan.tasks) / seconds,
        build_seconds=built,
        link="PCIe" if on_gpu else "disk",
        moved=crossed if on_gpu else statistics.bytes_read + statistics.bytes_written,
        planned=plan.link_bytes,
        bound=round(plan.bound),
        read=statistics.bytes_read,
        written=statistics.bytes_written,
        plan_read=plan.disk_read,
        plan_write=plan.disk_write,
        disk_peak=0,
        peak=0,
        # The governor keeps the peak of the whole process: an earlier one that was higher hides ours, then the plan's counts.
        gpu_peak=None if not on_gpu else gpu_peak if gpu_peak > gpu_before else plan.device_bytes,
        gpu_measured=None,
        reused=statistics.reused,
        tasks=plan.tasks,
    )


# -- what a run finds and leaves ---------------------------------------------------------------------------------------


def default_folder() -> Path:
    """Where the matrix lies unless told otherwise: not in this process's own scratch folder, which would go with it.

    Raises
    ------
    StorePermissionError, StoreError
        If it cannot be made.
    """
    root = config.get("scratch") or Path(tempfile.gettempdir())
    folder = Path(root).absolute() / f"pycauset-stress-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise store_error(error, f"making the folder {folder} (setting 'scratch')") from error
    return folder


def triangle_bytes(n: int, kind: np.dtype[Any]) -> int:
    """Bytes of one triangle."""
    return n * (n + 1) // 2 * kind.itemsize


def _found(path: Path, note: dict[str, Any]) -> tuple[bool, _Factored | None]:
    """Whether an interrupted run with this note has left something, and what its factorisation measured, if that was finished.

    Raises
    ------
    StoreExistsError
        If something else is there.
    """
    if not path.exists():
        return False, None
    store = open_matrix(path).store
    left = store.attributes.get(_NOTE)
    if not isinstance(left, dict) or left.get("checked") or {name: left.get(name) for name in note} != note:
        raise StoreExistsError(
            f"{path} is not what an interrupted run of seed {note['seed']}, n = {note['n']}, {note['dtype']} left; give another "
            "folder, or remove it"
        )
    measured = left.get("factored")
    if measured is not None and measured.keys() == {field.name for field in fields(_Factored)}:
        return True, _Factored(**measured)
    if isinstance(store, ZarrStore) and not store.unfinished and store.structure == "lower":
        _remove(path)  # a factor, and nobody knows what its making took: killed between the two, a matter of milliseconds
        return False, None
    return True, None


def _remove(path: Path) -> None:
    """The matrix or factor, its journal, and a folder of our own making."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        journal_path(path).unlink()
    if path.parent.name.startswith("pycauset-stress-"):
        with suppress(OSError):
            path.parent.rmdir()


def _give_back() -> None:
    """Free the memory that an operation has left for the next one."""
    for kind in ("host", "pinned", "device"):
        governor().reclaim(kind)


def _idle_memory(kind: np.dtype[Any]) -> tuple[int, int]:
    """Host and GPU memory in use when everything is imported and the kernels have run once; without a GPU the second is 0."""
    import pycauset.devices.audit
    import pycauset.drivers.cholesky
    import pycauset.storage.journal

    pycauset.devices.audit.load_profile()
    linalg.cholesky(np.eye(8)).to_numpy()
    on_gpu = config.get("backend") != "cpu" and devices.gpu() is not None
    if on_gpu:
        with suppress(PycausetError), config.settings(backend="gpu"):  # libraries, and the kernels they load when first called
            linalg.cholesky(np.eye(1024, dtype=kind))
    _give_back()
    gc.collect()
    gpu = gpu_bytes() - governor().statistics().device.in_use if on_gpu else 0
    return probe.current_rss(), gpu
