"""What every streamed operation goes through: its limits, a clean stop, tasks through the streamer, statistics.

An operation asks :func:`operation_limits` what it may take, plans within that, opens ``limits.scope(...)`` and hands its
driver to :func:`run_streamed`, all inside :func:`clean_stop`. Nothing here knows what is computed.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Protocol, TypeVar

from pycauset import config
from pycauset.devices.base import Device, MemoryScope
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.drivers.task import Barrier, Operand, TileTask
from pycauset.drivers.timeline import StreamStatistics
from pycauset.governor import Scope, governor
from pycauset.solver.circumstances import circumstances, current_tally
from pycauset.units import parse_bytes

__all__ = [
    *("Limits", "StreamedDriver", "clean_stop", "host_reserve", "last_statistics", "least_memory", "named_limit"),
    *("operation_limits", "record_statistics", "run_streamed"),
]

#: What imports, thread stacks and BLAS's own buffers take beside the slots, out of a host limit: an estimate.
_HOST_RESERVE = 72 << 20

_statistics: StreamStatistics | None = None


# -- limits ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes that one operation may take for tiles, and the limits that they follow from.

    Attributes
    ----------
    host : int
        Host memory for tiles, pinned or not.
    pinned : int
        How much of it may be pinned.
    device : int
        GPU memory for tiles.
    memory, gpu_memory : int or None
        The operation's own limits in bytes (argument or setting), None where there is none. A result in RAM is off already.
    reserve : int
        Host bytes that are kept out of ``host`` for what is not tiles; 0 without a limit.
    kept : int
        Pinned bytes that earlier runs left: what needs no pinning again.
    """

    host: int
    pinned: int
    device: int
    memory: int | None = None
    gpu_memory: int | None = None
    reserve: int = 0
    kept: int = 0

    def scope(self, owner: str) -> Scope:
        """The governor's scope of an operation under these limits."""
        return governor().scope(host=self.memory, device=self.gpu_memory, owner=owner)

    def less(self, host: int = 0, device: int = 0) -> Limits:
        """What is left when so many bytes are taken; less than nothing shows as such in the errors of planners."""
        return replace(self, host=self.host - host, device=self.device - device)


def named_limit(value: Any, name: str) -> int | None:
    """An operation's own limit in bytes: the argument ``memory=`` or ``gpu_memory=``, else the setting of that name."""
    return parse_bytes(value) if value is not None else config.get(name)


def least_memory(memory: int, works: Callable[[int], bool]) -> str:
    """The least ``memory=`` above one that does not work with which an operation works, to about a percent.

    Empty if all that the machine has is too little.
    """
    unit = 10**6 if memory >= 10**7 else 10**5
    low = memory // unit  # refused, as what it was rounded from
    high = low + 1
    while not works(high * unit):
        low, high = high, 2 * high
        if high * unit > 2 * governor().available("host"):
            return ""
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle * unit) else (middle, high)
    return f"{high}MB" if unit == 10**6 else f"{high / 10:g}MB"


def operation_limits(memory: Any = None, gpu_memory: Any = None, *, result: int = 0) -> Limits:
    """What an operation may take now. Call it after the devices are up: a GPU that sleeps has no memory yet.

    Parameters
    ----------
    memory, gpu_memory : int, str or None
        Bytes, or text such as ``"4GB"``; None takes the settings.
    result : int
        Bytes of a result in RAM, which has its ticket already and counts under ``memory`` too.

    Raises
    ------
    ConfigError
        If a limit is no size.
    """
    host, device = named_limit(memory, "memory"), named_limit(gpu_memory, "gpu_memory")
    now = circumstances()
    available, reserve = now.host, 0
    if host is not None:
        host = max(host - result, 1)
        reserve = host_reserve(host)
        available = min(available, host - reserve)
    vram = now.device
    if device is not None:
        vram = min(vram, device) if vram else device
    from pycauset.devices.cupy import WORKSPACE_BYTES

    pinned = min(available, now.pinned)
    return Limits(available, pinned, max(0, vram - WORKSPACE_BYTES), host, device, reserve, now.kept)


def host_reserve(memory: int) -> int:
    """What is kept out of a host limit for what is not tiles."""
    return min(_HOST_RESERVE, memory // 2)


# -- running -----------------------------------------------------------------------------------------------------------


class StreamedPlan(Protocol):
    """The part of a plan that the streamer is built from."""

    @property
    def host_slots(self) -> int: ...
    @property
    def host_slot_bytes(self) -> int: ...


P = TypeVar("P", bound=StreamedPlan, contravariant=True)


class StreamedDriver(Protocol[P]):
    """The part of a driver that runs."""

    def operands(self, plan: P) -> Sequence[Operand]: ...
    def tasks(self, plan: P) -> Iterable[TileTask | Barrier]: ...


def run_streamed(
    where: Device,
    driver: StreamedDriver[P],
    plan: P,
    scope: MemoryScope,
    operation: str,
    flops: float,
    progress: Any,
    *,
    readers: int,
    writers: int,
) -> StreamStatistics:
    """Stream a driver's tasks through one device, with progress; its statistics become :func:`last_statistics`.

    Parameters
    ----------
    where : Device
    driver : MatmulDriver or another of its face
        Gives ``operands(plan)`` and ``tasks(plan)``.
    plan : Plan
        Of the same driver, with ``host_slots`` and ``host_slot_bytes``.
    scope : MemoryScope
        Grants the memory.
    operation : str
        For progress bars: ``"matmul"``.
    flops : float
        Of the whole operation, for progress bars.
    progress : bool, callable or None
        As :func:`pycauset.matmul` takes it.
    readers, writers : int
        Threads that read and write stores.
    """
    from pycauset.progress import reporter

    with (
        reporter(progress, f"{operation} on the {where.name}", flops) as report,
        AsyncStreamer(
            where,
            driver.operands(plan),
            scope,
            host_slots=plan.host_slots,
            host_slot_bytes=plan.host_slot_bytes,
            readers=readers,
            writers=writers,
            on_progress=report,
        ) as streamer,
    ):
        streamer.run(driver.tasks(plan))
        statistics = streamer.statistics()
    record_statistics(statistics)
    return statistics


def record_statistics(statistics: StreamStatistics | None) -> None:
    """What :func:`last_statistics` shall return from now on; None after an operation that did not stream."""
    global _statistics
    counted = current_tally()
    _statistics = statistics if counted is None else counted.add(statistics)


def last_statistics() -> StreamStatistics | None:
    """Statistics of this process's last operation, None if it did not stream: for benchmarks and curiosity.

    Of an operation of several steps those of the last one that streamed, but ``reused``, ``tiles`` and ``tiles_reused`` count
    over all steps.
    """
    return _statistics


@contextlib.contextmanager
def clean_stop() -> Iterator[None]:
    """Let SIGTERM end the operation as Ctrl-C does, by an exception: threads stop, tickets return, nothing half-written stays.

    Only in the main thread, and only where the program has no handler of its own.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
