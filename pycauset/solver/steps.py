"""Plans of blocked operations, of one step or several: what `pycauset.plan` shows of factorisations, systems and inverses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pycauset import config
from pycauset.errors import ConfigError
from pycauset.governor import governor
from pycauset.solver.blocked import BlockedOperation, routes
from pycauset.solver.execute import _Phantom
from pycauset.solver.factor import Layout
from pycauset.solver.routes import SolverPlan
from pycauset.storage import ArrayStore, TileStore
from pycauset.units import format_seconds

__all__ = ["BlockedSolverPlan", "StepwisePlan", "pretended_result", "solver_plan"]

_ROOM = 64 << 20  # as `pycauset.evaluate.new_result` leaves to the slots
_UNCOUNTED = 1 << 20


class BlockedSolverPlan(SolverPlan):
    """The routes of one blocked operation: the chosen one and those that lost."""

    __slots__ = ()

    def _title(self) -> str:
        (m, n), layout = self.layout.shape, self.layout
        kind = "" if layout.structure == "full" else f", {layout.structure}"
        return f"{self.operation}: ({m}, {n}) {layout.dtype}{kind}"


@dataclass(frozen=True, slots=True)
class StepwisePlan:
    """An operation of several steps, one after the other.

    Attributes
    ----------
    operation : str
    steps : tuple of SolverPlan
    """

    operation: str
    steps: tuple[SolverPlan, ...]

    @property
    def seconds(self) -> float:
        """Predicted seconds of all steps."""
        return sum(step.seconds for step in self.steps)

    @property
    def flops(self) -> float:
        """Floating-point operations of all steps."""
        return sum(step.flops for step in self.steps)

    def explain(self) -> str:
        """The explanation of each step, below the sum.

        Raises
        ------
        MemoryLimitError, BackendError
            If a step has no way through.
        """
        lines = [f"{self.operation}: {len(self.steps)} steps, about {format_seconds(self.seconds)}"]
        for number, step in enumerate(self.steps, 1):
            lines += [f"step {number}", *("  " + line for line in step.explain().split("\n"))]
        return "\n".join(lines)


def pretended_result(layout: Layout, limit: int | None, *, on_disk: bool) -> TileStore:
    """Stands for a result that does not exist yet, where it would lie: on disk, or in RAM (of which it takes none, unwritten)."""
    nbytes = layout.shape[0] * layout.shape[1] * layout.dtype.itemsize
    fits = (limit is None or 2 * nbytes <= limit) and (nbytes < _UNCOUNTED or governor().available("host") >= nbytes + _ROOM)
    if on_disk or not fits:
        return _Phantom(layout, False)
    return ArrayStore(np.empty(layout.shape, layout.dtype))


def solver_plan(operation: BlockedOperation, layout: Layout) -> BlockedSolverPlan:
    """The routes of an operation as `pycauset.solver.blocked.run` would compare them."""
    if 0 in layout.shape:
        raise ConfigError(f"plan: a result of shape {layout.shape} has no elements, there is nothing to plan")
    found, limits = routes(operation)
    return BlockedSolverPlan(
        operation.name, layout, layout.shape[0], found, operation.flops, config.get("backend"), limits, operation.result_bytes
    )
