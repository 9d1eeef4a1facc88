"""CUDA streams as lanes, and events as completions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from time import sleep
from typing import TYPE_CHECKING, Any

from pycauset.devices.cublas import Cublas
from pycauset.devices.lanes import Completion, Failure, HostCompletion, LaneStatistics, Span
from pycauset.errors import DeviceError

if TYPE_CHECKING:
    from pycauset.devices.cupy import CupyDevice

__all__ = ["CudaCompletion", "CudaEvent", "CudaLane"]


class CudaEvent:
    """A CUDA event that goes back to its device's stock when nobody holds it any more."""

    __slots__ = ("_stock", "handle")

    def __init__(self, handle: int, stock: list[int]) -> None:
        self.handle = handle
        self._stock = stock

    def __del__(self) -> None:
        self._stock.append(self.handle)


class CudaCompletion:
    """A point in a stream."""

    __slots__ = ("_device", "event", "lane", "sequence")

    def __init__(self, device: CupyDevice, lane: CudaLane, event: CudaEvent, sequence: int) -> None:
        self._device = device
        self.lane = lane
        self.event = event
        self.sequence = sequence

    def wait(self) -> None:
        pause, longest = 20e-6, 2e-3 if self.lane.blas is not None else 400e-6
        while not self.done():
            # Sleeping between looks: CUDA's own blocking wait was measured to burn a tenth of a core.
            sleep(pause)
            pause = min(2 * pause, longest)

    def done(self) -> bool:
        if self.lane.finished >= self.sequence:
            return True
        if self._device.query(self.event.handle):
            self.lane.finished = max(self.lane.finished, self.sequence)
            return True
        return False


class CudaLane:
    """A CUDA stream. Waiting for another stream is the GPU's business, waiting for host work the submitting thread's."""

    def __init__(
        self, name: str, device: CupyDevice, stream: int, failure: Failure, timeline: list[Span] | None, *, sync: bool
    ) -> None:
        self.name = name
        self.stream = stream
        self.blas: Cublas | None = None  # on compute lanes
        self.finished = 0
        self._device = device
        self._failure = failure
        self._timeline = timeline
        self._sync = sync
        self._sequence = 0
        self._seen: dict[int, int] = {}  # other lane -> the last job of it that this stream waits for
        self._spans: deque[tuple[str, CudaEvent, CudaEvent, int, int]] = deque()
        self._last: CudaEvent | None = None
        self._jobs = self._nbytes = 0
        self._busy = self._stalled = 0.0

    def submit(
        self, work: Callable[..., object], waits: Iterable[Completion], *, name: str, nbytes: int = 0, flops: float = 0.0
    ) -> Completion:
        runtime, device = self._device.runtime, self._device
        try:
            for waited in waits:
                completion = waited.inner if isinstance(waited, HostCompletion) and waited.resolved else waited
                if isinstance(completion, CudaCompletion):
                    lane = completion.lane
                    if (
                        lane is not self
                        and self._seen.get(id(lane), 0) < completion.sequence
                        and lane.finished < completion.sequence
                    ):
                        runtime.streamWaitEvent(self.stream, completion.event.handle)
                        self._seen[id(lane)] = completion.sequence
                else:
                    completion.wait()
            if self._failure:
                return _skipped(self)
            begin = device.event()
            runtime.eventRecord(begin.handle, self.stream)
            work()
            end = device.event()
            runtime.eventRecord(end.handle, self.stream)
        except Exception as error:  # raised by the streamer, once, after the clean-up
            self._failure.record(device.translate(error, f"{name} on the {self.name} stream"))
            return _skipped(self)
        self._sequence += 1
        self._jobs += 1
        self._nbytes += nbytes
        self._spans.append((name, begin, end, nbytes, self._sequence))
        if len(self._spans) > 512:
            self._harvest(block=False)
        completion = CudaCompletion(device, self, end, self._sequence)
        if self._sync:
            try:
                completion.wait()
            except DeviceError as error:
                self._failure.record(error)
        return completion

    def _harvest(self, *, block: bool) -> None:
        """Turn the events of finished jobs into seconds."""
        runtime, device = self._device.runtime, self._device
        while self._spans:
            name, begin, end, nbytes, sequence = self._spans[0]
            if block:
                runtime.eventSynchronize(end.handle)
            elif sequence > self.finished:
                return
            self._spans.popleft()
            busy = runtime.eventElapsedTime(begin.handle, end.handle) * 1e-3
            self._busy += busy
            if self._last is not None:
                self._stalled += max(0.0, runtime.eventElapsedTime(self._last.handle, begin.handle) * 1e-3)
            self._last = end
            if self._timeline is not None:
                start = device.epoch_host + runtime.eventElapsedTime(device.epoch.handle, begin.handle) * 1e-3
                self._timeline.append(Span(self.name, name, start, start + busy, nbytes))

    def statistics(self) -> LaneStatistics:
        if not self._device.lost:
            self._harvest(block=False)
        return LaneStatistics(self._jobs, self._nbytes, self._busy, self._stalled)

    def close(self) -> None:
        """Let the stream come to rest; statistics stay."""
        if not self._device.lost:
            try:
                self._device.runtime.streamSynchronize(self.stream)
                self._harvest(block=True)
            except Exception as error:  # recorded; the streamer raises it
                self._failure.record(self._device.translate(error, f"finishing the {self.name} stream"))


def _skipped(lane: Any) -> HostCompletion:
    done = HostCompletion(lane)
    done.set()
    return done
