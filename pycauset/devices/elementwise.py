"""Elementwise kernels and reductions of the CPU device: NumPy, in bands of rows that stay in cache.

Every operand comes with a letter that says how it is taken: ``N`` as it lies, ``T`` transposed, ``H`` conjugate
transposed, ``C`` conjugated. A kernel allocates at most a few bands (`BAND_BYTES` each) beside its tiles. Overflow and
invalid operations give infinities and NaN, silently, as in BLAS.

Reductions add to *partial results*, tiles of a small store that starts at zero; all sums are kept in float64 or
complex128 whatever the element type, exactly in int64 for integers and booleans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

__all__ = ["BAND_BYTES", "ELEMENTWISE_KERNELS", "taken"]

Array = np.ndarray[Any, Any]

#: Size of one temporary; kernels hold up to four at once.
BAND_BYTES: Final = 256 << 10

_SAFE_LOW, _SAFE_HIGH = 1e-280, 1e300
_UFUNCS: Final[dict[str, Callable[..., Any]]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "true_divide": np.true_divide,
    "positive": np.positive,
    "negative": np.negative,
    "conjugate": np.conjugate,
    "absolute": np.absolute,
    **{f.__name__: f for f in (np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal)},
}


def taken(array: Array, op: str) -> Array:
    """``op(array)``: a view, except for complex conjugation.

    Examples
    --------
    >>> taken(np.array([[1, 2j]]), "H")
    array([[1.-0.j],
           [0.-2.j]])
    """
    if op in "TH":
        array = array.T
    return array.conj() if op in "HC" and array.dtype.kind == "c" else array


def _bands(out: Array) -> Iterator[slice]:
    """Rows of ``out`` in bands of about `BAND_BYTES` (16-byte elements, so that complex temporaries fit)."""
    step = max(1, BAND_BYTES // (16 * max(1, out.shape[1])))
    for start in range(0, out.shape[0], step):
        yield slice(start, start + step)


def _band(array: Array, op: str, rows: slice) -> Array:
    """A band of ``op(array)``, which may have one row that is repeated."""
    if op in "TH":
        array = array.T
    band = array[rows] if array.shape[0] != 1 else array
    return band.conj() if op in "HC" and band.dtype.kind == "c" else band


def _quiet(kernel: Callable[..., None]) -> Callable[..., None]:
    def silent(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...], lane: Any) -> None:
        with np.errstate(all="ignore"):
            kernel(reads, writes, params)

    silent.__doc__ = kernel.__doc__
    return silent


# ---- maps ------------------------------------------------------------------------------------------------------------


@_quiet
def _axpby(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...]) -> None:
    """``C = alpha op(A) + beta op(B)``; params (alpha, beta, op_a, op_b)."""
    alpha, beta, op_a, op_b = params
    a, b, c = reads[0], reads[1], writes[0]
    for rows in _bands(c):
        x, y = _band(a, op_a, rows), _band(b, op_b, rows)
        if alpha == 1 and beta == 1:
            np.add(x, y, out=c[rows], casting="same_kind")
        elif alpha == 1 and beta == -1:
            np.subtract(x, y, out=c[rows], casting="same_kind")
        else:
            y = np.multiply(y, beta, dtype=c.dtype, casting="same_kind")
            np.multiply(x, alpha, out=c[rows], casting="same_kind")
            c[rows] += y


@_quiet
def _binary(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...]) -> None:
    """``C = f(op(A), op(B))``; params (f, op_a, op_b), f a product or a comparison."""
    name, op_a, op_b = params
    c = writes[0]
    for rows in _bands(c):
        _UFUNCS[name](_band(reads[0], op_a, rows), _band(reads[1], op_b, rows), out=c[rows], casting="same_kind")


@_quiet
def _isclose(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...]) -> None:
    """``|op(A) - op(B)| <= atol + rtol |op(B)|`` as np.isclose has it; params (rtol, atol, equal_nan, op_a, op_b)."""
    *tolerances, op_a, op_b = params
    for rows in _bands(writes[0]):
        writes[0][rows] = np.isclose(_band(reads[0], op_a, rows), _band(reads[1], op_b, rows), *tolerances)


@_quiet
def _scalar(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...]) -> None:
    """``C = f(op(A), s)``, or ``f(s, op(A))`` if reflected; params (f, s, reflected, op_a)."""
    name, scalar, reflected, op = params
    ufunc, c = _UFUNCS[name], writes[0]
    for rows in _bands(c):
        x = _band(reads[0], op, rows)
        if reflected:
            ufunc(scalar, x, out=c[rows], casting="same_kind")
        else:
            ufunc(x, scalar, out=c[rows], casting="same_kind")


@_quiet
def _unary(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...]) -> None:
    """``C = f(op(A))``, cast as by ``astype``; params (f, op_a), f of "copy", "real", "imag" or a ufunc of one argument."""
    name, op = params
    c = writes[0]
    for rows in _bands(c):
        x = _band(reads[0], op, rows)
        if name == "copy":
            np.copyto(c[rows], x, casting="unsafe")
        elif name == "real" or name == "imag":
            np.copyto(c[rows], x.real if name == "real" else x.imag)
        else:
            _UFUNCS[name](x, out=c[rows], casting="same_kind")


# ---- reductions ------------------------------------------------------------------------------------------------------


def _add_to(total: Array, lost: Array | None, more: Array) -> None:
    """``total += more``; what rounding cuts off goes to ``lost`` (Neumaier), so that long sums lose nothing."""
    if lost is None:
        total += more
        return
    new = total + more
    error = np.where(np.abs(total) >= np.abs(more), (total - new) + more, (more - new) + total)
    np.copyto(error, 0, where=~np.isfinite(error))
    lost += error
    total[...] = new


def _wide(x: Array) -> Array:
    """The values in the type that sums are kept in."""
    if x.dtype.kind == "f":
        return x.astype(np.float64, copy=False)
    return x.astype(np.complex128, copy=False) if x.dtype.kind == "c" else x


@_quiet
def _sums(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...]) -> None:
    """Column sums (axis 0) or row sums (axis 1), added to the partial results; params (axis, absolute).

    The partial results are (2, columns) or (rows, 2): sum and lost bits; integers have (1, columns) or (rows, 1).
    """
    axis, absolute = params
    a, partial = reads[0], writes[0]
    compensated = partial.dtype.kind in "fc"
    for rows in _bands(a):
        x = a[rows]
        if absolute and x.dtype.kind not in "bu":
            x = np.abs(x.astype(partial.dtype, copy=False) if x.dtype.kind == "i" else _wide(x))
        sums = np.sum(_wide(x), axis=axis, dtype=partial.dtype)
        target = partial.T[:, rows] if axis == 1 else partial
        _add_to(target[0], target[1] if compensated else None, sums)


@_quiet
def _trace(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...]) -> None:
    """Sum of the tile's diagonal, added to a (1, 2) partial result: sum and lost bits; integers have (1, 1)."""
    partial = writes[0]
    value = np.sum(_wide(reads[0].diagonal()), dtype=partial.dtype, keepdims=True)
    _add_to(partial[:, 0], partial[:, 1] if partial.shape[1] == 2 else None, value)


@_quiet
def _square_sum(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...]) -> None:
    """``scale² · ssq`` of the tile goes to a (1, 2) partial result; the scale is 1 unless squares would overflow."""
    a, partial = reads[0], writes[0]
    ssq = _squares(a, 1.0)
    scale = 1.0
    if not _SAFE_LOW < ssq < _SAFE_HIGH:
        scale = _largest(a)
        ssq = _squares(a, scale) if 0 < scale < np.inf else float(scale != 0)
    partial[0] = scale, ssq


def _squares(a: Array, scale: float) -> float:
    total = 0.0
    for rows in _bands(a):
        x = a[rows]
        if x.dtype.kind not in "fc":
            x = x.astype(np.float64)
        x = np.ascontiguousarray(_wide(x)).ravel().view(np.float64)
        if scale != 1.0:
            x = x / scale
        total += float(np.dot(x, x))
    return total


def _largest(a: Array) -> float:
    largest = 0.0
    for rows in _bands(a):
        x = a[rows]
        x = np.abs(x.astype(np.float64) if x.dtype.kind in "iu" else _wide(x))
        # NumPy's maximum passes NaN on, Python's does not.
        largest = float(np.maximum(largest, x.max(initial=0)))
    return largest


@_quiet
def _max_abs(reads: Sequence[Array], writes: Sequence[Array], params: tuple[Any, ...]) -> None:
    """The largest absolute value so far, in a (1, 1) partial result; NaN wins."""
    writes[0][0, 0] = np.maximum(writes[0][0, 0], _largest(reads[0]))


ELEMENTWISE_KERNELS: Final[Mapping[str, Callable[..., None]]] = {
    "axpby": _axpby,
    "binary": _binary,
    "isclose": _isclose,
    "max_abs": _max_abs,
    "scalar": _scalar,
    "square_sum": _square_sum,
    "sums": _sums,
    "trace": _trace,
    "unary": _unary,
}
