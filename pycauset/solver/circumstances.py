"""What plans depend on beside operands and limits, so that a run which is taken up plans as the first one did; and its tally.

An operation of several steps plans each step when it begins. What a plan follows from is therefore recorded when the operation
begins (:func:`circumstances`), and a later run of the same call plans :func:`under` that, not from today's free memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from pycauset import config, devices
from pycauset.drivers.timeline import StreamStatistics
from pycauset.governor import budgets, governor
from pycauset.hardware import current_probe, gpu_memory

__all__ = ["Circumstances", "Tally", "circumstances", "current_tally", "gpu_is_cold", "limits_now", "tally", "under"]


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Numbers and text that JSON can keep.

    Attributes
    ----------
    host, pinned, device, kept : int
        Bytes that can be had, and pinned bytes that earlier runs left.
    cold : bool
        Whether the GPU would have to be started.
    backend : str
        The setting.
    """

    host: int
    pinned: int
    device: int
    kept: int
    cold: bool
    backend: str


_under: ContextVar[tuple[Circumstances | None, int | None, int | None]] = ContextVar("_under", default=(None, None, None))


def circumstances() -> Circumstances:
    """Those that the block of :func:`under` was given, else those of this moment: a GPU that sleeps has no memory yet."""
    given = _under.get()[0]
    if given is not None:
        return given
    held, kept = governor(), devices.kept_pinned_bytes()
    host = _steady(held.available("host") + devices.kept_host_bytes())
    pinned = held.available("pinned") + kept
    return Circumstances(host, pinned, _steady(_gpu_bytes()), kept, devices.gpu_is_cold(), config.get("backend"))


def gpu_is_cold() -> bool:
    """Whether plans have to count CUDA's start."""
    given = _under.get()[0]
    return devices.gpu_is_cold() if given is None else given.cold


@contextlib.contextmanager
def under(given: Circumstances, memory: int | None, gpu_memory: int | None) -> Iterator[None]:
    """Plan everything in the block for these circumstances, whatever they are now.

    ``memory`` and ``gpu_memory`` are the limits of now, which :func:`limits_now` tells: plans for other ones may not keep them.
    """
    token = _under.set((given, memory, gpu_memory))
    try:
        with config.settings(backend=given.backend):
            yield
    finally:
        _under.reset(token)


def limits_now() -> tuple[int | None, int | None]:
    """The limits in bytes of a call that follows the plans of an earlier one."""
    return _under.get()[1:]


def _steady(free: int) -> int:
    """Free memory in steps of two or three percent: it moves all the time, and each figure would make a plan of its own."""
    return free - free % (1 << max(0, free.bit_length() - 6))


def _gpu_bytes() -> int:
    """GPU memory that tickets can get: the described machine's, where one is planned for."""
    described = gpu_memory() if current_probe().measured() is not None else None
    return governor().available("device") if described is None else budgets.device_budget(described.total, described.free)


@dataclass(slots=True)
class Tally:
    """Tasks, and tiles with a journal, of all steps of one operation, and how many of them earlier runs had done."""

    tasks: int = 0
    reused: int = 0
    tiles: int = 0
    tiles_reused: int = 0
    last: StreamStatistics | None = None

    def spared(self, tasks: int, tiles: int) -> None:
        """A step need not be done at all."""
        self.tasks += tasks
        self.reused += tasks
        self.tiles += tiles
        self.tiles_reused += tiles

    def add(self, statistics: StreamStatistics | None) -> StreamStatistics | None:
        """Count a step; its statistics with what all steps so far have reused (the last ones for a step without any)."""
        if statistics is not None:
            self.tasks += statistics.tasks
            self.reused += statistics.reused
            self.tiles += statistics.tiles
            self.tiles_reused += statistics.tiles_reused
            self.last = statistics
        if self.last is not None:
            self.last = self.last._replace(reused=self.reused, tiles=self.tiles, tiles_reused=self.tiles_reused)
        return self.last


_tally: ContextVar[Tally | None] = ContextVar("_tally", default=None)


@contextlib.contextmanager
def tally() -> Iterator[Tally]:
    """Count over all steps of the operation in the block."""
    counted = _tally.get()
    if counted is not None:  # a step that has steps of its own
        yield counted
        return
    counted = Tally()
    token = _tally.set(counted)
    try:
        yield counted
    finally:
        _tally.reset(token)


def current_tally() -> Tally | None:
    """The one of the operation that is at work."""
    return _tally.get()
