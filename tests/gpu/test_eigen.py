"""Products with blocks, eigenpairs and singular values on a real GPU, under limits that force streaming."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pycauset
from pycauset import devices
from pycauset.drivers import block_product
from pycauset.errors import NonFiniteError
from pycauset.governor import governor
from pycauset.linalg import eigs, eigsh, krylov, svds
from pycauset.solver.products import StreamedProduct
from pycauset.solver.run import operation_limits
from pycauset.storage import ArrayStore
from tests.drivers.fakes import random_matrix
from tests.linalg.cases import on_disk

pytestmark = pytest.mark.gpu
DTYPES = ("float32", "float64", "complex64", "complex128")


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["N", "T", "H", "C", "gram", "hermitian", "skew"])
def test_products(dtype: str, case: str, pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many tiles, longer than high."""
    monkeypatch.setattr(block_product, "_ROWS_ON_GPU", 64)
    monkeypatch.setattr(block_product, "_ROW_BYTES_ON_GPU", 256 * np.dtype(dtype).itemsize)
    monkeypatch.setattr(block_product, "_SMALLEST", 1)
    rng = np.random.default_rng()
    a = random_matrix(rng, (1500, 1500), dtype)
    mirror = None
    if case == "hermitian":
        a, mirror = a + a.conj().T, "hermitian"
    elif case == "skew":
        a, mirror = a - a.T, "skew"
    op = case if case in "NTHC" else "N"
    taken = {"N": a, "T": a.T, "H": a.conj().T, "C": a.conj()}[op]
    if pinned:
        a, plain = pycauset.cuda.pinned_empty(a.shape, dtype), a
        a[...] = plain
    gpu = devices.gpu()
    assert gpu is not None
    limits = operation_limits("200MB", "90MB")
    with (
        limits.scope("a test") as scope,
        StreamedProduct(
            gpu, ArrayStore(a), np.dtype(dtype), 6, op=op, mirror=mirror, gram=case == "gram", limits=limits, scope=scope
        ) as product,
    ):
        assert product.plan.tile == (64, 256)
        for columns in (6, 2):
            x = random_matrix(rng, (1500, columns), dtype)
            exact = a.conj().T @ (a @ x) if case == "gram" else taken @ x
            scale = float(np.abs(exact).max())
            np.testing.assert_allclose(product(x), exact, atol=1000 * np.finfo(dtype).eps * scale)


def test_solvers(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    x = rng.standard_normal((900, 900)) + 100 * np.diag(rng.random(900) ** 9)
    before = governor().statistics()
    with pycauset.cuda.force_backend("gpu"):
        s = on_disk(x + x.T, tmp_path / "s.zarr", structure="symmetric", chunks=(256, 256))
        w = eigsh(s, 5, memory="200MB", gpu_memory="90MB", return_eigenvectors=False)
        exact = np.linalg.eigvalsh(x + x.T)
        np.testing.assert_allclose(np.abs(w).max(), np.abs(exact).max(), rtol=1e-11)
        g = on_disk(x, tmp_path / "g.zarr", chunks=(256, 256))
        w, v = eigs(g, 4)
        np.testing.assert_allclose(x @ v, v * w, atol=1e-9)
        np.testing.assert_allclose(svds(g, 2, return_singular_vectors=False)[-1], np.linalg.norm(x, 2), rtol=1e-11)
    assert governor().statistics().device.in_use == before.device.in_use


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_in_gpu_memory(dtype: str) -> None:
    """Used where it lies, the basis beside it; the results are in RAM."""
    cupy = pytest.importorskip("cupy")
    rng = np.random.default_rng()
    x = random_matrix(rng, (700, 700), dtype)
    h = x + x.conj().T
    eps = float(np.finfo(dtype).eps)
    before = governor().statistics()
    w, v, stats = eigsh(cupy.asarray(h), 5, return_stats=True)
    assert isinstance(v, np.ndarray)
    scale = np.linalg.norm(h, 2)
    np.testing.assert_allclose(h @ v, v * w, atol=2000 * eps * scale)
    np.testing.assert_allclose(v.conj().T @ v, np.eye(5), atol=1000 * eps)
    assert stats.passes > 1
    w, v = eigs(cupy.asarray(x), 4)
    np.testing.assert_allclose(x @ v, v * w, atol=2e5 * eps * scale)
    u, s, vh = svds(cupy.asarray(x[:, :500]), 3)
    np.testing.assert_allclose(x[:, :500] @ vh.conj().T, u * s, atol=2e4 * eps * scale)
    assert governor().statistics().device.in_use == before.device.in_use
    h[3, 5] = np.nan
    with pytest.raises(NonFiniteError, match="row 3, column 5"):
        eigsh(cupy.asarray(h), 2)


def test_the_basis_lies_beside_the_tiles() -> None:
    rng = np.random.default_rng()
    n = 3000
    u = rng.standard_normal(n)
    u /= np.linalg.norm(u)
    a = np.diag(1.0 / np.arange(1, n + 1)) + np.outer(u, u)
    kinds = []
    plain = krylov.place

    def spied(*args: object) -> object:
        placed = plain(*args)  # type: ignore[arg-type]
        kinds.append(type(placed.basis).__name__)
        return placed

    with pytest.MonkeyPatch.context() as patch, pycauset.cuda.force_backend("gpu"):
        patch.setattr(krylov, "place", spied)
        roomy = eigsh(a, 4, tol=1e-8, gpu_memory="450MB", return_eigenvectors=False)
        tight = eigsh(a, 4, tol=1e-8, gpu_memory="80MB", return_eigenvectors=False)
    assert kinds == ["DeviceBasis", "ArrayBasis"]
    np.testing.assert_allclose(roomy, tight, rtol=1e-10)
