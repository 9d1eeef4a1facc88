"""Triangular solves, products and inverses against higher precision: op × dtype × shape × stores × device × mode, with traps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pycauset.devices.rates import Rates
from pycauset.drivers.matmul_plan import MatmulLimits
from pycauset.drivers.streamer import AsyncStreamer
from pycauset.drivers.triangular import (
    TriangularGramDriver,
    TriangularInverseDriver,
    TriangularProductDriver,
    TriangularSolveDriver,
)
from pycauset.errors import NonFiniteError, SingularMatrixError
from pycauset.storage import ArrayStore, create_store, open_store
from pycauset.tiling import Rect
from tests.drivers.fakes import OP, PROFILE, Hidden, Pinned, fresh_governor, random_matrix, watchdog
from tests.drivers.triangles import DEVICES, F64, GENEROUS, higher, ratio, run, small_limit, solve_ratio, triangular

DTYPES = ("float32", "float64", "complex64", "complex128")


# ---- solve ----------------------------------------------------------------------------------------------------------


OPS = [
    (dtype, side, uplo, op)
    for dtype, side, uplo, op in itertools.product(DTYPES, "LR", "LU", "NTH")
    if op != "H" or dtype.startswith("complex")
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "side", "uplo", "op"), OPS)
def test_solve(device, dtype, side, uplo, op):
    rng = np.random.default_rng(40)
    alpha = 0.5 - 2j if np.dtype(dtype).kind == "c" else -0.75
    for n, m, unit in [(101, 67, False), (37, 64, True)]:
        stored, exact = triangular(rng, n, dtype, uplo, unit)
        b = random_matrix(rng, (n, m) if side == "L" else (m, n), dtype)
        chunks = (16, min(16, m)) if side == "L" else (min(16, m), 16)
        results = []
        for mode, in_place in [("async", False), ("sync", False), ("async", True)][2 * unit :]:
            x = b.copy() if in_place else np.full_like(b, np.nan)
            t, target, source = (Hidden(y, chunks=c) for y, c in zip((stored, x, b), ((16, 16), chunks, chunks), strict=True))
            options = {"side": side, "uplo": uplo, "op": op, "unit": unit, "alpha": alpha}
            driver = TriangularSolveDriver(t, target, b.dtype, origin=None if in_place else source, **options)
            run(driver, DEVICES[device](), limit=small_limit(n, m, b.itemsize), host=48 * 4096, mode=mode)
            assert solve_ratio(x, exact, b, side=side, op=op, alpha=alpha) < 30
            assert not source.writes
            results.append(x)
        assert unit or np.array_equal(*results[:2]), "asynchronous and synchronous bits differ"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("side", "LR")
def test_solve_for_one_vector(device, side):
    rng = np.random.default_rng(40)
    stored, exact = triangular(rng, 131, "float64", "L")
    b = random_matrix(rng, (131, 1) if side == "L" else (1, 131), "float64")
    x = np.full_like(b, np.nan)
    driver = TriangularSolveDriver(Hidden(stored, chunks=(16, 16)), Hidden(x), b.dtype, origin=Hidden(b), side=side, op="T")
    run(driver, DEVICES[device](), limit=12 * 4096)
    assert solve_ratio(x, exact, b, side=side, op="T", alpha=1.0) < 30


PLACES = {"hidden": Hidden, "ram": ArrayStore, "pinned": Pinned}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("place_t", "place_x", "place_b"), list(itertools.product(PLACES, repeat=3)))
def test_solve_wherever_operands_lie(device, place_t, place_x, place_b):
    rng = np.random.default_rng(41)
    stored, exact = triangular(rng, 90, "float64", "L")
    b = random_matrix(rng, (90, 50), "float64")
    before = b.copy()
    x = np.full_like(b, np.nan)
    driver = TriangularSolveDriver(PLACES[place_t](stored), PLACES[place_x](x), F64, origin=PLACES[place_b](b), alpha=2.0)
    run(driver, DEVICES[device](), limit=40_000)
    assert solve_ratio(x, exact, b, side="L", op="N", alpha=2.0) < 30
    assert np.array_equal(b, before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("uplo", "LU")
def test_solve_on_disk(device, uplo, tmp_path):
    """A store of one triangle, right-hand sides of another type in chunks of their own, the result in Zarr."""
    rng = np.random.default_rng(42)
    _, exact = triangular(rng, 150, "float64", uplo)
    b = rng.integers(-9, 9, (150, 70), dtype="int32")

    def on_disk(name, array, **options):
        store = create_store(tmp_path / name, array.shape, array.dtype, **options)
        store.write(Rect(0, array.shape[0], 0, array.shape[1]), array)
        store.commit()
        return open_store(tmp_path / name)

    t = on_disk("t", exact, chunks=(32, 32), structure="lower" if uplo == "L" else "upper")
    origin = on_disk("b", b, chunks=(19, 23))
    x = create_store(tmp_path / "x", b.shape, F64, chunks=(32, 32))
    driver = TriangularSolveDriver(t, x, F64, origin=origin, uplo=uplo)
    plan = driver.plan(DEVICES[device](), MatmulLimits(100_000, GENEROUS), Rates(PROFILE, device, F64))
    with fresh_governor().scope(owner="a test") as scope:
        options = {"host_slots": plan.host_slots, "host_slot_bytes": plan.host_slot_bytes}
        with watchdog(), AsyncStreamer(DEVICES[device](), driver.operands(plan), scope, **options) as streamer:
            streamer.run(driver.tasks(plan))
    x.commit()
    found = np.full(b.shape, np.nan)
    open_store(tmp_path / "x").read(Rect(0, 150, 0, 70), found)
    assert solve_ratio(found, exact, b.astype(float), side="L", op="N", alpha=1.0) < 30


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (0, 0), (1, 1)])
def test_solve_of_nothing_and_next_to_nothing(device, n, m):
    b = np.full((n, m), 6.0)
    driver = TriangularSolveDriver(Hidden(np.full((n, n), 3.0)), Hidden(b), F64)
    run(driver, DEVICES[device](), limit=1 << 20)
    assert np.array_equal(b, np.full((n, m), 2.0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("value", "error"), [(0.0, SingularMatrixError), (np.nan, NonFiniteError)])
def test_a_bad_diagonal_is_found_before_anything_is_overwritten(device, value, error):
    rng = np.random.default_rng(43)
    stored, _ = triangular(rng, 80, "float64", "L")
    stored[71, 71] = value
    b = random_matrix(rng, (80, 40), "float64")
    x = b.copy()
    t = Hidden(stored, chunks=(16, 16))
    driver = TriangularSolveDriver(t, Hidden(x, chunks=(16, 16)), F64)
    with pytest.raises(error) as caught:
        run(driver, DEVICES[device](), limit=24 * 4096)
    assert "71" in str(caught.value)
    assert np.array_equal(x, b)
    with pytest.raises(error):
        run(TriangularInverseDriver(t, Hidden(np.zeros((80, 80)), chunks=(16, 16)), F64), DEVICES[device](), limit=24 * 4096)


# ---- inverse, product, gram -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("uplo", "LU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse(device, dtype, uplo):
    rng = np.random.default_rng(44)
    for n, unit in [(1, False), (101, False), (64, True)]:
        stored, exact = triangular(rng, n, dtype, uplo, unit)
        results = []
        for mode in ("async", "sync"):
            w = np.full_like(exact, np.nan)
            driver = TriangularInverseDriver(
                Hidden(stored, chunks=(16, 16)), Hidden(w, chunks=(16, 16)), exact.dtype, uplo=uplo, unit=unit
            )
            plan, _ = run(driver, DEVICES[device](), limit=small_limit(n, 0, exact.itemsize), mode=mode)
            results.append(w)
        assert np.array_equal(*results, equal_nan=True)
        other = np.isnan(w)  # tiles of the other triangle are never written
        b = plan.tile[0]
        i, j = np.indices((n, n)) // b
        assert np.array_equal(other, i < j if uplo == "L" else i > j)
        w[other] = 0
        assert np.array_equal(w, np.tril(w) if uplo == "L" else np.triu(w))
        assert ratio(higher(exact) @ higher(w), np.eye(n), exact, w) < 30


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "side", "uplo", "op"), OPS)
def test_product(device, dtype, side, uplo, op):
    rng = np.random.default_rng(45)
    alpha = 0.5 - 2j if np.dtype(dtype).kind == "c" else -0.75
    for n, m, unit in [(101, 67, False), (37, 64, True)]:
        stored, exact = triangular(rng, n, dtype, uplo, unit)
        b = random_matrix(rng, (n, m) if side == "L" else (m, n), dtype)
        chunks = (16, min(16, m)) if side == "L" else (min(16, m), 16)
        results = []
        for mode in ("async", "sync")[unit:]:
            c = np.full_like(b, np.nan)
            stores = [Hidden(y, chunks=k) for y, k in zip((stored, b, c), ((16, 16), chunks, chunks), strict=True)]
            driver = TriangularProductDriver(*stores, b.dtype, side=side, uplo=uplo, op=op, unit=unit, alpha=alpha)
            run(driver, DEVICES[device](), limit=small_limit(n, 2 * m, b.itemsize), mode=mode)
            p, q = (OP[op](exact), b) if side == "L" else (b, OP[op](exact))
            assert ratio(c, alpha * (higher(p) @ higher(q)), exact, b, np.array([abs(alpha)])) < 30
            results.append(c)
        assert np.array_equal(results[0], results[-1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("uplo", "op"), list(itertools.product("LU", "NH")))
@pytest.mark.parametrize("dtype", DTYPES)
def test_gram(device, dtype, uplo, op):
    rng = np.random.default_rng(46)
    for n in (1, 64, 101):
        stored, exact = triangular(rng, n, dtype, uplo)
        g = np.full_like(exact, np.nan)
        driver = TriangularGramDriver(Hidden(stored, chunks=(16, 16)), Hidden(g, chunks=(16, 16)), exact.dtype, uplo=uplo, op=op)
        plan, _ = run(driver, DEVICES[device](), limit=small_limit(n, 0, exact.itemsize))
        p = higher(OP[op](exact))
        tile = np.indices((n, n)) // plan.tile[0]
        computed = tile[0] >= tile[1]
        assert np.array_equal(np.isnan(g), ~computed)
        g[~computed] = g.conj().T[~computed]
        assert np.array_equal(g, g.conj().T), "a Hermitian matrix to the last bit"
        assert ratio(g, p @ p.conj().T, exact, exact) < 30


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("place", PLACES)
def test_inverse_of_a_positive_definite_matrix(device, place):
    """L⁻ᴴ L⁻¹ by two drivers in a row is the inverse of L Lᴴ."""
    rng = np.random.default_rng(47)
    stored, exact = triangular(rng, 120, "complex128", "L")
    w, g = np.full_like(exact, np.nan), np.full_like(exact, np.nan)
    inverse = PLACES[place](w)
    dtype = exact.dtype
    run(TriangularInverseDriver(PLACES[place](stored), inverse, dtype), DEVICES[device](), limit=40 * 4096)
    run(TriangularGramDriver(inverse, PLACES[place](g), dtype, op="H"), DEVICES[device](), limit=40 * 4096)
    a = exact @ exact.conj().T
    g = np.tril(g) + np.tril(g, -1).conj().T
    assert np.abs(a @ g - np.eye(120)).max() < 30 * 120 * np.finfo("float64").eps * np.abs(a).max() * np.abs(g).max()
