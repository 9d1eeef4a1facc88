"""The memory of one run: slots at both levels, the slabs they lie in, and the tickets for all of it.

Slots are equal places for tiles, cut from slabs that are taken once, before the first task, and given back after the last.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np

from pycauset.devices.base import Device, MemoryScope, Slab
from pycauset.devices.lanes import Completion, Failure
from pycauset.drivers.task import Operand, Tile
from pycauset.errors import MemoryLimitError
from pycauset.storage.base import TileStore

__all__ = ["Slot", "SlotMemory", "temporary_bytes"]

_SLAB_BYTES = 256 << 20


class Slot:
    """Where a tile can lie, and which jobs touched it last, one per lane: what the next job on it must wait for."""

    __slots__ = ("busy", "offset", "ready", "slab", "views")

    def __init__(self, slab: Slab, offset: int) -> None:
        self.slab = slab
        self.offset = offset
        self.ready: Completion | None = None  # the job that makes its content valid
        self.busy: dict[int, Completion] = {}  # lane -> its last job on this slot
        self.views: dict[tuple[int, int], Any] = {}


class SlotMemory:
    """Slots of one run, ``device`` and ``host``.

    Parameters
    ----------
    where : Device
        Makes the slabs.
    operands : sequence of Operand
        Stores that need buffers of their own while they are read or written get tickets for them.
    scope : MemoryScope
        Grants the memory.
    failure : Failure
        Learns what goes wrong while memory is pinned behind the scenes.
    """

    def __init__(self, where: Device, operands: Sequence[Operand], scope: MemoryScope, failure: Failure) -> None:
        self.device: list[Slot] = []
        self.host: list[Slot] = []
        self._where = where
        self._operands = operands
        self._scope = scope
        self._failure = failure
        self._slabs: list[Slab] = []
        self._tickets: list[Any] = []
        self._keeping = ExitStack()
        self._pinner: threading.Thread | None = None
        self._stopping = False

    def take(
        self, pools: Mapping[str, tuple[int, int]], host_slots: int, host_slot_bytes: int, readers: int, writers: int
    ) -> None:
        """Take everything; MemoryLimitError when denied (then :meth:`release` what was taken before).

        Parameters
        ----------
        pools : mapping of str to (int, int)
            Device slots of each pool, and the bytes of one.
        host_slots, host_slot_bytes : int
        readers, writers : int
            Threads that may need buffers of their own at once.
        """
        for name, (slots, nbytes) in pools.items():
            if slots:
                slab = self._where.device_slab(slots * nbytes, self._scope, f"{slots} slots for {name}")
                self._slabs.append(slab)
                self.device += [Slot(slab, i * nbytes) for i in range(slots)]
        if host_slots:
            # Several slabs: pinning them one by one overlaps with work, and a denial half-way leaves the first ones pinned.
            per_slab = max(1, _SLAB_BYTES // host_slot_bytes)
            for first in range(0, host_slots, per_slab):
                count = min(per_slab, host_slots - first)
                slab = self._where.host_slab(count * host_slot_bytes, self._scope, f"{count} host slots")
                self._slabs.append(slab)
                self.host += [Slot(slab, i * host_slot_bytes) for i in range(count)]
            if self._where.real:
                self._pinner = threading.Thread(target=self._pin_ahead, name="pycauset-pin", daemon=True)
                self._pinner.start()
        temporary = temporary_bytes(self._where, self._operands, readers, writers)
        if temporary:
            self._tickets.append(self._scope.require("host", temporary, owner="buffers for tiles that need converting"))
        for store, unit, _ in _sources(self._where, self._operands):
            kept = store.kept_bytes(unit)
            if kept:  # it saves decoding twice; no work fails without it
                with suppress(MemoryLimitError):
                    self._tickets.append(self._scope.require("host", kept, owner=f"chunks of {store} that are read in parts"))
                    self._keeping.enter_context(store.keeping(kept))

    def _pin_ahead(self) -> None:
        """Bring host slabs into being before their first use: pinning is about as slow as the disk that fills them."""
        for slab in tuple(self._slabs):
            if self._failure or self._stopping:
                return
            try:
                _ = slab.array
            except Exception as error:  # raised by the submitting thread
                self._failure.record(error)
                return

    def release(self) -> None:
        """Give everything back; a second call does nothing."""
        self._stopping = True
        if self._pinner is not None:
            self._pinner.join()
        self._keeping.close()
        self.device.clear()
        self.host.clear()
        for slab in self._slabs:
            slab.release()
        self._slabs.clear()
        for ticket in self._tickets:
            ticket.release()
        self._tickets.clear()

    def view(self, slot: Slot, shape: tuple[int, int], dtype: np.dtype[Any]) -> Any:
        """A device slot as kernels take it."""
        view = slot.views.get(shape)
        if view is None or (view.dtype is not dtype and view.dtype != dtype):
            view = slot.views[shape] = self._where.view(slot.slab, slot.offset, shape, dtype)
        return view

    def host_view(self, slot: Slot, tile: Tile) -> Any:
        """A host slot as an array; None on a device that only pretends."""
        shape, dtype = tile.shape, self._operands[tile.operand].dtype
        view = slot.views.get(shape)
        if view is None or view.dtype != dtype:
            if not self._where.real:
                return None
            assert slot.slab.array is not None
            view = slot.views[shape] = np.ndarray(shape, dtype, buffer=slot.slab.array.data, offset=slot.offset)
        return view


def temporary_bytes(device: Device, operands: Sequence[Operand], readers: int, writers: int) -> int:
    """Host bytes that reading and writing may take beside the slots, all threads together."""
    largest = max((store.temporary_bytes(unit, dtype) for store, unit, dtype in _sources(device, operands)), default=0)
    return largest * (readers + writers)


def _sources(device: Device, operands: Sequence[Operand]) -> Iterator[tuple[TileStore, tuple[int, int], np.dtype[Any]]]:
    """Every store that a device does not reach by itself, and the largest rectangle of it that is read at once."""
    for op in operands:
        for store in (op.store, op.origin):
            if store is not None and not device.reaches(store, op.dtype):
                rows, cols = op.tile if device.unified else map(min, op.tile, op.store.chunks)
                yield store, (rows, cols), op.dtype
