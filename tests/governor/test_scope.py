from __future__ import annotations

import warnings

import pytest

from pycauset.errors import ConfigError, MemoryLimitError
from tests.governor.fakes import GB, Cache, governed


def test_limits_hold_and_pinned_counts_as_host() -> None:
    g, _ = governed()
    with g.scope(host=100, owner="matmul") as scope:
        pinned = scope.require("pinned", 60)
        assert (scope.in_use("host"), scope.in_use("pinned")) == (60, 60)
        assert scope.available("host") == scope.available("pinned") == 40
        assert scope.request("host", 41) is None
        with scope.require("host", 40):
            assert scope.available("pinned") == 0
        pinned.shrink(10)
        assert scope.available("host") == 90
        pinned.release()
        assert scope.in_use("host") == 0
    assert (scope.peak("host"), scope.peak("pinned"), scope.peak("device")) == (100, 60, 0)
    assert g.statistics().host.peak == 40  # for the process the kinds are counted apart


def test_require_names_the_operation_and_the_limit() -> None:
    g, _ = governed()
    with g.scope(host=1000, owner="matmul") as scope, scope.require("host", 900, owner="panel"):
        with pytest.raises(MemoryLimitError, match=r"matmul needs 200 B .* only 100 B of its 1\.00 kB") as caught:
            scope.require("host", 200)
        assert "panel 900 B" in str(caught.value)


def test_a_scope_without_limits_has_those_of_the_process() -> None:
    g, _ = governed(free=10 * GB)
    g.set_device_memory(8 * GB, 8 * GB)
    with g.scope(owner="t") as scope:
        for kind in ("host", "pinned", "device"):
            assert scope.budget(kind) == g.budget(kind)
            assert scope.available(kind) == g.available(kind)


def test_a_host_limit_of_the_user_replaces_the_fraction_but_not_the_machine() -> None:
    g, _ = governed(free=10 * GB)
    with g.scope(host=8 * GB, owner="t") as scope, scope.require("host", 8 * GB):
        assert g.available("host") == 0
        assert g.request("host", 1, owner="other") is None
    with g.scope(host=64 * GB, owner="t") as scope:
        assert scope.budget("host") == 9 * GB
        assert scope.request("host", 9 * GB + 1) is None


def test_a_device_limit_only_narrows() -> None:
    g, _ = governed()
    g.set_device_memory(8 * GB, 8 * GB)
    with g.scope(device=2 * GB, owner="t") as scope:
        assert scope.budget("device") == 2 * GB
        assert scope.request("device", 2 * GB + 1) is None
        scope.require("device", 2 * GB).release()
    assert g.scope(device=80 * GB, owner="t").budget("device") == g.budget("device")


def test_scopes_share_the_machine() -> None:
    g, _ = governed(free=10 * GB)
    with g.scope(host=6 * GB, owner="one") as one, g.scope(host=6 * GB, owner="two") as two:
        first = one.require("host", 5 * GB)
        assert two.available("host") == 4 * GB
        assert two.request("host", 5 * GB) is None
        first.release()
        two.require("host", 5 * GB).release()


def test_the_scopes_own_limit_does_not_empty_caches_but_a_full_machine_does() -> None:
    g, _ = governed(free=10 * GB)
    cache = Cache(g)
    cache.tickets = [g.require("host", GB, owner="cache") for _ in range(5)]
    with g.scope(host=2 * GB, owner="t") as scope:
        assert scope.request("host", 3 * GB) is None
        assert cache.asked == []
    with g.scope(host=6 * GB, owner="t") as scope:
        scope.require("host", 6 * GB).release()
        assert len(cache.tickets) == 3
    assert g.reclaim("host") == 3 * GB


def test_leaks_are_released_and_reported() -> None:
    g, _ = governed()
    report = r"'matmul' ended with 2 tickets not released \(panel: pinned 20 B, matmul: host 30 B\)"
    with pytest.warns(ResourceWarning, match=report), g.scope(host=100, owner="matmul") as scope:
        first, second = scope.require("pinned", 20, owner="panel"), scope.require("host", 30)
    assert [(leak.kind, leak.nbytes) for leak in scope.leaks] == [("pinned", 20), ("host", 30)]
    assert first.released
    assert second.released
    assert g.outstanding() == ()
    with warnings.catch_warnings():  # releasing afterwards stays harmless
        warnings.simplefilter("error")
        first.release()
    assert g.in_use("pinned") == 0


def test_a_failed_operation_leaves_its_tickets_to_the_scope_quietly() -> None:
    g, _ = governed()
    with pytest.raises(ZeroDivisionError), g.scope(owner="t") as scope:
        scope.require("host", 30)
        1 / 0  # noqa: B018
    assert len(scope.leaks) == 1
    assert g.in_use("host") == 0


def test_an_ended_scope_grants_nothing() -> None:
    g, _ = governed()
    with g.scope(host=100, owner="t") as scope:
        pass
    for use in (lambda: scope.request("host", 1), scope.__enter__):
        with pytest.raises(ConfigError, match="ended"):
            use()
    assert scope.close() == ()


def test_tickets_leave_and_enter_scopes() -> None:
    g, _ = governed()
    with g.scope(host=100, owner="one") as one:
        tile = one.detach(one.require("host", 80))
        assert one.in_use("host") == 0
        with pytest.raises(ConfigError, match="not held"):
            one.detach(tile)
    assert not tile.released
    assert g.in_use("host") == 80
    with g.scope(host=70, owner="two") as two:
        assert not two.adopt(tile)
    with g.scope(host=100, owner="three") as three:
        assert three.adopt(tile)
        assert (three.in_use("host"), three.peak("host"), g.in_use("host")) == (80, 80, 80)
        with pytest.raises(ConfigError, match="elsewhere"):
            three.adopt(tile)
        assert three.request("host", 21) is None
        tile.release()
        assert three.in_use("host") == 0
        with pytest.raises(ConfigError, match="released"):
            three.adopt(tile)
    assert g.outstanding() == ()
