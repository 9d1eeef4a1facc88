"""The audit of a real GPU: complete, plausible, within its budget's order, and everything given back."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycauset import cuda
from pycauset.devices import audit, audit_gpu
from pycauset.governor import governor
from pycauset.hardware import DTYPES, probe

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def info() -> Any:
    found = probe.gpu_info()
    if found is None:
        if os.environ.get("PYCAUSET_REQUIRE_GPU") == "1":
            pytest.fail(f"PYCAUSET_REQUIRE_GPU=1, but {probe.gpu_problem()}")
        pytest.skip(str(probe.gpu_problem()))
    return found


@pytest.mark.parametrize("seconds", [0.0, 1.2])
def test_figures_are_plausible_and_memory_comes_back(info: Any, seconds: float) -> None:
    audit_gpu.measure_gpu(info, seconds=0.0)  # context, cuBLAS and its kernels stay
    before, pinned = probe.gpu_memory(), governor().in_use("pinned")
    found = audit_gpu.measure_gpu(info, seconds=seconds)
    gc.collect()
    after = probe.gpu_memory()
    assert before is not None
    assert after is not None
    # Kernels of sizes not seen before are loaded on first use and stay; three matrices would be far more.
    assert before.free - after.free < 256 * 2**20
    assert governor().in_use("pinned") == pinned
    assert set(found.gemm) == set(DTYPES)
    assert found.duplex_pinned > 0.8 * min(found.h2d_pinned, found.d2h_pinned)
    assert found.launch_seconds < 1e-2
    assert found.start_seconds >= 0.2
    if seconds:
        assert found.h2d_pinned > 0.9 * found.h2d_pageable
        for points in found.gemm.values():
            assert points[-1].n >= 1024
            assert points[-1].flops > points[0].flops
        for name in ("h2d_pinned", "d2h_pinned", "h2d_pageable", "d2h_pageable"):
            curve = found.transfers[name]
            assert curve[-1].seconds > curve[0].seconds


def test_the_whole_audit(info: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    profile = audit.measure(tmp_path)
    assert profile.gpu is not None
    assert profile.gpu.name == info.name
    assert capfd.readouterr() == ("", "")


def test_without_pinning_the_audit_still_works(info: Any) -> None:
    cuda.set_pinning_budget(0)
    try:
        found = audit_gpu.measure_gpu(info, seconds=0.1)
    finally:
        cuda.set_pinning_budget(None)
    assert found.h2d_pinned == found.h2d_pageable


def test_pinned_arrays_are_pinned(info: Any) -> None:
    cupy = probe.import_cupy()
    assert cupy is not None
    before = governor().in_use("pinned")
    array = cuda.pinned_empty((1000, 1000), "float32")
    array[...] = np.random.default_rng().standard_normal(array.shape)
    kind = cupy.cuda.runtime.pointerGetAttributes(array.ctypes.data).type
    assert kind == cupy.cuda.runtime.memoryTypeHost
    assert governor().in_use("pinned") > before
    del array
    gc.collect()
    assert governor().in_use("pinned") == before
