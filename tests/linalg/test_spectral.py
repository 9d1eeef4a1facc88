"""Problems with a second matrix, shifts and SciPy's modes: against LAPACK on the whole pencil, and against SciPy's own ARPACK."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from scipy.sparse.linalg import aslinearoperator
from scipy.sparse.linalg import eigsh as scipy_eigsh

import pycauset
from pycauset.errors import NotConvergedError
from pycauset.linalg import eigen, eigs, eigsh
from tests.linalg.cases import DTYPES, on_disk, random, spd
from tests.tickets import host_bytes_in_use

N, K = 90, 4
Array = np.ndarray[Any, Any]


def hermitian(n: int, dtype: str, rng: np.random.Generator, values: Array | None = None) -> Array:
    q, _ = np.linalg.qr(random((n, n), "complex128" if np.dtype(dtype).kind == "c" else "float64", rng))
    a = (q * (rng.uniform(1, 100, n) if values is None else values)) @ q.conj().T
    return ((a + a.conj().T) / 2).astype(dtype)


def eps(dtype: str) -> float:
    return float(np.finfo(dtype).eps)


def nearest(values: Array, wanted: Array, k: int) -> Array:
    """The k eigenvalues whose transformed values ``wanted`` are largest in magnitude, ascending."""
    return np.sort(values[np.argsort(np.abs(wanted))[-k:]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", ["ram", "disk", "one triangle", "sparse"])
def test_general_problems_with_a_second_matrix(tmp_path: Path, place: str, dtype: str) -> None:
    rng = np.random.default_rng()
    a, m = random((N, N), dtype, rng), spd(N, dtype, rng)
    given: Any = m
    if place == "disk":
        given = on_disk(m, tmp_path / "m.zarr")
    elif place == "one triangle":
        given = on_disk(m, tmp_path / "m.zarr", structure="hermitian" if np.dtype(dtype).kind == "c" else "symmetric")
    elif place == "sparse":
        given = scipy.sparse.csr_matrix(m)
    operand = on_disk(a, tmp_path / "a.zarr") if place != "ram" else a
    w, v = eigs(operand, K, given)
    exact = scipy.linalg.eigvals(a.astype("complex128"), m.astype("complex128"))
    np.testing.assert_allclose(np.abs(w), np.sort(np.abs(exact))[::-1][:K], rtol=2e5 * eps(dtype))
    residual = np.linalg.norm(a @ v - m @ v * w, axis=0) / np.linalg.norm(v, axis=0)
    assert residual.max() < 2000 * eps(dtype) * np.linalg.norm(a, 2)
    np.testing.assert_allclose(np.einsum("ij,ij->j", v.conj(), m @ v).real, 1, rtol=1e4 * eps(dtype))


def test_skew_problems_with_a_second_matrix_stay_imaginary(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    x, m = rng.standard_normal((N, N)), spd(N, "float64", rng)
    skew = on_disk(x - x.T, tmp_path / "a.zarr", structure="skew")
    w, v = eigs(skew, K, m)
    assert np.all(w.real == 0)
    exact = np.sort(np.abs(scipy.linalg.eigvals(x - x.T, m)))[::-1][:K]
    np.testing.assert_allclose(np.abs(w), exact, rtol=1e-9)
    np.testing.assert_allclose((x - x.T) @ v, m @ v * w, atol=1e-10)


def test_the_element_type_is_that_of_both() -> None:
    rng = np.random.default_rng()
    a, m = hermitian(N, "float64", rng), spd(N, "complex128", rng)
    w, v = eigsh(a.astype("float32"), K, m)
    assert v.dtype == np.dtype("complex128")
    np.testing.assert_allclose(w, scipy.linalg.eigh(a.astype("float32").astype(float), m, eigvals_only=True)[-K:], rtol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["normal", "cayley", "buckling"])
@pytest.mark.parametrize("place", ["ram", "disk"])
def test_modes(tmp_path: Path, place: str, mode: str, dtype: str) -> None:
    """A positive definite; M indefinite in buckling mode, positive definite in the others."""
    rng = np.random.default_rng()
    a = hermitian(N, dtype, rng)
    signs = np.where(rng.random(N) < 0.3, -1.0, 1.0) if mode == "buckling" else np.ones(N)
    m = hermitian(N, dtype, rng, rng.uniform(1, 4, N) * signs)
    inverse = scipy.linalg.eigh(m.astype("complex128"), a.astype("complex128"), eigvals_only=True)
    exact = 1 / inverse
    sigma = 0.5 / inverse.max()  # A - sigma M is definite
    shifted = {"normal": 1, "cayley": exact + sigma, "buckling": exact}[mode] / (exact - sigma)
    operands = (on_disk(a, tmp_path / "a.zarr"), on_disk(m, tmp_path / "m.zarr")) if place == "disk" else (a, m)
    w, v = eigsh(operands[0], K, operands[1], sigma, mode=mode, which="LM")
    np.testing.assert_allclose(w, nearest(exact, shifted, K), rtol=1e5 * eps(dtype))
    residual = np.linalg.norm(a @ v - m @ v * w, axis=0) / np.linalg.norm(v, axis=0)
    assert residual.max() < 1e4 * eps(dtype) * (np.linalg.norm(a, 2) + np.abs(w).max() * np.linalg.norm(m, 2))
    inner = v.conj().T @ (a if mode == "buckling" else m) @ v
    np.testing.assert_allclose(inner, np.eye(K), atol=1e5 * eps(dtype))


@pytest.mark.parametrize("which", ["LM", "SM", "LA", "SA", "BE"])
@pytest.mark.parametrize("mode", ["normal", "cayley", "buckling"])
def test_which_goes_by_the_shifted_values_as_in_scipy(mode: str, which: str) -> None:
    rng = np.random.default_rng()
    a = hermitian(40, "float64", rng, np.linspace(1, 3, 40))
    m = hermitian(40, "float64", rng, np.linspace(1, 1.2, 40))
    inverse = np.linalg.inv(a - 0.4 * m)
    for operand, inverted in ((a, None), (aslinearoperator(a), aslinearoperator(inverse))):
        if inverted is not None and mode == "buckling":
            continue  # A must be factored
        ours = eigsh(operand, 3, m, 0.4, which, mode=mode, OPinv=inverted, return_eigenvectors=False)
        theirs = scipy_eigsh(a, 3, m, 0.4, which, mode=mode, OPinv=inverse, return_eigenvectors=False, ncv=40)
        np.testing.assert_allclose(ours, np.sort(theirs), rtol=1e-8)


@pytest.mark.parametrize("sigma", [0.3, -0.2 + 0.5j])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("second", [False, True])
def test_general_problems_near_a_shift(second: bool, dtype: str, sigma: complex) -> None:
    """By SuperLU for sparse matrices, else by the caller's inverse; M singular, which only multiplies."""
    rng = np.random.default_rng()
    a = random((N, N), dtype, rng) / N**0.5
    m = spd(N, dtype, rng) / N if second else None
    if m is not None:
        m[:, :2] = 0
        m[:2] = 0
    inverse = np.linalg.inv(a - sigma * (np.eye(N) if m is None else m))
    values = scipy.linalg.eigvals(a, m)
    values = values[np.isfinite(values) & (np.abs(values) < 1e6)]
    exact = np.sort(np.abs(values - sigma))[:K]
    ways: list[Callable[[], Any]] = [
        lambda: eigs(scipy.sparse.csc_matrix(a), K, None if m is None else scipy.sparse.csc_matrix(m), sigma),
        lambda: eigs(scipy.sparse.csr_matrix(a), K, m, sigma),
        lambda: eigs(aslinearoperator(a), K, None if m is None else aslinearoperator(m), sigma, OPinv=inverse),
        lambda: eigs(a, K, m, sigma, OPinv=aslinearoperator(inverse)),
    ]
    for way in ways:
        w, v = way()
        near = np.sort(np.abs(w - sigma))
        np.testing.assert_allclose(near[: K - 1], exact[: K - 1], rtol=1e-6)  # the last may be one of a pair at one distance
        right = v if m is None else m @ v
        np.testing.assert_allclose(a @ v, right * w, atol=1e-7)


@pytest.mark.parametrize("k", [K, N - 1, N])
def test_minv_instead_of_a_factorisation(k: int) -> None:
    rng = np.random.default_rng()
    a, m = random((N, N), "float64", rng), spd(N, "float64", rng)
    m[0, 1] += 0.5 * m[0, 0]  # need not even be symmetric
    inverse = aslinearoperator(np.linalg.inv(m))
    w, v = eigs(a, k, aslinearoperator(m), Minv=inverse)
    np.testing.assert_allclose(a @ v, m @ v * w, atol=1e-8)
    theirs = scipy.linalg.eigvals(a, m)
    np.testing.assert_allclose(np.sort(np.abs(w)), np.sort(np.abs(theirs))[-k:], rtol=1e-8)


def test_nearly_all_pairs_near_a_shift_with_a_singular_matrix() -> None:
    """As many eigenvalues are infinite as M lacks ranks; they are the last ones wanted."""
    rng = np.random.default_rng()
    a, m = random((N, N), "float64", rng), random((N, N), "float64", rng) / N**0.5 + 3 * np.eye(N)
    m[:, :1] = 0
    m[:1] = 0
    w, v, stats = eigs(scipy.sparse.csc_matrix(a), N - 1, scipy.sparse.csc_matrix(m), 0.3, return_stats=True)
    assert np.isfinite(w[: N - 2]).all()
    distances = np.abs(w[: N - 2] - 0.3)
    assert np.all(np.diff(distances) > -1e-6 * distances.max())
    left, right = a @ v[:, : N - 2], m @ v[:, : N - 2] * w[: N - 2]
    np.testing.assert_allclose(left, right, atol=1e-8 * (1 + np.abs(w[: N - 2]).max()))
    assert stats.block_size == 0


@pytest.mark.parametrize("sigma", [None, -1.0])
@pytest.mark.parametrize("function", [eigsh, eigs])
def test_residuals_are_those_of_the_original_problem(function: Any, sigma: float | None) -> None:
    rng = np.random.default_rng()
    a, m = hermitian(N, "float64", rng), spd(N, "float64", rng) / N
    given = {} if sigma is None or function is eigsh else {"OPinv": np.linalg.inv(a - sigma * m)}
    w, v, stats = function(a, K, m, sigma, tol=1e-5, return_stats=True, **given)
    measured = np.linalg.norm(a @ v - m @ v * w, axis=0) / np.linalg.norm(v, axis=0)
    np.testing.assert_allclose(stats.residuals, measured, rtol=1e-3, atol=1e-10)
    assert np.all(measured <= 1e-4 * stats.norm)
    exact = np.linalg.norm(a, 2) + np.abs(w).max() * np.linalg.norm(m, 2)
    assert 0.1 * exact < stats.norm < 1.0001 * exact


def test_inverses_and_second_matrices_that_do_not_belong_are_found() -> None:
    rng = np.random.default_rng()
    a, m = hermitian(N, "float64", rng), spd(N, "float64", rng)
    skewed = m + np.triu(np.ones((N, N)), 1) * N
    both = "pairs of A and M"
    alone = r"pairs of A, .* sigma=0.5 is \(almost\) an eigenvalue.* OPinv does not belong to A and sigma"
    for call, text in (
        (lambda: eigsh(a, K, sigma=0.5, OPinv=np.linalg.inv(a + 20 * np.eye(N))), alone),
        (lambda: eigs(a, K, sigma=0.5, OPinv=np.linalg.inv(a + 20 * np.eye(N))), alone),
        (lambda: eigs(a, K, m, Minv=np.linalg.inv(m + 50 * np.eye(N))), f"{both}.* Minv does not belong to M"),
        (lambda: eigs(a, K, skewed), f"{both}.* M is not Hermitian positive definite"),
    ):
        with pytest.raises(NotConvergedError, match=text) as caught:
            call()
        assert caught.value.statistics.residuals.max() > 1e-3 * caught.value.statistics.norm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", ["plain", "M", "sigma"])
def test_eigs_takes_the_hermitian_form_of_what_is_known_to_be_hermitian(
    monkeypatch: pytest.MonkeyPatch, how: str, dtype: str
) -> None:
    rng = np.random.default_rng()
    a, m = hermitian(N, dtype, rng), spd(N, dtype, rng) / N
    known = pycauset.asmatrix(a, is_hermitian=True)
    kinds: list[str] = []
    pairs = eigen.pairs
    monkeypatch.setattr(
        eigen, "pairs", lambda request, kind, *rest, **more: (kinds.append(kind), pairs(request, kind, *rest, **more))[1]
    )
    extra: dict[str, Any] = {"plain": {}, "M": {"M": m}, "sigma": {"sigma": -2.0}}[how]
    for which in ("LM", "SR", "LR"):
        w, v = eigs(known, K, which=which, **extra)
        assert w.dtype.kind == v.dtype.kind == "c"
        assert np.all(w.imag == 0)
        right = m @ v if how == "M" else v
        np.testing.assert_allclose(a @ v, right * w, atol=2e5 * eps(dtype))
        np.testing.assert_allclose(v.conj().T @ right, np.eye(K), atol=1e5 * eps(dtype))
        if how != "sigma":
            exact = scipy.linalg.eigh(a, m if how == "M" else None, eigvals_only=True)
            np.testing.assert_allclose(np.sort(w.real), exact[:K] if which == "SR" else exact[-K:], rtol=1e5 * eps(dtype))
    assert kinds == ["hermitian"] * 3
    eigs(a, K)
    assert kinds[3] == "general"


def test_a_definite_matrix_that_is_known_to_be_symmetric_takes_a_shift_in_eigs(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    a = hermitian(N, "float64", rng)
    m = pycauset.asmatrix(a, is_symmetric=True)
    w = eigs(m, K, sigma=-2.0, return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(w.real), np.linalg.eigvalsh(a)[:K], rtol=1e-9)


@pytest.mark.parametrize("k", [N - 1, N])
def test_nearly_all_pairs_of_a_pencil(k: int) -> None:
    rng = np.random.default_rng()
    a, m = hermitian(N, "complex128", rng), spd(N, "complex128", rng) / N
    exact = scipy.linalg.eigh(a, m, eigvals_only=True)
    w, v, stats = eigsh(a, k, m, return_stats=True)
    np.testing.assert_allclose(w, exact[-k:], rtol=1e-9)
    np.testing.assert_allclose(v.conj().T @ m @ v, np.eye(k), atol=1e-9)
    assert stats.norm == pytest.approx(np.linalg.norm(a, 2) + exact[-1] * np.linalg.norm(m, 2), rel=1e-9)
    middle = float(np.median(exact)) + 1e-3
    near = eigsh(a, k, m, middle, return_eigenvectors=False)
    np.testing.assert_allclose(near, np.sort(exact[np.argsort(np.abs(exact - middle))[:k]]), rtol=1e-9)
    x = random((N, N), "float64", rng)
    w, v = eigs(x, k, m.real)
    np.testing.assert_allclose(x @ v, m.real @ v * w, atol=1e-8)
    w, stats = eigs(x, k, m.real, 0.1, OPinv=x, return_eigenvectors=False, return_stats=True)  # LAPACK needs no inverse
    scale = np.linalg.norm(x, 2) + np.abs(w).max() * np.linalg.norm(m.real, 2)
    assert stats.norm == pytest.approx(scale, rel=1e-9)


def test_a_starting_vector_is_one_of_the_original_problem() -> None:
    """Started with an eigenvector, the iteration has it at the first look."""
    rng = np.random.default_rng()
    a, m = hermitian(N, "float64", rng), spd(N, "float64", rng) / N
    values, vectors = scipy.linalg.eigh(a, m)
    for sigma, start in ((None, vectors[:, -1]), (-1.0, vectors[:, 0])):
        w, stats = eigsh(a, 1, m, sigma, v0=start, tol=1e-8, block_size=1, return_eigenvectors=False, return_history=True)
        assert w[0] == pytest.approx(values[-1 if sigma is None else 0], rel=1e-9)
        assert stats.history[0].converged == 1


def test_starting_vectors_drawn_by_the_caller() -> None:
    rng = np.random.default_rng()
    a = hermitian(N, "float64", rng)
    same = [eigsh(a, 3, rng=seed)[1] for seed in (5, 5, np.random.default_rng(5))]
    assert np.array_equal(same[0], same[1])
    assert np.array_equal(same[0], same[2])
    other = eigsh(a, 3, rng=6)[1]
    assert not np.array_equal(same[0], other)
    np.testing.assert_allclose(np.abs(same[0].T @ other), np.eye(3), atol=1e-7)


def test_factors_and_products_under_a_small_limit(tmp_path: Path) -> None:
    """Of which either matrix takes a third."""
    rng = np.random.default_rng()
    a, m = hermitian(300, "float64", rng), spd(300, "float64", rng) / 300
    operands = on_disk(a, tmp_path / "a.zarr"), on_disk(m, tmp_path / "m.zarr")
    exact = scipy.linalg.eigh(a, m, eigvals_only=True)
    np.testing.assert_allclose(eigsh(operands[0], 3, operands[1], memory="2MB", return_eigenvectors=False), exact[-3:], rtol=1e-9)
    near = eigsh(operands[0], 3, operands[1], 0.0, memory="2MB", return_eigenvectors=False)
    np.testing.assert_allclose(near, exact[:3], rtol=1e-9)


@pytest.mark.parametrize("sigma", [None, 0.0])
def test_what_was_held_is_given_back(tmp_path: Path, sigma: float | None) -> None:
    gc.disable()  # nothing waits for the collector
    rng = np.random.default_rng()
    a, m = hermitian(400, "float64", rng), spd(400, "float64", rng) / 400
    operands = on_disk(a, tmp_path / "a.zarr"), on_disk(m, tmp_path / "m.zarr")
    before = host_bytes_in_use()
    try:
        w = eigsh(operands[0], 3, operands[1], sigma, ncv=300, memory="8MB", return_eigenvectors=False)
        held = host_bytes_in_use()
    finally:
        gc.enable()
    exact = scipy.linalg.eigh(a, m, eigvals_only=True)
    np.testing.assert_allclose(w, exact[-3:] if sigma is None else exact[:3], rtol=1e-9)
    assert held == before
