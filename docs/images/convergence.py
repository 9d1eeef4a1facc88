"""Draw the plot of the guide "Eigenvalues out of core": residual over passes, for several widths of the block.

python docs/images/convergence.py [--order 1500] [--output docs/images/convergence.svg]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pycauset.linalg import eigsh

BLOCKS = (1, 4, 12, 24)
PAIRS, TOL = 8, 1e-8


def main() -> None:
    """Run eigsh on a sample covariance matrix, whose spectrum has no gaps, and plot its histories."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--order", type=int, default=1500, help="of the matrix")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".svg"))
    arguments = parser.parse_args()

    import matplotlib

    matplotlib.use("svg")
    # Text stays text, and the same data give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pycauset", "font.family": "sans-serif"})
    from matplotlib import pyplot

    n = arguments.order
    x = np.random.default_rng(7).standard_normal((n, 3 * n))
    a = x @ x.T / (3 * n)
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for block in BLOCKS:
        _, stats = eigsh(
            a, PAIRS, tol=TOL, block_size=block, ncv=20 * 24, return_eigenvectors=False, return_history=True, progress=False
        )
        print(f"block of {block}: {stats.history[-1].passes} passes, {stats.products} vectors, {stats.restarts} restarts")
        axes.semilogy([h.passes for h in stats.history], [h.worst for h in stats.history], marker=".", label=f"block of {block}")
    axes.axhline(TOL, color="gray", linestyle="--", linewidth=1)
    axes.annotate("tol", (0, TOL), (3, 3), textcoords="offset points", color="gray")
    axes.set(xlabel="passes over the matrix", ylabel=f"worst residual of {PAIRS} pairs, in units of ‖A‖", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(arguments.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
