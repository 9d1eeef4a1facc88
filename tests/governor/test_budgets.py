from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from pycauset import config
from pycauset.errors import ConfigError
from pycauset.governor import budgets
from tests.governor.fakes import GB, governed

sizes = st.integers(0, 10**13)


@given(sizes, sizes, sizes)
def test_reach_stays_between_untouched_and_touched(previous: int, free: int, in_use: int) -> None:
    assert free <= budgets.reach(previous, free, in_use) <= free + in_use


@pytest.mark.parametrize(
    ("total", "free", "pinned"),
    [
        (64 * GB, 40 * GB, 8 * GB),  # the fixed limit
        (10 * GB, 9 * GB, 5 * GB),  # half of the RAM
        (64 * GB, 5 * GB, 4 * GB),  # 0.8 of what is free
        (0, 0, 0),
    ],
)
def test_pinned_budget_formula(total: int, free: int, pinned: int) -> None:
    governor, _ = governed(total, free)
    assert governor.budget("pinned") == pinned
    assert governor.budget("host") == int(0.7 * free)


def test_a_container_limits_every_budget() -> None:
    # what the probe reports inside a cgroup of 1 GB on a 64 GB machine
    governor, _ = governed(1 * GB, 900_000_000)
    assert governor.budget("pinned") == 500_000_000
    assert governor.budget("host") == 630_000_000
    assert governor.request("host", 700_000_000, owner="t") is None
    assert governor.scope(host=16 * GB, owner="matmul").budget("host") == 810_000_000


def test_grants_do_not_enlarge_the_budget_before_their_pages_are_touched() -> None:
    governor, memory = governed(free=10 * GB)
    first = governor.require("host", 7 * GB, owner="t")
    assert memory.free == 10 * GB
    assert governor.available("host") == 0
    assert governor.request("host", 1, owner="t") is None
    memory.free = 3 * GB  # now touched: nothing changes
    assert governor.budget("host") == 7 * GB
    memory.free = 1 * GB  # another process took 2 GB
    assert governor.budget("host") == int(0.7 * 8 * GB)
    first.release()


def test_memory_freed_by_others_counts_once_nothing_is_held() -> None:
    governor, memory = governed(free=10 * GB)
    with governor.require("host", GB, owner="t"):
        memory.free = 20 * GB
        assert governor.budget("host") == 14 * GB
    memory.free = 30 * GB
    assert governor.budget("host") == 21 * GB


def test_device_budget_keeps_a_reserve_and_counts_its_own_tickets_as_free() -> None:
    governor, _ = governed()
    assert governor.budget("device") == 0
    assert governor.request("device", 1, owner="t") is None
    governor.set_device_memory(8 * GB, 7 * GB)
    assert governor.budget("device") == 7 * GB - 8 * GB // 16
    with governor.require("device", 2 * GB, owner="t"):
        governor.set_device_memory(8 * GB, 5 * GB)
        assert governor.budget("device") == 7 * GB - 8 * GB // 16
    governor.set_device_memory(0, 0)
    assert governor.budget("device") == 0


def test_large_device_keeps_half_a_gibibyte() -> None:
    assert budgets.device_budget(140 * GB, 139 * GB) == 139 * GB - 512 * 1024**2
    assert budgets.device_budget(8 * GB, 1000) == 0


def test_pinning_budget_of_the_user_replaces_the_formula() -> None:
    governor, _ = governed(free=10 * GB)
    governor.set_pinning_budget("1GB")
    assert governor.budget("pinned") == GB
    governor.set_pinning_budget(20 * GB)
    assert governor.budget("pinned") == 20 * GB
    assert governor.available("pinned") == 9 * GB  # no budget makes memory that the machine lacks
    governor.set_pinning_budget(None)
    assert governor.budget("pinned") == 8 * GB
    with config.settings(pinning_budget="3GB"):
        assert governor.budget("pinned") == 3 * GB
        governor.set_pinning_budget(0)  # the call wins over the setting
        assert governor.request("pinned", 1, owner="t") is None


@pytest.mark.parametrize("size", ["lots", -1, True, float("nan")])
def test_pinning_budget_must_be_a_size(size: object) -> None:
    governor, _ = governed()
    with pytest.raises(ConfigError, match="size"):
        governor.set_pinning_budget(size)  # type: ignore[arg-type]
    assert governor.budget("pinned") == 8 * GB
