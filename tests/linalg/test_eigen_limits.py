"""What eigenvalue and singular value functions really allocate, tolerances near rounding, and matrices of few long columns."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import aslinearoperator

import pycauset
from pycauset.errors import ConfigError, MemoryLimitError, NotConvergedError, NotPositiveDefiniteError
from pycauset.governor import Scope
from pycauset.linalg import cond, eigs, eigsh, norm, placing, randomized_svd, svds
from pycauset.linalg.singular import _combined, _orthonormal
from tests.linalg.cases import DTYPES, random, spd

Array = np.ndarray[Any, Any]


def allocated(call: Callable[[], Any]) -> tuple[Any, int]:
    """What a call returns, and the most that NumPy held for it at one time."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        result = call()
        return result, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@contextmanager
def granted() -> Iterator[list[int]]:
    """The most host memory that each scope held under tickets."""
    seen: list[int] = []
    close = Scope.close

    def noted(self: Scope) -> object:
        seen.append(self.peak("host"))
        return close(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scope, "close", noted)
        yield seen


def tall(m: int, n: int, rng: np.random.Generator) -> tuple[Any, Array]:
    """A matrix of a few long columns that is computed as it is read, and its singular values."""
    phase, weight = rng.uniform(0, 6, n), np.linspace(3, 1, n)

    def tile(i: Array, j: Array) -> Array:
        return np.asarray(np.cos(0.37 * i[:, None] * (j[None, :] + 1) + phase[j]) * weight[j])

    exact = np.linalg.svd(tile(np.arange(m), np.arange(n)), compute_uv=False)
    return pycauset.from_function(tile, (m, n), "float64"), exact


def test_few_long_columns_within_a_limit() -> None:
    """All elements take 20 MB, LAPACK four times that."""
    rng = np.random.default_rng()
    a, exact = tall(50_000, 50, rng)
    svds(a[:3000], 2)  # imports
    (u, s, vh), used = allocated(lambda: svds(a, 3, tol=1e-8, memory="50MB"))
    assert used < 50e6
    np.testing.assert_allclose(s, exact[2::-1], rtol=1e-9)
    np.testing.assert_allclose(u.T @ u, np.eye(3), atol=1e-12)
    assert vh.shape == (3, 50)
    assert norm(a, 2, memory="50MB") == pytest.approx(exact[0], rel=1e-9)
    assert norm(a, memory="50MB") == pytest.approx(np.linalg.norm(exact), rel=1e-9)
    for limit in ("memory", "gpu_memory"):
        for order in ("fro", 1, 2):
            with pytest.raises(ConfigError, match="many"):
                norm(a, order, **{limit: "many"})
    few = svds(a, 49, which="SM", return_singular_vectors="vh", memory="90MB")  # what LAPACK took as a whole
    np.testing.assert_allclose(few[1], exact[:0:-1], rtol=1e-9)
    with pytest.raises(MemoryLimitError, match="svds: vectors of 50000"):
        svds(a, 49, memory="15MB")


def test_long_blocks_that_are_wider_because_the_basis_is_on_disk_have_a_ticket(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng()
    a = rng.standard_normal((30_000, 260)) * np.linspace(1, 0.01, 260)
    candidates = placing._candidates
    monkeypatch.setattr(placing, "_candidates", lambda *given: (found for found in candidates(*given) if found[1] == "disk"))
    svds(a[:3000], 1, tol=1e-2)
    with granted() as most:
        s, used = allocated(lambda: svds(a, 1, tol=1e-2, memory="4MB", return_singular_vectors=False))
    assert used < max(most) + 100_000
    np.testing.assert_allclose(s, np.linalg.norm(a, 2), rtol=1e-3)


@pytest.mark.parametrize("transposed", [False, True])
def test_randomized_svd_within_a_limit(transposed: bool) -> None:
    rng = np.random.default_rng()
    a, exact = tall(50_000, 50, rng)
    a = a.T if transposed else a
    randomized_svd(a[:40, :40], 2)
    (_, s, _), used = allocated(lambda: randomized_svd(a, 8, power_iterations=8, memory="50MB"))
    assert used < 50e6
    np.testing.assert_allclose(s, exact[:8], rtol=0.05)
    with pytest.raises(MemoryLimitError):
        randomized_svd(a, 8, memory="15MB")


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("name", ["eigsh", "eigsh M", "eigs", "eigs M", "eigs Minv", "skew", "svds", "svds tall", "sparse"])
def test_lapack_takes_no_more_than_its_ticket(name: str, dtype: str) -> None:
    rng = np.random.default_rng()
    n = 250
    a, m = random((n, n), dtype, rng), spd(n, dtype, rng)
    symmetric, minv, sparse = a + a.conj().T, np.linalg.inv(m), scipy.sparse.csr_matrix(a)
    skew = pycauset.asmatrix(a - a.T, is_skew_symmetric=True)
    calls: dict[str, Callable[[], Any]] = {
        "eigsh": lambda: eigsh(symmetric, n),
        "eigsh M": lambda: eigsh(symmetric, n, m),
        "eigs": lambda: eigs(a, n),
        "eigs M": lambda: eigs(a, n, m),
        "eigs Minv": lambda: eigs(a, n, m, Minv=minv),
        "skew": lambda: eigs(skew, n),
        "svds": lambda: svds(a, n),
        "svds tall": lambda: svds(a[:, :60], 60),
        "sparse": lambda: eigs(sparse, n),
    }
    calls[name]()
    with granted() as most:
        _, used = allocated(calls[name])
    assert used < max(most) + 100_000  # small things: a matrix of complex64 takes five times that


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_blocks_are_split_in_place(dtype: str) -> None:
    """Of condition 1e30 and not of full rank: Q is orthonormal nevertheless."""
    rng = np.random.default_rng()
    y = random((3333, 6), dtype, rng) * np.logspace(0, -30, 6).astype(np.empty(0, dtype).real.dtype)
    y[:, 3] = y[:, 0]
    kept, c = y.copy(), random((6, 2), dtype, rng)
    tops, r = _orthonormal(y)
    out = np.empty((3333, 2), dtype)
    _combined(y, tops, c, out)
    _combined(y, tops, np.eye(6, dtype=dtype), y)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(y.conj().T @ y, np.eye(6), atol=100 * eps)
    np.testing.assert_allclose(y @ r, kept, atol=200 * eps)
    np.testing.assert_allclose(out, y @ c, atol=200 * eps)


@pytest.mark.parametrize("call", [eigs, svds])
def test_a_tolerance_near_rounding_is_kept_or_refused(call: Any) -> None:
    rng = np.random.default_rng()
    a = rng.standard_normal((300, 300)).astype("float32")
    tol, good = 1.5e-6, 4  # thirteen times rounding
    try:
        stats = call(a, 4, tol=tol, maxiter=40, return_stats=True)[-1]
    except NotConvergedError as error:
        stats, good = error.statistics, len(error.eigenvalues)
    assert np.count_nonzero(stats.residuals <= tol * stats.norm) == good


def test_a_wide_operator_is_made_dense_by_its_short_side() -> None:
    rng = np.random.default_rng()
    a = rng.standard_normal((3, 200_000))
    s = svds(aslinearoperator(a), 2, return_singular_vectors=False)
    np.testing.assert_allclose(s, np.linalg.svd(a, compute_uv=False)[1::-1], rtol=1e-10)


def test_an_operator_that_returns_its_operand() -> None:
    """The last pass works in place, but not in what an operator gave."""
    one = scipy.sparse.linalg.LinearOperator(
        (90, 90), lambda x: x, rmatvec=lambda x: x, matmat=lambda x: x, rmatmat=lambda x: x, dtype=float
    )
    u, s, vh = svds(one, 3)
    np.testing.assert_allclose(s, 1)
    np.testing.assert_allclose(u, vh.T, atol=1e-12)


def test_an_operator_that_returns_an_array_of_its_own() -> None:
    rng = np.random.default_rng()
    a = rng.standard_normal((90, 80))
    given: list[tuple[Array, Array]] = []

    def adjoint(x: Array) -> Array:
        given.append((x.copy(), a.T @ x))
        return given[-1][1]

    one = scipy.sparse.linalg.LinearOperator(a.shape, lambda x: a @ x, adjoint, lambda x: a @ x, float, adjoint)
    _, s, _ = randomized_svd(one, 3, 80)
    np.testing.assert_allclose(s, np.linalg.svd(a, compute_uv=False)[:3])
    assert given
    for x, y in given:
        np.testing.assert_allclose(y, a.T @ x, atol=1e-9)


def test_condition_numbers_of_what_is_not_positive_definite() -> None:
    rng = np.random.default_rng()
    a = spd(80, "float64", rng)
    singular = np.diag(np.arange(80.0)[::-1])
    for bad, text, order in (
        (-a, "negative definite", 1),
        (np.diag(np.linspace(2, -1, 80)), "indefinite or singular", 54),
        (singular, "indefinite or singular", 80),
    ):
        with pytest.raises(NotPositiveDefiniteError, match=text) as caught:
            cond(pycauset.asmatrix(bad, is_symmetric=True))
        assert caught.value.order == order
        assert caught.value.value == bad[order - 1, order - 1]


def test_a_sparse_factor_has_a_ticket() -> None:
    """A matrix of arrow form, whose factor is dense: 18 MB."""
    rng = np.random.default_rng()
    a = scipy.sparse.random(1500, 1500, 0.02, random_state=rng, format="csc")
    a = a + a.T
    with pytest.raises(MemoryLimitError, match="SuperLU"):
        eigsh(a, 3, sigma=0.1, memory="5MB")
    assert len(eigsh(a, 3, sigma=0.1, tol=1e-8, memory="200MB", return_eigenvectors=False)) == 3
