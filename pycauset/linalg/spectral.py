"""Spectral transformations of Hermitian problems: shift-invert and a second matrix M, by Cholesky factors.

With ``M = K Kᴴ``: ``A x = λ M x`` is ``(K⁻¹ A K⁻ᴴ) y = λ y`` for ``y = Kᴴ x``. With a shift, eigenvalues near
sigma are the largest of ``ν = 1 / (λ - σ)``, those of ``Kᴴ (A - σ M)⁻¹ K``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pycauset.errors import ConfigError, NotPositiveDefiniteError
from pycauset.linalg.factorizations import cholesky
from pycauset.linalg.krylov import Request
from pycauset.linalg.operands import square
from pycauset.linalg.operators import Operator
from pycauset.linalg.solving import cho_solve, solve_triangular
from pycauset.matrix import Matrix
from pycauset.properties import Properties
from pycauset.solver.products import CalledProduct, Product

__all__ = ["Transformed", "transformed"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Transformed:
    """The problem that is iterated on: its product, and the way back to pairs of the original."""

    product: Product
    back: Callable[[Array, Array], tuple[Array, Array]]


@contextmanager
def transformed(
    request: Request, a: Operator, m: Any, sigma: float | None, memory: Any, gpu_memory: Any
) -> Iterator[Transformed]:
    """Factor what a shift or a second matrix needs factored.

    Raises
    ------
    ConfigError
        If ``A - sigma M`` is indefinite, or A an operator whose elements nobody can read.
    NotPositiveDefiniteError
        If M is not positive definite.
    """
    name, n = request.name, request.n
    limits: dict[str, Any] = {"memory": memory, "gpu_memory": gpu_memory, "progress": False}
    if request.k >= n - 1:
        raise ConfigError(f"{name}: k is {request.k}; with M or sigma it must be below n - 1, which is {n - 1}")
    second = None if m is None else square(name, m)
    if second is not None and second.shape[0] != n:
        raise ConfigError(f"{name}: M has shape {second.shape}; it must be {(n, n)}, as A is")
    factor = None if second is None else cholesky(second, **limits)

    def plain(x: Any) -> Array:
        return x.to_numpy() if isinstance(x, Matrix) else np.asarray(x)

    def up(x: Array, trans: str) -> Array:
        """``K⁻¹ x`` or ``K⁻ᴴ x``."""
        return x if factor is None else plain(solve_triangular(factor, np.ascontiguousarray(x), trans, lower=True, **limits))

    def times(x: Array) -> Array:
        """``K x``."""
        return x if factor is None else plain(factor @ np.ascontiguousarray(x))

    def times_adjoint(x: Array) -> Array:
        return x if factor is None else plain(factor.H @ np.ascontiguousarray(x))

    if sigma is None:
        apply = _multiply(a, limits)
        product = CalledProduct(lambda x: up(apply(up(x, "C")), "N"), a.dtype)
        yield Transformed(product, lambda values, vectors: (values, up(vectors, "C")))
        return
    solve = _inverse(name, a, second, float(sigma), limits)
    product = CalledProduct(lambda y: times_adjoint(solve(times(y))), a.dtype)
    shift = float(sigma)
    yield Transformed(product, lambda values, vectors: (shift + 1 / values, up(vectors, "C")))


def _multiply(a: Operator, limits: dict[str, Any]) -> Callable[[Array], Array]:
    if a.matrix is None:
        return lambda x: np.asarray(a.linear @ x)
    from pycauset.linalg.products import matmul

    def apply(x: Array) -> Array:
        y = matmul(a.matrix, np.ascontiguousarray(x), **limits)
        return y.to_numpy() if isinstance(y, Matrix) else np.asarray(y)

    return apply


def _inverse(name: str, a: Operator, second: Matrix | None, sigma: float, limits: dict[str, Any]) -> Callable[[Array], Array]:
    """Solves with ``A - sigma M``."""
    if a.matrix is None:
        return _sparse_inverse(name, a, second, sigma)
    from pycauset.creation import eye

    subtracted = second if second is not None else eye(a.shape[0], dtype=a.dtype)
    # Whatever is claimed of A need not hold of the difference.
    shifted = a.matrix - sigma * subtracted if sigma else Matrix._of_store(a.matrix.store, a.matrix.op)
    shifted.properties = Properties(shifted.shape, shifted.dtype, 0)
    sign = 1.0
    try:
        factor = cholesky(shifted, **limits)
    except NotPositiveDefiniteError:
        sign = -1.0
        try:
            factor = cholesky(-shifted, **limits)
        except NotPositiveDefiniteError as error:
            raise ConfigError(
                f"{name}: A - sigma M is indefinite for sigma={sigma}, and only definite matrices can be factored yet: choose "
                "sigma below or above all eigenvalues, or use scipy.sparse.linalg.eigsh on a matrix that fits in memory"
            ) from error

    def solve(x: Array) -> Array:
        y = cho_solve((factor, True), np.ascontiguousarray(x), **limits)
        return sign * (y.to_numpy() if isinstance(y, Matrix) else np.asarray(y))

    return solve


def _sparse_inverse(name: str, a: Operator, second: Matrix | None, sigma: float) -> Callable[[Array], Array]:
    import scipy.sparse

    if not scipy.sparse.issparse(a.linear):
        raise ConfigError(f"{name}: sigma needs a factorisation, and a LinearOperator has no elements; give a matrix")
    if second is not None:
        raise ConfigError(f"{name}: sigma together with M is not there for sparse A yet; use scipy.sparse.linalg.eigsh")
    from scipy.sparse.linalg import splu

    factor = splu(scipy.sparse.csc_matrix(a.linear - sigma * scipy.sparse.identity(a.shape[0], a.dtype)))
    return lambda x: np.asarray(factor.solve(np.ascontiguousarray(x)))
