"""Every product against NumPy in higher precision: op × dtype × shape × stores × device × mode, outputs poisoned before."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pycauset.devices.numpy import NumpyDevice
from pycauset.drivers.matmul import MatmulDriver
from pycauset.errors import MemoryLimitError
from pycauset.storage import ArrayStore, FunctionStore, create_store, open_store
from pycauset.tiling import Rect
from tests.drivers.fakes import OP, FakeGpu, Hidden, Pinned, random_matrix, stream

DTYPES = ("float32", "float64", "complex64", "complex128")
SHAPES = {
    "square": (96, 96, 96),
    "ragged": (101, 67, 89),
    "tall": (307, 11, 13),
    "wide": (11, 307, 13),
    "deep": (19, 23, 509),
    "row": (1, 131, 97),
    "column": (131, 1, 97),
    "outer": (89, 83, 1),
    "one": (1, 1, 1),
}
DEVICES = {"cpu": NumpyDevice, "gpu": FakeGpu}


def whole(store) -> Rect:
    return Rect(0, store.shape[0], 0, store.shape[1])


def read(store, dtype) -> np.ndarray:
    out = np.full(store.shape, np.nan if np.dtype(dtype).kind in "fc" else -1, dtype)
    store.read(whole(store), out)
    return out


def higher(x: np.ndarray) -> np.ndarray:
    return x.astype(np.clongdouble if x.dtype.kind == "c" else np.longdouble)


def residual_ratio(c: np.ndarray, a: np.ndarray, b: np.ndarray, alpha=1.0, beta=0.0, before=None) -> float:
    """LAPACK's: ``‖C − αAB − βC₀‖ / (ε k (|α|‖A‖‖B‖ + |β|‖C₀‖))`` in the maximum norm."""
    a, b = higher(a), higher(b)
    exact = alpha * (a @ b)
    scale = abs(alpha) * float(np.abs(a).max(initial=0) * np.abs(b).max(initial=0)) * max(a.shape[1], 1)
    if beta:
        exact = exact + beta * higher(before)
        scale += abs(beta) * float(np.abs(before).max(initial=0))
    assert c.shape == exact.shape
    assert np.isfinite(c).all()
    if not c.size:
        return 0.0
    return float(np.abs(higher(c) - exact).max()) / (np.finfo(c.dtype).eps * max(scale, 1e-30))


def small_limit(m: int, n: int, k: int, itemsize: int) -> int:
    """Half of what the three matrices take, but enough for a handful of tiles."""
    return max((m * k + k * n + m * n) * itemsize // 2, 40 * 4096)


def operands(rng, m, n, k, dtype, op_a, op_b):
    a = random_matrix(rng, (m, k) if op_a == "N" else (k, m), dtype)
    b = random_matrix(rng, (k, n) if op_b == "N" else (n, k), dtype)
    return a, b


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_op_and_shape(device, shape, dtype):
    rng = np.random.default_rng(20)
    m, n, k = SHAPES[shape]
    size = np.dtype(dtype).itemsize
    for op_a, op_b in itertools.product("NTH" if dtype == "complex128" else "NT", repeat=2):
        a, b = operands(rng, m, n, k, dtype, op_a, op_b)
        results = []
        for mode in ("async", "sync"):
            c = np.full((m, n), np.nan, dtype)
            stores = [Hidden(x, chunks=(min(16, x.shape[0]), min(16, x.shape[1]))) for x in (a, b, c)]
            plan, statistics = stream(
                DEVICES[device](), *stores, limit=small_limit(m, n, k, size), host=48 * 4096, mode=mode, op_a=op_a, op_b=op_b
            )
            assert residual_ratio(c, OP[op_a](a), OP[op_b](b)) < 30
            assert statistics.tasks == plan.tasks
            assert statistics.flops == pytest.approx((8 if c.dtype.kind == "c" else 2) * m * n * k)
            results.append(c)
        assert np.array_equal(*results), "asynchronous and synchronous bits differ"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5])
@pytest.mark.parametrize(("m", "n", "k"), [(40, 30, 0), (0, 30, 20), (40, 0, 20), (0, 0, 0)])
def test_empty_sums_and_empty_results(device, m, n, k, beta):
    rng = np.random.default_rng(21)
    a, b = operands(rng, m, n, k, "float64", "N", "T")
    c = rng.standard_normal((m, n)) if beta else np.full((m, n), np.nan)
    before = c.copy()
    stream(DEVICES[device](), Hidden(a), Hidden(b), Hidden(c), limit=1 << 20, host=1 << 20, op_b="T", beta=beta)
    assert np.array_equal(c, beta * before if beta else np.zeros((m, n)))


# ---- stores ---------------------------------------------------------------------------------------------------------


def on_disk(array, path, **options):
    store = create_store(path, array.shape, array.dtype, **options)
    store.write(whole(store), array)
    store.commit()
    return open_store(path)


def npy(array, path):
    np.save(path.with_suffix(".npy"), array)
    return open_store(path.with_suffix(".npy"))


SOURCES = {
    "ram": lambda x, path: ArrayStore(x),
    "pinned": lambda x, path: Pinned(x),
    "fortran": lambda x, path: ArrayStore(np.asfortranarray(x)),
    "strided": lambda x, path: ArrayStore(np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3]),
    "zarr": lambda x, path: on_disk(x, path, chunks=(32, 32)),
    "zarr in odd chunks": lambda x, path: on_disk(x, path, chunks=(19, 41)),
    "zarr with checksums": lambda x, path: on_disk(x, path, chunks=(32, 32), checksum=True),
    "npy": npy,
    "npy in Fortran order": lambda x, path: npy(np.asfortranarray(x), path),
    "function": lambda x, path: FunctionStore(lambda i, j: x[np.ix_(i, j)], x.shape, x.dtype, chunks=(24, 24)),
}
TARGETS = {
    "ram": lambda shape, dtype, path: ArrayStore(np.full(shape, np.nan, dtype)),
    "pinned": lambda shape, dtype, path: Pinned(np.full(shape, np.nan, dtype)),
    "fortran": lambda shape, dtype, path: ArrayStore(np.full(shape, np.nan, dtype, order="F")),
    "zarr": lambda shape, dtype, path: create_store(path, shape, dtype, chunks=(32, 32)),
    "zarr in odd chunks": lambda shape, dtype, path: create_store(path, shape, dtype, chunks=(23, 17)),
    "npy": lambda shape, dtype, path: create_store(path.with_suffix(".npy"), shape, dtype),
}
GENEROUS = 9 << 20


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("first", "second", "target"),
    [
        *[(kind, kind, "zarr") for kind in SOURCES],
        *[("zarr", "ram", kind) for kind in TARGETS],
        ("ram", "zarr in odd chunks", "npy"),
        ("pinned", "zarr", "pinned"),
        ("function", "npy in Fortran order", "pinned"),
    ],
)
def test_every_store(device, first, second, target, tmp_path):
    rng = np.random.default_rng(22)
    m, n, k = 137, 119, 151
    for number, (op_a, op_b, dtype) in enumerate([("N", "N", "float64"), ("T", "H", "complex64")]):
        a, b = operands(rng, m, n, k, dtype, op_a, op_b)
        sources = SOURCES[first](a, tmp_path / f"a{number}"), SOURCES[second](b, tmp_path / f"b{number}")
        out = TARGETS[target]((m, n), np.dtype(dtype), tmp_path / f"c{number}")
        out.begin_write()
        plan, statistics = stream(DEVICES[device](), *sources, out, limit=260_000, host=GENEROUS, op_a=op_a, op_b=op_b)
        out.commit()
        assert residual_ratio(read(out, dtype), OP[op_a](a), OP[op_b](b)) < 30
        assert statistics.bytes_uploaded == plan.upload
        assert statistics.bytes_downloaded == plan.download


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_packed_bits_are_counted_exactly(device, dtype, tmp_path):
    rng = np.random.default_rng(23)
    a, b = random_matrix(rng, (150, 170), bool), random_matrix(rng, (170, 130), bool)
    out = create_store(tmp_path / "c", (150, 130), "int64", chunks=(64, 64))
    sources = on_disk(a, tmp_path / "a", chunks=(64, 64)), on_disk(b, tmp_path / "b", chunks=(48, 40))
    stream(DEVICES[device](), *sources, out, dtype=dtype, limit=400_000, host=GENEROUS)
    out.commit()
    assert np.array_equal(read(out, "int64"), a.astype(int) @ b.astype(int))


@pytest.mark.parametrize("device", DEVICES)
def test_operands_of_another_type_are_converted_on_their_way(device):
    rng = np.random.default_rng(24)
    a, b = rng.integers(-9, 9, (90, 80), dtype="int32"), random_matrix(rng, (80, 70), "float32")
    c = np.full((90, 70), np.nan, "complex128")
    stream(DEVICES[device](), ArrayStore(a), ArrayStore(b), ArrayStore(c), dtype="float64", limit=80_000, host=GENEROUS)
    assert residual_ratio(c, a.astype(float), b.astype(float)) < 30


@pytest.mark.parametrize("structure", ["lower", "upper", "symmetric", "hermitian", "skew"])
@pytest.mark.parametrize("device", DEVICES)
def test_operands_of_which_one_triangle_is_stored(device, structure, tmp_path):
    rng = np.random.default_rng(25)
    x = random_matrix(rng, (120, 120), "complex128")
    full = {
        "lower": np.tril(x),
        "upper": np.triu(x),
        "symmetric": x + x.T,
        "hermitian": x + x.conj().T,
        "skew": x - x.T,
    }[structure]
    store = on_disk(full, tmp_path / "a", chunks=(32, 32), structure=structure)
    b = random_matrix(rng, (120, 60), "complex128")
    for op in "NTH":
        c = np.full((120, 60), np.nan, "complex128")
        stream(DEVICES[device](), store, ArrayStore(b), ArrayStore(c), limit=200_000, host=GENEROUS, op_a=op)
        assert residual_ratio(c, OP[op](full), b) < 30


# ---- alpha, beta, rank-k ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("place", [Hidden, ArrayStore, Pinned])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.0), (-1.0, 1.0), (2.0, -0.25), (0.0, 3.0)])
def test_alpha_and_beta(device, place, dtype, alpha, beta):
    rng = np.random.default_rng(26)
    if np.dtype(dtype).kind == "c":
        alpha, beta = alpha * (1 + 0.5j), beta * (1 - 2j)
    a, b = operands(rng, 70, 90, 110, dtype, "T", "N")
    c = random_matrix(rng, (70, 90), dtype) if beta else np.full((70, 90), np.nan, dtype)
    before = c.copy()
    stream(DEVICES[device](), place(a), place(b), place(c), limit=40 * 4096, host=4 << 20, op_a="T", alpha=alpha, beta=beta)
    assert residual_ratio(c, a.T, b, alpha, beta, before) < 30


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("place", [Hidden, ArrayStore, Pinned])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op_a", "op_b"), [("N", "T"), ("N", "H"), ("T", "N"), ("H", "N")])
def test_rank_k_computes_one_triangle_with_half_the_work(device, place, dtype, op_a, op_b):
    rng = np.random.default_rng(27)
    n, k = 167, 71
    a = random_matrix(rng, (n, k) if op_a == "N" else (k, n), dtype)
    store = place(a)
    limit = 24 * 4096 * np.dtype(dtype).itemsize
    c = np.full((n, n), np.nan, dtype)
    options = {"op_a": op_a, "op_b": op_b, "rank_k": True}
    plan, statistics = stream(DEVICES[device](), store, store, place(c), limit=limit, host=8 << 20, **options)
    exact = higher(OP[op_a](a)) @ higher(OP[op_b](a))
    lower = np.tril_indices(n)
    error = np.abs(higher(c)[lower] - exact[lower]).max()
    assert float(error) < 30 * np.finfo(dtype).eps * k * float(np.abs(a).max()) ** 2
    rows = plan.grid[0]
    assert statistics.tasks == plan.tasks == rows * (rows + 1) // 2 * plan.grid[2]
    flops = (8 if c.dtype.kind == "c" else 2) * n * n * k
    assert statistics.flops <= flops * (rows + 1) / (2 * rows) * 1.15
    assert statistics.flops >= flops / 2
    # What the triangle's tiles do not cover stays untouched.
    untouched = [c[i * plan.tile[0] : (i + 1) * plan.tile[0], (i + 1) * plan.tile[0] :] for i in range(rows)]
    assert all(np.isnan(part).all() for part in untouched)


@pytest.mark.parametrize("hermitian", [False, True])
def test_rank_k_update_of_a_triangle(hermitian):
    rng = np.random.default_rng(28)
    a = random_matrix(rng, (90, 40), "complex128")
    x = random_matrix(rng, (90, 90), "complex128")
    c = x + (x.conj().T if hermitian else x.T)
    flag = "H" if hermitian else "T"
    expected = 0.5 * a @ OP[flag](a) - 2.0 * c
    store = Hidden(a)
    stream(NumpyDevice(), store, store, Hidden(c), limit=300_000, op_b=flag, rank_k=True, alpha=0.5, beta=-2.0)
    assert np.allclose(np.tril(c), np.tril(expected), rtol=0, atol=1e-11)


# ---- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_the_smallest_memory_that_is_not_refused_works(device):
    """Down to the last slot: no plan that is accepted may deadlock or run out of slots."""
    rng = np.random.default_rng(29)
    a, b = operands(rng, 83, 97, 61, "float64", "N", "N")
    accepted, refused = 0, 0
    for limit, host in itertools.product((4, 6, 8, 9, 10, 11, 12, 14, 19, 33), (1, 2, 3, 5, 8, 13, 30)):
        c = np.full((83, 97), np.nan)
        stores = [Hidden(x, chunks=(16, 16)) for x in (a, b, c)]
        try:
            stream(DEVICES[device](0.0) if device == "gpu" else NumpyDevice(), *stores, limit=limit * 4096, host=host * 4096)
        except MemoryLimitError as error:
            refused += 1
            assert "83, 61" in str(error)  # noqa: PT017 - either outcome is right, if it is a clean one
        else:
            accepted += 1
            assert residual_ratio(c, a, b) < 30
    assert accepted >= 10
    assert refused >= 2


@pytest.mark.parametrize("host_chunks", [3, 4, 6, 12])
def test_slow_copies_and_few_host_slots_neither_deadlock_nor_mix_tiles(host_chunks):
    rng = np.random.default_rng(30)
    a, b = operands(rng, 100, 90, 80, "float64", "N", "T")
    before = random_matrix(rng, (100, 90), "float64")
    c = before.copy()
    stores = [Hidden(x, chunks=(32, 32), pause=0.001) for x in (a, b, c)]
    device = FakeGpu(pause=0.001)
    stream(device, *stores, limit=11 * 8192, host=host_chunks * 8192, op_b="T", beta=1.0)
    assert residual_ratio(c, a, b.T, 1.0, 1.0, before) < 30
    assert device.uploads
    assert device.downloads


def test_each_chunk_of_the_result_is_written_once():
    rng = np.random.default_rng(31)
    a, b = operands(rng, 128, 128, 128, "float64", "N", "N")
    for device, host in ((NumpyDevice(), 0), (FakeGpu(), 20 * 8192)):
        c = Hidden(np.full((128, 128), np.nan), chunks=(32, 32))
        stream(device, Hidden(a, chunks=(32, 32)), Hidden(b, chunks=(32, 32)), c, limit=14 * 8192, host=host)
        assert sum(rect.size for rect in c.writes) == 128 * 128
        assert all(side % 32 == 0 for rect in c.writes for side in rect)
        assert len(set(c.writes)) == len(c.writes)


def test_tasks_cover_the_product_once():
    """Every (row, column, step) is multiplied exactly once, with beta applied in the first step alone."""
    rng = np.random.default_rng(32)
    a, b = operands(rng, 70, 60, 50, "float64", "N", "N")
    stores = [Hidden(x, chunks=(8, 8)) for x in (a, b, np.zeros((70, 60)))]
    driver = MatmulDriver(*stores, np.dtype("float64"), beta=0.5)
    from pycauset.devices.rates import Rates
    from pycauset.drivers.matmul_plan import MatmulLimits
    from tests.drivers.fakes import PROFILE

    device = NumpyDevice()
    plan = driver.plan(device, MatmulLimits(60 * 4096), Rates(PROFILE, "cpu", "float64"))
    covered = np.zeros((70, 60, 50), int)
    seen = set()
    for task in driver.tasks(plan):
        x, y, z = task.reads
        assert task.writes == (z,)
        assert (x.c0, x.c1) == (y.r0, y.r1)
        covered[z.r0 : z.r1, z.c0 : z.c1, x.c0 : x.c1] += 1
        assert task.params[1] == (1.0 if z in seen else 0.5)
        seen.add(z)
    assert (covered == 1).all()
