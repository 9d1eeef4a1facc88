"""The AutoSolver: the only place that decides which kernel, which device and which path an operation takes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pycauset.solver.execute import last_statistics, multiply, plan
    from pycauset.solver.factor import Factor, Layout, kernel_of, layout_of
    from pycauset.solver.routes import Route, SolverPlan

__all__ = ["Factor", "Layout", "Route", "SolverPlan", "is_small", "kernel_of", "last_statistics", "layout_of", "multiply", "plan"]

_HOME = {
    **dict.fromkeys(("last_statistics", "multiply", "plan"), "execute"),
    **dict.fromkeys(("Factor", "Layout", "kernel_of", "layout_of"), "factor"),
    **dict.fromkeys(("Route", "SolverPlan"), "routes"),
}

#: Below this many multiply-adds one NumPy call takes less time than asking the cost model would, on any machine.
_SMALL = 384**3


def is_small(m: int, n: int, k: int) -> bool:
    """Whether a product of arrays in RAM should go to ``np.matmul`` unasked: deciding would cost more than computing."""
    return m * n * k <= _SMALL


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"pycauset.solver.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
