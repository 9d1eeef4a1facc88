"""Lanes: ordered queues of work, and the completions that later work waits for.

A lane is to the host what a stream is to CUDA, and devices offer both behind one method,
``submit(work, waits, ...) -> Completion``. A :class:`ThreadLane` runs its jobs on one or more threads, a
:class:`InlineLane` at once in the caller (synchronous mode). Jobs start in the order in which they were submitted, so a
job may wait for any job submitted earlier, on any lane, without deadlock.

After the first failure the remaining jobs complete without running: whoever waits for them wakes up, and the streamer
raises the failure once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from time import perf_counter
from typing import NamedTuple, Protocol

__all__ = ["Completion", "Failure", "HostCompletion", "InlineLane", "Lane", "LaneStatistics", "Span", "ThreadLane", "Verdict"]


class Failure:
    """The first error of a run, shared by its lanes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.error: BaseException | None = None

    def record(self, error: BaseException) -> None:
        with self._lock:
            if self.error is None:
                self.error = error

    def __bool__(self) -> bool:
        return self.error is not None


class Completion(Protocol):
    """Says when a job is done."""

    @property
    def lane(self) -> Lane | None:
        """Where the job runs; None for a promise whose job is not submitted yet."""

    def wait(self, first: float = 20e-6, longest: float = 1e-3) -> None:
        """Block until the job is done (or skipped after a failure).

        Waits that have to look again and again sleep between looks, ``first`` seconds, then longer, up to ``longest``.
        """

    def done(self) -> bool:
        """Whether the job is done, without blocking."""


class HostCompletion:
    """A latch. A *promise* is one made before its job is submitted: ``resolve`` ties it to the job's own completion."""

    __slots__ = ("_done", "_inner", "_latch", "lane")

    def __init__(self, lane: Lane | None = None) -> None:
        self.lane = lane
        self._latch = threading.Lock()
        self._latch.acquire()
        self._done = False
        self._inner: Completion | None = None

    def set(self) -> None:
        if not self._done:
            self._done = True
            self._latch.release()

    def resolve(self, inner: Completion) -> None:
        self._inner = inner
        self.lane = inner.lane
        self.set()

    def wait(self, first: float = 20e-6, longest: float = 1e-3) -> None:
        if not self._done:
            with self._latch:
                pass
        if self._inner is not None:
            self._inner.wait(first, longest)

    def done(self) -> bool:
        return self._done and (self._inner is None or self._inner.done())

    @property
    def resolved(self) -> bool:
        """Whether the latch is open; what a promise stands for may still be running."""
        return self._done

    @property
    def inner(self) -> Completion:
        """What a resolved promise stands for."""
        return self if self._inner is None else self._inner


class Verdict:
    """A completion that raises: the job is done, and ``check``, asked once, by the first waiter, tells whether it succeeded."""

    __slots__ = ("_check", "_lock", "inner", "lane")

    def __init__(self, inner: Completion, check: Callable[[], None]) -> None:
        self.inner = inner
        self.lane = None
        self._check: Callable[[], None] | None = check
        self._lock = threading.Lock()

    def wait(self, first: float = 20e-6, longest: float = 1e-3) -> None:
        with self._lock:
            if self._check is not None:
                self.inner.wait(first, longest)
                check, self._check = self._check, None
                check()

    def done(self) -> bool:
        return self._check is None


class Span(NamedTuple):
    """One job on the timeline; times in seconds on ``time.perf_counter``'s clock."""

    lane: str
    name: str
    start: float
    end: float
    nbytes: int


class LaneStatistics(NamedTuple):
    """What a lane has done: jobs, bytes moved, seconds at work and seconds kept waiting by other lanes."""

    jobs: int
    nbytes: int
    busy: float
    stalled: float


class Lane(Protocol):
    """An ordered queue of work."""

    name: str

    def submit(
        self, work: Callable[..., object], waits: Iterable[Completion], *, name: str, nbytes: int = 0, flops: float = 0.0
    ) -> Completion:
        """Queue ``work`` behind this lane's earlier jobs and the completions in ``waits``."""

    def statistics(self) -> LaneStatistics:
        """Totals so far."""

    def close(self) -> None:
        """Finish what is queued and free the lane's threads."""


class ThreadLane:
    """Jobs on ``threads`` threads, started first-in first-out.

    With one thread the lane is ordered like a stream: a job need not wait for earlier jobs of its own lane.
    """

    def __init__(self, name: str, threads: int, failure: Failure, timeline: list[Span] | None = None) -> None:
        self.name = name
        self.ordered = threads == 1
        self._failure = failure
        self._timeline = timeline
        self._queue: SimpleQueue[tuple[Callable[[], object], tuple[Completion, ...], HostCompletion, str, int] | None] = (
            SimpleQueue()
        )
        self._lock = threading.Lock()
        self._jobs = self._nbytes = 0
        self._busy = self._stalled = 0.0
        self._threads = [threading.Thread(target=self._serve, name=f"pycauset-{name}-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(
        self, work: Callable[..., object], waits: Iterable[Completion], *, name: str, nbytes: int = 0, flops: float = 0.0
    ) -> HostCompletion:
        done = HostCompletion(self)
        self._queue.put((work, tuple(waits), done, name, nbytes))
        return done

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            work, waits, done, name, nbytes = job
            del job
            asked = start = perf_counter()
            try:
                for completion in waits:
                    if not (self.ordered and completion.lane is self):
                        completion.wait()
                start = perf_counter()
                if not self._failure:
                    work()
            except BaseException as error:  # handed to the submitting thread, which raises it
                self._failure.record(error)
            finally:
                end = perf_counter()
                with self._lock:  # before anybody who waits for the job can ask for the totals
                    self._jobs += 1
                    self._nbytes += nbytes
                    self._busy += end - start
                    self._stalled += start - asked
                    if self._timeline is not None:
                        self._timeline.append(Span(self.name, name, start, end, nbytes))
                done.set()
                del work, waits, done

    def statistics(self) -> LaneStatistics:
        with self._lock:
            return LaneStatistics(self._jobs, self._nbytes, self._busy, self._stalled)

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()


class InlineLane:
    """Runs each job at once in the calling thread: the synchronous mode."""

    def __init__(self, name: str, failure: Failure, timeline: list[Span] | None = None) -> None:
        self.name = name
        self._failure = failure
        self._timeline = timeline
        self._jobs = self._nbytes = 0
        self._busy = 0.0

    def submit(
        self, work: Callable[..., object], waits: Iterable[Completion], *, name: str, nbytes: int = 0, flops: float = 0.0
    ) -> HostCompletion:
        done = HostCompletion(self)
        for completion in waits:
            completion.wait()
        start = perf_counter()
        try:
            if not self._failure:
                work()
        except Exception as error:  # raised by the streamer, once, after the clean-up
            self._failure.record(error)
        finally:
            done.set()
        end = perf_counter()
        self._jobs += 1
        self._nbytes += nbytes
        self._busy += end - start
        if self._timeline is not None:
            self._timeline.append(Span(self.name, name, start, end, nbytes))
        return done

    def statistics(self) -> LaneStatistics:
        return LaneStatistics(self._jobs, self._nbytes, self._busy, 0.0)

    def close(self) -> None:
        pass
