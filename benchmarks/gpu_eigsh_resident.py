"""The 8 largest eigenpairs of a symmetric float64 matrix in GPU memory, against CuPy's ``eigsh`` on the same array.

The eigenvalues are ``i^-0.35``, hidden by a reflection. The two alternate in one run, with tol = 1e-8 for both; times end when
the pairs are there.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from report import POWER, Report, Sample, alternate, gpu_or_exit, parser, power_law_strips, warm_up

BAR = 1.0
K, TOL = 8, 1e-8


def compare(report: Report, cupy: Any, options: argparse.Namespace) -> None:
    from cupyx.scipy.sparse.linalg import LinearOperator
    from cupyx.scipy.sparse.linalg import eigsh as cupy_eigsh

    from pycauset.linalg import eigsh

    n = options.n
    a = cupy.empty((n, n))
    for r, strip in power_law_strips(cupy, n):
        a[r : r + len(strip)] = strip
    found = {}

    def timed(name: str, call: Any) -> float:
        cupy.cuda.runtime.deviceSynchronize()
        start = time.perf_counter()
        found[name] = call()
        cupy.cuda.runtime.deviceSynchronize()
        return time.perf_counter() - start

    def by_cupy() -> float:
        return timed("cupy", lambda: cupy_eigsh(a, K, tol=TOL))

    def by_pycauset() -> float:
        return timed("pycauset", lambda: eigsh(a, K, tol=TOL, return_stats=True))

    count = [0]

    def counted(x: Any) -> Any:
        count[0] += 1
        return a @ x

    cupy_eigsh(LinearOperator((n, n), counted, dtype=a.dtype), K, tol=TOL)
    warm_up()
    for call in (by_cupy, by_pycauset):
        call()
    samples: dict[str, Sample] = alternate({"CuPy eigsh": by_cupy, "pycauset eigsh": by_pycauset}, options.repeats)
    for name, sample in samples.items():
        report.figure(name, sample)
    w, v, stats = found["pycauset"]
    report.figure(
        "products", f"CuPy {count[0]} with a vector, pycauset {stats.passes} with blocks of {stats.block_size}, ncv {stats.ncv}"
    )
    exact = np.arange(1, K + 1)[::-1] ** POWER
    report.bar(
        "largest error of an eigenvalue", float(np.abs(w - exact).max()) * 1e12, 10, at_least=False, unit="e-12", exact=True
    )
    vectors = cupy.asarray(v)
    residual = float(cupy.linalg.norm(a @ vectors - vectors * cupy.asarray(w), axis=0).max())
    report.bar("worst residual / (tol |A|)", residual / TOL, 1, at_least=False, exact=True)
    theirs = float(cupy.linalg.norm(a @ found["cupy"][1] - found["cupy"][1] * found["cupy"][0], axis=0).max())
    report.figure("CuPy's worst residual / (tol |A|)", f"{theirs / TOL:.3f}")
    ratio = samples["pycauset eigsh"].median / samples["CuPy eigsh"].median
    report.bar("time over CuPy's", ratio, BAR, at_least=False)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=16384)
    made.add_argument("--repeats", type=int, default=9)
    options = made.parse_args()
    if options.smoke:
        options.n, options.repeats = min(options.n, 1500), 1
    report = Report(f"GPU, float64, {K} largest eigenpairs of order {options.n} in GPU memory", options)
    compare(report, gpu_or_exit(report), options)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
