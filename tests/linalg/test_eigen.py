"""Eigenpairs against LAPACK on the whole matrix: hard spectra, every place and element type, passes counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from scipy.sparse.linalg import eigsh as scipy_eigsh

import pycauset
from pycauset.drivers import block_product
from pycauset.linalg import eigs, eigsh
from tests.linalg.cases import DTYPES, lay, on_disk, random

N, K = 150, 5
CHUNKS = (32, 32)
FORMS = ["array", "disk", "sparse", "operator"]


def given(a: np.ndarray, form: str, folder: Path) -> Any:
    """The array as one of the four kinds of operand."""
    if form == "disk":
        return on_disk(a, folder / "a.zarr")
    return {"array": lambda x: x, "sparse": scipy.sparse.csr_matrix, "operator": aslinearoperator}[form](a)


def orthogonal(n: int, dtype: str, rng: np.random.Generator) -> np.ndarray:
    q, _ = np.linalg.qr(random((n, n), "complex128" if np.dtype(dtype).kind == "c" else "float64", rng))
    return q


def hermitian(values: np.ndarray, dtype: str, rng: np.random.Generator) -> np.ndarray:
    q = orthogonal(len(values), dtype, rng)
    a = (q * values) @ q.conj().T
    return ((a + a.conj().T) / 2).astype(dtype)


def spectrum(name: str, n: int, rng: np.random.Generator) -> np.ndarray:
    return {
        "spread": np.linspace(-1, 1, n) ** 3 + 0.1 * rng.random(n),
        "clustered": np.concatenate([1 + 1e-6 * np.arange(8), rng.uniform(-0.5, 0.5, n - 8)]),
        "degenerate": np.concatenate([[3.0] * 3, [-2.5] * 2, rng.uniform(-1, 1, n - 5)]),
        "graded": np.logspace(0, -12, n) * np.where(np.arange(n) % 2, -1, 1),
        "few": np.concatenate([[2.0] * 4, [1.0] * 3, np.zeros(n - 7)]),
    }[name]


def tolerance(a: np.ndarray) -> float:
    return 2000 * float(np.finfo(a.dtype).eps) * float(np.linalg.norm(a, 2))


def wanted(values: np.ndarray, which: str, k: int) -> np.ndarray:
    """By SciPy's documentation, not by our own order."""
    up = np.sort(values)
    if which == "BE":
        return np.concatenate([up[: k // 2], up[len(up) - (k + 1) // 2 :]])
    if which in ("LA", "SA"):
        return up[-k:] if which == "LA" else up[:k]
    by_size = values[np.argsort(np.abs(values))]
    return np.sort(by_size[-k:] if which == "LM" else by_size[:k])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["spread", "clustered", "degenerate", "graded", "few"])
def test_hermitian_spectra(tmp_path: Path, name: str, form: str, dtype: str) -> None:
    rng = np.random.default_rng()
    a = hermitian(spectrum(name, N, rng), dtype, rng)
    exact = np.linalg.eigvalsh(a.astype("complex128" if np.dtype(dtype).kind == "c" else "float64"))
    w, v = eigsh(given(a, form, tmp_path), K, which="LA", block_size=4)
    assert w.dtype == np.empty(0, dtype).real.dtype
    assert v.dtype == np.dtype(dtype)
    np.testing.assert_allclose(w, exact[-K:], atol=tolerance(a))
    np.testing.assert_allclose(v.conj().T @ v, np.eye(K), atol=1000 * np.finfo(a.dtype).eps)
    residuals = np.linalg.norm(a @ v - v * w, axis=0)
    assert residuals.max() < tolerance(a)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", [eigsh, eigs])
def test_residuals_are_those_of_the_pairs(call: Any, dtype: str) -> None:
    """At a loose tolerance, where they are far above rounding."""
    rng = np.random.default_rng()
    a = hermitian(rng.uniform(0, 1, N), dtype, rng)
    w, v, stats = call(a, K, which="LA" if call is eigsh else "LR", tol=1e-3, block_size=1, ncv=20, return_stats=True)
    residuals = np.linalg.norm(a @ v - v * w, axis=0)
    assert 1e-5 < residuals.max() <= 1.01e-3 * np.linalg.norm(a, 2)
    np.testing.assert_allclose(stats.residuals, residuals, rtol=1e-2, atol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("which", ["LM", "SM", "LA", "SA", "BE"])
def test_every_which(which: str) -> None:
    rng = np.random.default_rng()
    a = hermitian(rng.uniform(-1, 1, 90) ** 3, "float64", rng)
    np.testing.assert_allclose(
        eigsh(a, K, which=which, return_eigenvectors=False), wanted(np.linalg.eigvalsh(a), which, K), atol=tolerance(a)
    )


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("place", ["ram", "fortran", "disk", "one triangle", "npy", "function", "transposed", "adjoint on disk"])
def test_places(tmp_path: Path, place: str, dtype: str) -> None:
    rng = np.random.default_rng()
    a = hermitian(spectrum("spread", N, rng), dtype, rng)
    if place == "one triangle":
        m = on_disk(a, tmp_path / "a.zarr", structure="hermitian" if dtype == "complex128" else "symmetric")
    else:
        m = lay(a, place, tmp_path)
    w, v = eigsh(m, K, which="LA")  # largest magnitudes may tie, one from either end
    np.testing.assert_allclose(w, wanted(np.linalg.eigvalsh(a), "LA", K), atol=tolerance(a))
    assert np.linalg.norm(a @ v - v * w) < 3 * tolerance(a)
    assert np.isfinite(v).all()


def test_only_the_lower_triangle_of_a_matrix_on_disk_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng()
    a = hermitian(spectrum("spread", 128, rng), "float64", rng)
    spoiled = a.copy()
    spoiled[:32, 64:] = np.nan
    monkeypatch.setattr(block_product, "_SMALLEST", 1)  # tiles of one chunk
    w = eigsh(on_disk(spoiled, tmp_path / "a.zarr", chunks=CHUNKS), K, return_eigenvectors=False)
    np.testing.assert_allclose(w, wanted(np.linalg.eigvalsh(a), "LM", K), atol=tolerance(a))


def test_passes_over_the_matrix_are_a_third_of_scipys_products(tmp_path: Path) -> None:
    """The sample covariance of 1200 observations of 400 variables: its spectrum has no gaps."""
    rng = np.random.default_rng(7)
    g = rng.standard_normal((400, 1200))
    a = g @ g.T / 1200
    count = [0]

    def multiply(x: np.ndarray) -> np.ndarray:
        count[0] += 1
        return a @ x

    scipy_eigsh(LinearOperator(a.shape, multiply, dtype=a.dtype), 8, tol=1e-8, v0=np.ones(400))
    w, _, stats = eigsh(on_disk(a, tmp_path / "a.zarr", chunks=(64, 64)), 8, tol=1e-8, return_stats=True)
    assert count[0] >= 45
    assert stats.passes <= count[0] / 3
    np.testing.assert_allclose(w, np.linalg.eigvalsh(a)[-8:], rtol=1e-9)
    again = eigsh(on_disk(a, tmp_path / "b.zarr", chunks=(64, 64)), 8, tol=1e-8, return_stats=True)
    assert again[2].passes == stats.passes
    np.testing.assert_array_equal(again[0], w)


def test_restarts_lock_what_has_converged_and_the_history_tells() -> None:
    rng = np.random.default_rng()
    a = hermitian(rng.uniform(0, 1, 300), "float64", rng)
    w, stats = eigsh(a, 4, block_size=2, ncv=24, return_eigenvectors=False, return_history=True)
    np.testing.assert_allclose(w, np.linalg.eigvalsh(a)[-4:], atol=tolerance(a))
    assert stats.restarts == stats.history[-1].restarts > 2
    assert stats.history[-1].converged == 4
    assert all(entry.basis <= 24 for entry in stats.history)
    assert [entry.passes for entry in stats.history] == sorted({entry.passes for entry in stats.history})
    assert stats.products == 2 * stats.history[-1].passes + 4


def test_operators_and_sparse_matrices() -> None:
    rng = np.random.default_rng()
    a = scipy.sparse.random(200, 200, 0.05, random_state=1, format="csr")
    a = a + a.T
    exact = np.linalg.eigvalsh(a.toarray())
    for operand in (a, aslinearoperator(a)):
        np.testing.assert_allclose(eigsh(operand, K, which="SA", return_eigenvectors=False), exact[:K], atol=1e-10)
    sigma = float(rng.uniform(-0.1, 0.1))
    near = np.sort(exact[np.argsort(np.abs(exact - sigma))[:3]])
    np.testing.assert_allclose(eigsh(a, 3, sigma=sigma, return_eigenvectors=False), near, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("sigma", [None, 0.0, 500.0])
def test_shift_and_second_matrix(dtype: str, sigma: float | None) -> None:
    rng = np.random.default_rng()
    a = hermitian(rng.uniform(1, 100, 90), dtype, rng)
    m = hermitian(rng.uniform(1, 4, 90), dtype, rng)
    for second in (None, m):
        exact = scipy.linalg.eigh(a, second, eigvals_only=True)
        w, v = eigsh(a, 4, second, sigma)
        near = np.sort(exact[np.argsort(np.abs(exact - sigma))[:4]]) if sigma is not None else exact[-4:]
        np.testing.assert_allclose(w, near, rtol=1e-9)
        right = v if second is None else second @ v
        np.testing.assert_allclose(a @ v, right * w, atol=1e-8)
        np.testing.assert_allclose(v.conj().T @ right, np.eye(4), atol=1e-9)


# ---- general matrices ------------------------------------------------------------------------------------------------


def general(name: str, n: int, dtype: str, rng: np.random.Generator) -> np.ndarray:
    x = random((n, n), dtype, rng) / n**0.5
    if name == "non-normal":
        x = np.triu(x, 1) + np.diag(np.linspace(0.1, 2, n)).astype(dtype)
    elif name == "defective":
        x = x / 4
        x[:, :3] = 0
        x[:3, :3] = 2 * np.eye(3) + np.eye(3, k=1)
    elif name == "graded":
        x = x * np.logspace(0, -8, n)[:, None]
    elif name in ("clustered", "degenerate"):
        top = 2 + 1e-5 * np.arange(4) if name == "clustered" else np.array([2.0, 2.0, 2.0, -2.0])
        basis = np.eye(n) + x / 4
        x = basis @ np.diag(np.concatenate([top, rng.uniform(-1, 1, n - 4)])) @ np.linalg.inv(basis)
    elif name == "skew":
        x = x - x.conj().T
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["random", "non-normal", "graded", "clustered", "degenerate", "defective", "skew"])
def test_general_matrices(tmp_path: Path, name: str, form: str, dtype: str) -> None:
    rng = np.random.default_rng()
    a = general(name, 120, dtype, rng)
    w, v = eigs(given(a, form, tmp_path), K)
    assert w.dtype.kind == v.dtype.kind == "c"
    assert np.linalg.norm(a @ v - v * w, axis=0).max() < 2 * tolerance(a)
    np.testing.assert_allclose(np.linalg.norm(v, axis=0), 1, rtol=1e-4)
    exact = np.linalg.eigvals(a.astype("complex128"))
    largest = np.sort(np.abs(exact))[::-1][:K]
    single = np.finfo(a.dtype).eps > 1e-8
    # A Jordan block of order 3 moves its eigenvalues by the cube root of rounding; those of triangles are sensitive, too.
    rtol = (5e-2 if single else 1e-4) if name in ("defective", "non-normal") else 1e-2 if single else 1e-6
    np.testing.assert_allclose(np.abs(w), largest, rtol=rtol)
    if name in ("clustered", "degenerate"):
        assert np.linalg.svd(v[:, :4], compute_uv=False)[-1] > 1e-6  # four vectors, not one four times: any basis will do


@pytest.mark.parametrize("which", ["LM", "SM", "LR", "SR", "LI", "SI"])
def test_every_which_of_general_matrices(which: str) -> None:
    rng = np.random.default_rng()
    a = general("random", 80, "float64", rng)
    w = eigs(a, 4, which=which, return_eigenvectors=False)
    key = {"M": np.abs, "R": np.real, "I": lambda z: np.abs(z.imag)}[which[1]]
    exact = np.sort(key(np.linalg.eigvals(a)))
    np.testing.assert_allclose(np.sort(key(w)), exact[-4:] if which[0] == "L" else exact[:4], atol=1e-9)


@pytest.mark.parametrize("structure", ["full", "skew"])
def test_skew_symmetric_matrices_have_imaginary_eigenvalues(tmp_path: Path, structure: str) -> None:
    rng = np.random.default_rng()
    x = rng.standard_normal((N, N))
    a = x - x.T
    m = on_disk(a, tmp_path / "a.zarr", structure=structure)
    m.properties.is_skew_symmetric = True
    w, v = eigs(m, 6, tol=1e-12)
    assert np.all(w.real == 0)
    assert np.linalg.norm(a @ v - v * w, axis=0).max() < 1e-10 * np.linalg.norm(a, 2)
    exact = np.sort(np.abs(np.linalg.eigvalsh(1j * a)))[-6:]
    np.testing.assert_allclose(np.sort(np.abs(w)), exact, rtol=1e-10)


@pytest.mark.parametrize("op", ["N", "T", "H", "C"])
def test_views_of_general_matrices_on_disk(tmp_path: Path, op: str) -> None:
    rng = np.random.default_rng()
    a = general("random", N, "complex128", rng)
    m = on_disk(a, tmp_path / "a.zarr")
    m, a = {"N": (m, a), "T": (m.T, a.T), "H": (m.H, a.conj().T), "C": (m.conj(), a.conj())}[op]
    w, v = eigs(m, 3)
    assert np.linalg.norm(a @ v - v * w) < tolerance(a)


def test_a_matrix_is_scipys_linear_operator(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    a = hermitian(spectrum("spread", 90, rng), "float64", rng)
    operator = on_disk(a, tmp_path / "a.zarr").aslinearoperator()
    by_scipy = scipy_eigsh(operator, 3, return_eigenvectors=False)  # in no promised order
    np.testing.assert_allclose(np.sort(by_scipy), eigsh(a, 3, return_eigenvectors=False))
    x = rng.standard_normal((90, 3))
    np.testing.assert_allclose(operator.rmatmat(x), a.T @ x, atol=1e-12)
    assert pycauset.asmatrix(np.ones((3, 5))).aslinearoperator().matvec(np.ones(5)).shape == (3,)
