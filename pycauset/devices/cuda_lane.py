"""CUDA streams as lanes, and events as completions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

from pycauset.devices.cublas import Cublas
from pycauset.devices.lanes import Completion, Failure, HostCompletion, LaneStatistics, Span
from pycauset.errors import DeviceError

if TYPE_CHECKING:
    from pycauset.devices.cupy import CupyDevice

__all__ = ["CudaCompletion", "CudaLane"]


class CudaCompletion:
    """A point in a stream: the end of one job.

    Its event goes back to the device's stock once the lane knows that the job is finished; nobody asks the event after that.
    """

    __slots__ = ("_device", "check", "ended", "event", "lane", "name", "nbytes", "sequence", "submitted", "waited")

    def __init__(self, device: CupyDevice, lane: CudaLane, event: int, sequence: int, name: str, nbytes: int) -> None:
        self._device = device
        self.lane = lane
        self.event = event
        self.sequence = sequence
        self.name = name
        self.nbytes = nbytes
        self.check: Callable[[], None] | None = None  # what the job could not know before it was done
        self.submitted = 0.0
        self.ended = 0.0
        self.waited: list[CudaCompletion] | None = None  # jobs of other streams that this one had to wait for

    def wait(self, first: float = 20e-6, longest: float = 1e-3) -> None:
        """Sleep between looks: CUDA's own blocking wait was measured to burn a tenth of a core."""
        while not self.done():
            sleep(first)
            first = min(2 * first, longest)

    def done(self) -> bool:
        lane = self.lane
        if lane.finished >= self.sequence:
            return True
        if self._device.query(self.event):
            lane.finished = self.sequence
            return True
        return False


class CudaLane:
    """A CUDA stream. Waiting for another stream is the GPU's business, waiting for host work the submitting thread's.

    One event a job, at its end. When it began follows: it began when it was submitted, when the job before it ended or when
    the last job that it waited for ended, whichever was last.
    """

    def __init__(
        self,
        name: str,
        device: CupyDevice,
        stream: int,
        failure: Failure,
        timeline: list[Span] | None,
        *,
        sync: bool,
    ) -> None:
        self.name = name
        self.stream = stream
        self.blas: Cublas | None = None  # on compute lanes
        self.kept: Any = None  # what a kernel has left in its workspace for the next one
        self.finished = 0
        self._device = device
        self._failure = failure
        self._timeline = timeline
        self._sync = sync
        self._sequence = 0
        self._seen: dict[CudaLane, int] = {}  # other lane -> the last job of it that this stream waits for
        self._open: deque[CudaCompletion] = deque()  # jobs whose times are not known yet
        self._last, self._last_time = 0, 0.0  # the event of the last job whose time is known, and that time
        self._jobs = self._nbytes = 0
        self._busy = self._stalled = 0.0

    def submit(
        self, work: Callable[..., object], waits: Iterable[Completion], *, name: str, nbytes: int = 0, flops: float = 0.0
    ) -> Completion:
        device = self._device
        runtime = device.runtime
        others: list[CudaCompletion] | None = None
        try:
            if not self._last:
                self._begin()
            for waited in waits:
                completion = waited.inner if type(waited) is HostCompletion and waited.resolved else waited
                if type(completion) is CudaCompletion:
                    lane, sequence = completion.lane, completion.sequence
                    if lane is not self and lane.finished < sequence and self._seen.get(lane, 0) < sequence:
                        runtime.streamWaitEvent(self.stream, completion.event)
                        self._seen[lane] = sequence
                        if others is None:
                            others = [completion]
                        else:
                            others.append(completion)
                else:
                    completion.wait()
            if self._failure.error is not None:
                return _skipped(self)
            submitted = perf_counter()
            check = work()
            event = device.take_event()
            runtime.eventRecord(event, self.stream)
        except Exception as error:  # raised by the streamer, once, after the clean-up
            self._failure.record(device.translate(error, f"{name} on the {self.name} stream"))
            return _skipped(self)
        self._sequence = sequence = self._sequence + 1
        done = CudaCompletion(device, self, event, sequence, name, nbytes)
        done.submitted = submitted
        done.waited = others
        if check is not None:
            done.check = check  # type: ignore[assignment]
        self._open.append(done)
        if len(self._open) > 256:
            self._harvest(self.finished)
        if self._sync:
            try:
                done.wait()
            except DeviceError as error:
                self._failure.record(error)
        return done

    def _begin(self) -> None:
        """Tie the stream's clock to the host's."""
        self._last = event = self._device.take_event()
        self._device.runtime.eventRecord(event, self.stream)
        self._device.runtime.eventSynchronize(event)
        self._last_time = perf_counter()

    def _harvest(self, until: int) -> None:
        """Learn the times of jobs up to number ``until``, which are finished, and give their events back."""
        device, jobs = self._device, self._open
        elapsed = device.runtime.eventElapsedTime
        while jobs and jobs[0].sequence <= until:
            job = jobs.popleft()
            before = self._last_time
            job.ended = end = before + elapsed(self._last, job.event) * 1e-3
            start = job.submitted if job.submitted > before else before
            for other in job.waited or ():
                if not other.ended:
                    other.lane._harvest(other.sequence)
                if other.ended > start:
                    start = other.ended
            start = min(start, end)
            job.waited = None
            device.give_event(self._last)
            self._last, self._last_time = job.event, end
            if self._jobs:
                self._stalled += start - before
            self._jobs += 1
            self._nbytes += job.nbytes
            self._busy += end - start
            if self._timeline is not None:
                self._timeline.append(Span(self.name, job.name, start, end, job.nbytes))
        self.finished = max(self.finished, until)

    def statistics(self) -> LaneStatistics:
        if not self._device.lost:
            self._harvest(self.finished)
        waiting = sum(job.nbytes for job in self._open)
        return LaneStatistics(self._jobs + len(self._open), self._nbytes + waiting, self._busy, self._stalled)

    def close(self) -> None:
        """Let the stream come to rest; statistics stay."""
        if not self._device.lost:
            try:
                self._device.runtime.streamSynchronize(self.stream)
                self._harvest(self._sequence)
                if self._last:
                    self._device.give_event(self._last)
                    self._last = 0
            except Exception as error:  # recorded; the streamer raises it
                self._failure.record(self._device.translate(error, f"finishing the {self.name} stream"))


def _skipped(lane: Any) -> HostCompletion:
    done = HostCompletion(lane)
    done.set()
    return done
