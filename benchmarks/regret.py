"""The model's regret: time of the route that the solver chooses over the time of the best route.

Square products of arrays in RAM, from 64 to 8192 (4096 without a GPU), in all four element types. Every route that can
run does: np.matmul, in core and streamed on each device, whatever the model thinks of it. Times are medians of at
least five rounds, in which the routes take turns; a route whose first run takes over three times the best one's cannot
be the best, and is not repeated.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from report import Report, parser, warm_up

from pycauset import devices
from pycauset.devices.audit import load_profile
from pycauset.devices.rates import Rates
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.errors import MemoryLimitError
from pycauset.governor import governor
from pycauset.solver import Factor, execute, is_small, layout_of
from pycauset.solver.routes import Route, SolverPlan
from pycauset.storage import aligned_empty, as_store
from pycauset.units import format_seconds

BAR_MEDIAN, BAR_WORST = 1.10, 1.5
DTYPES = ("float32", "float64", "complex64", "complex128")
DIRECT = "np.matmul"


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
        self.layout = layout_of(self.a, self.b)
        self.solution, self.driver = execute._plan(
            self.a, self.b, self.layout, self.out, new_output=False, host=None, device=None
        )

    def _random(self, rng: np.random.Generator) -> Any:
        array = rng.random((self.n, self.n), np.float32).astype(self.dtype)
        return np.ascontiguousarray(array + 1j * array.T) if self.dtype.kind == "c" else array

    @property
    def chosen(self) -> str:
        return DIRECT if is_small(self.n, self.n, self.n) else self.solution.route.name

    def routes(self) -> dict[str, Callable[[], object]]:
        calls: dict[str, Callable[[], object]] = {}
        if is_small(self.n, self.n, self.n):
            calls[DIRECT] = lambda: np.matmul(self.arrays[0], self.arrays[1], out=self.result)
        for route in self.solution.routes:
            ready = self._planned(route)
            if ready is not None:
                calls[route.name] = lambda ready=ready: self._run(ready)
        return calls

    def _planned(self, route: Route) -> Route | None:
        """The route, with the plan that the model did not bother to make; None if it cannot run."""
        if route.refused or not route.streamed or route.plan is not None:
            return None if route.refused else route
        device = devices.cpu() if route.device == "cpu" else devices.gpu()
        if device is None:
            return None
        held = governor()
        host = held.available("host")
        limits = MatmulLimits(host) if device.unified else MatmulLimits(held.available("device") // 2, min(host, 1 << 30))
        try:
            plan = self.driver.plan(device, limits, Rates(load_profile(), route.device, self.dtype, {"ram"}))
        except MemoryLimitError:
            return None
        return replace(route, plan=plan)

    def _run(self, route: Route) -> None:
        solution: SolverPlan = self.solution
        execute._take(route, self.a, self.b, self.layout, self.out, self.driver, solution, None, None, 1.0, 0.0, False)


def measure(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    first: dict[str, float] = {}
    for name, call in calls.items():
        call()  # what the first call of a route pays for is not the route's
        first[name] = timed(call, 1)
    best = min(first.values())
    times = {name: [seconds] for name, seconds in first.items()}
    for _ in range(repeats):
        for name, call in calls.items():
            if first[name] <= 3 * best:
                times[name].append(timed(call, max(1, int(2e-3 / first[name]))))
    return {name: found[1:] or found for name, found in times.items()}


def timed(call: Callable[[], object], times: int) -> float:
    # NumPy's and SciPy's BLAS have threads of their own, which spin for some 20 ms after a call and would slow down
    # the next route.
    time.sleep(0.05)
    call()
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--sizes", nargs="+", type=int, default=[64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192])
    made.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    made.add_argument("--repeats", type=int, default=5)
    options = made.parse_args()
    if options.smoke:
        options.sizes, options.dtypes, options.repeats = [64, 400], ["float64", "complex64"], 2
    report = Report("regret of the cost model, operands and result in RAM", options)
    warm_up()
    if devices.gpu() is None:
        options.sizes = [n for n in options.sizes if n <= 4096]
    report.line(f"{'n':>5} {'dtype':<11} {'regret':>6}  {'chosen':<15} medians of {options.repeats} (lowest to highest)")
    regrets = []
    for dtype in options.dtypes:
        for n in options.sizes:
            problem = Problem(n, dtype)
            times = measure(problem.routes(), options.repeats)
            medians = {name: statistics.median(found) for name, found in times.items()}
            regret = medians[problem.chosen] / min(medians.values())
            regrets.append(regret)
            listed = "; ".join(
                f"{name} {format_seconds(medians[name])} ({format_seconds(min(found))} to {format_seconds(max(found))})"
                if len(found) > 1
                else f"{name} {format_seconds(found[0])} (once)"
                for name, found in times.items()
            )
            report.line(f"{n:>5} {dtype:<11} {regret:>6.3f}  {problem.chosen:<15} {listed}")
    report.line()
    report.bar("median regret", statistics.median(regrets), BAR_MEDIAN, at_least=False)
    report.bar("worst regret", max(regrets), BAR_WORST, at_least=False)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
