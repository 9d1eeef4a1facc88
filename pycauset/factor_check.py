"""Whether a matrix on disk is the lower Cholesky factor of another: sampled tiles, element by element.

In sampled tiles ``|A_ij - Σ_k L_ik L_jkᴴ|`` is compared with ``√n ε ‖L_i‖ ‖L_j‖``, which is what rounding a sum of n
products costs with high probability [1]_. :func:`~pycauset.freivalds.freivalds` tests all of it by random vectors.

References
----------
.. [1] N. J. Higham and T. Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41 (2019),
   A2815-A2835.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from pycauset.storage import TileStore
from pycauset.tiling import Rect

__all__ = ["SAMPLES", "tile_residual"]

SAMPLES: Final = 8
"""Sampled tiles unless told otherwise."""

_TILE: Final = 256
_DEPTH: Final = 2048


def tile_residual(a: TileStore, factor: TileStore, *, samples: int = SAMPLES, seed: int = 0) -> float:
    """Largest ``|A_ij - Σ_k l_ik conj(l_jk)| / (√n ε ‖l_i‖ ‖l_j‖)`` in a few tiles, among them the diagonal's first and last.

    Summed in double precision; of the order of 1 or less for rounding, infinite if the factor is not finite. Takes ten megabytes.

    Parameters
    ----------
    a, factor : TileStore (n, n)
        The matrix and its lower Cholesky factor, of which only the lower triangle is looked at.
    samples, seed : int
        How many tiles, and which.

    Examples
    --------
    >>> from pycauset.freivalds import RESIDUAL_LIMIT
    >>> from pycauset.seeded import CovarianceStore
    >>> from pycauset.storage import as_store
    >>> a = CovarianceStore(1, 300, "float64")
    >>> whole = np.empty((300, 300))
    >>> a.read(Rect(0, 300, 0, 300), whole)
    >>> l = np.linalg.cholesky(whole)
    >>> tile_residual(a, as_store(l)) < RESIDUAL_LIMIT
    True
    >>> l[299, 3] *= 1.001
    >>> tile_residual(a, as_store(l)) < RESIDUAL_LIMIT
    False
    """
    n = a.shape[0]
    if not n:
        return 0.0
    scale = math.sqrt(n) * float(np.finfo(np.result_type(factor.dtype, np.float32)).eps)
    kind = np.result_type(factor.dtype, np.float64)
    worst = 0.0
    for r0, c0 in _sampled(n, samples, seed):
        r1, c1 = min(r0 + _TILE, n), min(c0 + _TILE, n)
        exact = np.empty((r1 - r0, c1 - c0), kind)
        a.read(Rect(r0, r1, c0, c1), exact)
        rows, cols = np.zeros(r1 - r0), np.zeros(c1 - c0)
        for k0 in range(0, r1, _DEPTH):
            left, right = np.empty((r1 - r0, min(_DEPTH, n - k0)), kind), np.empty((c1 - c0, min(_DEPTH, n - k0)), kind)
            for part, first in ((left, r0), (right, c0)):
                factor.read(Rect(first, first + len(part), k0, k0 + part.shape[1]), part)
                if k0 + part.shape[1] > first:
                    part[...] = np.tril(part, first - k0)
            exact -= left @ right.conj().T
            rows += np.einsum("ij,ij->i", left, left.conj()).real
            cols += np.einsum("ij,ij->i", right, right.conj()).real
        if not (np.isfinite(exact).all() and rows.all() and cols.all()):
            return math.inf
        worst = max(worst, float((np.abs(exact) / np.sqrt(rows[:, None] * cols)).max()) / scale)
    return worst


def _sampled(n: int, samples: int, seed: int) -> Iterator[tuple[int, int]]:
    """Corners of tiles in the lower triangle: first and last on the diagonal, the bottom left one, others at random."""
    last = (n - 1) // _TILE
    chosen = dict.fromkeys([(last, last), (0, 0), (last, 0)])
    rng = np.random.default_rng(seed)
    for at in range(max(0, samples - len(chosen))):
        i, j = sorted((int(x) for x in rng.integers(0, last + 1, 2)), reverse=True)
        chosen.setdefault((i, i if at == 0 else j))
    return ((i * _TILE, j * _TILE) for i, j in chosen)
