"""The simulation: a virtual clock that obeys waits and rates, and stores without elements."""

from __future__ import annotations

import numpy as np
import pytest

from pycauset.devices.rates import Rates
from pycauset.devices.sim import SimDevice, SimStore
from pycauset.drivers.matmul import MatmulDriver
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.errors import MemoryLimitError
from pycauset.storage import ArrayStore
from pycauset.tiling import Rect
from tests.drivers.fakes import PROFILE, fresh_governor

F64 = np.dtype("float64")


def lanes_of(kind: str):
    device = SimDevice(Rates(PROFILE, kind, F64))
    return device, device.lanes(mode="async", failure=None, timeline=None, readers=2, writers=1)


def test_jobs_start_when_the_lane_and_what_they_wait_for_are_ready():
    device, lanes = lanes_of("gpu")
    up = device.rates.upload
    one = lanes.upload.submit(print, (), name="a", nbytes=int(up))  # a second
    two = lanes.upload.submit(print, (), name="b", nbytes=int(up))
    kernel = lanes.compute[0].submit(print, (one,), name="k", flops=1e12)
    home = lanes.download.submit(print, (kernel, two), name="c", nbytes=8)
    assert one.time == pytest.approx(1.0)
    assert two.time == pytest.approx(2.0)
    assert kernel.time == pytest.approx(1.0 + device.rates.compute(1e12))
    assert home.time == pytest.approx(max(kernel.time, 2.0) + 8 / device.rates.download)
    assert lanes.compute[0].statistics().stalled == pytest.approx(1.0)
    assert lanes.upload.statistics() == pytest.approx((2, 2 * int(up), 2.0, 0.0))


def test_the_shape_of_the_device_follows_the_rates():
    cpu, cpu_lanes = lanes_of("cpu")
    gpu, gpu_lanes = lanes_of("gpu")
    assert cpu.unified
    assert not gpu.unified
    assert not cpu.real
    assert [lane.name for lane in cpu_lanes.all()] == ["read", "compute", "write"]
    assert [lane.name for lane in gpu_lanes.all()] == ["read", "upload", "compute", "download", "write"]


def test_reach():
    cpu, gpu = lanes_of("cpu")[0], lanes_of("gpu")[0]
    for place, on_cpu, on_gpu in (("disk", False, False), ("ram", True, False), ("pinned", True, True)):
        store = SimStore((10, 10), place=place)
        assert cpu.reaches(store, F64) is on_cpu
        assert gpu.reaches(store, F64) is on_gpu
        assert not cpu.reaches(store, np.dtype("float32"))
    assert not gpu.reaches(ArrayStore(np.ones((3, 3))), F64)


def test_a_simulated_store_has_no_elements():
    store = SimStore((10**7, 10**7))
    assert store.nbytes == 8 * 10**14
    assert store.view(Rect(0, 1, 0, 1)) is None
    with pytest.raises(TypeError, match="no elements"):
        store.read(Rect(0, 1, 0, 1), np.empty((1, 1)))


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("n", [8192, 16_384])
def test_the_plans_seconds_are_near_the_simulations(kind, n):
    stores = [SimStore((n, n), F64, chunks=(1024, 1024)) for _ in range(3)]
    device = SimDevice(Rates(PROFILE, kind, F64))
    device.rates.pin = float("inf")  # the simulation takes no memory, so it pins none either
    driver = MatmulDriver(*stores, F64)
    plan = driver.plan(device, MatmulLimits(1 << 30, 2 << 30), device.rates)
    timeline = []
    with fresh_governor().scope(owner="simulation") as scope:
        streamer = AsyncStreamer(
            device, driver.operands(plan), scope, host_slots=plan.host_slots, host_slot_bytes=plan.host_slot_bytes, timeline=True
        )
        with streamer:
            streamer.run(driver.tasks(plan))
            statistics = streamer.statistics()
            timeline = streamer._timeline
        assert scope.peak("host") == scope.peak("device") == 0  # it takes no memory
    end = max(span.end for span in timeline)
    assert statistics.flops == 2.0 * n**3
    busiest = max(lane.busy for lane in statistics.lanes.values())
    assert end >= busiest
    assert plan.seconds == pytest.approx(end, rel=0.5)


def test_a_refused_plan_needs_no_machine():
    device = SimDevice(Rates(PROFILE, "gpu", F64))
    stores = [SimStore((10**6, 10**6), F64) for _ in range(3)]
    with pytest.raises(MemoryLimitError, match=r"gpu_memory= leaves 1\.05 MB"):
        MatmulDriver(*stores, F64).plan(device, MatmulLimits(1 << 20, 1 << 30), device.rates)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_kernels_take_the_time_that_the_rates_give_them(kind):
    device, lanes = lanes_of(kind)
    for kernel in ("gemm", "potrf", "trsm", "copy"):
        before = lanes.compute[0].clock
        done = lanes.compute[0].submit(print, (), name=kernel, flops=2e10)
        assert done.time - before == pytest.approx(device.rates.compute(2e10, kernel))
    assert device.rates.compute(2e10, "potrf") > device.rates.compute(2e10)
