"""Inverses of diagonal, triangular and positive definite matrices of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pycauset.devices.blas import takes_rows
from pycauset.errors import NonFiniteError
from pycauset.evaluate import reduce
from pycauset.linalg.diagonals import invert_diagonal
from pycauset.linalg.factorizations import cholesky
from pycauset.linalg.operands import chunks_like, in_memory, kernel_type, square, stored
from pycauset.linalg.results import Result, check_options, request_of
from pycauset.linalg.solving import kind_of
from pycauset.linalg.stages import Stages, limited
from pycauset.linalg.triangles import check_finite as refuse_non_finite
from pycauset.linalg.triangles import clear_beyond, load, mirror
from pycauset.matrix import Matrix
from pycauset.properties import known, mask
from pycauset.storage import TileStore

__all__ = ["inv"]


def inv(
    a: Any,
    overwrite_a: bool = False,
    check_finite: bool = True,
    assume_a: str | None = "gen",
    lower: bool = True,
    *,
    out: Any = None,
    resume: Any = True,
    memory: int | float | str | None = None,
    gpu_memory: int | float | str | None = None,
    progress: Any = None,
) -> Matrix:
    """Inverse of a diagonal, triangular or positive definite matrix.

    Systems are better solved by `solve`; an inverse is for those who need its elements (variances, say).

    Parameters
    ----------
    a : Matrix or array_like (n, n), or path
    overwrite_a : bool
        Taken for SciPy's sake; the inverse always gets a place of its own.
    check_finite : bool
        As in `solve_triangular`.
    assume_a, lower
        As in `solve`.
    out, resume, memory, gpu_memory, progress
        As in `cholesky`. With a Zarr folder as ``out`` the factor, and then its inverse, lie in ``NAME.stages`` beside it
        until all is finished, so that the same call goes on after a kill.

    Returns
    -------
    Matrix (n, n)
        Known to be diagonal, triangular, or Hermitian and positive definite.

    Raises
    ------
    ConfigError
        If A is not known to be triangular or positive definite.
    NotPositiveDefiniteError, SingularMatrixError, NonFiniteError, ShapeError, DtypeError, OverlapError, MemoryLimitError
    JournalError, StoreError

    Examples
    --------
    >>> inv([[2.0, 0.0], [1.0, 4.0]], assume_a="lower triangular").to_numpy()
    array([[ 0.5  ,  0.   ],
           [-0.125,  0.25 ]])
    """
    check_options(progress, resume)
    matrix = square("inv", a)
    dtype = kernel_type("inv", matrix.dtype)
    kind = kind_of("inv", matrix, assume_a)
    limits: dict[str, Any] = {"memory": memory, "gpu_memory": gpu_memory, "progress": progress}
    if kind == "D":
        return invert_diagonal(matrix, dtype, check_finite=check_finite, out=out, limits=limits)
    if kind in "LU":
        return _triangular_inverse(matrix, kind, dtype, out, resume, check_finite, limits)
    return _positive_inverse(matrix, bool(lower), dtype, out, resume, check_finite, limits)


def _positive_inverse(
    matrix: Matrix, lower: bool, dtype: np.dtype[Any], out: Any, resume: Any, check_finite: bool, limits: dict[str, Any]
) -> Matrix:
    """``A⁻¹ = L⁻ᴴ L⁻¹ = U⁻¹ U⁻ᴴ``."""
    from pycauset.drivers.triangular import TriangularGramDriver
    from pycauset.solver.blocked import BlockedOperation, run
    from pycauset.solver.run import named_limit

    n, uplo = matrix.shape[0], "L" if lower else "U"
    with Stages(
        "inv",
        matrix.shape,
        dtype,
        out,
        structure="hermitian" if dtype.kind == "c" else "symmetric",
        reads=(matrix.store,),
        chunks=chunks_like(matrix.store, matrix.shape, dtype, named_limit(limits["memory"], "memory")),
        request=lambda: request_of("inv", {"dtype": dtype.name, "lower": lower}, {"a": (matrix.store, matrix.op)}),
        resume=resume,
        limits=limits,
    ) as stages:

        def inverted(place: Any) -> Matrix:
            factor = stages.make("factor", lambda place: cholesky(matrix, lower, False, check_finite, out=place, **stages.limits))
            return _triangular_inverse(factor, uplo, dtype, place, True, check_finite, stages.limits)

        result = stages.result
        if result.finished:
            return result.opened()
        if n and not stages.complete:
            inverse = stages.make("inverse", inverted)
            stages.drop("factor")
            stages.begin()
            journal, op = result.journal, "H" if lower else "N"
            driver = TriangularGramDriver(inverse.store, result.store, dtype, uplo=uplo, op=op, journal=journal)
            flops = (4.0 if dtype.kind == "c" else 1.0) * n**3 / 3
            plan = run(BlockedOperation("inv", driver, flops, result_bytes=result.nbytes, **stages.limits), journal)
            mirror(result.store, plan.tile[0] if plan is not None else n, stages.limits["memory"], journal)
        stages.begin()
        finished: Matrix = stages.finish(mask("is_positive_definite"))
        return finished


def _triangular_inverse(
    matrix: Matrix, uplo: str, dtype: np.dtype[Any], out: Any, resume: Any, check_finite: bool, limits: dict[str, Any]
) -> Matrix:
    """The inverse of a triangle, in a place of its own."""
    from pycauset.solver.run import named_limit

    n, lower = matrix.shape[0], uplo == "L"
    part = "lower" if lower else "upper"
    flags = mask(f"is_{part}_triangular")
    limit = named_limit(limits["memory"], "memory")
    unit = known(matrix._flags(), "has_unit_diagonal") is True
    if unit:
        flags |= mask("has_unit_diagonal")
    source = stored(matrix)
    if check_finite and in_memory(source) is not None:
        refuse_non_finite("inv", source, part, memory=limit)
    arguments = {"dtype": dtype.name, "uplo": uplo, "unit": unit}
    with Result(
        "inv",
        matrix.shape,
        dtype,
        out,
        structure=part,
        reads=(matrix.store,),
        limit=limit,
        chunks=chunks_like(source, (n, n), dtype, limit),
        request=lambda: request_of("inv", arguments, {"a": (matrix.store, matrix.op)}),
        resume=resume,
    ) as result:
        if result.finished:
            return result.opened()
        tile = _invert(source, result, uplo, unit, dtype, limits) if n else 0
        clear_beyond(result.store, part, tile, result.journal)
        if check_finite and n:
            with limited(limit, result.nbytes):
                largest = reduce("max_abs", result.store, owner="inv: looking for NaN")[0, 0]
            if not np.isfinite(largest):
                refuse_non_finite("inv", source, part, memory=limit)
                raise NonFiniteError(f"inv: the inverse overflows {dtype}")
        inverse: Matrix = result.finish(flags)
        return inverse


def _invert(source: TileStore, result: Result, uplo: str, unit: bool, dtype: np.dtype[Any], limits: dict[str, Any]) -> int:
    """Run the inverse; the side of the tiles."""
    from pycauset.drivers.triangular import TriangularInverseDriver
    from pycauset.solver.blocked import BlockedOperation, in_core_seconds, run

    n = source.shape[0]
    target = in_memory(result.store)
    in_core: Callable[[], None] | None = None
    if result.journal is None and target is not None and takes_rows(target, dtype):
        array = target

        def whole() -> None:
            from pycauset import devices

            kernels = devices.cpu().kernels
            load(source, array, "lower" if uplo == "L" else "upper")
            if not unit:
                kernels["check_diagonal"]((array,), (), (0,), None)
            kernels["trtri"]((array,), (array,), (uplo, unit, 0), None)

        in_core = whole

    flops = (4.0 if dtype.kind == "c" else 1.0) * n**3 / 3
    seconds = in_core_seconds("inv", flops, dtype, n) if in_core is not None else 0.0
    driver = TriangularInverseDriver(source, result.store, dtype, uplo=uplo, unit=unit, journal=result.journal)
    operation = BlockedOperation(
        "inv", driver, flops, limits["memory"], limits["gpu_memory"], result.nbytes, limits["progress"], in_core, seconds
    )
    plan = run(operation, result.journal)
    return plan.tile[0] if plan is not None else n
