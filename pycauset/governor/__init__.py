"""The only place that hands out memory: budgets, tickets, reclaim. All sizes are in bytes."""

from __future__ import annotations

from pycauset.governor.governor import MemoryGovernor, governor
from pycauset.governor.scope import Scope
from pycauset.governor.statistics import GovernorStatistics, KindStatistics
from pycauset.governor.ticket import Holding, Kind, Ticket

__all__ = ["GovernorStatistics", "Holding", "Kind", "KindStatistics", "MemoryGovernor", "Scope", "Ticket", "governor"]
