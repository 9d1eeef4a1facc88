"""What tiles hold after a factorisation in place has failed: the driver's account against the numbers themselves."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycauset.devices.numpy import NumpyDevice
from pycauset.devices.rates import Rates
from pycauset.drivers.cholesky import CholeskyDriver
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.errors import NotPositiveDefiniteError
from pycauset.storage import ArrayStore
from tests.drivers.fakes import PROFILE, FakeGpu, Hidden, Pinned, fresh_governor, watchdog
from tests.drivers.test_resume import OwingGpu, spd

SIDE = 16
F64 = np.dtype("float64")


def failing(device, store, variant, lower):
    """Run in place on a matrix that is not positive definite; the driver and the error."""
    driver = CholeskyDriver(store, store, F64, lower=lower, variant=variant)
    plan = driver.plan(device, MatmulLimits(26 * 4096, 200 * 4096), Rates(PROFILE, device.kind, F64))
    levels = {"host_slots": plan.host_slots, "host_slot_bytes": plan.host_slot_bytes}
    with (
        watchdog(),
        fresh_governor().scope(owner="a test") as scope,
        pytest.raises(NotPositiveDefiniteError) as caught,
        AsyncStreamer(device, driver.operands(plan), scope, **levels) as streamer,
    ):
        streamer.run(driver.tasks(plan))
    assert not scope.leaks
    return driver, plan, caught.value


@pytest.mark.parametrize("variant", ["left", "right", "triangle"])
@pytest.mark.parametrize(
    ("device", "store"),
    [
        (NumpyDevice, ArrayStore),
        (NumpyDevice, partial(Hidden, chunks=(SIDE, SIDE))),
        (partial(FakeGpu, 3e-4), partial(Hidden, chunks=(SIDE, SIDE))),
        (partial(FakeGpu, 3e-4), Pinned),
        (OwingGpu, partial(Hidden, chunks=(SIDE, SIDE))),
        (OwingGpu, Pinned),
    ],
    ids=["array", "disk", "gpu and disk", "gpu and pinned", "late outcome, disk", "late outcome, pinned"],
)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lower=st.booleans())
def test_the_account_is_true(device, store, variant, seed, lower) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(6 * SIDE, 9 * SIDE + 8))  # from 155 on the right-looking order has no room in pinned memory
    a = spd(rng, n)
    pivot = int(rng.integers(0, n))
    a[pivot, pivot] = -1e3
    array = a.copy()
    driver, plan, error = failing(device(), store(array), variant, lower)
    assert error.pivot == pivot
    found = driver.contents(error.pivot)
    side = plan.tile[0]
    exact = np.zeros((n, n))  # the factor of what comes before the pivot, and all that can be computed from it
    exact[:pivot, :pivot] = np.linalg.cholesky(a[:pivot, :pivot])
    exact[pivot:, :pivot] = np.linalg.solve(exact[:pivot, :pivot], a[:pivot, pivot:]).T
    seen = np.zeros((n, n), int)
    for kind, rects in found.items():
        for rect in rects:
            seen[rect.slices] += 1
            r, c = (rect.slices) if lower else rect.slices[::-1]
            held = array[rect.slices] if lower else array[rect.slices].T
            named = np.tril(np.ones(held.shape, bool)) if r == c else np.ones(held.shape, bool)
            if kind == "original":
                assert np.array_equal(held[named], a[r, c][named])
            elif kind == "factor":
                assert np.allclose(held[named], exact[r, c][named], rtol=1e-8, atol=1e-8)
            elif kind == "updated":  # by some of the columns before its own
                states = [a[r, c] - exact[r, : k * side] @ exact[c, : k * side].T for k in range(1, c.start // side + 1)]
                assert any(np.allclose(held[named], state[named], rtol=1e-8, atol=1e-8) for state in states)
    whole = np.tril(seen) if lower else np.triu(seen)
    assert (whole[np.tril_indices(n) if lower else np.triu_indices(n)] == 1).all(), "a tile is missing, or in two states"
    if pivot < side:
        assert not found["factor"]
    elif variant == "right" and store is ArrayStore:
        assert found["factor"]


def test_nothing_has_happened_before_the_first_task() -> None:
    a = spd(np.random.default_rng(), 40)
    driver = CholeskyDriver(ArrayStore(a), ArrayStore(a), F64)
    found = driver.contents(None)
    assert [tuple(rect) for rect in found.pop("original")] == [(0, 40, 0, 40)]
    assert not any(found.values())
