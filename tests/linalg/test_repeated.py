"""Eigenvalues that are repeated more often than a block has columns: all copies are found, and their vectors are orthogonal."""

from __future__ import annotations

import numpy as np
import pytest

from pycauset.linalg import eigs, eigsh, svds
from tests.linalg.cases import random

N, K = 300, 6


def repeated(multiplicity: int, rng: np.random.Generator) -> np.ndarray:
    """The two largest eigenvalues so many times each, then gaps at either end of the rest."""
    ends = np.linspace(0.9, 1.2, 4)
    inner = rng.uniform(-0.8, 0.8, N - 2 * multiplicity - 8)
    return np.concatenate([[2.0] * multiplicity, [1.5] * multiplicity, ends, -ends, inner])


def orthogonal(n: int, dtype: str, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(random((n, n), dtype, rng))[0]


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("tol", [0, 1e-5])
@pytest.mark.parametrize("block", [1, 4, 24])
@pytest.mark.parametrize("multiplicity", [1, 3, 10, 40])
def test_all_copies_are_found(multiplicity: int, block: int, tol: float, dtype: str) -> None:
    rng = np.random.default_rng()
    values, q = repeated(multiplicity, rng), orthogonal(N, dtype, rng)
    a = (q * values.astype(q.real.dtype)) @ q.conj().T
    a = (a + a.conj().T) / 2
    w, v, stats = eigsh(a, K, which="LA", block_size=block, tol=tol, return_stats=True)
    np.testing.assert_allclose(w, np.sort(values)[-K:], atol=1e-4)
    np.testing.assert_allclose(v.conj().T @ v, np.eye(K), atol=200 * np.finfo(dtype).eps)
    assert stats.residuals.max() <= max(tol, 2000 * np.finfo(dtype).eps) * 2.0


@pytest.mark.parametrize("which", ["LM", "SA", "BE"])
def test_copies_at_either_end(which: str) -> None:
    rng = np.random.default_rng()
    values, q = repeated(5, rng), orthogonal(N, "float64", rng)
    values[-4:] = -2.5
    a = (q * values) @ q.T
    w = eigsh((a + a.T) / 2, 8, which=which, block_size=2, tol=1e-6, return_eigenvectors=False)
    up = np.sort(values)
    expected = {"LM": [-2.5] * 4 + [2.0] * 4, "SA": up[:8], "BE": [*up[:4], *up[-4:]]}[which]
    np.testing.assert_allclose(w, expected, atol=1e-5)


def test_an_eigenvector_to_start_with_hides_nothing() -> None:
    rng = np.random.default_rng()
    values, q = repeated(1, rng), orthogonal(N, "float64", rng)
    a = (q * values) @ q.T
    w = eigsh((a + a.T) / 2, 3, which="LA", v0=q[:, 1], block_size=1, tol=1e-8, return_eigenvectors=False)
    np.testing.assert_allclose(w, np.sort(values)[-3:], atol=1e-7)


@pytest.mark.parametrize("block", [1, 3])
def test_copies_of_general_matrices_and_singular_values(block: int) -> None:
    rng = np.random.default_rng()
    values = repeated(10, rng)
    x = np.eye(N) + 0.2 * rng.standard_normal((N, N)) / N**0.5
    a = x @ np.diag(values) @ np.linalg.inv(x)
    w, v = eigs(a, K, block_size=block, tol=1e-6)
    np.testing.assert_allclose(w, 2.0, atol=1e-4)
    assert np.linalg.norm(a @ v - v * w, axis=0).max() < 1e-5
    # Any basis of the eigenspace will do, and one in some thousands is as skewed as 1e-3; the same vector twice is below 1e-7.
    assert np.linalg.matrix_rank(v, tol=1e-6) == K
    b = (orthogonal(N, "float64", rng) * np.abs(values)) @ orthogonal(N, "float64", rng)
    s = svds(b, K, block_size=block, tol=1e-6, return_singular_vectors=False)
    np.testing.assert_allclose(s, 2.0, atol=1e-4)


def test_a_wide_block_costs_no_pass_more() -> None:
    """Fewer copies than the block has columns are all there are: nothing has to be looked for."""
    rng = np.random.default_rng()
    values, q = repeated(3, rng), orthogonal(N, "float64", rng)
    a = (q * values) @ q.T
    _, stats = eigsh((a + a.T) / 2, K, which="LA", block_size=8, tol=1e-8, return_eigenvectors=False, return_history=True)
    assert stats.history[-2].converged < K  # it ended with the first test that was passed
