"""The AsyncStreamer: the only executor. It feeds tiles to kernels while others are on their way.

Tasks go in at the top, in the driver's order. A cache planner per level turns them into actions; each action becomes a
job on a lane (read, upload, compute, download, write) with the completions it must wait for, and the lanes run side by
side. On a unified device there is one level of slots, in host memory::

    store ──read──► slot ──compute──► slot ──write──► store

On a GPU there are two; the host level follows the device level's misses, piece by piece (a piece is the part of a tile
within one chunk of its store), and tiles that lie in page-locked memory already skip it::

    store ──read──► host slot ──upload──► device slot ──compute──► device slot ──download──► host slot ──write──► store

The queue interface (``submit``, ``submit_batch``, ``poll``, ``flush``, ``is_idle``, ``statistics``) never blocks a
caller that stays within the queue's depth, but for moments that it leaves to threads which read what the GPU waits for.
``run`` drives a whole task generator, barriers included.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from time import perf_counter, sleep
from types import TracebackType
from typing import Any, Self

import numpy as np

from pycauset.devices.base import Device, Lanes, MemoryScope, Mode
from pycauset.devices.lanes import Completion, Failure, HostCompletion, LaneStatistics, Span
from pycauset.drivers.cache import Action, CachePlanner, Load, Run, Save
from pycauset.drivers.generations import Generations
from pycauset.drivers.jobs import TileJobs
from pycauset.drivers.slots import SlotMemory
from pycauset.drivers.task import Barrier, Operand, Tile, TileTask
from pycauset.drivers.timeline import StreamStatistics, write_timeline
from pycauset.storage.base import TileStore
from pycauset.tiling import Rect, cut, round_up

__all__ = ["AsyncStreamer", "has_no_chunks"]

_ALIGN = 4096
#: Tasks that may be under way at once; bounds how much work an interruption must wait for.
_IN_FLIGHT = 48
#: With fewer tasks under way the device may soon have nothing to do.
_FEW = 8
#: Seconds that planning pauses while fewer tasks than that are under way and the next copy waits for a thread that reads: Python
#: would let that thread in after 5 ms only.
_NAP = 50e-6


class AsyncStreamer:
    """Run tile tasks on one device, with everything overlapped.

    Parameters
    ----------
    device : Device
        Where kernels run.
    operands : sequence of Operand
        Tiles name them by position.
    scope : MemoryScope
        Grants the memory of slots; a denial is raised before any work starts.
    host_slots, host_slot_bytes : int
        The host level of a device that is not unified: how many slots of how many bytes.
    readers, writers : int
        Threads that read and write stores.
    lookahead : int, optional
        Tasks that are looked at before the first of them is planned, to choose what to evict; by default as many as slots
        retain. An algorithm that drops every tile itself needs few, and starts sooner.
    mode : {"async", "sync"}
        ``"sync"`` does one thing at a time, in the same order, with the same bits.
    timeline : bool
        Record every job for :meth:`export_timeline`.
    on_progress : callable, optional
        Called in the submitting thread with the floating-point operations finished so far; an attribute that may be changed.
    """

    def __init__(
        self,
        device: Device,
        operands: Sequence[Operand],
        scope: MemoryScope,
        *,
        host_slots: int = 0,
        host_slot_bytes: int = 0,
        readers: int = 2,
        writers: int = 1,
        lookahead: int | None = None,
        mode: Mode = "async",
        timeline: bool = False,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        self.device = device
        self._operands = list(operands)
        self._mode = mode
        self._readers, self._writers = readers, writers
        self._failure = Failure()
        self._timeline: list[Span] | None = [] if timeline else None
        self.on_progress = on_progress
        self._started = perf_counter()
        # Which operands need no slot at the device level, or none at the host level.
        reached = [
            device.reaches(op.store, op.dtype)
            and (op.origin is None or device.reaches(op.origin, op.dtype))
            and op.journal is None
            for op in self._operands
        ]
        self._in_place = [here and device.unified and op.origin is None for here, op in zip(reached, self._operands, strict=True)]
        self._host_in_place = [here and not device.unified for here in reached]
        pools: dict[str, tuple[int, int]] = {}
        for op, in_place in zip(self._operands, self._in_place, strict=True):
            if not in_place:
                slots, nbytes = pools.get(op.pool, (0, 0))
                pools[op.pool] = (max(slots, op.slots), max(nbytes, round_up(op.slot_bytes, _ALIGN)))
        self._pools = pools
        names = list(pools)
        self._planner = CachePlanner(
            [(name, pools[name][0]) for name in names],
            [None if in_place else names.index(op.pool) for op, in_place in zip(self._operands, self._in_place, strict=True)],
        )
        total = sum(slots for slots, _ in pools.values())
        self._window = max(64, min(10 * total, 4096)) if mode == "async" else 10 * max(total, 1)
        self._host_window = max(self._window, 10 * host_slots)
        if lookahead is not None:
            self._window = self._host_window = lookahead
        self._host: CachePlanner | None = None
        if not device.unified and not all(self._host_in_place):
            self._host = CachePlanner([("host", host_slots)], [None if here else 0 for here in self._host_in_place])
        self._host_slots, self._host_slot_bytes = (
            (host_slots, round_up(host_slot_bytes, _ALIGN)) if self._host is not None else (0, 0)
        )
        self._grain = [None if has_no_chunks(op.store) else op.store.chunks for op in self._operands]
        self._cuts: dict[Tile, tuple[Tile, ...]] = {}
        self._memory = SlotMemory(device, self._operands, scope, self._failure)
        self._slots, self._hosts = self._memory.device, self._memory.host
        self._lanes: Lanes | None = None
        self._jobs: TileJobs  # from __enter__ on
        self._eager = mode == "sync" or not device.real
        # Host-level actions not issued yet, with what each slot's job must wait for, the promise of its completion, and the
        # generation of what is written.
        self._waiting: deque[tuple[Action, list[list[Completion]], list[HostCompletion], int]] = deque()
        self._generations = Generations(self._operands)
        self._journalled = bool(self._generations)
        self._reused = 0
        self._numbers: deque[int] = deque()  # of tasks that are submitted, but not planned
        self._running: deque[tuple[int, float, Completion]] = deque()
        self._finished: deque[int] = deque()
        self._submitted = self._completed = self._overflows = 0
        self._flops = 0.0
        self._patience = 50e-6

    # -- life -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._memory.take(self._pools, self._host_slots, self._host_slot_bytes, self._readers, self._writers)
            self._lanes = self.device.lanes(
                mode=self._mode, failure=self._failure, timeline=self._timeline, readers=self._readers, writers=self._writers
            )
        except BaseException:
            self._memory.release()
            raise
        self._jobs = TileJobs(self.device, self._operands, self._memory, self._lanes, self._generations)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._failure.record(error)
        try:
            self._stop()
        finally:
            self._memory.release()
        # Frames of the traceback hold this object: kept here, the error would stay, and the results that its frames hold.
        failed, self._failure.error = self._failure.error, None
        if error is None and failed is not None:
            try:
                raise failed
            finally:
                del failed

    def _stop(self) -> None:
        """Let every lane come to rest. After a failure what is queued is skipped, not run."""
        for _, _, promises, _ in self._waiting:
            for promise in promises:
                promise.set()
        self._waiting.clear()
        if self._lanes is not None:
            for lane in self._lanes.all():
                lane.close()
            try:
                self.device.synchronize()
            except Exception as error:  # raised by __exit__ after everything is released
                self._failure.record(error)

    # -- the queue ------------------------------------------------------------------------------------------------

    def submit(self, task: TileTask) -> int:
        """Queue one task; returns its number. Raises the first error of any stage, once.

        A task whose result an earlier run left on record in the journal counts as finished.
        """
        if self._failure.error is not None:
            self._raise()
        number = self._submitted
        self._submitted += 1
        if self._journalled and self._generations.on_record(task):
            self._reused += 1
            self._completed += 1
            self._flops += task.flops
            self._finished.append(number)
            return number
        self._numbers.append(number)
        self._planner.push(task)
        # The window opens gradually: while slots are still empty nothing is evicted, and the device need not wait.
        if len(self._planner) > min(self._window, 8 + number // 2):
            self._plan_one()
        return number

    def submit_batch(self, tasks: Iterable[TileTask]) -> list[int]:
        """Queue several tasks; returns their numbers."""
        return [self.submit(task) for task in tasks]

    def poll(self) -> int | None:
        """The number of a task that has finished since the last poll, or None. Never blocks."""
        self._harvest()
        if self._failure:
            self._raise()
        return self._finished.popleft() if self._finished else None

    def flush(self) -> None:
        """Run everything that was submitted, and write back every dirty tile."""
        while len(self._planner):
            self._plan_one()
        self._perform(self._planner.finish())
        if self._host is not None:
            while len(self._host):
                self._plan_host()
            self._perform_host(self._host.finish())
            while self._waiting:
                self._issue()
        while self._running:
            self._wait_oldest()
        self._jobs.settle()
        self.device.synchronize()
        if self._failure:
            self._raise()
        self._generations.flush()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is queued or running: the machine waits for the caller."""
        self._harvest()
        return not (len(self._planner) or (self._host is not None and len(self._host)) or self._waiting or self._running)

    def run(self, tasks: Iterable[TileTask | Barrier]) -> None:
        """Run a driver's generator to its end, then flush. A barrier gets host copies of the tiles it names."""
        if not isinstance(tasks, Generator):
            for item in tasks:
                self._accept(item)
        else:
            value: list[np.ndarray[Any, Any]] | None = None
            try:
                while True:
                    value = self._accept(tasks.send(value))
            except StopIteration:
                pass
            finally:
                tasks.close()
        self.flush()

    def _accept(self, item: TileTask | Barrier) -> list[np.ndarray[Any, Any]] | None:
        if isinstance(item, TileTask):
            self.submit(item)
            return None
        self.flush()
        copies = []
        for tile in item.tiles:
            operand = self._operands[tile.operand]
            copy = np.empty(tile.shape, operand.store.dtype)
            self._jobs.source(tile).read(tile.rect, copy)
            copies.append(copy)
        return copies

    def statistics(self) -> StreamStatistics:
        """Totals so far."""
        lanes: dict[str, LaneStatistics] = {}
        for lane in self._lanes.all() if self._lanes else []:
            old = lanes.get(lane.name)
            new = lane.statistics()
            lanes[lane.name] = new if old is None else _sum(old, new)
        return StreamStatistics(
            self._completed,
            self._flops,
            perf_counter() - self._started,
            self._planner.hits,
            self._planner.misses,
            len(self._slots),
            sum(1 for slot in self._slots if slot.views),
            len(self._hosts),
            self._overflows,
            lanes,
            self._reused,
            *self._generations.tiles(),
        )

    def export_timeline(self, path: str | os.PathLike[str]) -> None:
        """Write every job so far as Chrome-trace JSON (open in ``chrome://tracing`` or Perfetto)."""
        write_timeline(self._timeline or [], path)

    # -- planning -------------------------------------------------------------------------------------------------

    def _plan_one(self) -> None:
        if len(self._running) >= _IN_FLIGHT:
            # For half of them at once, in few and long sleeps: each costs CPU time, and the other half keeps the device busy
            # should the last sleep be too long.
            self._overflows += 1
            began = perf_counter()
            self._running[_IN_FLIGHT // 2][2].wait(self._patience, 1.0)
            self._patience = max(50e-6, min((perf_counter() - began) / 4, 20e-3))
            for _ in range(_IN_FLIGHT // 2):
                self._wait_oldest()
        if self._failure:
            self._raise()
        self._perform(self._planner.pop())

    def _perform(self, actions: list[Action]) -> None:
        """Carry out actions of the device level."""
        if self.device.unified:
            for action in actions:
                if type(action) is Run:
                    if self._journalled:
                        self._generations.planned(action.task)
                    self._compute(action)
                elif type(action) is Load:
                    self._jobs.read(action.tile, self._slots[action.slot])
                elif type(action) is Save:
                    slot = self._slots[action.slot]
                    held = self._generations.held(action.tile) if self._journalled else 0
                    done = self._jobs.write(action.tile, slot, [slot.ready] if slot.ready is not None else [], held)
                    slot.busy[id(done.lane)] = done
                    self._jobs.remember(action.tile, done)
            return
        for action in actions:
            if self._journalled and type(action) is Run:
                self._generations.planned(action.task)
            if not isinstance(action, Run) and self._host is not None and not self._host_in_place[action.tile.operand]:
                parts = self._pieces(action.tile)
                held = self._generations.cut(action.tile, parts) if self._journalled else 0
                if type(action) is Load:
                    self._host.push(TileTask("upload", parts, (), (action,), drop=parts if action.forget else ()))
                else:
                    self._host.push(TileTask("download", (), parts, (action, held), drop=parts))
            elif self._host is not None:
                self._host.push(TileTask("device", (), (), (action,)))
            else:
                self._on_device(action)
        if self._host is not None:
            # Reads may start at once while host slots are empty; then the window spans what the host level retains.
            window = self._host_window if self._host.misses + len(self._host) > self._host_slots else 8
            while len(self._host) > window:
                self._plan_host()

    def _plan_host(self) -> None:
        assert self._host is not None
        self._perform_host(self._host.pop())
        # Reads start as soon as they are planned; what follows them waits here, so that reading runs ahead.
        depth = 0 if self._eager else 4 * self._host_slots + 64
        while len(self._waiting) > depth or (self._waiting and len(self._running) < _FEW and self._is_ready()):
            self._issue()
        if self._waiting and len(self._running) < _FEW:
            sleep(_NAP)

    def _is_ready(self) -> bool:
        """Whether the next action can be issued without waiting for a host thread."""
        return all(done.done() for waits in self._waiting[0][1] for done in waits)

    def _perform_host(self, actions: list[Action]) -> None:
        """Carry out actions of the host level: reads at once, the rest in order behind them.

        Slots change their state here, at planning time, by promises; a read planned for a slot's next tile must not be
        mistaken for the content that a waiting upload still needs.
        """
        for action in actions:
            if type(action) is Load:
                while self._eager and self._waiting:
                    self._issue()
                self._jobs.read(action.tile, self._hosts[action.slot])
                continue
            waits: list[list[Completion]] = []
            promises: list[HostCompletion] = []
            held = 0
            if type(action) is Run:
                if self._journalled and action.writes:
                    self._generations.fetched(action.task.writes, action.task.params[1])
                for number in action.reads:
                    self._promise(number, waits, promises, overwrite=False)
                for number in action.writes:
                    self._promise(number, waits, promises, overwrite=True)
            elif type(action) is Save:
                self._promise(action.slot, waits, promises, overwrite=False)
                held = self._generations.held(action.tile) if self._journalled else 0
                self._jobs.remember(action.tile, promises[0])
            self._waiting.append((action, waits, promises, held))

    def _promise(self, number: int, waits: list[list[Completion]], promises: list[HostCompletion], *, overwrite: bool) -> None:
        slot, promise = self._hosts[number], HostCompletion()
        if overwrite:
            waits.append(list(slot.busy.values()))
            slot.ready, slot.busy = promise, {id(promise): promise}
        else:
            waits.append([slot.ready] if slot.ready is not None else [])
            slot.busy[id(promise)] = promise
        promises.append(promise)

    def _issue(self) -> None:
        action, waits, promises, held = self._waiting.popleft()
        if type(action) is Save:
            promises[0].resolve(self._jobs.write(action.tile, self._hosts[action.slot], waits[0], held))
            return
        assert type(action) is Run
        inner: Action = action.task.params[0]
        if not promises:
            self._on_device(inner)
            return
        assert not isinstance(inner, Run)
        hosts = [self._hosts[number] for number in action.reads + action.writes]
        for promise, done in zip(promises, self._jobs.transfer(inner, self._pieces(inner.tile), hosts, waits), strict=True):
            promise.resolve(done)

    def _on_device(self, action: Action) -> None:
        """A kernel, or a copy that needs no host slot."""
        if isinstance(action, Run):
            self._compute(action)
        else:
            self._jobs.transfer(action, (action.tile,), (), ())

    def _compute(self, action: Run) -> None:
        self._running.append((self._numbers.popleft(), action.task.flops, self._jobs.compute(action)))

    def _pieces(self, tile: Tile) -> tuple[Tile, ...]:
        """The parts of a tile that are read and written one by one: cut along chunks, and to the size of a host slot."""
        number = tile.operand
        parts = self._cuts.get(tile)
        if parts is None:
            if len(self._cuts) > 4096:
                self._cuts.clear()
            rects = cut(tile.rect, self._grain[number], self._operands[number].dtype.itemsize, self._host_slot_bytes)
            parts = self._cuts[tile] = tuple([Tile(number, *rect) for rect in rects])
        return parts

    # -- completion -----------------------------------------------------------------------------------------------

    def _harvest(self) -> None:
        while self._running and self._running[0][2].done():
            self._retire()

    def _wait_oldest(self) -> None:
        self._running[0][2].wait()
        self._retire()

    def _retire(self) -> None:
        number, flops, done = self._running.popleft()
        verdicts = self._jobs.verdicts
        if verdicts and verdicts[0].inner is done:
            try:
                verdicts.popleft().wait()
            except Exception as error:  # raised by the submitting thread, once, as any other failure
                self._failure.record(error)
        self._completed += 1
        self._flops += flops
        self._finished.append(number)
        if len(self._finished) > 65536:
            self._finished.popleft()
        if self.on_progress is not None:
            self.on_progress(self._flops)

    def _raise(self) -> None:
        assert self._failure.error is not None
        raise self._failure.error


def has_no_chunks(store: TileStore) -> bool:
    """Whether rectangles of the store are as good as any other: an array in memory."""
    return store.view(Rect(0, 0, 0, 0)) is not None


def _sum(a: LaneStatistics, b: LaneStatistics) -> LaneStatistics:
    """Totals of two lanes of one stage."""
    return LaneStatistics(a.jobs + b.jobs, a.nbytes + b.nbytes, a.busy + b.busy, a.stalled + b.stalled)
