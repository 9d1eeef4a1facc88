# ruff: noqa: SIM117 - what opens a scope and what runs in it are told apart
"""The streamer: its queue, hazards between levels, barriers, and an error in every stage."""

from __future__ import annotations

import json
import random
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycauset.devices.memory import pageable_slab
from pycauset.devices.numpy import NumpyDevice
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.drivers.task import Barrier, Operand, Tile, TileTask
from pycauset.errors import CorruptTileError, DeviceError, MemoryLimitError, StoreFullError
from pycauset.storage import ArrayStore
from tests.drivers.fakes import FakeGpu, Hidden, Pinned, fresh_governor, nap, watchdog

SIDE = 8
F64 = np.dtype("float64")


def tile(number: int, operand: int = 0) -> Tile:
    return Tile(operand, SIDE * number, SIDE * (number + 1), 0, SIDE)


class Affine:
    """Kernels whose result depends on the order in which they run; each takes as long as it likes."""

    pause = 0.0

    @staticmethod
    def update(reads, writes, params, lane) -> None:
        nap(Affine.pause)
        total = sum((r * w for w, r in enumerate(reads, 2)), np.full((SIDE, SIDE), params[0]))
        for number, write in enumerate(writes):
            write[...] = np.mod(total + number, 1009.0)


class Cpu(NumpyDevice):
    def __init__(self) -> None:
        super().__init__()
        self.kernels = {**self.kernels, "update": Affine.update}

    def device_slab(self, nbytes, scope, owner):
        slab = pageable_slab(nbytes, scope, owner)
        slab.array[...] = 0xFF
        return slab


class Gpu(FakeGpu):
    def __init__(self, pause: float = 0.0) -> None:
        super().__init__(pause)
        self.kernels["update"] = Affine.update


def device_of(kind: str, pause: float = 0.0) -> Cpu | Gpu:
    return Cpu() if kind == "cpu" else Gpu(pause)


def start(device, stores, scope, *, slots=6, host_slots=6, **options) -> AsyncStreamer:
    operands = [Operand(store, F64, (SIDE, SIDE), slots, "tiles") for store in stores]
    return AsyncStreamer(device, operands, scope, host_slots=host_slots, host_slot_bytes=SIDE * SIDE * 8, **options)


def direct(tasks, arrays) -> None:
    for task in tasks:
        pick = [[arrays[t.operand][t.r0 : t.r1, t.c0 : t.c1] for t in ts] for ts in (task.reads, task.writes)]
        Affine.update(pick[0], pick[1], task.params, None)


def assert_nothing_is_left(governor) -> None:
    assert not [t.name for t in threading.enumerate() if t.name.startswith("pycauset-")]
    assert not governor.outstanding()
    assert governor.in_use("host") == governor.in_use("device") == 0


def arrays_of(rng, count: int, rows: int = 8) -> list[np.ndarray]:
    return [rng.integers(0, 1000, (SIDE * rows, SIDE)).astype(float) for _ in range(count)]


# ---- the queue ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_queue_interface(kind, mode, tmp_path):
    rng = np.random.default_rng(5)
    (array,) = arrays_of(rng, 1)
    expected = [array.copy()]
    tasks = [TileTask("update", (tile(i % 8), tile((3 * i + 1) % 8)), (tile(i % 5),), (float(i),), 10.0) for i in range(40)]
    direct(tasks, expected)
    governor, seen = fresh_governor(), []
    with watchdog(), governor.scope(owner="test") as scope:
        with start(device_of(kind), [Hidden(array)], scope, mode=mode, timeline=True, on_progress=seen.append) as streamer:
            assert streamer.is_idle
            assert streamer.poll() is None
            assert streamer.submit(tasks[0]) == 0
            assert streamer.submit_batch(tasks[1:]) == list(range(1, 40))
            assert not streamer.is_idle
            streamer.flush()
            assert streamer.is_idle
            assert [streamer.poll() for _ in range(41)] == [*range(40), None]
            statistics = streamer.statistics()
            streamer.export_timeline(tmp_path / "timeline.json")
    assert_nothing_is_left(governor)
    assert np.array_equal(array, expected[0])
    assert (statistics.tasks, statistics.flops) == (40, 400.0)
    assert seen == [10.0 * (i + 1) for i in range(40)]
    assert 0 < statistics.slots_used <= statistics.slots == 6
    assert statistics.misses > 0
    assert statistics.lanes["compute"].jobs == 40
    assert statistics.bytes_written % (SIDE * SIDE * 8) == 0
    assert statistics.bytes_written >= 5 * SIDE * SIDE * 8
    if kind == "gpu":
        assert statistics.bytes_uploaded == statistics.misses * SIDE * SIDE * 8
        assert statistics.bytes_downloaded == statistics.bytes_written
    else:
        assert statistics.bytes_read == statistics.misses * SIDE * SIDE * 8
    trace = json.loads((tmp_path / "timeline.json").read_text(encoding="utf-8"))
    events = trace["traceEvents"]
    assert len(events) == sum(lane.jobs for lane in statistics.lanes.values())
    assert {e["tid"] for e in events} == set(statistics.lanes)
    assert sum(e["args"]["bytes"] for e in events if e["tid"] == "read") == statistics.bytes_read
    for event in events:
        assert event["ph"] == "X"
        assert event["ts"] >= 0
        assert event["dur"] >= 0


def test_flushing_an_empty_queue_and_again_later():
    (array,) = arrays_of(np.random.default_rng(1), 1)
    expected = array.copy()
    governor = fresh_governor()
    with watchdog(), governor.scope(owner="test") as scope, start(Cpu(), [Hidden(array)], scope) as streamer:
        streamer.flush()
        for number in range(3):
            task = TileTask("update", (tile(number),), (tile(0),), (1.0,))
            streamer.submit(task)
            streamer.flush()
            direct([task], [expected])
            assert np.array_equal(array, expected)  # a flush writes back what is dirty
    assert_nothing_is_left(governor)


# ---- hazards ------------------------------------------------------------------------------------------------------

SEEN_TILES = st.builds(tile, st.integers(0, 6), st.integers(0, 2))


@st.composite
def programs(draw: st.DrawFn) -> list[TileTask]:
    tasks = []
    for number in range(draw(st.integers(1, 40))):
        reads = tuple(draw(st.lists(SEEN_TILES, max_size=3)))
        writes = tuple(draw(st.lists(SEEN_TILES, min_size=1, max_size=2, unique=True)))
        drop = tuple(draw(st.lists(st.sampled_from(reads + writes), max_size=1)))
        forget = tuple(draw(st.lists(st.sampled_from(reads), max_size=1))) if reads else ()
        tasks.append(TileTask("update", reads, writes, (float(number),), 1.0, drop, forget))
    return tasks


@pytest.mark.parametrize("host_slots", [1, 2, 7])
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@settings(max_examples=15)
@given(program=programs(), seed=st.integers(0, 2**32 - 1))
def test_random_programs_give_the_same_bits_in_every_mode(kind, host_slots, program, seed):
    """Five slots are the fewest that a task of three reads and two writes can have."""
    start_with = arrays_of(np.random.default_rng(seed), 3, 7)
    expected = [a.copy() for a in start_with]
    random.seed(seed)
    direct(program, expected)
    for mode, pause in (("sync", 0.0), ("async", 0.0), ("async", 0.0004)):
        arrays = [a.copy() for a in start_with]
        # The third operand is used in place: by kernels on the CPU, by the copy engine on the GPU.
        reached = (Pinned if kind == "gpu" else ArrayStore)(arrays[2])
        stores = [Hidden(arrays[0], pause=pause), Hidden(arrays[1], pause=pause), reached]
        governor = fresh_governor()
        Affine.pause = pause / 2
        try:
            with watchdog(), governor.scope(owner="test") as scope:
                streamer = start(device_of(kind, pause), stores, scope, slots=5, host_slots=host_slots, mode=mode, readers=2)
                with streamer:
                    streamer.run(program)
        finally:
            Affine.pause = 0.0
        assert_nothing_is_left(governor)
        for number in range(3):
            assert np.array_equal(arrays[number], expected[number]), (mode, number)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_tiles_cut_into_pieces_of_chunks(kind):
    """A tile of several chunks, on a grid that does not match, goes and comes through small host slots."""
    rng = np.random.default_rng(2)
    array = rng.integers(0, 1000, (64, 8)).astype(float)
    expected = [array.copy()]
    tasks = [TileTask("update", (tile(i % 8), tile((i * 5) % 8)), (tile((i * 3) % 8),), (float(i),)) for i in range(50)]
    direct(tasks, expected)
    governor = fresh_governor()
    with watchdog(), governor.scope(owner="test") as scope:
        operands = [Operand(Hidden(array, chunks=(5, 3), pause=0.0002), F64, (SIDE, SIDE), 4, "tiles")]
        device = device_of(kind, 0.0002)
        with AsyncStreamer(device, operands, scope, host_slots=9, host_slot_bytes=5 * 3 * 8) as streamer:
            streamer.run(tasks)
    assert np.array_equal(array, expected[0])
    assert_nothing_is_left(governor)


# ---- barriers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_barrier_hands_back_what_tasks_before_it_wrote(kind):
    (array,) = arrays_of(np.random.default_rng(3), 1)
    expected = array.copy()
    seen = []

    def driver():
        for number in range(12):
            task = TileTask("update", (tile(number % 8), tile(0)), (tile(0), tile(number % 7 + 1)), (float(number),))
            direct([task], [expected])
            yield task
            one, two = yield Barrier((tile(0), tile(number % 7 + 1)))
            seen.append((one.copy(), two.copy()))
            assert np.array_equal(one, expected[:SIDE])
            assert np.array_equal(two, expected[tile(number % 7 + 1).rect.slices])
            one[...] = np.nan  # a copy: nobody else sees this
        assert (yield Barrier()) == []

    governor = fresh_governor()
    with watchdog(), governor.scope(owner="test") as scope, start(device_of(kind), [Hidden(array)], scope) as streamer:
        streamer.run(driver())
    assert len(seen) == 12
    assert np.array_equal(array, expected)
    assert_nothing_is_left(governor)


# ---- errors ---------------------------------------------------------------------------------------------------------


class Broken(Hidden):
    """Fails in the given stage, at the given call."""

    def __init__(self, array, stage: str, at: int, error: BaseException) -> None:
        super().__init__(array, pause=0.0002)
        self.stage, self.left, self.error = stage, at, error
        self.lock = threading.Lock()

    def strike(self, stage: str) -> None:
        if stage == self.stage:
            with self.lock:
                self.left -= 1
                if self.left == 0:
                    raise self.error

    def _read(self, rect, out) -> None:
        self.strike("read")
        super()._read(rect, out)

    def _write(self, rect, data) -> None:
        self.strike("write")
        super()._write(rect, data)


ERRORS = {
    "read": CorruptTileError("tile 3 has a wrong checksum"),
    "kernel": FloatingPointError("pivot 5 is zero"),
    "write": StoreFullError("the disk is full"),
    "upload": DeviceError("a copy failed"),
    "download": DeviceError("a copy failed"),
}


@pytest.mark.parametrize("at", [1, 7])
@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize(("kind", "stage"), [("cpu", s) for s in ("read", "kernel", "write")] + [("gpu", s) for s in ERRORS])
def test_an_error_in_any_stage_surfaces_once(kind, stage, mode, at):
    (array,) = arrays_of(np.random.default_rng(4), 1)
    error, device = ERRORS[stage].with_traceback(None), device_of(kind, 0.0002)
    store = Broken(array, stage, at, error)

    def striking(work):
        def run(*arguments):
            store.strike(stage)
            work(*arguments)

        return run

    if stage == "kernel":
        device.kernels["update"] = striking(device.kernels["update"])
    elif stage in ("upload", "download"):
        setattr(device, stage, striking(getattr(device, stage)))

    closed = []

    def driver():
        try:
            for number in range(200):
                yield TileTask("update", (tile(number % 8), tile(number * 3 % 8)), (tile(number * 5 % 8),), (1.0,))
        finally:
            closed.append(True)

    governor = fresh_governor()
    with watchdog():
        with pytest.raises(type(error)) as caught:
            with governor.scope(owner="test") as scope:
                with start(device, [store], scope, slots=3, host_slots=3, mode=mode) as streamer:
                    streamer.run(driver())
        assert caught.value is error
        assert error.__cause__ is None
        assert closed == [True]
        assert_nothing_is_left(governor)


def test_an_error_that_nobody_asked_about_is_raised_at_the_end():
    (array,) = arrays_of(np.random.default_rng(6), 1)
    store = Broken(array, "read", 1, ERRORS["read"])
    governor = fresh_governor()
    with watchdog(), pytest.raises(CorruptTileError):
        with governor.scope(owner="test") as scope, start(Cpu(), [store], scope) as streamer:
            streamer.submit_batch([TileTask("update", (tile(i % 8),), (tile(0),), (1.0,)) for i in range(20)])
    assert_nothing_is_left(governor)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_denied_memory_is_raised_before_anything_starts(kind):
    (array,) = arrays_of(np.random.default_rng(7), 1)
    store, governor = Hidden(array), fresh_governor()
    limit = {"host": 8191, "device": None} if kind == "cpu" else {"host": 8191, "device": 6 * 4096}
    with pytest.raises(MemoryLimitError, match="slots"):
        with governor.scope(owner="test", **limit) as scope, start(device_of(kind), [store], scope) as streamer:
            streamer.run([TileTask("update", (tile(0),), (tile(0),), (1.0,))])
    assert not store.writes
    assert_nothing_is_left(governor)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_lanes_that_cannot_start_leave_nothing(kind, monkeypatch):
    (array,) = arrays_of(np.random.default_rng(8), 1)
    device, governor = device_of(kind), fresh_governor()

    def refuse(**options):
        raise DeviceError("no more threads")

    monkeypatch.setattr(device, "lanes", refuse)
    with pytest.raises(DeviceError, match="no more threads"):
        with governor.scope(owner="test") as scope, start(device, [Hidden(array)], scope):
            raise AssertionError("it must not come so far")
    assert_nothing_is_left(governor)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_nothing(kind, error):
    (array,) = arrays_of(np.random.default_rng(9), 1)
    ran = []

    def driver():
        for number in range(100):
            if number == 60:
                raise error
            ran.append(number)
            yield TileTask("update", (tile(number % 8),), (tile(number * 3 % 8),), (1.0,))

    governor = fresh_governor()
    with watchdog(), pytest.raises(error):
        device, store = device_of(kind, 0.001), Hidden(array, pause=0.001)
        with governor.scope(owner="test") as scope, start(device, [store], scope) as streamer:
            streamer.run(driver())
    assert len(ran) == 60
    assert_nothing_is_left(governor)


# ---- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_tickets_cover_every_slot(kind):
    """Slots of prime sizes and numbers: a term left out of the sum would show."""
    rng = np.random.default_rng(10)
    shapes, slots = [(13, 17), (29, 31), (7, 83)], [3, 5, 2]
    stores = [Hidden(rng.standard_normal(shape)) for shape in shapes]
    governor = fresh_governor()
    device = device_of(kind)
    operands = [Operand(s, F64, s.shape, n, name) for s, n, name in zip(stores, slots, "ABC", strict=True)]
    expected = sum(-(-r * c * 8 // 4096) * 4096 * n for (r, c), n in zip(shapes, slots, strict=True))
    host = 0 if kind == "cpu" else 11 * 8192
    limits = {"host": expected} if kind == "cpu" else {"host": host, "device": expected}
    with governor.scope(owner="test", **limits) as scope:
        with AsyncStreamer(device, operands, scope, host_slots=11, host_slot_bytes=29 * 31 * 8 + 1):
            assert scope.in_use("host" if kind == "cpu" else "device") == expected
            assert kind == "cpu" or scope.in_use("host") == host
        assert scope.in_use("host") == scope.in_use("device") == 0
    assert_nothing_is_left(governor)


# ---- read-ahead ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_tiles_of_later_tasks_are_read_while_a_kernel_runs(kind):
    """The first kernel waits until tiles that only later tasks need have been read: without read-ahead it waits for ever."""
    (array,) = arrays_of(np.random.default_rng(11), 1)
    ahead, device = threading.Event(), device_of(kind)

    class Watching(Hidden):
        def _read(self, rect, out) -> None:
            super()._read(rect, out)
            if rect.r0 >= 3 * SIDE:
                ahead.set()

    update = device.kernels["update"]
    waited = []

    def waiting(reads, writes, params, lane) -> None:
        waited.append(ahead.wait(30))
        update(reads, writes, params, lane)

    device.kernels = {**device.kernels, "update": waiting}
    governor = fresh_governor()
    with watchdog(), governor.scope(owner="test") as scope, start(device, [Watching(array)], scope, slots=6) as streamer:
        streamer.run([TileTask("update", (tile(i),), (tile(i),), (1.0,)) for i in range(8)])
    assert waited == [True] * 8
    assert_nothing_is_left(governor)
