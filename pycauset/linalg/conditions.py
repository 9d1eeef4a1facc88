"""The 2-norm and the condition number that belongs to it, by a few eigenvalues."""

from __future__ import annotations

from typing import Any, Final

from pycauset.errors import ConfigError, NotPositiveDefiniteError
from pycauset.linalg.eigen import eigsh
from pycauset.linalg.operands import square
from pycauset.linalg.singular import svds
from pycauset.matrix import Matrix, asmatrix
from pycauset.properties import known

__all__ = ["cond", "spectral_norm"]

_TOL: Final = 1e-8


def spectral_norm(a: Any, *, memory: Any = None, gpu_memory: Any = None) -> float:
    """The largest singular value; of a matrix that is known to be Hermitian the largest magnitude of an eigenvalue.

    Examples
    --------
    >>> import numpy as np
    >>> round(spectral_norm(np.diag(np.arange(100.0))), 6)
    99.0
    """
    matrix = asmatrix(a)
    if 0 in matrix.shape:
        return 0.0
    limits: dict[str, Any] = {"memory": memory, "gpu_memory": gpu_memory}
    if _hermitian(matrix):
        return float(abs(eigsh(matrix, 1, tol=_TOL, return_eigenvectors=False, **limits)[0]))
    return float(svds(matrix, 1, tol=_TOL, return_singular_vectors=False, **limits)[0])


def cond(
    x: Any,
    p: str | float | None = None,
    *,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
) -> float:
    """Condition number ``‖A‖₂ ‖A⁻¹‖₂`` of a symmetric (Hermitian) positive definite matrix of any size.

    The largest eigenvalue by products, the smallest by solves with the Cholesky factor.

    Parameters
    ----------
    x : Matrix or array_like (n, n), or path
        Known to be positive definite, or Hermitian: then the factorisation finds out.
    p : {None, 2}
        The norm.
    memory, gpu_memory : int or str, optional
        As in `cholesky`.

    Raises
    ------
    ConfigError
        For other norms, and for matrices not known to be Hermitian: their smallest singular value needs an LU factorisation,
        which comes with a later version.
    NotPositiveDefiniteError, NonFiniteError, ShapeError, DtypeError, MemoryLimitError, StoreError

    Examples
    --------
    >>> import numpy as np
    >>> from pycauset import asmatrix
    >>> round(cond(asmatrix(np.diag(np.arange(1.0, 101.0)), is_symmetric=True)), 6)
    100.0
    """
    if p not in (None, 2):
        raise ConfigError(f"cond: p is {p!r}; there is 2 (np.linalg.cond(A.to_numpy(), p) has more)")
    matrix = square("cond", x)
    if not _hermitian(matrix):
        raise ConfigError(
            f"cond: {matrix!r} is not known to be positive definite, and general matrices need an LU factorisation, which comes "
            "with a later version; claim what it is, A.properties.is_positive_definite = True, or see np.linalg.cond"
        )
    n = matrix.shape[0]
    if n == 0:
        return 0.0
    limits: dict[str, Any] = {"memory": memory, "gpu_memory": gpu_memory}
    if n <= 3:
        from pycauset.linalg.factorizations import cholesky

        cholesky(matrix, **limits)
        values = eigsh(matrix, n, return_eigenvectors=False, **limits)
        return float(values[-1] / values[0])
    largest = eigsh(matrix, 1, which="LA", tol=_TOL, return_eigenvectors=False, **limits)[0]
    try:
        smallest = eigsh(matrix, 1, sigma=0.0, tol=_TOL, return_eigenvectors=False, **limits)[0]
    except ConfigError as error:
        cause = error.__cause__
        if not isinstance(cause, NotPositiveDefiniteError):
            raise
        raise NotPositiveDefiniteError(
            f"cond: {matrix!r} is indefinite or singular, and an indefinite matrix needs another factorisation, which comes "
            "with a later version; see np.linalg.cond",
            pivot=cause.pivot,
            value=cause.value,
        ) from error
    if smallest <= 0:
        raise NotPositiveDefiniteError(
            f"cond: {matrix!r} has the eigenvalue {smallest:.6g}; if it is negative definite, give its negative",
            pivot=0,  # of a negative definite matrix the first one fails
            value=float(matrix[0, 0].real),
        )
    return float(largest / smallest)


def _hermitian(a: Matrix) -> bool:
    flags = a._flags()
    return bool(known(flags, "is_hermitian") or known(flags, "is_positive_definite"))
