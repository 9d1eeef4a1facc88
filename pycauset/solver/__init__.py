"""The AutoSolver: the only place that decides which kernel, which device and which path an operation takes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pycauset import devices

if TYPE_CHECKING:
    from pycauset.solver.execute import multiply, plan
    from pycauset.solver.factor import Factor, Layout, kernel_of, layout_of
    from pycauset.solver.routes import Route, SolverPlan
    from pycauset.solver.run import last_statistics

__all__ = ["Factor", "Layout", "Route", "SolverPlan", "is_small", "kernel_of", "last_statistics", "layout_of", "multiply", "plan"]

_HOME = {
    **dict.fromkeys(("multiply", "plan"), "execute"),
    **dict.fromkeys(("Factor", "Layout", "kernel_of", "layout_of"), "factor"),
    **dict.fromkeys(("Route", "SolverPlan"), "routes"),
    "last_statistics": "run",
}

#: Below this many multiply-adds one NumPy call takes less time than asking the cost model would; the second figure is for
#: processes that have a GPU running, to which products that several cores would share may go.
_SMALL, _SMALL_BESIDE_GPU = 384**3, 128**3


def is_small(m: int, n: int, k: int) -> bool:
    """Whether a product of arrays in RAM should go to ``np.matmul`` unasked: deciding would cost more than computing."""
    size = m * n * k
    return size <= _SMALL_BESIDE_GPU or (size <= _SMALL and devices.gpu_is_cold())


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"pycauset.solver.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
