"""A device that moves no data: it counts bytes and advances a virtual clock by the rates of a hardware profile.

It makes schedules testable without a GPU, and answers "what if" questions. Its stores (:class:`SimStore`) have a shape,
a dtype and a place, and no elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pycauset.devices.base import Device, Lanes, MemoryScope, Mode, Slab
from pycauset.devices.lanes import Completion, Failure, Lane, LaneStatistics, Span
from pycauset.devices.rates import Place, Rates
from pycauset.storage.base import TileStore, default_chunks
from pycauset.tiling import Rect

__all__ = ["SimDevice", "SimStore"]


class SimCompletion:
    """A moment of virtual time."""

    __slots__ = ("lane", "time")

    def __init__(self, lane: Lane, time: float) -> None:
        self.lane = lane
        self.time = time

    def wait(self, first: float = 0.0, longest: float = 0.0) -> None:
        return

    def done(self) -> bool:
        return True


class SimLane:
    """Jobs in order on a virtual clock: each starts when the lane and what it waits for are ready."""

    def __init__(self, name: str, seconds: Callable[[str, int, float], float], timeline: list[Span] | None) -> None:
        self.name = name
        self._seconds = seconds
        self._timeline = timeline
        self._jobs = self._nbytes = 0
        self._busy = self._stalled = 0.0
        self.clock = 0.0

    def submit(
        self, work: Callable[..., object], waits: Iterable[Completion], *, name: str, nbytes: int = 0, flops: float = 0.0
    ) -> SimCompletion:
        start = self.clock
        for completion in waits:
            moment: Any = getattr(completion, "inner", completion)
            start = max(start, moment.time)
        end = start + self._seconds(name, nbytes, flops)
        self._jobs += 1
        self._nbytes += nbytes
        self._busy += end - start
        self._stalled += start - self.clock
        self.clock = end
        if self._timeline is not None:
            self._timeline.append(Span(self.name, name, start, end, nbytes))
        return SimCompletion(self, end)

    def statistics(self) -> LaneStatistics:
        return LaneStatistics(self._jobs, self._nbytes, self._busy, self._stalled)

    def close(self) -> None:
        pass


class SimDevice(Device):
    """A pretended CPU (``unified=True``) or GPU.

    Examples
    --------
    >>> from pycauset.devices.rates import Place, Rates
    """

    name = "simulation"
    real = False

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self.kind = rates.kind
        self.unified = rates.kind == "cpu"
        self.kernels = {}

    def lanes(self, *, mode: Mode, failure: Failure, timeline: list[Span] | None, readers: int, writers: int) -> Lanes:
        rates = self.rates

        def copy(bandwidth: float) -> Callable[[str, int, float], float]:
            return lambda kernel, nbytes, flops: nbytes / bandwidth

        def compute(kernel: str, nbytes: int, flops: float) -> float:
            return rates.compute(flops, kernel)

        lanes = Lanes(
            SimLane("read", copy(rates.read), timeline),
            SimLane("write", copy(rates.write), timeline),
            (SimLane("compute", compute, timeline),),
        )
        if not self.unified:
            lanes.upload = SimLane("upload", copy(rates.upload), timeline)
            lanes.download = SimLane("download", copy(rates.download), timeline)
        return lanes

    def device_slab(self, nbytes: int, scope: MemoryScope, owner: str) -> Slab:
        return Slab(nbytes, None)

    host_slab = device_slab

    def view(self, slab: Slab, offset: int, shape: tuple[int, int], dtype: np.dtype[Any]) -> Any:
        return None

    def reaches(self, store: TileStore, dtype: np.dtype[Any]) -> bool:
        place = store.place if isinstance(store, SimStore) else "disk"
        return store.dtype == dtype and (place == "pinned" or (place == "ram" and self.unified))


class SimStore(TileStore):
    """The shape of a matrix, without its elements, for :class:`SimDevice`."""

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: Any = "float64",
        *,
        chunks: tuple[int, int] | None = None,
        place: Place = "disk",
        structure: str = "full",
    ) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.chunks = chunks or default_chunks(shape, self.dtype)
        self.structure = structure
        self.writable = True
        self.attributes: dict[str, Any] = {}
        self.place = place
        self.identity = ("sim", id(self))

    def _read(self, rect: Rect, out: np.ndarray[Any, Any]) -> None:
        raise TypeError("a simulated store has no elements to read")
