"""What it costs when NumPy's BLAS and SciPy's take turns in one process.

Each brings threads of its own, which spin for a while after a call. A product by NumPy is timed among its like, right after a
product by SciPy, and a tenth of a second after one. The cost is a few slices of the scheduler, whatever the product's size. It is
why pycauset's kernels, and all that alternates with them, use one BLAS (``pycauset.devices.blas``), and why a route that is timed
must not follow another one closely. There is no bar: nobody can choose for the caller's own NumPy code.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from report import Report, Sample, parser


def timed(call: Callable[[], object], before: Callable[[], object], repeats: int) -> Sample:
    """Milliseconds of ``call``, each right after ``before``."""
    values = []
    for _ in range(repeats):
        before()
        start = time.perf_counter()
        call()
        values.append((time.perf_counter() - start) * 1e3)
    return Sample(tuple(values), "ms")


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--sizes", nargs="+", type=int, default=[128, 256, 512, 1024])
    made.add_argument("--repeats", type=int, default=21)
    options = made.parse_args()
    if options.smoke:
        options.sizes, options.repeats = [64], 2
    from scipy.linalg.blas import dgemm

    report = Report("NumPy's BLAS after SciPy's", options)
    rng = np.random.default_rng(0)
    for n in options.sizes:
        a, out = np.asfortranarray(rng.standard_normal((n, n))), np.empty((n, n), order="F")

        def by_numpy(a: np.ndarray = a, out: np.ndarray = out) -> object:
            return np.matmul(a, a, out=out)

        def by_scipy(a: np.ndarray = a) -> object:
            return dgemm(1.0, a, a)

        def long_ago(by_scipy: Callable[[], object] = by_scipy) -> None:
            by_scipy()
            time.sleep(0.1)

        by_scipy()
        for name, before in (("NumPy", by_numpy), ("SciPy", by_scipy), ("SciPy and 0.1 s", long_ago)):
            report.figure(f"n = {n}, after {name}", timed(by_numpy, before, options.repeats))
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
