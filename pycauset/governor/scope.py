"""One operation's share of the memory: limits, accounting, and a report of what it forgot to return."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import TYPE_CHECKING

from pycauset.errors import ConfigError
from pycauset.governor.ticket import KINDS, Holding, Kind, Ticket, checked_kind, checked_size
from pycauset.units import format_bytes

if TYPE_CHECKING:
    from pycauset.governor.governor import MemoryGovernor

__all__ = ["Scope"]


class Scope:
    """The tickets of one operation, under its own limits; from `MemoryGovernor.scope`.

    Inside a scope pinned memory counts as host memory too: ``in_use("host")`` and ``peak("host")`` contain it, and the
    host limit covers both. Leaving the ``with`` block releases every ticket that is left. After a clean end leftovers are
    a mistake of the operation: they are listed in `leaks` and reported by a ResourceWarning. A ticket that shall
    outlive the operation (cached tiles, a result in RAM) leaves it by `detach`, and enters another by `adopt`.

    Attributes
    ----------
    owner : str
    leaks : tuple of Holding
        Tickets that were still held when the scope ended.

    Examples
    --------
    >>> from pycauset.governor import MemoryGovernor
    >>> with MemoryGovernor().scope(host=10_000, owner="matmul") as scope:
    ...     with scope.require("host", 8_000):
    ...         print(scope.available("host"), scope.request("host", 4_000))
    2000 None
    >>> scope.peak("host"), scope.leaks
    (8000, ())
    """

    __slots__ = ("_closed", "_governor", "_limits", "_peak", "_tickets", "_used", "leaks", "owner")

    def __init__(self, governor: MemoryGovernor, owner: str, host: int | None, device: int | None) -> None:
        self._governor = governor
        self._limits: dict[Kind, int | None] = {"host": host, "pinned": host, "device": device}
        self._tickets: dict[int, Ticket] = {}
        self._used: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._peak: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._closed = False
        self.owner = owner
        self.leaks: tuple[Holding, ...] = ()

    def request(self, kind: str, nbytes: int, *, owner: str | None = None) -> Ticket | None:
        """As `MemoryGovernor.request`, within the scope's limits; `owner` defaults to the scope's.

        Raises
        ------
        ConfigError
            If there is no such kind, `nbytes` is no size, or the scope has ended.
        """
        self._check_open()
        return self._governor._request(checked_kind(kind), checked_size(nbytes), owner or self.owner, self)

    def require(self, kind: str, nbytes: int, *, owner: str | None = None) -> Ticket:
        """As `request`, or an error that carries the numbers.

        Raises
        ------
        MemoryLimitError
            If the request is denied.
        """
        ticket = self.request(kind, nbytes, owner=owner)
        if ticket is None:
            available = self.available(kind)
            raise self._governor._refusal(checked_kind(kind), nbytes, owner or self.owner, self.budget(kind), available)
        return ticket

    def budget(self, kind: str) -> int:
        """Bytes of this kind that the scope may hold in all, if it were alone."""
        kind = checked_kind(kind)
        governor, limit = self._governor, self._limits[kind]
        with governor._lock:
            governor._look()
            most = governor._most(kind, explicit=self._limits["host"] is not None)
        return most if limit is None else min(limit, most)

    def in_use(self, kind: str) -> int:
        """Bytes of this kind that the scope holds; ``"host"`` contains pinned."""
        kind = checked_kind(kind)
        with self._governor._lock:
            self._governor._settle()
            return self._held(kind)

    def available(self, kind: str) -> int:
        """Bytes that one request could get now, without reclaiming."""
        kind = checked_kind(kind)
        governor = self._governor
        with governor._lock:
            governor._settle()
            governor._look()
            available = governor._available(kind, explicit=self._limits["host"] is not None)
            return max(0, min(available, self._room(kind)))

    def peak(self, kind: str) -> int:
        """The most bytes of this kind that the scope held at any time; ``"host"`` contains pinned."""
        return self._peak[checked_kind(kind)]

    def adopt(self, ticket: Ticket) -> bool:
        """Count a ticket of the process as this scope's; False, and nothing happens, if it does not fit the limits.

        Raises
        ------
        ConfigError
            If the ticket was released, or another scope or governor counts it.
        """
        self._check_open()
        governor = self._governor
        with governor._lock:
            governor._settle()
            record = governor._records.get(ticket._serial) if ticket._governor is governor else None
            if record is None or ticket.released or record.scope is not None:
                raise ConfigError(f"{ticket!r} cannot join the scope of {self.owner!r}: it is released or counted elsewhere")
            if record.nbytes > self._room(record.kind):
                return False
            record.scope = self
            self._book(ticket._serial, ticket)
            return True

    def detach(self, ticket: Ticket) -> Ticket:
        """Let a ticket outlive the scope: the process goes on counting it, the scope does not.

        Raises
        ------
        ConfigError
            If the scope does not hold the ticket.
        """
        governor = self._governor
        with governor._lock:
            governor._settle()
            if ticket._governor is not governor or ticket._serial not in self._tickets or ticket.released:
                raise ConfigError(f"{ticket!r} is not held by the scope of {self.owner!r}")
            record = governor._records[ticket._serial]
            record.scope = None
            self._unbook(ticket._serial, record.kind, record.nbytes)
        return ticket

    def close(self) -> tuple[Holding, ...]:
        """Release what is left and return it as a list of leaks; closing twice does nothing."""
        governor = self._governor
        with governor._lock:
            governor._settle()
            if self._closed:
                return self.leaks
            self._closed = True
            left = tuple(ticket for ticket in self._tickets.values() if not ticket.released)
            self.leaks = tuple(Holding(t._serial, t.kind, t.nbytes, t.owner) for t in left)
        for ticket in left:
            ticket.release()
        return self.leaks

    def __enter__(self) -> Scope:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        leaks = self.close()
        if leaks and kind is None:  # an operation that failed may leave its tickets to us
            listed = ", ".join(f"{leak.owner}: {leak.kind} {format_bytes(leak.nbytes)}" for leak in leaks[:5])
            more = f" and {len(leaks) - 5} more" if len(leaks) > 5 else ""
            message = f"the scope of {self.owner!r} ended with {len(leaks)} tickets not released ({listed}{more})"
            warnings.warn(message, ResourceWarning, stacklevel=2)

    def __repr__(self) -> str:
        held = ", ".join(f"{kind} {format_bytes(self._held(kind))}" for kind in ("host", "device") if self._held(kind))
        return f"<Scope of {self.owner!r}: {'closed' if self._closed else held or 'nothing held'}>"

    # ---- inside; called by the governor with its lock held ---------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError(f"the scope of {self.owner!r} has ended; it grants no more memory")

    def _held(self, kind: Kind) -> int:
        return self._used["host"] + self._used["pinned"] if kind == "host" else self._used[kind]

    def _room(self, kind: Kind) -> int:
        """Bytes left under the scope's own limits."""
        if self._closed:
            return -1  # another thread ended the scope while this request was on its way
        limit = self._limits[kind]
        return 2**63 if limit is None else limit - self._held("device" if kind == "device" else "host")

    def _book(self, serial: int, ticket: Ticket) -> None:
        self._tickets[serial] = ticket
        self._used[ticket.kind] += ticket.nbytes
        for kind in KINDS:
            self._peak[kind] = max(self._peak[kind], self._held(kind))

    def _unbook(self, serial: int, kind: Kind, nbytes: int) -> None:
        del self._tickets[serial]
        self._used[kind] -= nbytes

    def _shrunk(self, kind: Kind, nbytes: int) -> None:
        self._used[kind] -= nbytes
