"""What a device offers to the streamer: lanes, memory, views of that memory, copies and kernels.

There are two shapes of device. On a *unified* one kernels work on host memory, so that a tile travels
store → host slot → kernel → store. On the other kind it travels store → host slot → device slot → kernel and back.
A kernel is a method of its device's kernel table, called as ``kernel(reads, writes, params, lane)`` with views as the
device makes them; the table is the one place to add a kernel for that device. A kernel that fails raises, or, where its
outcome is known only once the job is complete, returns a function that raises then.
"""

from __future__ import annotations

import abc
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike

from pycauset.devices.lanes import Failure, InlineLane, Lane, Span, ThreadLane
from pycauset.storage.base import TileStore

__all__ = ["Device", "Kernel", "Lanes", "MemoryScope", "Mode", "Slab"]

Mode = Literal["async", "sync"]
Kernel = Callable[[Sequence[Any], Sequence[Any], tuple[Any, ...], Any], Callable[[], None] | None]


class MemoryScope(Protocol):
    """The part of the governor that hands out tickets for one operation."""

    def request(self, kind: Any, nbytes: int, *, owner: str) -> Any:
        """A ticket, or None."""

    def require(self, kind: Any, nbytes: int, *, owner: str) -> Any:
        """A ticket, or MemoryLimitError."""

    def adopt(self, ticket: Any) -> bool:
        """Count a ticket that nobody counts; False if it does not fit."""

    def detach(self, ticket: Any) -> Any:
        """Let a ticket outlive the scope."""


@dataclass(slots=True)
class Lanes:
    """One lane per stage. A unified device has no upload and download lanes."""

    read: Lane
    write: Lane
    compute: tuple[Lane, ...]
    upload: Lane | None = None
    download: Lane | None = None

    def all(self) -> list[Lane]:
        return [lane for lane in (self.read, self.upload, *self.compute, self.download, self.write) if lane is not None]


class Slab:
    """Memory under a ticket: ``array`` is host memory as bytes, ``address`` where it starts (host or device).

    With ``make`` the memory comes into being at its first use, on whichever thread that is: pinning gigabytes takes seconds,
    which then overlap with work. The ticket is there from the start.
    """

    __slots__ = ("_array", "_free", "_lock", "_make", "address", "nbytes", "pinned", "ticket")

    def __init__(
        self,
        nbytes: int,
        ticket: Any,
        *,
        array: np.ndarray[Any, Any] | None = None,
        address: int = 0,
        pinned: bool = False,
        free: Callable[[], None] | None = None,
        make: Callable[[Slab], np.ndarray[Any, Any]] | None = None,
    ) -> None:
        self.nbytes = nbytes
        self.ticket = ticket
        self.address = address
        self.pinned = pinned
        self._array = array
        self._free = free
        self._make = make
        self._lock = threading.Lock()

    @property
    def array(self) -> np.ndarray[Any, Any] | None:
        """The memory as an array of bytes; None for device memory."""
        if self._array is None and self._make is not None:
            with self._lock:
                make = self._make
                if make is not None:  # no other thread was faster
                    self._array = make(self)
                    self._make = None
        return self._array

    def on_release(self, free: Callable[[], None]) -> None:
        """What to do with the memory, and with its ticket, when it is released."""
        self._free = free

    def release(self) -> None:
        """Free the memory, then give the ticket back; a second call does nothing."""
        free, self._free, self._array, self._make = self._free, None, None, None
        if free is not None:
            free()
        if self.ticket is not None:
            self.ticket.release()
            self.ticket = None


class Device(abc.ABC):
    """A place where kernels run. Instances are shared by the process; runs share nothing but the device itself."""

    kind: str
    name: str
    unified: bool
    kernels: Mapping[str, Kernel]
    #: False for a device that only pretends: no store is touched, no memory taken.
    real: bool = True

    @abc.abstractmethod
    def lanes(self, *, mode: Mode, failure: Failure, timeline: list[Span] | None, readers: int, writers: int) -> Lanes:
        """Fresh lanes for one run."""

    @abc.abstractmethod
    def device_slab(self, nbytes: int, scope: MemoryScope, owner: str) -> Slab:
        """Memory for tiles that kernels work on; MemoryLimitError when denied."""

    @abc.abstractmethod
    def host_slab(self, nbytes: int, scope: MemoryScope, owner: str) -> Slab:
        """Host memory for tiles on their way, the fastest kind the governor grants; MemoryLimitError when denied."""

    @abc.abstractmethod
    def view(self, slab: Slab, offset: int, shape: tuple[int, int], dtype: np.dtype[Any]) -> Any:
        """A dense row-major tile at ``offset`` bytes into a device slab, as kernels take it."""

    def array(self, slab: Slab, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Any, Any]:
        """An array module with NumPy's interface, and a device slab as an array of it."""
        assert slab.array is not None
        size = math.prod(shape) * dtype.itemsize
        return np, slab.array[:size].view(dtype).reshape(shape)

    @abc.abstractmethod
    def reaches(self, store: TileStore, dtype: np.dtype[Any]) -> bool:
        """Whether tiles of the store can be used where they lie: by kernels (unified) or by the copy engine."""

    def upload(self, source: np.ndarray[Any, Any], target: Any, row: int, col: int, lane: Any) -> None:
        """Copy a host tile into a part of a device tile, its first element to (row, col)."""
        raise NotImplementedError(f"{self.name} works on host memory")

    def download(self, source: Any, row: int, col: int, target: np.ndarray[Any, Any], lane: Any) -> None:
        """Copy a part of a device tile, from (row, col) on, to a host tile."""
        raise NotImplementedError(f"{self.name} works on host memory")

    def workspace_bytes(self, kernel: str, n: int, dtype: DTypeLike) -> int:
        """Bytes of device memory that ``kernel`` on tiles of order ``n`` needs besides tiles; planners leave them free."""
        return 0

    def prepare(self, kernel: str, n: int, dtype: DTypeLike) -> None:
        """Take the memory that :meth:`workspace_bytes` counts, so that no task has to; MemoryLimitError when denied."""
        return

    def checked(self, doing: str) -> AbstractContextManager[object]:
        """A context in which the errors of the device's libraries become typed ones."""
        return nullcontext()

    def synchronize(self) -> None:
        """Wait for everything the device was asked to do; raises what failed."""
        return

    def host_lanes(self, mode: Mode, failure: Failure, timeline: list[Span] | None, names: Mapping[str, int]) -> list[Lane]:
        """Lanes on host threads, ``names`` giving each its number of threads."""
        if mode == "sync":
            return [InlineLane(name, failure, timeline) for name in names]
        return [ThreadLane(name, threads, failure, timeline) for name, threads in names.items()]
