"""A machine whose memory the tests decide."""

from __future__ import annotations

from dataclasses import dataclass

from pycauset.governor import MemoryGovernor, Ticket
from pycauset.governor.ticket import Kind

GB = 1_000_000_000


@dataclass
class FakeMemory:
    """Stands for the probe: `total` and `free` in bytes."""

    total: int = 64 * GB
    free: int = 40 * GB

    def __call__(self) -> FakeMemory:
        return self


def governed(total: int = 64 * GB, free: int = 40 * GB) -> tuple[MemoryGovernor, FakeMemory]:
    memory = FakeMemory(total, free)
    return MemoryGovernor(memory, refresh_seconds=0), memory


class Cache:
    """Holds tickets for later use and gives back the oldest under pressure, as devices do."""

    def __init__(self, governor: MemoryGovernor) -> None:
        self.tickets: list[Ticket] = []
        self.asked: list[tuple[str, int]] = []
        self.remove = governor.add_reclaimer(self.reclaim)

    def reclaim(self, kind: Kind, nbytes: int) -> int:
        self.asked.append((kind, nbytes))
        freed = 0
        for ticket in [t for t in self.tickets if t.kind == kind]:
            if freed >= nbytes:
                break
            self.tickets.remove(ticket)
            ticket.release()
            freed += ticket.nbytes
        return freed
