"""Interrupting work that keeps a journal: not before a tile is there to go on with, however slow the disk is.

Tiles are written behind the computing: which share of the operations is done does not tell whether any tile has come to the disk.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pycauset.drivers.streamer import AsyncStreamer
from pycauset.storage.journal import Journal

_SECONDS = 60.0

_now: list[weakref.ref[Journal]] = []


@contextmanager
def watched_journals() -> Iterator[None]:
    """Within, `leaves_something` knows the journal of what streams now: of several steps the last one's is opened first."""
    begin = AsyncStreamer.__init__

    def noted(self: AsyncStreamer, device: Any, operands: Any, *args: Any, **options: Any) -> None:
        begin(self, device, operands, *args, **options)
        _now[:] = [weakref.ref(operand.journal) for operand in operands if operand.journal is not None]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AsyncStreamer, "__init__", noted)
        try:
            yield
        finally:
            _now.clear()


def leaves_something(done: float, total: float, tiles: int = 1) -> bool:
    """Whether a progress function that raises now leaves so many tiles of the present step on record.

    True for work without a journal. After the last task all tiles are on their way to the disk: then it waits for them.
    """
    journal = _now[0]() if _now else None
    group = None if journal is None else journal._group
    if group is None:
        return True
    until = time.monotonic() + _SECONDS
    while len(group._newest) < tiles and done >= (1 - 1e-9) * total:
        if group.failed or time.monotonic() > until:
            pytest.fail(
                f"all tasks are done, and {len(group._newest)} tiles of {group.store} were written in {_SECONDS:.0f} seconds"
            )
        time.sleep(1e-3)
    return len(group._newest) >= tiles
