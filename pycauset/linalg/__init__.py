"""Linear algebra on matrices of any size: products, factorisations, systems, inverses, determinants and least squares.

Arguments have SciPy's names, defaults are NumPy's where the two differ. Each function takes limits, ``memory`` and
``gpu_memory``, and most a place for the result, ``out``.
"""

from __future__ import annotations

from pycauset.linalg.determinants import SlogdetResult, det, logdet, slogdet
from pycauset.linalg.factorizations import cholesky
from pycauset.linalg.inverses import inv
from pycauset.linalg.least_squares import LstsqResult, lstsq
from pycauset.linalg.products import matmul, norm, trace
from pycauset.linalg.solving import cho_solve, solve, solve_triangular

__all__ = [
    "LstsqResult",
    "SlogdetResult",
    "cho_solve",
    "cholesky",
    "det",
    "inv",
    "logdet",
    "lstsq",
    "matmul",
    "norm",
    "slogdet",
    "solve",
    "solve_triangular",
    "trace",
]
