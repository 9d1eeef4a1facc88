"""The main job under test: matrices larger than the memory limit, multiplied or factored, checked and timed.

A product's operands are never stored: :class:`~pycauset.seeded.SeededStore` computes each element from a seed and its place. The
product goes to disk, and :func:`~pycauset.freivalds.freivalds` checks what lies there. The factorisation is
:mod:`pycauset.stress_cholesky`'s.
"""

from __future__ import annotations

import gc
import math
import operator
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import DTypeLike

from pycauset import devices, solver
from pycauset.errors import ConfigError, DeviceError
from pycauset.freivalds import RESIDUAL_LIMIT, VECTORS, freivalds
from pycauset.governor import governor
from pycauset.hardware import probe
from pycauset.progress import ProgressOption
from pycauset.seeded import SeededStore
from pycauset.solver import Factor
from pycauset.storage import create_store, element_type, open_store, scratch_folder
from pycauset.tiling import Rect
from pycauset.units import format_bytes, format_flops, format_seconds, parse_bytes

if TYPE_CHECKING:
    from pycauset.hardware.profile import HardwareProfile
    from pycauset.stress_cholesky import CholeskyStressResult

__all__ = ["StressResult", "stress"]

_CALIBRATION_SIDE: Final = {"cpu": 4096, "gpu": 8192}
_CALIBRATION_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class StressResult:
    """What a stress run measured. Bytes, seconds, and floating-point operations a second.

    Attributes
    ----------
    n : int
        All three sides of the product.
    size : int
        Bytes of one operand.
    seconds, rate : float
        Of the product, generating the operands and writing the result included.
    in_ram_rate : float
        Rate of a product in the memory of the device that computed, measured before and after in the same process.
    link : str
        Whose bytes ``moved`` counts: the disk's (the operands count as if they lay there) or PCIe's.
    moved, bound : int
        Bytes moved, and the fewest that this memory allows (with inputs read and the output written once).
    read, written : int
        Bytes of operands generated, and bytes of the product written.
    peak, limit : int
        Most host memory occupied beyond the idle process, and what was allowed.
    gpu_peak, gpu_limit : int or None
        The same on the GPU, without the CUDA context; None if the CPU computed.
    residual : float
        See `freivalds`; up to ``RESIDUAL_LIMIT`` is rounding.
    output : Path or None
        The product, if it was kept.
    """

    n: int
    dtype: str
    seed: int
    size: int
    route: str
    seconds: float
    rate: float
    in_ram_rate: float
    calibration_side: int
    link: str
    moved: int
    bound: int
    read: int
    written: int
    peak: int
    limit: int
    gpu_peak: int | None
    gpu_limit: int | None
    residual: float
    vectors: int
    check_seconds: float
    output: Path | None

    what = "product"

    @property
    def correct(self) -> bool:
        """Whether the product passed the check."""
        return self.residual < RESIDUAL_LIMIT

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
        baseline = "cuBLAS in GPU memory" if self.gpu_peak is not None else "NumPy in RAM"
        rows = [
            ("product", f"{self.n} × {self.n} × {self.n} {self.dtype}, {format_bytes(self.size)} an operand, seed {self.seed}"),
            ("route", self.route),
            ("time", format_seconds(self.seconds)),
            ("rate", format_flops(self.rate)),
            ("in-RAM rate", f"{format_flops(self.in_ram_rate)} ({baseline}, n = {self.calibration_side}, same run)"),
            ("fraction of it", f"{self.rate / self.in_ram_rate:.3f}"),
            (
                f"{self.link} bytes",
                f"{format_bytes(self.moved)}, {self.moved / self.bound:.2f} × the bound of {format_bytes(self.bound)}",
            ),
            ("tiles", f"{format_bytes(self.read)} generated, {format_bytes(self.written)} written"),
            *memory_rows(self.peak, self.limit, self.gpu_peak, self.gpu_limit),
        ]
        rows.append(
            (
                "check",
                f"scaled residual {self.residual:.2g} with {self.vectors} random vectors, limit {RESIDUAL_LIMIT:g}: "
                f"{verdict(self.correct)} ({format_seconds(self.check_seconds)})",
            )
        )
        if self.output is not None:
            rows.append(("result", os.fspath(self.output)))
        return rows


def verdict(good: bool) -> str:
    """How a row of the table ends."""
    return "ok" if good else "FAILED"


def memory_rows(peak: int, limit: int, gpu_peak: int | None, gpu_limit: int | None) -> list[tuple[str, str]]:
    """The rows of the table that compare peaks with limits."""
    rows = [("peak memory", f"{format_bytes(peak)} over idle, limit {format_bytes(limit)}: {verdict(peak <= limit)}")]
    if gpu_peak is not None:
        allowed = "none" if gpu_limit is None else format_bytes(gpu_limit)
        fits = gpu_limit is None or gpu_peak <= gpu_limit
        rows.append(("peak GPU memory", f"{format_bytes(gpu_peak)}, limit {allowed}: {verdict(fits)}"))
    return rows


def stress(
    size: int | str = "1.6GB",
    memory: int | str | None = None,
    gpu_memory: int | str | None = None,
    *,
    dtype: DTypeLike = "float64",
    op: str = "matmul",
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    keep: bool = False,
    progress: ProgressOption = None,
) -> StressResult | CholeskyStressResult:
    """Multiply two square matrices of ``size`` bytes each, or factor one, under a memory limit; check and measure everything.

    Parameters
    ----------
    size : int or str
        Bytes of one operand: n = floor(sqrt(size / bytes of an element)).
    memory : int or str, optional
        Host memory limit in bytes; a quarter of ``size``, but at least 256 MB, if omitted.
    gpu_memory : int or str, optional
        GPU memory limit in bytes.
    dtype : {"float32", "float64", "complex64", "complex128"}
    op : {"matmul", "cholesky"}
        What to do: a product of two random matrices, or the Cholesky factor of a covariance matrix.
    seed : int
        Of the operands and of the check.
    output : path-like, optional
        Folder for the result, ``product.zarr`` or ``factor.zarr`` in it; one under the scratch setting if omitted. An interrupted
        factorisation stays there, whatever ``keep`` is: the same call goes on with it.
    keep : bool
        Leave the finished result in ``output``; otherwise it is removed in the end.
    progress : callable, bool or None

    Returns
    -------
    StressResult or CholeskyStressResult
        A wrong result or a broken limit is reported there, not raised.

    Raises
    ------
    ConfigError
        If an argument makes no sense.
    MemoryLimitError, StoreError, DeviceError
        If the result cannot be computed, see `pycauset.matmul` and `pycauset.linalg.cholesky`.

    Examples
    --------
    >>> result = stress("2MB", "64MB", progress=False)
    >>> result.n, result.passed
    (500, True)
    """
    if op not in ("matmul", "cholesky"):
        raise ConfigError(f"op is {op!r}; stress can run 'matmul' and 'cholesky'")
    kind = element_type(dtype, "the stress test")
    if operator.index(seed) < 0:
        raise ConfigError(f"seed is {seed!r}; it must be at least 0")
    nbytes = parse_bytes(size)
    n = math.isqrt(nbytes // kind.itemsize)
    if n < 1:
        raise ConfigError(f"size is {size!r}, less than one element of {kind} ({kind.itemsize} bytes); give a larger one")
    if keep and output is None:
        raise ConfigError("keep=True needs output=, the folder where the result shall stay")
    limit = max(256_000_000, nbytes // 4) if memory is None else parse_bytes(memory)
    gpu_limit = None if gpu_memory is None else parse_bytes(gpu_memory)
    folder = None if output is None else Path(output).expanduser()
    if op == "cholesky":
        from pycauset import stress_cholesky

        return stress_cholesky.run(n, kind, limit, gpu_limit, seed, folder or stress_cholesky.default_folder(), keep, progress)
    folder = folder or scratch_folder()
    chunks = (_chunk_side(n, limit, kind),) * 2
    a, b = SeededStore(2 * seed, (n, n), kind, chunks), SeededStore(2 * seed + 1, (n, n), kind, chunks)
    return _run(a, b, folder / "product.zarr", limit, gpu_limit, seed, keep, progress)


def _run(
    a: SeededStore,
    b: SeededStore,
    path: Path,
    limit: int,
    gpu_limit: int | None,
    seed: int,
    keep: bool,
    progress: ProgressOption,
) -> StressResult:
    from pycauset.devices.audit import load_profile

    n, nbytes = a.shape[0], a.nbytes
    first, second = Factor(a), Factor(b)
    idle = _idle_memory()
    profile = load_profile()
    solution = solver.plan("matmul", first, second, out_on_disk=True, memory=limit, gpu_memory=gpu_limit)
    route = solution.route
    on_gpu = route.device == "gpu"
    side = _calibration_side(profile, "gpu" if on_gpu else "cpu", a.dtype, n, gpu_limit if on_gpu else limit)
    calibrate = _cublas_seconds if on_gpu else _numpy_seconds
    before = calibrate(a.dtype, side)
    if on_gpu:
        devices.gpu()
        idle = probe.current_rss()  # CUDA's own memory counts as idle
    gpu_before = governor().statistics().device.peak
    with create_store(path, (n, n), a.dtype, chunks=a.chunks) as product:
        try:
            probe.reset_peak_rss()
            begin = perf_counter()
            solver.multiply(first, second, out=product, memory=limit, gpu_memory=gpu_limit, progress=progress)
            elapsed = perf_counter() - begin
            peak = max(0, probe.peak_rss() - idle)
            gpu_peak = governor().statistics().device.peak
            statistics = solver.last_statistics()
            after = calibrate(a.dtype, side)
            begin = perf_counter()
            finished = open_store(path)  # what a reader finds, not what the writer believes
            residual = freivalds(finished, a, b, seed=seed, memory=limit // 2, progress=progress)
            check_seconds = perf_counter() - begin
        finally:
            if not keep:
                shutil.rmtree(path, ignore_errors=True)
    once = 3 * nbytes
    flops = _flops(a.dtype, n)
    if statistics is None:
        read, written, moved = 2 * nbytes, nbytes, once
    else:
        read, written = statistics.bytes_read, statistics.bytes_written
        moved = statistics.bytes_uploaded + statistics.bytes_downloaded if on_gpu else read + written
    return StressResult(
        n=n,
        dtype=a.dtype.name,
        seed=seed,
        size=nbytes,
        route=route.name,
        seconds=elapsed,
        rate=flops / elapsed,
        in_ram_rate=2 * _flops(a.dtype, side) / (before + after),
        calibration_side=side,
        link="PCIe" if on_gpu else "disk",
        moved=moved,
        bound=round(route.plan.bound) if route.plan is not None else once,
        read=read,
        written=written,
        peak=peak,
        limit=limit,
        # The governor keeps the peak of the whole process: an earlier one that was higher hides ours, then the plan's counts.
        gpu_peak=None if not on_gpu else gpu_peak if gpu_peak > gpu_before else route.device_bytes,
        gpu_limit=gpu_limit,
        residual=residual,
        vectors=VECTORS,
        check_seconds=check_seconds,
        output=path if keep else None,
    )


def _chunk_side(n: int, limit: int, dtype: np.dtype[Any]) -> int:
    """The usual 1024, or less where so few chunks fit into the limit that blocks could not be cut to measure."""
    side = 1024
    while side > 32 and 8 * side > min(n, math.sqrt(limit / dtype.itemsize)):
        side //= 2
    return min(side, n)


def _flops(dtype: np.dtype[Any], n: int) -> float:
    return (8.0 if dtype.kind == "c" else 2.0) * n**3


def _idle_memory() -> int:
    """What the process occupies when everything is imported and BLAS has run once."""
    import pycauset.devices.audit
    import pycauset.solver.execute  # noqa: F401 - the limit is for the work, not for code

    tiny = np.ones((8, 8))
    np.matmul(tiny, tiny)
    gc.collect()
    return probe.current_rss()


def _calibration_side(
    profile: HardwareProfile, kind: Literal["cpu", "gpu"], dtype: np.dtype[Any], n: int, limit: int | None
) -> int:
    """Side of the product in memory to compare with: inside the limit, and short."""
    side = min(n, _CALIBRATION_SIDE[kind])
    if limit is not None:
        side = max(1, min(side, math.isqrt(limit // 2 // (3 * dtype.itemsize))))
    while side > 256 and profile.gemm_seconds(kind, dtype, side, side, side) > _CALIBRATION_SECONDS:
        side //= 2
    return side


def _numpy_seconds(dtype: np.dtype[Any], side: int) -> float:
    """Seconds of one NumPy product in RAM: the best of several, the first not counted."""
    a, b, c = np.empty((side, side), dtype), np.empty((side, side), dtype), np.empty((side, side), dtype)
    whole = Rect(0, side, 0, side)
    SeededStore(0, a.shape, dtype).read(whole, a)
    SeededStore(1, b.shape, dtype).read(whole, b)
    np.matmul(a, b, out=c)
    return _best(lambda: np.matmul(a, b, out=c))


def _cublas_seconds(dtype: np.dtype[Any], side: int) -> float:
    """The same of one cuBLAS product in GPU memory."""
    cupy = probe.import_cupy()
    if cupy is None:
        raise DeviceError("CuPy is gone; install the extra 'cuda12' or 'cuda13' again")
    try:
        return _best_in_gpu_memory(cupy, dtype, side)
    finally:
        cupy.get_default_memory_pool().free_all_blocks()


def _best_in_gpu_memory(cupy: Any, dtype: np.dtype[Any], side: int) -> float:
    operands = []
    for seed in (0, 1):
        host = np.empty((side, side), dtype)
        SeededStore(seed, host.shape, dtype).read(Rect(0, side, 0, side), host)
        operands.append(cupy.empty((side, side), dtype))
        operands[-1].set(host)
    c = cupy.matmul(*operands)

    def once() -> None:
        cupy.matmul(*operands, out=c)
        cupy.cuda.runtime.deviceSynchronize()

    once()
    return _best(once)


def _best(call: Callable[[], object]) -> float:
    best, spent = math.inf, 0.0
    while spent < _CALIBRATION_SECONDS:
        begin = perf_counter()
        call()
        seconds = perf_counter() - begin
        best, spent = min(best, seconds), spent + seconds
    return best
