"""Small dense problems on the host, by one of its two BLAS libraries: the one whose threads are awake anyway.

NumPy and SciPy bring a BLAS each, whose threads spin for a while after a call; a call of the other one in that time waits for
cores (``benchmarks/two_blas.py``). Between kernels on the CPU it has to be SciPy's, which the kernels use; beside a GPU NumPy's,
which the caller's own code and CuPy use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pycauset.devices.blas import product

__all__ = ["KERNELS", "NUMPY", "Dense"]


class Dense(NamedTuple):
    """``a @ b``, eigenpairs of a Hermitian and of any matrix, the full QR factorisation, and the singular value decomposition.

    Examples
    --------
    >>> for dense in KERNELS, NUMPY:
    ...     values, vectors = dense.eigh(np.array([[2.0, 1.0], [1.0, 2.0]]))
    ...     values.round(12).tolist(), abs(dense.product(vectors.T, vectors)).round(12).tolist()
    ([1.0, 3.0], [[1.0, 0.0], [0.0, 1.0]])
    ([1.0, 3.0], [[1.0, 0.0], [0.0, 1.0]])
    """

    product: Callable[[Any, Any], Any]
    eigh: Callable[[Any], Any]
    eig: Callable[[Any], Any]
    qr: Callable[[Any], Any]
    svd: Callable[[Any], Any]


def _scipy(name: str, **options: Any) -> Callable[[Any], Any]:
    def call(a: Any) -> Any:
        import scipy.linalg

        return getattr(scipy.linalg, name)(a, check_finite=False, **options)

    return call


def _eig(a: Any) -> tuple[Any, Any]:
    values, vectors = np.linalg.eig(a)
    return values.astype(np.result_type(values, np.complex64)), vectors  # complex in any case, as SciPy's


# Divide and conquer: vectors of SciPy's default, MRRR, are less orthogonal, and each restart would add to that.
KERNELS = Dense(product, _scipy("eigh", driver="evd"), _scipy("eig"), _scipy("qr"), _scipy("svd"))
NUMPY = Dense(np.matmul, np.linalg.eigh, _eig, lambda a: np.linalg.qr(a, mode="complete"), np.linalg.svd)
