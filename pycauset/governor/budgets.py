"""How much memory may be handed out: pure functions of what the machine has. All sizes are in bytes.

RAM is one pool that pinned and host tickets share. How much of it is ours to hand out cannot simply be read off the free
RAM: memory that was granted but not yet touched is still free. `reach` brackets it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["device_budget", "host_budget", "pinned_budget", "ram_ceiling", "reach"]

PINNED_LIMIT: Final = 8_000_000_000
HOST_FRACTION: Final = 0.7
CEILING_FRACTION: Final = 0.9
DEVICE_RESERVE: Final = 512 * 1024**2


def reach(previous: int, free: int, in_use: int) -> int:
    """Free RAM as it would be if all tickets were returned.

    The truth lies between `free` (nothing granted has been touched yet) and ``free + in_use`` (all of it has), so the
    last estimate is kept as long as it lies there. A grant therefore does not enlarge the budget before its pages are
    touched, and memory that other processes take shrinks it at once.

    Parameters
    ----------
    previous : int
        The last estimate.
    free : int
        Free RAM now.
    in_use : int
        Bytes of host and pinned tickets now.

    Examples
    --------
    >>> reach(10_000, free=10_000, in_use=4_000)   # granted, not touched
    10000
    >>> reach(10_000, free=6_000, in_use=4_000)    # touched
    10000
    >>> reach(10_000, free=1_000, in_use=4_000)    # another process took 5000
    5000
    """
    return min(max(previous, free), free + in_use)


def pinned_budget(total: int, reachable: int, chosen: int | None = None) -> int:
    """``min(RAM / 2, 0.8 × free RAM, 8 GB)``, unless the user chose a budget.

    Examples
    --------
    >>> pinned_budget(total=64_000_000_000, reachable=5_000_000_000)
    4000000000
    """
    if chosen is not None:
        return chosen
    return min(total // 2, reachable * 4 // 5, PINNED_LIMIT)


def host_budget(reachable: int) -> int:
    """What host tickets may hold unless an operation was given a limit of its own: 0.7 of the free RAM."""
    return int(HOST_FRACTION * reachable)


def ram_ceiling(reachable: int) -> int:
    """What pinned and host tickets may hold together, whatever the user chose: 0.9 of the free RAM.

    A limit that the user names replaces the cautious fractions, but no limit makes memory that the machine lacks.
    """
    return int(CEILING_FRACTION * reachable)


def device_budget(total: int, free: int, in_use: int = 0) -> int:
    """Free device memory (and what our tickets hold of it) minus a reserve of 512 MiB or 1/16 of the device.

    The reserve is for what libraries allocate behind our back and for the display of a desktop machine.
    """
    return max(0, free + in_use - min(DEVICE_RESERVE, total // 16))
