"""What an operation would do and cost, without doing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pycauset.devices.blas import takes_rows
from pycauset.errors import ConfigError
from pycauset.linalg.operands import (
    Triangle,
    chunks_like,
    dimensions,
    in_memory,
    kernel_type,
    right_hand_side,
    square,
    stored,
    triangle_of,
)
from pycauset.linalg.products import factor_of
from pycauset.matrix import Matrix, asmatrix

if TYPE_CHECKING:
    from pycauset.solver import SolverPlan
    from pycauset.solver.steps import StepwisePlan
    from pycauset.storage import TileStore

__all__ = ["OPERATIONS", "plan"]

OPERATIONS: Final = ("matmul", "cholesky", "solve_triangular", "solve", "inv")


def plan(
    operation: str,
    a: Any,
    b: Any = None,
    *,
    assume_a: str | None = "gen",
    lower: bool | None = None,
    out_on_disk: bool = False,
    memory: Any = None,
    gpu_memory: Any = None,
) -> SolverPlan | StepwisePlan:
    """What an operation would do and cost, without doing it: ``plan("matmul", A, B).explain()``.

    Parameters
    ----------
    operation : {"matmul", "cholesky", "solve_triangular", "solve", "inv"}
    a, b : Matrix or array_like
        The operands; ``cholesky`` and ``inv`` have one.
    assume_a : str
        For ``solve`` and ``inv``: what A is, as they take it.
    lower : bool, optional
        For all but ``matmul``: which triangle, by default as the function decides.
    out_on_disk : bool
        The result goes to a path.
    memory, gpu_memory : int or str, optional
        Limits, as the operations take them.

    Returns
    -------
    SolverPlan or StepwisePlan
        The second where one step follows another: a factorisation and two substitutions, say.

    Raises
    ------
    ConfigError
        If no such operation can be planned, or there is nothing to plan: `solve` and `inv` of diagonal matrices.
    ShapeError, DtypeError
        If the operands do not fit.
    MemoryLimitError
        From ``plan.route`` and ``explain()``, if nothing fits the limits.

    Examples
    --------
    >>> import numpy as np
    >>> A = np.eye(3000)
    >>> [step.operation for step in plan("solve", A, A[:, :5], assume_a="pos").steps]
    ['cholesky', 'solve_triangular', 'solve_triangular']
    """
    from pycauset.solver import plan as product_plan

    if operation not in OPERATIONS:
        raise ConfigError(f"plan: the operation is {operation!r}; it must be one of {', '.join(map(repr, OPERATIONS))}")
    if (b is None) != (operation in ("cholesky", "inv")):
        raise ConfigError(f"plan: {operation} has {'two operands, give b' if b is None else 'one operand, leave b out'}")
    if operation == "matmul":
        x = asmatrix(a)
        x = x.T if dimensions("plan", a, "first") == 1 else x
        return product_plan(
            "matmul", factor_of(x), factor_of(asmatrix(b)), out_on_disk=out_on_disk, memory=memory, gpu_memory=gpu_memory
        )
    return _Steps(operation, square(operation, a), b, lower, out_on_disk, memory, gpu_memory).plan(assume_a)


class _Steps:
    """The steps of one operation; each works on results that are pretended."""

    def __init__(self, name: str, a: Matrix, b: Any, lower: bool | None, on_disk: bool, memory: Any, gpu_memory: Any) -> None:
        from pycauset.solver.run import named_limit

        self.name, self.a, self.lower, self.on_disk = name, a, lower, on_disk
        self.limit, self.gpu_memory = named_limit(memory, "memory"), gpu_memory
        self.right = None if b is None else right_hand_side(name, b, a)[0]
        others = [] if self.right is None else [self.right.dtype]
        self.dtype = kernel_type(name, a.dtype, *others)
        self.held = 0  # bytes in RAM of what earlier steps left for later ones

    def plan(self, assume_a: str | None) -> SolverPlan | StepwisePlan:
        from pycauset.linalg.solving import kind_of
        from pycauset.solver.steps import StepwisePlan

        if self.name == "cholesky":
            return self._cholesky(self.lower is not False, last=True)[0]
        if self.name == "solve_triangular":
            return self._substitution(triangle_of(self.name, self.a, lower=self.lower))[0]
        kind = kind_of(self.name, self.a, assume_a)
        if kind == "D":
            raise ConfigError(f"plan: {self.name} with a diagonal matrix is one pass over the result, there is nothing to plan")
        if kind in "LU":
            if self.name == "inv":
                return self._inverse(stored(self.a), kind, last=True)[0]
            return self._substitution(triangle_of(self.name, self.a, lower=kind == "L"))[0]
        lower = self.lower is not False
        uplo = "L" if lower else "U"
        steps, factor = self._cholesky(lower, last=False)
        if self.name == "inv":
            second, inverse = self._inverse(factor, uplo, last=False)
            return StepwisePlan("inv", (steps, second, self._gram(inverse, uplo)))
        first, solution = self._substitution(Triangle(factor, uplo, "N" if lower else "H", False))
        again, _ = self._substitution(Triangle(factor, uplo, "H" if lower else "N", False), solution)
        return StepwisePlan("solve", (steps, first, again))

    # -- steps --------------------------------------------------------------------------------------------------------

    def _cholesky(self, lower: bool, *, last: bool) -> tuple[SolverPlan, TileStore]:
        from pycauset.drivers.cholesky import CholeskyDriver

        source, part = stored(self.a), "lower" if lower else "upper"
        factor = self._result(self.a.shape, chunks_like(source, self.a.shape, self.dtype, self.limit), part, last)
        driver = CholeskyDriver(source, factor, self.dtype, lower=lower)
        return self._step("cholesky", driver, factor, part, self._flops(1 / 3), last), factor

    def _substitution(self, triangle: Triangle, solution: TileStore | None = None) -> tuple[SolverPlan, TileStore]:
        """From the right-hand sides, or in the place of a ``solution`` of another triangle."""
        from pycauset.drivers.triangular import TriangularSolveDriver
        from pycauset.linalg.substitution import _chunks

        assert self.right is not None
        origin = stored(self.right) if solution is None else None
        shape = self.right.shape
        if solution is None:
            chunks = _chunks(triangle.store, stored(self.right), self.dtype, self.limit)
            solution = self._result(shape, chunks, "full", True)
        driver = TriangularSolveDriver(
            triangle.store,
            solution,
            self.dtype,
            origin=origin,
            uplo=triangle.uplo,
            op=triangle.op,
            unit=triangle.unit,
            check=origin is not None,
        )
        held = in_memory(triangle.store)
        direct = held is not None and takes_rows(held, self.dtype)
        flops = (4.0 if self.dtype.kind == "c" else 1.0) * self.a.shape[0] ** 2 * shape[1]
        return self._step("solve_triangular", driver, solution, "full", flops, True, direct=direct), solution

    def _inverse(self, triangle: TileStore, uplo: str, *, last: bool) -> tuple[SolverPlan, TileStore]:
        from pycauset.drivers.triangular import TriangularInverseDriver
        from pycauset.properties import known

        part = "lower" if uplo == "L" else "upper"
        inverse = self._result(self.a.shape, chunks_like(triangle, self.a.shape, self.dtype, self.limit), part, last)
        unit = last and known(self.a._flags(), "has_unit_diagonal") is True
        driver = TriangularInverseDriver(triangle, inverse, self.dtype, uplo=uplo, unit=unit)
        return self._step("inv", driver, inverse, part, self._flops(1 / 3), last), inverse

    def _gram(self, inverse: TileStore, uplo: str) -> SolverPlan:
        from pycauset.drivers.triangular import TriangularGramDriver

        structure = "hermitian" if self.dtype.kind == "c" else "symmetric"
        result = self._result(self.a.shape, chunks_like(self.a.store, self.a.shape, self.dtype, self.limit), structure, True)
        driver = TriangularGramDriver(inverse, result, self.dtype, uplo=uplo, op="H" if uplo == "L" else "N")
        return self._step("inv", driver, result, structure, self._flops(1 / 3), True, direct=False)

    def _flops(self, share: float) -> float:
        return (4.0 if self.dtype.kind == "c" else 1.0) * self.a.shape[0] ** 3 * share

    def _result(self, shape: tuple[int, int], chunks: tuple[int, int], structure: str, last: bool) -> TileStore:
        from pycauset.solver.factor import Layout
        from pycauset.solver.steps import pretended_result

        layout = Layout(shape, self.dtype, self.dtype, chunks, structure, self.name)
        left = None if self.limit is None else max(1, self.limit - self.held)
        return pretended_result(layout, left, on_disk=self.on_disk)

    def _step(
        self,
        name: str,
        driver: Any,
        result: TileStore,
        structure: str,
        flops: float,
        last: bool,
        *,
        direct: bool = True,
    ) -> SolverPlan:
        """One step; ``direct`` tells whether LAPACK can take the operands where the result lies in RAM."""
        from pycauset.solver.blocked import BlockedOperation, in_core_seconds
        from pycauset.solver.factor import Layout
        from pycauset.solver.steps import solver_plan

        array = in_memory(result)
        direct = direct and array is not None
        seconds = in_core_seconds(name, flops, self.dtype, min(result.shape)) if direct else 0.0
        nbytes = result.nbytes if array is not None else 0
        memory = None if self.limit is None else max(1, self.limit - self.held)
        operation = BlockedOperation(
            name, driver, flops, memory, self.gpu_memory, nbytes, None, (lambda: None) if direct else None, seconds
        )
        if not last:
            self.held += nbytes
        return solver_plan(operation, Layout(result.shape, self.dtype, self.dtype, result.chunks, structure, name))
