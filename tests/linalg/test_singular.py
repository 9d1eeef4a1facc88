"""Singular values against LAPACK: tall, wide, graded, rank-deficient, every place and element type; passes counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import aslinearoperator

import pycauset
from pycauset.linalg import cond, norm, randomized_svd, svds
from tests.linalg.cases import DTYPES, lay, on_disk, random, spd

K = 4


def with_values(values: np.ndarray, shape: tuple[int, int], dtype: str, rng: np.random.Generator) -> np.ndarray:
    kind = "complex128" if np.dtype(dtype).kind == "c" else "float64"
    u, _ = np.linalg.qr(random((shape[0], len(values)), kind, rng))
    v, _ = np.linalg.qr(random((shape[1], len(values)), kind, rng))
    return ((u * values) @ v.conj().T).astype(dtype)


def ratio(a: np.ndarray, u: np.ndarray, s: np.ndarray, vh: np.ndarray) -> float:
    """The larger residual of the triplets, relative to ‖A‖ and rounding."""
    ahead = np.linalg.norm(a @ vh.conj().T - u * s, axis=0).max()
    back = np.linalg.norm(a.conj().T @ u - vh.conj().T * s, axis=0).max()
    return float(max(ahead, back)) / (np.finfo(a.dtype).eps * float(np.linalg.norm(a, 2)))


@pytest.mark.parametrize("shape", [(150, 90), (90, 150), (100, 100)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_largest(dtype: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng()
    a = random(shape, dtype, rng)
    u, s, vh = svds(a, K)
    assert (u.shape, s.shape, vh.shape) == ((shape[0], K), (K,), (K, shape[1]))
    assert u.dtype == vh.dtype == np.dtype(dtype)
    exact = np.linalg.svd(a.astype(np.result_type(dtype, "float64")), compute_uv=False)
    np.testing.assert_allclose(s, exact[:K][::-1], rtol=500 * np.finfo(a.dtype).eps)
    assert ratio(a, u, s, vh) < 5000
    np.testing.assert_allclose(u.conj().T @ u, np.eye(K), atol=500 * np.finfo(a.dtype).eps)
    np.testing.assert_allclose(vh @ vh.conj().T, np.eye(K), atol=500 * np.finfo(a.dtype).eps)


def test_residuals_are_those_of_the_triplets() -> None:
    """At a loose tolerance, where they are far above rounding."""
    rng = np.random.default_rng()
    a = with_values(rng.uniform(0, 1, 150), (200, 150), "float64", rng)
    u, s, vh, stats = svds(a, K, tol=1e-3, block_size=1, ncv=20, return_stats=True)
    residuals = np.linalg.norm(a.T @ u - vh.T * s, axis=0)
    assert 1e-6 < residuals.max() <= 1.01e-3
    np.testing.assert_allclose(stats.residuals, residuals, rtol=1e-2, atol=1e-12)


def test_small_ones_are_not_squared() -> None:
    """The smallest singular value is 1e-6 of the largest: its square is lost, it is not."""
    rng = np.random.default_rng()
    values = np.concatenate([np.linspace(1, 2, 68), [1e-5, 1e-6]])
    a = with_values(values, (120, 70), "float64", rng)
    u, s, vh = svds(a, 2, which="SM")
    np.testing.assert_allclose(s, [1e-6, 1e-5], rtol=1e-4)
    np.testing.assert_allclose(a @ vh.T, u * s, atol=1e-13)
    u, s, vh = svds(a, 2, tol=1e-7, which="SM", return_singular_vectors="vh")
    assert u is None
    np.testing.assert_allclose(s, [1e-6, 1e-5], rtol=1e-4)


def test_rank_deficient_and_zero_matrices() -> None:
    rng = np.random.default_rng()
    a = with_values(np.array([3.0, 2.0]), (100, 80), "float64", rng)
    np.testing.assert_allclose(svds(a, 3, return_singular_vectors=False), [0, 2, 3], atol=1e-6)
    assert svds(np.zeros((90, 80)), 2, return_singular_vectors=False).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("place", ["fortran", "disk", "npy", "function", "transposed", "adjoint on disk"])
@pytest.mark.parametrize("shape", [(130, 80), (80, 130)])
def test_places_take_one_pass_a_step(tmp_path: Path, place: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng()
    a = with_values(0.8 ** np.arange(80), shape, "complex128", rng)
    u, s, vh, stats = svds(lay(a, place, tmp_path), K, return_history=True)
    np.testing.assert_allclose(s, 0.8 ** np.arange(K)[::-1], rtol=1e-9)
    assert ratio(a, u, s, vh) < 5000
    assert stats.passes == stats.history[-1].passes + 1


def test_conjugated_and_transposed_views_on_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    a = with_values(0.7 ** np.arange(70), (110, 70), "complex64", rng)
    m = on_disk(a, tmp_path / "a.zarr")
    for view, array in ((m.T, a.T), (m.conj(), a.conj()), (m.H, a.conj().T)):
        u, s, vh = svds(view, 3)
        assert ratio(array, u, s, vh) < 5000


def test_operators_and_sparse_matrices() -> None:
    a = scipy.sparse.random(150, 90, 0.1, random_state=3, format="csr")
    exact = np.linalg.svd(a.toarray(), compute_uv=False)[:K][::-1]
    for operand in (a, aslinearoperator(a), a.T.tocsr()):
        np.testing.assert_allclose(svds(operand, K, return_singular_vectors=False), exact, rtol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["disk", "sparse", "operator"])
@pytest.mark.parametrize("name", ["clustered", "degenerate", "graded"])
def test_hard_values(tmp_path: Path, name: str, form: str, dtype: str) -> None:
    rng = np.random.default_rng()
    values = {
        "clustered": np.concatenate([2 + 1e-6 * np.arange(4), rng.uniform(0, 1, 66)]),
        "degenerate": np.concatenate([[2.0] * 3, [1.5] * 2, rng.uniform(0, 1, 65)]),
        "graded": np.logspace(0, -10, 70),
    }[name]
    a = with_values(values, (110, 70), dtype, rng)
    operand = {"disk": lambda: on_disk(a, tmp_path / "a.zarr"), "sparse": lambda: scipy.sparse.csr_matrix(a)}.get(
        form, lambda: aslinearoperator(a)
    )()
    u, s, vh = svds(operand, K, block_size=4)
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(s, np.sort(values)[-K:], atol=500 * eps * values.max())
    # What lies below the largest loses as much as AᴴA does.
    assert ratio(a, u, s, vh) < 5000 * values.max() / s.min()
    np.testing.assert_allclose(u.conj().T @ u, np.eye(K), atol=1000 * eps)


def test_starting_vectors_drawn_by_the_caller() -> None:
    a = np.random.default_rng().standard_normal((120, 90))
    same = [svds(a, 3, **given)[0] for given in ({"rng": 5}, {"random_state": 5}, {"rng": np.random.default_rng(5)})]
    assert np.array_equal(same[0], same[1])
    assert np.array_equal(same[0], same[2])
    assert not np.array_equal(same[0], svds(a, 3, rng=6)[0])
    np.testing.assert_allclose(svds(a, 3, 40, 0, "LM", None, None, False, "arpack"), np.linalg.svd(a)[1][2::-1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(140, 70), (70, 140)])
def test_randomized(tmp_path: Path, dtype: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng()
    values = 0.5 ** np.arange(70)
    a = with_values(values, shape, dtype, rng)
    u, s, vh, stats = randomized_svd(on_disk(a, tmp_path / "a.zarr"), K, power_iterations=1, return_stats=True)
    assert stats.passes == 3
    np.testing.assert_allclose(s, values[:K], rtol=2000 * np.finfo(a.dtype).eps)
    best = values[K] * 1.001 + 100 * np.finfo(a.dtype).eps
    assert np.linalg.norm(a - (u * s) @ vh, 2) < best
    again = randomized_svd(on_disk(a, tmp_path / "b.zarr"), K, power_iterations=1)
    assert np.array_equal(again[1], s)


def test_randomized_without_power_iterations_reads_twice() -> None:
    rng = np.random.default_rng()
    a = with_values(np.array([5.0, 4.0, 3.0]), (100, 90), "float64", rng)
    u, s, vh, stats = randomized_svd(a, 3, power_iterations=0, return_stats=True)
    assert stats.passes == 2
    np.testing.assert_allclose((u * s) @ vh, a, atol=1e-12)


def test_norm_and_condition(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    a = rng.standard_normal((90, 130))
    assert norm(a, 2) == pytest.approx(np.linalg.norm(a, 2), rel=1e-9)
    s = spd(90, "float64", rng)
    m = on_disk(s, tmp_path / "s.zarr", structure="symmetric")
    assert m.norm(2) == pytest.approx(np.linalg.norm(s, 2), rel=1e-9)
    assert cond(m) == pytest.approx(np.linalg.cond(s), rel=1e-7)
    assert norm(np.zeros((0, 3)), 2) == 0.0
    for n in (1, 2, 3, 5):
        small = pycauset.asmatrix(spd(n, "complex128", rng), is_positive_definite=True)
        assert cond(small) == pytest.approx(np.linalg.cond(small.to_numpy()), rel=1e-7)
