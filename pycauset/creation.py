"""Matrices from nothing: zeros, ones, the identity, random numbers, any function of the indices. None needs storage."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pycauset.errors import ConfigError, DtypeError, ShapeError
from pycauset.matrix import Matrix
from pycauset.storage import FunctionStore, element_type

__all__ = ["eye", "from_function", "ones", "random", "zeros"]

_CELL: Final = 1 << 16  # elements that one counter of the random generator stands for
_SIDE: Final = 256


def _checked_shape(shape: Any) -> tuple[int, int]:
    """``n`` or ``(m, n)``; one number makes a square matrix."""
    try:
        sizes = (shape, shape) if isinstance(shape, (int, np.integer)) else tuple(shape)
        rows, cols = (operator.index(size) for size in sizes)
    except (TypeError, ValueError):
        raise ShapeError(f"shape {shape!r} is no pair of integers; write (rows, columns)") from None
    if rows < 0 or cols < 0:
        raise ShapeError(f"shape ({rows}, {cols}) has a negative size; sizes are 0 or more")
    return rows, cols


def from_function(
    f: Callable[[NDArray[np.int64], NDArray[np.int64]], Any],
    shape: tuple[int, int],
    dtype: DTypeLike = np.float64,
    **properties: bool | None,
) -> Matrix:
    """A matrix whose elements are computed where they are needed, and never kept.

    Parameters
    ----------
    f : callable
        Called as ``f(rows, cols)`` with two one-dimensional index arrays (m,) and (n,), from several threads at once;
        returns the tile (m, n): combine ``rows[:, None]`` with ``cols[None, :]``.
    shape : (int, int)
    dtype : dtype
    **properties
        Claims about the matrix, such as ``is_symmetric=True``.

    Returns
    -------
    Matrix (m, n)
        Read-only.

    Raises
    ------
    ShapeError, DtypeError
        If shape or dtype cannot be those of a matrix, or ``f`` cannot be called; later, naming the rows and columns asked
        for, if ``f`` returns another shape or a type that does not fit.
    StoreError
        Later, if ``f`` raises: the message names the rows and columns, and ``__cause__`` is what ``f`` raised.

    Examples
    --------
    >>> hilbert = from_function(lambda i, j: 1 / (i[:, None] + j[None, :] + 1), (4, 4), is_symmetric=True)
    >>> float(hilbert[1, 1].round(3))
    0.333
    """
    matrix = Matrix(FunctionStore(f, _checked_shape(shape), dtype))
    matrix.properties.update(properties)
    return matrix


def zeros(shape: int | tuple[int, int], dtype: DTypeLike = np.float64) -> Matrix:
    """A matrix of zeros that needs no storage (read-only; ``copy()`` makes a writable one).

    Examples
    --------
    >>> zeros((2, 3)).to_numpy().tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    matrix = _constant(shape, dtype, 0)
    matrix.properties.is_zero = True
    return matrix


def ones(shape: int | tuple[int, int], dtype: DTypeLike = np.float64) -> Matrix:
    """A matrix of ones that needs no storage (read-only).

    Examples
    --------
    >>> ones((2, 3)).sum()
    np.float64(6.0)
    """
    matrix = _constant(shape, dtype, 1)
    if matrix.shape[0] == matrix.shape[1]:
        matrix.properties.update({"is_symmetric": True, "is_positive_semidefinite": True})
    return matrix


def _constant(shape: int | tuple[int, int], dtype: DTypeLike, value: int) -> Matrix:
    constant = np.array(value, element_type(dtype, "the matrix"))

    def constant_tile(rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[Any]:
        return constant

    return Matrix(FunctionStore(constant_tile, _checked_shape(shape), constant.dtype, copies=0))


def eye(n: int, m: int | None = None, dtype: DTypeLike = np.float64) -> Matrix:
    """The n × m matrix with ones on the main diagonal; needs no storage (read-only).

    Examples
    --------
    >>> eye(2).to_numpy().tolist(), eye(3).properties.is_orthogonal
    ([[1.0, 0.0], [0.0, 1.0]], True)
    """
    for name, side in (("n", n), ("m", n if m is None else m)):
        if not isinstance(side, (int, np.integer)):
            raise ShapeError(f"eye: {name} is {side!r}; it must be an integer, 0 or more")
    size = _checked_shape((n, n if m is None else m))
    element = element_type(dtype, "the matrix")

    def identity_tile(rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[Any]:
        tile = np.zeros((len(rows), len(cols)), element)
        first, last = max(rows[0], cols[0]), min(rows[-1], cols[-1]) + 1
        if first < last:
            on = np.arange(first, last)
            tile[on - rows[0], on - cols[0]] = 1
        return tile

    matrix = Matrix(FunctionStore(identity_tile, size, element, copies=1))
    matrix.properties.update({"is_identity": True} if size[0] == size[1] else {"is_diagonal": True, "has_unit_diagonal": True})
    return matrix


def random(
    shape: int | tuple[int, int],
    dtype: DTypeLike = np.float64,
    *,
    seed: int | None = None,
    distribution: Literal["uniform", "normal"] = "uniform",
) -> Matrix:
    """A matrix of random numbers that needs no storage: the same seed and shape give the same numbers, however it is cut.

    The numbers come from Philox, a counter-based generator: the counter is the place in the matrix, so that any tile can be
    computed by itself, again and again.

    Parameters
    ----------
    shape : (int, int)
    dtype : {"float64", "float32", "complex128", "complex64", "bool"}
        Complex numbers have independent real and imaginary parts; booleans are True with probability 1/2.
    seed : int, optional
        0 or more, below 2**64; drawn from the system if None, so that every call gives another matrix.
    distribution : {"uniform", "normal"}
        Uniform in [0, 1), or normal with mean 0 and variance 1.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If an argument is none of these.

    Examples
    --------
    >>> A = random((1000, 800), seed=1)
    >>> bool((A[10:12, 700:] == A.to_numpy()[10:12, 700:]).all())
    True
    """
    size = _checked_shape(shape)
    element = element_type(dtype, "a random matrix")
    if element.name not in ("float64", "float32", "complex128", "complex64", "bool"):
        raise DtypeError(f"random numbers of {element} are not there; use float32, float64, complex64, complex128 or bool")
    if distribution not in ("uniform", "normal"):
        raise ConfigError(f"distribution is {distribution!r}; it must be 'uniform' or 'normal'")
    try:
        key = secrets.randbits(64) if seed is None else operator.index(seed)
    except TypeError:
        raise ConfigError(f"seed is {seed!r}; it must be an integer between 0 and 2**64 - 1, or None") from None
    if not 0 <= key < 1 << 64:
        raise ConfigError(f"seed is {seed}; it must be between 0 and 2**64 - 1")
    # The cells depend on the shape alone, never on tiles; a narrow matrix has tall cells, so that one row costs little.
    width = max(1, min(size[1], _SIDE if size[0] >= _SIDE else _CELL // max(1, size[0])))
    height = max(1, min(size[0], _CELL // width))
    part = np.dtype(np.float32 if element.name in ("float32", "complex64") else np.float64)

    def draw(generator: np.random.Generator) -> NDArray[Any]:
        if distribution == "normal":
            return generator.standard_normal((height, width), part)  # type: ignore[arg-type]
        return generator.random((height, width), part)  # type: ignore[arg-type]

    def random_tile(rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[Any]:
        r0, c0 = int(rows[0]), int(cols[0])
        tile = np.empty((len(rows), len(cols)), element)
        for i in range(r0 // height, int(rows[-1]) // height + 1):
            for j in range(c0 // width, int(cols[-1]) // width + 1):
                generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, i, j]))
                if element.kind == "b":
                    cell: NDArray[Any] = generator.integers(0, 2, (height, width), np.uint8)
                else:
                    cell = draw(generator)
                    if element.kind == "c":
                        cell = cell + 1j * draw(generator)
                top, left = max(r0, i * height), max(c0, j * width)
                bottom, right = min(r0 + len(rows), (i + 1) * height), min(c0 + len(cols), (j + 1) * width)
                chosen = cell[top - i * height : bottom - i * height, left - j * width : right - j * width]
                tile[top - r0 : bottom - r0, left - c0 : right - c0] = chosen
        return tile

    chunks = (height * max(1, 1024 // height), width * max(1, 1024 // width))
    return Matrix(FunctionStore(random_tile, size, element, chunks, copies=2))
