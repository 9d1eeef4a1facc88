"""Least squares for tall matrices of full rank: normal equations by Cholesky, refined until the correction stops shrinking."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from pycauset import operations
from pycauset.errors import IllConditionedError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from pycauset.linalg.factorizations import cholesky
from pycauset.linalg.operands import Triangle, dimensions, in_memory, kernel_type, opened, right_hand_side, triangle_of
from pycauset.linalg.products import matmul
from pycauset.linalg.results import check_options, request_of
from pycauset.linalg.solving import cho_solve
from pycauset.linalg.stages import Stages
from pycauset.linalg.substitution import substitute
from pycauset.linalg.triangles import rectangles
from pycauset.matrix import Matrix, asmatrix
from pycauset.storage import ArrayStore, open_store
from pycauset.storage.output import fsync_folder
from pycauset.tiling import Rect

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
    resume: Any = True,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
) -> LstsqResult:
    """Least-squares solution of ``A X ≈ B`` for a tall matrix of full rank.

    ``AᴴA = L Lᴴ`` is formed and factored once; then ``x ← x + (L Lᴴ)⁻¹ Aᴴ (b - A x)``, in working precision, until corrections
    stop shrinking. A problem that is too ill-conditioned for this (about ``cond(A) > 1e7`` in double precision) is refused.

    Parameters
    ----------
    a : Matrix or array_like (m, n), or path
        With ``m ≥ n`` and full rank; read a few times from one end to the other.
    b : Matrix or array_like (m, k) or (m,), or path
    check_finite : bool
        Say where NaN or infinity was found. (They are never taken for numbers, asked or not.)
    out : Matrix or ndarray (n, k), or path, optional
        Where the solution goes.
    resume, memory, gpu_memory, progress
        As in `pycauset.linalg.cholesky`. With a Zarr folder named by path ``AᴴA``, and then its factor, lie in ``NAME.stages``
        beside it until the solution is finished, so that the same call goes on after a kill: a product that was
        interrupted starts anew, a factorisation goes on.

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
    NonFiniteError, OverlapError, MemoryLimitError, JournalError, StoreError

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
    check_options(progress, resume)
    matrix, right, vector = _operands(a, b)
    n, k = matrix.shape[1], right.shape[1]
    dtype = kernel_type("lstsq", matrix.dtype, right.dtype)
    operands = {"a": (matrix.store, matrix.op), "b": (right.store, right.op)}
    with Stages(
        "lstsq",
        (n, k),
        dtype,
        out,
        reads=(matrix.store, right.store),
        chunks=None,
        request=lambda: request_of("lstsq", {"dtype": dtype.name}, operands),
        resume=resume,
        limits={"memory": memory, "gpu_memory": gpu_memory, "progress": progress},
    ) as stages:
        problem = _Problem(matrix, right, dtype, stages)
        if stages.result.finished or stages.complete:
            x = stages.result.opened() if stages.result.finished else stages.finish()
            return LstsqResult(x, _squares(problem.residual(x)))
        x, residual = problem.refined(check_finite)
        if out is None:
            return LstsqResult(x.to_numpy()[:, 0] if vector else x, residual)
        _put(x, stages)
        return LstsqResult(stages.finish(), residual)


def _operands(a: Any, b: Any) -> tuple[Matrix, Matrix, bool]:
    """A tall matrix, right-hand sides of as many rows, and whether these were a vector."""
    a = opened(a)
    if dimensions("lstsq", a, "first") == 1:
        raise ShapeError(f"lstsq: a is a vector of shape {np.shape(a)}; it must have two dimensions")
    matrix = asmatrix(a)
    m, n = matrix.shape
    if m < n:
        raise ShapeError(f"lstsq: a has shape {matrix.shape}; it must have at least as many rows as columns")
    return matrix, *right_hand_side("lstsq", b, matrix)


def _put(x: Matrix, stages: Stages) -> None:
    """Copy the solution to its place; with a journal as one tile, which is there as a whole or not at all."""
    stages.begin()
    store, journal = stages.result.store, stages.result.journal
    whole = Rect(0, store.shape[0], 0, store.shape[1])
    if journal is None:
        with stages.limited(x):
            operations.copy_into(x, store, owner="lstsq")
        return
    journal.begin({"tile": store.shape}, device="cpu")
    if whole.size and not journal.generation(whole):
        for part in rectangles(store):
            journal.write(whole, 1, part, np.asarray(x[part.slices]).reshape(part.shape))


class _Problem:
    """``A X ≈ B``, converted to the type to compute in."""

    def __init__(self, a: Matrix, b: Matrix, dtype: np.dtype[Any], stages: Stages) -> None:
        self.stages = stages
        with stages.limited():
            self.a = a.astype(dtype)
        self.b = b
        if self.a is not a:
            stages.hold(self.a)
        with stages.limited():
            self.b = b.astype(dtype)
        if self.b is not b:
            stages.hold(self.b)

    def residual(self, x: Matrix) -> Matrix:
        """``B - A X``."""
        with self.stages.limited(x):
            product = matmul(self.a, x)
        with self.stages.limited(x, product):
            difference: Matrix = self.b - product
        return difference

    def normal(self, factor: Matrix, residual: Matrix, *others: Matrix) -> Matrix:
        """``(L Lᴴ)⁻¹ Aᴴ R``, while ``others`` lie in memory too."""
        with self.stages.limited(residual, *others):
            right = matmul(self.a.H, residual)
        with self.stages.limited(residual, right, *others):
            found: Matrix = cho_solve(factor, right, check_finite=False)
        return found

    def gram(self, place: Path | None) -> Matrix:
        """``AᴴA``; at a path it is durable before it has its name, for products have no journal."""
        limits = self.stages.limits
        if place is None:
            return matmul(self.a.H, self.a, **limits)  # type: ignore[no-any-return]
        begun = place.with_name("begun.zarr")
        shutil.rmtree(begun, ignore_errors=True)
        matmul(self.a.H, self.a, out=begun, **limits)
        for folder, _, names in os.walk(begun):
            for path in (*(os.path.join(folder, name) for name in names), folder):
                fsync_folder(path)  # which does the same for files
        os.rename(begun, place)
        fsync_folder(os.fspath(place.parent))
        return Matrix(open_store(place))

    def factor(self) -> Matrix:
        """L of ``AᴴA = L Lᴴ``.

        Raises
        ------
        IllConditionedError
            If there is none, or it would not do.
        """
        dtype, stages = self.a.dtype, self.stages

        def factored(place: Path | None) -> Matrix:
            gram = stages.make("gram", self.gram)
            return cholesky(gram, check_finite=False, out=place, **stages.limits)

        try:
            factor = stages.make("factor", factored)
        except NotPositiveDefiniteError as error:
            if math.isnan(error.value):
                raise NonFiniteError("lstsq: AᴴA overflows, or a holds NaN or infinity; scale a") from None
            raise IllConditionedError(
                f"lstsq: AᴴA is not positive definite in {dtype} (pivot {error.pivot} is {error.value:g}): a is without full "
                "rank, or too ill-conditioned for normal equations; scale or drop columns, or use numpy.linalg.lstsq",
                condition=math.inf,
            ) from None
        stages.drop("gram")
        with stages.limited():
            condition = condition_estimate(factor)
        eps = float(np.finfo(dtype).eps)
        if not condition**2 * eps <= _LARGEST:
            raise IllConditionedError(
                f"lstsq: the condition number of a is about {condition:.1e}; normal equations in {dtype} take up to "
                f"{math.sqrt(_LARGEST / eps):.1e}. Scale its columns, convert it with .astype('float64'), or use "
                "numpy.linalg.lstsq",
                condition=condition,
            )
        return factor

    def refined(self, check_finite: bool) -> tuple[Matrix, Array]:
        """The solution and the sums of its squared residuals."""
        a, b, stages = self.a, self.b, self.stages
        if check_finite:
            for name, matrix in (("a", a), ("b", b)):
                with stages.limited():
                    if matrix.size and not math.isfinite(matrix.norm("max")):
                        raise NonFiniteError(f"lstsq: {name} holds NaN or infinity")
        if not a.shape[1]:
            return Matrix(np.zeros((0, b.shape[1]), b.dtype)), _squares(b)
        factor = self.factor()
        x = self.normal(factor, b)
        residual = self.residual(x)
        before = math.inf
        for _ in range(_ROUNDS):
            correction = self.normal(factor, residual, x)
            size = correction.norm()
            if not size < before / 2:
                break
            with stages.limited(x, correction, residual):
                x, before = x + correction, size
            del correction, residual
            residual = self.residual(x)
            if size <= float(np.finfo(a.dtype).eps) * x.norm():
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
