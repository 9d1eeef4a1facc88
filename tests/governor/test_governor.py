from __future__ import annotations

import gc
import os
import threading
import weakref

import numpy as np
import pytest

from pycauset.errors import ConfigError, MemoryLimitError
from pycauset.governor import Holding, MemoryGovernor, governor
from tests.governor.fakes import GB, Cache, FakeMemory, governed


def test_a_ticket_gives_back_exactly_once() -> None:
    g, _ = governed()
    first, second = g.require("host", 100, owner="a"), g.require("host", 11, owner="b")
    first.release()
    first.release()
    assert first.released
    assert g.in_use("host") == 11
    assert g.outstanding() == (Holding(1, "host", 11, "b"),)
    with second:
        second.release()
    assert g.in_use("host") == 0
    assert g.outstanding() == ()


def test_ticket_is_released_when_the_block_fails() -> None:
    g, _ = governed()
    with pytest.raises(ZeroDivisionError), g.require("pinned", 7, owner="t"):
        1 / 0  # noqa: B018
    assert g.in_use("pinned") == 0


def test_shrink() -> None:
    g, _ = governed()
    with g.require("host", 100, owner="t") as ticket:
        ticket.shrink(30)
        assert (ticket.nbytes, g.in_use("host")) == (30, 30)
        with pytest.raises(ConfigError, match="grow"):
            ticket.shrink(31)
    with pytest.raises(ConfigError, match="released"):
        ticket.shrink(1)
    assert g.in_use("host") == 0
    assert g.statistics().host.peak == 100


@pytest.mark.parametrize(("kind", "nbytes"), [("gpu", 1), ("host", -1), ("host", 1.5), ("host", "1GB"), ("", 0)])
def test_bad_requests(kind: str, nbytes: object) -> None:
    g, _ = governed()
    for ask in (g.request, g.scope(owner="s").request):
        with pytest.raises(ConfigError):
            ask(kind, nbytes, owner="t")  # type: ignore[operator]
    assert g.outstanding() == ()


def test_numpy_integers_are_sizes() -> None:
    g, _ = governed()
    with g.require("host", np.int32(12), owner="t") as ticket:  # type: ignore[arg-type]
        assert type(ticket.nbytes) is int


def test_denial_is_none_and_require_carries_the_numbers() -> None:
    g, _ = governed(free=10 * GB)
    with g.require("host", 6 * GB, owner="result of matmul"):
        assert g.request("host", 2 * GB, owner="cholesky") is None
        with pytest.raises(MemoryLimitError, match=r"cholesky needs 2\.00 GB \(2000000000 bytes\) of host") as caught:
            g.require("host", 2 * GB, owner="cholesky")
    message = str(caught.value)
    assert "1.00 GB of its 7.00 GB" in message
    assert "result of matmul 6.00 GB" in message
    assert "memory=" in message
    assert isinstance(caught.value, MemoryError)
    assert g.statistics().host.denied == 2


def test_pinned_and_host_share_the_ram() -> None:
    g, _ = governed(free=10 * GB)
    with g.require("host", 7 * GB, owner="t"):
        assert g.available("pinned") == 2 * GB  # 0.9 of the RAM in all, though the pinning budget is 8 GB
        with g.require("pinned", 2 * GB, owner="t"):
            assert g.request("pinned", 1, owner="t") is None
    assert g.available("pinned") == 8 * GB


def test_statistics_are_frozen_and_complete() -> None:
    g, _ = governed()
    g.set_device_memory(8 * GB, 8 * GB)
    with g.require("device", 5, owner="t"), g.require("device", 6, owner="t"):
        pass
    assert g.request("device", 9 * GB, owner="t") is None
    ticket = g.require("device", 3, owner="t")
    statistics = g.statistics()
    ticket.release()
    device = statistics["device"]
    assert device is statistics.device
    assert (device.in_use, device.peak, device.tickets, device.granted, device.denied) == (3, 11, 1, 3, 1)
    assert (statistics.ram_total, statistics.ram_free) == (64 * GB, 40 * GB)
    with pytest.raises(AttributeError):
        device.in_use = 0  # type: ignore[misc]


def test_memory_is_looked_at_again_before_a_denial() -> None:
    memory = FakeMemory(free=GB)
    g = MemoryGovernor(memory, refresh_seconds=1e9)
    assert g.available("host") == 7 * GB // 10
    memory.free = 10 * GB
    assert g.available("host") == 7 * GB // 10  # not looked at: the sample is fresh enough
    g.require("host", 5 * GB, owner="t").release()


# ---- reclaim ----------------------------------------------------------------------------------------------------


def test_reclaim_under_pressure_asks_for_what_is_missing() -> None:
    g, _ = governed(free=10 * GB)
    cache = Cache(g)
    cache.tickets = [g.require("host", GB, owner="cache") for _ in range(6)]
    with g.require("host", 3 * GB, owner="t"):
        assert cache.asked == [("host", 2 * GB)]
        assert len(cache.tickets) == 4
    assert g.statistics().host.reclaimed == 2 * GB
    assert g.reclaim("host") == 4 * GB
    assert g.in_use("host") == 0


def test_a_hopeless_request_does_not_empty_the_caches() -> None:
    g, _ = governed(free=10 * GB)
    cache = Cache(g)
    cache.tickets = [g.require("host", GB, owner="cache")]
    assert g.request("host", 8 * GB, owner="t") is None
    assert cache.asked == []
    assert g.reclaim("host", 1) == GB


def test_short_ram_reclaims_the_other_kind_too() -> None:
    g, _ = governed(free=10 * GB)
    cache = Cache(g)
    cache.tickets = [g.require("pinned", 4 * GB, owner="cache"), g.require("pinned", 4 * GB, owner="cache")]
    with g.require("host", 3 * GB, owner="t"):
        assert cache.asked == [("host", 2 * GB), ("pinned", 2 * GB)]
        assert g.in_use("pinned") == 4 * GB
    assert g.reclaim("pinned") == 4 * GB


def test_reclaimers_that_promise_but_do_not_deliver_end_in_denial() -> None:
    g, _ = governed(free=10 * GB)
    calls = []
    remove = g.add_reclaimer(lambda kind, nbytes: calls.append(kind) or nbytes)
    with g.require("host", 6 * GB, owner="t"):
        assert g.request("host", 2 * GB, owner="t") is None
    assert 1 <= len(calls) < 20
    remove()
    remove()
    calls.clear()
    assert g.reclaim("host") == 0
    assert calls == []


def test_a_reclaimer_may_ask_for_memory_without_recursing() -> None:
    g, _ = governed(free=10 * GB)
    held = [g.require("host", 6 * GB, owner="cache")]
    depth = []

    def reclaim(kind: str, nbytes: int) -> int:
        depth.append(nbytes)
        assert g.request(kind, 5 * GB, owner="reclaimer") is None
        held.pop().release()
        return 6 * GB

    g.add_reclaimer(reclaim)
    g.require("host", 3 * GB, owner="t").release()
    assert len(depth) == 1


def test_an_error_in_a_reclaimer_surfaces_and_leaves_the_governor_usable() -> None:
    g, _ = governed(free=10 * GB)

    def broken(kind: str, nbytes: int) -> int:
        raise RuntimeError("cache broken")

    remove = g.add_reclaimer(broken)
    with g.require("host", 6 * GB, owner="t"):
        with pytest.raises(RuntimeError, match="cache broken"):
            g.request("host", 3 * GB, owner="t")
        remove()
        assert g.request("host", 3 * GB, owner="t") is None
        g.require("host", GB, owner="t").release()
    assert g.in_use("host") == 0


def test_lowering_the_pinning_budget_in_mid_flight() -> None:
    g, _ = governed()
    cache = Cache(g)
    busy = g.require("pinned", 3 * GB, owner="upload")
    cache.tickets = [g.require("pinned", 2 * GB, owner="cache")]
    g.set_pinning_budget(GB)
    assert cache.tickets == []  # what was only kept for later is gone
    assert g.in_use("pinned") == 3 * GB  # what is in use is not torn away
    assert g.available("pinned") == 0
    assert g.request("pinned", 1, owner="t") is None
    busy.release()
    g.require("pinned", GB, owner="t").release()


# ---- finalizers, threads, processes -------------------------------------------------------------------------------


def test_a_dropped_ticket_returns_its_bytes_and_is_reported() -> None:
    g, _ = governed()
    with pytest.warns(ResourceWarning, match="Ticket host 9 B of 'forgetful'"):
        g.require("host", 9, owner="forgetful")
        gc.collect()
    assert g.in_use("host") == 0


def test_release_never_waits_so_finalizers_may_call_it() -> None:
    """The collector may run a finalizer while this very thread is inside the governor."""

    class Array:
        pass

    memory = FakeMemory()
    g = MemoryGovernor(lambda: memory_with_collection(), refresh_seconds=0)
    pending: list[Array] = []

    def memory_with_collection() -> FakeMemory:
        pending.clear()  # runs the finalizer below, with the governor's lock held
        return memory

    ticket = g.require("host", 50, owner="array")
    array = Array()
    weakref.finalize(array, ticket.release)
    pending.append(array)
    del array
    other = g.require("host", 1, owner="t")
    assert ticket.released
    assert g.in_use("host") == 1
    other.release()


def test_threads_hammering_never_exceed_a_budget() -> None:
    g, _ = governed(free=10_000)
    g.set_device_memory(10_000, 6_000)
    limits = {"host": g.budget("host"), "pinned": g.budget("pinned"), "device": g.budget("device")}
    errors: list[str] = []
    start = threading.Barrier(6)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        mine = []
        start.wait()
        for _ in range(400):
            kind = ("host", "pinned", "device")[rng.integers(3)]
            ticket = g.request(kind, int(rng.integers(0, 2_500)), owner=f"thread {seed}")
            if ticket is not None:
                mine.append(ticket)
            if g.in_use(kind) > limits[kind]:
                errors.append(f"{kind} over its budget")
            if mine and rng.random() < 0.6:
                mine.pop(int(rng.integers(len(mine)))).release()
        for ticket in mine:
            ticket.release()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    statistics = g.statistics()
    for kind, limit in limits.items():
        assert statistics[kind].in_use == statistics[kind].tickets == 0
        assert 0 < statistics[kind].peak <= limit
    assert statistics.host.peak + statistics.pinned.peak > 9_000 * 0.7  # the test did press against the limits


def test_two_threads_releasing_one_ticket() -> None:
    g, _ = governed()
    for _ in range(50):
        ticket = g.require("host", 3, owner="t")
        start = threading.Barrier(4)
        threads = [threading.Thread(target=lambda t=ticket, s=start: (s.wait(), t.release())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert g.in_use("host") == 0


def test_one_governor_per_process() -> None:
    assert governor() is governor()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_with_an_empty_governor() -> None:
    with governor().require("host", 1234, owner="parent"):
        child = os.fork()
        if child == 0:  # no asserts here: the child must not return into pytest
            os._exit(0 if governor().in_use("host") == 0 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
