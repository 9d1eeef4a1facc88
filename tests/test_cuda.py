"""`pycauset.cuda` with and without a GPU; described machines stand in for real ones."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pycauset import config, cuda
from pycauset.errors import BackendError, ConfigError, DtypeError, PycausetWarning, ShapeError
from pycauset.governor import governor
from pycauset.hardware import load_machine, probe

PROFILES = Path(__file__).parents[1] / "profiles"
WITH_GPU = load_machine(PROFILES / "laptop_8gb.json")
WITHOUT = load_machine(PROFILES / "no_gpu.json")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PYCAUSET_BACKEND", raising=False)
    config.configure(backend=None)
    yield
    cuda._calls.clear()
    config.configure(backend=None)
    governor().set_pinning_budget(None)


@pytest.fixture
def gpu() -> Iterator[None]:
    with probe.use_probe(WITH_GPU):
        yield


@pytest.fixture
def no_gpu() -> Iterator[None]:
    with probe.use_probe(WITHOUT):
        yield


def elsewhere() -> str:
    """The backend that another thread sees."""
    with ThreadPoolExecutor(1) as pool:
        return str(pool.submit(config.get, "backend").result())


def test_every_function_works_without_a_gpu(no_gpu: None) -> None:
    assert not cuda.is_available()
    assert cuda.current_device() is None
    found = cuda.info()
    assert (found.available, found.enabled, found.device) == (False, False, None)
    assert found.problem
    cuda.disable()
    memory = cuda.memory_info()
    assert (memory.device_total, memory.device_free) == (0, 0)
    assert memory.host_budget > 0
    assert cuda.benchmark() is WITHOUT.profile


def test_a_described_gpu(gpu: None) -> None:
    assert cuda.is_available()
    assert cuda.current_device() == 0
    found = cuda.info()
    assert (found.available, found.enabled, found.problem) == (True, True, None)
    assert found.device == WITH_GPU.gpu_info()
    assert cuda.memory_info().device_total == 8 * 2**30
    assert cuda.benchmark(force=True).gpu is not None


def test_disable_and_enable(gpu: None) -> None:
    cuda.disable()
    assert config.get("backend") == elsewhere() == "cpu"
    assert not cuda.info().enabled
    cuda.enable()
    assert config.get("backend") == "auto"
    assert cuda.info().enabled


def test_enable_wins_over_the_environment(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCAUSET_BACKEND", "cpu")
    assert not cuda.info().enabled
    cuda.enable()
    assert cuda.info().enabled


def test_what_cannot_be_is_refused_with_the_reason(no_gpu: None) -> None:
    for wish in (cuda.enable, lambda: cuda.force_backend("gpu")):
        with pytest.raises(BackendError, match="described machine has none"):
            wish()
    assert config.get("backend") == "auto"
    with pytest.raises(ConfigError, match="tpu"):
        cuda.force_backend("tpu")


def test_forced_by_a_call(gpu: None) -> None:
    cuda.force_backend("gpu")
    assert config.get("backend") == elsewhere() == "gpu"
    cuda.force_backend("cpu")
    assert config.get("backend") == elsewhere() == "cpu"
    cuda.force_backend("auto")
    assert config.get("backend") == elsewhere() == "auto"


def test_forced_in_a_block_of_one_thread(gpu: None) -> None:
    with cuda.force_backend("cpu"):
        assert config.get("backend") == "cpu"
        assert elsewhere() == "auto"
        with cuda.force_backend("gpu"):
            assert config.get("backend") == "gpu"
        assert config.get("backend") == "cpu"
    assert config.get("backend") == elsewhere() == "auto"


def test_a_block_gives_back_what_a_call_forced(gpu: None) -> None:
    cuda.force_backend("cpu")
    with cuda.force_backend("gpu"):
        assert config.get("backend") == "gpu"
        assert elsewhere() == "cpu"
    assert config.get("backend") == "cpu"


def test_an_error_ends_the_block(gpu: None) -> None:
    with pytest.raises(RuntimeError), cuda.force_backend("gpu"):
        raise RuntimeError
    assert config.get("backend") == "auto"


def test_a_block_can_be_entered_twice(gpu: None) -> None:
    forced = cuda.force_backend("cpu")
    for _ in range(2):
        with forced, forced:
            assert config.get("backend") == "cpu"
        assert config.get("backend") == "auto"


def test_blocks_begun_in_any_order_leave_nothing(gpu: None) -> None:
    # Two threads between the call and the block, as seen from one.
    first = cuda.force_backend("cpu")
    second = cuda.force_backend("gpu")
    with first:
        assert elsewhere() == "gpu"
        with second:
            assert elsewhere() == "auto"
    assert config.get("backend") == "auto"


def test_many_threads_force_different_backends(gpu: None) -> None:
    start = threading.Barrier(8)

    def work(i: int) -> bool:
        wanted = ("cpu", "gpu")[i % 2]
        start.wait()
        right = True
        for _ in range(50):
            with cuda.force_backend(wanted):
                right &= config.get("backend") == wanted
        return right

    with ThreadPoolExecutor(8) as pool:
        assert all([f.result() for f in [pool.submit(work, i) for i in range(8)]])
    assert config.get("backend") == "auto"
    assert not cuda._calls


def test_calls_do_not_pile_up(gpu: None) -> None:
    for _ in range(1000):
        cuda.force_backend("cpu")
    gc.collect()
    cuda.force_backend("auto")
    assert len(cuda._calls) < 3


@pytest.mark.parametrize(
    ("budget", "expected"),
    [("1GB", 10**9), (12345, 12345), ("4 MiB", 4 * 2**20), (0, 0), ("0.3kB", 300), (np.int64(7), 7)],
    ids=str,
)
def test_pinning_budget(budget: Any, expected: int) -> None:
    cuda.set_pinning_budget(budget)
    assert cuda.memory_info().pinned_budget == expected
    cuda.set_pinning_budget(None)
    assert cuda.memory_info().pinned_budget != expected


@pytest.mark.parametrize(
    "budget",
    ["many", -1, 1.5, -0.5, "1.5", "2.5 B", float("nan"), float("inf"), 10**400, True, np.True_, [4], 4j, np.ones(2)],
    ids=str,
)
def test_bad_pinning_budgets(budget: Any) -> None:
    before = cuda.memory_info().pinned_budget
    for refused in (cuda.set_pinning_budget, lambda size: config.configure(pinning_budget=size)):
        with pytest.raises(ConfigError, match=r"is not a (size|whole number of bytes)"):
            refused(budget)
    assert cuda.memory_info().pinned_budget == pytest.approx(before, rel=0.2)


@pytest.mark.parametrize("shape", [5, (3, 4), [7], (2, 3, 5), (0, 4), (), np.int64(3)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "complex128", bool, np.int16])
def test_arrays_without_a_gpu(no_gpu: None, shape: Any, dtype: Any) -> None:
    expected = np.empty(shape, dtype)
    if expected.nbytes:
        with pytest.warns(PycausetWarning, match="described machine has none") as caught:
            array = cuda.pinned_empty(shape, dtype)
        assert len(caught) == 1
    else:
        array = cuda.pinned_empty(shape, dtype)
    assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.ctypes.data % 4096 == 0 or not array.nbytes
    array[...] = 1
    assert (array == 1).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "error"),
    [
        ((2, -1), "float64", ShapeError),
        (2.5, "float64", ShapeError),
        ("ab", "float64", ShapeError),
        (3, object, DtypeError),
        (3, "no dtype", DtypeError),
        (3, "V0", DtypeError),
    ],
)
def test_impossible_arrays(shape: Any, dtype: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        cuda.pinned_empty(shape, dtype)


class _Slab:
    """What `cupy.cuda.PinnedMemory` is to its users: memory with an address, freed with the last reference."""

    alive = 0

    def __init__(self, size: int) -> None:
        raw = np.empty(size + 4096, np.uint8)
        self.content = raw[-raw.ctypes.data % 4096 :][:size]
        self.ptr = self.content.ctypes.data
        type(self).alive += 1

    def __del__(self) -> None:
        type(self).alive -= 1


class _Pointer(bytearray):
    """Keeps its memory alive, as `cupy.cuda.PinnedMemoryPointer` does; its content does not matter here."""

    def __init__(self, memory: _Slab, offset: int) -> None:
        super().__init__(memory.content.nbytes)
        self.memory = memory


@pytest.fixture
def pinning(gpu: None, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    runtime = SimpleNamespace(PinnedMemory=_Slab, PinnedMemoryPointer=_Pointer)
    monkeypatch.setattr(probe, "import_cupy", lambda: SimpleNamespace(cuda=runtime))
    return runtime


def test_the_ticket_lives_as_long_as_any_view(pinning: SimpleNamespace) -> None:
    before = governor().in_use("pinned")
    array = cuda.pinned_empty((1000, 3), "float64")
    assert governor().in_use("pinned") - before == 24576  # whole pages
    assert _Slab.alive == 1
    view = array[5:7].T
    del array
    gc.collect()
    assert governor().in_use("pinned") - before == 24576
    del view
    gc.collect()
    assert governor().in_use("pinned") == before
    assert _Slab.alive == 0


def test_beyond_the_budget_it_is_ordinary_memory(pinning: SimpleNamespace) -> None:
    cuda.set_pinning_budget(10_000)
    with pytest.warns(PycausetWarning, match=r"budget is 10\.0 kB") as caught:
        array = cuda.pinned_empty(10_000, "float64")
    assert len(caught) == 1
    assert array.ctypes.data % 4096 == 0
    assert _Slab.alive == 0
    assert governor().in_use("pinned") == 0


def test_when_cuda_refuses_the_ticket_goes_back(pinning: SimpleNamespace) -> None:
    def refuses(size: int) -> None:
        raise RuntimeError("cudaErrorMemoryAllocation")

    pinning.PinnedMemory = refuses
    with pytest.warns(PycausetWarning, match="cudaErrorMemoryAllocation"):
        array = cuda.pinned_empty(100)
    assert array.shape == (100,)
    assert governor().in_use("pinned") == 0
