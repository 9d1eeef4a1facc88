"""Rates, seconds and the refusal of figures that no machine has."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pycauset.errors import BackendError, DtypeError
from pycauset.hardware import DTYPES, HardwareProfile, gemm_flops, load_machine

PROFILES = Path(__file__).parents[2] / "profiles"
H200 = load_machine(PROFILES / "h200.json").profile
NO_GPU = load_machine(PROFILES / "no_gpu.json").profile
SIZES = st.integers(1, 10**6)
NAMES = st.sampled_from(DTYPES)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_measured_points_come_back(kind: Any, dtype: str) -> None:
    table = H200.cpu.gemm if kind == "cpu" else H200.gpu.gemm  # type: ignore[union-attr]
    for point in table[dtype]:  # type: ignore[index]
        assert H200.gemm_rate(kind, np.dtype(dtype), point.n) == pytest.approx(point.flops)


@given(NAMES, st.floats(1e-3, 1e9))
def test_rates_stay_within_the_neighbours(dtype: Any, n: float) -> None:
    points = H200.cpu.gemm[dtype]
    below = [p.flops for p in points if p.n <= n] or [points[0].flops]
    above = [p.flops for p in points if p.n >= n] or [points[-1].flops]
    rate = H200.gemm_rate("cpu", dtype, n)
    assert min(below[-1], above[0]) * (1 - 1e-9) <= rate <= max(below[-1], above[0]) * (1 + 1e-9)


@given(NAMES, SIZES, SIZES, SIZES)
def test_seconds_are_positive_symmetric_and_never_beat_the_rate(dtype: Any, m: int, n: int, k: int) -> None:
    for kind in ("cpu", "gpu"):
        seconds = H200.gemm_seconds(kind, dtype, m, n, k)
        assert 0 < seconds < math.inf
        assert seconds == pytest.approx(H200.gemm_seconds(kind, dtype, k, m, n))
    best = max(p.flops for p in H200.cpu.gemm[dtype])
    assert H200.gemm_seconds("cpu", dtype, m, n, k) >= gemm_flops(dtype, m, n, k) / best * (1 - 1e-9)


@given(NAMES, st.integers(1, 10**5))
def test_twice_the_work_takes_longer(dtype: Any, n: int) -> None:
    for kind in ("cpu", "gpu"):
        assert H200.gemm_seconds(kind, dtype, n, n, 2 * n) > H200.gemm_seconds(kind, dtype, n, n, n)


def test_a_tiny_product_costs_its_call() -> None:
    assert H200.gemm_seconds("cpu", "float64", 1, 1, 1) == pytest.approx(H200.cpu.call_seconds, rel=0.01)


def test_an_outer_product_costs_its_bytes() -> None:
    n = 16384
    assert H200.gemm_seconds("cpu", "float64", n, n, 1) >= 8 * n * n / (2 * H200.cpu.copy_bandwidth_all)


@given(st.sampled_from(["h2d", "d2h"]), st.booleans(), st.integers(1, 10**12))
def test_transfers_grow_with_their_bytes(direction: Any, pinned: bool, nbytes: int) -> None:
    seconds = H200.transfer_seconds(direction, nbytes, pinned)
    assert 0 < seconds <= H200.transfer_seconds(direction, 2 * nbytes, pinned)


def test_large_transfers_run_at_the_bandwidth() -> None:
    assert 1e11 / H200.transfer_seconds("h2d", 10**11, True) == pytest.approx(55.4e9, rel=0.01)
    assert H200.transfer_seconds("d2h", 0, False) == 0


def test_without_curves_the_bandwidth_serves() -> None:
    gpu = H200.gpu
    assert gpu is not None
    bare = H200.model_copy(update={"gpu": gpu.model_copy(update={"transfers": {}})})
    assert bare.transfer_seconds("h2d", 10**9, False) == pytest.approx(gpu.launch_seconds + 10**9 / gpu.h2d_pageable)


def test_a_missing_gpu_is_named() -> None:
    calls: list[Callable[[], float]] = [
        lambda: NO_GPU.gemm_rate("gpu", "float64", 64),
        lambda: NO_GPU.gemm_seconds("gpu", "float64", 64, 64, 64),
        lambda: NO_GPU.transfer_seconds("h2d", 64, True),
    ]
    for call in calls:
        with pytest.raises(BackendError, match="no GPU"):
            call()


def test_unmeasured_dtypes_are_named() -> None:
    with pytest.raises(DtypeError, match="int64"):
        H200.gemm_rate("cpu", np.int64, 64)


def _broken(**changes: Any) -> str:
    content = H200.model_dump(mode="json")
    for path, value in changes.items():
        place = content
        *folders, last = path.split("__")
        for folder in folders:
            place = place[folder]
        place[last] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    "changes",
    [
        {"cpu__copy_bandwidth": math.nan},
        {"cpu__copy_bandwidth": math.inf},
        {"cpu__copy_bandwidth": -1.0},
        {"cpu__copy_bandwidth": 0.0},
        {"cpu__copy_bandwidth": "1e10"},
        {"cpu__call_seconds": 1e9},
        {"cpu__cores": 0},
        {"cpu__cores": 2.5},
        {"cpu__name": "red \x1b[31m"},
        {"cpu__name": "x" * 1000},
        {"cpu__gemm__float64": []},
        {"cpu__gemm__float64": [{"n": 64, "flops": 1e40}]},
        {"cpu__gemm__float64": [{"n": 64, "flops": 1e9}, {"n": 64, "flops": 1e9}]},
        {"cpu__gemm__float16": [{"n": 64, "flops": 1e9}]},
        {"cpu__gemm": {"float64": [{"n": 64, "flops": 1e9}]}},
        {"gpu__memory": -5},
        {"gpu__transfers__h2d_pinned": [{"nbytes": 9, "seconds": 1e-5}, {"nbytes": 3, "seconds": 1e-5}]},
        {"disk__read_bandwidth": 1e300},
        {"disk__direct": "yes"},
        {"version": 2},
        {"ram_total": 2**63},
        {"fingerprint": {str(i): "" for i in range(1000)}},
        {"surprise": 1},
    ],
    ids=str,
)
def test_absurd_figures_are_refused(changes: dict[str, Any]) -> None:
    HardwareProfile.model_validate_json(_broken(), strict=True)
    with pytest.raises(ValidationError):
        HardwareProfile.model_validate_json(_broken(**changes), strict=True)
