"""What the operators of `Matrix` do: element types by NumPy's rules, properties by `propagation`, and the route.

Small matrices in RAM go straight to NumPy; everything else is streamed (`pycauset.evaluate`) or multiplied by the solver.
"""

from __future__ import annotations

import math
import numbers
import os
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from pycauset import config, propagation
from pycauset.errors import ConfigError, DtypeError, MemoryLimitError, OverlapError, ShapeError
from pycauset.indexing import Selection, gather
from pycauset.properties import Properties
from pycauset.storage import ArrayStore, TileStore, as_store, element_type
from pycauset.tiling import Rect
from pycauset.units import format_bytes

if TYPE_CHECKING:
    from pycauset.matrix import Matrix

__all__ = [
    *("assigned", "binary", "copied", "copy_into", "count", "forget", "isclose", "loaded", "matmul", "norm", "part"),
    *("product_flags", "share_base", "store_of", "total", "trace", "unary"),
]

Array = np.ndarray[Any, Any]

_SMALL: Final = 1 << 16
_UNCHECKED: Final = 1 << 20  # bytes that to_numpy loads without looking at limits
_UFUNCS: Final[dict[str, np.ufunc]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "true_divide": np.true_divide,
    "negative": np.negative,
    "positive": np.positive,
    "absolute": np.absolute,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
}
_COMPARISONS: Final = {"equal": "==", "not_equal": "!=", "less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">="}
_SIGNS: Final = {"add": "+", "subtract": "-", "multiply": "*", "true_divide": "/", **_COMPARISONS}


def operand(obj: Any) -> Matrix | None:
    """A Matrix of anything that arithmetic takes; one dimension becomes a row, as NumPy broadcasts it. None: not ours."""
    from pycauset.matrix import Matrix, asmatrix

    if isinstance(obj, Matrix):
        return obj
    if isinstance(obj, (list, tuple)):
        obj = np.asarray(obj)
    if not (hasattr(obj, "shape") and hasattr(obj, "dtype") and hasattr(obj, "__getitem__")):
        return None
    matrix = asmatrix(obj)
    return matrix.T if len(obj.shape) == 1 else matrix


def as_scalar(obj: Any) -> Any:
    """A number (or array without dimensions) as a scalar; None if it is none."""
    if isinstance(obj, (numbers.Number, np.generic)):
        return obj
    return obj[()] if isinstance(obj, np.ndarray) and obj.ndim == 0 else None


def _result_type(name: str, *inputs: Any) -> np.dtype[Any]:
    """The element type that NumPy gives, found by asking it on single elements."""
    probes = [np.ones(1, x) if isinstance(x, np.dtype) else x for x in inputs]
    try:
        with np.errstate(all="ignore"):
            found: np.dtype[Any] = _UFUNCS[name](*probes).dtype
    except (TypeError, OverflowError) as error:
        what = " and ".join(str(x) for x in inputs)
        raise DtypeError(f"{name} of {what} is not possible: {error}; convert with .astype(...) first") from None
    return element_type(found, f"the result of {name}")


def binary(name: str, left: Any, right: Any, out: Any = None) -> Any:
    """``left <op> right``, element by element; at least one of them is a Matrix, the other may be a scalar or array."""
    from pycauset.evaluate import Term, evaluate
    from pycauset.matrix import Matrix

    for first, second, reflected in ((left, right, False), (right, left, True)):
        scalar = as_scalar(second)
        if scalar is not None and isinstance(first, Matrix):
            return _with_scalar(name, first, scalar, reflected, out)
    a, b = operand(left), operand(right)
    if a is None or b is None:
        return NotImplemented
    if name == "true_divide":
        raise DtypeError("a matrix divides by scalars only; multiply by the reciprocals, or use NumPy on slices")
    shape = _broadcast(name, a, b)
    dtype = _result_type(name, a.dtype, b.dtype)
    flags = _binary_flags(name, a, b, dtype)
    if out is None and a._array is not None and b._array is not None and shape[0] * shape[1] <= _SMALL:
        return Matrix._of_array(_UFUNCS[name](a._array, b._array), flags)
    target = _checked_out(name, out, shape, dtype, a, b)
    sums = {"add": (1, 1), "subtract": (1, -1)}
    kernel, params = ("axpby", sums[name]) if name in sums else ("binary", (name,))
    owner = f"{a.shape} {_SIGNS[name]} {b.shape}"
    terms = [Term(a.store, a.op), Term(b.store, b.op)]
    return _wrapped(evaluate(kernel, terms, params, shape, dtype, out=target, owner=owner), flags, out)


def _with_scalar(name: str, a: Matrix, scalar: Any, reflected: bool, out: Any) -> Any:
    from pycauset.evaluate import Term, evaluate
    from pycauset.matrix import Matrix

    inputs = (scalar, a.dtype) if reflected else (a.dtype, scalar)
    dtype = _result_type(name, *inputs)
    flags = _scalar_flags(name, a, scalar, reflected)
    if out is None and a._array is not None and a.size <= _SMALL:
        arguments = (scalar, a._array) if reflected else (a._array, scalar)
        return Matrix._of_array(_UFUNCS[name](*arguments), flags)
    target = _checked_out(name, out, a.shape, dtype, a)
    owner = f"{a.shape} {_SIGNS[name]} scalar"
    store = evaluate("scalar", [Term(a.store, a.op)], (name, scalar, reflected), a.shape, dtype, out=target, owner=owner)
    return _wrapped(store, flags, out)


def isclose(left: Any, right: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Any:
    """A boolean matrix: where ``|left - right| <= atol + rtol |right|``, as np.isclose has it."""
    from pycauset.evaluate import Term, evaluate
    from pycauset.matrix import Matrix

    a, b = (operand(obj if as_scalar(obj) is None else np.asarray(obj).reshape(1, 1)) for obj in (left, right))
    if a is None or b is None:
        raise DtypeError(f"isclose: {(right if b is None else left)!r} is no array; compare with a Matrix, an array or a number")
    shape, params = _broadcast("isclose", a, b), (float(rtol), float(atol), bool(equal_nan))
    terms = [Term(a.store, a.op), Term(b.store, b.op)]
    return Matrix._of_store(evaluate("isclose", terms, params, shape, np.dtype(np.bool_), owner="isclose"))


def unary(name: str, a: Matrix, out: Any = None) -> Any:
    """``negative``, ``positive`` or ``absolute``, element by element."""
    from pycauset.evaluate import Term, evaluate
    from pycauset.matrix import Matrix

    dtype = _result_type(name, a.dtype)
    flags = a._flags()
    if name != "positive":
        # |A| keeps what holds of the pattern and of symmetry, whatever the signs.
        kept = propagation.scale(flags, -1, unsigned=dtype.kind == "u")
        flags = kept if name == "negative" else propagation.multiply(kept, kept)
        if name == "absolute" and flags:
            flags &= ~(propagation.SEMIDEFINITE | propagation.DEFINITE)
    if out is None and a._array is not None and a.size <= _SMALL:
        return Matrix._of_array(_UFUNCS[name](a._array), flags)
    target = _checked_out(name, out, a.shape, dtype, a)
    return _wrapped(evaluate("unary", [Term(a.store, a.op)], (name,), a.shape, dtype, out=target, owner=name), flags, out)


def part(a: Matrix, name: str) -> Matrix:
    """The ``real`` or ``imag`` part, a copy."""
    from pycauset.evaluate import Term, evaluate
    from pycauset.matrix import Matrix

    dtype = np.empty(0, a.dtype).real.dtype
    flags = propagation.astype(a._flags(), a.dtype, dtype) if name == "real" else 0
    store = evaluate("unary", [Term(a.store, a.op)], (name,), a.shape, dtype, owner=f"{name} part")
    return Matrix._of_store(store, "N", flags)


def copied(store: TileStore, op: str, dtype: np.dtype[Any], flags: int, *, owner: str) -> Matrix:
    """``op(store)`` converted to ``dtype``, in a store of its own."""
    from pycauset.evaluate import Term, evaluate
    from pycauset.matrix import Matrix

    term = Term(store, op)
    return Matrix._of_store(evaluate("unary", [term], ("copy",), term.shape, dtype, owner=owner), "N", flags)


def copy_into(a: Matrix, out: TileStore, *, owner: str, progress: Any = None, **attributes: Any) -> None:
    """Copy a matrix into a store, converting as by ``astype``; ``attributes`` are committed with it."""
    from pycauset.evaluate import Term, evaluate

    terms = [Term(a.store, a.op)]
    evaluate("unary", terms, ("copy",), a.shape, out.dtype, out=out, owner=owner, progress=progress, attributes=attributes)


def _broadcast(name: str, a: Matrix, b: Matrix) -> tuple[int, int]:
    if a.shape == b.shape:
        return a.shape
    try:
        rows, cols = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ShapeError(
            f"{name}: shapes {a.shape} and {b.shape} do not fit; they must be equal, or 1 where they differ"
        ) from None
    return rows, cols


def _binary_flags(name: str, a: Matrix, b: Matrix, dtype: np.dtype[Any]) -> int:
    fa, fb = a._flags(), b._flags()
    if not (fa or fb) or a.shape != b.shape or name in _COMPARISONS:
        return 0
    if name == "subtract":
        return propagation.subtract(fa, fb, unsigned=dtype.kind == "u")
    flags: int = getattr(propagation, name)(fa, fb)
    # True + True is True in NumPy, so a sum of booleans is no sum.
    return flags & ~(propagation.SEMIDEFINITE | propagation.DEFINITE) if dtype.kind == "b" and name == "add" else flags


def _scalar_flags(name: str, a: Matrix, scalar: Any, reflected: bool) -> int:
    flags = a._flags()
    if not flags or (reflected and name == "true_divide") or name in _COMPARISONS:
        return 0
    if name == "multiply":
        return propagation.scale(flags, scalar)
    if name == "true_divide":
        return propagation.scale(flags, 1 / complex(scalar)) if scalar != 0 else 0
    if scalar == 0:
        return propagation.scale(flags, -1, unsigned=a.dtype.kind == "u") if reflected and name == "subtract" else flags
    return 0


def _checked_out(name: str, out: Any, shape: tuple[int, int], dtype: np.dtype[Any], *inputs: Matrix) -> TileStore | None:
    """The store of ``out=``, if it can take the result while the inputs are read."""
    if out is None:
        return None
    matrix = operand(out)
    if matrix is None or len(out.shape) != 2 or matrix.shape != shape:
        raise ShapeError(f"{name}: out has shape {getattr(out, 'shape', None)}, but the result has shape {shape}")
    if not np.can_cast(dtype, matrix.dtype, "same_kind"):
        raise DtypeError(f"{name}: the result is {dtype}, which out of {matrix.dtype} cannot hold")
    if matrix.op != "N" or matrix.store.structure != "full":
        raise ShapeError(f"{name}: out is {matrix!r}; give a full matrix as it is stored")
    for a in inputs:
        # In place is fine: each tile is read before it is written. Any other overlap is not.
        same = a.op == "N" and a.shape == shape and a.store.identity == matrix.store.identity
        if not same and matrix.store.overlaps(a.store):
            raise OverlapError(f"{name}: out shares storage with {a!r}, which is still to be read; give another out")
    return matrix.store


def _wrapped(store: TileStore, flags: int, out: Any) -> Any:
    from pycauset.matrix import Matrix

    if out is None:
        return Matrix._of_store(store, "N", flags)
    if isinstance(out, Matrix):
        out.properties = {}
    return out


# ---- reductions ------------------------------------------------------------------------------------------------------


def norm(a: Matrix, order: str | float | None) -> float:
    """Frobenius, 1, infinity or max norm."""
    from pycauset.evaluate import reduce

    if order is None or order == "fro":
        return _frobenius(reduce("square_sum", a.store, owner="norm"))
    if order == "max":
        return float(reduce("max_abs", a.store, owner="norm")[0, 0])
    if order in (1, -1, math.inf, -math.inf):
        axis = 0 if (abs(float(order)) == 1) == (a.op in "NC") else 1
        sums = reduce("sums", a.store, (axis, True), owner="norm").sum(axis=axis)
        return float(sums.max(initial=0.0) if float(order) > 0 else sums.min()) if sums.size else 0.0
    raise ConfigError(f"norm: ord is {order!r}; there are 'fro', ±1, 2, ±inf and 'max'; np.linalg.norm(A.to_numpy()) has more")


def _frobenius(partial: Array) -> float:
    """``sqrt(Σ scale² ssq)`` without overflow."""
    scales, squares = partial[:, 0], partial[:, 1]
    used = (squares != 0) & (scales != 0) | np.isnan(scales)
    largest = float(scales[used].max(initial=0.0))
    if largest == 0 or not math.isfinite(largest):
        return largest
    with np.errstate(under="ignore"):
        return largest * math.sqrt(float(np.sum((scales[used] / largest) ** 2 * squares[used])))


def _narrow(value: Any, a: Matrix) -> Any:
    """A sum in the type that NumPy gives it."""
    dtype = a.dtype if a.dtype.kind in "fc" else value.dtype
    with np.errstate(over="ignore"):
        value = np.asarray(value).astype(dtype, copy=False)
    if a.op in "HC":
        value = value.conj()
    return value[()] if value.ndim == 0 else value


def trace(a: Matrix) -> Any:
    """Sum of the main diagonal."""
    from pycauset.evaluate import reduce

    return _narrow(reduce("trace", a.store, owner="trace").sum(), a)


def total(a: Matrix, axis: Any, dtype: DTypeLike | None = None, keepdims: bool = False) -> Any:
    """Sum of all elements, or along an axis."""
    from pycauset.evaluate import reduce

    axis = _axis("sum", axis)
    along = 0 if axis is None else axis ^ (a.op in "TH")
    sums = reduce("sums", a.store, (along, False), owner="sum").sum(axis=None if axis is None else along)
    if dtype is None:
        result = _narrow(sums, a)
    else:
        new = element_type(dtype, "the sum")
        if not np.can_cast(a.dtype, new, "same_kind"):
            raise DtypeError(f"sum: elements of {a.dtype} cannot be summed as {new}; convert with .astype(...) first")
        with np.errstate(over="ignore"):
            result = np.asarray(sums.conj() if a.op in "HC" else sums).astype(new)[()]
    if not keepdims:
        return result
    return np.reshape(result, (1, 1)) if axis is None else np.expand_dims(result, axis)


def count(a: Matrix, axis: Any, keepdims: bool = False) -> tuple[Any, int]:
    """How many elements are not zero, in all or along an axis, and out of how many."""
    truth = a if a.dtype.kind == "b" else binary("not_equal", a, 0)
    axis = _axis("all and any", axis)
    return total(truth, axis, keepdims=keepdims), a.size if axis is None else a.shape[axis]


def _axis(name: str, axis: Any) -> int | None:
    """The axis to reduce, 0 or 1, or None for both."""
    if axis is None:
        return None
    chosen = axis if isinstance(axis, tuple) else (axis,)
    if not all(isinstance(i, (int, np.integer)) and type(i) is not bool and -2 <= i < 2 for i in chosen):
        raise ConfigError(f"{name}: axis is {axis!r}; a matrix has axes 0 and 1")
    if sorted(i % 2 for i in chosen) not in ([0], [1], [0, 1]):
        raise ConfigError(f"{name}: axis is {axis!r}; name one axis, or both of 0 and 1")
    return int(chosen[0]) % 2 if len(chosen) == 1 else None


# ---- products --------------------------------------------------------------------------------------------------------


def product_flags(a: Matrix, b: Matrix) -> int:
    """Properties of ``a @ b``."""
    related = _related(a, b)
    fa, fb = a._flags(), b._flags()
    if not (fa or fb or related):
        return 0
    (m, k), n = a.shape, b.shape[1]
    relation: Any = None
    if related:
        real = a.dtype.kind != "c"
        pair = (a.op in "TH", a.op in "HC"), ((b.op in "TH") != (related == "transposed"), b.op in "HC")
        if pair[0] == pair[1]:
            relation = "same"
        elif pair[0][0] != pair[1][0]:
            relation = "adjoint" if real or pair[0][1] != pair[1][1] else "transpose"
    return propagation.matmul(fa, fb, square=m == k == n, relation=relation)


def _related(a: Matrix, b: Matrix) -> str:
    """Whether the stores of two matrices hold the "same" elements, also "transposed" ones; empty if they do not."""
    if a._store is b._store and a._store is not None:
        return "same"
    x, y = a._array, b._array
    if x is not None and y is not None and x.size <= _SMALL and not share_base(x, y):
        return ""  # identities take longer than a small product
    one, other = a.store.identity, b.store.identity
    if one == other:
        return "same"
    if x is None or y is None or x.dtype != y.dtype or one[:2] != other[:2]:
        return ""
    u, v = (array.T if matrix.op == "T" else array for array, matrix in ((x, a), (y, b)))
    return "transposed" if u.shape == v.shape[::-1] and u.strides == v.strides[::-1] else ""


def share_base(x: Array, y: Array) -> bool:
    """Whether arrays are views of one array: quickly told, and nearly always right."""
    return x is y or x.base is y or y.base is x or (x.base is not None and x.base is y.base)


def matmul(a: Any, b: Any) -> Any:
    """``a @ b`` for the operators: NotImplemented for what is no array."""
    from pycauset.linalg.products import matmul as product

    for obj in (a, b):
        if as_scalar(obj) is not None:
            raise ShapeError(f"matmul: {obj!r} is a scalar; use * for scalars")
        if not (isinstance(obj, (list, tuple)) or (hasattr(obj, "shape") and hasattr(obj, "dtype"))):
            return NotImplemented
    return product(a, b)


# ---- elements and conversions ----------------------------------------------------------------------------------------


def loaded(a: Matrix, force: bool) -> Array:
    """All of a matrix that is not in RAM as it is, if the setting ``to_numpy_limit`` allows or ``force`` says so."""
    if a.nbytes >= _UNCHECKED and not force:
        limit = config.get("to_numpy_limit")
        if limit is None:
            from pycauset.hardware import probe

            limit = probe.memory_state().free // 2
        if a.nbytes > limit:
            raise MemoryLimitError(
                f"{a!r} has {format_bytes(a.nbytes)} ({a.nbytes} bytes), over the limit of {format_bytes(limit)} ({limit} bytes) "
                "for to_numpy(); work on slices, raise the setting to_numpy_limit, or call to_numpy(force=True)"
            )
    out = np.empty(a.shape, a.dtype)
    copy_into(a, ArrayStore(out), owner="to_numpy")
    return out


def forget(a: Matrix, chosen: Selection, *, zeros: bool) -> None:
    """After an assignment only what still holds is known, of all views of the store."""
    for reference in a._views or [weakref.ref(a)]:
        matrix = reference()
        flags = 0 if matrix is None else matrix._flags()
        if matrix is None or not flags:
            continue
        kept = 0
        if chosen.ranges and chosen.shape != a.shape:
            rows, cols = chosen.ranges
            if (matrix.op in "TH") != (a.op in "TH"):
                rows, cols = cols, rows
            kept = propagation.assign(flags, rows, cols, zeros=zeros)
        matrix.properties = Properties(matrix.shape, matrix.dtype, kept)


def store_of(obj: Any) -> TileStore:
    if isinstance(obj, (TileStore, np.ndarray)):
        return as_store(obj)
    if _is_matrix(obj):
        raise ConfigError("it is a Matrix already; use it, or its copy()")
    if isinstance(obj, (str, os.PathLike)):
        raise DtypeError(f"{obj!r} is a path, no array; open it with pycauset.open(path)")
    if hasattr(obj, "__cuda_array_interface__"):
        raise DtypeError(f"a {type(obj).__qualname__} lies in GPU memory; bring it to the host first, with cupy.asnumpy(array)")
    if type(obj).__module__.startswith("scipy.sparse"):
        raise DtypeError("a sparse matrix cannot be an operand; convert it with .toarray()")
    if isinstance(obj, (list, tuple)):
        try:
            return ArrayStore(np.asarray(obj))
        except ValueError as error:
            raise ShapeError(f"the nested list is no matrix: {error}") from None
    return as_store(obj)


def assigned(target: Matrix, chosen: Selection, value: Any) -> Any:
    """What ``target[chosen] = value`` writes, as a function of rectangles of the selection."""
    if _is_matrix(value):
        if value.shape != chosen.result_shape:
            raise ShapeError(f"a matrix of shape {value.shape} cannot be assigned to elements of shape {chosen.result_shape}")
        _check_real(target, value.dtype)
        if value.store.overlaps(target.store):
            raise OverlapError(f"{value!r} shares storage with the matrix that it is assigned to; assign value.copy()")

        def block(rect: Rect) -> Array:
            out = np.empty(rect.shape, value.dtype)
            gather(value.store, value.op, range(rect.r0, rect.r1), range(rect.c0, rect.c1), out)
            return out

        return block
    array = _as_array(value)
    _check_real(target, array.dtype)
    try:
        array = np.broadcast_to(array, chosen.result_shape)
    except ValueError:
        raise ShapeError(f"an array of shape {array.shape} cannot be assigned to shape {chosen.result_shape}") from None
    if target._array is not None and np.may_share_memory(array, target._array):
        array = array.copy()
    for axis, gone in enumerate(chosen.drop):
        if gone:
            array = np.expand_dims(array, axis)
    return lambda rect: array[rect.slices]


def _as_array(value: ArrayLike) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"the value is no array: {error}") from None
    element_type(array.dtype, "the value")
    return array


def _check_real(target: Matrix, dtype: np.dtype[Any]) -> None:
    if dtype.kind == "c" and target.dtype.kind != "c":
        raise DtypeError(f"{dtype} values cannot be assigned to a matrix of {target.dtype}; take .real first")


def _is_matrix(obj: Any) -> TypeGuard[Matrix]:
    from pycauset.matrix import Matrix

    return isinstance(obj, Matrix)
