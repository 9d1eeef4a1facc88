"""Linear algebra on matrices of any size: products, factorisations, systems, inverses, determinants, least squares, eigenpairs.

Arguments have SciPy's names, defaults are NumPy's where the two differ. Each function takes limits, ``memory`` and
``gpu_memory``, and most a place for the result, ``out``.
"""

from __future__ import annotations

from pycauset.linalg.conditions import cond
from pycauset.linalg.determinants import SlogdetResult, det, logdet, slogdet
from pycauset.linalg.eigen import eigs, eigsh
from pycauset.linalg.factorizations import cholesky
from pycauset.linalg.inverses import inv
from pycauset.linalg.krylov import EigenStatistics
from pycauset.linalg.least_squares import LstsqResult, lstsq
from pycauset.linalg.products import matmul, norm, trace
from pycauset.linalg.singular import randomized_svd, svds
from pycauset.linalg.solving import cho_solve, solve, solve_triangular

__all__ = [
    "EigenStatistics",
    "LstsqResult",
    "SlogdetResult",
    "cho_solve",
    "cholesky",
    "cond",
    "det",
    "eigs",
    "eigsh",
    "inv",
    "logdet",
    "lstsq",
    "matmul",
    "norm",
    "randomized_svd",
    "slogdet",
    "solve",
    "solve_triangular",
    "svds",
    "trace",
]
