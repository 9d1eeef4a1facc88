"""Plans: the closed form equals the simulation and what really runs; limits hold; refusals carry the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pycauset.devices.numpy import NumpyDevice
from pycauset.devices.rates import Rates
from pycauset.devices.sim import SimDevice, SimStore
from pycauset.drivers import matmul_cost, matmul_plan
from pycauset.drivers.matmul import MatmulDriver
from pycauset.drivers.matmul_plan import MatmulLimits, MatmulProblem, lower_bound, plan_matmul
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.errors import MemoryLimitError
from pycauset.units import format_bytes
from tests.drivers.fakes import PROFILE, FakeGpu, Hidden, fresh_governor, stream

F64 = np.dtype("float64")


def rates(kind: str, dtype=F64) -> Rates:
    return Rates(PROFILE, kind, dtype)


def simulate(driver: MatmulDriver, kind: str, plan):
    device = SimDevice(rates(kind))
    with fresh_governor().scope(owner="simulation") as scope:
        operands = driver.operands(plan)
        with AsyncStreamer(device, operands, scope, host_slots=plan.host_slots, host_slot_bytes=plan.host_slot_bytes) as streamer:
            streamer.run(driver.tasks(plan))
            return streamer.statistics()


def bytes_of(statistics, kind: str) -> tuple[int, ...]:
    host = (statistics.bytes_read, statistics.bytes_written)
    return host if kind == "cpu" else (statistics.bytes_uploaded, statistics.bytes_downloaded, *host)


def promised(plan, kind: str) -> tuple[int, ...]:
    host = (plan.disk_read, plan.disk_write)
    return host if kind == "cpu" else (plan.upload, plan.download, *host)


@st.composite
def products(draw: st.DrawFn):
    side = st.integers(1, 300)
    m, n, k = draw(side), draw(side), draw(side)
    chunk = draw(st.sampled_from([8, 16, 32]))
    op_a, op_b = draw(st.sampled_from("NT")), draw(st.sampled_from("NT"))
    rank_k = draw(st.integers(0, 3)) == 0
    if rank_k:
        n, op_b = m, "T" if op_a == "N" else "N"
    beta = 0.5 if draw(st.booleans()) else 0.0
    shape_a = (m, k) if op_a == "N" else (k, m)
    shape_b = shape_a if rank_k else (k, n) if op_b == "N" else (n, k)
    limit = draw(st.integers(8, 200)) * 4096
    host = draw(st.integers(8, 300)) * 8192
    return (shape_a, shape_b, (m, n)), (chunk, chunk), {"op_a": op_a, "op_b": op_b, "rank_k": rank_k, "beta": beta}, limit, host


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@settings(max_examples=30)
@given(case=products())
def test_closed_form_equals_simulation_equals_execution(kind, case):
    shapes, chunks, options, limit, host = case
    stores = [SimStore(s, F64, chunks=chunks) for s in shapes]
    if options["rank_k"]:
        stores[1] = stores[0]
    driver = MatmulDriver(*stores, F64, **options)
    try:
        plan = driver.plan(SimDevice(rates(kind)), MatmulLimits(limit, host), rates(kind))
    except MemoryLimitError:
        assume(False)
    assert plan.device_bytes <= limit
    assert plan.host_bytes <= host
    simulated = simulate(driver, kind, plan)
    assert simulated.tasks == plan.tasks
    assert bytes_of(simulated, kind) == promised(plan, kind)
    arrays = [np.zeros(s) for s in shapes]
    real = [Hidden(x, chunks=chunks) for x in arrays]
    if options["rank_k"]:
        real[1] = real[0]
    done, statistics = stream(NumpyDevice() if kind == "cpu" else FakeGpu(), *real, limit=limit, host=host, **options)
    assert promised(done, kind) == promised(plan, kind)
    assert bytes_of(statistics, kind) == promised(plan, kind)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("rank_k", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(28_672, 28_672, 28_672), (30_000, 20_000, 25_000), (20_480, 61_440, 10_240)])
def test_large_plans_match_the_simulation(kind, m, n, k, rank_k):
    n = m if rank_k else n
    stores = [SimStore(s, F64, chunks=(1024, 1024)) for s in ((m, k), (k, n), (m, n))]
    if rank_k:
        stores[1] = stores[0]
    driver = MatmulDriver(*stores, F64, rank_k=rank_k, op_b="T" if rank_k else "N")
    plan = driver.plan(SimDevice(rates(kind)), MatmulLimits(4 << 30, 8 << 30), rates(kind))
    assert bytes_of(simulate(driver, kind, plan), kind) == promised(plan, kind)


CUBES = [(n, n, n) for n in (30_000, 100_000, 10**6)]
SIZES = [*CUBES, (200_000, 50_000, 100_000), (300_000, 40_000, 10**5)]


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("limit", [512 << 20, 2 << 30, 8 << 30])
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_bytes_stay_within_a_tenth_of_the_bound(kind, limit, m, n, k):
    """Where fast memory holds at least 30 × 30 tiles; answered at once, whatever the size."""
    tile = 256
    assert limit >= 30 * 30 * tile * tile * 8
    problem = MatmulProblem(m, n, k, F64, units=(tile, tile, tile), grain=((tile, tile),) * 3)
    plan = plan_matmul(problem, MatmulLimits(limit, 64 << 30), rates(kind), unified=kind == "cpu", piece=tile * tile * 8)
    assert plan.device_bytes <= limit
    assert plan.bound == lower_bound(m, n, k, limit / 8) * 8
    assert plan.link_bytes <= 1.10 * plan.bound
    # The bound counts each input once, so no plan can be better than inputs and output once.
    assert plan.link_bytes >= 8 * (m * k + k * n + m * n)


def counting(tried, name, real):
    def counted(*arguments):
        tried[name] += 1
        return real(*arguments)

    return counted


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("rank_k", [False, True])
@pytest.mark.parametrize("unit", [1, 256, 1024])
@pytest.mark.parametrize(("n", "limit"), [(10**6, 200 << 20), (10**6, 64 << 30), (10**5, 200 << 20), (3000, 64 << 30)])
def test_planning_tries_a_bounded_number_of_candidates(kind, rank_k, unit, n, limit, monkeypatch):
    """However large the product and however small the memory: planning is a matter of milliseconds, not of n."""
    tried = {"predict": 0, "fit": 0, "_steps_width": 0}
    for name in tried:
        home = matmul_cost if name == "_steps_width" else matmul_plan
        monkeypatch.setattr(home, name, counting(tried, name, getattr(home, name)))
    problem = MatmulProblem(n, n, n, F64, units=(unit,) * 3, grain=((unit, unit),) * 3, rank_k=rank_k)
    matmul_plan._search(problem, MatmulLimits(limit, 4 * limit), rates(kind), kind == "cpu", max(unit * unit * 8, 4096))
    assert 0 < tried["predict"] <= 160
    assert tried["fit"] <= 4000
    assert tried["_steps_width"] <= 12 * tried["predict"]  # the bytes of a plan in closed form, not pass by pass


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_rank_k_moves_fewer_bytes_and_does_half_the_work(kind):
    n = 200_000
    geometry = {"units": (256, 256, 256), "grain": ((256, 256),) * 3}
    problem = {rank_k: MatmulProblem(n, n, n, F64, rank_k=rank_k, **geometry) for rank_k in (False, True)}
    plans = {
        rank_k: plan_matmul(p, MatmulLimits(2 << 30, 64 << 30), rates(kind), unified=kind == "cpu", piece=256 * 256 * 8)
        for rank_k, p in problem.items()
    }
    assert problem[True].flops == problem[False].flops * (n + 1) / (2 * n)
    assert plans[True].link_bytes < 0.6 * plans[False].link_bytes
    assert plans[True].seconds < 0.8 * plans[False].seconds


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_refusal_carries_the_numbers(kind):
    chunk = 1024
    problem = MatmulProblem(5000, 6000, 7000, F64, units=(chunk,) * 3, grain=((chunk, chunk),) * 3)
    need = (5 * 1024 * 256 + (2 if kind == "cpu" else 3) * 1024 * 1024) * 8  # a quarter of a chunk deep
    unified = kind == "cpu"
    assert plan_matmul(problem, MatmulLimits(need, 1 << 30), rates(kind), unified=unified).tile[2] == 256
    with pytest.raises(MemoryLimitError) as caught:
        plan_matmul(problem, MatmulLimits(need - 4096, 1 << 30), rates(kind), unified=unified)
    text = str(caught.value)
    assert "(5000, 7000) @ (7000, 6000) in float64" in text
    assert f"needs at least {format_bytes(need)}" in text
    assert f"{'memory=' if unified else 'gpu_memory='} leaves {format_bytes(need - 4096)}" in text
    assert "raise the limit, or store the operands in smaller chunks (now 1024 × 1024" in text


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_parts_of_chunks_are_for_want_of_memory_alone(kind):
    problem = MatmulProblem(9000, 9000, 9000, F64, units=(1024,) * 3, grain=((1024, 1024),) * 3)
    depths = [
        plan_matmul(problem, MatmulLimits(limit * 10**6, 4 << 30), rates(kind), unified=kind == "cpu").tile[2]
        for limit in (30 if kind == "cpu" else 40, 50, 100, 2000)
    ]
    assert depths[:2] == [256, 512]
    assert not any(depth % 1024 for depth in depths[2:])


@pytest.mark.parametrize("limit", range(60, 140, 4))
def test_no_limit_between_the_smallest_and_the_comfortable_is_refused(limit):
    """More memory must never turn an answer into a refusal."""
    problem = MatmulProblem(20_000, 20_000, 20_000, F64, units=(1024,) * 3, grain=((1024, 1024),) * 3)
    plan = plan_matmul(problem, MatmulLimits(limit * 10**6), rates("cpu"), unified=True)
    assert plan.device_bytes <= limit * 10**6


def test_a_refusal_for_want_of_host_slots_says_so():
    problem = MatmulProblem(5000, 6000, 7000, F64, units=(1024,) * 3, grain=((1024, 1024),) * 3)
    with pytest.raises(MemoryLimitError, match=r"memory= leaves 16\.8 MB for host slots of 8\.39 MB"):
        plan_matmul(problem, MatmulLimits(1 << 30, 16 << 20), rates("gpu"), unified=False)


@pytest.mark.parametrize("limit", [37 << 20, 101 << 20, 997 << 20])
def test_more_memory_never_moves_more(limit):
    problem = MatmulProblem(20_000, 17_000, 23_000, F64, units=(512,) * 3, grain=((512, 512),) * 3)
    less = plan_matmul(problem, MatmulLimits(limit), rates("cpu"), unified=True)
    more = plan_matmul(problem, MatmulLimits(4 * limit), rates("cpu"), unified=True)
    assert more.link_bytes <= less.link_bytes


@given(case=products())
def test_no_plan_moves_less_than_the_least(case):
    """For whatever mixture of operands in memory and on disk."""
    (shape_a, _, (m, n)), (chunk, _), options, limit, _ = case
    k = shape_a[1] if options["op_a"] == "N" else shape_a[0]
    free = tuple(bool((m * n + 3 * k) >> bit & 1) for bit in range(3))
    slotless = (free[0], free[0] if options["rank_k"] else free[1], free[2])
    problem = MatmulProblem(
        m, n, k, F64, units=(chunk,) * 3, slotless=slotless, rank_k=options["rank_k"], reads_c=options["beta"] != 0
    )
    try:
        plan = plan_matmul(problem, MatmulLimits(limit), rates("cpu"), unified=True)
    except MemoryLimitError:
        assume(False)
    assert plan.link_bytes >= plan.least >= 0
    assert (plan.link_bytes == 0) == all(slotless)


def test_operands_that_lie_in_memory_cost_no_slots_and_no_bytes():
    problem = MatmulProblem(4000, 4000, 4000, F64, slotless=(True, True, True))
    plan = plan_matmul(problem, MatmulLimits(1 << 20), rates("cpu"), unified=True)
    assert (plan.link_bytes, plan.device_bytes) == (0, 0)
    pinned = MatmulProblem(4000, 4000, 4000, F64, hostless=(True, True, True))
    plan = plan_matmul(pinned, MatmulLimits(64 << 20), rates("gpu"), unified=False)
    assert (plan.disk_read, plan.disk_write, plan.host_slots, plan.host_bytes) == (0, 0, 0, 0)
    assert plan.upload >= 2 * 4000 * 4000 * 8
    assert plan.download == 4000 * 4000 * 8
