"""Benchmarks of the processor and the RAM: products, copies, first touch, cost of a call. One buffer serves them all."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
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

#: Least part of the best rate of smaller sizes, and of what another element type lets expect, that a rate is believed with.
_BELIEVED: Final = 0.5
_BELIEVED_OF_ANOTHER: Final = 0.25
#: Rates that fall below this part of the best are not worth keeping beyond the process.
_STEADY: Final = 0.7
_LEAST_START: Final = 1 / 16


def measure_cpu(info: CpuInfo, free: int, *, seconds: float) -> tuple[CpuProfile, bool]:
    """Measure the processor in about ``seconds``, and tell whether it was ours alone: whether no rate fell as sizes grew.

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
    steady, expected = True, dict[int, float]()
    for done, name in enumerate(DTYPES):
        # What one element type leaves over goes to those that follow.
        share = max(0.0, end - time.perf_counter()) / (len(DTYPES) - done)
        gemm[name], undisturbed = _gemm_rates(name, buffer, share, expected)
        steady &= undisturbed
        expected = _expected(gemm[name], name, DTYPES[(done + 1) % len(DTYPES)])
    first = DTYPES[0]  # it had nothing to be compared with
    if any(point.flops < expected.get(point.n, 0.0) * _BELIEVED_OF_ANOTHER for point in gemm[first]):
        gemm[first], steady = _gemm_rates(first, buffer, 0.1 * seconds, expected)[0], False
    one_thread = half / copied
    profile = CpuProfile(
        name=info.name,
        cores=info.cores,
        gemm=gemm,  # type: ignore[arg-type]  # its keys are DTYPES
        copy_bandwidth=one_thread,
        copy_bandwidth_all=max(one_thread, copied_all),
        first_touch_bandwidth=touched,
        call_seconds=call,
    )
    return profile, steady


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


def _multiply(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> None:
    np.matmul(a, b, out=out)


def _expected(points: Sequence[RatePoint], name: str, other: str) -> dict[int, float]:
    """What these rates let another element type expect: half in double precision, the same for complex products as for real."""
    before, after = (np.dtype(t).itemsize // (2 if np.dtype(t).kind == "c" else 1) for t in (name, other))
    return {point.n: point.flops * before / after for point in points}


def _gemm_rates(
    name: str, buffer: np.ndarray[Any, np.dtype[np.uint8]], budget: float, expected: Mapping[int, float]
) -> tuple[list[RatePoint], bool]:
    """Rates of ``np.matmul`` from small sizes to large ones, until the next would overrun the budget; whether they are steady.

    Rates rise with the size, up to a plateau. Where other processes use the cores, each product can wait milliseconds for a
    thread of the library: such a point, below half of the best before it or a quarter of what another element type lets
    expect, is not believed, and the rate of the size before it takes its place. Larger sizes still get their turn.
    """
    dtype = np.dtype(name)
    third = len(buffer) // 3 // 64 * 64
    thirds = [buffer[i * third : (i + 1) * third].view(dtype) for i in range(3)]  # the output is never an operand
    largest = largest_order(len(buffer), dtype.itemsize)
    end = time.perf_counter() + budget
    sizes: list[int] = []
    rates: list[float] = []
    steady = True
    for n in _SIZES:
        flops = gemm_flops(dtype, n, n, n)
        left = end - time.perf_counter()
        if rates and (n > largest or flops / rates[-1] > left):
            break
        a, b, out = (part[: n * n].reshape(n, n) for part in thirds)

        def multiply(a: Any = a, b: Any = b, out: Any = out) -> None:
            _multiply(a, b, out)

        if n <= 256 or not rates:
            multiply()  # wakes the library's threads; larger products find them awake
        window = max(0.0, min(left / 8, 5e-3 if n <= 256 else left))
        best = max(rates, default=0.0)
        least = max(best * _BELIEVED, expected.get(n, 0.0) * _BELIEVED_OF_ANOTHER)
        rate = flops / repeat_seconds(multiply, window, most=400, least=3 if n <= 512 else 1)
        if rate < least:  # somebody else had the cores for a moment: ask once more
            rate = max(rate, flops / repeat_seconds(multiply, window, most=400))
        if rate < max(least, best * _STEADY):
            steady = False
        if rate < least:
            rate = rates[-1] if rates else expected[n]
        sizes.append(n)
        rates.append(rate)
    for i in range(len(rates) - 2, -1, -1):
        if rates[i] < rates[i + 1] * _LEAST_START:  # the first sizes have nothing before them to be compared with
            rates[i], steady = rates[i + 1] * _LEAST_START, False
    taken = growing([gemm_flops(dtype, n, n, n) / rate for n, rate in zip(sizes, rates, strict=True)])
    return [RatePoint(n=n, flops=gemm_flops(dtype, n, n, n) / s) for n, s in zip(sizes, taken, strict=True)], steady
