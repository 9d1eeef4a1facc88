"""The elementwise driver against NumPy in extended precision: streamed from disk, and in place in RAM."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycauset.devices import cpu
from pycauset.devices.elementwise import taken
from pycauset.drivers.elementwise import MapDriver, ReduceDriver, Term, run
from pycauset.errors import MemoryLimitError, StoreError
from pycauset.governor import governor
from pycauset.storage import ArrayStore, FunctionStore, TileStore, create_store
from pycauset.tiling import Rect

DTYPES = ["float32", "float64", "complex64", "complex128"]
PLACES = ["ram", "disk", "function"]


def draw(shape: tuple[int, int], dtype: str, seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        a = a + 1j * rng.standard_normal(shape)
    if dtype == "bool":
        return a > 0
    return (a * 10 if np.dtype(dtype).kind == "i" else a).astype(dtype)


def place(
    a: np.ndarray[Any, Any], where: str, folder: Path, name: str = "a", chunks: tuple[int, int] | None = (32, 32)
) -> TileStore:
    if where == "ram":
        return ArrayStore(a)
    if where == "function":
        return FunctionStore(lambda i, j: a[i[0] : i[-1] + 1, j[0] : j[-1] + 1], a.shape, a.dtype, chunks)
    store = create_store(folder / f"{name}.zarr", a.shape, a.dtype, chunks=chunks)
    store.write(Rect(0, a.shape[0], 0, a.shape[1]), a)
    store.commit()
    return store


def whole(store: TileStore) -> np.ndarray[Any, Any]:
    out = np.empty(store.shape, store.dtype)
    store.read(Rect(0, store.shape[0], 0, store.shape[1]), out)
    return out


def poisoned(shape: tuple[int, int], dtype: Any, where: str, folder: Path) -> TileStore:
    if where == "ram":
        return ArrayStore(np.full(shape, np.nan).astype(dtype))
    return create_store(folder / "out.zarr", shape, dtype, chunks=(24, 40))


def go(driver: MapDriver | ReduceDriver, memory: int | None = None) -> None:
    with governor().scope(host=memory, owner="test") as scope:
        run(driver, scope)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("where_a", "where_b", "where_c"), [("ram", "ram", "ram"), ("disk", "ram", "disk"), ("function", "disk", "ram")]
)
@pytest.mark.parametrize(("op_a", "op_b"), [("N", "N"), ("T", "N"), ("N", "H"), ("C", "T")])
def test_axpby(tmp_path: Path, dtype: str, where_a: str, where_b: str, where_c: str, op_a: str, op_b: str) -> None:
    shape = (97, 61)
    a = draw(shape[::-1] if op_a in "TH" else shape, dtype, 1)
    b = draw(shape[::-1] if op_b in "TH" else shape, "float64", 2)
    out = poisoned(shape, np.result_type(dtype, "float64"), where_c, tmp_path)
    terms = [Term(place(a, where_a, tmp_path, "a"), op_a), Term(place(b, where_b, tmp_path, "b"), op_b)]
    go(MapDriver("axpby", terms, out, (2.0, -3.0)))
    out.commit()
    expected = 2 * taken(a, op_a).astype(out.dtype) - 3 * taken(b, op_b)
    np.testing.assert_allclose(whole(out), expected, rtol=1e-6 if dtype in ("float32", "complex64") else 1e-14, atol=1e-6)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("op", "NTHC")
def test_a_copy_is_exact_and_casts(tmp_path: Path, where: str, op: str) -> None:
    a = draw((67, 130), "complex128", 3)
    expected = taken(a, op)
    out = poisoned(expected.shape, np.complex64, "disk", tmp_path)
    go(MapDriver("unary", [Term(place(a, where, tmp_path), op)], out, ("copy",)))
    out.commit()
    np.testing.assert_array_equal(whole(out), expected.astype(np.complex64))


@pytest.mark.parametrize("structure", ["lower", "upper", "symmetric"])
def test_one_triangle_is_computed_for_an_output_that_stores_one(tmp_path: Path, structure: str) -> None:
    n = 101
    a = draw((n, n), "float64", 4)
    a = np.tril(a) if structure == "lower" else np.triu(a) if structure == "upper" else a + a.T
    out = create_store(tmp_path / "out.zarr", (n, n), "float64", chunks=(16, 16), structure=structure)
    driver = MapDriver("unary", [Term(ArrayStore(a))], out, ("copy",))
    assert len(list(driver.tasks((16, 16)))) == 28
    go(driver)
    out.commit()
    np.testing.assert_array_equal(whole(out), a)


@pytest.mark.parametrize("dtype", [*DTYPES, "bool", "int32"])
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("axis", [0, 1])
def test_sums(tmp_path: Path, dtype: str, where: str, axis: int) -> None:
    a = draw((131, 73), dtype, 5)
    driver = ReduceDriver("sums", place(a, where, tmp_path), (axis, False))
    go(driver)
    wide = a.astype(np.clongdouble) if a.dtype.kind == "c" else a.astype(np.longdouble)
    expected = wide.sum(axis=axis).astype(driver.partial.dtype)
    np.testing.assert_allclose(driver.partial.sum(axis=axis), expected, rtol=1e-14, atol=1e-14)


def test_sums_of_many_tiles_lose_nothing_between_tiles(tmp_path: Path) -> None:
    a = np.ones((1600, 7))
    a[:16] = a[-16:] = 0
    a[0], a[-1] = 1e17, -1e17
    driver = ReduceDriver("sums", place(a, "disk", tmp_path, chunks=(16, 7)), (0, False))
    driver.partial = np.zeros(driver.partial_shape((16, 7))[0])
    kernel = cpu().kernels["sums"]
    for task in driver.tasks((16, 7)):
        kernel([a[task.reads[0].rect.slices], driver.partial], [driver.partial], task.params, None)
    assert driver.partial.sum(axis=0).tolist() == [1568.0] * 7
    assert a.sum(axis=0)[0] != 1568  # NumPy's own order loses the ones


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", PLACES)
def test_max_and_squares_and_trace(tmp_path: Path, dtype: str, where: str) -> None:
    a = draw((83, 59), dtype, 6)
    store = place(a, where, tmp_path)
    results = {}
    for kernel in ("max_abs", "square_sum", "trace"):
        driver = ReduceDriver(kernel, store)
        go(driver)
        results[kernel] = driver.partial
    wide = a.astype(np.clongdouble)
    assert results["max_abs"][0, 0] == np.abs(a.astype(np.complex128)).max()
    squares = (results["square_sum"][:, 0] ** 2 * results["square_sum"][:, 1]).sum()
    assert squares == pytest.approx(float((np.abs(wide) ** 2).sum()), rel=1e-13)
    assert results["trace"].sum() == pytest.approx(complex(np.trace(wide)), rel=1e-13)


def test_the_limit_is_kept_and_too_little_is_refused(tmp_path: Path) -> None:
    a = draw((1024, 512), "float64", 7)
    store = place(a, "disk", tmp_path, chunks=(256, 256))
    out = create_store(tmp_path / "out.zarr", a.shape, "float64", chunks=(256, 256))
    driver = MapDriver("scalar", [Term(store)], out, ("add", 1.0, False))
    with governor().scope(host=6_000_011, owner="test") as scope:
        run(driver, scope)
        assert 1_000_000 < scope.peak("host") <= 6_000_011
    out.commit()
    np.testing.assert_array_equal(whole(out), a + 1)
    with pytest.raises(MemoryLimitError, match="100"):
        go(driver, memory=100_003)


def test_kernels_allocate_bands_only() -> None:
    a, b, c = (np.ones((1024, 1024)) for _ in range(3))
    tracemalloc.start()
    go(MapDriver("axpby", [Term(ArrayStore(a), "T"), Term(ArrayStore(b))], ArrayStore(c), (2.0, 5.0)))
    driver = ReduceDriver("sums", ArrayStore(a), (0, True))
    go(driver)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    assert (c == 7).all()
    assert (driver.partial.sum(axis=0) == 1024).all()


def test_a_broken_operand_surfaces_and_nothing_looks_finished(tmp_path: Path) -> None:
    def broken(i: Any, j: Any) -> Any:
        if i[0] > 40:
            raise ArithmeticError("no such element")
        return np.zeros((len(i), len(j)))

    out = create_store(tmp_path / "out.zarr", (128, 64), "float64", chunks=(32, 32))
    with pytest.raises(StoreError, match="ArithmeticError: no such element"):
        go(MapDriver("unary", [Term(FunctionStore(broken, (128, 64), "float64", (32, 32)))], out, ("copy",)))
    out.discard()
    assert list(tmp_path.iterdir()) == []
