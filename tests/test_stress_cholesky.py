"""The stress run of the Cholesky factorisation and what it is made of: a generated covariance, two checks, measured limits."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycauset import config, devices, linalg, stress_cholesky, stress_gauges
from pycauset.errors import JournalBusyError, MemoryLimitError, StoreExistsError
from pycauset.freivalds import RESIDUAL_LIMIT, freivalds
from pycauset.governor import governor
from pycauset.hardware import load_machine, use_probe
from pycauset.seeded import CovarianceStore
from pycauset.solver import blocked
from pycauset.storage import as_store, open_store
from pycauset.stress import stress
from pycauset.stress_cholesky import CholeskyStressResult, tile_residual
from pycauset.tiling import Rect
from tests.drivers.fakes import PROFILE, FakeGpu
from tests.interruptions import leaves_something, watched_journals
from tests.linalg.cases import on_disk, random

MACHINE = load_machine(Path(__file__).parents[1] / "profiles" / "no_gpu.json")
DTYPES = ("float32", "float64", "complex64", "complex128")


@pytest.fixture(autouse=True)
def _described_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PYCAUSET_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(stress_gauges, "_DISK_BYTES", 1 << 20)
    with use_probe(MACHINE), watched_journals():
        yield


def whole(store: CovarianceStore, dtype: str | None = None) -> np.ndarray[Any, Any]:
    out = np.full(store.shape, np.nan, dtype or store.dtype)
    store.read(Rect(0, store.shape[0], 0, store.shape[1]), out)
    return out


# -- the matrix --------------------------------------------------------------------------------------------------------


@given(data=st.data(), seed=st.integers(0, 2**70), dtype=st.sampled_from(DTYPES))
def test_a_covariance_does_not_depend_on_how_it_is_cut(data: st.DataObject, seed: int, dtype: str) -> None:
    n = data.draw(st.integers(1, 1200))
    r0, c0 = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    r1, c1 = (data.draw(st.integers(x + 1, min(n, x + 150))) for x in (r0, c0))
    part = np.full((c1 - c0, r1 - r0), np.nan, dtype).T  # any strides
    CovarianceStore(seed, n, dtype).read(Rect(r0, r1, c0, c1), part)
    rows, mirrored = np.full((r1 - r0, n), np.nan, dtype), np.full((n, r1 - r0), np.nan, dtype)
    store = CovarianceStore(seed, n, dtype)
    store.read(Rect(r0, r1, 0, n), rows)
    store.read(Rect(0, n, r0, r1), mirrored)
    np.testing.assert_array_equal(part, rows[:, c0:c1])
    np.testing.assert_array_equal(rows, mirrored.conj().T)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 150, 700])
def test_a_covariance_is_positive_definite_and_of_full_rank(dtype: str, n: int) -> None:
    a = whole(CovarianceStore(2024, n, dtype))
    np.testing.assert_allclose(a.diagonal(), np.full(n, 1 + 1 / 64), rtol=4 * np.finfo(dtype).eps)
    assert not a.diagonal().imag.any()
    values = np.linalg.eigvalsh(a.astype("complex128"))
    assert values[0] >= 1 / 64 - n * np.finfo(dtype).eps
    assert values[-1] < 4 * (math.pi * math.log(n + 2) + 1)
    if n > 100:
        half = n // 2
        assert np.linalg.matrix_rank(a[half:, : n - half].astype("complex128"), tol=1e-4) > n // 5, (
            "no low rank beside the diagonal"
        )
        assert np.unique(a.real).size > 0.4 * n * n


@pytest.mark.parametrize(("dtype", "wider"), [("float32", "float64"), ("complex64", "complex128")])
def test_a_covariance_in_a_wider_type_has_the_same_numbers(dtype: str, wider: str) -> None:
    store = CovarianceStore(5, 90, dtype)
    got, exact = whole(store, wider), whole(store)
    np.testing.assert_allclose(got, exact, rtol=2 * np.finfo(dtype).eps)


def test_covariances_that_differ_have_other_identities() -> None:
    base = CovarianceStore(3, 8, "float64")
    assert base.identity == CovarianceStore(3, 8, "float64").identity
    others = [CovarianceStore(4, 8, "float64"), CovarianceStore(3, 9, "float64"), CovarianceStore(3, 8, "float32")]
    assert all(base.identity != other.identity for other in others)
    assert not np.array_equal(whole(base), whole(others[0]))


# -- the checks --------------------------------------------------------------------------------------------------------


def factored(n: int, dtype: str) -> tuple[CovarianceStore, Any]:
    a = CovarianceStore(1, n, dtype)
    return a, np.linalg.cholesky(whole(a).astype("complex128" if dtype.startswith("c") else "float64")).astype(dtype)


@pytest.mark.parametrize(("n", "dtype"), [*((n, dtype) for n in (1, 100, 600) for dtype in DTYPES), (2100, "float64")])
def test_tiles_of_a_right_factor_pass(dtype: str, n: int) -> None:
    a, factor = factored(n, dtype)
    assert tile_residual(a, as_store(factor), seed=3) < 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_wrong_factors_are_caught(dtype: str) -> None:
    a, right = factored(600, dtype)
    n = len(right)
    assert freivalds(a, as_store(right)) < 5

    def lost_update(c: Any) -> None:
        c[512:, 512:] = np.linalg.cholesky(whole(a)[512:, 512:] - c[512:, 64:512] @ c[512:, 64:512].conj().T)

    def stale_tile(c: Any) -> None:
        c[256:512, :256] = whole(a)[256:512, :256]

    def not_conjugated(c: Any) -> None:
        c[256:] = c[256:].conj() if c.dtype.kind == "c" else -c[256:]
        c[:256, :256] *= 1 + 1e-4

    def not_a_number(c: Any) -> None:
        c[n - 1, 7] = np.nan

    for change in (lost_update, stale_tile, not_conjugated, not_a_number):
        wrong = right.copy()
        change(wrong)
        assert tile_residual(a, as_store(wrong), samples=12) > RESIDUAL_LIMIT, change.__name__
        assert freivalds(a, as_store(wrong)) > RESIDUAL_LIMIT, change.__name__


@pytest.mark.parametrize("dtype", DTYPES)
def test_probing_a_product_with_its_own_adjoint(dtype: str) -> None:
    a = random((130, 70), dtype, np.random.default_rng())
    right = (a.astype(np.result_type(a, "float64")) @ a.conj().T).astype(dtype)
    assert freivalds(as_store(right), as_store(a), memory=50_000) < 5
    wrong = right.copy()
    wrong[40, 60] = 0
    assert freivalds(as_store(wrong), as_store(a)) > RESIDUAL_LIMIT
    if right.dtype.kind == "c":
        assert freivalds(as_store(right.conj()), as_store(a)) > RESIDUAL_LIMIT


def test_probing_reads_one_triangle(tmp_path: Path) -> None:
    a, right = factored(300, "float64")
    factor = on_disk(right, tmp_path / "l.zarr", structure="lower", chunks=(64, 64)).store
    asked: list[Rect] = []
    read = factor._read

    def spied(rect: Rect, out: Any) -> None:
        asked.append(rect)
        read(rect, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factor, "_read", spied)
        assert freivalds(a, factor, memory=1 << 20) < 5
    assert not any(factor.is_zero(rect) for rect in asked)
    assert sum(rect.size for rect in asked) < 1.25 * right.size  # one triangle of tiles, twice


# -- the factorisation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_small_factorisation(dtype: str, tmp_path: Path) -> None:
    result = stress("2MB", "128MB", op="cholesky", dtype=dtype, seed=7, output=tmp_path, progress=False)
    assert isinstance(result, CholeskyStressResult)
    n = math.isqrt(2_000_000 // np.dtype(dtype).itemsize)
    assert (result.n, result.dtype, result.size) == (n, dtype, n * n * np.dtype(dtype).itemsize)
    assert result.passed
    assert 0 < result.residual < 10
    assert 0 < result.tile_residual < 5
    assert result.rate == pytest.approx((4 if dtype.startswith("c") else 1) * n**3 / 3 / result.seconds)
    assert result.reused == 0
    assert result.output is None
    assert not list(tmp_path.iterdir())


def test_a_streamed_factorisation_counts_what_it_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(folder: Path) -> Any:  # of a disk that nobody else uses
        used = 10**9
        for path in folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                used += path.stat().st_blocks * 512
        return SimpleNamespace(used=used)

    monkeypatch.setattr(stress_gauges.shutil, "disk_usage", usage)
    result = stress("60MB", "140MB", op="cholesky", output=tmp_path, keep=True, progress=False)
    assert isinstance(result, CholeskyStressResult)
    assert result.passed
    assert result.tasks > 4
    assert result.moved == result.planned == result.read + result.written
    assert result.bound > result.n * (result.n + 1) * 8
    triangle = result.n * (result.n + 1) * 4
    assert result.written >= triangle, "in place, each tile is written"
    assert result.read >= triangle
    assert triangle < result.disk_peak < 3 * triangle, "there is room for one triangle, and for tiles on their way"
    assert result.build_seconds > 0
    assert result.output == tmp_path / "factor.zarr"
    store = open_store(result.output)
    assert store.structure == "lower"
    factor = np.full((result.n, result.n), np.nan)
    store.read(Rect(0, result.n, 0, result.n), factor)
    expected = np.linalg.cholesky(whole(CovarianceStore(0, result.n, "float64")))
    np.testing.assert_allclose(factor, expected, atol=1e-12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["factor.zarr"]
    with pytest.raises(StoreExistsError, match=r"factor\.zarr"):
        stress("60MB", "140MB", op="cholesky", output=tmp_path, progress=False)
    assert result.output.exists(), "a factor that was asked for is not removed"


class Killed(BaseException):
    """As good as a kill: nobody catches it."""


def interrupt(at: int, error: type[BaseException]) -> Any:
    """Progress that ends the run in its ``at``-th part: building, factoring, checking."""
    totals: list[float] = []

    def progress(done: float, total: float) -> None:
        if total not in totals:
            totals.append(total)
        if len(totals) > at and done > 0.8 * total and leaves_something(done, total):
            raise error

    return progress


def test_an_interrupted_run_is_gone_on_with(tmp_path: Path) -> None:
    """Whatever it was at, by the same call; only a finished factor that nobody wants goes."""
    size, memory = "60MB", "100MB"

    def run(progress: Any) -> Any:
        return stress(size, memory, op="cholesky", output=tmp_path, progress=progress)

    with pytest.raises(Killed):
        run(interrupt(0, Killed))
    assert not list(tmp_path.iterdir()), "a matrix that is not whole"
    with pytest.raises(KeyboardInterrupt) as caught:
        run(interrupt(1, KeyboardInterrupt))
    assert "factor.zarr" in caught.value.__notes__[0]
    assert {path.name for path in tmp_path.iterdir()} == {"factor.zarr", "factor.zarr.journal"}
    with pytest.raises(StoreExistsError, match="seed 5"):
        stress(size, memory, op="cholesky", output=tmp_path, seed=5, progress=False)
    with pytest.raises(Killed):  # the matrix is built already, so that checking is the second part
        run(interrupt(1, Killed))
    assert [path.name for path in tmp_path.iterdir()] == ["factor.zarr"], "while it was being checked"
    again = run(False)
    assert again.passed
    assert 0 < again.reused < again.tasks
    assert again.build_seconds == 0, "the part that went on with the matrix did not build it"
    assert again.rate * again.seconds == pytest.approx(again.n**3 / 3 * (1 - again.reused / again.tasks))
    assert not list(tmp_path.iterdir())


def test_gpu_memory_is_what_was_granted_and_what_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a pretended GPU, of which a context and a library that nobody has granted anything take 300 MB."""
    device, ungranted = FakeGpu(), 300_000_000

    def in_use() -> int:
        return ungranted + governor().statistics().device.in_use

    monkeypatch.setattr(devices, "gpu", lambda: device)
    monkeypatch.setattr(devices, "gpu_is_cold", lambda: False)
    monkeypatch.setattr(blocked, "load_profile", lambda: PROFILE)
    for module in (stress_cholesky, stress_gauges):
        monkeypatch.setattr(module, "gpu_bytes", in_use)
    watching: list[stress_gauges.Peaks] = []
    enter = stress_gauges.Peaks.__enter__
    monkeypatch.setattr(stress_gauges.Peaks, "__enter__", lambda self: (watching.append(self), enter(self))[1])
    monkeypatch.setattr(stress_gauges, "_INTERVAL", 3600.0)  # looks are taken here, whatever the clock says

    def look(done: float, total: float) -> None:
        for peaks in watching:
            peaks.look()

    governor().set_device_memory(4 << 30, 4 << 30)
    try:
        with config.settings(backend="gpu"):
            result = stress("20MB", "300MB", "150MB", op="cholesky", output=tmp_path, progress=look)
    finally:
        governor().set_device_memory(0, 0)
    assert isinstance(result, CholeskyStressResult)
    assert result.passed
    assert result.link == "PCIe"
    assert result.gpu_measured == result.gpu_peak, "over idle"
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_gone_on_with_is_removed(tmp_path: Path) -> None:
    with pytest.raises(MemoryLimitError):
        stress("2MB", "10kB", op="cholesky", output=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_without_a_folder_it_lies_where_the_next_process_finds_it() -> None:
    folder = stress_cholesky.default_folder()
    with pytest.raises(KeyboardInterrupt):
        stress("60MB", "100MB", op="cholesky", progress=interrupt(1, KeyboardInterrupt))
    assert {path.name for path in folder.iterdir()} == {"factor.zarr", "factor.zarr.journal"}
    result = stress("60MB", "100MB", op="cholesky", progress=False)
    assert isinstance(result, CholeskyStressResult)
    assert result.reused > 0
    assert not folder.exists()


def test_the_work_of_another_process_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = linalg.cholesky

    def busy(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("overwrite"):
            return right(*args, **kwargs)
        (tmp_path / "factor.zarr.journal").touch()
        raise JournalBusyError("another process is at it")

    monkeypatch.setattr(linalg, "cholesky", busy)
    with pytest.raises(JournalBusyError):
        stress("2MB", "128MB", op="cholesky", output=tmp_path, progress=False)
    assert (tmp_path / "factor.zarr").exists()
    (tmp_path / "factor.zarr.journal").unlink()
    monkeypatch.undo()
    (tmp_path / "other").mkdir()
    linalg.cholesky(np.eye(20), out=tmp_path / "other" / "factor.zarr")
    with pytest.raises(StoreExistsError, match="remove it"):
        stress("2MB", "128MB", op="cholesky", output=tmp_path / "other", progress=False)
    assert (tmp_path / "other" / "factor.zarr").exists()


def test_a_corrupted_factor_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = linalg.cholesky

    def wrong(*args: Any, **kwargs: Any) -> Any:
        result = right(*args, **kwargs)
        if kwargs.get("overwrite"):
            store = open_store(args[0])
            value = np.empty((1, 1))
            place = Rect(400, 401, 17, 18)
            store.begin_write()
            store.read(place, value)
            store.write(place, value + 1e-3)
            store.commit()
        return result

    monkeypatch.setattr(linalg, "cholesky", wrong)
    result = stress("2MB", "128MB", op="cholesky", progress=False)
    assert not result.correct
    assert not result.passed
    assert "FAILED" in dict(result.rows())["check"]


def test_the_table_of_a_factorisation_on_a_gpu() -> None:
    result = CholeskyStressResult(
        n=1000, dtype="float64", seed=0, size=8_000_000, route="cuSOLVER", seconds=3.0, rate=1e9, link="PCIe", moved=30_000_000,
        planned=20_000_000, bound=15_000_000, build_seconds=1.0, read=16_000_000, written=4_000_000, disk_read=2e9,
        disk_write=1e9, disk_seconds=2.0, disk_peak=9, peak=5, limit=10, gpu_peak=11, gpu_measured=8, gpu_limit=10,
        reused=4, tasks=9, residual=0.1,
        tile_residual=31.0, vectors=16, samples=8, check_seconds=0.1, output=None,
    )  # fmt: skip
    rows = dict(result.rows())
    assert not result.within_limits
    assert not result.correct
    assert "FAILED" in rows["peak GPU memory"]
    assert "ok" in rows["check"]
    assert "FAILED" in rows["check of tiles"]
    assert "1.500 × the plan" in rows["PCIe bytes"]
    assert "2.00 × the bound" in rows["PCIe bytes"]
    assert rows["planned disk bytes"].endswith("at that speed"), "of a part there is nothing to compare with"
    assert "1.50 times" in dict(dataclasses.replace(result, reused=0).rows())["planned disk bytes"]
    assert rows["reused"] == "4 of 9 tasks"
    good = dataclasses.replace(result, gpu_limit=11, tile_residual=1.0)
    assert good.passed
    assert "ok" in dict(good.rows())["GPU memory in use"]
    more = dataclasses.replace(good, gpu_measured=12)
    assert not more.passed
    assert "FAILED" in dict(more.rows())["GPU memory in use"]
