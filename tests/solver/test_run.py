"""What every streamed operation goes through: limits, and a driver through the streamer."""

from __future__ import annotations

import numpy as np
import pytest

from pycauset import devices
from pycauset.devices.audit import load_profile
from pycauset.devices.rates import Rates
from pycauset.drivers.matmul import MatmulDriver
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.errors import ConfigError, MemoryLimitError
from pycauset.governor import governor
from pycauset.solver.run import last_statistics, operation_limits, record_statistics, run_streamed
from tests.drivers.fakes import Hidden

MB = 10**6


@pytest.mark.parametrize(
    ("memory", "result", "reserve"), [(400, 0, 72 << 20), (400, 200, 72 << 20), (102, 0, 51 * MB), (90, 50, 20 * MB)]
)
def test_a_limit_is_split_between_tiles_a_result_and_the_rest(memory, result, reserve):
    limits = operation_limits(memory * MB, "1GB", result=result * MB)
    assert limits.memory == (memory - result) * MB
    assert limits.gpu_memory == 10**9
    assert limits.reserve == reserve
    assert limits.host == limits.memory - reserve
    assert 0 <= limits.pinned <= limits.host
    assert 0 < limits.device < 10**9


def test_without_a_limit_the_governor_decides():
    limits = operation_limits()
    assert (limits.memory, limits.gpu_memory, limits.reserve) == (None, None, 0)
    available = governor().available("host")
    assert 0.9 * available <= limits.host <= 1.1 * available
    with pytest.raises(ConfigError):
        operation_limits("plenty")


def test_a_scope_holds_to_the_limit():
    with operation_limits(3 * MB).scope("test") as scope:
        with pytest.raises(MemoryLimitError, match="too much"):
            scope.require("host", 3 * MB + 1, owner="too much")
        with scope.require("host", 3 * MB, owner="just enough"):
            pass


def test_any_driver_runs_through_the_streamer():
    rng = np.random.default_rng(58)
    a, b, c = rng.standard_normal((70, 50)), rng.standard_normal((50, 90)), np.full((70, 90), np.nan)
    driver = MatmulDriver(*(Hidden(x, chunks=(16, 16)) for x in (a, b, c)), np.dtype("float64"))
    device = devices.cpu()
    plan = driver.plan(device, MatmulLimits(1 << 20), Rates(load_profile(), "cpu", "float64"))
    seen: list[float] = []
    record_statistics(None)
    with operation_limits("20MB").scope("test") as scope:
        done = run_streamed(
            device, driver, plan, scope, "test", plan.problem.flops, lambda now, total: seen.append(now), readers=2, writers=1
        )
    assert np.allclose(c, a @ b, rtol=0, atol=1e-12)
    assert last_statistics() is done
    assert done.tasks == plan.tasks
    assert done.flops == pytest.approx(plan.problem.flops)
    assert seen
