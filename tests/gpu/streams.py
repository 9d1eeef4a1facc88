"""How tests run a driver on a GPU under limits that force streaming."""

from __future__ import annotations

from typing import Any

from pycauset.devices.rates import Rates
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.governor import governor


def stream(gpu: Any, driver: Any, *, limit: int, host: int, mode: str = "async") -> Any:
    """Plan and run; returns the plan. What is moved is what was planned."""
    from pycauset.devices.audit import load_profile

    plan = driver.plan(gpu, MatmulLimits(limit, host), Rates(load_profile(), "gpu", driver.dtype))
    levels: dict[str, Any] = {"host_slots": plan.host_slots, "host_slot_bytes": plan.host_slot_bytes, "mode": mode}
    with (
        governor().scope(host=host + (256 << 20), device=limit + (1 << 20), owner="test") as scope,
        AsyncStreamer(gpu, driver.operands(plan), scope, **levels) as streamer,
    ):
        streamer.run(driver.tasks(plan))
        statistics = streamer.statistics()
    assert not scope.leaks
    assert statistics.bytes_uploaded == plan.upload
    assert statistics.bytes_downloaded == plan.download
    assert statistics.tasks == plan.tasks
    return plan
