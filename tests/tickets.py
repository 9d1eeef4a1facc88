"""What the process-wide governor has handed out."""

from __future__ import annotations

from pycauset import devices
from pycauset.governor import governor


def host_bytes_in_use() -> int:
    """Host bytes under tickets, without those that only wait for the next run."""
    return governor().in_use("host") - devices.kept_host_bytes()
