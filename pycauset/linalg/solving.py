"""Linear systems with triangular and positive definite matrices of any size."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pycauset.errors import ConfigError
from pycauset.linalg.factorizations import cholesky
from pycauset.linalg.operands import kernel_type, known_triangle, right_hand_side, square, triangle_of
from pycauset.linalg.results import request_of
from pycauset.linalg.substitution import System
from pycauset.matrix import Matrix
from pycauset.properties import known

__all__ = ["cho_solve", "kind_of", "solve", "solve_triangular"]

_ASSUMED: Final[dict[str | None, str]] = {
    **dict.fromkeys(("gen", "general", None), "gen"),
    **dict.fromkeys(("pos", "positive definite"), "pos"),
    **dict.fromkeys(("lower triangular", "lower"), "L"),
    **dict.fromkeys(("upper triangular", "upper"), "U"),
    "diagonal": "L",
}


def solve_triangular(
    a: Any,
    b: Any,
    trans: int | str = 0,
    lower: bool | None = None,
    unit_diagonal: bool = False,
    overwrite_b: bool = False,
    check_finite: bool = True,
    *,
    out: Any = None,
    resume: Any = True,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
) -> Any:
    """Solve ``op(A) X = B`` with a triangular matrix A.

    Parameters
    ----------
    a : Matrix or array_like (n, n)
        Only the named triangle is read.
    b : Matrix or array_like (n, m) or (n,)
    trans : {0, 1, 2, "N", "T", "C"}
        The system with A, with its transpose, or with its conjugate transpose.
    lower : bool, optional
        Which triangle. By default as the properties of ``a`` tell, and the upper one (as in SciPy) if they do not.
    unit_diagonal : bool
        Take the diagonal as ones and do not read it.
    overwrite_b : bool
        The solution may be put in the place of ``b``, if that can hold it.
    check_finite : bool
        Look for NaN and infinity, in the solution first; where it has some, the error says where they came from.
    out : Matrix or ndarray of the solution's shape, or path, optional
        Where the solution goes; a Zarr folder named by path gets a journal, see `cholesky`.
    resume, memory, gpu_memory, progress
        As in `cholesky`.

    Returns
    -------
    Matrix (n, m) or ndarray (n,)

    Raises
    ------
    SingularMatrixError
        If there is a zero on the diagonal, at ``index``.
    NonFiniteError, ShapeError, DtypeError, OverlapError, MemoryLimitError, StoreError

    Examples
    --------
    >>> solve_triangular([[2.0, 0.0], [1.0, 4.0]], [2.0, 9.0], lower=True)
    array([1., 2.])
    """
    name = "solve_triangular"
    matrix = square(name, a)
    right, vector = right_hand_side(name, b, matrix.shape[0])
    dtype = kernel_type(name, matrix.dtype, right.dtype)
    triangle = triangle_of(name, matrix, lower=lower, trans=trans, unit=unit_diagonal)
    arguments = {"dtype": dtype.name, "uplo": triangle.uplo, "op": triangle.op, "unit": triangle.unit}
    operands = {"a": (matrix.store, matrix.op), "b": (right.store, right.op)}
    system = System(name, right, vector, dtype, memory, gpu_memory, progress, check_finite)
    return system.solve(
        [triangle], out, overwrite_b, request=lambda: request_of(name, arguments, operands), resume=resume, reads=matrix.store
    )


def cho_solve(
    c_and_lower: Any,
    b: Any,
    overwrite_b: bool = False,
    check_finite: bool = True,
    *,
    out: Any = None,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
) -> Any:
    """Solve ``A X = B``, given the Cholesky factor of A.

    Parameters
    ----------
    c_and_lower : (Matrix or array_like (n, n), bool), or Matrix (n, n)
        The factor and whether it is the lower one. A factor that knows that it is triangular, as `cholesky` gives it, will do.
    b : Matrix or array_like (n, m) or (n,)
    overwrite_b, check_finite, out, memory, gpu_memory, progress
        As in `solve_triangular`.

    Returns
    -------
    Matrix (n, m) or ndarray (n,)

    Raises
    ------
    SingularMatrixError, NonFiniteError, ShapeError, DtypeError, OverlapError, MemoryLimitError, StoreError

    Examples
    --------
    >>> L = cholesky([[4.0, 2.0], [2.0, 5.0]])
    >>> cho_solve((L, True), [8.0, 8.0])
    array([1.5, 1. ])
    """
    name = "cho_solve"
    lower: bool | None = None
    c = c_and_lower
    if isinstance(c, (tuple, list)) and len(c) == 2 and isinstance(c[1], (bool, np.bool_, int)):
        c, lower = c[0], bool(c[1])
    matrix = square(name, c)
    if lower is None:
        found = known_triangle(matrix)
        if found is None:
            raise ConfigError(f"{name}: which triangle of {matrix!r} holds the factor? Give (c, lower)")
        lower = found == "L"
    right, vector = right_hand_side(name, b, matrix.shape[0])
    dtype = kernel_type(name, matrix.dtype, right.dtype)
    order = ("N", "C") if lower else ("C", "N")
    steps = [triangle_of(name, matrix, lower=lower, trans=trans) for trans in order]
    system = System(name, right, vector, dtype, memory, gpu_memory, progress, check_finite)
    return system.solve(steps, out, overwrite_b, reads=matrix.store)


def solve(
    a: Any,
    b: Any,
    lower: bool = True,
    overwrite_a: bool = False,
    overwrite_b: bool = False,
    check_finite: bool = True,
    assume_a: str | None = "gen",
    transposed: bool = False,
    *,
    out: Any = None,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
) -> Any:
    """Solve ``A X = B`` by what is known of A: by substitution if it is triangular, by Cholesky if it is positive definite.

    Parameters
    ----------
    a : Matrix or array_like (n, n)
    b : Matrix or array_like (n, m) or (n,)
    lower : bool
        For positive definite matrices: which triangle to read.
    overwrite_a : bool
        The Cholesky factor may be put in the place of ``a``, an array in RAM that can hold it.
    overwrite_b, check_finite
        As in `solve_triangular`.
    assume_a : {"gen", "pos", "lower triangular", "upper triangular", "diagonal"}
        What A is, believed as a claim is; ``"gen"`` goes by the properties of ``a``. SciPy's long names do as well.
    transposed : bool
        Solve ``A.T X = B``.
    out, memory, gpu_memory, progress
        As in `cholesky`. A triangular system with a path keeps a journal (see `solve_triangular`), others keep none.

    Returns
    -------
    Matrix (n, m) or ndarray (n,)

    Raises
    ------
    ConfigError
        If A is not known to be triangular or positive definite: LU, which general matrices take, comes with a later version.
    NotPositiveDefiniteError, SingularMatrixError
        If A is not what it was said to be.
    NonFiniteError, ShapeError, DtypeError, OverlapError, MemoryLimitError, StoreError

    Examples
    --------
    >>> solve([[4.0, 2.0], [2.0, 5.0]], [8.0, 8.0], assume_a="pos")
    array([1.5, 1. ])
    """
    matrix = square("solve", a)
    limits: dict[str, Any] = {"memory": memory, "gpu_memory": gpu_memory, "progress": progress}
    right_hand_side("solve", b, matrix.shape[0])  # before hours of work
    kind = kind_of("solve", matrix, assume_a)
    if kind in "LU":
        trans = "T" if transposed else "N"
        return solve_triangular(matrix, b, trans, kind == "L", False, overwrite_b, check_finite, out=out, resume=True, **limits)
    overwrite_a = overwrite_a and _can_hold_factor(matrix) and not transposed and not _shares(matrix, b, out)
    if transposed:  # the triangle to read is the other one of the transpose
        matrix, lower = matrix.T, not lower
    factor = cholesky(matrix, lower, overwrite_a, check_finite, **limits)
    return cho_solve((factor, lower), b, overwrite_b, check_finite, out=out, **limits)


def _can_hold_factor(a: Matrix) -> bool:
    """Whether a factor may silently take a matrix's place: never on disk, where the call may be made again after a kill."""
    return a._array is not None and a.store.path is None and a.store.writable and a.dtype == kernel_type("solve", a.dtype)


def _shares(a: Matrix, *others: Any) -> bool:
    """Whether an array lies in the memory of one of the others, which are read or written after it has been overwritten."""
    return any(
        np.may_share_memory(a._array, other._array if isinstance(other, Matrix) and other._array is not None else other)
        for other in others
        if isinstance(other, np.ndarray) or (isinstance(other, Matrix) and other._array is not None)
    )


def kind_of(name: str, a: Matrix, assume_a: str | None) -> str:
    """``"L"``, ``"U"`` (triangular) or ``"pos"``: what a matrix is known, or assumed, to be.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    if assume_a not in tuple(_ASSUMED):  # by comparison: what cannot be hashed is no kind either
        if assume_a in ("sym", "symmetric", "her", "hermitian", "banded", "tridiagonal"):
            raise ConfigError(
                f'{name}: assume_a={assume_a!r} has no method of its own here; positive definite ("pos") and triangular '
                "matrices have one"
            )
        raise ConfigError(f"{name}: assume_a is {assume_a!r}; it must be one of {', '.join(repr(k) for k in _ASSUMED if k)}")
    kind = _ASSUMED[assume_a]
    if kind != "gen":
        return kind
    triangle = known_triangle(a)
    if triangle is not None:
        return triangle
    if known(a._flags(), "is_positive_definite"):
        return "pos"
    raise ConfigError(
        f"{name}: {a!r} is not known to be triangular or positive definite, and LU, for all others, comes with a later version; "
        'say what it is by assume_a="pos" or a claim, A.properties.is_positive_definite = True, or use NumPy on A.to_numpy()'
    )
