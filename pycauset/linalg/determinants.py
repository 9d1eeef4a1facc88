"""Determinants of triangular and positive definite matrices, as signs and logarithms so that nothing overflows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from pycauset.errors import ConfigError, NonFiniteError
from pycauset.linalg.factorizations import cholesky
from pycauset.linalg.operands import kernel_type, square, stored
from pycauset.linalg.results import check_options
from pycauset.linalg.solving import _can_hold_factor, kind_of
from pycauset.linalg.triangles import diagonal
from pycauset.properties import known

__all__ = ["SlogdetResult", "det", "logdet", "slogdet"]


class SlogdetResult(NamedTuple):
    """Sign and natural logarithm of the absolute value of a determinant."""

    sign: Any
    logabsdet: Any


def slogdet(
    a: Any,
    overwrite_a: bool = False,
    check_finite: bool = True,
    assume_a: str | None = "gen",
    *,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
) -> SlogdetResult:
    """Sign and logarithm of the determinant of a triangular or positive definite matrix.

    Of a triangular matrix only the diagonal is read; a positive definite one is factored. The logarithms are summed in double
    precision, whatever the elements' type.

    Parameters
    ----------
    a : Matrix or array_like (n, n)
    overwrite_a : bool
        The Cholesky factor may be put in the place of ``a``, an array in RAM that can hold it.
    check_finite : bool
        Say where in a positive definite matrix NaN or infinity was found. (They are never taken for numbers, asked or not.)
    assume_a : {"gen", "pos", "lower triangular", "upper triangular", "diagonal"}
        What A is; ``"gen"`` goes by its properties. See `pycauset.linalg.solve`.
    memory, gpu_memory, progress
        As in `pycauset.linalg.cholesky`.

    Returns
    -------
    SlogdetResult
        ``sign`` is ±1, 0 (then ``logabsdet`` is -inf), or a complex number of absolute value 1.

    Raises
    ------
    ConfigError
        If A is not known to be triangular or positive definite.
    NotPositiveDefiniteError, NonFiniteError, ShapeError, DtypeError, MemoryLimitError, StoreError

    Examples
    --------
    >>> slogdet([[2.0, 7.0], [0.0, -4.0]], assume_a="upper triangular")
    SlogdetResult(sign=np.float64(-1.0), logabsdet=np.float64(2.0794415416798357))
    """
    return _slogdet(
        "slogdet", a, assume_a, overwrite_a, check_finite, {"memory": memory, "gpu_memory": gpu_memory, "progress": progress}
    )


def _slogdet(
    name: str, a: Any, assume_a: str | None, overwrite_a: bool, check_finite: bool, limits: dict[str, Any]
) -> SlogdetResult:
    from pycauset.solver.run import named_limit

    check_options(limits["progress"])
    for limit in ("memory", "gpu_memory"):
        named_limit(limits[limit], limit)
    for option, value in (("overwrite_a", overwrite_a), ("check_finite", check_finite)):
        if not isinstance(value, (bool, np.bool_, int, np.integer)):  # text, meant as assume_a, would be a permission
            raise ConfigError(f"{name}: {option} is {value!r}; it must be True or False. Give assume_a by name")
    matrix = square(name, a)
    dtype = kernel_type(name, matrix.dtype)
    real = np.dtype(f"f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype
    kind = kind_of(name, matrix, assume_a)
    twice = 1.0
    if kind == "pos":
        matrix = cholesky(matrix, True, overwrite_a and _can_hold_factor(matrix), check_finite, **limits)
        twice = 2.0
    if known(matrix._flags(), "has_unit_diagonal"):
        return SlogdetResult(dtype.type(1), real.type(0))
    pivots = diagonal(stored(matrix)).astype(np.complex128 if dtype.kind == "c" else np.float64)
    if not np.isfinite(pivots).all():
        index = int(np.flatnonzero(~np.isfinite(pivots))[0])
        raise NonFiniteError(f"{name}: the diagonal of a holds {pivots[index]} at index {index}")
    if (pivots == 0).any():
        return SlogdetResult(dtype.type(0), real.type(-math.inf))
    sizes = np.abs(pivots)
    logarithm = twice * math.fsum(np.log(sizes))
    if kind == "pos":
        sign: Any = 1.0
    elif dtype.kind == "c":
        angle = math.fsum(np.angle(pivots))
        sign = complex(math.cos(angle), math.sin(angle))
    else:
        sign = -1.0 if np.count_nonzero(pivots < 0) % 2 else 1.0
    return SlogdetResult(dtype.type(sign), real.type(logarithm))


def det(
    a: Any,
    overwrite_a: bool = False,
    check_finite: bool = True,
    assume_a: str | None = "gen",
    *,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
) -> Any:
    """Determinant of a triangular or positive definite matrix; infinity or zero where it leaves the range of the element type.

    Parameters
    ----------
    a, overwrite_a, check_finite, assume_a, memory, gpu_memory, progress
        As in `slogdet`.

    Returns
    -------
    scalar

    Raises
    ------
    ConfigError, NotPositiveDefiniteError, NonFiniteError, ShapeError, DtypeError, MemoryLimitError, StoreError

    Examples
    --------
    >>> round(float(det([[4.0, 2.0], [2.0, 5.0]], assume_a="pos")), 12)
    16.0
    """
    sign, logarithm = _slogdet(
        "det", a, assume_a, overwrite_a, check_finite, {"memory": memory, "gpu_memory": gpu_memory, "progress": progress}
    )
    with np.errstate(over="ignore", under="ignore"):
        size = np.exp(logarithm)
        if np.iscomplexobj(sign):  # by parts: infinity times 0 must stay 0
            return type(sign)(complex(*(float(part * size) if part else 0.0 for part in (sign.real, sign.imag))))
        return type(sign)(sign * size)


def logdet(
    a: Any,
    overwrite_a: bool = False,
    check_finite: bool = True,
    assume_a: str | None = "gen",
    *,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
) -> Any:
    """Logarithm of a determinant that is not negative: of likelihoods and Gaussian processes, say.

    Parameters
    ----------
    a, overwrite_a, check_finite, assume_a, memory, gpu_memory, progress
        As in `slogdet`.

    Returns
    -------
    scalar
        Real; -inf for a singular matrix, NaN if the determinant is negative or not real (`slogdet` has sign and size).

    Raises
    ------
    ConfigError, NotPositiveDefiniteError, NonFiniteError, ShapeError, DtypeError, MemoryLimitError, StoreError

    Examples
    --------
    >>> float(logdet([[1.0, 0.0], [0.0, 1.0]], assume_a="pos"))
    0.0
    """
    sign, logarithm = _slogdet(
        "logdet", a, assume_a, overwrite_a, check_finite, {"memory": memory, "gpu_memory": gpu_memory, "progress": progress}
    )
    tolerance = 1e3 * np.finfo(type(logarithm)).eps if np.iscomplexobj(sign) else 0.0
    return logarithm if sign == 0 or abs(sign - 1) <= tolerance else type(logarithm)(math.nan)
