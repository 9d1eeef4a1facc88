"""A real GPU's kernels against the oracle that every device answers to; outcomes, workspace, streams and bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pycauset import devices
from pycauset.devices.cupy import TileView
from pycauset.errors import NonFiniteError, NotPositiveDefiniteError
from pycauset.governor import governor
from tests.devices import kernel_cases as cases

pytestmark = pytest.mark.gpu
ORDERS = (1, 31, 32, 33, 127, 129, 300, 517)


@pytest.fixture(scope="module")
def gpu():
    device = devices.gpu()
    if device is None:
        pytest.skip("no GPU")
    return device


class Bench:
    """Runs kernels on copies of host tiles in device memory."""

    def __init__(self, gpu, stream="compute"):
        self.gpu, self.lane = gpu, gpu.plain_lane(stream)

    def upload(self, base):
        address = self.gpu.runtime.malloc(max(base.nbytes, 1))
        self.gpu.runtime.memcpy(address, base.ctypes.data, base.nbytes, 1)
        self.gpu.runtime.deviceSynchronize()  # pageable copies may return early, and our streams wait for nobody
        return address

    @staticmethod
    def view(tile, address):
        ld = tile.base.shape[1]
        start = address + (tile.row * ld + tile.col) * tile.base.itemsize
        return TileView(start, *tile.shape, ld, tile.base.dtype, tile.base.dtype.name)

    def __call__(self, name, reads, writes, params):
        bases = {id(t.base): t.base for t in (*reads, *writes)}
        places = {key: self.upload(base) for key, base in bases.items()}
        try:
            views = [[self.view(t, places[id(t.base)]) for t in tiles] for tiles in (reads, writes)]
            check = self.gpu.kernels[name](*views, params, self.lane)
            self.gpu.synchronize()
            if check is not None:
                check()
            for key, base in bases.items():
                self.gpu.runtime.memcpy(base.ctypes.data, places[key], base.nbytes, 2)
        finally:
            for address in places.values():
                self.gpu.runtime.free(address)


@pytest.fixture(params=["compute", "panel"])
def run(gpu, request):
    return Bench(gpu, request.param)


@pytest.fixture
def rng():
    return np.random.default_rng()


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("pad", [0, 5])
def test_potrf(run, rng, dtype, lower, pad):
    for n in (*ORDERS, 1031):
        cases.potrf_factors(run, rng, n, dtype, lower, pad)


@pytest.mark.parametrize("what", ["negative", "zero", "nan", "inf", "row nan", "row inf"])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("n", "pivot"), [(9, 1), (300, 170), (700, 640), (1200, 1199)])
def test_potrf_refuses(gpu, rng, what, lower, dtype, n, pivot):
    cases.potrf_refuses(Bench(gpu), rng, n, dtype, lower, pivot, what)


@pytest.mark.parametrize("what", ["negative", "zero", "nan", "inf"])
def test_potrf_refuses_the_first_pivot(run, rng, what):
    cases.potrf_refuses(run, rng, 5, "float64", True, 0, what)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("flags", cases.FLAGS, ids=str)
@pytest.mark.parametrize("kernel", ["trsm", "trmm"])
def test_triangular_products_and_solves(gpu, rng, kernel, flags, dtype):
    case = cases.trsm_solves if kernel == "trsm" else cases.trmm_multiplies
    bench = Bench(gpu)
    for (m, n), (alpha, pad) in zip(
        [(1, 1), (31, 40), (33, 1), (129, 64), (300, 217), (64, 517)],
        itertools.cycle([(1.0, 0), (-1.0, 3), (2 - 1j, 5)]),
        strict=False,
    ):
        case(bench, rng, m, n, dtype, flags, alpha, pad)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("flags", cases.FLAGS, ids=str)
def test_solves_with_large_triangles_are_products(gpu, rng, flags, dtype):
    """A key says that the triangle is the same as before; each case here has one of its own."""
    bench = Bench(gpu)
    for key, (order, other) in enumerate([(513, 65), (1100, 33)]):
        m, n = (order, other) if flags[0] == "L" else (other, order)
        cases.trsm_solves(bench, rng, m, n, dtype, flags, 1.0, 3 * key, key)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("uplo", ["L", "U"])
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("pad", [0, 5])
def test_trtri(run, rng, dtype, uplo, unit, pad):
    for n in (*ORDERS, 128, 256, 1000):
        cases.trtri_inverts(run, rng, n, dtype, uplo, unit, pad)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("uplo", ["L", "U"])
@pytest.mark.parametrize("n", [2, 30, 700])
def test_trtri_refuses_zeros(gpu, rng, dtype, uplo, n):
    cases.trtri_refuses_zeros(Bench(gpu), rng, n, dtype, uplo)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("what", [0.0, -0.0, np.nan, np.inf, -np.inf])
def test_check_diagonal(run, rng, dtype, what):
    for n in (2, 30, 700):
        cases.diagonal_is_checked(run, rng, n, dtype, what)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("op", ["N", "T", "H", "C"])
@pytest.mark.parametrize("part", ["full", "lower", "upper"])
def test_copy(gpu, rng, dtype, op, part):
    for (m, n), pad, alpha in itertools.product([(1, 1), (33, 70), (300, 31), (64, 64)], (0, 5), (0.0, 1.0, -1.0, 2 - 1j)):
        cases.copies(Bench(gpu), rng, m, n, dtype, op, part, alpha, pad)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("value", [0.0, 1.0, 2 - 1j])
def test_fill_identity(run, rng, dtype, value):
    for (m, n), pad in itertools.product([(1, 1), (33, 70), (300, 31), (64, 64)], (0, 5)):
        cases.fills_identity(run, rng, m, n, dtype, value, pad)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("op", ["N", "T", "H"])
def test_gemm_of_a_part(run, rng, dtype, op):
    for (m, n, k), pad, beta in itertools.product([(1, 1, 1), (70, 16, 33), (33, 5, 300)], (0, 5), (0.0, 1.0)):
        cases.gemm_multiplies_parts(run, rng, m, n, k, dtype, op, beta, pad)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("op", ["T", "H"])
@pytest.mark.parametrize("uplo", ["L", "U"])
def test_rank_k(run, rng, dtype, op, uplo):
    for (n, k), pad, beta in itertools.product([(1, 1), (33, 70), (300, 217)], (0, 5), (0.0, 1.0, -2.0)):
        cases.rank_k_updates(run, rng, n, k, dtype, op, uplo, beta, pad)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("hermitian", [False, True])
def test_rank_k_is_mirrored_at_the_end(run, rng, dtype, hermitian):
    for n, pad in itertools.product((1, 33, 300), (0, 5)):
        a = cases.tile(rng, cases.random(rng, (n, 70), dtype), pad)
        c = cases.tile(rng, np.full((n, n), np.nan, dtype), pad)
        cases.checked(run, "rank_k", [a], [c], (1.0, 0.0, "N", hermitian, True))
        other = c.array.conj().T if hermitian else c.array.T
        assert np.array_equal(c.array, other)
        exact = cases.wide(a.array) @ (cases.wide(a.array).conj().T if hermitian else cases.wide(a.array).T)
        assert cases.ratio(c.array - exact, cases.size(exact), n, dtype) < 30


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_scale(run, rng, dtype):
    for pad, beta in itertools.product((0, 5), (0.0, 1.0, -0.5, 2 - 1j)):
        if np.dtype(dtype).kind != "c" and isinstance(beta, complex):
            continue
        before = cases.random(rng, (70, 33), dtype)
        c = cases.tile(rng, before if beta else np.full((70, 33), np.nan, dtype), pad)
        cases.checked(run, "scale", [c], [c], (beta,))
        assert np.allclose(c.array, before * beta, rtol=4 * float(np.finfo(dtype).eps), atol=0)


def test_an_outcome_is_known_when_the_job_is_complete_and_not_before(gpu, rng):
    """Calls return at once; each outcome is kept for whoever asks, however many were not asked in between."""
    bench = Bench(gpu)
    good = cases.tile(rng, np.eye(8), 0)
    bad = cases.tile(rng, np.diag([1.0, 2, np.nan, 4]), 0)
    places = [bench.upload(t.base) for t in (good, bad)]
    views = [bench.view(t, place) for t, place in zip((good, bad), places, strict=True)]
    try:
        checks = [gpu.kernels["check_diagonal"]([views[i % 2]], [], (i,), bench.lane) for i in range(3000)]
        gpu.synchronize()
        for i, check in reversed(list(enumerate(checks))):
            if i % 2:
                with pytest.raises(NonFiniteError, match=f"index {i + 2},"):
                    check()
            else:
                check()
    finally:
        for place in places:
            gpu.runtime.free(place)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_workspace_is_taken_before_the_run(gpu, rng, dtype):
    n = 900
    assert gpu.workspace_bytes("gemm", n, dtype) == gpu.workspace_bytes("trsm", 512, dtype) == 0
    assert gpu.workspace_bytes("trsm", n, dtype) >= 4 * n * 512 * np.dtype(dtype).itemsize
    needed = gpu.workspace_bytes("potrf", n, dtype)
    assert needed > 2 * n * np.dtype(dtype).itemsize // (2 if np.dtype(dtype).kind == "c" else 1)
    gpu.prepare("potrf", n, dtype)
    gpu.prepare("trtri", n, dtype)
    held = [(h.kind, h.nbytes) for h in governor().outstanding()]
    assert sum(nbytes for kind, nbytes in held if kind == "device") >= needed
    for stream in ("compute", "panel"):
        cases.potrf_factors(Bench(gpu, stream), rng, n, dtype, True)
        cases.trtri_inverts(Bench(gpu, stream), rng, n, dtype, "L", False)
    assert [(h.kind, h.nbytes) for h in governor().outstanding()] == held, "a task has taken memory"


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_bits_do_not_depend_on_the_stream_or_the_repetition(gpu, rng, dtype):
    n = 1000
    a = cases.positive_definite(rng, n, dtype)
    stored, _ = cases.triangle(rng, n, dtype, "L", False)
    seen = set()
    for stream, _ in itertools.product(("compute", "panel"), range(2)):
        bench = Bench(gpu, stream)
        factor, inverse = cases.tile(rng, a, 0), cases.tile(rng, stored, 0)
        bench("potrf", [factor], [factor], (0, True))
        bench("trtri", [inverse], [inverse], ("L", False, 0))
        bench("trsm", [factor, inverse], [inverse], ("R", "L", "H", False, 1.0))
        seen.add((factor.array.tobytes(), inverse.array.tobytes()))
    assert len(seen) == 1


def test_a_failed_tile_does_not_disturb_the_next(gpu, rng):
    bench = Bench(gpu)
    bad = np.eye(300)
    bad[200, 200] = -1
    for _ in range(3):
        with pytest.raises(NotPositiveDefiniteError):
            bench("potrf", [t := cases.tile(rng, bad, 0)], [t], (0, True))
        cases.potrf_factors(bench, rng, 300, "float64", True)
