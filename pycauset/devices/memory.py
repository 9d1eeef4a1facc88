"""Host memory for slots: anonymous pages, huge ones where the kernel gives them, under a governor's ticket.

First touch of fresh memory is slow on virtual machines (0.5 GB/s in small pages), so slabs are taken once per run and
asked for in huge pages, which cost one fault per 2 MiB instead of 512.
"""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

from pycauset.devices.base import MemoryScope, Slab
from pycauset.errors import MemoryLimitError
from pycauset.tiling import round_up
from pycauset.units import format_bytes

__all__ = ["PAGE", "pageable_slab"]

PAGE = 4096
_HUGE = 2 << 20


def pageable_slab(nbytes: int, scope: MemoryScope, owner: str) -> Slab:
    """Ordinary host memory, page-aligned; MemoryLimitError when the governor or the system says no."""
    size = round_up(max(nbytes, 1), PAGE)
    ticket = scope.require("host", size, owner=owner)
    try:
        # Anonymous maps start at any page; aligning to 2 MiB by hand lets the first and last pages be huge too.
        pages = mmap.mmap(-1, round_up(size, _HUGE) + _HUGE if size >= _HUGE else size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError) as error:
        ticket.release()
        raise MemoryLimitError(f"the system refused {format_bytes(size)} for {owner}: {error}; lower memory=") from error
    if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(pages, dtype=np.uint8)
    start = -array.__array_interface__["data"][0] % _HUGE if size >= _HUGE else 0
    array = array[start : start + size]
    return Slab(size, ticket, array=array, address=array.__array_interface__["data"][0])
