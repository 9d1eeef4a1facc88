"""What happens to a tile: read, uploaded, computed with, downloaded, written. Each is one job on a lane.

A job is submitted with the completions that it must wait for: those of the jobs that fill the slots it reads, and of all that
use the slots it overwrites. The streamer says what happens and in which order; this says to whom it must yield.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pycauset.devices.base import Device, Lanes
from pycauset.devices.lanes import Completion, Verdict
from pycauset.drivers.cache import IN_PLACE, Load, Run, Save
from pycauset.drivers.generations import Generations
from pycauset.drivers.slots import Slot, SlotMemory
from pycauset.drivers.task import Operand, Tile
from pycauset.storage.base import TileStore

__all__ = ["TileJobs"]


class TileJobs:
    """Jobs of one run on its lanes.

    Attributes
    ----------
    saved : set of Tile
        Tiles (or their pieces) that have been written to their store, for operands that start from another one.
    verdicts : deque of Verdict
        Outcomes that kernels on a GPU still owe, in order.
    """

    def __init__(
        self, device: Device, operands: Sequence[Operand], memory: SlotMemory, lanes: Lanes, generations: Generations
    ) -> None:
        self.saved: set[Tile] = set()
        self.verdicts: deque[Verdict] = deque()
        self._device, self._operands, self._memory, self._lanes = device, operands, memory, lanes
        self._real = device.real
        self._generations = generations
        self._journalled = bool(generations)
        self._stored: dict[Tile, Completion] = {}  # last write-back of a tile, until it is known to be done
        self._prune_at = 256

    def source(self, tile: Tile) -> TileStore:
        """Where a tile is read from: until it has been written for the first time, where its operand originates."""
        operand = self._operands[tile.operand]
        if operand.origin is None or tile in self.saved or (self._journalled and self._generations.recorded(tile)):
            return operand.store
        return operand.origin

    def read(self, tile: Tile, slot: Slot) -> None:
        """From the store into a host slot."""
        operand = self._operands[tile.operand]
        waits = list(slot.busy.values())
        earlier = self._stored.get(tile)  # stays: a second read may start before the first
        if earlier is not None:
            waits.append(earlier)
        lane = self._lanes.read
        done = lane.submit(
            partial(self._fill, self.source(tile), tile, slot) if self._real else _nothing,
            waits,
            name=operand.pool,
            nbytes=(tile.r1 - tile.r0) * (tile.c1 - tile.c0) * operand.dtype.itemsize,
        )
        slot.ready = done
        slot.busy = {id(lane): done}

    def _fill(self, store: TileStore, tile: Tile, slot: Slot) -> None:
        """On a reader's thread: there the slot's memory may come into being."""
        store.read(tile.rect, self._memory.host_view(slot, tile))

    def write(self, tile: Tile, slot: Slot, waits: list[Completion], generation: int) -> Completion:
        """From a host slot to the store."""
        operand = self._operands[tile.operand]
        view = self._memory.host_view(slot, tile)
        work = self._generations.writer(tile, generation, view) if self._journalled else None
        return self._lanes.write.submit(
            work or partial(operand.store.write, tile.rect, view),
            [*waits, *self.verdicts],
            name=operand.pool,
            nbytes=(tile.r1 - tile.r0) * (tile.c1 - tile.c0) * operand.store.dtype.itemsize,
        )

    def remember(self, tile: Tile, done: Completion) -> None:
        """A tile is being written: it counts as saved, and who reads it again waits."""
        self.saved.add(tile)
        if len(self._stored) > self._prune_at:
            self._stored = {t: c for t, c in self._stored.items() if not c.done()}
            self._prune_at = max(256, 2 * len(self._stored))
        self._stored[tile] = done

    def settle(self) -> None:
        """Wait for everything that is being written."""
        for completion in self._stored.values():
            completion.wait()
        self._stored.clear()

    def compute(self, action: Run) -> Completion:
        """A kernel on device slots."""
        task = action.task
        lanes, operands, slots = self._lanes.compute, self._operands, self._memory.device
        view_of, real = self._memory.view, self._real
        lane = lanes[task.stream] if task.stream < len(lanes) else lanes[0]
        waits: list[Completion] = []
        views: list[list[Any]] = [[], []]
        for write, tiles, numbers in ((0, task.reads, action.reads), (1, task.writes, action.writes)):
            for tile, number in zip(tiles, numbers, strict=True):
                operand = operands[tile.operand]
                if number == IN_PLACE:
                    views[write].append(operand.store.view(tile.rect) if real else None)
                    continue
                slot = slots[number]
                if write:
                    waits.extend(slot.busy.values())
                elif slot.ready is not None:
                    waits.append(slot.ready)
                views[write].append(view_of(slot, (tile.r1 - tile.r0, tile.c1 - tile.c0), operand.dtype))
        work = partial(self._device.kernels[task.kernel], views[0], views[1], task.params, lane) if real else _nothing
        done = lane.submit(work, waits, name=task.kernel, flops=task.flops)
        key = id(lane)
        for number in action.reads:
            if number != IN_PLACE:
                slots[number].busy[key] = done
        for number in action.writes:
            if number != IN_PLACE:
                slot = slots[number]
                slot.ready = done
                slot.busy = {key: done}
        check = getattr(done, "check", None)
        if check is not None:
            self.verdicts.append(Verdict(done, check))
        return done

    def transfer(
        self, action: Load | Save, parts: Sequence[Tile], hosts: Sequence[Slot], host_waits: Sequence[list[Completion]]
    ) -> list[Completion]:
        """Upload or download a tile; returns a completion for each host slot.

        ``hosts`` has a slot for each of ``parts``; without any, the tile lies in page-locked memory that is reached directly.
        """
        tile, slot = action.tile, self._memory.device[action.slot]
        operand = self._operands[tile.operand]
        upload = type(action) is Load
        lane = self._lanes.upload if upload else self._lanes.download
        assert lane is not None
        view = self._memory.view(slot, (tile.r1 - tile.r0, tile.c1 - tile.c0), operand.dtype)
        waits = list(slot.busy.values()) if upload else [slot.ready] if slot.ready is not None else []
        completions: list[Completion] = []
        for index, part in enumerate(parts):
            if hosts:
                array = self._memory.host_view(hosts[index], part)
                more = host_waits[index]
            else:
                array = (self.source(part) if upload else operand.store).view(part.rect) if self._real else None
                earlier = self._stored.get(part) if upload else None
                more = [earlier] if earlier is not None else []
            row, col = part.r0 - tile.r0, part.c0 - tile.c0
            work: Callable[..., object] = _nothing
            if self._real:
                work = (
                    partial(self._device.upload, array, view, row, col, lane)
                    if upload
                    else partial(self._device.download, view, row, col, array, lane)
                )
                note = self._generations.noter(tile, part) if self._journalled and not upload and not hosts else None
                if note is not None:  # a copy that is under way is not stopped by a failure
                    work = partial(_both, work, note)
            nbytes = (part.r1 - part.r0) * (part.c1 - part.c0) * operand.dtype.itemsize
            done = lane.submit(work, waits + more, name=operand.pool, nbytes=nbytes)
            completions.append(done)
            waits = []
        if upload:
            slot.ready = done
            slot.busy = {id(lane): done}
        else:
            slot.busy[id(lane)] = done
            if not hosts:
                self.remember(tile, done)
        return completions


def _both(work: Callable[..., object], note: Callable[[], None]) -> object:
    """A copy, and what is known of it once it is under way."""
    done = work()
    note()
    return done


def _nothing() -> None:
    """The work of a simulated job."""
