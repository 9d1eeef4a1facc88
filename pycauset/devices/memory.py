"""Host memory for slots: anonymous pages, huge ones where the kernel gives them, under a governor's ticket.

First touch of fresh memory is slow on virtual machines, where the host has to find the pages (the profile holds the rate), and
pinning is slow everywhere. So slabs are taken once per run, asked for in huge pages, which cost one fault per 2 MiB instead of
512, and kept for the next run.
"""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

from pycauset.devices.base import MemoryScope, Slab
from pycauset.errors import MemoryLimitError
from pycauset.tiling import round_up
from pycauset.units import format_bytes

__all__ = ["PAGE", "KeptMemory", "anonymous_pages", "pageable_slab"]

PAGE = 4096
_HUGE = 2 << 20

M = TypeVar("M")


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


class KeptMemory(Generic[M]):
    """Memory of released slabs, under their tickets but in nobody's scope, until the governor wants it back.

    ``free`` ends a piece of memory; its ticket is released here. ``most`` bounds what is kept, in bytes.
    """

    def __init__(self, free: Callable[[M], None], most: float = math.inf) -> None:
        self._free = free
        self._most = most
        self._lock = threading.Lock()
        self._pieces: list[tuple[M, int, Any]] = []

    @property
    def nbytes(self) -> int:
        """Bytes that wait for the next run."""
        with self._lock:
            return sum(size for _, size, _ in self._pieces)

    def own(self, slab: Slab, memory: M, scope: MemoryScope) -> None:
        """Keep a slab's memory when it is released."""
        slab.on_release(functools.partial(self._keep, slab, memory, scope))

    def take(self, size: int, scope: MemoryScope) -> tuple[M, int, Any] | None:
        """Kept memory for a slab with its size and its ticket, now counted in ``scope``; None if nothing fits."""
        with self._lock:
            # The smallest that is large enough, and not much larger: all of it counts under the operation's limit.
            fits = [(kept, i) for i, (_, kept, _) in enumerate(self._pieces) if size <= kept <= size + size // 4]
            piece = self._pieces.pop(min(fits)[1]) if fits else None
        if piece is None or scope.adopt(piece[2]):
            return piece
        self._drop(piece)
        return None

    def reclaim(self, nbytes: int) -> int:
        """Free what was kept first, until ``nbytes`` are free or nothing is left; returns the bytes freed."""
        freed = 0
        while freed < nbytes:
            with self._lock:
                if not self._pieces:
                    break
                piece = self._pieces.pop(0)
            self._drop(piece)
            freed += piece[1]
        return freed

    def _keep(self, slab: Slab, memory: M, scope: MemoryScope) -> None:
        ticket, slab.ticket = slab.ticket, None
        scope.detach(ticket)
        with self._lock:
            self._pieces.append((memory, slab.nbytes, ticket))
        excess = self.nbytes - self._most
        if excess > 0:
            self.reclaim(int(excess))

    def _drop(self, piece: tuple[M, int, Any]) -> None:
        self._free(piece[0])
        piece[2].release()
