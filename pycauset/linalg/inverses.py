"""Inverses of triangular and positive definite matrices of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pycauset.errors import NonFiniteError
from pycauset.evaluate import reduce
from pycauset.linalg.factorizations import cholesky
from pycauset.linalg.operands import chunks_like, in_memory, kernel_type, square, stored, takes_rows
from pycauset.linalg.results import Result, request_of
from pycauset.linalg.solving import kind_of
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
    """Inverse of a triangular or positive definite matrix.

    Systems are better solved by `solve`; an inverse is for those who need its elements (variances, say).

    Parameters
    ----------
    a : Matrix or array_like (n, n)
    overwrite_a : bool
        Taken for SciPy's sake; the inverse always gets a place of its own.
    check_finite : bool
        As in `solve_triangular`.
    assume_a, lower
        As in `solve`.
    out, resume, memory, gpu_memory, progress
        As in `cholesky`; only the inverse of a triangular matrix has a journal.

    Returns
    -------
    Matrix (n, n)
        Known to be triangular, or Hermitian and positive definite.

    Raises
    ------
    ConfigError
        If A is not known to be triangular or positive definite.
    NotPositiveDefiniteError, SingularMatrixError, NonFiniteError, ShapeError, DtypeError, MemoryLimitError, StoreError

    Examples
    --------
    >>> inv([[2.0, 0.0], [1.0, 4.0]], assume_a="lower triangular").to_numpy()
    array([[ 0.5  ,  0.   ],
           [-0.125,  0.25 ]])
    """
    matrix = square("inv", a)
    dtype = kernel_type("inv", matrix.dtype)
    kind = kind_of("inv", matrix, assume_a)
    limits: dict[str, Any] = {"memory": memory, "gpu_memory": gpu_memory, "progress": progress}
    if kind in "LU":
        return _triangular_inverse(matrix, kind, dtype, out, resume, check_finite, limits)
    from pycauset.drivers.triangular import TriangularGramDriver
    from pycauset.solver.blocked import BlockedOperation, run
    from pycauset.solver.run import named_limit

    flags = mask("is_positive_definite")
    n, limit = matrix.shape[0], named_limit(memory, "memory")
    factor = cholesky(matrix, lower, False, check_finite, **limits)
    uplo = "L" if lower else "U"
    inverse = _triangular_inverse(factor, uplo, dtype, None, True, check_finite, limits)
    del factor
    structure = "hermitian" if dtype.kind == "c" else "symmetric"
    with Result(
        "inv",
        matrix.shape,
        dtype,
        out,
        structure=structure,
        reads=(matrix.store,),
        limit=limit,
        chunks=chunks_like(inverse.store, matrix.shape, dtype, limit),
    ) as result:
        if n:
            # A⁻¹ = L⁻ᴴ L⁻¹ = U⁻¹ U⁻ᴴ
            driver = TriangularGramDriver(inverse.store, result.store, dtype, uplo=uplo, op="H" if lower else "N")
            flops = (4.0 if dtype.kind == "c" else 1.0) * n**3 / 3
            operation = BlockedOperation("inv", driver, flops, memory, gpu_memory, result.nbytes, progress)
            plan = run(operation)
            mirror(result.store, plan.tile[0] if plan is not None else n, limit)
        finished: Matrix = result.finish(flags)
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
        clear_beyond(result.store, part, tile)
        if check_finite and n and not np.isfinite(reduce("max_abs", result.store, owner="inv: looking for NaN")[0, 0]):
            refuse_non_finite("inv", source, part, memory=limit)
            raise NonFiniteError(f"inv: the inverse overflows {dtype}")
        inverse: Matrix = result.finish(flags)
        return inverse


def _invert(source: TileStore, result: Result, uplo: str, unit: bool, dtype: np.dtype[Any], limits: dict[str, Any]) -> int:
    """Run the inverse; the side of the tiles."""
    from pycauset.devices.audit import load_profile
    from pycauset.drivers.triangular import TriangularInverseDriver
    from pycauset.solver.blocked import BlockedOperation, run

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
    seconds = flops / (0.6 * load_profile().gemm_rate("cpu", dtype.name, float(n))) if in_core is not None else 0.0
    driver = TriangularInverseDriver(source, result.store, dtype, uplo=uplo, unit=unit, journal=result.journal)
    operation = BlockedOperation(
        "inv", driver, flops, limits["memory"], limits["gpu_memory"], result.nbytes, limits["progress"], in_core, seconds
    )
    plan = run(operation, result.journal)
    return plan.tile[0] if plan is not None else n
