"""The parts of the Arnoldi driver by themselves: orthonormal blocks, the order of Ritz values, restarts, products on devices."""

from __future__ import annotations

import ast
import inspect
import time
import tracemalloc
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycauset.devices.dense import KERNELS, NUMPY, Dense
from pycauset.devices.numpy import NumpyDevice
from pycauset.devices.sim import SimStore
from pycauset.drivers import arnoldi, block_product, orthogonal, ritz, spilled, streamer
from pycauset.drivers.arnoldi import ArnoldiDriver, plan_arnoldi
from pycauset.drivers.basis import ArrayBasis, Basis, DeviceBasis
from pycauset.drivers.block_product import BlockProductDriver
from pycauset.drivers.orthogonal import orthonormalise
from pycauset.drivers.ritz import kept_space, preference, ritz_pairs
from pycauset.errors import MemoryLimitError
from pycauset.linalg import singular
from pycauset.solver.products import StreamedProduct, drive
from pycauset.solver.run import Limits
from pycauset.tiling import Rect
from tests.drivers.fakes import FakeGpu, Hidden, Pinned, fresh_governor, random_matrix, watchdog

DTYPES = ("float32", "float64", "complex64", "complex128")
MB = 1 << 20


@pytest.mark.parametrize("module", [arnoldi, orthogonal, ritz, spilled, singular])
def test_what_alternates_with_passes_leaves_numpys_blas_alone(module: ModuleType) -> None:
    """Its threads would spin into the next pass."""
    nodes = list(ast.walk(ast.parse(inspect.getsource(module))))
    assert [node.lineno for node in nodes if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)] == []
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "np.linalg"}
    assert used <= {"norm"}, "sums that NumPy does itself"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_dependent_columns_are_refilled(dtype: str, rank: int) -> None:
    rng = np.random.default_rng()
    n, j, p = 60, 7, 3
    v, _ = np.linalg.qr(random_matrix(rng, (n, j), dtype))
    inside = v @ random_matrix(rng, (j, p), dtype)
    mixed = np.linalg.qr(random_matrix(rng, (p, p), dtype))[0][:rank]  # no nearly dependent rows
    w = inside + random_matrix(rng, (n, rank), dtype) @ mixed
    q, c, r, found = orthonormalise(ArrayBasis(v), j, w, rng)
    eps = float(np.finfo(dtype).eps)
    assert found == rank
    assert q.shape == (n, p)
    np.testing.assert_allclose(v @ c + q @ r, w, atol=200 * eps)
    both = np.hstack([v, q])
    np.testing.assert_allclose(both.conj().T @ both, np.eye(j + p), atol=20 * eps)
    assert np.count_nonzero(np.abs(r).max(axis=1) > 0) == rank


@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 6), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_blocks_of_any_width(n: int, j: int, p: int, seed: int) -> None:
    """Also where fewer directions are left than the block has columns."""
    rng = np.random.default_rng(seed)
    j = min(j, n)
    v = np.linalg.qr(rng.standard_normal((n, n)))[0][:, :j]
    w = rng.standard_normal((n, p))
    q, c, r, _ = orthonormalise(ArrayBasis(v), j, w, rng)
    assert q.shape == (n, min(p, n - j))
    np.testing.assert_allclose(v @ c + q @ r, w, atol=1e-12)
    np.testing.assert_allclose(q.T @ q, np.eye(q.shape[1]), atol=1e-13)
    np.testing.assert_allclose(v.T @ q, 0, atol=1e-13)


def test_conjugate_pairs_stand_side_by_side() -> None:
    values = np.array([1 + 2j, 3.0, 1 - 2j, -4.0, 2 + 0.5j, 2 - 0.5j])
    ordered = values[preference(values, "LM", real=True)]
    assert ordered.tolist() == [-4.0, 3.0, 1 + 2j, 1 - 2j, 2 + 0.5j, 2 - 0.5j]
    assert values[preference(values, "LI", real=True)][:2].tolist() == [1 + 2j, 1 - 2j]
    assert values[preference(values, "LI")][0] == 1 + 2j


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("keep", [1, 4, 7])
def test_what_a_restart_keeps_is_invariant(dtype: str, keep: int) -> None:
    rng = np.random.default_rng()
    h = random_matrix(rng, (12, 12), dtype)
    ritz = ritz_pairs(h, np.zeros((1, 12), dtype), "general", "LM")
    z = kept_space(h, ritz, keep, "general")
    assert z.dtype == h.dtype
    assert keep <= z.shape[1] <= keep + 1
    np.testing.assert_allclose(z.conj().T @ z, np.eye(z.shape[1]), atol=1e-13)
    np.testing.assert_allclose(h @ z, z @ (z.conj().T @ h @ z), atol=1e-12)
    kept = np.linalg.eigvals(z.conj().T @ h @ z)
    for value in ritz.values[:keep]:
        assert np.abs(kept - value).min() < 1e-10


@pytest.mark.parametrize("kind", ["hermitian", "general", "skew"])
@pytest.mark.parametrize("block", [1, 3])
def test_the_decomposition_holds_after_restarts(kind: str, block: int) -> None:
    """``A V = V H + Q B`` with orthonormal columns, whatever happened before."""
    rng = np.random.default_rng()
    n = 90
    x = rng.standard_normal((n, n))
    a = {"hermitian": x + x.T, "skew": x - x.T, "general": x}[kind]
    plan = plan_arnoldi(n, 4, a.dtype, passes_cost=False, block=block, ncv=20)
    basis = np.full((plan.ncv + plan.block, n), np.nan).T
    driver = ArnoldiDriver(plan, ArrayBasis(basis), kind, "LM", 1e-30, 3)
    ritz = drive(driver.run(), lambda v: a @ v)
    assert driver.restarts == 3
    assert not driver.converged
    j = driver._size
    v, h = basis[:, :j], driver._h
    q, b = basis[:, j : j + block], h[j : j + block, :j]
    scale = np.linalg.norm(a, 2)
    np.testing.assert_allclose(a @ v, v @ h[:j, :j] + q @ b, atol=1e-12 * scale)
    np.testing.assert_allclose(np.hstack([v, q]).T @ np.hstack([v, q]), np.eye(j + block), atol=1e-12)
    y = driver.vectors(ritz, 2)
    np.testing.assert_allclose(np.linalg.norm(a @ y - y * ritz.values[:2], axis=0), ritz.residuals[:2], atol=1e-10 * scale)
    assert driver.norm <= scale * (1 + 1e-12)


@pytest.mark.parametrize("basis", [ArrayBasis, DeviceBasis])
@pytest.mark.parametrize("kind", ["hermitian", "skew", "general"])
def test_small_problems_wake_one_blas(basis: type[Basis], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's beside a GPU, where the caller's own code may have woken it; SciPy's, which kernels use, on the CPU."""
    called: list[str] = []

    def noted(library: str, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: (called.append(f"{library}.{name}"), call(*args, **options))[1]

    for name, dense in (("KERNELS", KERNELS), ("NUMPY", NUMPY)):
        noting = Dense(*(noted(name, field, call) for field, call in zip(dense._fields, dense, strict=True)))
        monkeypatch.setattr(ArrayBasis if dense is KERNELS else DeviceBasis, "dense", noting)
    import scipy.linalg

    assert not {"product", "adjoint_product"} & ({*vars(arnoldi)} | {*vars(ritz)})
    for name in ("eigh", "eig", "svd", "qr", "svdvals", "schur"):
        monkeypatch.setattr(scipy.linalg, name, noted("scipy", name, getattr(scipy.linalg, name)))
    values = np.linspace(1, 2, 60) ** 9
    turn = np.linalg.qr(np.random.default_rng().standard_normal((60, 60)))[0]
    a = turn @ np.diag(values) @ turn.T
    if kind != "hermitian":
        a = np.triu(turn, 1) - np.triu(turn, 1).T if kind == "skew" else np.diag(values) + np.triu(turn, 1)
    plan = plan_arnoldi(60, 2, np.dtype(float), passes_cost=False, block=2, ncv=12)
    columns = np.zeros((14, 60)).T
    driver = ArnoldiDriver(plan, ArrayBasis(columns) if basis is ArrayBasis else DeviceBasis(columns, np), kind, "LM", 1e-10, 60)
    found = drive(driver.run(), lambda x: a @ x)
    assert driver.restarts
    np.testing.assert_allclose(np.abs(found.values[:2]), np.sort(np.abs(np.linalg.eigvals(a)))[::-1][:2], rtol=1e-9)
    libraries = {name.split(".")[0] for name in called if name != "scipy.schur"}  # which NumPy has not
    assert libraries == ({"NUMPY"} if basis is DeviceBasis else {"KERNELS", "scipy"})


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_libraries_solve_small_problems(dtype: str) -> None:
    rng = np.random.default_rng()
    a = random_matrix(rng, (9, 9), dtype)
    h = a + a.conj().T
    tolerance = 200 * np.finfo(dtype).eps
    for dense in (KERNELS, NUMPY):
        values, vectors = dense.eigh(h)
        np.testing.assert_allclose(h @ vectors, vectors * values, atol=tolerance * 10)
        values, vectors = dense.eig(a)
        np.testing.assert_allclose(a @ vectors, vectors * values, atol=tolerance * 10)
        q, r = dense.qr(a[:, :4])
        assert q.shape == (9, 9)
        np.testing.assert_allclose(q @ r, a[:, :4], atol=tolerance)
        u, s, vh = dense.svd(a)
        np.testing.assert_allclose((u * s) @ vh, a, atol=tolerance * 10)
        np.testing.assert_allclose(dense.product(a, h), a.astype(complex) @ h, atol=tolerance * 100)


def test_start_vectors_come_first() -> None:
    values = np.linspace(0, 1, 80)
    plan = plan_arnoldi(80, 1, np.dtype(float), passes_cost=False, block=2, ncv=10)
    start = np.eye(80)[:, [79]]
    driver = ArnoldiDriver(plan, ArrayBasis(np.zeros((12, 80)).T), "hermitian", "LA", 1e-12, 9, start=start)
    asked: list[np.ndarray] = []

    def product(x: np.ndarray) -> np.ndarray:
        asked.append(x.copy())
        return values[:, None] * x

    ritz = drive(driver.run(), product)
    assert np.linalg.norm(asked[0][79]) == pytest.approx(1)  # in the span of the first block
    assert ritz.values[0] == pytest.approx(1.0)


# ---- products --------------------------------------------------------------------------------------------------------


def streamed(device, store, dtype, width, *, op="N", mirror=None, gram=False, room=4 * MB):
    governor = fresh_governor()
    limits = Limits(room, 0, room)
    scope = governor.scope(host=2 * room, device=room, owner="a test")
    return scope, lambda: StreamedProduct(
        device, store, np.dtype(dtype), width, op=op, mirror=mirror, gram=gram, limits=limits, scope=scope
    )


class Counted(Hidden):
    """Counts the elements that are read."""

    count = 0

    def _read(self, rect: Rect, out: np.ndarray) -> None:
        self.count += rect.size
        super()._read(rect, out)


@pytest.mark.parametrize("device", [NumpyDevice, FakeGpu])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["N", "T", "H", "C"])
@pytest.mark.parametrize("gram", [False, True])
def test_products_with_blocks(device, dtype: str, op: str, gram: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_product, "_SMALLEST", 1)
    rng = np.random.default_rng()
    a = random_matrix(rng, (101, 67), dtype)
    taken = {"N": a, "T": a.T, "H": a.conj().T, "C": a.conj()}[op]
    store = Hidden(a, (16, 16))
    scope, make = streamed(device(), store, dtype, 5, op=op, gram=gram)
    with watchdog(), scope, make() as product:
        for columns in (5, 2, 5):
            x = random_matrix(rng, (taken.shape[1], columns), dtype)
            y = product(x)
            exact = taken.conj().T @ (taken @ x) if gram else taken @ x
            np.testing.assert_allclose(y, exact, atol=20 * np.finfo(dtype).eps * np.abs(exact).max())
            if gram:
                forward = taken @ x
                np.testing.assert_allclose(product.forward, forward, atol=20 * np.finfo(dtype).eps * np.abs(forward).max())
        assert product.passes == 3
        assert product.columns == 12
    assert not scope.leaks


@pytest.mark.parametrize("device", [NumpyDevice, FakeGpu])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("mirror", ["symmetric", "hermitian", "skew", "skew-hermitian"])
def test_one_triangle_serves_twice(device, dtype: str, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_product, "_SMALLEST", 1)
    rng = np.random.default_rng()
    n, t = 97, 16
    x = random_matrix(rng, (n, n), dtype)
    other = x.conj().T if "hermitian" in mirror else x.T
    a = x - other if "skew" in mirror else x + other
    spoiled = a.copy()
    for i in range(0, n, t):
        spoiled[i : i + t, i + t :] = np.nan  # tiles above the diagonal
    store = Counted(spoiled, (t, t))
    room = 20 * t * t * a.itemsize + 40 * n * 4 * a.itemsize + (0 if device is NumpyDevice else MB)
    scope, make = streamed(device(), store, dtype, 4, mirror=mirror, room=room)
    with watchdog(), scope, make() as product:
        b = random_matrix(rng, (n, 4), dtype)
        np.testing.assert_allclose(product(b), a @ b, atol=1e-11)
        once = store.count
        assert once == sum(min(t, n - i) * min(t, n - j) for i in range(0, n, t) for j in range(0, i + 1, t))
        np.testing.assert_allclose(product(b), a @ b, atol=1e-11)
        assert store.count - once <= once
    assert not scope.leaks


def test_tiles_that_memory_holds_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_product, "_SMALLEST", 1)
    rng = np.random.default_rng()
    a = rng.standard_normal((128, 128))
    store = Counted(a, (32, 32))
    room = 8 * 32 * 32 * 8 + 2 * 128 * 4 * 8  # half of the tiles, beside the vectors
    scope, make = streamed(NumpyDevice(), store, "float64", 4, room=room)
    with watchdog(), scope, make() as product:
        x = rng.standard_normal((128, 4))
        for _ in range(3):
            np.testing.assert_allclose(product(x), a @ x, atol=1e-12)
    plan = product.plan  # type: ignore[attr-defined]
    assert plan.slots == 8
    assert plan.resident == 8 - 2 - 3  # beside the tiles that are on their way
    assert store.count == a.size + 2 * (16 - plan.resident) * 32 * 32  # all of it, and twice what was not there


def test_a_gram_product_reads_each_tile_once_when_a_panel_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_product, "_SMALLEST", 1)
    rng = np.random.default_rng()
    a = rng.standard_normal((256, 64))
    store = Counted(a, (16, 16))
    room = 12 * 16 * 16 * 8 + 3 * 256 * 4 * 8
    scope, make = streamed(NumpyDevice(), store, "float64", 4, gram=True, room=room)
    with watchdog(), scope, make() as product:
        assert product.plan.slots < 20
        x = rng.standard_normal((64, 4))
        np.testing.assert_allclose(product(x), a.T @ (a @ x), atol=1e-11)
    assert store.count == a.size


def test_triangular_stores_skip_zeros_and_pinned_arrays_upload_straight() -> None:
    rng = np.random.default_rng()
    a = np.tril(rng.standard_normal((90, 90)))
    pinned = Pinned(a)
    scope, make = streamed(FakeGpu(), pinned, "float64", 3)
    with watchdog(), scope, make() as product:
        x = rng.standard_normal((90, 3))
        np.testing.assert_allclose(product(x), a @ x, atol=1e-12)


@settings(max_examples=60)
@given(
    n=st.integers(1, 300),
    rows=st.sampled_from([1, 8, 32]),
    wide=st.sampled_from([1, 4, 16]),
    mirror=st.sampled_from([None, *block_product.MIRRORS]),
    op=st.sampled_from("NTH"),
    dtype=st.sampled_from(["float64", "complex128"]),
    room=st.integers(40_000, 20_000_000),
    seed=st.integers(0, 2**32),
)
def test_tiles_longer_than_high(
    n: int, rows: int, wide: int, mirror: str | None, op: str, dtype: str, room: int, seed: int
) -> None:
    """Of an array, as a GPU likes them: up to the diagonal they are cut off there, and meet pieces of the parts of Y."""
    rng = np.random.default_rng(seed)
    x = random_matrix(rng, (n, n), dtype)
    a = x
    if mirror is not None:
        op, other = "N", x.conj().T if "hermitian" in mirror else x.T
        a = x - other if "skew" in mirror else x + other
        i, j = np.indices((n, n))
        x = np.where(j < (i // rows + 1) * rows, a, np.nan)  # nothing right of the squares on the diagonal is read
    taken = {"N": a, "T": a.T, "H": a.conj().T}[op]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_product, "_ROWS_ON_GPU", rows)
        patch.setattr(block_product, "_ROW_BYTES_ON_GPU", rows * wide * a.itemsize)
        patch.setattr(block_product, "_SMALLEST", 1)
        scope, make = streamed(FakeGpu(), Pinned(x), dtype, 3, op=op, mirror=mirror, room=room)
        least = 8 * max(4096, rows * rows * wide * a.itemsize) + 8 * n * 4096  # a slot has 4096 bytes at least
        with watchdog(), scope:
            try:
                made = make()
            except MemoryLimitError:
                assert room < least
                return
            with made as product:
                covered = np.zeros((n, n), int)
                for rect in product.driver.first_unfit(product.plan):
                    covered[rect.slices] += 1
                assert covered[np.tri(n) > 0].min() == covered.max() == 1
                assert product.plan.disk_read == covered.sum() * a.itemsize
                for columns in (3, 1, 2):
                    b = random_matrix(rng, (n, columns), dtype)
                    exact = taken @ b
                    np.testing.assert_allclose(product(b), exact, atol=40 * np.finfo(dtype).eps * (np.abs(exact).max() + n))
        assert not scope.leaks


def test_rows_on_a_gpu_are_long() -> None:
    """With the figures that are used: 64 KiB in a row, which the link takes at its full rate beside kernels."""
    for dtype, width in (("float32", 16384), ("float64", 8192), ("complex128", 4096)):
        a, x = SimStore((100_000, 100_000), dtype, place="pinned"), SimStore((100_000, 16), dtype, place="ram")
        a.view = lambda rect: np.empty((0, 0))  # type: ignore[method-assign]
        plan = BlockProductDriver(a, x, x, np.dtype(dtype), mirror="symmetric").plan(FakeGpu(), 8 << 30, 8 << 30)
        assert plan.tile == (2048, width)


@pytest.mark.parametrize("mirror", [None, "symmetric"])
@pytest.mark.parametrize("room", [-(1 << 30), 0, 4000])
def test_a_refusal_does_not_look_at_every_tile(mirror: str | None, room: int) -> None:
    """There are as many as elements when there is no room; a list of them would take all memory."""
    n = 100_000
    a, x = SimStore((n, n), chunks=(1000, 1000)), SimStore((n, 16))
    driver = BlockProductDriver(a, x, x, np.dtype(float), mirror=mirror)
    tracemalloc.start()
    try:
        for device in (NumpyDevice(), FakeGpu()):
            with pytest.raises(MemoryLimitError, match="two of them beside"):
                driver.plan(device, room, room)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=100)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 20), st.integers(1, 6), st.booleans())
def test_tiles_are_counted_without_making_them(m: int, n: int, h: int, wide: int, mirrored: bool) -> None:
    n, w = m if mirrored else n, h * wide
    a = SimStore((m, n), chunks=(n, n))
    driver = BlockProductDriver(a, SimStore((n, 2)), SimStore((m, 2)), np.dtype(float), mirror="symmetric" if mirrored else None)
    tiles = list(driver._tiles((h, w)))
    assert driver._count((h, w)) == (len(tiles), sum(tile.rect.size for tile in tiles))


def test_panels_that_serve_twice_fit() -> None:
    """A column of tiles as wide as the link likes may be more than memory holds: then it is narrower."""
    a, x = SimStore((65536, 131072), place="pinned"), SimStore((131072, 16), place="ram")
    y = SimStore((65536, 16), place="ram")
    a.view = lambda rect: np.empty((0, 0))  # type: ignore[method-assign]
    driver = BlockProductDriver(a, y, x, np.dtype(float), op="H", z=y)
    assert driver.plan(FakeGpu(), 8 << 30, 8 << 30).tile == (2048, 8192)
    plan = driver.plan(FakeGpu(), 4 << 30, 8 << 30)
    assert plan.tile == (2048, 4096)
    assert plan.slots >= 65536 // 2048
    wide = SimStore((65536, 131072), place="pinned")
    wide.view = a.view  # type: ignore[method-assign]
    plan = BlockProductDriver(wide, x, y, np.dtype(float), z=x).plan(FakeGpu(), 1 << 30, 8 << 30)
    assert plan.tile[1] == 8192
    assert plan.slots >= 131072 // 8192


def test_planning_lets_readers_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the GPU has next to nothing to do and waits for what a thread reads."""
    naps: list[float] = []
    monkeypatch.setattr(streamer, "sleep", lambda seconds: (naps.append(seconds), time.sleep(seconds)))
    a = np.random.default_rng().standard_normal((96, 96))
    scope, make = streamed(FakeGpu(), Hidden(a, (32, 32), pause=5e-3), "float64", 2)
    with watchdog(), scope, make() as product:
        np.testing.assert_allclose(product(a[:, :2]), a @ a[:, :2], atol=1e-12)
    assert naps


@pytest.mark.parametrize("chunks", [(64, 64), (50, 50), (90, 70), (16, 700), (700, 16)])
@pytest.mark.parametrize("mirror", [None, "symmetric"])
@pytest.mark.parametrize("whole", [False, True])
def test_small_chunks_have_a_host_slot_each(chunks: tuple[int, int], mirror: str | None, whole: bool) -> None:
    """A tile of many chunks needs as many slots on its way to the GPU."""
    a = np.random.default_rng().standard_normal((700, 700))
    a = a + a.T
    store = Hidden(a, chunks)
    store.whole_chunks = whole
    scope, make = streamed(FakeGpu(), store, "float64", 3, mirror=mirror, room=256 * MB)
    with watchdog(), scope, make() as product:
        np.testing.assert_allclose(product(a[:, :3]), a @ a[:, :3], atol=1e-10)


def test_chunks_of_whole_rows_are_read_up_to_the_diagonal() -> None:
    a = np.random.default_rng().standard_normal((300, 300))
    a = a + a.T
    store = Counted(np.where(np.tri(300, k=19) > 0, a, np.nan), (20, 300))
    for device in (NumpyDevice(), FakeGpu()):
        scope, make = streamed(device, store, "float64", 2, mirror="symmetric", room=MB if device.unified else 8 * MB)
        store.count = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(block_product, "_SMALLEST", 1)
            with watchdog(), scope, make() as product:
                assert product.plan.tile == (20, 300)
                np.testing.assert_allclose(product(a[:, :2]), a @ a[:, :2], atol=1e-10)
        assert store.count == sum(20 * stop for stop in range(20, 301, 20))


def test_too_little_memory_is_refused_with_numbers() -> None:
    store = Hidden(np.ones((64, 64)), (64, 64))
    store.whole_chunks = True
    driver = BlockProductDriver(store, Hidden(np.ones((64, 2))), Hidden(np.ones((64, 2))), np.dtype(float))
    with pytest.raises(MemoryLimitError, match=r"tiles of 64 x 64 float64 take 32\.8 kB"):
        driver.plan(NumpyDevice(), 40_000)
