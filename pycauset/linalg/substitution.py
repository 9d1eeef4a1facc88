"""Substitution with one triangle, or one after the other, on right-hand sides wherever they lie."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from pycauset.devices.blas import takes_rows
from pycauset.errors import NonFiniteError
from pycauset.linalg.operands import Triangle, chunks_like, in_memory, stored
from pycauset.linalg.results import Result, request_of
from pycauset.linalg.stages import Stages
from pycauset.linalg.triangles import check_finite as refuse_non_finite
from pycauset.linalg.triangles import load
from pycauset.matrix import Matrix
from pycauset.storage import TileStore, ZarrStore

__all__ = ["System", "substitute"]

Array = np.ndarray[Any, Any]

#: Triangles in RAM whose systems go straight to BLAS: choosing a route would take longer.
_SMALL: Final = 1 << 16


class System:
    """One right-hand side on its way through one triangular system, or several."""

    def __init__(
        self, name: str, right: Matrix, vector: bool, dtype: np.dtype[Any], check_finite: bool, limits: dict[str, Any]
    ) -> None:
        self.name, self.right, self.vector, self.dtype = name, right, vector, dtype
        self.check, self.limits = check_finite, limits

    def solve(
        self,
        a: TileStore,
        triangles: Callable[[Stages], list[Triangle]],
        out: Any,
        overwrite: bool,
        *,
        request: Callable[..., dict[str, Any]],
        resume: Any,
        staged: bool,
    ) -> Any:
        """Solve with one triangle after the other, the first time from the right-hand side, then in the solution's place.

        Parameters
        ----------
        a : TileStore (n, n)
            The operand.
        triangles : callable
            Gives the triangles, once it is certain that ``out`` can take the solution.
        out, request, resume
            As `Result` takes them.
        overwrite : bool
            The solution may be put in the place of the right-hand side.
        staged : bool
            Whether anything is computed on the way.
        """
        from pycauset.solver.run import named_limit

        source = stored(self.right)
        in_place = overwrite and out is None and self._can_hold()
        given = self.right if in_place else out
        limit = named_limit(self.limits["memory"], "memory")
        self.beside = self._must_be_beside(a, given, limit)
        if in_place:
            request = functools.partial(request, own=self.right.store)
        with Stages(
            self.name,
            self.right.shape,
            self.dtype,
            given,
            reads=(a,) if in_place else (a, self.right.store),
            chunks=_chunks(a, source, self.dtype, limit),
            request=request,
            resume=resume,
            limits=self.limits,
            staged=staged or self.beside,
        ) as stages:
            if not stages.result.finished:
                if not stages.complete:
                    self._substitute(stages, triangles(stages), None if in_place else source)
                solution = stages.finish(vector=self.vector)
            else:
                solution = stages.result.opened()
            if in_place:
                array = self.right._array
                return array[:, 0] if self.vector and array is not None else self.right
            return solution

    def _substitute(self, stages: Stages, triangles: list[Triangle], source: TileStore | None) -> None:
        limit, result, first = stages.limits["memory"], stages.result, triangles[0]
        begun = result.journal is not None and result.journal.resumed
        if source is None and self.check and self.right.store.path is not None and not begun:
            # Nothing on disk is overwritten for a solution that cannot be had.
            for triangle in triangles:
                refuse_non_finite(self.name, triangle.store, "lower" if triangle.uplo == "L" else "upper", memory=limit)
            refuse_non_finite(self.name, self.right.store, what="b", memory=limit)
        origin, steps = source, triangles
        if stages.lasting and self.beside:
            stages.put(stages.make("solution", lambda place: self._solution(triangles, place, stages), from_result=True))
            steps = []
        elif stages.lasting and len(triangles) == 2:  # a journal knows one substitution
            origin, steps = self._first(first, stages), triangles[1:]
        stages.begin()
        for triangle in steps:
            options: dict[str, Any] = {**stages.limits, "result_bytes": result.nbytes, "journal": result.journal}
            substitute(self.name, triangle, origin, result.store, self.dtype, check_diagonal=triangle is first, **options)
            origin = None
        if self.check:
            with stages.limited():
                self._check(first, result, source, limit)

    def _first(self, triangle: Triangle, stages: Stages) -> TileStore:
        """The solution with the first of two triangles."""
        source, step = stored(self.right), f"the first half of {self.name}"
        compute = functools.partial(self._step, step, triangle, source, self.right.op, stages=stages)
        return stages.make("half", compute, from_result=True).store

    def _solution(self, triangles: list[Triangle], place: Any, stages: Stages) -> Matrix:
        """The solution, beside a place that cannot take it tile by tile."""
        if len(triangles) == 1:
            return self._step(f"{self.name} by substitution", triangles[0], stored(self.right), self.right.op, place, stages)
        half = self._first(triangles[0], stages)
        return self._step(f"the second half of {self.name}", triangles[1], half, "N", place, stages)

    def _step(self, name: str, triangle: Triangle, source: TileStore, op: str, place: Any, stages: Stages) -> Matrix:
        """The solution with one triangle, on its way."""
        arguments = {"dtype": self.dtype.name, "uplo": triangle.uplo, "op": triangle.op, "unit": triangle.unit}
        operands, limits = {"a": (triangle.store, "N"), "b": (source, op)}, stages.limits
        with Result(
            self.name,
            self.right.shape,
            self.dtype,
            place,
            chunks=_chunks(triangle.store, source, self.dtype, limits["memory"]),
            request=lambda: request_of(name, arguments, operands),
        ) as result:
            if result.finished:
                return result.opened()
            substitute(self.name, triangle, source, result.store, self.dtype, journal=result.journal, **limits)
            found: Matrix = result.finish()
            return found

    def _must_be_beside(self, a: TileStore, given: Any, limit: int | None) -> bool:
        """Whether a place on disk has chunks that are higher than a triangle's tiles: then it cannot be written tile by tile."""
        store = given.store if isinstance(given, Matrix) else None
        if not isinstance(store, ZarrStore):
            return False
        side, _ = chunks_like(a, a.shape, self.dtype, limit)
        return min(store.chunks[0], store.shape[0]) > side

    def _can_hold(self) -> bool:
        """Whether the right-hand side can take the solution."""
        b = self.right
        return b.dtype == self.dtype and b.op == "N" and b.store.structure == "full" and b.store.writable

    def _check(self, first: Triangle, result: Result, source: TileStore | None, limit: int | None) -> None:
        """NaN and infinity in operands show in the solution: only then are the operands searched."""
        from pycauset.evaluate import reduce

        if not result.store.shape[0] * result.store.shape[1]:
            return
        array = in_memory(result.store)
        if array is not None and array.size <= _SMALL:
            finite = bool(np.isfinite(array).all())
        else:
            finite = bool(np.isfinite(reduce("max_abs", result.store, owner=f"{self.name}: looking for NaN")[0, 0]))
        if finite:
            return
        refuse_non_finite(self.name, first.store, "lower" if first.uplo == "L" else "upper", memory=limit)
        if source is not None:
            refuse_non_finite(self.name, source, what="b", memory=limit)
        raise NonFiniteError(
            f"{self.name}: the solution overflows {self.dtype}" + ("" if source is not None else ", or b held NaN or infinity")
        )


def substitute(
    name: str,
    triangle: Triangle,
    b: TileStore | None,
    x: TileStore,
    dtype: np.dtype[Any],
    *,
    memory: Any = None,
    gpu_memory: Any = None,
    progress: Any = None,
    result_bytes: int = 0,
    journal: Any = None,
    check_diagonal: bool = True,
) -> None:
    """``op(T) X = B`` into an output that is open for writing; without ``b`` the right-hand side lies there already."""
    n, m = x.shape
    if not (n and m):
        return
    t, held = in_memory(triangle.store), in_memory(x)
    in_core: Callable[[], None] | None = None
    if journal is None and t is not None and held is not None and takes_rows(t, dtype) and takes_rows(held, dtype):
        rows, target = t, held

        def whole() -> None:
            from pycauset import devices
            from pycauset.devices.blas import trsm

            if check_diagonal and not triangle.unit:
                devices.cpu().kernels["check_diagonal"]((rows,), (), (0,), None)
            if b is not None:
                load(b, target)
            trsm(rows, target, side="L", uplo=triangle.uplo, op=triangle.op, unit=triangle.unit)

        if memory is None and gpu_memory is None and n * (n + m) <= _SMALL:
            whole()
            return
        in_core = whole
    from pycauset.drivers.triangular import TriangularSolveDriver
    from pycauset.solver.blocked import BlockedOperation, in_core_seconds, run

    flops = (4.0 if dtype.kind == "c" else 1.0) * n * n * m
    seconds = in_core_seconds("solve_triangular", flops, dtype, min(n, m)) if in_core is not None else 0.0
    driver = TriangularSolveDriver(
        triangle.store,
        x,
        dtype,
        origin=b,
        uplo=triangle.uplo,
        op=triangle.op,
        unit=triangle.unit,
        journal=journal,
        check=check_diagonal,
    )
    operation = BlockedOperation(
        name, driver, flops, memory, gpu_memory, result_bytes, progress, in_core, seconds, repeatable=b is not None
    )
    run(operation, journal)


def _chunks(t: TileStore, b: TileStore, dtype: np.dtype[Any], limit: int | None) -> tuple[int, int]:
    """Chunks of a solution on disk: those of the right-hand side if they fit to the triangle's, else as high as these."""
    side, _ = chunks_like(t, t.shape, dtype, limit)
    if b.path is not None and b.chunks[0] == t.chunks[0] == side:
        return b.chunks
    rows, cols = max(1, b.shape[0]), max(1, b.shape[1])
    return min(side, rows), min(side, cols)
