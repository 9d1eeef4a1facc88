"""The cache planner: which tile sits in which slot, decided ahead of execution. Pure: no I/O, no clock, no memory.

The planner sees tasks in the driver's order, a window of them ahead. For each task it emits actions:

``Load(tile, slot)``
    Fetch the tile into the slot, whose former content is forgotten.
``Save(tile, slot)``
    Write the slot's dirty tile to the level below.
``Run(task, reads, writes)``
    Run the task on these slots.

Eviction is Belady's: the tile whose next use is furthest away goes first, clean before dirty at equal distance, the
least recently used first among those with no use in the window (which leaves their last users the most time to finish,
so that a fetch can overlap computation). A driver that knows better says so with ``TileTask.drop``: such slots are
free at once and are handed out oldest first. The same planner serves device slots and host slots.

References
----------
.. [1] L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Syst. J. 5 (1966).
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

from pycauset.drivers.task import Tile, TileTask
from pycauset.errors import MemoryLimitError

__all__ = ["IN_PLACE", "Action", "CachePlanner", "Load", "Run", "Save"]

#: The slot number of tiles that are used where they lie (an array in memory that the kernels can reach).
IN_PLACE = -1


class Load(NamedTuple):
    """Bring a tile into a slot; ``forget`` says that the level behind this one need not keep it."""

    tile: Tile
    slot: int
    forget: bool


class Save(NamedTuple):
    """Write a dirty tile back from its slot."""

    tile: Tile
    slot: int


class Run(NamedTuple):
    """Run a task on tiles that lie in the slots named, or in place."""

    task: TileTask
    reads: tuple[int, ...]
    writes: tuple[int, ...]


Action = Load | Save | Run


class _Entry:
    """A resident tile."""

    __slots__ = ("dirty", "slot", "task")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.dirty = False
        self.task = -1  # the last task that uses it, which must not lose it to another operand of its own


class _Pool:
    """Slots of equal size, and the resident tiles in the order in which they may be evicted."""

    __slots__ = ("clean", "dirty", "free", "live", "name", "slots")

    def __init__(self, name: str, first: int, slots: int) -> None:
        self.name = name
        self.slots = slots
        self.free: deque[int] = deque(range(first, first + slots))
        # Tiles with no use in the window, least recently used first.
        self.clean: OrderedDict[Tile, None] = OrderedDict()
        self.dirty: OrderedDict[Tile, None] = OrderedDict()
        # (-next use, dirty, tile); entries that no longer say the truth are skipped when they surface. Kept only once a tile
        # with a use in the window had to go, which drivers that declare their drops never need.
        self.live: list[tuple[int, bool, Tile]] | None = None


class CachePlanner:
    """Plan the slots of one cache level.

    Parameters
    ----------
    pools : sequence of (name, slots)
        Pools of equal slots; slot numbers run through all pools in this order.
    pool_of : sequence of int or None
        For each operand number the index of its pool; None for operands used in place.
    """

    def __init__(self, pools: Sequence[tuple[str, int]], pool_of: Sequence[int | None]) -> None:
        first = 0
        self._pools: list[_Pool] = []
        for name, slots in pools:
            self._pools.append(_Pool(name, first, slots))
            first += slots
        self._pool_of = list(pool_of)
        self._resident: dict[Tile, _Entry] = {}
        self._uses: dict[Tile, deque[int]] = {}
        self._window: deque[TileTask] = deque()
        self._admitted = 0
        self._planned = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        """Tasks in the window: pushed, but not planned yet."""
        return len(self._window)

    def push(self, task: TileTask) -> None:
        """Let the planner see one more task."""
        seq = self._admitted
        self._admitted += 1
        self._window.append(task)
        for tile in task.reads + task.writes:
            pool = self._pool_of[tile.operand]
            if pool is None:
                continue
            uses = self._uses.get(tile)
            if uses is None:
                self._uses[tile] = deque((seq,))
                entry = self._resident.get(tile)
                if entry is not None:
                    self._revive(self._pools[pool], tile, entry, seq)
            elif uses[-1] != seq:
                uses.append(seq)

    def pop(self) -> list[Action]:
        """Plan the oldest task of the window.

        Raises
        ------
        MemoryLimitError
            If a pool has fewer slots than this one task needs.
        """
        task = self._window.popleft()
        seq = self._planned
        self._planned += 1
        resident = self._resident
        actions: list[Action] = []
        slots: list[int] = []
        for tile in task.reads:
            entry = resident.get(tile)
            if entry is None:
                slots.append(self._fetch(tile, seq, actions, task, load=True))
            else:
                self.hits += 1
                entry.task = seq
                slots.append(entry.slot)
        reads = tuple(slots)
        slots = []
        for tile in task.writes:
            entry = resident.get(tile)
            if entry is None:
                slots.append(self._fetch(tile, seq, actions, task, load=False))
                entry = resident.get(tile)
            else:
                entry.task = seq
                slots.append(entry.slot)
            if entry is not None:
                entry.dirty = True
            elif self._pool_of[tile.operand] is not None:
                raise AssertionError(f"{tile} was written without a slot")
        actions.append(Run(task, reads, tuple(slots)))
        for tile in task.reads:
            self._retire(tile, seq)
        for tile in task.writes:
            self._retire(tile, seq)
        for tile in task.drop:
            self._drop(tile, actions)
        return actions

    def finish(self) -> list[Action]:
        """Save what is still dirty, once the window is empty; the tiles stay resident and clean."""
        actions: list[Action] = []
        for pool in self._pools:
            for tile in list(pool.dirty):
                entry = self._resident[tile]
                entry.dirty = False
                actions.append(Save(tile, entry.slot))
                del pool.dirty[tile]
                pool.clean[tile] = None
        return actions

    def slot_of(self, tile: Tile) -> int | None:
        """The slot that holds the tile after all planned actions, or None."""
        entry = self._resident.get(tile)
        return None if entry is None else entry.slot

    # -- the three ways a tile changes place ---------------------------------------------------------------------

    def _fetch(self, tile: Tile, seq: int, actions: list[Action], task: TileTask, *, load: bool) -> int:
        """A slot for a tile that has none, filled if it is to be read."""
        index = self._pool_of[tile.operand]
        if index is None:
            return IN_PLACE
        pool = self._pools[index]
        slot = pool.free.popleft() if pool.free else self._evict(pool, seq, actions)
        entry = self._resident[tile] = _Entry(slot)
        entry.task = seq
        if load:
            self.misses += 1
            actions.append(Load(tile, slot, tile in task.forget))
        return slot

    def _evict(self, pool: _Pool, seq: int, actions: list[Action]) -> int:
        for idle in (pool.clean, pool.dirty):
            for tile in idle:
                entry = self._resident[tile]
                if entry.task != seq:
                    del idle[tile]
                    return self._remove(tile, entry, actions)
        live_tiles = pool.live
        if live_tiles is None:
            live_tiles = pool.live = [
                (-self._uses[tile][0], entry.dirty, tile)
                for tile, entry in self._resident.items()
                if tile in self._uses and self._pools[self._pool_of[tile.operand] or 0] is pool
            ]
            heapq.heapify(live_tiles)
        while live_tiles:
            use, _, tile = heapq.heappop(live_tiles)
            live = self._resident.get(tile)
            uses = self._uses.get(tile)
            if live is None or uses is None or uses[0] != -use or -use == seq or live.task == seq:
                continue
            return self._remove(tile, live, actions)
        raise MemoryLimitError(
            f"the pool {pool.name!r} has {pool.slots} slots, fewer than one task needs at once; "
            "plan smaller tiles or raise the memory limit"
        )

    def _remove(self, tile: Tile, entry: _Entry, actions: list[Action]) -> int:
        if entry.dirty:
            actions.append(Save(tile, entry.slot))
        del self._resident[tile]
        return entry.slot

    def _revive(self, pool: _Pool, tile: Tile, entry: _Entry, seq: int) -> None:
        pool.clean.pop(tile, None)
        pool.dirty.pop(tile, None)
        if pool.live is not None:
            heapq.heappush(pool.live, (-seq, entry.dirty, tile))

    def _retire(self, tile: Tile, seq: int) -> None:
        """The task ``seq`` has used the tile: look to its next use."""
        uses = self._uses.get(tile)
        if uses is None or uses[0] != seq:
            return  # in place, or named twice by one task
        uses.popleft()
        if not uses:
            del self._uses[tile]
        index = self._pool_of[tile.operand]
        entry = self._resident.get(tile)
        if index is None or entry is None:
            return
        pool = self._pools[index]
        if not uses:
            (pool.dirty if entry.dirty else pool.clean)[tile] = None
        elif pool.live is not None:
            heapq.heappush(pool.live, (-uses[0], entry.dirty, tile))

    def _drop(self, tile: Tile, actions: list[Action]) -> None:
        entry = self._resident.pop(tile, None)
        index = self._pool_of[tile.operand]
        if entry is None or index is None:
            return
        pool = self._pools[index]
        pool.clean.pop(tile, None)
        pool.dirty.pop(tile, None)
        if entry.dirty:
            actions.append(Save(tile, entry.slot))
        pool.free.append(entry.slot)
