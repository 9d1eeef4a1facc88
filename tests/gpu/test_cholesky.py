"""Cholesky factors of many tiles on a real GPU: every order, dtype and place, under limits that force streaming; failures."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycauset
from pycauset import devices
from pycauset.drivers.cholesky import CholeskyDriver
from pycauset.errors import NotPositiveDefiniteError
from pycauset.governor import governor
from pycauset.linalg import cholesky
from pycauset.solver import last_statistics
from pycauset.storage import ArrayStore
from pycauset.storage.journal import Journal
from tests.gpu import streams
from tests.linalg.cases import on_disk, poisoned, random

pytestmark = pytest.mark.gpu
#: Orders of matrices that all take about 33 MB, one triangle more than the GPU may have.
ORDERS = {"float32": 2887, "float64": 2039, "complex64": 2039, "complex128": 1447}
stream = partial(streams.stream, limit=14 << 20, host=96 << 20)
VARIANTS = ("left", "right", "triangle")
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def gpu() -> Any:
    device = devices.gpu()
    if device is None:
        pytest.skip("no GPU")
    return device


def positive(n: int, dtype: str, rng: np.random.Generator) -> Array:
    """Exactly Hermitian, well-conditioned, and quick to make."""
    x = random((n, n), dtype, rng)
    a = np.tril(x, -1)
    a = a + a.conj().T
    a[np.arange(n), np.arange(n)] = 3 * n**0.5 * (2 if np.dtype(dtype).kind == "c" else 1)
    return a


def assert_factor(a: Array, factor: Array, lower: bool) -> None:
    """LAPACK's residual ratio; the product in double precision, for BLAS has no wider one."""
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    x = np.asarray(factor)
    x = (np.tril(x) if lower else np.triu(x).conj().T).astype(wide)
    assert np.isfinite(x).all()
    norm = np.abs(a).sum(axis=0).max()
    assert np.abs(a - x @ x.conj().T).sum(axis=0).max() / (len(a) * norm * np.finfo(a.dtype).eps) < 30


@pytest.mark.parametrize("dtype", list(ORDERS))
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_order_and_dtype(gpu: Any, dtype: str, variant: str) -> None:
    rng = np.random.default_rng()
    a = positive(ORDERS[dtype], dtype, rng)
    lower = bool(rng.integers(2))
    source, out = poisoned(a, lower), np.full_like(a, np.nan)
    plan = stream(gpu, CholeskyDriver(ArrayStore(source), ArrayStore(out), a.dtype, lower=lower, variant=variant))
    assert plan.variant == variant
    assert plan.tile[0] * 3 <= len(a), "too few tiles to show anything"
    assert_factor(a, out, lower)
    again = poisoned(a, not lower)
    store = ArrayStore(again)
    stream(gpu, CholeskyDriver(store, store, a.dtype, lower=not lower, variant=variant))
    assert_factor(a, again, not lower)


@pytest.mark.parametrize("variant", VARIANTS)
def test_asynchronous_and_synchronous_bits_are_equal(gpu: Any, variant: str) -> None:
    a = positive(ORDERS["float64"], "float64", np.random.default_rng())
    results = []
    for mode in ("async", "sync"):
        out = np.full_like(a, np.nan)
        stream(gpu, CholeskyDriver(ArrayStore(a), ArrayStore(out), a.dtype, variant=variant), mode=mode)
        results.append(np.tril(out))
    assert np.array_equal(*results)


def pinned(a: Array) -> Array:
    from pycauset.cuda import pinned_empty

    array = pinned_empty(a.shape, a.dtype)
    array[...] = a
    return array


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_pinned_memory_in_place(gpu: Any, dtype: str, variant: str) -> None:
    a = positive(ORDERS[dtype], dtype, np.random.default_rng())
    array = pinned(poisoned(a, True))
    store = ArrayStore(array)
    plan = stream(gpu, CholeskyDriver(store, store, a.dtype, variant=variant))
    assert plan.host_slots == 0
    assert_factor(a, array, True)


def assert_account(a: Array, array: Array, tiles: dict[str, Any], pivot: int) -> None:
    """What the tiles are said to hold, they hold."""
    n = len(a)
    exact = np.zeros_like(a)
    exact[:pivot, :pivot] = np.linalg.cholesky(a[:pivot, :pivot])
    exact[pivot:, :pivot] = np.linalg.solve(exact[:pivot, :pivot], a[:pivot, pivot:]).conj().T
    for kind, whole in (("factor", exact), ("original", a)):
        for rect in tiles[kind]:
            on = np.tril(np.ones(a.shape, bool))[rect.slices]
            np.testing.assert_allclose(array[rect.slices][on], whole[rect.slices][on], atol=1e-9 * np.abs(a).max())
    assert sum(rect.size for rects in tiles.values() for rect in rects) > n * n / 2


@pytest.mark.parametrize(("place", "variant"), [("pageable", "left"), *(("pinned", variant) for variant in VARIANTS)])
def test_not_positive_definite_in_a_late_tile(gpu: Any, place: str, variant: str) -> None:
    """The GPU runs ahead of the outcome: what it had on its way home by then counts as nothing."""
    n = ORDERS["float64"]
    pivot = n - 200
    a = positive(n, "float64", np.random.default_rng())
    a[pivot, pivot] = -1
    array = pinned(a) if place == "pinned" else a.copy()
    store = ArrayStore(array)
    driver = CholeskyDriver(store, store, a.dtype, variant=variant)
    with pytest.raises(NotPositiveDefiniteError, match=f"pivot {pivot} ") as caught:
        stream(gpu, driver)
    assert caught.value.pivot == pivot
    tiles = driver.contents(pivot)
    assert tiles["factor"]
    assert_account(a, array, tiles, pivot)
    array[...] = a
    array[pivot, pivot] = a[0, 0]
    stream(gpu, CholeskyDriver(store, store, a.dtype, variant=variant))  # the device is as good as before
    a[pivot, pivot] = a[0, 0]
    assert_factor(a, array, True)


LIMITS: dict[str, Any] = {"memory": "220MB", "gpu_memory": "88MB", "progress": False}


@pytest.mark.parametrize("lower", [True, False], ids=["lower", "upper"])
def test_in_place_on_disk_goes_on_after_a_failure(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lower: bool) -> None:
    n = 2500
    a = positive(n, "float64", np.random.default_rng())
    for name in ("a", "b"):
        on_disk(poisoned(a, lower), tmp_path / f"{name}.zarr", chunks=(256, 256))

    class Injected(BaseException):
        pass

    writes = itertools.count(1)
    write = Journal.write

    def fail(self: Journal, *args: Any) -> None:
        if next(writes) > 24:  # of 55 chunks
            raise Injected
        write(self, *args)

    with pycauset.cuda.force_backend("gpu"):
        cholesky(tmp_path / "b.zarr", lower, overwrite=True, **LIMITS)
        with monkeypatch.context() as patch, pytest.raises(Injected):
            patch.setattr(Journal, "write", fail)
            cholesky(tmp_path / "a.zarr", lower, overwrite=True, **LIMITS)
        assert (tmp_path / "a.zarr.journal").exists()
        cholesky(tmp_path / "a.zarr", lower, overwrite=True, **LIMITS)
    statistics = last_statistics()
    assert statistics is not None
    assert "upload" in statistics.lanes
    assert 0 < statistics.reused < statistics.tasks
    resumed, straight = (pycauset.open(tmp_path / f"{name}.zarr").to_numpy() for name in ("a", "b"))
    assert np.array_equal(resumed, straight), "not the bits of a run without interruption"
    assert_factor(a, resumed, lower)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]


def test_on_disk_a_function_restores_what_was_overwritten(gpu: Any, tmp_path: Path) -> None:
    n, pivot = 2500, 2300
    a = positive(n, "float64", np.random.default_rng())
    a[pivot, pivot] = -1
    path = tmp_path / "a.zarr"
    source = pycauset.from_function(lambda rows, cols: a[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1], a.shape)
    with pycauset.cuda.force_backend("gpu"):
        on_disk(a, path, chunks=(256, 256))
        with pytest.raises(NotPositiveDefiniteError, match="is as it was") as caught:
            cholesky(path, overwrite=True, restore=source, **LIMITS)
        assert caught.value.pivot == pivot
        assert np.array_equal(pycauset.open(path), a)
        with pytest.raises(NotPositiveDefiniteError, match="hold the factor") as caught:
            cholesky(path, overwrite=True, **LIMITS)
    assert caught.value.tiles is not None
    assert caught.value.tiles["factor"]
    assert not caught.value.tiles["unspecified"], "a journal lets nothing home before the outcome is known"


def test_nothing_is_left_behind(gpu: Any) -> None:
    before = governor().in_use("device")
    test_not_positive_definite_in_a_late_tile(gpu, "pinned", "left")
    governor().reclaim("device")
    assert governor().in_use("device") <= before
