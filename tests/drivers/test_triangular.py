"""Triangular solves, products and inverses: against higher precision, and their plans against the simulation."""

from __future__ import annotations

import itertools
import json
import threading

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pycauset.devices.numpy import NumpyDevice
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
from pycauset.errors import MemoryLimitError, NonFiniteError, SingularMatrixError
from pycauset.storage import ArrayStore, create_store, open_store
from pycauset.tiling import Rect
from tests.drivers.fakes import OP, PROFILE, FakeGpu, Hidden, Pinned, fresh_governor, random_matrix, watchdog

F64 = np.dtype("float64")
DTYPES = ("float32", "float64", "complex64", "complex128")
DEVICES = {"cpu": NumpyDevice, "gpu": FakeGpu}
GENEROUS = 9 << 20


def run(driver, device, *, limit, host=GENEROUS, mode="async", profile=PROFILE):
    """Plan and run; the bytes and tasks must be those of the plan, and nothing may be left afterwards."""
    plan = driver.plan(device, MatmulLimits(limit, host), Rates(profile, device.kind, driver.dtype))
    assert plan.device_bytes <= limit
    operands = driver.operands(plan)
    temporary = AsyncStreamer.temporary_bytes(device, operands, 2, 1)
    level = limit if device.unified else host
    with (
        watchdog(),
        fresh_governor().scope(host=level + temporary, device=0 if device.unified else limit, owner="a test") as scope,
    ):
        options = {"host_slots": plan.host_slots, "host_slot_bytes": plan.host_slot_bytes, "mode": mode}
        with AsyncStreamer(device, operands, scope, **options) as streamer:
            streamer.run(driver.tasks(plan))
            statistics = streamer.statistics()
        assert scope.in_use("host") == scope.in_use("device") == 0
    assert not scope.leaks
    assert statistics.tasks == plan.tasks
    assert statistics.flops == pytest.approx(plan.flops)
    assert bytes_of(statistics, device.kind) == promised(plan, device.kind)
    return plan, statistics


def bytes_of(statistics, kind: str) -> tuple[int, ...]:
    host = (statistics.bytes_read, statistics.bytes_written)
    return host if kind == "cpu" else (statistics.bytes_uploaded, statistics.bytes_downloaded, *host)


def promised(plan: BlockedPlan, kind: str) -> tuple[int, ...]:
    host = (plan.disk_read, plan.disk_write)
    return host if kind == "cpu" else (plan.upload, plan.download, *host)


def triangular(rng, n: int, dtype, uplo: str, unit: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A well-conditioned triangle as stored, with NaN wherever nobody may look, and the matrix it stands for."""
    exact = random_matrix(rng, (n, n), dtype) / max(n, 1)
    exact = np.tril(exact) if uplo == "L" else np.triu(exact)
    signs = rng.choice([-1.0, 1.0], n) * rng.uniform(1, 2, n)
    np.fill_diagonal(exact, 1 if unit else signs)
    stored = exact.copy()
    stored[(np.triu_indices if uplo == "L" else np.tril_indices)(n, 1 if uplo == "L" else -1)] = np.nan
    if unit:
        np.fill_diagonal(stored, np.nan)
    return stored, exact


def higher(x: np.ndarray) -> np.ndarray:
    return x.astype(np.clongdouble if x.dtype.kind == "c" else np.longdouble)


def ratio(found: np.ndarray, exact: np.ndarray, *factors: np.ndarray) -> float:
    """``‖found − exact‖ / (ε n Π‖factor‖)`` in the maximum norm; n and ε are the first factor's order and precision."""
    assert np.isfinite(found).all()
    scale = float(np.prod([np.abs(f).max(initial=0) for f in factors])) * max(factors[0].shape)
    return float(np.abs(higher(found) - exact).max(initial=0)) / (np.finfo(factors[0].dtype).eps * scale)


def solve_ratio(x, t, b, *, side, op, alpha) -> float:
    """LAPACK's residual ratio of ``op(T) X = alpha B``."""
    assert np.isfinite(x).all()
    left = higher(OP[op](t)) @ higher(x) if side == "L" else higher(x) @ higher(OP[op](t))
    scale = float(np.abs(t).max() * np.abs(x).max(initial=0) + abs(alpha) * np.abs(b).max(initial=0)) * t.shape[0]
    return float(np.abs(left - alpha * higher(b)).max(initial=0)) / (np.finfo(x.dtype).eps * max(scale, 1e-30))


def small_limit(n: int, m: int, itemsize: int) -> int:
    """About half of what the operands take, but enough for a handful of tiles."""
    return max((n * n // 2 + n * m) * itemsize // 2, 24 * 4096)


# ---- solve ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("side", "uplo", "op"), list(itertools.product("LR", "LU", "NTH")))
@pytest.mark.parametrize("dtype", DTYPES)
def test_solve(device, dtype, side, uplo, op):
    rng = np.random.default_rng(40)
    for n, m, unit in [(101, 67, False), (101, 67, True), (64, 128, False), (131, 1, True)]:
        stored, exact = triangular(rng, n, dtype, uplo, unit)
        b = random_matrix(rng, (n, m) if side == "L" else (m, n), dtype)
        alpha = 0.5 - 2j if np.dtype(dtype).kind == "c" else -0.75
        for in_place in (False, True):
            results = []
            for mode in ("async", "sync") if n == 101 else ("async",):
                x = b.copy() if in_place else np.full_like(b, np.nan)
                chunks = (16, min(16, m)) if side == "L" else (min(16, m), 16)
                t, target, source = (Hidden(y, chunks=c) for y, c in zip((stored, x, b), ((16, 16), chunks, chunks), strict=True))
                options = {"side": side, "uplo": uplo, "op": op, "unit": unit, "alpha": alpha}
                driver = TriangularSolveDriver(t, target, b.dtype, origin=None if in_place else source, **options)
                run(driver, DEVICES[device](), limit=small_limit(n, m, b.itemsize), host=48 * 4096, mode=mode)
                assert solve_ratio(x, exact, b, side=side, op=op, alpha=alpha) < 30
                assert not source.writes
                results.append(x)
            assert np.array_equal(results[0], results[-1]), "asynchronous and synchronous bits differ"


PLACES = {"hidden": Hidden, "ram": ArrayStore, "pinned": Pinned}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("place_t", "place_x", "place_b"), list(itertools.product(PLACES, repeat=3)))
def test_solve_wherever_operands_lie(device, place_t, place_x, place_b):
    rng = np.random.default_rng(41)
    stored, exact = triangular(rng, 90, "float64", "L")
    b = random_matrix(rng, (90, 50), "float64")
    before = b.copy()
    x = np.full_like(b, np.nan)
    driver = TriangularSolveDriver(PLACES[place_t](stored), PLACES[place_x](x), F64, origin=PLACES[place_b](b), alpha=2.0)
    run(driver, DEVICES[device](), limit=40_000)
    assert solve_ratio(x, exact, b, side="L", op="N", alpha=2.0) < 30
    assert np.array_equal(b, before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("uplo", "LU")
def test_solve_on_disk(device, uplo, tmp_path):
    """A store of one triangle, right-hand sides of another type in chunks of their own, the result in Zarr."""
    rng = np.random.default_rng(42)
    _, exact = triangular(rng, 150, "float64", uplo)
    b = rng.integers(-9, 9, (150, 70), dtype="int32")

    def on_disk(name, array, **options):
        store = create_store(tmp_path / name, array.shape, array.dtype, **options)
        store.write(Rect(0, array.shape[0], 0, array.shape[1]), array)
        store.commit()
        return open_store(tmp_path / name)

    t = on_disk("t", exact, chunks=(32, 32), structure="lower" if uplo == "L" else "upper")
    origin = on_disk("b", b, chunks=(19, 23))
    x = create_store(tmp_path / "x", b.shape, F64, chunks=(32, 32))
    driver = TriangularSolveDriver(t, x, F64, origin=origin, uplo=uplo)
    plan = driver.plan(DEVICES[device](), MatmulLimits(100_000, GENEROUS), Rates(PROFILE, device, F64))
    with fresh_governor().scope(owner="a test") as scope:
        options = {"host_slots": plan.host_slots, "host_slot_bytes": plan.host_slot_bytes}
        with watchdog(), AsyncStreamer(DEVICES[device](), driver.operands(plan), scope, **options) as streamer:
            streamer.run(driver.tasks(plan))
    x.commit()
    found = np.full(b.shape, np.nan)
    open_store(tmp_path / "x").read(Rect(0, 150, 0, 70), found)
    assert solve_ratio(found, exact, b.astype(float), side="L", op="N", alpha=1.0) < 30


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (0, 0), (1, 1)])
def test_solve_of_nothing_and_next_to_nothing(device, n, m):
    b = np.full((n, m), 6.0)
    driver = TriangularSolveDriver(Hidden(np.full((n, n), 3.0)), Hidden(b), F64)
    run(driver, DEVICES[device](), limit=1 << 20)
    assert np.array_equal(b, np.full((n, m), 2.0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("value", "error"), [(0.0, SingularMatrixError), (np.nan, NonFiniteError)])
def test_a_bad_diagonal_is_found_before_anything_is_overwritten(device, value, error):
    rng = np.random.default_rng(43)
    stored, _ = triangular(rng, 80, "float64", "L")
    stored[71, 71] = value
    b = random_matrix(rng, (80, 40), "float64")
    x = b.copy()
    t = Hidden(stored, chunks=(16, 16))
    driver = TriangularSolveDriver(t, Hidden(x, chunks=(16, 16)), F64)
    with pytest.raises(error) as caught:
        run(driver, DEVICES[device](), limit=24 * 4096)
    assert "71" in str(caught.value)
    assert np.array_equal(x, b)
    with pytest.raises(error):
        run(TriangularInverseDriver(t, Hidden(np.zeros((80, 80)), chunks=(16, 16)), F64), DEVICES[device](), limit=24 * 4096)


# ---- inverse, product, gram -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("uplo", "LU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse(device, dtype, uplo):
    rng = np.random.default_rng(44)
    for n, unit in itertools.product((1, 64, 101, 150), (False, True)):
        stored, exact = triangular(rng, n, dtype, uplo, unit)
        results = []
        for mode in ("async", "sync"):
            w = np.full_like(exact, np.nan)
            driver = TriangularInverseDriver(
                Hidden(stored, chunks=(16, 16)), Hidden(w, chunks=(16, 16)), exact.dtype, uplo=uplo, unit=unit
            )
            plan, _ = run(driver, DEVICES[device](), limit=small_limit(n, 0, exact.itemsize), mode=mode)
            results.append(w)
        assert np.array_equal(*results, equal_nan=True)
        other = np.isnan(w)  # tiles of the other triangle are never written
        b = plan.tile[0]
        i, j = np.indices((n, n)) // b
        assert np.array_equal(other, i < j if uplo == "L" else i > j)
        w[other] = 0
        assert np.array_equal(w, np.tril(w) if uplo == "L" else np.triu(w))
        assert ratio(higher(exact) @ higher(w), np.eye(n), exact, w) < 30


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("side", "uplo", "op"), list(itertools.product("LR", "LU", "NTH")))
@pytest.mark.parametrize("dtype", DTYPES)
def test_product(device, dtype, side, uplo, op):
    rng = np.random.default_rng(45)
    for n, m, unit in [(101, 67, False), (101, 67, True), (64, 128, False), (131, 1, True)]:
        stored, exact = triangular(rng, n, dtype, uplo, unit)
        b = random_matrix(rng, (n, m) if side == "L" else (m, n), dtype)
        alpha = 0.5 - 2j if np.dtype(dtype).kind == "c" else -0.75
        results = []
        for mode in ("async", "sync"):
            c = np.full_like(b, np.nan)
            chunks = (16, min(16, m)) if side == "L" else (min(16, m), 16)
            stores = [Hidden(y, chunks=k) for y, k in zip((stored, b, c), ((16, 16), chunks, chunks), strict=True)]
            driver = TriangularProductDriver(*stores, b.dtype, side=side, uplo=uplo, op=op, unit=unit, alpha=alpha)
            run(driver, DEVICES[device](), limit=small_limit(n, 2 * m, b.itemsize), mode=mode)
            p, q = (OP[op](exact), b) if side == "L" else (b, OP[op](exact))
            assert ratio(c, alpha * (higher(p) @ higher(q)), exact, b, np.array([abs(alpha)])) < 30
            results.append(c)
        assert np.array_equal(*results)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("uplo", "op"), list(itertools.product("LU", "NH")))
@pytest.mark.parametrize("dtype", DTYPES)
def test_gram(device, dtype, uplo, op):
    rng = np.random.default_rng(46)
    for n in (1, 64, 101, 150):
        stored, exact = triangular(rng, n, dtype, uplo)
        g = np.full_like(exact, np.nan)
        driver = TriangularGramDriver(Hidden(stored, chunks=(16, 16)), Hidden(g, chunks=(16, 16)), exact.dtype, uplo=uplo, op=op)
        plan, _ = run(driver, DEVICES[device](), limit=small_limit(n, 0, exact.itemsize))
        p = higher(OP[op](exact))
        tile = np.indices((n, n)) // plan.tile[0]
        computed = tile[0] >= tile[1]
        assert np.array_equal(np.isnan(g), ~computed)
        g[~computed] = g.conj().T[~computed]
        assert np.array_equal(g, g.conj().T), "a Hermitian matrix to the last bit"
        assert ratio(g, p @ p.conj().T, exact, exact) < 30


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("place", PLACES)
def test_inverse_of_a_positive_definite_matrix(device, place):
    """L⁻ᴴ L⁻¹ by two drivers in a row is the inverse of L Lᴴ."""
    rng = np.random.default_rng(47)
    stored, exact = triangular(rng, 120, "complex128", "L")
    w, g = np.full_like(exact, np.nan), np.full_like(exact, np.nan)
    inverse = PLACES[place](w)
    dtype = exact.dtype
    run(TriangularInverseDriver(PLACES[place](stored), inverse, dtype), DEVICES[device](), limit=40 * 4096)
    run(TriangularGramDriver(inverse, PLACES[place](g), dtype, op="H"), DEVICES[device](), limit=40 * 4096)
    a = exact @ exact.conj().T
    g = np.tril(g) + np.tril(g, -1).conj().T
    assert np.abs(a @ g - np.eye(120)).max() < 30 * 120 * np.finfo("float64").eps * np.abs(a).max() * np.abs(g).max()


# ---- interrupted ----------------------------------------------------------------------------------------------------


class Journal:
    """A journal in memory: a tile is written when all its pieces are there, then it is on record."""

    def __init__(self, store) -> None:
        self.store, self.lock = store, threading.Lock()
        self.generations: dict[Rect, int] = {}
        self.pieces: dict[tuple[Rect, int], list[tuple[Rect, np.ndarray]]] = {}
        self.flushed = 0

    def generation(self, tile: Rect) -> int:
        return self.generations.get(tile, 0)

    def write(self, tile: Rect, generation: int, part: Rect, data: np.ndarray) -> None:
        with self.lock:
            pieces = self.pieces.setdefault((tile, generation), [])
            pieces.append((part, data.copy()))
            if sum(rect.size for rect, _ in pieces) == tile.size:
                for rect, piece in pieces:
                    self.store.write(rect, piece)
                assert generation > self.generation(tile)
                self.generations[tile] = generation

    def flush(self) -> None:
        self.flushed += 1


class Crash(Exception):  # noqa: N818 - not an error of the package
    """The power is gone."""


def crashing(device, after: int):
    """The device, which fails at one of its tasks."""
    left = itertools.count(after, -1)

    def fragile(kernel):
        def call(*arguments):
            if next(left) == 0:
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
        journal = Journal(out)
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
                        AsyncStreamer(crashing(DEVICES[device](), stop), driver.operands(plan), scope, **options) as run,
                    ):
                        run.run(driver.tasks(plan))
                        reused.append(run.statistics().reused)
                except Crash:
                    journal.pieces.clear()  # what was on its way is lost
        if crashes:
            assert reused[-1] > 0
        assert journal.flushed
        results.append(array)
    assert np.array_equal(*results, equal_nan=True)


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
