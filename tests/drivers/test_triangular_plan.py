"""Plans of triangular drivers against the simulation; their schedules, and what an interrupted run leaves to do."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pycauset.devices.rates import Rates
from pycauset.devices.sim import SimDevice, SimStore
from pycauset.drivers.blocked import BlockedPlan
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.drivers.triangular import (
    TriangularGramDriver,
    TriangularInverseDriver,
    TriangularProductDriver,
    TriangularSolveDriver,
)
from pycauset.drivers.triangular_plan import TriangularProblem, lower_bound, plan_triangular
from pycauset.errors import MemoryLimitError
from tests.drivers.fakes import PROFILE, Hidden, fresh_governor, random_matrix, watchdog
from tests.drivers.test_resume import MemoryJournal
from tests.drivers.triangles import DEVICES, F64, GENEROUS, bytes_of, promised, triangular

# ---- schedules ------------------------------------------------------------------------------------------------------


def drivers(kind: str, n: int, m: int, chunk: int, options: dict, store=SimStore):
    """A driver on stores of no data."""
    side = options.get("side", "L")
    shape = (n, m) if side == "L" else (m, n)
    t = store((n, n), F64, chunks=(chunk, chunk))
    x = store(shape, F64, chunks=(chunk, chunk))
    if kind == "solve":
        origin = store(shape, F64, chunks=(chunk, chunk)) if options.pop("out_of_place", True) else None
        return TriangularSolveDriver(t, x, F64, origin=origin, **options)
    if kind == "product":
        return TriangularProductDriver(t, store(shape, F64, chunks=(chunk, chunk)), x, F64, **options)
    w = store((n, n), F64, chunks=(chunk, chunk))
    if kind == "inverse":
        return TriangularInverseDriver(t, w, F64, uplo=options.get("uplo", "L"), unit=options.get("unit", False))
    return TriangularGramDriver(t, w, F64, uplo=options.get("uplo", "L"), op=options.get("op", "N"))


def simulate(driver, kind: str, plan):
    with fresh_governor().scope(owner="simulation") as scope:
        levels = {"host_slots": plan.host_slots, "host_slot_bytes": plan.host_slot_bytes}
        with AsyncStreamer(SimDevice(Rates(PROFILE, kind, F64)), driver.operands(plan), scope, **levels) as streamer:
            streamer.run(driver.tasks(plan))
            return streamer.statistics()


@st.composite
def cases(draw: st.DrawFn):
    kind = draw(st.sampled_from(["solve", "product", "inverse", "gram"]))
    chunk = draw(st.sampled_from([8, 16, 32]))
    n, m = draw(st.integers(1, 12 * chunk)), draw(st.integers(1, 12 * chunk))
    options = {"uplo": draw(st.sampled_from("LU")), "op": draw(st.sampled_from("NH"))}
    if kind in ("solve", "product"):
        options |= {"side": draw(st.sampled_from("LR")), "unit": draw(st.booleans())}
    if kind == "solve":
        options["out_of_place"] = draw(st.booleans())
    tile = max(4096, chunk * chunk * 8)
    return kind, n, m, chunk, options, draw(st.integers(3, 200)) * tile, draw(st.integers(8, 300)) * tile


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@settings(max_examples=60)
@given(case=cases())
def test_closed_form_equals_simulation(device, case):
    kind, n, m, chunk, options, limit, host = case
    driver = drivers(kind, n, m, chunk, dict(options))
    rates = Rates(PROFILE, device, F64)
    try:
        plan = driver.plan(SimDevice(rates), MatmulLimits(limit, host), rates)
    except MemoryLimitError:
        assume(False)
    assert plan.device_bytes <= limit
    assert plan.host_bytes <= host
    assert BlockedPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    statistics = simulate(driver, device, plan)
    assert bytes_of(statistics, device) == promised(plan, device)
    assert statistics.tasks == plan.tasks
    assert statistics.flops == pytest.approx(plan.flops)


@settings(max_examples=60)
@given(case=cases())
def test_tasks_read_final_tiles_and_write_one(case):
    """What resuming rests on: beside the tile it updates, a task reads only tiles that no later task writes."""
    kind, n, m, chunk, options, limit, _ = case
    driver = drivers(kind, n, m, chunk, dict(options))
    rates = Rates(PROFILE, "cpu", F64)
    try:
        plan = driver.plan(SimDevice(rates), MatmulLimits(limit), rates)
    except MemoryLimitError:
        assume(False)
    tasks = list(driver.tasks(plan))
    last = {tile: number for number, task in enumerate(tasks) for tile in task.writes}
    begun = set()
    for number, task in enumerate(tasks):
        assert len(task.writes) == (0 if task.kernel == "check_diagonal" else 1)
        for tile in task.reads:
            if tile not in task.writes:
                assert last.get(tile, -1) < number
            elif kind != "solve":
                assert tile in begun, "an output is never read before it is written"
        begun.update(task.writes)
    covered = np.zeros(driver.stores[1].shape, int)
    for tile in last:
        covered[tile.rect.slices] += 1
    i, j = np.indices(covered.shape) // plan.tile[0]
    expected = np.ones_like(covered) if kind in ("solve", "product") else (i >= j) + 0
    if kind == "inverse" and options["uplo"] == "U":
        expected = expected.T
    assert np.array_equal(covered, expected)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("kind", ["solve", "product", "inverse", "gram"])
def test_bytes_stay_near_the_bound(device, kind):
    """Where fast memory holds at least 30 × 30 tiles; answered at once, whatever the size."""
    tile = 256
    for n, limit in itertools.product((30_000, 100_000, 10**6), (512 << 20, 2 << 30, 8 << 30)):
        m = n if kind in ("inverse", "gram") else n // 3
        assert limit >= 30 * 30 * tile * tile * 8
        problem = TriangularProblem(kind, n, m, F64, units=((tile, tile),), **three(kind))
        rates = Rates(PROFILE, device, F64)
        plan = plan_triangular(problem, MatmulLimits(limit, 64 << 30), rates, unified=device == "cpu", piece=tile * tile * 8)
        assert plan.device_bytes <= limit
        assert plan.bound == lower_bound(kind, n, m, limit / 8) * 8
        assert plan.link_bytes <= 1.10 * plan.bound


def three(kind: str) -> dict:
    """A product has a third operand."""
    if kind != "product":
        return {"grain": ((256, 256),) * 2}
    return {"slotless": (False,) * 3, "hostless": (False,) * 3, "disk_itemsize": (8.0,) * 3, "grain": ((256, 256),) * 3}


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_refusal_carries_the_numbers(device):
    driver = drivers("solve", 5000, 6000, 1024, {})
    rates = Rates(PROFILE, device, F64)
    with pytest.raises(MemoryLimitError) as caught:
        driver.plan(SimDevice(rates), MatmulLimits(8 << 20, 1 << 30), rates)
    text = str(caught.value)
    assert "order 5000 with 6000 right-hand sides in float64" in text
    assert "8.52 MB" in text  # a tile of 8 MiB, and two narrow ones
    assert "8.39 MB" in text
    assert ("memory=" if device == "cpu" else "gpu_memory=") in text


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("kind", ["solve", "product", "inverse", "gram"])
def test_more_memory_is_never_refused_and_never_moves_more(device, kind):
    rates = Rates(PROFILE, device, F64)
    accepted, before = False, None
    for tiles in (2, 3, 4, 5, 6, 8, 11, 16, 25, 40, 80, 200, 700):
        driver = drivers(kind, 12_000, 9000, 512, {})
        try:
            plan = driver.plan(SimDevice(rates), MatmulLimits(tiles << 21, 64 << 21), rates)
        except MemoryLimitError:
            assert not accepted
            continue
        accepted = True
        if tiles > 8:
            assert before is None or plan.link_bytes <= 1.02 * before
            before = plan.link_bytes
    assert accepted


# ---- interrupted ----------------------------------------------------------------------------------------------------


class Crash(Exception):  # noqa: N818 - not an error of the package
    """The power is gone."""


def crashing(device, after: int, journal: MemoryJournal | None = None):
    """The device, which fails at one of its tasks; with a journal not before a tile is on record."""
    left = itertools.count(after, -1)

    def fragile(kernel):
        def call(*arguments):
            if next(left) <= 0 and (journal is None or journal.recorded):
                raise Crash
            return kernel(*arguments)

        return call

    device.kernels = {name: fragile(kernel) for name, kernel in device.kernels.items()}
    return device


def journalled(kind: str, arrays, out, journal, in_place: bool):
    t, b = (Hidden(x, chunks=(16, 16)) for x in arrays)
    options = {"journal": journal}
    if kind == "solve":
        return TriangularSolveDriver(t, out, F64, origin=None if in_place else b, op="T", alpha=0.5, **options)
    if kind == "product":
        return TriangularProductDriver(t, b, out, F64, **options)
    return (TriangularInverseDriver if kind == "inverse" else TriangularGramDriver)(t, out, F64, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["solve", "solve in place", "product", "inverse", "gram"])
def test_an_interrupted_run_goes_on_to_the_same_bits(device, kind):
    rng = np.random.default_rng(48)
    kind, _, in_place = kind.partition(" ")
    stored, exact = triangular(rng, 140, "float64", "L")
    b = random_matrix(rng, exact.shape, "float64")
    limits, rates = MatmulLimits(18 * 4096, GENEROUS), Rates(PROFILE, device, F64)
    results = []
    for crashes in (0, 6):
        array = b.copy() if in_place else np.full_like(b, np.nan)
        out = Hidden(array, chunks=(16, 16))
        journal = MemoryJournal(out)
        plan = journalled(kind, (stored, b), out, journal, bool(in_place)).plan(DEVICES[device](), limits, rates)
        stops = [int(rng.integers(1, plan.tasks // (crashes - 1))) for _ in range(crashes)] + [10**9]
        reused = []
        for stop in stops:
            driver = journalled(kind, (stored, b), out, journal, bool(in_place))
            with fresh_governor().scope(owner="a test") as scope:
                options = {"host_slots": plan.host_slots, "host_slot_bytes": plan.host_slot_bytes}
                try:
                    with (
                        watchdog(),
                        AsyncStreamer(crashing(DEVICES[device](), stop, journal), driver.operands(plan), scope, **options) as run,
                    ):
                        run.run(driver.tasks(plan))
                        reused.append(run.statistics().reused)
                except Crash:
                    journal.recover()  # what was on its way is lost
        if crashes:
            assert reused[-1] > 0
        assert journal.flushes
        results.append(array)
    assert np.array_equal(*results, equal_nan=True)
