"""The MemoryGovernor: every byte of tile memory is asked for here before it exists, and returned here when it goes."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from pycauset import config
from pycauset.errors import ConfigError, MemoryLimitError
from pycauset.governor import budgets
from pycauset.governor.scope import Scope
from pycauset.governor.statistics import GovernorStatistics, KindStatistics
from pycauset.governor.ticket import KINDS, Holding, Kind, Ticket, checked_kind, checked_size
from pycauset.units import format_bytes, parse_bytes

__all__ = ["MemoryGovernor", "governor"]

# A reclaimer may report bytes that another thread then takes: so a request asks again, but not for ever.
RECLAIM_ROUNDS: Final = 4

REMEDY: Final[dict[Kind, str]] = {
    "pinned": "raise it with pycauset.cuda.set_pinning_budget(), or work in pageable memory",
    "host": "raise the limit (memory=..., PYCAUSET_MEMORY), or release matrices that live in RAM",
    "device": "raise the limit (gpu_memory=..., PYCAUSET_GPU_MEMORY), or force_backend('cpu')",
}


class SystemMemory(Protocol):
    """RAM in bytes, cgroup limits respected: what `hardware.probe.memory_state` returns, or a fake."""

    @property
    def total(self) -> int: ...
    @property
    def free(self) -> int: ...


def _system_memory() -> SystemMemory:
    from pycauset.hardware import probe  # imports psutil

    return probe.memory_state()


@dataclass(slots=True)
class _Counters:
    in_use: int = 0
    peak: int = 0
    tickets: int = 0
    granted: int = 0
    denied: int = 0
    reclaimed: int = 0


@dataclass(slots=True)
class _Record:
    kind: Kind
    nbytes: int
    owner: str
    scope: Scope | None


class MemoryGovernor:
    """Hands out tickets for pinned, host and device memory within their budgets; thread-safe.

    ================  ==========================================================================================
    kind              budget
    ================  ==========================================================================================
    ``"pinned"``      ``min(RAM / 2, 0.8 × free RAM, 8 GB)`` unless `set_pinning_budget` or the setting names one
    ``"host"``        0.7 × free RAM; an operation's own limit replaces it (see `scope`)
    both together     0.9 × free RAM, whatever the user chose
    ``"device"``      free device memory minus a reserve, from `set_device_memory`; 0 until a device is up
    ================  ==========================================================================================

    Free RAM means what would be free if every ticket were returned. A request beyond the budget first asks the
    reclaimers (caches that hold memory for later use) and is then denied: nothing ever waits for memory.

    Parameters
    ----------
    memory : callable, optional
        Returns the machine's RAM as an object with `total` and `free` in bytes. Default: the hardware probe.
    refresh_seconds : float
        How long one look at the machine's memory stays good. A request that would be denied always looks again.

    Examples
    --------
    >>> governor = MemoryGovernor()
    >>> ticket = governor.request("host", 1 << 20, owner="example")
    >>> governor.in_use("host")
    1048576
    >>> ticket.release()
    >>> governor.in_use("host"), governor.statistics().host.peak
    (0, 1048576)
    """

    def __init__(self, memory: Callable[[], SystemMemory] = _system_memory, *, refresh_seconds: float = 0.1) -> None:
        self._memory = memory
        self._refresh_seconds = refresh_seconds
        self._lock = threading.Lock()
        self._counters: dict[Kind, _Counters] = {kind: _Counters() for kind in KINDS}
        self._records: dict[int, _Record] = {}
        self._next_serial = 0
        # Releases may come from finalizers, which the garbage collector runs anywhere, also inside our own locked
        # sections: they only append here, and the next locked section books them.
        self._returned: deque[int] = deque()
        self._reclaimers: list[Callable[[Kind, int], int]] = []
        self._asking = threading.local()
        self._chosen_pinning: int | None = None
        self._device_budget = 0
        self._total = self._free = self._reachable = 0
        self._sampled_at: float | None = None

    # ---- asking -------------------------------------------------------------------------------------------------

    def request(self, kind: str, nbytes: int, *, owner: str) -> Ticket | None:
        """Ask for `nbytes` of memory.

        Parameters
        ----------
        kind : {"pinned", "host", "device"}
        nbytes : int
        owner : str
            Who asks, for error messages and leak reports.

        Returns
        -------
        Ticket or None
            None if it was denied, after the reclaimers were asked.

        Raises
        ------
        ConfigError
            If there is no such kind, or `nbytes` is no size.
        """
        return self._request(checked_kind(kind), checked_size(nbytes), owner, None)

    def require(self, kind: str, nbytes: int, *, owner: str) -> Ticket:
        """`request`, or an error that carries the numbers.

        Raises
        ------
        MemoryLimitError
            If the request is denied.
        """
        ticket = self.request(kind, nbytes, owner=owner)
        if ticket is None:
            raise self._refusal(checked_kind(kind), nbytes, owner, self.budget(kind), self.available(kind))
        return ticket

    def scope(self, *, host: int | None = None, device: int | None = None, owner: str) -> Scope:
        """One operation's limits, as a context manager that returns what the operation left behind.

        Parameters
        ----------
        host, device : int, optional
            Bytes. Pinned tickets count as host too. A host limit replaces the 0.7 of the free RAM that holds without
            one, up to 0.9; a device limit can only narrow the device's budget.
        owner : str
            Name of the operation.
        """
        return Scope(self, owner, None if host is None else checked_size(host), None if device is None else checked_size(device))

    # ---- looking ------------------------------------------------------------------------------------------------

    def budget(self, kind: str) -> int:
        """Bytes of this kind that may be held in all."""
        kind = checked_kind(kind)
        with self._lock:
            self._settle()
            self._look()
            return self._budget(kind)

    def in_use(self, kind: str) -> int:
        """Bytes of this kind that tickets hold; pinned and host are counted apart."""
        kind = checked_kind(kind)
        with self._lock:
            self._settle()
            return self._counters[kind].in_use

    def available(self, kind: str) -> int:
        """Bytes that one request could get now, without reclaiming."""
        kind = checked_kind(kind)
        with self._lock:
            self._settle()
            self._look()
            return self._available(kind, explicit=False)

    def outstanding(self) -> tuple[Holding, ...]:
        """Every ticket that has not been released, oldest first."""
        with self._lock:
            self._settle()
            return tuple(Holding(serial, r.kind, r.nbytes, r.owner) for serial, r in self._records.items())

    def statistics(self) -> GovernorStatistics:
        """Budgets, use, peaks and answers so far, frozen at one moment."""
        with self._lock:
            self._settle()
            self._look()
            pinned, host, device = (
                KindStatistics(self._budget(kind), c.in_use, c.peak, c.tickets, c.granted, c.denied, c.reclaimed)
                for kind, c in self._counters.items()
            )
            return GovernorStatistics(pinned, host, device, self._total, self._free)

    # ---- budgets and reclaim ------------------------------------------------------------------------------------

    def set_pinning_budget(self, nbytes: int | float | str | None) -> None:
        """Choose how much page-locked memory the process may hold; None goes back to the setting or the formula.

        Below what is held now, nothing is torn away: reclaimers are asked for the difference and new requests are denied.

        Parameters
        ----------
        nbytes : int, float, str or None
            Bytes, or text such as ``"4GB"``.

        Raises
        ------
        ConfigError
            If it is no size.
        """
        chosen = None if nbytes is None else parse_bytes(nbytes)
        with self._lock:
            self._settle()
            self._chosen_pinning = chosen
            self._look()
            excess = self._counters["pinned"].in_use - self._budget("pinned")
        if excess > 0:
            self._ask_reclaimers("pinned", excess)

    def set_device_memory(self, total: int, free: int) -> None:
        """Tell how much memory the device has, when it comes up; ``(0, 0)`` when it is gone. Bytes."""
        total, free = checked_size(total), checked_size(free)
        with self._lock:
            self._settle()
            self._device_budget = budgets.device_budget(total, free, self._counters["device"].in_use) if total else 0

    def add_reclaimer(self, reclaim: Callable[[Kind, int], int]) -> Callable[[], None]:
        """Register who can give memory back under pressure.

        Parameters
        ----------
        reclaim : callable
            Called with a kind and the bytes missing, on the requesting thread, outside the lock. It releases tickets of
            that kind that it holds for later use only, and returns the bytes it freed.

        Returns
        -------
        callable
            Removes the reclaimer; calling it twice does nothing.
        """
        with self._lock:
            self._reclaimers.append(reclaim)

        def remove() -> None:
            with self._lock:
                # by identity: two bound methods of one object compare equal
                self._reclaimers[:] = [known for known in self._reclaimers if known is not reclaim]

        return remove

    def reclaim(self, kind: str, nbytes: int | None = None) -> int:
        """Have the reclaimers free `nbytes` (None: all they can) of this kind; returns the bytes they report."""
        return self._ask_reclaimers(checked_kind(kind), 2**63 - 1 if nbytes is None else checked_size(nbytes))

    # ---- inside; names of the form _x(...) below run with the lock held, unless said otherwise ----------------------

    def _request(self, kind: Kind, nbytes: int, owner: str, scope: Scope | None) -> Ticket | None:
        """Takes the lock itself; called without it."""
        for _ in range(RECLAIM_ROUNDS):
            with self._lock:
                self._settle()
                if scope is not None and nbytes > scope._room(kind):
                    break  # the operation's own limit: giving back other people's memory would not help
                self._look()
                missing = self._missing(kind, nbytes, scope)
                if max(missing) > 0:
                    self._look(again=True)
                    missing = self._missing(kind, nbytes, scope)
                if max(missing) <= 0:
                    return self._grant(kind, nbytes, owner, scope)
                hopeless = nbytes > self._most(kind, explicit=_is_explicit(scope))
            if hopeless or getattr(self._asking, "active", False):
                break  # and a reclaimer that itself asks for memory must not start reclaiming again
            own, ram = missing
            freed = self._ask_reclaimers(kind, max(own, ram))
            if freed < ram:  # RAM is short as a whole, so the other kind of RAM helps too
                freed += self._ask_reclaimers("host" if kind == "pinned" else "pinned", ram - freed)
            if freed <= 0:
                break
        with self._lock:
            self._counters[kind].denied += 1
        return None

    def _grant(self, kind: Kind, nbytes: int, owner: str, scope: Scope | None) -> Ticket:
        serial = self._next_serial
        self._next_serial += 1
        ticket = Ticket(self, serial, kind, nbytes, owner)
        self._records[serial] = _Record(kind, nbytes, owner, scope)
        counters = self._counters[kind]
        counters.granted += 1
        counters.tickets += 1
        counters.in_use += nbytes
        counters.peak = max(counters.peak, counters.in_use)
        if scope is not None:
            scope._book(serial, ticket)
        return ticket

    def _settle(self) -> None:
        """Book the releases that came in since the last locked section."""
        while self._returned:
            serial = self._returned.popleft()
            record = self._records.pop(serial)
            counters = self._counters[record.kind]
            counters.tickets -= 1
            counters.in_use -= record.nbytes
            if record.scope is not None:
                record.scope._unbook(serial, record.kind, record.nbytes)

    def _give_back(self, serial: int) -> None:
        """Called without the lock, from any thread or finalizer; never waits."""
        self._returned.append(serial)
        if self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _shrink(self, ticket: Ticket, nbytes: int) -> None:
        """Takes the lock itself; called without it."""
        with self._lock:
            self._settle()
            record = self._records.get(ticket._serial)
            if record is None or ticket.released:
                raise ConfigError(f"{ticket!r} cannot shrink to {nbytes} bytes: it was released")
            given = record.nbytes - nbytes
            if given < 0:
                raise ConfigError(f"{ticket!r} of {record.nbytes} bytes cannot shrink to {nbytes}; request another to grow")
            record.nbytes = ticket._nbytes = nbytes
            self._counters[record.kind].in_use -= given
            if record.scope is not None:
                record.scope._shrunk(record.kind, given)

    def _look(self, *, again: bool = False) -> None:
        """Sample the machine's memory if the last sample is old."""
        now = time.monotonic()
        if again or self._sampled_at is None or now - self._sampled_at >= self._refresh_seconds:
            state = self._memory()
            held = self._counters["host"].in_use + self._counters["pinned"].in_use
            self._total, self._free = state.total, state.free
            self._reachable = budgets.reach(self._reachable, state.free, held)
            self._sampled_at = now

    def _budget(self, kind: Kind) -> int:
        if kind == "device":
            return self._device_budget
        if kind == "host":
            return budgets.host_budget(self._reachable)
        chosen = self._chosen_pinning if self._chosen_pinning is not None else config.get("pinning_budget")
        return budgets.pinned_budget(self._total, self._reachable, chosen)

    def _most(self, kind: Kind, *, explicit: bool) -> int:
        """The most that tickets of this kind could hold if there were no others; `explicit`: under a limit of the user's."""
        if kind == "device":
            return self._device_budget
        ceiling = budgets.ram_ceiling(self._reachable)
        return ceiling if kind == "host" and explicit else min(ceiling, self._budget(kind))

    def _missing(self, kind: Kind, nbytes: int, scope: Scope | None) -> tuple[int, int]:
        """By how many bytes the request exceeds the budget of its own kind, and what RAM as a whole can give."""
        own = self._counters[kind].in_use + nbytes - self._most(kind, explicit=_is_explicit(scope))
        if kind == "device":
            return own, 0
        held = self._counters["host"].in_use + self._counters["pinned"].in_use
        return own, held + nbytes - budgets.ram_ceiling(self._reachable)

    def _available(self, kind: Kind, *, explicit: bool) -> int:
        room = self._most(kind, explicit=explicit) - self._counters[kind].in_use
        if kind != "device":
            held = self._counters["host"].in_use + self._counters["pinned"].in_use
            room = min(room, budgets.ram_ceiling(self._reachable) - held)
        return max(0, room)

    def _ask_reclaimers(self, kind: Kind, nbytes: int) -> int:
        """Takes the lock itself, and calls the reclaimers without it."""
        with self._lock:
            reclaimers = tuple(self._reclaimers)
        freed = 0
        nested = getattr(self._asking, "active", False)
        self._asking.active = True
        try:
            for reclaim in reclaimers:
                if freed >= nbytes:
                    break
                freed += reclaim(kind, nbytes - freed)
        finally:
            self._asking.active = nested
            with self._lock:
                self._settle()
                self._counters[kind].reclaimed += freed
        return freed

    def _refusal(self, kind: Kind, nbytes: int, owner: str, budget: int, available: int) -> MemoryLimitError:
        """Takes the lock itself; called without it."""
        holders: dict[str, int] = {}
        for holding in self.outstanding():
            if holding.kind == kind:
                holders[holding.owner] = holders.get(holding.owner, 0) + holding.nbytes
        largest = sorted(holders.items(), key=lambda item: -item[1])[:3]
        held = ", ".join(f"{name} {format_bytes(size)}" for name, size in largest) or "nobody"
        return MemoryLimitError(
            f"{owner} needs {format_bytes(nbytes)} ({nbytes} bytes) of {kind} memory, but only {format_bytes(available)} of its "
            f"{format_bytes(budget)} are left (held by: {held}); {REMEDY[kind]}"
        )


def _is_explicit(scope: Scope | None) -> bool:
    return scope is not None and scope._limits["host"] is not None


_process_lock = threading.Lock()
_process_governor: MemoryGovernor | None = None


def governor() -> MemoryGovernor:
    """The governor of this process.

    Examples
    --------
    >>> governor() is governor()
    True
    """
    global _process_governor
    with _process_lock:
        if _process_governor is None:
            _process_governor = MemoryGovernor()
        return _process_governor


def _forget_after_fork() -> None:
    # The parent's locks may be held by threads that a forked child does not have; its tickets are the parent's.
    global _process_governor, _process_lock
    _process_lock = threading.Lock()
    _process_governor = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
