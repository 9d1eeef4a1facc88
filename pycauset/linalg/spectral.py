"""Spectral transformations: a second matrix M, shifts and SciPy's modes, by Cholesky factors (sparse matrices: by SuperLU).

With ``M = K Kᴴ``, ``A x = λ M x`` is ``C y = λ y`` for ``C = K⁻¹ A K⁻ᴴ`` and ``y = Kᴴ x``. With a shift σ the iteration is on

* normal:   ``Kᴴ (A - σ M)⁻¹ K``, with eigenvalues ``ν = 1 / (λ - σ)``,
* cayley:   ``1 + 2 σ Kᴴ (A - σ M)⁻¹ K``, with ``ν = (λ + σ) / (λ - σ)``,
* buckling: ``Kᴴ (A - σ M)⁻¹ K`` where ``A = K Kᴴ``, with ``ν = λ / (λ - σ)``,
* general:  ``(A - σ M)⁻¹ M``, with ``ν = 1 / (λ - σ)``; M need not be definite.

References
----------
.. [1] R. G. Grimes, J. G. Lewis and H. D. Simon, "A shifted block Lanczos algorithm for solving sparse symmetric generalized
   eigenproblems", SIAM J. Matrix Anal. Appl. 15 (1994).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final

import numpy as np

from pycauset.errors import ConfigError, MemoryLimitError, NonFiniteError, NotPositiveDefiniteError
from pycauset.governor import Scope
from pycauset.linalg.factorizations import cholesky
from pycauset.linalg.krylov import image_of, residuals_of
from pycauset.linalg.operands import kernel_type
from pycauset.linalg.operators import Called, Operator, operator
from pycauset.linalg.products import matmul
from pycauset.linalg.solving import cho_solve, solve_triangular
from pycauset.linalg.stages import limited
from pycauset.matrix import Matrix
from pycauset.properties import Properties
from pycauset.solver.products import Product
from pycauset.solver.run import Limits, named_limit, operation_limits

__all__ = ["Pencil", "Transformed", "factored", "pencil"]

Array = np.ndarray[Any, Any]

_MODES: Final = ("normal", "buckling", "cayley")


@dataclass(frozen=True, slots=True)
class Pencil:
    """``A x = λ M x`` near a shift, as the caller gave it, checked.

    Attributes
    ----------
    a : Operator
        Of the element type to compute in.
    m : Operator or None
    sigma : float, complex or None
    mode : {"normal", "buckling", "cayley"}
    minv, opinv : object or None
        The caller's own ``M⁻¹`` and ``(A - σ M)⁻¹``: whatever multiplies by ``@``.
    hermitian : bool
    """

    a: Operator
    m: Operator | None
    sigma: Any
    mode: str
    minv: Any
    opinv: Any
    hermitian: bool

    def shifted(self, values: Array) -> Array:
        """The eigenvalues ν of the transformed problem that belong to eigenvalues λ."""
        if self.sigma is None:
            return values
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = 1 / (values - self.sigma)
            return np.asarray({"normal": 1, "cayley": values + self.sigma, "buckling": values}[self.mode] * inverse)

    def values(self, shifted: Array) -> Array:
        """The eigenvalues λ that belong to eigenvalues ν of the transformed problem."""
        if self.sigma is None:
            return shifted
        with np.errstate(divide="ignore", invalid="ignore"):  # an infinite λ, where M is singular
            if self.mode == "normal":
                return np.asarray(self.sigma + 1 / shifted)
            return np.asarray(self.sigma * ((shifted + 1) if self.mode == "cayley" else shifted) / (shifted - 1))


def pencil(
    a: Operator, m: Any, sigma: Any, *, mode: str = "normal", minv: Any = None, opinv: Any = None, hermitian: bool
) -> Pencil | None:
    """Check M, sigma and what comes with them; None for a problem that needs no transformation.

    Raises
    ------
    ConfigError
        For what does not go together.
    """
    name = a.name

    def refuse(text: str) -> ConfigError:
        return ConfigError(f"{name}: {text}")

    if mode not in _MODES:
        raise refuse(f"mode is {mode!r}; it must be one of {', '.join(map(repr, _MODES))}")
    second = None if m is None else operator(name, m, square=False)
    if second is not None and second.shape != a.shape:
        raise refuse(f"M has shape {second.shape}; it must be {a.shape}, as A is")
    if sigma is None:
        if mode != "normal":
            raise refuse(f"mode={mode!r} is a way to use a shift; give sigma")
        if opinv is not None:
            raise refuse("OPinv is (A - sigma M)⁻¹; give sigma, the shift that it belongs to")
        if minv is not None and (hermitian or second is None):
            raise refuse("Minv goes with a general problem and its M" + ("; here M is factored, leave Minv out" * hermitian))
        if second is None:
            return None
    else:
        sigma = _shift(name, sigma, hermitian)
        if minv is not None:
            raise refuse("with sigma, M is not inverted; leave Minv out")
        if mode != "normal" and sigma == 0:
            raise refuse(f"mode={mode!r} needs a sigma other than 0")
    types = [a.dtype, *([] if second is None else [second.dtype])]
    if isinstance(sigma, complex):
        types.append(np.dtype("complex64"))
    return Pencil(replace(a, dtype=kernel_type(name, *types)), second, sigma, mode, minv, opinv, hermitian)


def _shift(name: str, sigma: Any, hermitian: bool) -> float | complex:
    try:
        shift = complex(sigma)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: sigma is {sigma!r}; it must be a number") from None
    if not np.isfinite(shift):
        raise ConfigError(f"{name}: sigma is {sigma!r}; it must be finite")
    if hermitian and np.iscomplexobj(sigma):
        raise ConfigError(f"{name}: sigma is {sigma!r}; the eigenvalues of a Hermitian matrix are real, so must be the shift")
    return shift if shift.imag else shift.real


class _Around(Called):
    """A product with another one inside, which closes with it."""

    def __init__(self, of: Operator, inner: Product, call: Callable[[Array], Array]) -> None:
        super().__init__(of, call, of.dtype)
        self._inner = inner

    def report_to(self, told: Callable[[float], object] | None) -> None:
        self._inner.report_to(told)

    def close(self) -> None:
        self._inner.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._inner.__exit__(kind, error, trace)


class Transformed:
    """The problem that is iterated on: its product, and the way back to pairs of the original.

    Factors are made at once, and live as long as this does.

    Parameters
    ----------
    pencil : Pencil
    scope : Scope
    stack : ExitStack
        Holds tickets until the caller has done.
    memory, gpu_memory : int, str or None
        The operation's limits.
    progress : bool or None
        Of the factorisations.

    Raises
    ------
    ConfigError
        If something must be factored that cannot be yet, or has no elements.
    NotPositiveDefiniteError, NonFiniteError
        Of the matrix whose factor is needed: M, or A with ``mode="buckling"``.
    """

    def __init__(self, pencil: Pencil, scope: Scope, stack: ExitStack, memory: Any, gpu_memory: Any, progress: Any) -> None:
        self.pencil = p = pencil
        self._scope, self._stack = scope, stack
        if p.sigma is not None and p.a.linear is not None and not p.a.sparse:  # only the last pass multiplies: fail now, not then
            np.asarray(p.a.linear @ np.zeros((p.a.shape[1], 1), p.a.dtype))
        stack.callback(self._forget)
        self._memory = named_limit(memory, "memory")
        self._limits: dict[str, Any] = {"memory": self._memory, "gpu_memory": gpu_memory}
        self._progress = progress
        self._left: Limits
        self._factor: Matrix | None = None
        inner, what = (p.a, "A") if p.mode == "buckling" else (p.m, "M")
        if inner is not None and (p.hermitian or (p.sigma is None and p.minv is None)):
            self._factor = factored(inner, what, stack, scope, progress=progress, **self._limits)
        self._solve: Callable[[Array], Array] | None = None if p.sigma is None else self._inverse()

    def open(self, width: int, left: Limits, columns: int) -> Product:
        """The product, for blocks of up to ``width`` vectors, within the limits left.

        Parameters
        ----------
        columns : int
            Columns that the last pass, `residuals`, will multiply: of complex pairs of real matrices, two for each.

        Raises
        ------
        MemoryLimitError
            Also if it is the last pass that has no room: now, and not when all has converged.
        """
        with ExitStack() as stack:
            product = stack.enter_context(self._open(width, left))
            for of in (self.pencil.a, self.pencil.m):
                if of is not None:
                    with self._last(of, columns):
                        pass
            stack.pop_all()
        return product

    def _open(self, width: int, left: Limits) -> Product:
        p, solve = self.pencil, self._solve
        if self._memory is not None:  # half of the rest for solves, half for products
            self._limits["memory"] = max(1, (left.host + left.reserve) // 2)
        # The last pass comes after all solves: it gets what no open product has.
        multiplies = solve is None or (not p.hermitian and p.m is not None)
        self._left = left.less((left.host - left.host // 2) * multiplies)
        left = left.less(left.host // 2)

        def multiply(by: Operator) -> Product:
            mirror = by.mirror(p.hermitian)
            return by.product(width, left, self._scope, by.device(left, mirror), mirror=mirror)

        if solve is None:
            a = multiply(p.a)
            if p.minv is not None:
                return _Around(p.a, a, lambda x: np.asarray(p.minv @ a(x)))
            return _Around(p.a, a, lambda y: self._up(a(self._up(y, "C")), "N"))
        if not p.hermitian and p.m is not None:
            m = multiply(replace(p.m, dtype=p.a.dtype))
            return _Around(p.a, m, lambda x: solve(m(x)))
        if not p.hermitian:
            return Called(p.a, solve, p.a.dtype)
        if p.mode == "cayley":
            return Called(p.a, lambda y: y + 2 * p.sigma * self.down(solve(self._times(y))), p.a.dtype)
        return Called(p.a, lambda y: self.down(solve(self._times(y))), p.a.dtype)

    def back(self, vectors: Array) -> Array:
        """Eigenvectors of the original problem."""
        return self._up(vectors, "C")

    def residuals(self, values: Array, vectors: Array) -> tuple[Array, Array]:
        """``‖A x - λ M x‖`` of each pair for ``‖x‖ = 1``, by a pass over A and one over M, and ``‖A‖ + |λ| ‖M‖``.

        Of an infinite eigenvalue, ``‖M x‖`` and ``‖M‖``. The norms are estimates from below, by x and by a random vector.
        """
        p = self.pencil
        n, count = vectors.shape
        x = np.empty((n, count + 1), vectors.dtype)
        x[:, :count], x[:, count] = vectors, np.random.default_rng(0).standard_normal(n)
        lengths = _lengths(x)
        columns = x.shape[1] * (2 if x.dtype.kind == "c" and p.a.dtype.kind != "c" else 1)

        def image(of: Operator) -> tuple[Array, float]:
            with self._last(of, columns) as product:
                y = image_of(product, x, p.a.dtype)
                return y[:, :count].copy(), float((_lengths(y) / lengths).max())

        left, norm = image(p.a)
        right, second = (vectors, 1.0) if p.m is None else image(p.m)
        finite = np.isfinite(values)
        scale = np.where(finite, norm + np.abs(np.where(finite, values, 0)) * second, second)
        return residuals_of(left, right, values) / lengths[:count], scale

    @contextmanager
    def _last(self, of: Operator, columns: int) -> Iterator[Product]:
        """A product for the last pass, with the memory that the vectors need beyond what the blocks of the iteration have."""
        p = self.pencil
        of = replace(of, dtype=p.a.dtype)
        mirror = of.mirror(p.hermitian)
        # At once: eigenvectors, the block with the probe, its real and imaginary parts or the image that replaces them, the
        # image by A, and a copy of the one by M. The blocks of the iteration are four times the columns without the probe's.
        nbytes = 2 * of.shape[0] * (columns + 4) * of.dtype.itemsize
        with self._scope.require("host", nbytes, owner=f"{of.name}: {columns} vectors of {of.shape[0]} for the last pass"):
            # Without a limit of the operation's own, memory may have gone to factors, or to others.
            now = operation_limits(self._memory, self._limits["gpu_memory"])
            left = self._left.less(nbytes)
            left = replace(left, host=min(left.host, now.host), device=min(left.device, now.device))
            with of.product(columns, left, self._scope, of.device(left, mirror), mirror=mirror) as product:
                yield product

    def _forget(self) -> None:
        """Let the factors go with their last product: functions that know them know this object, too."""
        self._factor = self._solve = None

    # -- with the factor K --------------------------------------------------------------------------------------------

    def down(self, x: Array) -> Array:
        """``Kᴴ x``."""
        return x if self._factor is None else self._product(self._factor.H, x)

    def _times(self, x: Array) -> Array:
        return x if self._factor is None else self._product(self._factor, x)

    def _product(self, k: Matrix, x: Array) -> Array:
        return _plain(matmul(k, np.ascontiguousarray(x), progress=False, **self._limits))

    def _up(self, x: Array, trans: str) -> Array:
        """``K⁻¹ x`` or ``K⁻ᴴ x``."""
        if self._factor is None:
            return x
        x, options = np.ascontiguousarray(x), {"lower": True, "check_finite": False, "progress": False}
        try:
            return _plain(solve_triangular(self._factor, x, trans, **options, **self._limits))
        except MemoryLimitError:  # all eigenvectors at once may be more than the blocks of the iteration were
            half = x.shape[1] // 2
            if half == 0:
                raise
        return np.hstack([self._up(x[:, :half], trans), self._up(x[:, half:], trans)])

    # -- with A - sigma M ---------------------------------------------------------------------------------------------

    def _inverse(self) -> Callable[[Array], Array]:
        p = self.pencil
        if p.opinv is not None:
            return lambda x: np.asarray(p.opinv @ x)
        if p.a.sparse and (p.m is None or p.m.sparse or p.m.matrix is not None):
            return _sparse_inverse(p, self._scope, self._stack)
        matrix = p.a.elements("A", self._scope, self._stack)
        if not p.hermitian and (isinstance(p.sigma, complex) or p.a.mirror(False) not in ("symmetric", "hermitian")):
            raise ConfigError(
                f"{p.a.name}: sigma needs an LU factorisation of A - sigma M, which comes with a later version; give OPinv, "
                "a sparse matrix, or to eigsh a Hermitian one; scipy.sparse.linalg.eigs takes what fits in memory"
            )
        from pycauset.creation import eye

        second = eye(p.a.shape[0], dtype=matrix.dtype) if p.m is None else p.m.elements("M", self._scope, self._stack)
        # Whatever is claimed of A need not hold of the difference.
        with limited(self._limits["memory"]):
            shifted = matrix - p.sigma * second if p.sigma else Matrix._of_store(matrix.store, matrix.op)
        shifted.properties = Properties(shifted.shape, shifted.dtype, 0)
        return self._definite(shifted)

    def _definite(self, shifted: Matrix) -> Callable[[Array], Array]:
        """Solves by a Cholesky factor of ``A - sigma M``, or of its negative."""
        p = self.pencil
        sign, first = 1.0, None
        try:
            try:
                factor = cholesky(shifted, progress=self._progress, **self._limits)
            except NotPositiveDefiniteError as error:
                sign, first = -1.0, error.with_traceback(None)  # which would keep this frame until the collector comes
                with limited(self._limits["memory"]):
                    negative = -shifted
                factor = cholesky(negative, progress=self._progress, **self._limits)
        except (NonFiniteError, NotPositiveDefiniteError) as error:
            p.a.look("A")
            if p.m is not None:
                p.m.look("M")
            if isinstance(error, NonFiniteError):
                raise
            raise ConfigError(
                f"{p.a.name}: A - sigma M is indefinite or singular for sigma={p.sigma}; only definite matrices can be factored: "
                "choose sigma below or above all eigenvalues, give OPinv, or use scipy.sparse.linalg.eigsh on a matrix that fits "
                "in memory"
            ) from first or error

        def solve(x: Array) -> Array:
            x = np.ascontiguousarray(x)
            return sign * _plain(cho_solve((factor, True), x, check_finite=False, progress=False, **self._limits))

        return solve


def factored(of: Operator, what: str, stack: ExitStack, scope: Scope, **limits: Any) -> Matrix:
    """The Cholesky factor of a matrix that must have one.

    Raises
    ------
    NotPositiveDefiniteError, NonFiniteError, ConfigError
    """
    try:
        return cholesky(of.elements(what, scope, stack), **limits)
    except (NonFiniteError, NotPositiveDefiniteError) as error:
        of.look(what)
        if isinstance(error, NonFiniteError):
            raise
        text = f"{of.name}: {what} must be positive definite: {error}"
        raise NotPositiveDefiniteError(text, pivot=error.pivot, value=error.value) from None


def _sparse_inverse(p: Pencil, scope: Scope, stack: ExitStack) -> Callable[[Array], Array]:
    """By SuperLU. How far its factors fill in is known when they are there; only then can they have a ticket."""
    import scipy.sparse
    from scipy.sparse.linalg import splu

    p.a.look("A")
    n, owner = p.a.shape[0], f"{p.a.name}: A - sigma M as a sparse matrix"
    size = p.a.dtype.itemsize + np.dtype(np.int64).itemsize
    entries = p.a.linear.nnz + (n if p.m is None else p.m.linear.nnz if p.m.sparse else 2 * n * n)
    with scope.require("host", 3 * entries * size, owner=owner):
        a = scipy.sparse.csc_matrix(p.a.linear, dtype=p.a.dtype)
        if p.m is None:
            second = scipy.sparse.identity(n, a.dtype, format="csc")
        else:
            p.m.look("M")
            second = scipy.sparse.csc_matrix(p.m.linear if p.m.sparse else p.m.dense(), dtype=a.dtype)
        a = scipy.sparse.csc_matrix(a - p.sigma * second, dtype=a.dtype)
        try:
            factor = splu(a)
        except RuntimeError as error:
            raise ConfigError(
                f"{p.a.name}: A - sigma M is singular for sigma={p.sigma} ({error}): it is an eigenvalue; move sigma a little"
            ) from error
    stack.enter_context(scope.require("host", factor.nnz * size, owner=f"{owner}, its factors by SuperLU"))
    return lambda x: np.asarray(factor.solve(np.ascontiguousarray(x)))


def _lengths(x: Array) -> Array:
    """Lengths of the columns of ``x``."""
    return residuals_of(x, x, np.zeros(x.shape[1]))


def _plain(x: Any) -> Array:
    return x.to_numpy() if isinstance(x, Matrix) else np.asarray(x)
