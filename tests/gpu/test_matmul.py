"""Products on a real GPU: every dtype, operation, place and mode, under limits that force streaming."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pycauset import devices
from pycauset.devices.rates import Rates
from pycauset.drivers.matmul import MatmulDriver
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.governor import governor
from pycauset.solver import Factor, multiply
from pycauset.storage import ArrayStore, create_store, open_store
from pycauset.tiling import Rect

pytestmark = pytest.mark.gpu
OP = {"N": lambda x: x, "T": lambda x: x.T, "H": lambda x: x.conj().T}


@pytest.fixture(scope="module")
def gpu():
    device = devices.gpu()
    if device is None:
        pytest.skip("no GPU")
    return device


def _random(rng, shape, dtype):
    x = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        x = x + 1j * rng.standard_normal(shape)
    return x.astype(dtype)


def _stream(gpu, a, b, c, *, limit, host=64 << 20, mode="async", profile=None, timeline=False, **options):
    from pycauset.devices.audit import load_profile

    driver = MatmulDriver(a, b, c, c.dtype, **options)
    plan = driver.plan(gpu, MatmulLimits(limit, host), Rates(profile or load_profile(), "gpu", c.dtype))
    with (
        governor().scope(host=host + (256 << 20), device=limit + (1 << 20), owner="test") as scope,
        AsyncStreamer(
            gpu,
            driver.operands(plan),
            scope,
            host_slots=plan.host_slots,
            host_slot_bytes=plan.host_slot_bytes,
            mode=mode,
            timeline=timeline,
        ) as streamer,
    ):
        streamer.run(driver.tasks(plan))
        statistics = streamer.statistics()
    assert not scope.leaks
    return plan, statistics


def _check(c, reference, k, dtype):
    eps = np.finfo(dtype).eps
    scale = max(np.abs(reference).max(), 1)
    assert np.isfinite(c).all()
    assert np.abs(c - reference).max() <= 30 * k**0.5 * eps * scale


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize(("op_a", "op_b"), list(itertools.product("NTH", repeat=2)))
def test_streamed_product_matches_numpy(gpu, dtype, op_a, op_b):
    rng = np.random.default_rng()
    m, n, k = 733, 641, 877
    a = _random(rng, (m, k) if op_a == "N" else (k, m), dtype)
    b = _random(rng, (k, n) if op_b == "N" else (n, k), dtype)
    c = np.full((m, n), np.nan, dtype)
    stores = [ArrayStore(x) for x in (a, b, c)]
    plan, statistics = _stream(gpu, *stores, limit=12 << 20, op_a=op_a, op_b=op_b)
    wide = np.complex128 if np.dtype(dtype).kind == "c" else np.float64
    _check(c, OP[op_a](a).astype(wide) @ OP[op_b](b).astype(wide), k, dtype)
    assert statistics.bytes_uploaded == plan.upload
    assert statistics.bytes_downloaded == plan.download
    assert statistics.tasks == plan.tasks


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("hermitian", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_rank_k_computes_the_lower_triangle(gpu, dtype, hermitian, transposed):
    rng = np.random.default_rng()
    flag = "H" if hermitian else "T"
    a = _random(rng, (700, 500) if not transposed else (500, 700), dtype)
    c = np.full((700, 700), np.nan, dtype)
    op_a, op_b = ("N", flag) if not transposed else (flag, "N")
    store = ArrayStore(a)
    _stream(gpu, store, store, ArrayStore(c), limit=16 << 20, op_a=op_a, op_b=op_b, rank_k=True)
    reference = OP[op_a](a) @ OP[op_b](a)
    _check(np.tril(c), np.tril(reference), 500, dtype)


def test_alpha_beta_and_accumulation(gpu):
    rng = np.random.default_rng()
    a, b, c = (_random(rng, s, "float64") for s in ((500, 600), (600, 400), (500, 400)))
    reference = 0.5 * a @ b - 2.0 * c
    _stream(gpu, ArrayStore(a), ArrayStore(b), ArrayStore(c), limit=6 << 20, alpha=0.5, beta=-2.0)
    _check(c, reference, 600, "float64")


def test_asynchronous_and_synchronous_bits_are_equal(gpu):
    rng = np.random.default_rng()
    a, b = _random(rng, (1500, 1300), "float64"), _random(rng, (1300, 1100), "float64")
    results = []
    for mode in ("async", "sync"):
        c = np.full((1500, 1100), np.nan)
        _stream(gpu, ArrayStore(a), ArrayStore(b), ArrayStore(c), limit=16 << 20, mode=mode)
        results.append(c)
    assert np.array_equal(results[0], results[1])


def test_pinned_operands_skip_the_host_level(gpu):
    from pycauset.cuda import pinned_empty

    rng = np.random.default_rng()
    a, b, c = pinned_empty((900, 800)), pinned_empty((800, 700)), pinned_empty((900, 700))
    a[...], b[...], c[...] = rng.standard_normal(a.shape), rng.standard_normal(b.shape), np.nan
    plan, statistics = _stream(gpu, ArrayStore(a), ArrayStore(b), ArrayStore(c), limit=8 << 20)
    assert plan.host_slots == 0
    assert statistics.bytes_read == 0
    _check(c, a @ b, 800, "float64")


def test_disk_to_disk_under_limits(gpu, tmp_path):
    rng = np.random.default_rng()
    stores = []
    arrays = []
    for name in "ab":
        array = _random(rng, (2100, 2100), "float64")
        store = create_store(tmp_path / name, array.shape, array.dtype, chunks=(256, 256))
        store.write(Rect(0, 2100, 0, 2100), array)
        store.commit()
        stores.append(open_store(tmp_path / name))
        arrays.append(array)
    out = create_store(tmp_path / "c", (2100, 2100), "float64", chunks=(256, 256))
    out.begin_write()
    plan, statistics = _stream(gpu, *stores, out, limit=24 << 20, host=48 << 20, timeline=True)
    out.commit()
    c = np.full((2100, 2100), np.nan)
    open_store(tmp_path / "c").read(Rect(0, 2100, 0, 2100), c)
    _check(c, arrays[0] @ arrays[1], 2100, "float64")
    assert statistics.bytes_read == plan.disk_read
    assert statistics.bytes_written == plan.disk_write


@pytest.mark.parametrize("n", [64, 500, 2000])
def test_in_core_route(gpu, n):
    from pycauset.config import settings

    rng = np.random.default_rng()
    a, b = _random(rng, (n, n + 3), "float32"), _random(rng, (n + 3, n - 1), "float32")
    with settings(backend="gpu"):
        result = multiply(Factor(ArrayStore(a)), Factor(ArrayStore(b)))
    c = np.empty((n, n - 1), "float32")
    result.read(Rect(0, n, 0, n - 1), c)
    _check(c, a.astype(float) @ b.astype(float), n, "float32")


def test_nothing_is_left_behind(gpu):
    free, _ = gpu.runtime.memGetInfo()
    for _ in range(3):
        test_alpha_beta_and_accumulation(gpu)
    after, _ = gpu.runtime.memGetInfo()
    assert free - after < 64 << 20
    assert governor().in_use("device") == 0
