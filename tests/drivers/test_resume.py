"""Operands that start from another store, journals that let a run go on, and outcomes that kernels owe."""

from __future__ import annotations

import threading
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycauset.devices.lanes import InlineLane
from pycauset.devices.numpy import NumpyDevice
from pycauset.devices.rates import Rates
from pycauset.drivers.cholesky import CholeskyDriver
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.drivers.task import Operand, Tile, TileTask
from pycauset.errors import NotPositiveDefiniteError
from pycauset.tiling import Rect
from tests.drivers.fakes import PROFILE, FakeGpu, Hidden, Pinned, fresh_governor, watchdog

SIDE = 16


class Killed(BaseException):
    """What a test throws in mid-run."""


class MemoryJournal:
    """A journal that lives in this test: each tile's last generation that has landed whole; parts of others are undone."""

    def __init__(self, store) -> None:
        self.store = store
        self.recorded: dict[Rect, int] = {}
        self.landed: dict[tuple[Rect, int], int] = {}
        self.undo: dict[tuple[Rect, int], list[tuple[Rect, np.ndarray]]] = {}
        self.lock = threading.Lock()
        self.left = -1  # writes until the kill
        self.flushes = 0

    def generation(self, tile: Rect) -> int:
        return self.recorded.get(tile, 0)

    def write(self, tile: Rect, generation: int, part: Rect, data: np.ndarray) -> None:
        with self.lock:
            if self.left == 0:
                raise Killed
            self.left -= 1
            before = np.empty(part.shape)
            self.store.read(part, before)
            self.undo.setdefault((tile, generation), []).append((part, before))
            assert generation > self.recorded.get(tile, 0), "a tile went backwards"
            self.store.write(part, data)
            self.landed[tile, generation] = self.landed.get((tile, generation), 0) + part.size
            if self.landed[tile, generation] == tile.size:
                self.recorded[tile] = generation
                del self.undo[tile, generation]

    def recover(self) -> None:
        """What the next process finds: no tile half in its place."""
        for parts in self.undo.values():
            for part, before in parts:
                self.store.write(part, before)
        self.undo.clear()
        self.landed.clear()

    def flush(self) -> None:
        self.flushes += 1


def spd(rng: np.random.Generator, n: int) -> np.ndarray:
    x = rng.standard_normal((n, n))
    return x @ x.T / n + np.eye(n)


def factor(device, a, out, *, journal=None, variant=None, slots=30, host=200, mode="async", journal_plan=None):
    driver = CholeskyDriver(a, out, np.dtype("float64"), variant=variant, journal=journal)
    tile = 4096  # what a slot takes at least
    plan = journal_plan or driver.plan(
        device, MatmulLimits(slots * tile, host * tile), Rates(PROFILE, device.kind, np.dtype("float64"))
    )
    governor = fresh_governor()
    slots_of_host = {"host_slots": plan.host_slots, "host_slot_bytes": plan.host_slot_bytes}
    with (
        watchdog(),
        governor.scope(owner="a test") as scope,
        AsyncStreamer(device, driver.operands(plan), scope, mode=mode, **slots_of_host) as streamer,
    ):
        streamer.run(driver.tasks(plan))
        statistics = streamer.statistics()
    assert not scope.leaks
    return plan, statistics


@pytest.mark.parametrize("device", [NumpyDevice, partial(FakeGpu, 5e-4)])
@pytest.mark.parametrize("variant", ["left", "right", "triangle"])
@pytest.mark.parametrize("in_place", [False, True])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tiles=st.integers(2, 7), data=st.data())
def test_a_killed_run_resumes_to_the_same_bits(device, variant, in_place, seed, tiles, data) -> None:
    rng = np.random.default_rng(seed)
    n = tiles * SIDE - int(rng.integers(0, SIDE))
    matrix = spd(rng, n)
    slots = data.draw(st.integers(18, 40))
    whole = np.full((n, n), np.nan)
    plan, done = factor(device(), Hidden(matrix, (SIDE, SIDE)), Hidden(whole, (SIDE, SIDE)), variant=variant, slots=slots)
    np.testing.assert_allclose(np.tril(whole), np.linalg.cholesky(matrix), rtol=1e-10, atol=1e-12)

    source = matrix.copy()
    a = Hidden(source, (SIDE, SIDE))
    result = source if in_place else np.full((n, n), np.nan)
    out = a if in_place else Hidden(result, (SIDE, SIDE))
    journal = MemoryJournal(out)
    kills = reused = 0
    while True:
        journal.left = data.draw(st.integers(0, 12), label="writes before the kill") if kills < 4 else -1
        journal.recover()
        try:
            _, done = factor(device(), a, out, journal=journal, variant=variant, journal_plan=plan)
        except Killed:
            kills += 1
            continue
        break
    reused = done.reused
    np.testing.assert_array_equal(np.tril(result), np.tril(whole))
    assert journal.flushes
    assert reused <= done.tasks
    if kills == 0:
        assert reused == 0
    _, again = factor(device(), a, out, journal=journal, variant=variant, journal_plan=plan)
    assert again.reused == again.tasks, "what is on record is computed again"


def test_a_tile_comes_from_its_origin_until_it_is_written() -> None:
    origin, store = np.full((SIDE, SIDE), 3.0), np.full((SIDE, SIDE), np.nan)
    tile = Tile(0, 0, SIDE, 0, SIDE)
    task = TileTask("scale", (tile,), (tile,), (2.0,), drop=(tile,))
    for device in (NumpyDevice(), FakeGpu()):
        store[...] = np.nan
        operand = Operand(Hidden(store), np.dtype("float64"), (SIDE, SIDE), 1, "X", Hidden(origin))
        with (
            fresh_governor().scope(owner="a test") as scope,
            AsyncStreamer(device, [operand], scope, host_slots=4, host_slot_bytes=SIDE * SIDE * 8) as streamer,
        ):
            streamer.run(iter([task, task, task]))
        assert (store == 24.0).all()
        assert (origin == 3.0).all()


def test_reads_of_a_tile_just_written_all_wait_for_the_write() -> None:
    """Several readers ask for it at once: none may be faster than the write."""
    n = 4 * SIDE
    store = Hidden(np.zeros((SIDE, n)), (SIDE, SIDE), pause=2e-3)
    tiles = [Tile(0, 0, SIDE, SIDE * i, SIDE * (i + 1)) for i in range(4)]
    store.write(Rect(0, SIDE, 0, n), np.ones((SIDE, n)))
    first = TileTask("scale", (tiles[0],), (tiles[0],), (5.0,), drop=(tiles[0],))
    copies = [TileTask("copy", (tiles[0],), (t,), (1.0, "N", "full"), drop=(tiles[0], t)) for t in tiles[1:]]
    for _ in range(5):
        store.write(Rect(0, SIDE, 0, n), np.ones((SIDE, n)))
        operand = Operand(store, np.dtype("float64"), (SIDE, SIDE), 8, "X")
        with (
            fresh_governor().scope(owner="a test") as scope,
            AsyncStreamer(NumpyDevice(), [operand], scope, readers=4) as streamer,
        ):
            streamer.run(iter([first, *copies]))
        whole = np.empty((SIDE, n))
        store.read(Rect(0, SIDE, 0, n), whole)
        assert (whole == 5.0).all()


class OwingLane(InlineLane):
    """A lane whose completions carry what their kernels owe, as those of CUDA streams do."""

    def submit(self, work, waits, **job):
        owed: list = []
        done = super().submit(lambda: owed.append(work()), waits, **job)
        if owed and owed[0] is not None:
            done = Owed(done, owed[0])
        return done


class Owed:
    def __init__(self, inner, check) -> None:
        self.lane, self.wait, self.done, self.check = inner.lane, inner.wait, inner.done, check


class OwingGpu(FakeGpu):
    """A GPU whose potrf says only afterwards whether it succeeded."""

    def lanes(self, *, mode, failure, timeline, **threads):
        lanes = super().lanes(mode=mode, failure=failure, timeline=timeline, **threads)
        for lane in lanes.compute:
            lane.close()
        lanes.compute = (OwingLane("compute", failure, timeline),)
        return lanes

    def __init__(self) -> None:
        super().__init__()
        inner = self.kernels["potrf"]

        def potrf(reads, writes, params, lane):
            errors: list[NotPositiveDefiniteError] = []
            try:
                inner(reads, writes, params, lane)
            except NotPositiveDefiniteError as error:
                errors.append(error)

            def check() -> None:
                if errors:
                    raise errors[0]

            return check

        self.kernels["potrf"] = potrf


@pytest.mark.parametrize("store", [Hidden, Pinned])
def test_outcomes_that_kernels_owe_stop_the_run(store) -> None:
    n = 5 * SIDE
    matrix = spd(np.random.default_rng(), n)
    matrix[2 * SIDE + 3, 2 * SIDE + 3] = -1.0
    out = Hidden(np.full((n, n), np.nan), (SIDE, SIDE)) if store is Hidden else Pinned(np.full((n, n), np.nan))
    a = Hidden(matrix, (SIDE, SIDE)) if store is Hidden else Pinned(matrix)
    with pytest.raises(NotPositiveDefiniteError) as caught:
        factor(OwingGpu(), a, out)
    assert caught.value.pivot == 2 * SIDE + 3
    assert caught.value.order == 2 * SIDE + 4
    if store is Hidden:
        diagonal = Rect(2 * SIDE, 3 * SIDE, 2 * SIDE, 3 * SIDE)
        assert diagonal not in out.writes, "a tile was written after the factorisation had failed"
