"""Products with a triangular operand: half the flops in core and streamed on the CPU, and nothing beyond the triangle counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pycauset
from pycauset.config import settings
from pycauset.drivers.triangular import TriangularProductDriver
from pycauset.errors import MemoryLimitError
from pycauset.hardware import load_machine, use_probe
from pycauset.properties import mask
from pycauset.solver import Factor, kernel_of, last_statistics, multiply, plan
from pycauset.storage import ArrayStore
from pycauset.units import parse_bytes
from tests.drivers.fakes import random_matrix
from tests.solver.test_solver import LIMIT, ROOT, on_disk, phantom, read

OPS = {"N": lambda t: t, "T": lambda t: t.T, "H": lambda t: t.conj().T}
FLAG = {"L": mask("is_lower_triangular"), "U": mask("is_upper_triangular")}


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("route", ["NumPy in core", "streamed NumPy"])
def test_only_the_triangle_counts(route: str, dtype: str) -> None:
    rng = np.random.default_rng()
    for uplo, op, side, order in (("L", "N", "L", "C"), ("U", "T", "L", "F"), ("L", "H", "R", "C"), ("U", "N", "R", "F")):
        n, m = (int(size) for size in rng.integers(60, 200, 2))
        inside = np.tri(n, dtype=bool) if uplo == "L" else np.tri(n, dtype=bool).T
        t, b = random_matrix(rng, (n, n), dtype), random_matrix(rng, (n, m) if side == "L" else (m, n), dtype)
        meant = OPS[op](np.where(inside, t, 0))
        exact = meant @ b.astype(np.result_type(dtype, "float64")) if side == "L" else b.astype("complex128") @ meant
        t[~inside] = np.nan
        flags = FLAG[uplo if op == "N" else {"L": "U", "U": "L"}[uplo]]  # they speak of what op makes of it
        factors = Factor(ArrayStore(t), op, flags), Factor(ArrayStore(np.asarray(b, order=order)))
        with settings(backend="cpu"):
            product = read(multiply(*(factors if side == "L" else factors[::-1]), alpha=2, route=route))
        bound = n * np.abs(meant).max() * np.abs(b).max() * np.finfo(dtype).eps
        assert np.abs(product - 2 * exact).max() < 30 * bound


def test_a_triangle_on_disk_takes_half_the_flops(tmp_path: Any) -> None:
    rng = np.random.default_rng()
    n, m = 600, 300
    t, b = rng.standard_normal((n, n)), rng.standard_normal((n, m))
    right = Factor(on_disk(tmp_path / "b.zarr", b))
    for structure, part in (("lower", np.tril), ("upper", np.triu)):
        left = Factor(on_disk(tmp_path / f"{structure}.zarr", part(t), structure=structure))
        full = Factor(on_disk(tmp_path / f"full_{structure}.zarr", part(t)))
        with settings(backend="cpu"):
            found, general = (plan("matmul", a, right, memory=LIMIT) for a in (left, full))
            assert found.layout.kernel == "trmm"
            assert found.flops == general.flops / 2 == n * n * m
            assert "by trmm" in found.explain()
            product = read(multiply(left, right, memory=LIMIT, route="streamed NumPy"))
        np.testing.assert_allclose(product, part(t) @ b, rtol=0, atol=1e-10)
        statistics = last_statistics()
        assert statistics is not None
        assert statistics.flops <= n * (n + 128) * m


def test_the_cost_model_knows_what_a_triangle_saves() -> None:
    with use_probe(load_machine(ROOT / "profiles" / "no_gpu.json")):
        t, b = ArrayStore(np.ones((2000, 2000))), ArrayStore(np.ones((2000, 2000)))
        found = [plan("matmul", Factor(t, flags=flags), Factor(b)) for flags in (FLAG["L"], 0)]
    assert [solution.layout.kernel for solution in found] == ["trmm", "gemm"]
    assert [solution.route.name for solution in found] == ["NumPy in core"] * 2
    assert 0.5 * found[1].seconds < found[0].seconds < 0.75 * found[1].seconds


def test_what_trmm_cannot_do_is_a_full_product(tmp_path: Any) -> None:
    rng = np.random.default_rng()
    n = 300
    t, b = np.tril(rng.standard_normal((n, n))), rng.standard_normal((n, n))
    left = Factor(ArrayStore(t), flags=FLAG["L"])
    out = ArrayStore(b.copy())
    multiply(left, Factor(ArrayStore(b)), out=out, beta=3.0)  # it adds to nothing
    np.testing.assert_allclose(read(out), t @ b + 3 * b, atol=1e-11)
    across = Factor(on_disk(tmp_path / "b.zarr", b), "T")  # not as it is stored
    assert kernel_of(left, across)[0] == "gemm"
    np.testing.assert_allclose(read(multiply(left, across)), t @ b.T, atol=1e-11)
    bits = Factor(ArrayStore(t > 0), flags=FLAG["L"])  # counts
    assert kernel_of(bits, bits)[0] == "gemm"
    assert kernel_of(bits, left)[0] == "trmm"
    tall = Factor(ArrayStore(np.ones((4, 2))), flags=FLAG["L"])  # a trapezoid
    assert kernel_of(tall, phantom((2, 2)))[0] == "gemm"


def test_where_trmm_does_not_fit_a_full_product_may(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def refuse(*_: Any) -> Any:
        raise MemoryLimitError("too little")

    rng = np.random.default_rng()
    t, b = np.tril(rng.standard_normal((1400, 1400))), rng.standard_normal((1400, 200))
    left, right = Factor(on_disk(tmp_path / "t.zarr", t, (256, 256)), flags=FLAG["L"]), Factor(on_disk(tmp_path / "b.zarr", b))
    monkeypatch.setattr(TriangularProductDriver, "plan", refuse)
    with settings(backend="cpu"):
        assert plan("matmul", left, right, memory=LIMIT).layout.kernel == "gemm"
        np.testing.assert_allclose(read(multiply(left, right, memory=LIMIT)), t @ b, atol=1e-10)


def test_the_least_memory_is_that_of_the_triangular_product() -> None:
    n = 3000
    full, right = phantom((n, n)), phantom((n, n))
    with use_probe(load_machine(ROOT / "profiles" / "no_gpu.json")):
        for left, other, kernel in ((replace(full, flags=FLAG["L"]), right, "trmm"), (full, right, "gemm")):
            enough = parse_bytes(plan("matmul", left, other, out_on_disk=True, memory="74MB").enough)
            assert plan("matmul", left, other, out_on_disk=True, memory=enough).layout.kernel == kernel
            less = plan("matmul", left, other, out_on_disk=True, memory=int(0.97 * enough))
            with pytest.raises(MemoryLimitError, match="is enough"):
                _ = less.route


def test_claims_of_a_matrix_reach_the_kernel() -> None:
    rng = np.random.default_rng()
    n = 450  # larger than what goes to np.matmul unasked
    full, b = rng.standard_normal((n, n)), rng.standard_normal((n, n))
    a = pycauset.asmatrix(full)
    a.properties.is_upper_triangular = True
    for product, exact in ((a @ b, np.triu(full) @ b), (a.T @ b, np.triu(full).T @ b), (b @ a, b @ np.triu(full))):
        np.testing.assert_allclose(product.to_numpy(), exact, atol=1e-11)
