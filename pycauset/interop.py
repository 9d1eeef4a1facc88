"""NumPy's protocols: what ``np.add(A, x)``, ``x @ A``, ``np.trace(A)`` and the like do when A is a Matrix."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pycauset import config, operations
from pycauset.errors import DtypeError, NotInMemoryError

if TYPE_CHECKING:
    from pycauset.matrix import Matrix

__all__ = ["array", "array_function", "array_ufunc", "in_memory", "linear_operator", "norm"]

_BINARY: Final = frozenset(
    {"add", "subtract", "multiply", "divide", "true_divide"}
    | {"equal", "not_equal", "less", "less_equal", "greater", "greater_equal"}
)
_UNARY: Final = frozenset({"negative", "positive", "absolute"})


def array(a: Matrix, dtype: DTypeLike | None, copy: bool | None) -> NDArray[Any]:
    """``__array__``: a matrix in RAM is shared, any other loaded, within the limit of ``to_numpy``."""
    fits = a._array is not None and (dtype is None or np.dtype(dtype) == a.dtype)
    if copy is False and not fits:
        raise NotInMemoryError(f"{a!r} cannot become an array of {dtype or a.dtype} without a copy; pass copy=None")
    loaded = a.to_numpy()
    if dtype is not None and loaded.dtype != np.dtype(dtype):
        return loaded.astype(dtype)
    return loaded.copy() if copy and fits else loaded


def in_memory(a: Matrix) -> NDArray[Any]:
    """The array that DLPack shares."""
    if a._array is None:
        raise NotInMemoryError(f"{a!r} is not in RAM as it is, so DLPack cannot share it; pass A.to_numpy()")
    return a._array


def array_ufunc(ufunc: np.ufunc, method: str, inputs: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """``__array_ufunc__``: arithmetic, comparisons, signs and conjugation; a typed error for every other function."""
    from pycauset.matrix import Matrix

    name = ufunc.__name__
    options = dict(options)
    (out,) = options.pop("out", (None,))
    if method != "__call__" or options:
        more = f".{method}" if method != "__call__" else f" with {', '.join(options)}"
        raise DtypeError(f"np.{name}{more} is not computed on a Matrix; use A.to_numpy(), or slices of A, with NumPy")
    if name == "matmul":
        from pycauset.linalg.products import matmul

        return matmul(inputs[0], inputs[1], out)
    if name in _BINARY:
        return operations.binary({"divide": "true_divide"}.get(name, name), inputs[0], inputs[1], out)
    matrix = inputs[0]
    if name in _UNARY and isinstance(matrix, Matrix):
        return operations.unary(name, matrix, out)
    if name == "conjugate" and isinstance(matrix, Matrix) and out is None:
        return matrix.conj()
    if not all(isinstance(x, (Matrix, np.ndarray)) or operations.as_scalar(x) is not None for x in inputs):
        return NotImplemented
    raise DtypeError(f"np.{name} is not computed on a Matrix; use A.to_numpy(), or slices of A, with NumPy")


def array_function(function: Any, args: Any, kwargs: Any) -> Any:
    """``__array_function__``: the functions of `_FUNCTIONS`; a typed error for every other."""
    ours = _FUNCTIONS.get(function)
    name = f"{function.__module__}.{function.__name__}".replace("numpy", "np")
    if ours is None:
        raise DtypeError(f"{name} is not computed on a Matrix; use A.to_numpy(), or slices of A, with NumPy")
    try:
        return ours(*args, **kwargs)
    except TypeError as error:
        if isinstance(error, DtypeError):
            raise
        raise DtypeError(
            f"{name} of a Matrix {_complaint(ours, args, kwargs, error)}; for more use A.to_numpy() with NumPy"
        ) from None


def _complaint(ours: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], error: TypeError) -> str:
    """What a call of one of ours stumbled over, in the caller's words: NumPy's parameters are more than ours."""
    parameters = inspect.signature(ours).parameters
    strange = [key for key in kwargs if key not in parameters]
    if strange:
        return f"takes no {' or '.join(strange)}, only {', '.join(parameters)}"
    try:
        inspect.signature(ours).bind(*args, **kwargs)
    except TypeError:
        return f"takes {', '.join(parameters)} alone, {len(args)} arguments were given"
    return f"is not possible: {error}"


def _dot(a: Any, b: Any, out: Any = None) -> Any:
    from pycauset.linalg.products import matmul

    if out is None and (operations.as_scalar(a) is not None or operations.as_scalar(b) is not None):
        return operations.binary("multiply", a, b)
    return matmul(a, b, out=out)


def _norm(x: Any, ord: Any = None) -> Any:
    return x.norm(ord)


def _sum(a: Any, axis: Any = None, dtype: DTypeLike | None = None, *, keepdims: bool = False) -> Any:
    return a.sum(axis, dtype, keepdims=keepdims)


def _allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    return bool(operations.isclose(a, b, rtol, atol, equal_nan).all())


def _array_equal(a1: Any, a2: Any, equal_nan: bool = False) -> bool:
    if np.shape(a1) != np.shape(a2):
        return False
    if equal_nan and any(a.dtype.kind in "fc" for a in (operations.operand(a1), operations.operand(a2)) if a is not None):
        return bool(operations.isclose(a1, a2, 0, 0, True).all())
    return bool(operations.binary("equal", a1, a2).all())


def _transpose(a: Any, axes: Any = None) -> Any:
    if axes is None or tuple(axes) in ((1, 0), (-1, -2), (1, -2), (-1, 0)):
        return a.T
    return a


def _linalg(name: str) -> Callable[..., Any]:
    """A function of `pycauset.linalg`, imported when it is first called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        from pycauset import linalg

        return getattr(linalg, name)(*args, **kwargs)

    return call


_FUNCTIONS: Final[dict[Any, Callable[..., Any]]] = {
    np.dot: _dot,
    np.trace: lambda a: a.trace(),
    np.linalg.trace: lambda x: x.trace(),
    np.sum: _sum,
    np.all: lambda a, axis=None, keepdims=False: a.all(axis, keepdims=keepdims),
    np.any: lambda a, axis=None, keepdims=False: a.any(axis, keepdims=keepdims),
    np.isclose: operations.isclose,
    np.allclose: _allclose,
    np.array_equal: _array_equal,
    np.linalg.norm: _norm,
    np.linalg.cholesky: lambda a, *, upper=False: _linalg("cholesky")(a, not upper),
    np.linalg.solve: lambda a, b: _linalg("solve")(a, b),
    np.linalg.inv: lambda a: _linalg("inv")(a),
    np.linalg.det: lambda a: _linalg("det")(a),
    np.linalg.slogdet: lambda a: _linalg("slogdet")(a),
    np.linalg.matmul: lambda x1, x2: _dot(x1, x2),
    np.linalg.matrix_norm: lambda x, ord="fro": x.norm(ord),
    np.transpose: _transpose,
    np.matrix_transpose: _transpose,
    np.linalg.matrix_transpose: _transpose,
    np.shape: lambda a: a.shape,
    np.ndim: lambda a: a.ndim,
    np.size: lambda a: a.size,
    np.copy: lambda a: a.copy(),
    np.real: lambda val: val.real,
    np.imag: lambda val: val.imag,
    np.iscomplexobj: lambda x: x.dtype.kind == "c",
    np.isrealobj: lambda x: x.dtype.kind != "c",
}


def linear_operator(matrix: Matrix) -> Any:
    """A matrix as a ``LinearOperator`` of SciPy's.

    Examples
    --------
    >>> from scipy.sparse.linalg import cg
    >>> from pycauset import asmatrix
    >>> x, info = cg(linear_operator(asmatrix([[4.0, 1.0], [1.0, 3.0]])), [1.0, 2.0])
    >>> x.round(6).tolist(), info
    ([0.090909, 0.636364], 0)
    """
    from scipy.sparse.linalg import LinearOperator

    def times(a: Matrix, x: Any) -> Any:
        return np.asarray(a @ np.ascontiguousarray(x))

    adjoint = matrix.H
    return LinearOperator(
        matrix.shape,
        matvec=lambda x: times(matrix, np.ravel(x)),
        rmatvec=lambda x: times(adjoint, np.ravel(x)),
        matmat=lambda x: times(matrix, x),
        rmatmat=lambda x: times(adjoint, x),
        dtype=matrix.dtype,
    )


def norm(matrix: Matrix, order: str | float | None, memory: Any = None, gpu_memory: Any = None) -> float:
    """A norm by one pass over the matrix, or the 2-norm by several, within the limits."""
    if order == 2:
        from pycauset.linalg.conditions import spectral_norm

        return spectral_norm(matrix, memory=memory, gpu_memory=gpu_memory)
    limits = {"memory": memory, "gpu_memory": gpu_memory}
    with config.settings(**{name: limit for name, limit in limits.items() if limit is not None}):
        return operations.norm(matrix, order)
