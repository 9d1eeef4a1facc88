"""What a run leaves behind: totals for each stage, and the timeline of its jobs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import NamedTuple

from pycauset.devices.lanes import LaneStatistics, Span

__all__ = ["StreamStatistics", "write_timeline"]


class StreamStatistics(NamedTuple):
    """What a streamer has done so far. Bytes and seconds are totals over the run.

    ``lanes`` has an entry for each stage (``read``, ``upload``, ``compute``, ``download``, ``write``) with its jobs, bytes,
    busy seconds and stalled seconds (kept waiting by another stage). ``overflows`` counts the times that ``submit`` had to
    wait because the queue was full: a full queue means that the caller is faster than the machine, which is how it should be.
    ``reused`` counts the tasks that did not run, because a journal had their results from an earlier run. ``tiles`` have
    been written, or found, under a journal; ``tiles_reused`` of them it had on record from an earlier run.
    """

    tasks: int
    flops: float
    seconds: float
    hits: int
    misses: int
    slots: int
    slots_used: int
    host_slots: int
    overflows: int
    lanes: dict[str, LaneStatistics]
    reused: int = 0
    tiles: int = 0
    tiles_reused: int = 0

    @property
    def bytes_read(self) -> int:
        """Bytes fetched from stores into host slots."""
        return self.lanes["read"].nbytes

    @property
    def bytes_written(self) -> int:
        """Bytes written from host slots to stores."""
        return self.lanes["write"].nbytes

    @property
    def bytes_uploaded(self) -> int:
        """Bytes copied from host to device (0 on a unified device)."""
        return self.lanes["upload"].nbytes if "upload" in self.lanes else 0

    @property
    def bytes_downloaded(self) -> int:
        """Bytes copied from device to host (0 on a unified device)."""
        return self.lanes["download"].nbytes if "download" in self.lanes else 0


def write_timeline(spans: Sequence[Span], path: str | os.PathLike[str]) -> None:
    """Write jobs as Chrome-trace JSON (open in ``chrome://tracing`` or Perfetto)."""
    origin = min((span.start for span in spans), default=0.0)
    events = [
        {
            "name": span.name,
            "ph": "X",
            "pid": 0,
            "tid": span.lane,
            "ts": (span.start - origin) * 1e6,
            "dur": (span.end - span.start) * 1e6,
            "args": {"bytes": span.nbytes},
        }
        for span in spans
    ]
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)
