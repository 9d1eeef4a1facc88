"""The cost model in the situation that it is asked in: pinned memory that is there, described machines, named routes, limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pycauset.errors import BackendError, MemoryLimitError
from pycauset.governor import governor
from pycauset.hardware import DTYPES, RatePoint, load_machine, use_probe
from pycauset.solver import Factor, last_statistics, multiply, plan
from pycauset.storage import ArrayStore, FunctionStore, create_store, open_store
from pycauset.tiling import Rect
from pycauset.units import parse_bytes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def machine_in_sight(monkeypatch):
    """Described machines change from test to test: the governor looks at each anew."""
    monkeypatch.setattr(governor(), "_refresh_seconds", 0.0)


def phantom(shape, dtype="float64") -> Factor:
    """An operand that takes no memory, whatever its shape."""
    return Factor(FunctionStore(lambda i, j: i[:, None] * 0.0 + j[None, :], shape, dtype))


class InRam(ArrayStore):
    """An array in memory that takes none."""

    def __init__(self, shape, dtype="float64"):
        super().__init__(np.empty((0, 0), dtype))
        self.shape, self.identity = shape, id(self)

    def view(self, rect):
        return np.broadcast_to(np.empty((), self.dtype), (rect.r1 - rect.r0, rect.c1 - rect.c0))


@pytest.mark.parametrize(("n", "dtype"), [(8192, "float32"), (8192, "complex128"), (4096, "complex128")])
def test_pinned_memory_that_earlier_runs_left_is_not_paid_for_again(n, dtype, monkeypatch):
    """Measured on this machine (benchmarks/results/2026-11-21-h200): streaming wins once its slabs are pinned."""
    monkeypatch.setattr("pycauset.devices.gpu_is_cold", lambda: False)
    seconds = {}
    for kept in (0, 1 << 30):
        monkeypatch.setattr("pycauset.devices.kept_pinned_bytes", lambda kept=kept: kept)
        with use_probe(load_machine(ROOT / "profiles" / "h200.json")):
            a, b, out = (InRam((n, n), dtype) for _ in range(3))
            solution = plan("matmul", Factor(a), Factor(b), out=out, gpu_memory="64GB", thorough=True)
        seconds[kept] = {route.name: route.seconds for route in solution.routes}
    streamed = "streamed CuPy"
    assert seconds[0]["CuPy in core"] == seconds[1 << 30]["CuPy in core"]
    assert seconds[0][streamed] > seconds[1 << 30][streamed]
    assert solution.route.name == streamed


def test_a_described_gpu_has_its_own_memory():
    with use_probe(load_machine(ROOT / "profiles" / "h200.json")):
        solution = plan("matmul", phantom((20_000, 20_000)), phantom((20_000, 20_000)), memory="30GB", out_on_disk=True)
    routes = {route.name: route for route in solution.routes}
    assert not routes["CuPy in core"].refused
    assert not routes["streamed CuPy"].refused
    assert 9 * 10**9 < routes["CuPy in core"].device_bytes < 150 * 10**9


@pytest.mark.parametrize("route", ["NumPy in core", "streamed NumPy"])
def test_a_named_route_is_taken(route):
    rng = np.random.default_rng(56)
    a, b = rng.standard_normal((150, 130)), rng.standard_normal((130, 170))
    out = np.full((150, 170), np.nan)
    multiply(Factor(ArrayStore(a)), Factor(ArrayStore(b)), out=ArrayStore(out), route=route)
    assert np.allclose(out, a @ b, rtol=0, atol=1e-10)
    assert (last_statistics() is not None) == route.startswith("streamed")


def test_a_route_that_is_not_there_is_refused():
    a = Factor(ArrayStore(np.ones((9, 9))))
    with pytest.raises(BackendError, match="'scenic' here"):
        multiply(a, a, route="scenic")


def test_what_a_limit_is_spent_on_beside_tiles():
    a, b = phantom((3000, 3000)), phantom((3000, 3000))
    text = plan("matmul", a, b, memory="400MB").explain()
    assert "and 72.0 MB for the result" in text
    assert "of memory=400 MB, 75.5 MB are kept for Python's modules, thread stacks and BLAS buffers and 72.0 MB hold" in text
    assert "kept for" not in plan("matmul", a, b).explain()
    with pytest.raises(MemoryLimitError, match=r"of memory=20\.0 MB, 10\.0 MB are kept for Python's modules"):
        assert plan("matmul", phantom((9000, 9000)), phantom((9000, 9000)), memory="20MB", out_on_disk=True).route


@pytest.mark.parametrize("out_on_disk", [False, True])
@pytest.mark.parametrize(
    ("shape", "chunks", "memory"),
    [
        ((3001, 2003, 1009), (1024, 1024), "20MB"),
        ((3001, 2003, 1009), (1024, 1024), "76MB"),
        ((2003, 3001, 2003), (512, 512), "12MB"),
        ((1009, 1013, 1019), (256, 1024), "2MB"),
        ((709, 701, 719), (700, 700), "500kB"),
    ],
)
def test_the_limit_that_a_refusal_names_works(shape, chunks, memory, out_on_disk, tmp_path):
    m, k, n = shape
    a = Factor(create_store(tmp_path / "a", (m, k), "float64", chunks=chunks))
    b = Factor(create_store(tmp_path / "b", (k, n), "float64", chunks=chunks))
    with pytest.raises(MemoryLimitError) as caught:
        assert plan("matmul", a, b, memory=memory, out_on_disk=out_on_disk).route
    enough = str(caught.value).rpartition("; memory='")[2].removesuffix("' is enough")
    assert parse_bytes(enough) > parse_bytes(memory)
    assert plan("matmul", a, b, memory=enough, out_on_disk=out_on_disk).route.host_bytes < parse_bytes(enough)
    with pytest.raises(MemoryLimitError):
        assert plan("matmul", a, b, memory=int(0.97 * parse_bytes(enough) - 1e6), out_on_disk=out_on_disk).route


def test_a_refusal_tells_what_threads_need(tmp_path):
    a = Factor(create_store(tmp_path / "a", (3001, 3001), "float64", chunks=(1024, 1024)))
    with pytest.raises(MemoryLimitError, match=r"of 40\.0 MB left, [0-9.]+ MB are needed by reading and writing threads"):
        assert plan("matmul", a, a, memory="80MB", out_on_disk=True).route


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("n", [300, 1000, 2000, 5000])
def test_arrays_in_ram_are_not_streamed_through_the_cpu(n, dtype, monkeypatch):
    """Whatever rates an audit under load has found; a matrix times its transpose streams half the work."""
    machine = load_machine(ROOT / "profiles" / "no_gpu.json")
    rates = [
        RatePoint(n=64, flops=1e10),
        RatePoint(n=128, flops=1e11),
        RatePoint(n=512, flops=1e12),
        RatePoint(n=1024, flops=1e8),
    ]
    cpu = machine.profile.cpu.model_copy(update={"gemm": dict.fromkeys(DTYPES, rates)})
    noisy = machine.profile.model_copy(update={"cpu": cpu})
    monkeypatch.setattr("pycauset.solver.execute.load_profile", lambda: noisy)
    with use_probe(machine):
        a, b, out = (InRam((n, n), dtype) for _ in range(3))
        solution = plan("matmul", Factor(a), Factor(b), out=out, thorough=True)
        assert solution.route.name == "NumPy in core"
        names = [route.name for route in plan("matmul", Factor(a), Factor(a, "T"), out=out, thorough=True).routes]
        assert sorted(names) == ["NumPy in core", "streamed NumPy"]


@pytest.mark.parametrize(
    ("n", "dtype", "route"),
    [
        (2048, "float64", "CuPy in core"),
        (4096, "float64", "CuPy in core"),
        (8192, "float64", "streamed CuPy"),
        (8192, "float32", "streamed CuPy"),
        (4096, "complex128", "streamed CuPy"),
    ],
)
def test_staging_costs_a_start(n, dtype, route, monkeypatch):
    """What was the fastest on that machine, CUDA awake and slabs pinned."""
    monkeypatch.setattr("pycauset.devices.gpu_is_cold", lambda: False)
    monkeypatch.setattr("pycauset.devices.kept_pinned_bytes", lambda: 1 << 30)
    with use_probe(load_machine(ROOT / "profiles" / "h200.json")):
        a, b, out = (InRam((n, n), dtype) for _ in range(3))
        assert plan("matmul", Factor(a), Factor(b), out=out, gpu_memory="64GB").route.name == route


def test_chunks_larger_than_the_limit_likes_are_read_in_parts(tmp_path):
    rng = np.random.default_rng(57)
    a, b = rng.standard_normal((1030, 2060)), rng.standard_normal((2060, 1040))
    stores = []
    for name, x in (("a", a), ("b", b)):
        store = create_store(tmp_path / name, x.shape, x.dtype, chunks=(1024, 1024))
        store.write(Rect(0, x.shape[0], 0, x.shape[1]), x)
        store.commit()
        stores.append(open_store(tmp_path / name))
    out = create_store(tmp_path / "c", (1030, 1040), "float64", chunks=(1024, 1024))
    multiply(*map(Factor, stores), out=out, memory="100MB")
    found = np.full((1030, 1040), np.nan)
    open_store(tmp_path / "c").read(Rect(0, 1030, 0, 1040), found)
    assert np.allclose(found, a @ b, rtol=0, atol=1e-9)
