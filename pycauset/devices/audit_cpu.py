"""Benchmarks of the processor and the RAM: products, copies, first touch, cost of a call. One buffer serves them all."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from pycauset.hardware.probe import CpuInfo
from pycauset.hardware.profile import DTYPES, CpuProfile, RatePoint, gemm_flops

__all__ = ["growing", "largest_order", "measure_cpu", "noise", "repeat_seconds"]

_SIZES: Final = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1448, 2048)
_BUFFER: Final = 96 * 2**20  # three float64 matrices of order 2048
_SMALLEST_BUFFER: Final = 2**20  # three complex128 matrices of order 128
_BLOCK: Final = 2**20
_COPIES: Final = 16  # threads; memory is saturated by fewer


def measure_cpu(info: CpuInfo, free: int, *, seconds: float) -> CpuProfile:
    """Measure the processor in about ``seconds``.

    Parameters
    ----------
    info : CpuInfo
    free : int
        Bytes of free RAM; an eighth of it is used at most.
    seconds : float
        Budget. Sizes whose turn comes too late, or that would take too long, are left out.
    """
    pattern = noise(_BLOCK)
    call = _call_seconds(0.02 * seconds)
    buffer, touched = _first_touch(pattern, max(_SMALLEST_BUFFER, min(_BUFFER, free // 8)), 0.2 * seconds)
    half = len(buffer) // 2
    copied = repeat_seconds(lambda: np.copyto(buffer[half : 2 * half], buffer[:half]), 0.04 * seconds, most=5)
    copied_all = _copy_all(buffer, min(info.cores, _COPIES), 0.04 * seconds)
    end = time.perf_counter() + 0.7 * seconds
    gemm: dict[str, list[RatePoint]] = {}
    for done, name in enumerate(DTYPES):
        # What one element type leaves over goes to those that follow.
        share = max(0.0, end - time.perf_counter()) / (len(DTYPES) - done)
        gemm[name] = _gemm_rates(name, buffer, share)
    one_thread = half / copied
    return CpuProfile(
        name=info.name,
        cores=info.cores,
        gemm=gemm,  # type: ignore[arg-type]  # its keys are DTYPES
        copy_bandwidth=one_thread,
        copy_bandwidth_all=max(one_thread, copied_all),
        first_touch_bandwidth=touched,
        call_seconds=call,
    )


def noise(nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Random bytes that are ordinary numbers, neither tiny nor huge, whichever of the four element types reads them.

    Every four bytes are a float32 in ±[0.5, 2), every eight a float64 in ±[2**-15, 2). Products of constants would run
    faster than real ones on processors that save power.
    """
    words = np.random.default_rng().integers(0, 2**32, -(-nbytes // 4), dtype=np.uint32)
    words &= np.uint32(0x80FFFFFF)
    words |= np.uint32(0x3F000000)
    return words.view(np.uint8)[:nbytes]


def repeat_seconds(call: Callable[[], object], budget: float, *, most: int, least: int = 1) -> float:
    """Least seconds of ``call``, repeated until the budget is spent, ``least`` to ``most`` times.

    The least, not the median: other processes can only make a run slower, and a profile is kept for a long time.
    """
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < most and (len(times) < least or time.perf_counter() - begin < budget):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-9)


def growing(seconds: Sequence[float]) -> list[float]:
    """Seconds of ever larger jobs, without the noise that lets a larger one seem faster than a smaller one.

    What a larger job achieved bounds the smaller ones. They end up a thousandth below it at least: a strictly growing
    curve is what plans compare.

    Examples
    --------
    >>> growing([2.0, 3.0, 1.0, 4.0])
    [0.998001, 0.999, 1.0, 4.0]
    """
    bounded = list(seconds)
    for i in range(len(bounded) - 2, -1, -1):
        bounded[i] = min(bounded[i], bounded[i + 1] * 0.999)
    return bounded


def largest_order(nbytes: int, itemsize: int) -> int:
    """Order of the largest square matrices of which three fit into ``nbytes``."""
    return int((nbytes // (3 * itemsize)) ** 0.5)


def _call_seconds(budget: float) -> float:
    a, b, out = (np.ones((2, 2)) for _ in range(3))

    def hundred() -> None:
        for _ in range(100):
            np.matmul(a, b, out=out)

    return repeat_seconds(hundred, budget, most=50, least=2) / 100


def _first_touch(
    pattern: np.ndarray[Any, np.dtype[np.uint8]], nbytes: int, budget: float
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], float]:
    """Fresh memory filled with the pattern, as much of ``nbytes`` as the budget allows, and bytes touched a second."""
    buffer = np.empty(nbytes, np.uint8)
    filled = 0
    begin = time.perf_counter()
    while filled < nbytes and (filled < _SMALLEST_BUFFER or time.perf_counter() - begin < budget):
        part = buffer[filled : filled + len(pattern)]
        np.copyto(part, pattern[: len(part)])
        filled += len(part)
    return buffer[:filled], filled / max(time.perf_counter() - begin, 1e-9)


def _copy_all(buffer: np.ndarray[Any, np.dtype[np.uint8]], threads: int, budget: float) -> float:
    """Bytes copied a second by all threads together (NumPy copies without holding the GIL)."""
    half = len(buffer) // 2
    edges = [half * i // threads for i in range(threads + 1)]
    spans = list(itertools.pairwise(edges))

    def copy(span: tuple[int, int]) -> None:
        np.copyto(buffer[half + span[0] : half + span[1]], buffer[span[0] : span[1]])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(copy, spans))  # starts the threads
        return half / repeat_seconds(lambda: list(pool.map(copy, spans)), budget, most=5)


def _gemm_rates(name: str, buffer: np.ndarray[Any, np.dtype[np.uint8]], budget: float) -> list[RatePoint]:
    """Rates of ``np.matmul`` from small sizes to large ones, until the next would overrun the budget."""
    dtype = np.dtype(name)
    third = len(buffer) // 3 // 64 * 64
    thirds = [buffer[i * third : (i + 1) * third].view(dtype) for i in range(3)]  # the output is never an operand
    largest = largest_order(len(buffer), dtype.itemsize)
    end = time.perf_counter() + budget
    points: list[RatePoint] = []
    taken: list[float] = []
    for n in _SIZES:
        flops = gemm_flops(dtype, n, n, n)
        left = end - time.perf_counter()
        if points and (n > largest or flops / points[-1].flops > left):
            break
        a, b, out = (part[: n * n].reshape(n, n) for part in thirds)

        def multiply(a: Any = a, b: Any = b, out: Any = out) -> None:
            np.matmul(a, b, out=out)

        if n <= 256 or not points:
            multiply()  # wakes the library's threads; larger products find them awake
        window = max(0.0, min(left / 8, 5e-3 if n <= 256 else left))
        seconds = repeat_seconds(multiply, window, most=400, least=3 if n <= 512 else 1)
        if points and flops / seconds < points[-1].flops / 2:
            # Rates rise with n. Somebody else had the cores for a moment: ask once more.
            seconds = min(seconds, repeat_seconds(multiply, window, most=400))
        points.append(RatePoint(n=n, flops=flops / seconds))
        taken.append(seconds)
    return [RatePoint(n=p.n, flops=gemm_flops(dtype, p.n, p.n, p.n) / s) for p, s in zip(points, growing(taken), strict=True)]
