"""Linear systems with triangular and positive definite matrices of any size."""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np

from pycauset.errors import ConfigError
from pycauset.linalg.diagonals import solve_diagonal
from pycauset.linalg.factorizations import cholesky
from pycauset.linalg.operands import Triangle, kernel_type, known_triangle, right_hand_side, square, triangle_of
from pycauset.linalg.results import check_options, request_of
from pycauset.linalg.stages import Stages
from pycauset.linalg.substitution import System
from pycauset.matrix import Matrix
from pycauset.properties import known

__all__ = ["cho_solve", "kind_of", "solve", "solve_triangular"]

_ASSUMED: Final[dict[str | None, str]] = {
    **dict.fromkeys(("gen", "general", None), "gen"),
    **dict.fromkeys(("pos", "positive definite"), "pos"),
    **dict.fromkeys(("lower triangular", "lower"), "L"),
    **dict.fromkeys(("upper triangular", "upper"), "U"),
    "diagonal": "D",
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
        The solution may be put in the place of ``b``, if that can hold it. In a Zarr folder this has a journal: after a kill
        the same call, with ``b`` opened again, goes on.
    check_finite : bool
        Look for NaN and infinity, in the solution first; where it has some, the error says where they came from.
    out : Matrix or ndarray of the solution's shape, or path, optional
        Where the solution goes; a Zarr folder, named by path or opened, gets a journal, see `cholesky`.
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
    check_options(progress, resume)
    matrix = square(name, a)
    right, vector = right_hand_side(name, b, matrix)
    dtype = kernel_type(name, matrix.dtype, right.dtype)
    triangle = triangle_of(name, matrix, lower=lower, trans=trans, unit=unit_diagonal)
    arguments = {"dtype": dtype.name, "uplo": triangle.uplo, "op": triangle.op, "unit": triangle.unit}
    operands = {"a": (matrix.store, matrix.op), "b": (right.store, right.op)}
    system = System(name, right, vector, dtype, check_finite, {"memory": memory, "gpu_memory": gpu_memory, "progress": progress})
    request = functools.partial(request_of, name, arguments, operands)
    return system.solve(matrix.store, lambda _: [triangle], out, overwrite_b, request=request, resume=resume, staged=False)


def cho_solve(
    c_and_lower: Any,
    b: Any,
    overwrite_b: bool = False,
    check_finite: bool = True,
    *,
    out: Any = None,
    resume: Any = True,
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
    overwrite_b, check_finite, out, resume, memory, gpu_memory, progress
        As in `solve_triangular`.

    Returns
    -------
    Matrix (n, m) or ndarray (n,)

    Raises
    ------
    ConfigError
        If it is not known, or not said, which triangle holds the factor.
    SingularMatrixError, NonFiniteError, ShapeError, DtypeError, OverlapError, MemoryLimitError, JournalError, StoreError

    Examples
    --------
    >>> L = cholesky([[4.0, 2.0], [2.0, 5.0]])
    >>> cho_solve((L, True), [8.0, 8.0])
    array([1.5, 1. ])
    """
    name = "cho_solve"
    check_options(progress, resume)
    c, lower = c_and_lower, None
    if isinstance(c, (tuple, list)) and len(c) == 2 and (np.ndim(c[1]) == 0 or isinstance(c[0], Matrix)):
        c, lower = c
        if not isinstance(lower, (bool, np.bool_, int, np.integer)):
            raise ConfigError(f"{name}: lower is {lower!r} in (c, lower); it must be True or False")
    matrix = square(name, c)
    if lower is None:
        found = known_triangle(matrix)
        if found is None:
            raise ConfigError(f"{name}: which triangle of {matrix!r} holds the factor? Give (c, lower)")
        lower = found == "L"
    lower = bool(lower)
    right, vector = right_hand_side(name, b, matrix)
    dtype = kernel_type(name, matrix.dtype, right.dtype)
    arguments = {"dtype": dtype.name, "lower": lower}
    operands = {"c": (matrix.store, matrix.op), "b": (right.store, right.op)}
    system = System(name, right, vector, dtype, check_finite, {"memory": memory, "gpu_memory": gpu_memory, "progress": progress})
    steps = _both_ways(name, matrix, lower)
    request = functools.partial(request_of, name, arguments, operands)
    return system.solve(matrix.store, lambda _: steps, out, overwrite_b, request=request, resume=resume, staged=True)


def _both_ways(name: str, factor: Matrix, lower: bool) -> list[Triangle]:
    """The two triangles of ``A = L Lᴴ`` or ``Uᴴ U``, in the order of substitution."""
    return [triangle_of(name, factor, lower=lower, trans=trans) for trans in (("N", "C") if lower else ("C", "N"))]


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
    resume: Any = True,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
) -> Any:
    """Solve ``A X = B`` by what is known of A: division by a diagonal, substitution in a triangle, or Cholesky if it is definite.

    Parameters
    ----------
    a : Matrix or array_like (n, n)
    b : Matrix or array_like (n, m) or (n,)
    lower : bool
        For positive definite matrices: which triangle to read. The lower one by default, as NumPy's `cholesky` does; SciPy's
        `solve` reads the upper one.
    overwrite_a : bool
        The Cholesky factor may be put in the place of ``a``, an array in RAM that can hold it. Not with a path as ``out``,
        where the call may be made again after a kill.
    overwrite_b, check_finite
        As in `solve_triangular`.
    assume_a : {"gen", "pos", "lower triangular", "upper triangular", "diagonal"}
        What A is, believed as a claim is; ``"gen"`` goes by the properties of ``a``. SciPy's long names do as well.
    transposed : bool
        Solve ``A.T X = B``.
    out, resume, memory, gpu_memory, progress
        As in `cholesky`. With a Zarr folder (``out``, or ``b`` to overwrite) the factor lies in ``NAME.stages`` beside it until
        the solution is finished, so that the same call goes on after a kill. With a diagonal matrix, of which nothing but the
        diagonal is read, there is no journal: one pass over B is all there is.

    Returns
    -------
    Matrix (n, m) or ndarray (n,)

    Raises
    ------
    ConfigError
        If A is not known to be triangular or positive definite: LU, which general matrices take, comes with a later version.
    NotPositiveDefiniteError, SingularMatrixError
        If A is not what it was said to be.
    NonFiniteError, ShapeError, DtypeError, OverlapError, MemoryLimitError, JournalError, StoreError

    Examples
    --------
    >>> solve([[4.0, 2.0], [2.0, 5.0]], [8.0, 8.0], assume_a="pos")
    array([1.5, 1. ])
    """
    name = "solve"
    check_options(progress, resume)
    matrix = square(name, a)
    right, vector = right_hand_side(name, b, matrix)
    limits: dict[str, Any] = {"memory": memory, "gpu_memory": gpu_memory, "progress": progress}
    kind = kind_of(name, matrix, assume_a)
    if kind == "D":
        dtype = kernel_type(name, matrix.dtype, right.dtype)
        options = {"check_finite": check_finite, "overwrite": overwrite_b, "out": out, "limits": limits}
        return solve_diagonal(matrix, right, vector, dtype, **options)
    if kind in "LU":
        trans = "T" if transposed else "N"
        return solve_triangular(matrix, b, trans, kind == "L", False, overwrite_b, check_finite, out=out, resume=resume, **limits)
    overwrite_a = overwrite_a and _can_hold_factor(matrix) and not transposed and not _shares(matrix, b, out)
    if transposed:  # the triangle to read is the other one of the transpose
        matrix, lower = matrix.T, not lower
    lower = bool(lower)
    dtype = kernel_type(name, kernel_type(name, matrix.dtype), right.dtype)

    def factored(stages: Stages) -> list[Triangle]:
        inside = overwrite_a and not stages.lasting
        factor = stages.make(
            "factor", lambda place: cholesky(matrix, lower, inside, check_finite, out=place, **stages.limits), own=not inside
        )
        return _both_ways(name, factor, lower)

    operands = {"a": (matrix.store, matrix.op), "b": (right.store, right.op)}
    request = functools.partial(request_of, name, {"dtype": dtype.name, "lower": lower}, operands)
    system = System(name, right, vector, dtype, check_finite, limits)
    return system.solve(matrix.store, factored, out, overwrite_b, request=request, resume=resume, staged=True)


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
    """``"D"`` (diagonal), ``"L"``, ``"U"`` (triangular) or ``"pos"``: what a matrix is known, or assumed, to be.

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
    if known(a._flags(), "is_diagonal"):
        return "D"
    triangle = known_triangle(a)
    if triangle is not None:
        return triangle
    if known(a._flags(), "is_positive_definite"):
        return "pos"
    raise ConfigError(
        f"{name}: {a!r} is not known to be triangular or positive definite, and LU, for all others, comes with a later version; "
        'say what it is by assume_a="pos" or a claim, A.properties.is_positive_definite = True, or use NumPy on A.to_numpy()'
    )
