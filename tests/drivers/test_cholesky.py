"""Cholesky factorisation: plans against the simulation, factors against higher precision, traps, failures and interruptions."""

from __future__ import annotations

import itertools
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pycauset.devices.rates import Rates
from pycauset.devices.sim import SimDevice, SimStore
from pycauset.drivers.cholesky import CholeskyDriver
from pycauset.drivers.cholesky_plan import (
    VARIANTS,
    CholeskyPlan,
    CholeskyProblem,
    candidates,
    lower_bound,
    plan_cholesky,
    task_counts,
)
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.errors import MemoryLimitError, NotPositiveDefiniteError
from pycauset.storage import ArrayStore, FunctionStore, create_store, open_store
from pycauset.tiling import Rect
from tests.drivers.fakes import PROFILE, Hidden, Pinned, fresh_governor, random_matrix, watchdog
from tests.drivers.test_resume import MemoryJournal
from tests.drivers.test_triangular_plan import Crash, crashing
from tests.drivers.triangles import DEVICES, F64, GENEROUS, bytes_of, higher, promised, run

DTYPES = ("float32", "float64", "complex64", "complex128")
CHOICES = (*VARIANTS, None)


def positive(rng: np.random.Generator, n: int, dtype: str) -> np.ndarray:
    """A Hermitian positive definite matrix."""
    x = random_matrix(rng, (n, n), dtype).astype("complex128" if np.dtype(dtype).kind == "c" else "float64")
    a = x @ x.conj().T / max(n, 1) + np.eye(n)
    return ((a + a.conj().T) / 2).astype(dtype)


def half(a: np.ndarray, lower: bool) -> np.ndarray:
    """What may be read of it; NaN in the other triangle."""
    stored = a.copy()
    stored[(np.triu_indices if lower else np.tril_indices)(len(a), 1 if lower else -1)] = np.nan
    return stored


def ratio(factor: np.ndarray, a: np.ndarray, lower: bool) -> float:
    """LAPACK's residual ratio ``‖A - LLᴴ‖₁ / (n ‖A‖₁ ε)``."""
    left = higher(np.tril(factor) if lower else np.triu(factor).conj().T)
    assert np.isfinite(left).all()
    if not len(a):
        return 0.0
    wrong = np.abs(higher(a) - left @ left.conj().T).sum(axis=0).max()
    return float(wrong / (len(a) * np.abs(a).sum(axis=0).max() * np.finfo(a.dtype).eps))


# ---- plans ----------------------------------------------------------------------------------------------------------


def volume(plan: CholeskyPlan) -> int:
    """Bytes over the device's link, and the disk's where that is another one."""
    return plan.link_bytes + (0 if plan.unified else plan.disk_read + plan.disk_write)


def sim_driver(n: int, chunk: int, variant: str | None, place: str, in_place: bool, lower: bool = True) -> CholeskyDriver:
    a, other = (SimStore((n, n), chunks=(chunk, chunk), place=place) for _ in range(2))
    return CholeskyDriver(a, a if in_place else other, F64, lower=lower, variant=variant)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, ...]:
    chunk = draw(st.sampled_from([32, 64]))
    n = draw(st.integers(1, 16 * chunk))
    variant = draw(st.sampled_from(CHOICES))
    tile = max(4096, chunk * chunk * 8)
    return (
        n,
        chunk,
        variant,
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.integers(4, 90)) * tile,
        draw(st.integers(4, 200)) * tile,
    )


@pytest.mark.parametrize(("kind", "place"), [("cpu", "disk"), ("gpu", "disk"), ("gpu", "pinned")])
@settings(max_examples=50, deadline=None)
@given(case=cases())
def test_closed_form_equals_simulation(kind: str, place: str, case: tuple[Any, ...]) -> None:
    n, chunk, variant, in_place, lower, limit, host = case
    driver = sim_driver(n, chunk, variant, place, in_place, lower)
    rates = Rates(PROFILE, kind, F64, {place})
    try:
        plan = driver.plan(SimDevice(rates), MatmulLimits(limit, host), rates)
    except MemoryLimitError:
        assume(False)
    assert plan.device_bytes <= limit
    assert plan.host_bytes <= host
    assert variant in (None, plan.variant)
    assert CholeskyPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    with fresh_governor().scope(owner="simulation") as scope:
        levels = {"host_slots": plan.host_slots, "host_slot_bytes": plan.host_slot_bytes}
        with AsyncStreamer(SimDevice(rates), driver.operands(plan), scope, **levels) as streamer:
            streamer.run(driver.tasks(plan))
            statistics = streamer.statistics()
    assert bytes_of(statistics, kind) == promised(plan, kind)
    assert statistics.tasks == plan.tasks
    assert statistics.flops == pytest.approx(plan.flops)


@settings(max_examples=50, deadline=None)
@given(case=cases())
def test_tasks_read_final_tiles_and_write_one(case: tuple[Any, ...]) -> None:
    """What resuming rests on, and the definition: each tile is updated once by every column before its own, in order."""
    n, chunk, variant, _, lower, limit, _ = case
    driver = sim_driver(n, chunk, variant, "disk", True, lower)
    rates = Rates(PROFILE, "cpu", F64)
    try:
        plan = driver.plan(SimDevice(rates), MatmulLimits(limit), rates)
    except MemoryLimitError:
        assume(False)
    side = plan.tile[0]
    final: set[Any] = set()
    updates: dict[Any, list[int]] = {}
    kinds = dict.fromkeys(("potrf", "trsm", "rank_k", "gemm"), 0)
    for task in driver.tasks(plan):
        kinds[task.kernel] += 1
        (target,) = task.writes
        assert target not in final
        assert all(tile in final for tile in task.reads if tile != target)
        column = min(target.r0, target.c0) // side
        if task.kernel in ("potrf", "trsm"):
            assert updates.get(target, []) == list(range(column))
            final.add(target)
        else:
            (depth,) = {min(tile.r0, tile.c0) // side for tile in task.reads if tile != target}
            updates.setdefault(target, []).append(depth)
    count = -(-n // side)
    assert kinds == task_counts(count)
    assert len(final) == count * (count + 1) // 2
    assert all((tile.r0 >= tile.c0) == lower or tile.r0 == tile.c0 for tile in final)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_bytes_stay_near_the_bound(kind: str) -> None:
    """Where fast memory holds at least 16 × 16 chunks; answered in milliseconds, whatever the size."""
    chunk = 256
    for n, limit in itertools.product((20_000, 100_000, 10**6), (128 << 20, 512 << 20, 8 << 30)):
        rates = Rates(PROFILE, kind, F64)
        problem = CholeskyProblem(n, F64, unit=chunk, grain=(chunk, chunk))
        limits, piece = MatmulLimits(limit, 16 << 30), chunk * chunk * 8
        plan = plan_cholesky(problem, limits, rates, unified=kind == "cpu", piece=piece, variant="left")
        assert plan.bound == lower_bound(n, limit / 8) * 8
        assert plan.link_bytes <= 1.10 * plan.bound


@pytest.mark.parametrize(("kind", "place"), [("cpu", "disk"), ("gpu", "disk"), ("gpu", "pinned")])
def test_no_order_is_taken_that_moves_more_than_another(kind: str, place: str) -> None:
    """Against every plan of every order that could be made, whether the planner looked at it or not."""
    rates = Rates(PROFILE, kind, F64, {place})
    problem = CholeskyProblem(0, F64, unit=512, hostless=place == "pinned", grain=(512, 512))
    for n, limit in itertools.product((8000, 30_000, 500_000), (250_000_000, 500_000_000)):
        p, limits, unified = replace(problem, n=n), MatmulLimits(limit, 4 << 30), kind == "cpu"
        taken = plan_cholesky(p, limits, rates, unified=unified, piece=1 << 21)
        every = [
            plan
            for variant, finer in itertools.product(VARIANTS, (False, True))
            for plan in candidates(p, limits, rates, unified, 1 << 21, variant, finer=finer)
        ]
        others = [plan for plan in every if plan.variant != taken.variant and plan.panel * plan.tile[0] < n]
        assert {plan.variant for plan in every} >= {"left", "triangle"}
        assert all(volume(plan) >= volume(taken) for plan in others)


def test_tiles_are_whole_chunks_whose_sides_do_not_divide_each_other() -> None:
    a, factor = (SimStore((1400, 1400), chunks=(50, 70), place="disk") for _ in range(2))
    driver = CholeskyDriver(a, factor, F64)
    assert driver.problem(SimDevice(Rates(PROFILE, "cpu", F64))).unit == 350


@pytest.mark.parametrize("variant", ["right", "triangle"])
def test_one_panel_of_all_columns_is_the_same_order_by_any_name(variant: str) -> None:
    driver = sim_driver(300, 64, None, "disk", False)
    plan = CholeskyPlan(True, (300,), "float64", (64, 64), (5, 5), (20,), "left", panel=5, capacity=17)
    assert list(driver.tasks(plan)) == list(driver.tasks(replace(plan, variant=variant)))


def test_blocks_that_are_wider_than_high_use_few_slots_better() -> None:
    """59 tiles hold no 7 × 7 with panel and slots in flight, but 6 × 8: 1.06 of the bound instead of 1.16."""
    plan = sim_driver(65_536, 1024, "left", "disk", False).plan(
        SimDevice(Rates(PROFILE, "cpu", F64)), MatmulLimits(59 << 23), Rates(PROFILE, "cpu", F64)
    )
    assert plan.link_bytes <= 1.10 * plan.bound


def test_triangle_blocks_win_far_out() -> None:
    rates = Rates(PROFILE, "cpu", F64)

    def plan(variant: str | None, n: int) -> CholeskyPlan:
        problem = CholeskyProblem(n, F64, unit=256, grain=(256, 256))
        return plan_cholesky(problem, MatmulLimits(125 << 20), rates, unified=True, piece=1 << 19, variant=variant)

    assert plan(None, 20_000).variant == "left"
    far = 200 * 4096  # n/√S = 200
    assert plan(None, far).variant == "triangle"
    assert plan("triangle", far).link_bytes < 0.95 * plan("left", far).link_bytes


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_more_memory_never_moves_more(kind: str) -> None:
    rates = Rates(PROFILE, kind, F64)
    before = math.inf
    for tiles in (6, 8, 11, 16, 25, 40, 80, 200, 700):
        driver = sim_driver(12_000, 512, None, "disk", False)
        plan = driver.plan(SimDevice(rates), MatmulLimits(tiles << 21, 200 << 21), rates)
        assert volume(plan) <= 1.1 * before
        before = min(before, volume(plan))


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_refusal_carries_the_numbers(kind: str) -> None:
    rates = Rates(PROFILE, kind, F64)
    with pytest.raises(MemoryLimitError) as caught:
        sim_driver(5000, 1024, None, "disk", True).plan(SimDevice(rates), MatmulLimits(20 << 20, 1 << 30), rates)
    text = str(caught.value)
    assert "order 5000 in float64" in text
    assert "1024 × 1024" in text
    assert "50.3 MB" in text
    assert "21.0 MB" in text
    assert ("memory=" if kind == "cpu" else "gpu_memory=") in text


# ---- factors --------------------------------------------------------------------------------------------------------

PLACES = {"hidden": lambda x: Hidden(x, chunks=(16, 16)), "ram": ArrayStore, "pinned": Pinned}


def factor(
    device: str, a: np.ndarray, *, lower: bool, in_place: bool, variant: str | None, tiles: int, mode: str = "async", place: str
) -> tuple[np.ndarray, CholeskyPlan]:
    """The array that holds the factor, and the plan; ``tiles`` of 16 × 16 fit."""
    source = half(a, lower)
    out = source if in_place else np.full_like(a, np.nan)
    stores = [PLACES[place](source)]
    stores.append(stores[0] if in_place else PLACES[place](out))
    driver = CholeskyDriver(*stores, a.dtype, lower=lower, variant=variant)
    before = source.copy()
    plan, _ = run(driver, DEVICES[device](), limit=tiles * 4096, host=60 * 4096 if place == "hidden" else GENEROUS, mode=mode)
    if not in_place:
        assert np.array_equal(source, before, equal_nan=True)
    other = np.triu(out, 1) if lower else np.tril(out, -1)
    i, j = np.indices(a.shape) // plan.tile[0]
    outside = i < j if lower else i > j
    if plan.tile[0] < len(a):
        assert np.isnan(other[outside]).all(), "the other triangle's tiles are never written"
    assert not other[(i == j)].any() or plan.slots == (0,), "a diagonal tile's other triangle is zero"
    return out, plan


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", CHOICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_factor(device: str, dtype: str, variant: str | None) -> None:
    rng = np.random.default_rng()
    for n, lower, in_place in itertools.product((1, 64, 131), (True, False), (True, False)):
        a = positive(rng, n, dtype)
        found = [
            factor(device, a, lower=lower, in_place=in_place, variant=variant, tiles=26, mode=mode, place="hidden")
            for mode in ("async", "sync")
        ]
        assert np.array_equal(found[0][0], found[1][0], equal_nan=True), "asynchronous and synchronous bits differ"
        assert found[0][1].variant == variant or variant is None
        assert ratio(found[0][0], a, lower) < 30


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("in_place", [True, False])
def test_factor_wherever_the_matrix_lies(device: str, place: str, in_place: bool) -> None:
    a = positive(np.random.default_rng(), 150, "float64")
    for lower in (True, False):
        out, _ = factor(device, a, lower=lower, in_place=in_place, variant=None, tiles=30, place=place)
        assert ratio(out, a, lower) < 30


def test_many_panels_of_triangle_blocks() -> None:
    """Enough tiles for blocks that are triangles, on both levels of slots."""
    a = positive(np.random.default_rng(), 500, "float64")
    for device in DEVICES:
        source, out = Hidden(half(a, True), chunks=(16, 16)), np.full_like(a, np.nan)
        driver = CholeskyDriver(source, Hidden(out, chunks=(16, 16)), F64, variant="triangle")
        run(driver, DEVICES[device](), limit=13 * 4096, host=40 * 4096)
        assert ratio(out, a, True) < 30


@pytest.mark.parametrize("device", DEVICES)
def test_on_disk_from_a_function(device: str, tmp_path: Path) -> None:
    """The matrix is generated, in another element type than the kernels'; only one triangle is stored."""
    n = 200

    def kernel(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return np.where(i[:, None] == j[None, :], 2.0, 1 / (1.0 + (i[:, None] - j[None, :]) ** 2)).astype("float32")

    a = FunctionStore(kernel, (n, n), "float32", chunks=(32, 32))
    out = create_store(tmp_path / "l.zarr", (n, n), F64, chunks=(32, 32), structure="lower")
    driver = CholeskyDriver(a, out, F64)
    plan = driver.plan(DEVICES[device](), MatmulLimits(20 * 8192, GENEROUS), Rates(PROFILE, device, F64))
    with fresh_governor().scope(owner="a test") as scope:
        levels = {"host_slots": plan.host_slots, "host_slot_bytes": plan.host_slot_bytes}
        with watchdog(), AsyncStreamer(DEVICES[device](), driver.operands(plan), scope, **levels) as streamer:
            streamer.run(driver.tasks(plan))
    out.commit()
    found = np.full((n, n), np.nan)
    open_store(tmp_path / "l.zarr").read(Rect(0, n, 0, n), found)
    assert not np.triu(found, 1).any()
    assert ratio(found, kernel(np.arange(n), np.arange(n)).astype("float64"), True) < 30


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_to_factor(device: str) -> None:
    store = Hidden(np.zeros((0, 0)))
    plan, statistics = run(CholeskyDriver(store, store, F64), DEVICES[device](), limit=1 << 20)
    assert plan.tasks == statistics.tasks == 0


# ---- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", CHOICES)
@pytest.mark.parametrize("lower", [True, False])
def test_not_positive_definite_names_the_pivot(device: str, variant: str | None, lower: bool) -> None:
    rng = np.random.default_rng()
    n, bad = 131, int(rng.integers(0, 131))
    a = positive(rng, n, "float64")
    a[bad, bad] = -3.0
    source = Hidden(half(a, lower), chunks=(16, 16))
    before = source.array.copy()
    driver = CholeskyDriver(source, Hidden(np.full_like(a, np.nan), chunks=(16, 16)), F64, lower=lower, variant=variant)
    with pytest.raises(NotPositiveDefiniteError) as caught:
        run(driver, DEVICES[device](), limit=26 * 4096, host=60 * 4096)
    assert (caught.value.pivot, caught.value.order) == (bad, bad + 1)
    assert caught.value.value < 0
    assert np.array_equal(source.array, before, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
def test_not_a_number_is_not_positive_definite(device: str) -> None:
    a = positive(np.random.default_rng(), 100, "float64")
    a[70, 12] = np.nan
    source = Hidden(half(a, True), chunks=(16, 16))
    with pytest.raises(NotPositiveDefiniteError, match="NaN") as caught:
        run(CholeskyDriver(source, source, F64), DEVICES[device](), limit=26 * 4096, host=60 * 4096)
    assert caught.value.pivot == 70


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("where", ["read", "write", "kernel"])
def test_a_failure_releases_everything(device: str, where: str) -> None:
    """Whichever stage breaks, at whatever moment: the error comes out, all threads end, and all memory is given back."""
    rng = np.random.default_rng()
    a = positive(rng, 150, "float64")
    for _ in range(6):
        after = int(rng.integers(0, 40))
        out = Hidden(np.full_like(a, np.nan), chunks=(16, 16))
        source = Hidden(half(a, True), chunks=(16, 16))
        left = itertools.count(after, -1)

        def breaking(call: Any, left: Any = left) -> Any:
            def fragile(*arguments: Any) -> Any:
                if next(left) <= 0:
                    raise Crash
                return call(*arguments)

            return fragile

        if where == "read":
            source._read = breaking(source._read)  # type: ignore[method-assign]
        elif where == "write":
            out._write = breaking(out._write)  # type: ignore[method-assign]
        chosen = crashing(DEVICES[device](), after) if where == "kernel" else DEVICES[device]()
        driver = CholeskyDriver(source, out, F64)
        limits = MatmulLimits(14 * 4096, 60 * 4096)
        plan = driver.plan(chosen, limits, Rates(PROFILE, device, F64))
        governor = fresh_governor()
        with governor.scope(owner="a test") as scope:
            levels = {"host_slots": plan.host_slots, "host_slot_bytes": plan.host_slot_bytes}
            with (
                pytest.raises(Crash),
                watchdog(),
                AsyncStreamer(chosen, driver.operands(plan), scope, **levels) as streamer,
            ):
                streamer.run(driver.tasks(plan))
            assert scope.in_use("host") == scope.in_use("device") == scope.in_use("pinned") == 0
        assert not scope.leaks


class SlowWrites(Hidden):
    """Writes take a while, reads none: whoever does not wait reads what was there before."""

    def _write(self, rect: Rect, data: np.ndarray) -> None:
        time.sleep(0.002)
        super()._write(rect, data)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", ["left", "triangle"])
def test_a_tile_read_twice_right_after_its_write_waits_twice(device: str, variant: str) -> None:
    """A finished tile is dropped and comes back for several blocks at once, while its write is still under way."""
    a = positive(np.random.default_rng(), 160, "float64")
    for in_place in (True, False):
        array = half(a, True) if in_place else np.full_like(a, np.nan)
        out = SlowWrites(array, chunks=(16, 16))
        origin = out if in_place else Hidden(half(a, True), chunks=(16, 16))
        driver = CholeskyDriver(origin, out, F64, variant=variant)
        _, statistics = run(driver, DEVICES[device](), limit=10 * 4096, host=24 * 4096)
        assert statistics.bytes_read > 2 * statistics.bytes_written, "tiles do come back"
        assert ratio(array, a, True) < 30


# ---- interrupted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("in_place", [True, False])
def test_an_interrupted_run_goes_on_to_the_same_bits(device: str, variant: str, in_place: bool) -> None:
    rng = np.random.default_rng()
    a = positive(rng, 150, "float64")
    limits, rates = MatmulLimits(30 * 4096, GENEROUS), Rates(PROFILE, device, F64)
    results = []
    for crashes in (0, 6):
        array = half(a, True) if in_place else np.full_like(a, np.nan)
        out = Hidden(array, chunks=(16, 16))
        origin = out if in_place else Hidden(half(a, True), chunks=(16, 16))
        journal = MemoryJournal(out)
        plan = CholeskyDriver(origin, out, F64, variant=variant, journal=journal).plan(DEVICES[device](), limits, rates)
        stops = [int(rng.integers(1, plan.tasks // max(crashes - 1, 1))) for _ in range(crashes)] + [10**9]
        reused = []
        for stop in stops:
            driver = CholeskyDriver(origin, out, F64, variant=variant, journal=journal)
            with fresh_governor().scope(owner="a test") as scope:
                levels = {"host_slots": plan.host_slots, "host_slot_bytes": plan.host_slot_bytes}
                chosen = crashing(DEVICES[device](), stop, journal)
                try:
                    with watchdog(), AsyncStreamer(chosen, driver.operands(plan), scope, **levels) as streamer:
                        streamer.run(driver.tasks(plan))
                        reused.append(streamer.statistics().reused)
                except Crash:
                    journal.recover()  # what was on its way is lost
        assert (reused[-1] > 0) is (crashes > 0)
        results.append(array)
    assert np.array_equal(*results, equal_nan=True)
    assert ratio(results[0], a, True) < 30
