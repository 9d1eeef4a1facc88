"""The 8 largest eigenpairs of a symmetric float64 matrix in RAM, against ``scipy.sparse.linalg.eigsh`` on the same array.

The eigenvalues are ``i^-0.35``, i = 1, 2, ..., hidden by a reflection. The two alternate in one run, with tol = 1e-8 for both.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from report import POWER, Report, Sample, alternate, parser, power_law_matrix, warm_up

BAR = 0.7
K, TOL = 8, 1e-8


def compare(report: Report, options: argparse.Namespace) -> None:
    from scipy.sparse.linalg import LinearOperator
    from scipy.sparse.linalg import eigsh as scipy_eigsh

    from pycauset.linalg import eigsh

    n = options.n
    element = power_law_matrix(n)
    a = np.empty((n, n))
    for r in range(0, n, 256):
        a[r : r + 256] = element(np.arange(r, min(r + 256, n)), np.arange(n))
    found = {}

    def by_scipy() -> float:
        start = time.perf_counter()
        found["scipy"] = scipy_eigsh(a, K, tol=TOL)
        return time.perf_counter() - start

    def by_pycauset() -> float:
        start = time.perf_counter()
        found["pycauset"] = eigsh(a, K, tol=TOL, return_stats=True)
        return time.perf_counter() - start

    count = [0]

    def counted(x: np.ndarray) -> np.ndarray:
        count[0] += 1
        return a @ x

    scipy_eigsh(LinearOperator((n, n), counted, dtype=a.dtype), K, tol=TOL)
    warm_up()
    by_pycauset()
    samples: dict[str, Sample] = alternate({"SciPy eigsh": by_scipy, "pycauset eigsh": by_pycauset}, options.repeats)
    for name, sample in samples.items():
        report.figure(name, sample)
    w, v, stats = found["pycauset"]
    report.figure("products with one vector", f"SciPy {count[0]}, pycauset {stats.products} in blocks of {stats.block_size}")
    exact = np.arange(1, K + 1)[::-1] ** POWER
    report.bar(
        "largest error of an eigenvalue", float(np.abs(w - exact).max()) * 1e12, 1, at_least=False, unit="e-12", exact=True
    )
    report.bar(
        "worst residual / (tol |A|)", float(np.linalg.norm(a @ v - v * w, axis=0).max()) / TOL, 1, at_least=False, exact=True
    )
    ratio = samples["pycauset eigsh"].median / samples["SciPy eigsh"].median
    report.bar("time over SciPy's", ratio, BAR, at_least=False)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=12288)
    made.add_argument("--repeats", type=int, default=5)
    options = made.parse_args()
    if options.smoke:
        options.n, options.repeats = min(options.n, 512), 1
    report = Report(f"CPU, float64, {K} largest eigenpairs of order {options.n} in RAM", options)
    compare(report, options)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
