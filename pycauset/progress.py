"""Progress on work that takes more than two seconds: a bar on a terminal, a caller's own function, or nothing.

rich comes in with the first bar that is shown. No thread is started: the bar is redrawn by those who report progress.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

from pycauset import config
from pycauset.errors import ConfigError
from pycauset.units import format_flops, format_rate, format_seconds

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["ProgressOption", "Report", "reporter"]

ProgressOption: TypeAlias = Callable[[float, float], object] | bool | None
"""``progress``: None (the setting decides, else a bar on a terminal), True, False, or ``f(done, total)``."""


class Report(Protocol):
    """Takes the amount of work done so far, and, of an iteration, what it is at: shown where else the rate stands."""

    def __call__(self, done: float, note: str = "") -> None: ...


_PATIENCE: Final = 2.0  # seconds of work before a bar appears by itself
_REDRAW: Final = 0.2
_FORMATS: Final = {"flop": format_flops, "byte": format_rate}


def reporter(
    progress: ProgressOption, title: str, total: float, *, unit: Literal["flop", "byte"] = "flop"
) -> AbstractContextManager[Report]:
    """Return a context manager whose function takes the amount of work done so far.

    Parameters
    ----------
    progress : callable, bool or None
        None asks the setting ``progress``; if that says nothing either, a bar appears on standard error after two
        seconds, when standard error is a terminal. True shows it at once, to any file. False is quiet. A callable is
        called as ``progress(done, total)``, in the thread that reports; what it raises ends the work.
    title : str
        Stands before the bar.
    total : float
        All of the work: floating-point operations, or bytes.
    unit : {"flop", "byte"}
        Decides how the rate is written.

    Raises
    ------
    ConfigError
        If ``progress`` is something else.

    Examples
    --------
    >>> with reporter(lambda done, total: print(f"{done / total:.0%}"), "C = A B", 2e9) as report:
    ...     report(1e9)
    50%
    """
    if callable(progress):
        return _passed_on(progress, total)
    if progress is not None and not isinstance(progress, bool):
        raise ConfigError(f"progress is {progress!r}; it must be True, False, None, or a function of (done, total)")
    wish: bool | None = config.get("progress") if progress is None else progress
    if wish is False or (wish is None and not _is_terminal()):
        return contextlib.nullcontext(_nothing)
    return _Bar(title, total, unit, patience=0.0 if wish else _PATIENCE)


def _nothing(done: float, note: str = "") -> None:
    """Quiet."""


@contextlib.contextmanager
def _passed_on(call: Callable[[float, float], object], total: float) -> Iterator[Report]:
    def report(done: float, note: str = "") -> None:
        call(done, total)

    yield report


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # no standard error, or a closed one
        return False


class _Bar:
    """Shows nothing until ``patience`` seconds have passed, then a bar with rate and time left."""

    def __init__(self, title: str, total: float, unit: Literal["flop", "byte"], *, patience: float) -> None:
        self._title, self._total, self._format = title, max(total, 0.0), _FORMATS[unit]
        self._begin = monotonic()
        self._next = self._begin + patience
        self._bar: RichProgress | None = None
        self._task: TaskID
        self._done = 0.0
        self._note = ""
        self._broken = False

    def __enter__(self) -> Report:
        self._begin, self._next = (t := monotonic()), t + (self._next - self._begin)
        return self._report

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self._draw(monotonic())
                self._bar.stop()

    def _report(self, done: float, note: str = "") -> None:
        self._done, self._note = done, note
        now = monotonic()
        if now < self._next or self._broken:
            return
        self._next = now + _REDRAW
        try:
            if self._bar is None:
                self._bar = self._show()
            self._draw(now)
        except (OSError, ValueError):  # a closed or vanished terminal is no reason to stop working
            self._broken = True

    def _show(self) -> RichProgress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        console = Console(stderr=True)
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            auto_refresh=False,
            # On a terminal the bar goes when the work is done; elsewhere its last state is all that gets written.
            transient=console.is_terminal,
        )
        self._task = bar.add_task(self._title, total=self._total or 1.0, rate="", left="")
        bar.start()
        return bar

    def _draw(self, now: float) -> None:
        assert self._bar is not None
        spent = now - self._begin
        rate = self._done / spent if spent > 0 else 0.0
        left = f"{format_seconds((self._total - self._done) / rate)} left" if 0 < self._done < self._total and rate > 0 else ""
        self._bar.update(
            self._task, completed=self._done, rate=self._note or (self._format(rate) if rate else ""), left=left, refresh=True
        )
