"""What pycauset adds to one small product of arrays in RAM, over ``np.matmul`` of the same arrays.

Rounds of many calls alternate; the figure is the difference of the medians per call. Three ways in are timed: NumPy
arrays given to ``pycauset.matmul``, matrices given to it, and ``A @ B``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from report import Report, alternate, parser, warm_up

BAR = 20.0


def per_call(call: Callable[[], object], times: int) -> Callable[[], float]:
    def measured() -> float:
        start = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - start) / times

    return measured


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=64)
    made.add_argument("--calls", type=int, default=200, help="calls in a round")
    made.add_argument("--rounds", type=int, default=101)
    options = made.parse_args()
    if options.smoke:
        options.calls, options.rounds = 20, 5
    import pycauset

    report = Report(f"overhead of a product of {options.n} × {options.n} arrays in RAM, float64", options)
    warm_up()
    rng = np.random.default_rng(0)
    a, b = rng.random((options.n, options.n)), rng.random((options.n, options.n))
    x, y = pycauset.asmatrix(a), pycauset.asmatrix(b)
    calls: dict[str, Callable[[], object]] = {
        "np.matmul(a, b)": lambda: np.matmul(a, b),
        "pycauset.matmul(a, b), arrays": lambda: pycauset.matmul(a, b),
        "pycauset.matmul(A, B), matrices": lambda: pycauset.matmul(x, y),
        "A @ B, matrices": lambda: x @ y,
    }
    for call in calls.values():
        call()
    samples = alternate({name: per_call(call, options.calls) for name, call in calls.items()}, options.rounds)
    for name, sample in samples.items():
        report.figure(name, sample)
    base, *rest = samples.values()
    for name, sample in zip(list(samples)[1:], rest, strict=True):
        report.bar(f"added by {name}", (sample.median - base.median) * 1e6, BAR, at_least=False, unit=" µs", digits=1)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
