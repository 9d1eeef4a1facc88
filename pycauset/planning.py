"""What an operation would do and cost, without doing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pycauset.errors import ConfigError
from pycauset.linalg.operands import dimensions
from pycauset.linalg.products import factor_of
from pycauset.matrix import asmatrix

if TYPE_CHECKING:
    from pycauset.solver import SolverPlan

__all__ = ["plan"]


def plan(operation: str, a: Any, b: Any, *, out_on_disk: bool = False, memory: Any = None, gpu_memory: Any = None) -> SolverPlan:
    """What an operation would do and cost, without doing it: ``plan("matmul", A, B).explain()``.

    Raises
    ------
    ConfigError
        If no such operation can be planned.
    MemoryLimitError
        From ``plan.route``, if nothing fits the limits.
    """
    from pycauset.solver import plan as solver_plan

    if operation != "matmul":
        raise ConfigError(f"plan: the operation is {operation!r}; only 'matmul' can be planned")
    x = asmatrix(a)
    x = x.T if dimensions("plan", a, "first") == 1 else x
    return solver_plan(
        "matmul", factor_of(x), factor_of(asmatrix(b)), out_on_disk=out_on_disk, memory=memory, gpu_memory=gpu_memory
    )
