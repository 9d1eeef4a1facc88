"""What the governor tells about itself. All sizes are in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from pycauset.governor.ticket import checked_kind

__all__ = ["GovernorStatistics", "KindStatistics"]


@dataclass(frozen=True, slots=True)
class KindStatistics:
    """One kind of memory, in bytes.

    Attributes
    ----------
    budget, in_use, peak : int
        Bytes that may be held, that are held, and the most that were held at any time.
    tickets : int
        Tickets outstanding.
    granted, denied : int
        Requests answered so far.
    reclaimed : int
        Bytes that reclaimers gave back under pressure.
    """

    budget: int
    in_use: int
    peak: int
    tickets: int
    granted: int
    denied: int
    reclaimed: int


@dataclass(frozen=True, slots=True)
class GovernorStatistics:
    """What the governor has handed out, by kind of memory; frozen at one moment.

    Attributes
    ----------
    pinned, host, device : KindStatistics
    ram_total, ram_free : int
        The machine's RAM in bytes when it was last looked at.
    """

    pinned: KindStatistics
    host: KindStatistics
    device: KindStatistics
    ram_total: int
    ram_free: int

    def __getitem__(self, kind: str) -> KindStatistics:
        return {"pinned": self.pinned, "host": self.host, "device": self.device}[checked_kind(kind)]
