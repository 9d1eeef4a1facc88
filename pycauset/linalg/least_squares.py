"""Least squares for tall matrices of full rank: normal equations by Cholesky, refined until the correction stops shrinking."""

from __future__ import annotations

import contextlib
import math
from typing import Any, Final, NamedTuple

import numpy as np

from pycauset import config
from pycauset.errors import IllConditionedError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from pycauset.linalg.factorizations import cholesky
from pycauset.linalg.operands import Triangle, dimensions, in_memory, kernel_type, triangle_of
from pycauset.linalg.products import matmul
from pycauset.linalg.solving import cho_solve
from pycauset.linalg.substitution import substitute
from pycauset.matrix import Matrix, asmatrix
from pycauset.storage import ArrayStore

__all__ = ["LstsqResult", "lstsq"]

Array = np.ndarray[Any, Any]

_ROUNDS: Final = 10
#: Normal equations square the condition number: what is left of the working precision must let the refinement converge.
_LARGEST: Final = 0.1


class LstsqResult(NamedTuple):
    """A least-squares solution and, for each right-hand side, the sum of the squared residuals ``‖b - A x‖²``."""

    x: Any
    residual: Array


def lstsq(
    a: Any,
    b: Any,
    check_finite: bool = True,
    *,
    out: Any = None,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
) -> LstsqResult:
    """Least-squares solution of ``A X ≈ B`` for a tall matrix of full rank.

    ``AᴴA = L Lᴴ`` is formed and factored once; then ``x ← x + (L Lᴴ)⁻¹ Aᴴ (b - A x)``, in working precision, until corrections
    stop shrinking. A problem that is too ill-conditioned for this (about ``cond(A) > 1e7`` in double precision) is refused.

    Parameters
    ----------
    a : Matrix or array_like (m, n)
        With ``m ≥ n`` and full rank; read a few times from one end to the other.
    b : Matrix or array_like (m, k) or (m,)
    check_finite : bool
        Say where NaN or infinity was found. (They are never taken for numbers, asked or not.)
    out : Matrix or ndarray (n, k), or path, optional
        Where the solution goes.
    memory, gpu_memory, progress
        As in `pycauset.linalg.cholesky`.

    Returns
    -------
    LstsqResult
        ``x``, a Matrix (n, k) or ndarray (n,), and ``residual``, an ndarray (k,) of float64 as NumPy gives it: the sum of squares
        for each column.

    Raises
    ------
    IllConditionedError
        With the estimated ``condition`` of A, infinity if it is without full rank.
    ShapeError, DtypeError
        If A has more columns than rows, or B another number of rows.
    NonFiniteError, MemoryLimitError, StoreError

    References
    ----------
    .. [1] Å. Björck, "Stability analysis of the method of seminormal equations for linear least squares problems", Linear Algebra
       Appl. 88/89 (1987).
    .. [2] N. J. Higham, "FORTRAN codes for estimating the one-norm of a real or complex matrix", ACM TOMS 14 (1988).

    Examples
    --------
    >>> x, residual = lstsq([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]], [1.0, 3.0, 5.0])
    >>> x.round(12), bool(residual[0] < 1e-20)
    (array([1., 2.]), True)
    """
    if dimensions("lstsq", a, "first") == 1:
        raise ShapeError(f"lstsq: a is a vector of shape {np.shape(a)}; it must have two dimensions")
    matrix = asmatrix(a)
    vector = dimensions("lstsq", b, "second") == 1
    right = asmatrix(b)
    m, n = matrix.shape
    if m < n:
        raise ShapeError(f"lstsq: a has shape {matrix.shape}; it must have at least as many rows as columns")
    if right.shape[0] != m:
        shape = (right.shape[0],) if vector else right.shape
        raise ShapeError(f"lstsq: a has shape {matrix.shape} and b has shape {shape}; b must have {m} rows")
    dtype = kernel_type("lstsq", matrix.dtype, right.dtype)
    given = {"memory": memory, "gpu_memory": gpu_memory}
    limits = {name: value for name, value in given.items() if value is not None}
    scope = config.settings(**limits) if limits else contextlib.nullcontext()
    with scope:
        x, residual = _refined(matrix.astype(dtype), right.astype(dtype), check_finite, progress)
        if out is None:
            return LstsqResult(x.to_numpy()[:, 0] if vector else x, residual)
        from pycauset.linalg.results import Result

        with Result("lstsq", x.shape, dtype, out, reads=(matrix.store, right.store)) as result:
            from pycauset.evaluate import Term, evaluate

            evaluate("unary", [Term(x.store, x.op)], ("copy",), x.shape, dtype, out=result.store, owner="lstsq")
            return LstsqResult(result.finish(), residual)


def _refined(a: Matrix, b: Matrix, check_finite: bool, progress: Any) -> tuple[Matrix, Array]:
    """The solution and its residuals."""
    if check_finite:
        for name, matrix in (("a", a), ("b", b)):
            if matrix.size and not math.isfinite(matrix.norm("max")):
                raise NonFiniteError(f"lstsq: {name} holds NaN or infinity")
    n, k = a.shape[1], b.shape[1]
    if not n:
        return Matrix(np.zeros((0, k), b.dtype)), _squares(b)
    gram = matmul(a.H, a, progress=progress)
    try:
        factor = cholesky(gram, check_finite=False, progress=progress)
    except NotPositiveDefiniteError as error:
        if math.isnan(error.value):
            raise NonFiniteError("lstsq: AᴴA overflows, or a holds NaN or infinity; scale a") from None
        raise IllConditionedError(
            f"lstsq: AᴴA is not positive definite in {a.dtype} (pivot {error.pivot} is {error.value:g}): a is without full "
            "rank, or too ill-conditioned for normal equations; scale or drop columns, or use numpy.linalg.lstsq",
            condition=math.inf,
        ) from None
    del gram
    condition = condition_estimate(factor)
    eps = float(np.finfo(a.dtype).eps)
    if not condition**2 * eps <= _LARGEST:
        raise IllConditionedError(
            f"lstsq: the condition number of a is about {condition:.1e}; normal equations in {a.dtype} take up to "
            f"{math.sqrt(_LARGEST / eps):.1e}. Scale its columns, convert it with .astype('float64'), or use numpy.linalg.lstsq",
            condition=condition,
        )
    x: Any = cho_solve(factor, matmul(a.H, b), check_finite=False)
    residual = b - matmul(a, x)
    before = math.inf
    for _ in range(_ROUNDS):
        correction = cho_solve(factor, matmul(a.H, residual), check_finite=False)
        size = correction.norm()
        if not size < before / 2:
            break
        x, before = x + correction, size
        residual = b - matmul(a, x)
        if size <= eps * x.norm():
            break
    if not math.isfinite(x.norm()):
        raise NonFiniteError("lstsq: the solution overflows, or b holds NaN or infinity")
    return x, _squares(residual)


def _squares(residual: Matrix) -> Array:
    """The sum of squares of each column."""
    rows, cols = residual.shape
    found = np.zeros(cols)
    array = in_memory(residual.store) if residual.op == "N" else None
    step = max(1, (1 << 20) // max(1, cols))
    for start in range(0, rows, step):
        block = array[start : start + step] if array is not None else np.atleast_2d(residual[start : start + step, :])
        found += np.square(np.abs(np.asarray(block)).astype(np.float64)).sum(axis=0)
    return found


def condition_estimate(factor: Matrix) -> float:
    """Condition number in the 1-norm of a triangular matrix, from a few solves with one right-hand side.

    Hager's and Higham's estimate of ``‖L⁻¹‖₁``: a lower bound that is seldom off by more than a factor of three.
    """
    n = factor.shape[0]
    dtype = factor.dtype
    forward, adjoint = (triangle_of("lstsq", factor, lower=None, trans=trans) for trans in "NC")
    largest = 0.0
    x = np.full((n, 1), 1 / n, dtype)
    for step in range(5):
        y = _solved(forward, x)
        largest = max(largest, float(np.abs(y).sum()))
        sizes = np.abs(y)
        signs = np.where(sizes == 0, 1, y / np.where(sizes == 0, 1, sizes)).astype(dtype)
        z = _solved(adjoint, signs)
        j = int(np.abs(z).argmax())
        if step and np.abs(z[j, 0]) <= float(np.real(np.vdot(z, x))):
            break
        x = np.zeros((n, 1), dtype)
        x[j] = 1
    alternating = ((-1.0) ** np.arange(n) * (1 + np.arange(n) / max(1, n - 1)))[:, None].astype(dtype)
    largest = max(largest, 2 * float(np.abs(_solved(forward, alternating)).sum()) / (3 * n))
    return factor.norm(1) * largest


def _solved(triangle: Triangle, b: Array) -> Array:
    x = np.empty_like(b)
    substitute("lstsq", triangle, ArrayStore(b), ArrayStore(x), b.dtype)
    return x
