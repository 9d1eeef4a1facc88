"""The AutoSolver: layouts, routes, the choice and its explanation, results, and what a failure leaves."""

from __future__ import annotations

import errno
import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from pycauset.config import settings
from pycauset.errors import (
    BackendError,
    ConfigError,
    DtypeError,
    MemoryLimitError,
    OverlapError,
    PycausetError,
    ShapeError,
    StoreFullError,
    StoreNotFoundError,
)
from pycauset.governor import governor
from pycauset.hardware import load_machine, use_probe
from pycauset.solver import Factor, is_small, kernel_of, last_statistics, layout_of, multiply, plan
from pycauset.storage import ArrayStore, FunctionStore, create_store, open_store
from pycauset.tiling import Rect
from tests.tickets import host_bytes_in_use

ROOT = Path(__file__).resolve().parents[2]
LIMIT = "20MB"  # forces streaming for what these tests multiply


def whole(store) -> Rect:
    return Rect(0, store.shape[0], 0, store.shape[1])


def read(store) -> np.ndarray:
    out = np.full(store.shape, np.nan if store.dtype.kind in "fc" else 0, store.dtype)
    store.read(whole(store), out)
    return out


def on_disk(path, array, chunks=(128, 128), **options):
    store = create_store(path, array.shape, array.dtype, chunks=chunks, **options)
    store.write(whole(store), array)
    store.commit()
    return open_store(path)


def phantom(shape, dtype="float64") -> Factor:
    """An operand that takes no memory, whatever its shape."""
    return Factor(FunctionStore(lambda i, j: i[:, None] * 0.0 + j[None, :], shape, dtype))


def files_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


@pytest.fixture(autouse=True)
def machine_in_sight(monkeypatch):
    """Described machines change from test to test: the governor looks at each anew."""
    monkeypatch.setattr(governor(), "_refresh_seconds", 0.0)


# ---- layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "dtype", "compute"),
    [
        ("float32", "float32", "float32", "float32"),
        ("float32", "float64", "float64", "float64"),
        ("float32", "complex64", "complex64", "complex64"),
        ("float64", "complex64", "complex128", "complex128"),
        ("bool", "bool", "int64", "float32"),
        ("bool", "float32", "float32", "float32"),
        ("int32", "float32", "float64", "float64"),
        ("int16", "float32", "float32", "float32"),
        ("float16", "float16", "float32", "float32"),
        ("uint8", "complex128", "complex128", "complex128"),
    ],
)
def test_types_of_products(first, second, dtype, compute):
    for x, y in ((first, second), (second, first)):
        layout = layout_of(Factor(ArrayStore(np.ones((3, 4), x))), Factor(ArrayStore(np.ones((4, 5), y))))
        assert (layout.shape, layout.dtype.name, layout.compute.name) == ((3, 5), dtype, compute)


def test_counts_beyond_float32_are_computed_in_float64():
    assert layout_of(phantom((2, 2**24 - 1), "bool"), phantom((2**24 - 1, 2), "bool")).compute == np.float32
    assert layout_of(phantom((2, 2**24), "bool"), phantom((2**24, 2), "bool")).compute == np.float64


@pytest.mark.parametrize(("first", "second"), [("int32", "int32"), ("int64", "bool"), ("uint8", "int8")])
def test_integer_products_are_refused_with_the_remedy(first, second):
    with pytest.raises(DtypeError, match=rf"{first} and {second} .*astype\('float64'\)"):
        layout_of(Factor(ArrayStore(np.ones((3, 4), first))), Factor(ArrayStore(np.ones((4, 5), second))))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ShapeError, match=r"\(3, 4\).*\(3, 4\).*4 columns meet 3 rows"):
        layout_of(phantom((3, 4)), phantom((3, 4)))
    assert layout_of(phantom((3, 4)), Factor(phantom((3, 4)).store, "T")).shape == (3, 3)


def test_rank_k_is_recognised_by_identity_not_by_value():
    x = np.ones((4, 6), "complex128")
    store, twin = ArrayStore(x), ArrayStore(x)  # two stores of the same array
    other = ArrayStore(x.copy())
    assert kernel_of(Factor(store), Factor(twin, "T")) == ("rank_k", "symmetric")
    assert kernel_of(Factor(store), Factor(twin, "H")) == ("rank_k", "hermitian")
    assert kernel_of(Factor(store, "H"), Factor(store)) == ("rank_k", "hermitian")
    assert kernel_of(Factor(store), Factor(other, "T")) == ("gemm", "full")
    assert kernel_of(Factor(store, "T"), Factor(store, "H")) == ("gemm", "full")
    real = ArrayStore(np.ones((4, 6)))
    assert kernel_of(Factor(real), Factor(real, "H")) == ("rank_k", "symmetric")
    bits = ArrayStore(np.ones((4, 4), bool))
    assert kernel_of(Factor(bits), Factor(bits, "T")) == ("gemm", "full")
    integers = ArrayStore(np.ones((4, 6), "float16"))
    assert layout_of(Factor(integers), Factor(integers, "T")).kernel == "gemm"


# ---- routes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["h200", "laptop_8gb", "no_gpu", "slow_pcie", "tiny_container"])
@pytest.mark.parametrize("n", [64, 1000, 5000, 20_000])
def test_the_route_with_the_least_predicted_seconds_wins(machine, n):
    with use_probe(load_machine(ROOT / "profiles" / f"{machine}.json")):
        solution = plan("matmul", phantom((n, n)), phantom((n, n)), memory="4GB", gpu_memory="4GB", out_on_disk=True)
    possible = [route for route in solution.routes if not route.refused]
    assert possible
    assert solution.route is min(possible, key=lambda route: route.seconds)
    assert solution.seconds == solution.route.seconds > 0
    for route in solution.routes:
        assert bool(route.refused) == (route.seconds == float("inf"))
        assert route.refused or route.host_bytes <= 4 * 10**9
        assert route.refused or route.device_bytes <= 4 * 10**9


def test_a_machine_with_a_fast_gpu_uses_it_for_large_products_alone():
    with use_probe(load_machine(ROOT / "profiles" / "h200.json")):
        for n, device in ((300, "cpu"), (30_000, "gpu")):
            solution = plan("matmul", phantom((n, n)), phantom((n, n)), memory="16GB", gpu_memory="8GB", out_on_disk=True)
            assert solution.route.device == device
            assert any(route.device == "cpu" for route in solution.routes)


def test_a_machine_without_a_gpu_has_no_such_route():
    with use_probe(load_machine(ROOT / "profiles" / "no_gpu.json")):
        solution = plan("matmul", phantom((3000, 3000)), phantom((3000, 3000)), memory="1GB")
        assert {route.device for route in solution.routes} == {"cpu"}
        with settings(backend="gpu"), pytest.raises(BackendError, match="no usable GPU"):
            assert plan("matmul", phantom((3000, 3000)), phantom((3000, 3000)), memory="1GB").route


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("n", [300, 12_000])
def test_a_forced_backend_is_respected(backend, n):
    with use_probe(load_machine(ROOT / "profiles" / "h200.json")), settings(backend=backend):
        solution = plan("matmul", phantom((n, n)), phantom((n, n)), memory="4GB", gpu_memory="4GB", out_on_disk=True)
    assert {route.device for route in solution.routes} == {backend}
    assert "why: forced" in solution.explain()


def test_refused_routes_say_why():
    with use_probe(load_machine(ROOT / "profiles" / "h200.json")):
        a, b = phantom((20_000, 20_000)), phantom((20_000, 20_000))
        solution = plan("matmul", a, b, memory="1GB", gpu_memory="1GB", out_on_disk=True)
    refused = {route.name: route.refused for route in solution.routes if route.refused}
    assert re.search(r"arrays take 9\.60 GB of memory, the limit leaves \d+ MB", refused["NumPy in core"])
    assert re.search(r"arrays take 9\.60 GB of GPU memory, the limit leaves", refused["CuPy in core"])
    assert solution.route.streamed


def test_no_way_through_gives_every_reason():
    solution = plan("matmul", phantom((20_000, 20_000)), phantom((20_000, 20_000)), memory="1MB", out_on_disk=True)
    reasons = r"no way through: .*NumPy in core: its arrays take 9\.60 GB.*streamed NumPy: .*needs at least"
    with pytest.raises(MemoryLimitError, match=reasons):
        assert solution.route


def test_explanation():
    with use_probe(load_machine(ROOT / "profiles" / "h200.json")), settings(backend="cpu"):
        solution = plan("matmul", phantom((9000, 8000)), phantom((8000, 7000)), memory="800MB", out_on_disk=True)
    text = solution.explain()
    route = solution.route
    assert route.streamed
    assert "matmul: (9000, 8000) @ (8000, 7000) -> float64" in text
    assert re.search(r"route: streamed NumPy, about [\d.]+ (s|ms|min)", text)
    assert re.search(r"disk: [\d.]+ GB, [\d.]+ × the lower bound", text)
    ratio = re.search(r"disk: [\d.]+ GB, ([\d.]+) × the lower bound", text)
    assert float(ratio[1]) >= 1
    assert re.search(r"memory: [\d.]+ MB host", text)
    assert "why: forced; NumPy in core cannot: its arrays take 1.53 GB" in text
    assert route.host_bytes <= 800 * 10**6


def test_only_matmul_has_a_plan():
    with pytest.raises(ConfigError, match="'cholesky'"):
        plan("cholesky", phantom((3, 3)), phantom((3, 3)))


@pytest.mark.parametrize(("m", "n", "k"), [(0, 5, 4), (5, 0, 4), (5, 4, 0), (0, 0, 0)])
def test_empty_products_have_plans_and_results(m, n, k):
    a, b = Factor(ArrayStore(np.ones((m, k)))), Factor(ArrayStore(np.ones((k, n))))
    assert "matmul" in plan("matmul", a, b).explain()
    assert plan("matmul", a, b, memory=LIMIT, out_on_disk=True).route
    assert np.array_equal(read(multiply(a, b)), np.zeros((m, n)))


def test_small_products_need_no_plan():
    assert is_small(64, 64, 64)
    assert not is_small(2000, 2000, 2000)


# ---- results ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    rng = np.random.default_rng(50)
    a, b = rng.standard_normal((701, 900)), rng.standard_normal((900, 811))
    return on_disk(tmp_path / "a.zarr", a), on_disk(tmp_path / "b.zarr", b), a @ b


def test_a_small_result_lies_in_ram_under_a_ticket_that_goes_with_it(pair):
    a, b, exact = pair
    before = host_bytes_in_use()
    result = multiply(Factor(a), Factor(b))
    assert result.view(whole(result)) is not None
    assert host_bytes_in_use() - before == exact.nbytes
    assert np.allclose(read(result), exact, rtol=0, atol=1e-10)
    del result
    gc.collect()
    assert host_bytes_in_use() == before


def test_a_result_beyond_half_the_limit_is_scratch_and_goes_with_its_reference(pair, isolated, monkeypatch):
    a, b, exact = pair
    monkeypatch.setattr("pycauset.solver.execute._result_in_ram", lambda layout, host: False)
    result = multiply(Factor(a), Factor(b), memory="90MB")
    assert result.view(whole(result)) is None
    assert isolated in result.path.parents
    assert np.allclose(read(result), exact, rtol=0, atol=1e-10)
    assert host_bytes_in_use() == 0
    assert last_statistics().bytes_read >= a.nbytes + b.nbytes
    path = result.path
    del result
    gc.collect()
    assert not path.exists()


@pytest.mark.parametrize("memory", [None, LIMIT, "40MB"])
@pytest.mark.parametrize("place", ["ram", "disk"])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("flag", ["T", "H"])
def test_a_matrix_times_its_own_transpose(memory, place, dtype, flag, tmp_path):
    rng = np.random.default_rng(51)
    x = rng.standard_normal((650, 400)) + (1j * rng.standard_normal((650, 400)) if dtype == "complex128" else 0)
    x = x.astype(dtype)
    store = ArrayStore(x) if place == "ram" else on_disk(tmp_path / "x", x)
    result = multiply(Factor(store), Factor(store, flag), memory=memory)
    exact = x @ (x.conj().T if flag == "H" else x.T)
    assert np.allclose(read(result), exact, rtol=0, atol=1e-3 if dtype == "float32" else 1e-9)
    if result.view(whole(result)) is None:
        assert result.structure == ("hermitian" if flag == "H" and dtype == "complex128" else "symmetric")


def test_alpha_beta_into_an_output_on_disk(pair, tmp_path):
    a, b, exact = pair
    rng = np.random.default_rng(52)
    start = rng.standard_normal(exact.shape)
    for memory in (None, LIMIT):
        out = on_disk(tmp_path / f"c {memory}", start)
        out.writable = True
        assert multiply(Factor(a), Factor(b), out=out, alpha=-0.5, beta=2.0, memory=memory) is out
        assert np.allclose(read(open_store(tmp_path / f"c {memory}")), 2.0 * start - 0.5 * exact, rtol=0, atol=1e-10)


def test_bits_are_counted(tmp_path):
    rng = np.random.default_rng(53)
    x = rng.random((700, 600)) < 0.5
    store = on_disk(tmp_path / "x", x)
    for memory in (None, LIMIT):
        result = multiply(Factor(store), Factor(store, "T"), memory=memory)
        assert result.dtype == np.int64
        assert np.array_equal(read(result), x.astype(int) @ x.T.astype(int))


# ---- bad outputs ----------------------------------------------------------------------------------------------------------


def test_overlapping_outputs_are_refused(tmp_path):
    x = np.ones((100, 60))
    y = np.ones((60, 60))
    for out in (ArrayStore(x), ArrayStore(x[::-1])):
        with pytest.raises(OverlapError, match="first operand"):
            multiply(Factor(ArrayStore(x)), Factor(ArrayStore(y)), out=out)
    square = on_disk(tmp_path / "s", np.ones((64, 64)))
    with pytest.raises(OverlapError, match="second operand"):
        multiply(Factor(ArrayStore(np.ones((64, 64)))), Factor(square), out=open_store(tmp_path / "s"))
    assert np.array_equal(read(open_store(tmp_path / "s")), np.ones((64, 64)))
    assert (x == 1).all()


def test_outputs_that_do_not_fit_are_refused():
    a, b = Factor(ArrayStore(np.ones((30, 20)))), Factor(ArrayStore(np.ones((20, 10))))
    with pytest.raises(ShapeError, match=r"out has shape \(10, 30\).*\(30, 10\)"):
        multiply(a, b, out=ArrayStore(np.ones((10, 30))))
    with pytest.raises(DtypeError, match="int64"):
        multiply(a, b, out=ArrayStore(np.ones((30, 10), "int64")))
    with pytest.raises(PycausetError, match="read-only"):
        frozen = np.ones((30, 10))
        frozen.flags.writeable = False
        multiply(a, b, out=ArrayStore(frozen))


def test_an_output_of_another_type_is_converted():
    rng = np.random.default_rng(54)
    a, b = rng.standard_normal((50, 40)), rng.standard_normal((40, 30))
    for dtype in ("float32", "complex128"):
        out = np.full((50, 30), np.nan, dtype)
        multiply(Factor(ArrayStore(a)), Factor(ArrayStore(b)), out=ArrayStore(out))
        assert np.allclose(out, a @ b, rtol=0, atol=1e-4)


# ---- failures -----------------------------------------------------------------------------------------------------------


def big_pair(tmp_path):
    rng = np.random.default_rng(55)
    return [on_disk(tmp_path / name, rng.standard_normal((1100, 1100))) for name in ("a.zarr", "b.zarr")]


@pytest.mark.parametrize("where", ["out", "scratch"])
def test_a_full_disk(where, tmp_path, monkeypatch, isolated):
    from pycauset.storage import native

    a, b = big_pair(tmp_path)
    (tmp_path / "result").mkdir()
    out = create_store(tmp_path / "result" / "c.zarr", (1100, 1100), "float64", chunks=(128, 128)) if where == "out" else None
    monkeypatch.setattr("pycauset.solver.execute._result_in_ram", lambda layout, host: False)
    real, calls = native.write_chunk, [0]

    def write_chunk(path, *arguments, **options):
        calls[0] += 1
        if calls[0] > (20 if where == "out" else 1):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return real(path, *arguments, **options)

    monkeypatch.setattr(native, "write_chunk", write_chunk)
    with pytest.raises(StoreFullError, match=r"writing .*(space|room)"):
        multiply(Factor(a), Factor(b), out=out, memory="16MB" if where == "out" else "90MB")
    del out
    gc.collect()
    assert not files_below(tmp_path / "result")
    assert not files_below(isolated)
    assert host_bytes_in_use() == 0
    assert read(a).shape == (1100, 1100)


@pytest.mark.parametrize("whole_matrix", [True, False])
def test_an_operand_that_vanishes_in_mid_run(whole_matrix, tmp_path, monkeypatch, isolated):
    from pycauset.storage import native

    a, b = big_pair(tmp_path)
    (tmp_path / "result").mkdir()
    out = create_store(tmp_path / "result" / "c.zarr", (1100, 1100), "float64", chunks=(128, 128))
    real, reads, lock = native.read_chunk, [0], threading.Lock()

    def read_chunk(path, *arguments, **options):
        with lock:
            reads[0] += 1
            if reads[0] == 30:
                if whole_matrix:
                    shutil.rmtree(tmp_path / "b.zarr")
                else:
                    (tmp_path / "b.zarr" / "c" / "8" / "8").unlink(missing_ok=True)
        return real(path, *arguments, **options)

    monkeypatch.setattr(native, "read_chunk", read_chunk)
    with pytest.raises(StoreNotFoundError, match=r"b\.zarr"):
        multiply(Factor(a), Factor(b), out=out, memory="16MB")
    del out
    gc.collect()
    assert not files_below(tmp_path / "result")
    assert not files_below(isolated)
    assert host_bytes_in_use() == 0


def test_an_output_that_existed_before_does_not_look_finished_after_a_failure(tmp_path, monkeypatch):
    from pycauset.storage import native

    a, b = big_pair(tmp_path)
    out = on_disk(tmp_path / "c.zarr", np.ones((1100, 1100)))
    out.writable = True
    real, calls = native.write_chunk, [0]

    def write_chunk(path, *arguments, **options):
        calls[0] += 1
        if calls[0] > 5:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path, *arguments, **options)

    monkeypatch.setattr(native, "write_chunk", write_chunk)
    with pytest.raises(PycausetError):
        multiply(Factor(a), Factor(b), out=out, memory="16MB")
    with pytest.raises(PycausetError):
        open_store(tmp_path / "c.zarr")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_in_the_caller_thread_stops_cleanly(error, tmp_path, isolated):
    a, b = big_pair(tmp_path)
    (tmp_path / "result").mkdir()
    out = create_store(tmp_path / "result" / "c.zarr", (1100, 1100), "float64", chunks=(128, 128))

    def progress(done, total):
        if done > total / 4:
            raise error

    with pytest.raises(error):
        multiply(Factor(a), Factor(b), out=out, memory="16MB", progress=progress)
    del out
    gc.collect()
    assert not files_below(tmp_path / "result")
    assert not files_below(isolated)
    assert host_bytes_in_use() == 0


PROGRAM = """
import sys
import numpy as np
from pycauset.solver import Factor, multiply
from pycauset.storage import create_store, open_store

folder = sys.argv[1]
out = create_store(folder + "/c.zarr", (1100, 1100), "float64", chunks=(128, 128))
said = []

def progress(done, total):
    if not said:
        said.append(True)
        print("running", flush=True)
    import time
    time.sleep(0.05)

a, b = (Factor(open_store(folder + "/" + name)) for name in ("a.zarr", "b.zarr"))
try:
    multiply(a, b, out=out, memory="16MB", progress=progress)
finally:
    import threading
    from pycauset.governor import governor
    from pycauset.devices import kept_host_bytes
    left = governor().in_use("host") - kept_host_bytes()
    print([t.name for t in threading.enumerate() if t.name.startswith("pycauset-")], left, flush=True)
"""


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_stops_the_process_cleanly(sent, status, tmp_path, home, isolated):
    big_pair(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYCAUSET_HOME": str(home), "PYCAUSET_SCRATCH": str(isolated)}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path)]

    def listen() -> None:  # a shell's background job starts with SIGINT ignored, and hands that on
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment, preexec_fn=listen) as process:
        assert process.stdout.readline() == "running\n", process.stderr.read()
        process.send_signal(sent)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert output == "[] 0\n"
    assert {p.name for p in tmp_path.iterdir()} == {"a.zarr", "b.zarr"}
