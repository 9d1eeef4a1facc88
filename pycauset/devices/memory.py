"""Host memory for slots: anonymous pages, huge ones where the kernel gives them, under a governor's ticket.

First touch of fresh memory is slow on virtual machines (0.5 GB/s in small pages), so slabs are taken once per run and
asked for in huge pages, which cost one fault per 2 MiB instead of 512.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

import numpy as np

from pycauset.devices.base import MemoryScope, Slab
from pycauset.errors import MemoryLimitError
from pycauset.tiling import round_up
from pycauset.units import format_bytes

__all__ = ["PAGE", "anonymous_pages", "pageable_slab"]

PAGE = 4096
_HUGE = 2 << 20


def pageable_slab(nbytes: int, scope: MemoryScope, owner: str) -> Slab:
    """Ordinary host memory, page-aligned; MemoryLimitError when the governor or the system says no."""
    size = round_up(max(nbytes, 1), PAGE)
    ticket = scope.require("host", size, owner=owner)
    try:
        array = anonymous_pages(size)
    except (OSError, ValueError) as error:
        ticket.release()
        raise MemoryLimitError(f"the system refused {format_bytes(size)} for {owner}: {error}; lower memory=") from error
    return Slab(size, ticket, array=array, address=array.__array_interface__["data"][0])


def anonymous_pages(size: int) -> np.ndarray[Any, Any]:
    """Fresh memory as bytes, page-aligned, in huge pages where it is large enough; the caller has the ticket."""
    if size < _HUGE:
        return np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=np.uint8)
    # Anonymous maps start at any page; aligning to 2 MiB by hand lets the first and last pages be huge too.
    pages = mmap.mmap(-1, round_up(size, _HUGE) + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(pages, dtype=np.uint8)
    start = -array.__array_interface__["data"][0] % _HUGE
    return array[start : start + size]
