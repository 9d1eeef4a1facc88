"""Progress of iterations: passes over the matrix, converged pairs and the present residual, on the bar of all operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from pycauset.progress import reporter
from pycauset.units import format_seconds

if TYPE_CHECKING:
    from pycauset.drivers.arnoldi import ArnoldiDriver

__all__ = ["watched"]


@contextmanager
def watched(progress: Any, name: str, k: int) -> Iterator[Callable[[ArnoldiDriver, float], None]]:
    """What takes the driver and the share of the present pass that is done: 0 before each pass and at the end, more in between.

    Parameters
    ----------
    progress : bool, callable or None
        As `pycauset.progress.reporter` takes it; a callable gets the number of converged pairs and ``k``.
    name : str
        Stands before the bar.
    k : int
        Pairs wanted.

    Raises
    ------
    ConfigError
        If ``progress`` is something else.
    """
    if callable(progress):

        def call(driver: ArnoldiDriver, share: float) -> None:
            if driver.history and not share:
                progress(driver.history[-1].converged, k)

        yield call
        return
    begin = monotonic()
    done, pace = 0.0, ""
    with reporter(progress, name, 1.0) as report:

        def show(driver: ArnoldiDriver, share: float) -> None:
            nonlocal done, pace
            if not share and driver.passes:
                pace = f" of {format_seconds((monotonic() - begin) / driver.passes)}"
            note = f"{driver.passes} passes{pace}"
            if share:
                note += f", the next at {share:.0%}"
            if driver.history:
                last = driver.history[-1]
                note += f", {last.converged} of {k} converged, residual {last.worst:.1e}"
                done = max(done, _fraction(last.worst, driver.tol, last.converged / k))
            report(done, note)

        yield show


def _fraction(worst: float, tol: float, converged: float) -> float:
    """How much of the way is done: residuals fall about as fast from pass to pass, in powers of ten.

    Examples
    --------
    >>> round(_fraction(1e-4, 1e-8, 0.25), 6)
    0.5
    """
    if converged >= 1:
        return 1.0
    if not 0 < worst < 1 or tol >= 1:
        return 0.0
    return min(0.99, math.log(worst) / math.log(tol))
