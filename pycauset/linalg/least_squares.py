"""Least squares for tall matrices of full rank: normal equations by Cholesky, refined until the correction stops shrinking."""

from __future__ import annotations

import functools
import math
import numbers
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from pycauset.errors import ConfigError, IllConditionedError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from pycauset.linalg.factorizations import cholesky
from pycauset.linalg.operands import Triangle, dimensions, in_memory, kernel_type, opened, right_hand_side, triangle_of
from pycauset.linalg.products import matmul
from pycauset.linalg.results import check_options, request_of
from pycauset.linalg.solving import cho_solve, solve_triangular
from pycauset.linalg.stages import Stages
from pycauset.linalg.substitution import substitute
from pycauset.matrix import Matrix, asmatrix
from pycauset.storage import ArrayStore, FunctionStore, open_store
from pycauset.storage.output import fsync_folder

__all__ = ["LstsqResult", "lstsq"]

Array = np.ndarray[Any, Any]

_DRIVERS: Final = ("gelsd", "gelsy", "gelss")
_ROUNDS: Final = 10
#: Normal equations square the condition number: what is left of the working precision must let the refinement converge.
_LARGEST: Final = 0.1
#: Gram matrices that are factored at most: each shift gains half of the working precision's digits, less a few.
_STEPS: Final = 4


class LstsqResult(NamedTuple):
    """A least-squares solution and, for each right-hand side, the sum of the squared residuals ``‖b - A x‖²``."""

    x: Any
    residual: Array


def lstsq(
    a: Any,
    b: Any,
    cond: float | None = None,
    overwrite_a: bool = False,
    overwrite_b: bool = False,
    check_finite: bool = True,
    lapack_driver: str | None = None,
    *,
    rcond: float | None = None,
    out: Any = None,
    resume: Any = True,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
) -> LstsqResult:
    """Least-squares solution of ``A X ≈ B`` for a tall matrix of full rank.

    ``AᴴA = L Lᴴ`` is formed and factored once; then ``x ← x + (L Lᴴ)⁻¹ Aᴴ (b - A x)``, in working precision, until corrections
    stop shrinking. Where A is too ill-conditioned for this (in double precision from about 1e7 on), ``A L⁻ᴴ`` takes its place,
    with the factor of a shifted ``AᴴA``: a matrix of A's size in RAM or scratch, and a few more passes.

    Parameters
    ----------
    a : Matrix or array_like (m, n), or path
        With ``m ≥ n`` and full rank; read a few times from one end to the other.
    b : Matrix or array_like (m, k) or (m,), or path
    cond, rcond : float, optional
        SciPy's and NumPy's name for one argument: A counts as without full rank, and is refused, if its smallest singular value
        is estimated at less than this fraction of the largest. Default: NumPy's, the machine epsilon times m.
    overwrite_a, overwrite_b : bool
        For SciPy's callers: the method has no use for the memory, both are left as they are.
    check_finite : bool
        Say where NaN or infinity was found. (They are never taken for numbers, asked or not.)
    lapack_driver : {"gelsd", "gelsy", "gelss"}, optional
        For SciPy's callers: whatever is named, the method is the one above.
    out : Matrix or ndarray (n, k), or path, optional
        Where the solution goes.
    resume, memory, gpu_memory, progress
        As in `pycauset.linalg.cholesky`. With a Zarr folder named by path ``AᴴA``, and then its factor, lie in ``NAME.stages``
        beside it until the solution is finished, so that the same call goes on after a kill: a product that was
        interrupted starts anew, as do the further steps for an ill-conditioned A; a factorisation goes on.

    Returns
    -------
    LstsqResult
        ``x``, a Matrix (n, k) or ndarray (n,), and ``residual``, an ndarray (k,) of float64 as NumPy gives it: the sum of squares
        for each column.

    Raises
    ------
    IllConditionedError
        With the estimated ``condition`` of A: in the 1-norm, of its triangular factor; ``1 / eps`` where all that is known is
        that it is no less; infinity if A is zero.
    ConfigError
        If ``cond`` is no number from 0 to 1, or differs from ``rcond``; if ``lapack_driver`` is no name that SciPy knows.
    ShapeError, DtypeError
        If A has more columns than rows, or B another number of rows.
    NonFiniteError, OverlapError, MemoryLimitError, JournalError, StoreError

    References
    ----------
    .. [1] Å. Björck, "Stability analysis of the method of seminormal equations for linear least squares problems", Linear Algebra
       Appl. 88/89 (1987).
    .. [2] T. Fukaya, R. Kannan, Y. Nakatsukasa, Y. Yamamoto and Y. Yanagisawa, "Shifted Cholesky QR for computing the QR
       factorization of ill-conditioned matrices", SIAM J. Sci. Comput. 42 (2020).
    .. [3] N. J. Higham, "FORTRAN codes for estimating the one-norm of a real or complex matrix", ACM TOMS 14 (1988).

    Examples
    --------
    >>> x, residual = lstsq([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]], [1.0, 3.0, 5.0])
    >>> x.round(12), bool(residual[0] < 1e-20)
    (array([1., 2.]), True)
    """
    check_options(progress, resume)
    cond = _threshold(cond, rcond)
    if lapack_driver not in (None, *_DRIVERS):
        raise ConfigError(f"lstsq: lapack_driver is {lapack_driver!r}; it must be None or one of {', '.join(_DRIVERS)}")
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
        if cond is None:
            cond = float(np.finfo(dtype).eps) * max(matrix.shape)
        x, residual = problem.refined(cond, check_finite)
        if out is None:
            return LstsqResult(x.to_numpy()[:, 0] if vector else x, residual)
        stages.put(x)
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


def _stage(name: str, step: int) -> str:
    return f"{name} {step}" if step else name


def _threshold(cond: Any, rcond: Any) -> float | None:
    """The one of two names for it that is given."""
    if cond is not None and rcond is not None and cond != rcond:
        raise ConfigError(f"lstsq: cond is {cond!r} and rcond is {rcond!r}; the two are one argument")
    given = rcond if cond is None else cond
    if given is None:
        return None
    if not (isinstance(given, numbers.Real) and 0 <= float(given) < 1):
        raise ConfigError(f"lstsq: cond is {given!r}; it must be a number of at least 0 and below 1")
    return float(given)


class _Problem:
    """``A X ≈ B``, converted to the type to compute in."""

    def __init__(self, a: Matrix, b: Matrix, dtype: np.dtype[Any], stages: Stages) -> None:
        self.stages = stages
        with stages.limited():
            self.a = a.astype(dtype)
        self.b = b
        self.q = self.a
        self.before: list[Matrix] = []
        self.last: Matrix
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

    def normal(self, residual: Matrix, *others: Matrix) -> Matrix:
        """``L_1⁻ᴴ ⋯ L_j⁻ᴴ (L Lᴴ)⁻¹ Qᴴ R``, while ``others`` lie in memory too."""
        with self.stages.limited(residual, *others):
            right = matmul(self.q.H, residual)
        with self.stages.limited(residual, right, *others):
            found: Matrix = cho_solve(self.last, right, check_finite=False)
            for factor in reversed(self.before):
                found = solve_triangular(factor, found, "C", True, check_finite=False)
        return found

    def gram(self, place: Path | None) -> Matrix:
        """``QᴴQ``; at a path it is durable before it has its name, for products have no journal."""
        limits = self.stages.limits
        if place is None:
            return matmul(self.q.H, self.q, **limits)  # type: ignore[no-any-return]
        begun = place.with_name("begun.zarr")
        shutil.rmtree(begun, ignore_errors=True)
        matmul(self.q.H, self.q, out=begun, **limits)
        for folder, _, names in os.walk(begun):
            for path in (*(os.path.join(folder, name) for name in names), folder):
                fsync_folder(path)  # which does the same for files
        os.rename(begun, place)
        fsync_folder(os.fspath(place.parent))
        return Matrix(open_store(place))

    def factor(self, cond: float) -> None:
        """Find ``A = Q L_jᴴ ⋯ L_1ᴴ`` with a Q so well-conditioned that ``QᴴQ = L Lᴴ`` is accurate; at first Q = A.

        Where it is not, ``L_i L_iᴴ = QᴴQ + s I`` with a shift s near the rounding error of ``QᴴQ``, and ``Q L_i⁻ᴴ`` takes the
        place of Q: its small singular values have grown by ``1/√s``.

        Raises
        ------
        IllConditionedError
            If the condition number of A is over ``1 / cond``, or Q remains ill-conditioned.
        """
        stages, eps = self.stages, float(np.finfo(self.a.dtype).eps)
        for step in range(_STEPS):
            gram, factor = self._factored(step)
            if factor is None:
                assert gram is not None
                with stages.limited():
                    if not gram.norm("max"):
                        raise IllConditionedError("lstsq: a is zero; it must have full rank", condition=math.inf)
                factor = self._shifted(gram)
            else:
                with stages.limited():
                    condition = condition_estimate(factor)
                    if condition**2 * eps <= _LARGEST:
                        self.last = factor
                        return self._check(condition_estimate(*self.before, factor) if step else condition, cond)
            del gram
            stages.drop(_stage("gram", step))
            if step < _STEPS - 1:
                self._precondition(factor)
        raise IllConditionedError(
            f"lstsq: a is without full rank in {self.a.dtype}: its condition number is at least {1 / eps:.1e}; drop columns that "
            "depend on others, or use numpy.linalg.lstsq for the solution of least norm",
            condition=1 / eps,
        )

    def _check(self, condition: float, cond: float) -> None:
        if not condition * cond <= 1:
            raise IllConditionedError(
                f"lstsq: the condition number of a is about {condition:.1e}, and cond={cond:.1e} takes it for one without full "
                f"rank from {1 / cond:.1e} on. Scale its columns, convert it with .astype('float64'), or use numpy.linalg.lstsq",
                condition=condition,
            )

    def _factored(self, step: int) -> tuple[Matrix | None, Matrix | None]:
        """``QᴴQ``, if it was needed, and L, if there is one; those of A itself outlive a kill."""
        gram: Matrix | None = None

        def compute(place: Path | None) -> Matrix:
            nonlocal gram
            gram = self.stages.make(_stage("gram", step), lambda place: self.gram(None if step else place))
            return cholesky(gram, check_finite=False, out=None if step else place, **self.stages.limits)

        try:
            factor = self.stages.make(_stage("factor", step), compute)
        except NotPositiveDefiniteError as error:
            if math.isnan(error.value):
                raise NonFiniteError("lstsq: AᴴA overflows, or a holds NaN or infinity; scale a") from None
            return gram, None
        return gram, factor

    def _shifted(self, gram: Matrix) -> Matrix:
        """L of ``QᴴQ + s I``, for the least of a few shifts that leaves it positive definite."""
        n = gram.shape[0]
        with self.stages.limited():
            shift = 10 * float(np.finfo(gram.dtype).eps) * gram.norm()

        def element(rows: Array, cols: Array) -> Array:
            part = np.array(gram[int(rows[0]) : int(rows[-1]) + 1, int(cols[0]) : int(cols[-1]) + 1])
            part = part.reshape(len(rows), len(cols))
            part[rows[:, None] == cols[None, :]] += shift
            return part

        while True:
            try:
                factor = cholesky(Matrix(FunctionStore(element, (n, n), gram.dtype)), check_finite=False, **self.stages.limits)
            except NotPositiveDefiniteError as error:
                if math.isnan(error.value):
                    raise
                shift *= 100
            else:
                self.stages.hold(factor)
                return factor

    def _precondition(self, factor: Matrix) -> None:
        """``Q L⁻ᴴ`` in the place of Q."""
        turned = solve_triangular(factor, self.q.H, lower=True, check_finite=False, **self.stages.limits)
        self.stages.hold(turned)
        self.before.append(factor)
        self.q = turned.H

    def refined(self, cond: float, check_finite: bool) -> tuple[Matrix, Array]:
        """The solution and the sums of its squared residuals."""
        a, b, stages = self.a, self.b, self.stages
        if check_finite:
            for name, matrix in (("a", a), ("b", b)):
                with stages.limited():
                    if matrix.size and not math.isfinite(matrix.norm("max")):
                        raise NonFiniteError(f"lstsq: {name} holds NaN or infinity")
        if not a.shape[1]:
            return Matrix(np.zeros((0, b.shape[1]), b.dtype)), _squares(b)
        self.factor(cond)
        x = self.normal(b)
        residual = self.residual(x)
        before = math.inf
        for _ in range(_ROUNDS):
            correction = self.normal(residual, x)
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


def condition_estimate(*factors: Matrix) -> float:
    """Condition number in the 1-norm of a product of triangular matrices, from a few solves with one right-hand side.

    Hager's and Higham's estimate of ``‖L⁻¹‖₁``, and of ``‖L‖₁`` where there are several factors: a lower bound that is seldom
    off by more than a factor of three.
    """
    n, dtype = factors[0].shape[0], factors[0].dtype
    forward, adjoint = ([triangle_of("lstsq", factor, lower=None, trans=trans) for factor in factors] for trans in "NC")

    def inverse(x: Array) -> Array:
        return functools.reduce(lambda x, triangle: _solved(triangle, x), forward, x)

    def adjoint_inverse(x: Array) -> Array:
        return functools.reduce(lambda x, triangle: _solved(triangle, x), reversed(adjoint), x)

    def product(x: Array) -> Array:
        return functools.reduce(lambda x, factor: matmul(factor, x).to_numpy(), reversed(factors), x)

    def adjoint_product(x: Array) -> Array:
        return functools.reduce(lambda x, factor: matmul(factor.H, x).to_numpy(), factors, x)

    size = factors[0].norm(1) if len(factors) == 1 else _one_norm(product, adjoint_product, n, dtype)
    return size * _one_norm(inverse, adjoint_inverse, n, dtype)


def _one_norm(apply: Callable[[Array], Array], adjoint: Callable[[Array], Array], n: int, dtype: np.dtype[Any]) -> float:
    largest = 0.0
    x = np.full((n, 1), 1 / n, dtype)
    for step in range(5):
        y = apply(x)
        largest = max(largest, float(np.abs(y).sum()))
        sizes = np.abs(y)
        signs = np.where(sizes == 0, 1, y / np.where(sizes == 0, 1, sizes)).astype(dtype)
        z = adjoint(signs)
        j = int(np.abs(z).argmax())
        if step and np.abs(z[j, 0]) <= float(np.real(np.vdot(z, x))):
            break
        x = np.zeros((n, 1), dtype)
        x[j] = 1
    alternating = ((-1.0) ** np.arange(n) * (1 + np.arange(n) / max(1, n - 1)))[:, None].astype(dtype)
    return max(largest, 2 * float(np.abs(apply(alternating)).sum()) / (3 * n))


def _solved(triangle: Triangle, b: Array) -> Array:
    x = np.empty_like(b)
    substitute("lstsq", triangle, ArrayStore(b), ArrayStore(x), b.dtype)
    return x
