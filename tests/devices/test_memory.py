"""Slabs that stay for the next run: the same memory again, bounded, under tickets, given back when the governor asks."""

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from pycauset import devices
from pycauset.devices.cupy import CupyDevice
from pycauset.devices.memory import KeptMemory
from pycauset.devices.numpy import NumpyDevice
from pycauset.errors import MemoryLimitError
from pycauset.governor import MemoryGovernor, governor

SIZE = 3 << 20


@pytest.fixture
def held() -> MemoryGovernor:
    return governor()


@pytest.fixture
def device(held):
    device = NumpyDevice(keep=1 << 30)
    remove = held.add_reclaimer(device.reclaim)
    yield device
    device.reclaim("host", 1 << 60)
    remove()


def slab(device, held, size=SIZE, limit=None, pinned=False):
    """A slab of one run, and the end of that run."""
    with held.scope(host=limit, owner="a run") as scope:
        made = (device.host_slab if pinned else device.device_slab)(size, scope, "slots")
        assert made.array.nbytes >= size  # pinned at this first use
        assert made.pinned == pinned
        made.array[:] = 255
        address = made.address
        made.release()
        made.release()
    return address


def test_the_next_run_gets_the_same_memory(device, held):
    before = held.in_use("host")
    first = slab(device, held)
    assert device.kept_bytes == held.in_use("host") - before == SIZE
    assert slab(device, held) == first
    assert slab(device, held, SIZE - (SIZE >> 3)) == first  # a little too large
    assert device.kept_bytes == SIZE


def test_what_is_too_small_or_much_too_large_makes_room(device, held):
    first = slab(device, held)
    assert slab(device, held, 2 * SIZE) != first
    assert device.kept_bytes == 2 * SIZE
    slab(device, held, SIZE // 2)
    assert device.kept_bytes == SIZE // 2


def test_slots_of_one_run_stay_together(device, held):
    sizes = (SIZE, 2 * SIZE, SIZE // 2)
    addresses = []
    for _ in range(2):
        with held.scope(owner="a run") as scope:
            slabs = [device.device_slab(size, scope, "slots") for size in sizes]
            addresses.append([one.address for one in slabs])
            for one in slabs:
                one.release()
    assert addresses[0] == addresses[1]
    assert device.kept_bytes == sum(sizes)


def test_kept_memory_counts_under_the_limit_of_the_run_that_takes_it(device, held):
    slab(device, held)
    size = SIZE - (SIZE >> 3)
    slab(device, held, size, limit=size)  # the kept one does not fit: it goes, and fresh memory comes
    assert device.kept_bytes == size
    with pytest.raises(MemoryLimitError):
        slab(device, held, limit=size - 4096)
    assert held.in_use("host") >= device.kept_bytes


def test_the_governor_gets_it_back(device, held):
    before = held.in_use("host")
    with held.scope(owner="a run") as scope:
        for one in [device.device_slab(size, scope, "slots") for size in (SIZE, 2 * SIZE)]:
            one.release()
    assert device.reclaim("device", SIZE) == 0
    assert device.kept_bytes == 3 * SIZE
    assert held.reclaim("host", 1) >= SIZE
    assert device.kept_bytes == 2 * SIZE
    held.reclaim("host")
    assert device.kept_bytes == 0
    assert held.in_use("host") <= before


def test_no_more_is_kept_than_allowed(held):
    freed = []
    kept = KeptMemory(freed.append, most=2 * SIZE)
    device = NumpyDevice()
    device._kept = kept
    with held.scope(owner="a run") as scope:
        slabs = [device.device_slab(SIZE, scope, "slots") for _ in range(4)]
        arrays = [one.array for one in slabs]
        for one in slabs:
            one.release()
    assert kept.nbytes == 2 * SIZE
    assert [array is gone for array, gone in zip(arrays, freed, strict=False)] == [True, True]
    assert kept.reclaim(1 << 60) == 2 * SIZE
    assert len(freed) == 4


def test_the_planner_counts_kept_memory_as_free(held, monkeypatch):
    from pycauset.solver.run import operation_limits

    devices.cpu().reclaim("host", 1 << 60)
    slab(devices.cpu(), held)
    assert devices.kept_host_bytes() == SIZE
    monkeypatch.setattr(held, "available", lambda kind: 4 << 30)
    for kept in (0, 4 << 30):
        monkeypatch.setattr(devices, "kept_host_bytes", lambda kept=kept: kept)
        assert operation_limits().host == (4 << 30) + kept


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_with_nothing_kept(held):
    slab(devices.cpu(), held)
    child = os.fork()
    if child == 0:
        try:
            slab(devices.cpu(), governor())
            os._exit(0 if devices.kept_host_bytes() == SIZE else 1)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


# ---- pinned memory, with a driver that only counts --------------------------------------------------------------------


@pytest.fixture
def pinned(held):
    """A CUDA device without CUDA, as far as host slabs go."""
    memory = {}

    def allocate(nbytes, flags):
        block = np.zeros(nbytes, np.uint8)
        memory[block.ctypes.data] = block
        return block.ctypes.data

    device = CupyDevice.__new__(CupyDevice)
    device.runtime = SimpleNamespace(hostAlloc=allocate, freeHost=memory.pop)
    device._lost = None
    device._kept = KeptMemory(device._unpin)
    device.memory = memory
    yield device
    device.reclaim("pinned", 1 << 60)
    assert not memory


def test_pinned_slabs_stay_pinned_for_the_next_run(pinned, held):
    before = held.in_use("pinned")
    first = slab(pinned, held, pinned=True)
    assert pinned.kept_bytes == held.in_use("pinned") - before == SIZE
    assert slab(pinned, held, pinned=True) == first
    assert len(pinned.memory) == 1
    assert pinned.reclaim("pinned", 1) == SIZE
    assert held.in_use("pinned") == before
    assert not pinned.memory


def test_a_lost_gpu_is_not_asked_to_unpin(pinned, held):
    slab(pinned, held, pinned=True)
    pinned._lost = "an illegal address"
    assert pinned.reclaim("pinned", SIZE) == SIZE
    assert len(pinned.memory) == 1
    pinned.memory.clear()
