"""What eigs, eigsh and svds refuse, what they say, and what they leave behind."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, aslinearoperator

import pycauset
from pycauset import errors
from pycauset.linalg import cond, eigs, eigsh, randomized_svd, svds
from tests.linalg.cases import on_disk
from tests.tickets import host_bytes_in_use

N = 100


def symmetric(n: int = N) -> np.ndarray:
    x = np.random.default_rng().standard_normal((n, n))
    return (x + x.T) / 2


@pytest.mark.parametrize("function", [eigs, eigsh, svds])
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"k": 0}, errors.ConfigError, "k is 0"),
        ({"k": N + 1}, errors.ConfigError, f"k is {N + 1}"),
        ({"k": 2.5}, errors.ConfigError, "k is 2.5"),
        ({"which": "XX"}, errors.ConfigError, "which is 'XX'"),
        ({"tol": -1.0}, errors.ConfigError, "tol is -1.0"),
        ({"tol": float("nan")}, errors.ConfigError, "tol is nan"),
        ({"maxiter": 0}, errors.ConfigError, "maxiter is 0"),
        ({"ncv": 3}, errors.ConfigError, "ncv is 3"),
        ({"block_size": 0}, errors.ConfigError, "block_size is 0"),
        ({"v0": np.ones(N - 1)}, errors.ShapeError, r"v0 has shape \(99,\)"),
        ({"v0": np.ones((N, 0))}, errors.ShapeError, r"v0 has shape \(100, 0\)"),
        ({"v0": np.ones((2, N, 2))}, errors.ShapeError, r"v0 has shape \(2, 100, 2\)"),
        ({"v0": ["a"] * N}, errors.ConfigError, "v0 holds <U1"),
        ({"rng": "dice"}, errors.ConfigError, "rng is 'dice'"),
        ({"progress": "yes"}, errors.ConfigError, "progress is 'yes'"),
        ({"v0": np.ones(N) * 1j}, errors.ConfigError, "v0 is complex"),
        ({"v0": np.full(N, np.nan)}, errors.ConfigError, "v0 holds NaN"),
    ],
)
def test_arguments(function: Any, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        function(symmetric(), **options)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: eigsh(np.ones((4, 5))), errors.ShapeError, "must be square"),
        (lambda: eigsh(np.eye(5), 2, progress="yes"), errors.ConfigError, "progress is 'yes'"),  # LAPACK's, which shows none
        (lambda: eigs(np.eye(5), 2, progress="yes"), errors.ConfigError, "progress is 'yes'"),
        (lambda: svds(np.eye(5), 2, progress="yes"), errors.ConfigError, "progress is 'yes'"),
        (lambda: eigs(np.ones(5)), errors.ShapeError, "vector"),
        (lambda: eigsh(np.eye(80), sigma=1j), errors.ConfigError, "real"),
        (lambda: eigsh(np.eye(80), sigma=1 + 0j), errors.ConfigError, "real"),
        (lambda: eigsh(np.eye(80) * 1j, sigma=1j), errors.ConfigError, "real"),
        (lambda: eigsh(np.eye(80), sigma="a"), errors.ConfigError, "sigma is 'a'"),
        (lambda: eigs(np.eye(80), sigma=np.nan), errors.ConfigError, "finite"),
        (lambda: eigsh(np.eye(80), mode="buckling"), errors.ConfigError, "give sigma"),
        (lambda: eigsh(np.eye(80), sigma=0.0, mode="buckling"), errors.ConfigError, "other than 0"),
        (lambda: eigsh(np.eye(80), sigma=0.0, mode="cayley"), errors.ConfigError, "other than 0"),
        (lambda: eigsh(np.eye(80), sigma=0.5, mode="shift"), errors.ConfigError, "mode is 'shift'"),
        (lambda: eigsh(-np.eye(80), 2, np.eye(80), 1.0, mode="buckling"), errors.NotPositiveDefiniteError, "A must be positive"),
        (lambda: eigsh(np.eye(80), 79, np.eye(80), 0.5, mode="buckling"), errors.ConfigError, "k must be below"),
        (lambda: eigsh(np.eye(80), Minv=np.eye(80)), errors.ConfigError, "leave Minv out"),
        (lambda: eigs(np.eye(80), Minv=np.eye(80)), errors.ConfigError, "its M"),
        (lambda: eigs(np.eye(80), 2, np.eye(80), 0.5, Minv=np.eye(80)), errors.ConfigError, "Minv"),
        (lambda: eigsh(np.eye(80), OPinv=np.eye(80)), errors.ConfigError, "give sigma"),
        (lambda: eigs(np.eye(80), sigma=1j, OPpart="i"), errors.ConfigError, "OPpart"),
        (lambda: eigsh(symmetric(), 3, aslinearoperator(np.eye(N))), errors.ConfigError, "M must be factored"),
        (lambda: eigsh(aslinearoperator(symmetric()), 3, check=True), errors.ConfigError, "check"),
        (lambda: eigs(scipy.sparse.identity(N, format="csr"), 3, sigma=1.0), errors.ConfigError, "singular"),
        (lambda: svds(np.eye(80), solver="lobpcg"), errors.ConfigError, "lobpcg"),
        (lambda: svds(np.eye(80), options={"a": 1}), errors.ConfigError, "options"),
        (lambda: eigsh(symmetric(), 3, sigma=0.0), errors.ConfigError, "indefinite"),
        (lambda: eigsh(symmetric(), 3, -np.eye(N)), errors.NotPositiveDefiniteError, "positive definite"),
        (lambda: eigsh(symmetric(), 3, np.eye(N - 1)), errors.ConfigError, "M has shape"),
        (lambda: eigsh(aslinearoperator(symmetric()), 3, sigma=0.0), errors.ConfigError, "LinearOperator"),
        (lambda: eigs(symmetric(), 3, sigma=0.0), errors.ConfigError, "LU"),
        (lambda: eigs(symmetric(), 3, symmetric()), errors.NotPositiveDefiniteError, "M must be positive definite"),
        (lambda: eigsh(np.array([["a"]])), errors.DtypeError, "element type"),
        (lambda: svds(np.eye(80), return_singular_vectors="x"), errors.ConfigError, "return_singular_vectors"),
        (lambda: randomized_svd(np.eye(80), 3, oversample=-1), errors.ConfigError, "oversample"),
        (lambda: cond(np.ones((80, 80))), errors.ConfigError, "not known to be positive definite"),
        (lambda: cond(np.eye(80), 1), errors.ConfigError, "p is 1"),
    ],
)
def test_problems_that_cannot_be(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("k", [N - 1, N])
def test_nearly_all_eigenvalues_come_from_lapack(k: int) -> None:
    a = symmetric()
    w, v, stats = eigsh(a, k, return_stats=True)
    np.testing.assert_allclose(
        w, wanted := np.linalg.eigvalsh(a)[np.sort(np.argsort(-abs(np.linalg.eigvalsh(a)))[:k])], atol=1e-12
    )
    assert len(wanted) == k
    assert stats.block_size == 0
    np.testing.assert_allclose(a @ v, v * w, atol=1e-12)
    assert len(eigs(a, k, return_eigenvectors=False)) == k
    assert len(svds(a, k, return_singular_vectors=False)) == k


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_elements_are_found_on_the_first_pass(tmp_path: Path, bad: float) -> None:
    a = symmetric()
    a[70, 10] = a[10, 70] = bad
    m = on_disk(a, tmp_path / "a.zarr", structure="symmetric")
    seen: list[Any] = []
    for call in (eigsh, eigs, svds):
        for operand in (a, m):
            with pytest.raises(errors.NonFiniteError, match=r"tile \[\d+:\d+, \d+:\d+\] of .* at row \d+, column \d+"):
                call(operand, 3, progress=lambda *state: seen.append(state))
    assert not seen
    with pytest.raises(errors.NonFiniteError):
        randomized_svd(m, 3)


@pytest.mark.parametrize("k", [3, N - 1])
@pytest.mark.parametrize("call", [eigsh, eigs, svds])
def test_bad_elements_of_sparse_matrices_and_operators(call: Any, k: int) -> None:
    a = scipy.sparse.identity(N, format="lil")
    a[70, 10] = a[10, 70] = np.nan
    with pytest.raises(errors.NonFiniteError, match=r"sparse matrix, holds nan at row (10|70), column (70|10)"):
        call(a.tocsr(), k)
    if call is eigsh:
        with pytest.raises(errors.NonFiniteError, match="sparse matrix, holds nan"):
            call(a.tocsr(), k, check=True)
    poisoned = LinearOperator((N, N), lambda x: x * np.nan, rmatvec=lambda x: x, dtype=float)
    with pytest.raises(errors.NonFiniteError, match="LinearOperator gives NaN"):
        call(poisoned, k)


@pytest.mark.parametrize("place", ["ram", "disk"])
def test_bad_elements_behind_transformations(tmp_path: Path, place: str) -> None:
    good, bad = np.diag(np.arange(1.0, N + 1)), symmetric()
    bad[70, 10] = bad[10, 70] = np.nan
    m = on_disk(bad, tmp_path / "a.zarr") if place == "disk" else bad
    tile = r"tile \[\d+:\d+, \d+:\d+\] of .* holds nan at row (10|70), column (70|10)"
    for call in (
        lambda: eigsh(m, 3, good),
        lambda: eigs(m, 3, good),
        lambda: eigsh(m, 3, sigma=-1.0),
        lambda: eigsh(m, 3, good, -1.0, mode="cayley"),
        lambda: eigsh(good, 3, m),
        lambda: eigs(good, 3, m),
        lambda: eigsh(good, 3, m, -1.0),
        lambda: eigsh(good, N - 1, m),
        lambda: eigsh(m, N - 1, good),
    ):
        with pytest.raises(errors.NonFiniteError, match=tile):
            call()
    with pytest.raises(errors.NonFiniteError, match="sparse matrix, holds nan"):
        eigsh(scipy.sparse.csr_matrix(bad), 3, sigma=0.5)


def test_an_overflow_is_no_bad_element() -> None:
    a = np.full((N, N), 1e308)
    for operand in (a, scipy.sparse.csr_matrix(a)):
        with pytest.raises(errors.NonFiniteError, match="overflows float64"):
            eigsh(operand, 3, v0=np.ones(N))


def test_check_finds_what_is_not_symmetric(tmp_path: Path) -> None:
    a = symmetric()
    eigsh(a, 2, check=True)
    a[90, 3] += 1e-9
    for operand in (a, on_disk(a, tmp_path / "a.zarr"), scipy.sparse.csr_matrix(a)):
        with pytest.raises(errors.NotHermitianError) as caught:
            eigsh(operand, 2, check=True)
        assert caught.value.index == (90, 3)


@pytest.mark.parametrize("function", [eigsh, eigs])
def test_what_has_converged_comes_with_the_error(function: Any) -> None:
    rng = np.random.default_rng()
    q, _ = np.linalg.qr(rng.standard_normal((300, 300)))
    values = np.concatenate([[9.0, 4.0], np.linspace(1, 1.02, 298)])
    a = (q * values) @ q.T
    with pytest.raises(errors.NotConvergedError, match="raise maxiter") as caught:
        function(a, 6, ncv=20, block_size=2, maxiter=2, tol=1e-12)
    w, v = caught.value.eigenvalues, caught.value.eigenvectors
    assert 1 <= len(w) < 6
    assert v.shape == (300, len(w))
    np.testing.assert_allclose(a @ v, v * w, atol=1e-9)
    assert caught.value.statistics.restarts == 2
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, ArpackNoConvergence)
    assert type(caught.value).__name__ == "NotConvergedError"
    for again in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert isinstance(again, errors.NotConvergedError)
        assert str(again) == str(caught.value)
        np.testing.assert_array_equal(again.eigenvalues, w)


def test_what_has_converged_behind_a_shift_is_of_the_original_problem() -> None:
    rng = np.random.default_rng()
    q, _ = np.linalg.qr(rng.standard_normal((300, 300)))
    a = (q * np.concatenate([[1.0, 2.0], np.linspace(30, 30.5, 298)])) @ q.T
    a = (a + a.T) / 2
    m = np.diag(rng.uniform(1, 1.0001, 300))
    with pytest.raises(ArpackNoConvergence) as caught:
        eigsh(a, 6, m, 0.0, ncv=14, block_size=2, maxiter=1, tol=1e-13)
    w, v = caught.value.eigenvalues, caught.value.eigenvectors
    assert 1 <= len(w) < 6
    np.testing.assert_allclose(a @ v, m @ v * w, atol=1e-8)


def test_tolerance_below_machine_precision_means_machine_precision() -> None:
    a = symmetric()
    results = [eigsh(a, 3, tol=tol, return_eigenvectors=False) for tol in (0, 1e-300, 0.0)]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_limits_are_kept_or_refused_with_numbers(tmp_path: Path) -> None:
    a = symmetric(400)
    m = on_disk(a, tmp_path / "a.zarr")
    before = host_bytes_in_use()
    with pytest.raises(errors.MemoryLimitError, match=r"of 400 needs .* only 200 kB"):
        eigsh(m, 4, ncv=300, memory="200kB")
    w = eigsh(m, 4, memory="8MB", return_eigenvectors=False)
    np.testing.assert_allclose(np.abs(w).max(), np.abs(np.linalg.eigvalsh(a)).max(), rtol=1e-10)
    assert host_bytes_in_use() == before


def test_a_callable_that_raises_ends_the_work(tmp_path: Path) -> None:
    m = on_disk(symmetric(300), tmp_path / "a.zarr")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        eigsh(m, 4, progress=stop)
    assert len(pycauset.linalg.eigsh(m, 4, return_eigenvectors=False)) == 4
