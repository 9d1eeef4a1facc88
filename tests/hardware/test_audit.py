"""The audit finds plausible figures in any budget, says nothing and leaves nothing behind."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycauset.devices import audit, audit_cpu, audit_disk
from pycauset.hardware import DTYPES, CpuProfile, HardwareProfile, gemm_flops, probe

INFO = probe.CpuInfo("test", 2, "avx2")


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_any_budget_gives_a_complete_profile(tmp_path: Path, capfd: pytest.CaptureFixture[str], seconds: float) -> None:
    threads = threading.active_count()
    profile = audit.measure(tmp_path, cpu_seconds=seconds, disk_seconds=seconds, gpu_seconds=seconds)
    assert HardwareProfile.model_validate_json(profile.model_dump_json(), strict=True) == profile
    assert profile.fingerprint == probe.fingerprint()
    assert profile.cpu.copy_bandwidth_all >= profile.cpu.copy_bandwidth
    assert not profile.disk.assumed
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr() == ("", "")
    assert threading.active_count() == threads


def test_a_small_machine_uses_little_memory() -> None:
    profile, _ = audit_cpu.measure_cpu(INFO, 0, seconds=10.0)  # the buffer's floor, 1 MiB, ends it long before the budget
    for name in DTYPES:
        points = profile.gemm[name]
        assert points[0].n == 64
        assert 3 * points[-1].n ** 2 * np.dtype(name).itemsize <= 2**20
        assert points[-1].n >= 128


class Processor:
    """A clock that products move on: at the rates of a processor with 16 cores, or stalled for milliseconds."""

    def __init__(self, stalls: Callable[[str, int], float]) -> None:
        self.now, self.stalls = 0.0, stalls

    def perf_counter(self) -> float:
        self.now += 3e-7
        return self.now

    @staticmethod
    def rate(dtype: str, n: int) -> float:
        return (2e12 if dtype in ("float32", "complex64") else 1e12) * n / (n + 300)

    def multiply(self, a: Any, b: Any, out: Any) -> None:
        n, dtype = len(a), a.dtype.name
        self.now += gemm_flops(dtype, n, n, n) / self.rate(dtype, n) + self.stalls(dtype, n)


def audited(monkeypatch: pytest.MonkeyPatch, stalls: Callable[[str, int], float]) -> tuple[CpuProfile, bool]:
    processor = Processor(stalls)
    monkeypatch.setattr(audit_cpu, "time", processor)
    monkeypatch.setattr(audit_cpu, "_multiply", processor.multiply)
    for name in ("_call_seconds", "_copy_all"):
        monkeypatch.setattr(audit_cpu, name, lambda *_: 1e-6)
    return audit_cpu.measure_cpu(INFO, 10**9, seconds=1.1)


def test_a_processor_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    profile, steady = audited(monkeypatch, lambda dtype, n: 0.0)
    assert steady
    for name in DTYPES:
        assert profile.gemm[name][-1].n >= 1024
        for point in profile.gemm[name]:
            assert point.flops == pytest.approx(Processor.rate(name, point.n), rel=0.3)


@pytest.mark.parametrize(
    "stalled",
    [
        lambda dtype, n: n == 96,
        lambda dtype, n: n in (128, 192, 256),
        lambda dtype, n: n >= 192,
        lambda dtype, n: dtype == "float64",
        lambda dtype, n: dtype == "float32" and n <= 128,
        lambda dtype, n: dtype.startswith("complex") and n == 64,
        lambda dtype, n: n == 2048 and dtype == "float32",
    ],
)
def test_rates_of_a_busy_machine_are_not_believed(monkeypatch: pytest.MonkeyPatch, stalled: Callable[[str, int], bool]) -> None:
    """A library's threads that wait for a core make a small product take milliseconds: 100 to 1000 times too long."""
    profile, steady = audited(monkeypatch, lambda dtype, n: 0.02 if stalled(dtype, n) else 0.0)
    assert not steady
    for name in DTYPES:
        points = profile.gemm[name]
        assert all(a.flops <= b.flops * 1.001 for a, b in itertools.pairwise(points))
        for point in points:
            assert Processor.rate(name, point.n) / 16 < point.flops < 4 * Processor.rate(name, point.n)
        if not any(stalled(name, n) for n in (64, 256)):
            assert points[-1].n > 256, "a stall ends the table"


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_is_ordinary_numbers_in_every_dtype(dtype: str) -> None:
    numbers = audit_cpu.noise(2**16).view(dtype)
    parts = numbers.view(np.dtype(dtype).type(0).real.dtype)
    assert np.isfinite(parts).all()
    assert (np.abs(parts) >= 2.0**-15).all()
    assert (np.abs(parts) <= 2).all()
    assert len(np.unique(parts)) > 0.9 * len(parts)


def test_an_unwritable_folder_gives_cautious_guesses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = audit_disk.measure_disk(tmp_path / "file" / "scratch", probe.DiskInfo(10**12, "ext4", "/dev/x"), seconds=0.05)
    assert found.assumed
    assert (found.filesystem, found.device) == ("ext4", "/dev/x")


def test_a_full_disk_is_not_touched(tmp_path: Path) -> None:
    found = audit_disk.measure_disk(tmp_path / "scratch", probe.DiskInfo(10**6, "ext4", "/dev/x"), seconds=0.05)
    assert found.assumed
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fails_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    files = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "preadv", fails)
    found = audit_disk.measure_disk(tmp_path, probe.disk_info(tmp_path), seconds=0.05)
    assert found.assumed
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == files


def test_without_direct_io_it_is_buffered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_DIRECT")
    found = audit_disk.measure_disk(tmp_path, probe.disk_info(tmp_path), seconds=0.02)
    assert not found.direct
    assert not found.assumed


@given(st.lists(st.floats(1e-9, 1e3), max_size=20))
def test_larger_jobs_are_never_recorded_as_faster(seconds: list[float]) -> None:
    found = audit_cpu.growing(seconds)
    assert len(found) == len(seconds)
    assert all(a < b for a, b in itertools.pairwise(found))
    for i, (before, after) in enumerate(zip(seconds, found, strict=True)):
        # What the figures had in order stays as measured.
        in_order = all(before <= later * 0.999 ** (j + 1) for j, later in enumerate(seconds[i + 1 :]))
        assert after == pytest.approx(before) if in_order else after < before
