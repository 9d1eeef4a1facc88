"""The cache planner against a toy store: its actions give what direct execution gives, with Belady's misses."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycauset.drivers.cache import IN_PLACE, CachePlanner, Load, Run, Save
from pycauset.drivers.task import Tile, TileTask
from pycauset.errors import MemoryLimitError


def tile(number: int, operand: int = 0) -> Tile:
    return Tile(operand, number, number + 1, 0, 1)


def plan_all(planner: CachePlanner, tasks: list[TileTask], window: int) -> list[object]:
    """As the streamer does: keep `window` tasks in sight, then run out."""
    actions: list[object] = []
    for task in tasks:
        planner.push(task)
        if len(planner) > window:
            actions += planner.pop()
    while len(planner):
        actions += planner.pop()
    return actions + planner.finish()


def value_of(name: str, inputs: list[object]) -> object:
    """What a task computes: different for every task and every input."""
    return hash((name, *inputs))


def direct(tasks: list[TileTask]) -> dict[Tile, object]:
    memory: dict[Tile, object] = {}
    for task in tasks:
        inputs = [memory.get(t, ("initial", t)) for t in task.reads]
        for t in task.writes:
            memory[t] = value_of(task.kernel + str(t), inputs)
    return memory


class Replay:
    """Carries out actions on slots and a store, checking each; a slot keeps rubbish until something is put there."""

    def __init__(self, capacity: int, pool_of: list[int | None], first: list[int], slots: list[int]) -> None:
        self.holds: dict[int, Tile] = {}
        self.content: dict[int, object] = {number: f"rubbish {number}" for number in range(capacity)}
        self.dirty: set[int] = set()
        self.store: dict[Tile, object] = {}
        self.pool_of, self.first, self.slots = pool_of, first, slots
        self.leaving: set[Tile] = set()  # dropped, but not saved yet
        self.loads = 0

    def take(self, t: Tile, slot: int) -> None:
        pool = self.pool_of[t.operand]
        assert pool is not None
        assert self.first[pool] <= slot < self.first[pool] + self.slots[pool], "a slot of another pool"
        assert slot not in self.dirty, f"slot {slot} is reused before {self.holds[slot]} was saved"
        self.holds = {s: held for s, held in self.holds.items() if s != slot}
        assert t not in self.holds.values(), f"{t} lies in two slots"
        self.holds[slot] = t

    def __call__(self, action: object) -> None:
        if isinstance(action, Load):
            self.take(action.tile, action.slot)
            self.loads += 1
            self.content[action.slot] = self.store.get(action.tile, ("initial", action.tile))
        elif isinstance(action, Save):
            assert self.holds[action.slot] == action.tile
            self.store[action.tile] = self.content[action.slot]
            self.dirty.discard(action.slot)
            if action.tile in self.leaving:
                self.leaving.discard(action.tile)
                del self.holds[action.slot]
        else:
            assert isinstance(action, Run)
            task = action.task
            inputs = []
            for t, slot in zip(task.reads, action.reads, strict=True):
                if slot == IN_PLACE:
                    inputs.append(self.store.get(t, ("initial", t)))
                else:
                    assert self.holds.get(slot) == t, f"{t} is not in slot {slot}"
                    inputs.append(self.content[slot])
            for t, slot in zip(task.writes, action.writes, strict=True):
                if slot == IN_PLACE:
                    self.store[t] = value_of(task.kernel + str(t), inputs)
                    continue
                if self.holds.get(slot) != t:
                    assert t not in task.reads
                    self.take(t, slot)
                self.content[slot] = value_of(task.kernel + str(t), inputs)
                self.dirty.add(slot)
            for slot, t in list(self.holds.items()):
                if t in task.drop and slot in self.dirty:
                    self.leaving.add(t)
                elif t in task.drop:
                    del self.holds[slot]


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[TileTask], int, list[int], int]:
    operands = draw(st.integers(1, 3))
    in_place = draw(st.booleans())
    tiles = st.builds(tile, st.integers(0, 7), st.integers(0, operands - 1 + in_place))
    tasks = []
    for number in range(draw(st.integers(0, 30))):
        reads = tuple(draw(st.lists(tiles, max_size=3)))
        writes = tuple(draw(st.lists(tiles, max_size=2, unique=True)))
        drop = tuple(draw(st.lists(st.sampled_from(reads + writes), max_size=2, unique=True))) if reads + writes else ()
        tasks.append(TileTask(f"task {number}", reads, writes, drop=drop))
    slots = [draw(st.integers(5, 9)) for _ in range(draw(st.integers(1, operands)))]
    return tasks, operands + in_place, slots, draw(st.sampled_from([0, 1, 3, 100]))


@given(streams())
def test_actions_do_what_direct_execution_does(case):
    tasks, operands, slots, window = case
    pool_of: list[int | None] = [min(i, len(slots) - 1) for i in range(operands)]
    if operands > len(slots):
        pool_of[-1] = None
    first = [sum(slots[:i]) for i in range(len(slots))]
    planner = CachePlanner([(f"pool {i}", n) for i, n in enumerate(slots)], pool_of)
    replay = Replay(sum(slots), pool_of, first, slots)
    actions = plan_all(planner, tasks, window)
    for action in actions:
        replay(action)
    assert [a.task for a in actions if isinstance(a, Run)] == tasks
    assert not replay.dirty, "dirty tiles were lost"
    assert replay.store == direct(tasks)
    assert replay.loads == planner.misses
    assert not replay.leaving
    for slot, held in replay.holds.items():
        assert planner.slot_of(held) == slot


def fewest_misses(sequence: list[int], slots: int) -> int:
    """By exhaustion: the least misses of any replacement policy."""

    @cache
    def best(position: int, held: frozenset[int]) -> int:
        if position == len(sequence):
            return 0
        wanted = sequence[position]
        if wanted in held:
            return best(position + 1, held)
        if len(held) < slots:
            return 1 + best(position + 1, held | {wanted})
        return 1 + min(best(position + 1, held - {victim} | {wanted}) for victim in held)

    return best(0, frozenset())


@given(st.lists(st.integers(0, 5), max_size=18), st.integers(1, 4))
def test_a_window_that_sees_all_has_the_fewest_misses(sequence, slots):
    planner = CachePlanner([("all", slots)], [0])
    plan_all(planner, [TileTask("read", (tile(i),), ()) for i in sequence], window=100)
    assert planner.misses == fewest_misses(sequence, slots)
    assert planner.hits == len(sequence) - planner.misses


def test_clean_goes_before_dirty_at_equal_distance():
    planner = CachePlanner([("all", 2)], [0])
    tasks = [
        TileTask("write", (), (tile(0),)),
        TileTask("read", (tile(1),), ()),
        TileTask("read", (tile(2),), ()),  # evicts one of the two, which are both used next by the same task
        TileTask("write", (), (tile(0),)),
    ]
    saves = [a for a in plan_all(planner, tasks, window=100) if isinstance(a, Save)]
    assert saves == [Save(tile(0), saves[0].slot)]


def test_dropped_slots_are_free_at_once_and_the_rest_stays():
    planner = CachePlanner([("all", 2)], [0])
    tasks = [
        TileTask("read", (tile(0),), ()),
        TileTask("write", (tile(1),), (tile(1),), drop=(tile(1),)),
        TileTask("read", (tile(2),), ()),
        TileTask("read", (tile(0),), ()),
    ]
    actions = plan_all(planner, tasks, window=0)  # it sees nothing of the future: only the hint can tell
    assert planner.misses == 3  # tile 0 is not loaded again
    slots = {a.tile: a.slot for a in actions if isinstance(a, Load)}
    assert slots[tile(2)] == slots[tile(1)]
    saves = [a for a in actions if isinstance(a, Save)]
    assert saves == [Save(tile(1), slots[tile(1)])]
    assert actions.index(saves[0]) < [i for i, a in enumerate(actions) if isinstance(a, Load)][-1]
    assert planner.slot_of(tile(1)) is None
    assert planner.slot_of(tile(0)) == slots[tile(0)]


def test_free_slots_are_handed_out_oldest_first():
    planner = CachePlanner([("all", 3)], [0])
    tasks = [TileTask("read", (tile(i),), (), drop=(tile(i),)) for i in range(6)]
    loads = [a.slot for a in plan_all(planner, tasks, window=100) if isinstance(a, Load)]
    assert loads == [0, 1, 2, 0, 1, 2]


def test_forget_is_passed_on_with_the_load():
    planner = CachePlanner([("all", 2)], [0])
    actions = plan_all(planner, [TileTask("read", (tile(0), tile(1)), (), forget=(tile(1),))], window=0)
    assert [(a.tile, a.forget) for a in actions if isinstance(a, Load)] == [(tile(0), False), (tile(1), True)]


@pytest.mark.parametrize("slots", [0, 1, 2])
def test_too_few_slots_for_one_task_is_an_error_that_names_the_pool(slots):
    planner = CachePlanner([("panels", slots)], [0])
    planner.push(TileTask("gemm", (tile(0), tile(1)), (tile(2),)))
    with pytest.raises(MemoryLimitError, match=rf"'panels' has {slots} slots"):
        planner.pop()


def test_in_place_operands_take_no_slots():
    planner = CachePlanner([("all", 1)], [0, None])
    (run,) = [a for a in plan_all(planner, [TileTask("k", (tile(0), tile(3, 1)), (tile(4, 1),))], 0) if isinstance(a, Run)]
    assert (run.reads, run.writes) == ((0, IN_PLACE), (IN_PLACE,))
