"""A ticket: the right to hold so many bytes of one kind of memory."""

from __future__ import annotations

import operator
import sys
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from pycauset.errors import ConfigError
from pycauset.units import format_bytes

if TYPE_CHECKING:
    from pycauset.governor.governor import MemoryGovernor

__all__ = ["KINDS", "Holding", "Kind", "Ticket"]

Kind = Literal["pinned", "host", "device"]
KINDS: Final[tuple[Kind, ...]] = ("pinned", "host", "device")


class Holding(NamedTuple):
    """One outstanding ticket, as leak reports show it."""

    serial: int
    kind: Kind
    nbytes: int
    owner: str


def checked_kind(kind: str) -> Kind:
    """`kind`, if there is such a kind of memory."""
    for known in KINDS:
        if kind == known:
            return known
    raise ConfigError(f"memory kind is {kind!r}; it must be one of {', '.join(map(repr, KINDS))}")


def checked_size(nbytes: int) -> int:
    """`nbytes` as a plain int, if it is a size."""
    try:
        size = operator.index(nbytes)
    except TypeError:
        raise ConfigError(f"nbytes is {nbytes!r}; a size in bytes must be an integer") from None
    if size < 0:
        raise ConfigError(f"nbytes is {size}; a size in bytes must not be negative")
    return size


class Ticket:
    """The right to hold `nbytes` of memory of one kind, until `release` or the end of a ``with`` block.

    Tickets come from `MemoryGovernor.request`; nobody makes them. `release` may be called from any thread, and from
    finalizers: it never waits for a lock. A ticket that is collected without having been released gives its bytes back
    and raises a ResourceWarning, as an open file would.

    Attributes
    ----------
    kind : {"pinned", "host", "device"}
    nbytes : int
        Bytes granted, after any `shrink`.
    owner : str
        Who asked, for error messages and leak reports.

    Examples
    --------
    >>> from pycauset.governor import MemoryGovernor
    >>> governor = MemoryGovernor()
    >>> with governor.require("host", 4096, owner="example") as ticket:
    ...     governor.in_use("host")
    4096
    >>> ticket.released, governor.in_use("host")
    (True, 0)
    """

    __slots__ = ("__weakref__", "_governor", "_live", "_nbytes", "_serial", "kind", "owner")

    def __init__(self, governor: MemoryGovernor, serial: int, kind: Kind, nbytes: int, owner: str) -> None:
        self._governor = governor
        self._serial = serial
        self._live = [True]  # list.pop is atomic: of two releases exactly one gets the item
        self._nbytes = nbytes
        self.kind: Final[Kind] = kind
        self.owner: Final = owner

    @property
    def nbytes(self) -> int:
        return self._nbytes

    @property
    def released(self) -> bool:
        return not self._live

    def release(self) -> None:
        """Give the bytes back; releasing twice does nothing."""
        try:
            self._live.pop()
        except IndexError:
            return
        self._governor._give_back(self._serial)

    def shrink(self, nbytes: int) -> None:
        """Keep only `nbytes` and give the rest back.

        Raises
        ------
        ConfigError
            If that would be more than the ticket holds, or the ticket was released.
        """
        self._governor._shrink(self, checked_size(nbytes))

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def __del__(self) -> None:
        if not self.released and not sys.is_finalizing():
            self.release()
            warnings.warn(f"{self!r} was dropped without being released", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        state = ", released" if self.released else ""
        return f"<Ticket {self.kind} {format_bytes(self._nbytes)} of {self.owner!r}{state}>"
