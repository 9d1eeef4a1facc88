"""The stress run and what it is made of: generated operands, random probing, measured limits."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pycauset.stress as module
from pycauset import solver
from pycauset.errors import ConfigError, ShapeError, StoreExistsError, StoreNotFoundError
from pycauset.freivalds import RESIDUAL_LIMIT, freivalds
from pycauset.hardware import load_machine, use_probe
from pycauset.seeded import SeededStore
from pycauset.storage import ArrayStore, as_store, open_store
from pycauset.stress import StressResult, stress
from pycauset.tiling import Rect

MACHINE = load_machine(Path(__file__).parents[1] / "profiles" / "no_gpu.json")
DTYPES = ("float32", "float64", "complex64", "complex128")


@pytest.fixture(autouse=True)
def _described_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PYCAUSET_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(module, "_CALIBRATION_SECONDS", 0.01)
    with use_probe(MACHINE):
        yield


def whole(store: SeededStore, dtype: str | None = None) -> np.ndarray[Any, Any]:
    out = np.full(store.shape, np.nan, dtype or store.dtype)
    store.read(Rect(0, store.shape[0], 0, store.shape[1]), out)
    return out


# -- generated operands ------------------------------------------------------------------------------------------------


@given(data=st.data(), seed=st.integers(0, 2**70), dtype=st.sampled_from(DTYPES))
def test_elements_do_not_depend_on_how_they_are_cut(data: st.DataObject, seed: int, dtype: str) -> None:
    shape = data.draw(st.tuples(st.integers(1, 150), st.integers(1, 1200)))
    r0, c0 = data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1))
    r1, c1 = data.draw(st.integers(r0 + 1, shape[0])), data.draw(st.integers(c0 + 1, shape[1]))
    store = SeededStore(seed, shape, dtype)
    part = np.full((c1 - c0, r1 - r0), np.nan, dtype).T  # any strides
    store.read(Rect(r0, r1, c0, c1), part)
    np.testing.assert_array_equal(part, whole(SeededStore(seed, shape, dtype))[r0:r1, c0:c1])


@pytest.mark.parametrize(("dtype", "wider"), [("float32", "float64"), ("complex64", "complex128"), ("float64", "complex128")])
def test_a_wider_type_gets_the_same_numbers(dtype: str, wider: str) -> None:
    store = SeededStore(5, (70, 90), dtype)
    np.testing.assert_array_equal(whole(store, wider), whole(store).astype(wider))


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_look_independent_and_uniform(dtype: str) -> None:
    n = 300
    a, b = whole(SeededStore(11, (n, n), dtype), "complex128"), whole(SeededStore(12, (n, n), dtype), "complex128")
    parts = [a.real, b.real] + ([a.imag, b.imag] if dtype.startswith("c") else [])
    for part in parts:
        assert part.min() >= -0.5
        assert part.max() < 0.5
        assert abs(part.mean()) < 5 / math.sqrt(12) / n
        assert abs(part.var() * 12 - 1) < 5 / n
        # Rows, columns and neighbours are uncorrelated: otherwise the largest singular value stands out.
        assert np.linalg.norm(part, 2) < 1.05 * 2 * math.sqrt(n / 12)
    for i, left in enumerate(parts):
        for right in parts[:i]:
            assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 5 / n
    assert np.unique(whole(SeededStore(11, (n, n), dtype))).size > 0.95 * n * n


def test_far_elements_of_huge_matrices() -> None:
    store = SeededStore(1, (2**32 - 1, 2**32 - 1), "float64")
    out = np.full((3, 3), np.nan)
    store.read(Rect(2**32 - 4, 2**32 - 1, 2**32 - 4, 2**32 - 1), out)
    assert np.unique(out).size == 9


def test_identity_tells_equal_matrices_from_others() -> None:
    base = SeededStore(3, (8, 8), "float64")
    assert base.identity == SeededStore(3, (8, 8), "float64").identity
    assert base.generation == 0
    others = [SeededStore(4, (8, 8), "float64"), SeededStore(3, (8, 9), "float64"), SeededStore(3, (8, 8), "float32")]
    assert all(base.identity != other.identity for other in others)


def test_what_cannot_be_generated_is_refused() -> None:
    with pytest.raises(ConfigError, match="-1"):
        SeededStore(-1, (3, 3), "float64")
    with pytest.raises(ConfigError, match="int32"):
        SeededStore(0, (3, 3), "int32")
    with pytest.raises(ShapeError, match="4294967296"):
        SeededStore(0, (3, 2**32), "float64")


# -- the check ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (37, 53, 41), (300, 20, 500), (5, 900, 3)])
def test_a_right_product_passes(dtype: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    a, b = SeededStore(1, (m, k), dtype), SeededStore(2, (k, n), dtype)
    residual = freivalds(as_store(whole(a) @ whole(b)), a, b, memory=100_000)
    assert 0 <= residual < 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_wrong_products_are_caught(dtype: str) -> None:
    rng = np.random.default_rng(2024)
    n = 300
    a, b = SeededStore(1, (n, n), dtype), SeededStore(2, (n, n), dtype)
    right = whole(a) @ whole(b)
    i, j = rng.integers(n, size=2)

    def residual(change: Any) -> float:
        wrong = right.copy()
        change(wrong)
        return freivalds(as_store(wrong), a, b, seed=int(rng.integers(1 << 30)))

    def one_element(c: Any) -> None:
        c[i, j] *= 1.1

    def stale_tile(c: Any) -> None:
        c[:64, 64:128] = c[:64, :64]

    def lost_panel(c: Any) -> None:
        c[:50] -= (whole(a)[:50, :10] @ whole(b)[:10]).astype(dtype)

    def transposed(c: Any) -> None:
        c[...] = c.T.copy()

    def not_a_number(c: Any) -> None:
        c[i, j] = np.nan

    for change in (one_element, stale_tile, lost_panel, transposed, not_a_number):
        assert residual(change) > RESIDUAL_LIMIT, change.__name__


def test_arithmetic_of_too_little_precision_is_caught() -> None:
    n = 400
    a, b = SeededStore(1, (n, n), "float64"), SeededStore(2, (n, n), "float64")
    product = whole(a).astype("float32") @ whole(b).astype("float32")
    assert freivalds(as_store(product.astype("float64")), a, b) > 1e3 * RESIDUAL_LIMIT


def test_the_check_refuses_shapes_that_do_not_fit() -> None:
    a, b = SeededStore(1, (4, 5), "float64"), SeededStore(2, (5, 6), "float64")
    with pytest.raises(ShapeError, match=r"\(4, 5\)"):
        freivalds(as_store(np.zeros((5, 6))), a, b)
    with pytest.raises(ShapeError, match=r"\(5, 6\)"):
        freivalds(as_store(np.zeros((4, 6))), b, a)


def test_the_check_reports_bytes() -> None:
    a = SeededStore(1, (200, 200), "float64")
    seen: list[tuple[float, float]] = []
    c = ArrayStore(whole(a) @ whole(a))
    freivalds(c, a, a, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3 * a.nbytes, 3 * a.nbytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# -- the run -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_small_run(dtype: str, tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []
    result = stress("2MB", "128MB", dtype=dtype, seed=7, progress=lambda done, total: seen.append((done, total)))
    n = math.isqrt(2_000_000 // np.dtype(dtype).itemsize)
    assert (result.n, result.dtype, result.size) == (n, dtype, n * n * np.dtype(dtype).itemsize)
    assert result.correct
    assert result.within_limits
    assert 0 <= result.residual < 2
    assert result.output is None
    assert result.rate == pytest.approx((8 if dtype.startswith("c") else 2) * n**3 / result.seconds)
    assert seen
    assert not list(tmp_path.rglob("*.zarr"))


def test_a_streamed_run_counts_what_it_moves(tmp_path: Path) -> None:
    result = stress("8MB", "16MB", progress=False)
    assert result.route == "streamed NumPy"
    assert result.correct
    assert result.moved == result.read + result.written
    assert result.written == result.size
    assert result.read >= 2 * result.size


def test_the_product_is_kept_where_it_was_wished(tmp_path: Path) -> None:
    result = stress("500kB", "128MB", output=tmp_path, keep=True, seed=3, progress=False)
    assert result.output == tmp_path / "product.zarr"
    product = np.full((result.n, result.n), np.nan)
    open_store(result.output).read(Rect(0, result.n, 0, result.n), product)
    a, b = (whole(SeededStore(seed, product.shape, "float64")) for seed in (6, 7))
    np.testing.assert_allclose(product, a @ b, atol=1e-12)
    with pytest.raises(StoreExistsError, match=r"product\.zarr"):
        stress("500kB", "128MB", output=tmp_path, progress=False)
    assert result.output.exists(), "what somebody else made is not removed"


def test_a_corrupted_product_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = solver.multiply

    def wrong(*args: Any, **kwargs: Any) -> Any:
        store = right(*args, **kwargs)
        value = np.empty((1, 1))
        place = Rect(17, 18, 400, 401)
        store.begin_write()
        store.read(place, value)
        store.write(place, value + 1e-6)
        store.commit()
        return store

    monkeypatch.setattr(solver, "multiply", wrong)
    result = stress("2MB", "128MB", progress=False)
    assert not result.correct
    assert not result.passed
    assert "FAILED" in dict(result.rows())["check"]


def test_a_broken_memory_limit_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    right = solver.multiply
    held: list[Any] = []

    def greedy(*args: Any, **kwargs: Any) -> Any:
        held.append(np.ones(200_000_000 // 8))
        return right(*args, **kwargs)

    monkeypatch.setattr(solver, "multiply", greedy)
    result = stress("2MB", "128MB", progress=False)
    assert result.peak > result.limit
    assert result.correct
    assert not result.within_limits
    assert not result.passed
    assert "FAILED" in dict(result.rows())["peak memory"]


def test_nothing_stays_after_an_interruption(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    for name in ("multiply", "last_statistics"):  # before and after the product is committed
        with monkeypatch.context() as patch:
            patch.setattr(solver, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                stress("500kB", "128MB", output=tmp_path, progress=False)
        assert not [p for p in tmp_path.rglob("*") if "product" in p.name]
    with monkeypatch.context() as patch:
        patch.setattr(module, "freivalds", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stress("500kB", "128MB", output=tmp_path, progress=False)
    assert not [p for p in tmp_path.rglob("*") if "product" in p.name]


def test_default_limit_is_a_quarter_of_the_data() -> None:
    limits: dict[str, int] = {}

    def stop(*args: Any, memory: int, **kwargs: Any) -> Any:
        limits["memory"] = memory
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "plan", stop)
        for size, expected in (("8GB", 2_000_000_000), ("10MB", 256_000_000)):
            with pytest.raises(KeyboardInterrupt):
                stress(size)
            assert limits["memory"] == expected


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"op": "lu"}, "cholesky"),
        ({"op": "cholesky", "keep": True}, "output"),
        ({"size": 7}, "7"),
        ({"size": "a lot"}, "a lot"),
        ({"seed": -3}, "-3"),
        ({"keep": True}, "output"),
        ({"dtype": "int64"}, "int64"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        stress(**{"size": "1MB", "memory": "64MB", "progress": False, **arguments})


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="nowhere"):
        stress("1MB", "64MB", output=tmp_path / "nowhere", progress=False)


def test_the_table_of_a_gpu_run() -> None:
    result = StressResult(
        n=1000, dtype="float64", seed=0, size=8_000_000, route="streamed CuPy", seconds=2.0, rate=1e9, in_ram_rate=2e9,
        calibration_side=512, link="PCIe", moved=30_000_000, bound=24_000_000, read=16_000_000, written=8_000_000, peak=5,
        limit=10, gpu_peak=11, gpu_limit=10, residual=0.1, vectors=16, check_seconds=0.1, output=None,
    )  # fmt: skip
    rows = dict(result.rows())
    assert not result.within_limits
    assert "FAILED" in rows["peak GPU memory"]
    assert rows["fraction of it"] == "0.500"
    assert "1.25 × the bound" in rows["PCIe bytes"]
    assert dataclasses.replace(result, gpu_limit=11).passed
    assert dataclasses.replace(result, gpu_limit=None).passed
