"""The functions over a device with its own memory: a pretended GPU, with kernels in host memory and fresh slots full of NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycauset
from pycauset import devices, errors
from pycauset.governor import governor
from pycauset.linalg import cholesky, inv, solve
from pycauset.solver import blocked, last_statistics
from tests.drivers.fakes import PROFILE, FakeGpu
from tests.linalg.cases import factor_ratio, norm1, on_disk, poisoned, random, solve_ratio, spd


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A GPU with 4 GB, of which little may be used, forced."""
    device = FakeGpu()
    monkeypatch.setattr(devices, "gpu", lambda: device)
    monkeypatch.setattr(devices, "gpu_is_cold", lambda: False)
    monkeypatch.setattr(devices, "kept_pinned_bytes", lambda: 0)
    monkeypatch.setattr(blocked, "load_profile", lambda: PROFILE)
    governor().set_device_memory(4 << 30, 4 << 30)
    with pycauset.settings(backend="gpu", gpu_memory="160MB"):
        yield device
    governor().set_device_memory(0, 0)


@pytest.mark.parametrize("lower", [True, False], ids=["lower", "upper"])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_factors_systems_and_inverses(tmp_path: Path, gpu: Any, dtype: str, lower: bool) -> None:
    rng = np.random.default_rng()
    n = 300
    a, b = spd(n, dtype, rng), random((n, 40), dtype, rng)
    array = poisoned(a, lower)
    matrix = on_disk(array, tmp_path / "a.zarr")
    for source in (array, matrix):
        for out in (None, np.full(a.shape, np.nan, dtype), tmp_path / f"{type(source).__name__}.zarr"):
            factor = cholesky(source, lower, out=out, memory="128MB")
            statistics = last_statistics()
            assert statistics is not None
            assert "upload" in statistics.lanes
            x = np.asarray(factor)
            assert factor_ratio(a, x, lower) < 30
            assert not (np.triu(x, 1) if lower else np.tril(x, -1)).any()
        assert solve_ratio(a, solve(source, b, lower, assume_a="pos", memory="128MB"), b) < 30
    w = np.asarray(inv(matrix, assume_a="pos", lower=lower, memory="128MB"))
    assert np.array_equal(w, w.conj().T)
    assert norm1(np.eye(n) - w.astype("complex128") @ a) / (n * norm1(a) * norm1(w) * np.finfo(dtype).eps) < 30
    for place in (array.copy(), matrix):
        assert factor_ratio(a, np.asarray(cholesky(place, lower, overwrite=True, memory="128MB")), lower) < 30


def test_errors_reach_the_caller(tmp_path: Path, gpu: Any) -> None:
    a = spd(300, "float64", np.random.default_rng())
    a[200, 200] = -1
    with pytest.raises(errors.NotPositiveDefiniteError) as caught:
        cholesky(a, memory="128MB", out=tmp_path / "l.zarr")
    assert caught.value.pivot == 200
    assert not list(tmp_path.iterdir())
