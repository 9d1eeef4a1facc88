"""Triangular matrices with traps in them, their residuals, and one function that runs any triangular driver."""

from __future__ import annotations

import numpy as np
import pytest

from pycauset.devices.numpy import NumpyDevice
from pycauset.devices.rates import Rates
from pycauset.drivers.blocked import BlockedPlan
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.slots import temporary_bytes
from pycauset.drivers.streamer import AsyncStreamer
from tests.drivers.fakes import OP, PROFILE, FakeGpu, fresh_governor, random_matrix, watchdog

F64 = np.dtype("float64")
DEVICES = {"cpu": NumpyDevice, "gpu": FakeGpu}
GENEROUS = 9 << 20


def run(driver, device, *, limit, host=GENEROUS, mode="async", profile=PROFILE):
    """Plan and run; the bytes and tasks must be those of the plan, and nothing may be left afterwards."""
    plan = driver.plan(device, MatmulLimits(limit, host), Rates(profile, device.kind, driver.dtype))
    assert plan.device_bytes <= limit
    operands = driver.operands(plan)
    temporary = temporary_bytes(device, operands, 2, 1)
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
    """The same numbers in a wider type."""
    wider = {"float32": np.float64, "complex64": np.complex128, "float64": np.longdouble, "complex128": np.clongdouble}
    return x.astype(wider[x.dtype.name])


def ratio(found: np.ndarray, exact: np.ndarray, *factors: np.ndarray) -> float:
    """``‖found − exact‖ / (ε n Π‖factor‖)`` in the maximum norm; n and ε are the first factor's order and precision."""
    assert np.isfinite(found).all()
    scale = float(np.prod([np.abs(f).max(initial=0) for f in factors])) * max(factors[0].shape)
    return float(np.abs(found - exact).max(initial=0)) / (np.finfo(factors[0].dtype).eps * scale)


def solve_ratio(x, t, b, *, side, op, alpha, widen=higher) -> float:
    """LAPACK's residual ratio of ``op(T) X = alpha B``."""
    assert np.isfinite(x).all()
    left = widen(OP[op](t)) @ widen(x) if side == "L" else widen(x) @ widen(OP[op](t))
    scale = float(np.abs(t).max() * np.abs(x).max(initial=0) + abs(alpha) * np.abs(b).max(initial=0)) * t.shape[0]
    return float(np.abs(left - alpha * widen(b)).max(initial=0)) / (np.finfo(x.dtype).eps * max(scale, 1e-30))


def small_limit(n: int, m: int, itemsize: int) -> int:
    """About half of what the operands take, but enough for a handful of tiles."""
    return max((n * n // 2 + n * m) * itemsize // 2, 24 * 4096)
