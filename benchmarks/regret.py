"""The model's regret: time of the route that the solver chooses over the time of the best route.

Square products of arrays in RAM, from 64 to 8192 (4096 without a GPU), in all four element types, through
``solver.multiply`` as users reach it: planning is in every time. The routes are those in core and streamed on each device,
and ``np.matmul`` itself where the solver leaves small products to it; only what would take over 50 ms and is predicted to
take over ten times as long as the best is not run. Each route runs once to warm up. Then the solver is asked which one it
would take, in the situation that is measured: CUDA is awake and pinned memory that earlier runs left is there, as for the
second product of any process. Times are medians of at least five rounds in which the routes take turns. Each sample is a
call in a process at work: right before it the same route runs once more, not timed, so that the threads of its library
are awake (from sleep they take milliseconds). A route that took over four times as long as the best, twice in a row,
cannot be the best and is left out of the rounds, unless it is the chosen one. Each route's prediction stands beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from report import Report, parser, warm_up

from pycauset import devices
from pycauset.solver import Factor, SolverPlan, is_small, multiply, plan
from pycauset.storage import aligned_empty, as_store
from pycauset.units import format_seconds

BAR_MEDIAN, BAR_WORST = 1.10, 1.5
DTYPES = ("float32", "float64", "complex64", "complex128")
SIZES = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
DIRECT = "np.matmul"
_CLEARLY_SLOWER = 4.0
_NOT_WORTH_RUNNING, _CHEAP = 10.0, 0.05
#: NumPy's and SciPy's BLAS have threads of their own, which spin for some 20 ms after a call and slow down the next route:
#: routes are this far apart. Between the untimed calls of a route and the timed one there is no pause.
_PAUSE = 0.025
#: Untimed calls before each timed one. Where threads that have slept wake up two on a core, a call takes two slices of the
#: scheduler, 8 ms, until it moves one of them; that is nobody's choice.
_WARM = 0.03


class Problem:
    """One product, and every way to compute it."""

    def __init__(self, n: int, dtype: str) -> None:
        rng = np.random.default_rng(n)
        self.n, self.dtype = n, np.dtype(dtype)
        self.arrays = [self._random(rng) for _ in range(2)]
        self.result = aligned_empty((n, n), dtype)
        self.result[...] = 0
        self.a, self.b = (Factor(as_store(array)) for array in self.arrays)
        self.out = as_store(self.result)

    def _random(self, rng: np.random.Generator) -> Any:
        real = np.empty(0, self.dtype).real.dtype
        return rng.random((self.n, self.n * self.dtype.itemsize // real.itemsize), real).view(self.dtype)

    def solution(self) -> SolverPlan:
        """What the solver knows about every route, now."""
        return plan("matmul", self.a, self.b, out=self.out, thorough=True)

    def routes(self) -> dict[str, Callable[[], object]]:
        calls: dict[str, Callable[[], object]] = {}
        if is_small(self.n, self.n, self.n):
            calls[DIRECT] = lambda: np.matmul(self.arrays[0], self.arrays[1], out=self.result)
        possible = [route for route in self.solution().routes if not route.refused]
        for route in possible:
            if route.seconds <= max(_CHEAP, _NOT_WORTH_RUNNING * possible[0].seconds):
                calls[route.name] = lambda name=route.name: multiply(self.a, self.b, out=self.out, route=name, progress=False)
        return calls

    def chosen(self) -> str:
        """The route that ``pycauset.matmul`` takes now."""
        if is_small(self.n, self.n, self.n):
            return DIRECT
        return plan("matmul", self.a, self.b, out=self.out).route.name


def timed(call: Callable[[], object], times: int = 1) -> float:
    """Seconds of a call in the midst of others: a library's threads are awake, and the scheduler has spread them out."""
    time.sleep(_PAUSE)
    warm = time.perf_counter() + _WARM
    call()
    while time.perf_counter() < warm:
        call()
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def measure(problem: Problem, repeats: int) -> tuple[str, SolverPlan, dict[str, list[float]], set[str]]:
    """The chosen route, the predictions, each route's times, and the routes that were left out of the rounds."""
    calls = problem.routes()
    for call in calls.values():
        call()  # what the first call of a route pays for is not the route's
    chosen, solution = problem.chosen(), problem.solution()
    # Two probes: a single one can fall on threads that are just waking up.
    probe = {name: timed(call) for name, call in calls.items()}
    for name, call in calls.items():
        if probe[name] > _CLEARLY_SLOWER * min(probe.values()) and probe[name] < 0.2:
            probe[name] = min(probe[name], timed(call))
    fast = min(probe.values())
    rounds = [name for name in calls if name == chosen or probe[name] <= _CLEARLY_SLOWER * fast]
    times: dict[str, list[float]] = {name: [] for name in rounds}
    for _ in range(repeats):
        for name in rounds:
            times[name].append(timed(calls[name], max(1, min(20, int(1e-3 / probe[name])))))
    left_out = set(calls) - set(rounds)
    return chosen, solution, times | {name: [probe[name]] for name in left_out}, left_out


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    made.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    made.add_argument("--repeats", type=int, default=5)
    options = made.parse_args()
    if options.smoke:
        options.sizes, options.dtypes, options.repeats = [64, 400], ["float64", "complex64"], 2
    report = Report("regret of the cost model, operands and result in RAM", options)
    warm_up()
    if devices.gpu() is None:
        options.sizes = [n for n in options.sizes if n <= 4096]
    report.line(f"medians of {options.repeats} (lowest to highest); ≈ what the model predicted; * chosen; (probe) clearly slower")
    regrets = []
    for dtype in options.dtypes:
        for n in options.sizes:
            problem = Problem(n, dtype)
            chosen, solution, times, left_out = measure(problem, options.repeats)
            medians = {name: statistics.median(found) for name, found in times.items()}
            regret = medians[chosen] / min(medians.values())
            regrets.append(regret)
            predicted = {route.name: route.seconds for route in solution.routes if not route.refused}
            report.line(f"{n:>5} {dtype:<11} regret {regret:.3f}")
            for name in sorted(medians, key=lambda name: medians[name]):
                found = times[name]
                spread = "(probe)" if name in left_out else f"({format_seconds(min(found))} to {format_seconds(max(found))})"
                guess = f"≈ {format_seconds(predicted[name])}" if name in predicted else ""
                ratio = f"{predicted[name] / medians[name]:5.2f}" if name in predicted else ""
                mark = "*" if name == chosen else " "
                report.line(f"    {mark} {name:<15} {format_seconds(medians[name]):>9} {guess:<12} {ratio:>5}  {spread}")
            del problem
    report.line()
    report.bar("median regret", statistics.median(regrets), BAR_MEDIAN, at_least=False)
    report.bar("worst regret", max(regrets), BAR_WORST, at_least=False)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
