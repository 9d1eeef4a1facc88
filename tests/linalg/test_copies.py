"""Repeated eigenvalues of large sparse matrices, where a random vector has little of each; sizes that the caller chose."""

from __future__ import annotations

import warnings
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp

import pycauset
from pycauset import errors
from pycauset.drivers.arnoldi import ArnoldiDriver, plan_arnoldi
from pycauset.drivers.basis import ArrayBasis
from pycauset.drivers.ritz import kept_space, preference, ritz_pairs
from pycauset.linalg import eigs, eigsh
from pycauset.solver.products import drive

N = 20000


def diagonal(top: list[float], n: int = N, seed: int | None = None) -> np.ndarray:
    """The outliers come first: the driver's random numbers are the same in each run, and so is what they have of these."""
    return np.concatenate([top, np.random.default_rng(seed).uniform(-1, 1, n - len(top))])


@pytest.mark.parametrize(
    ("top", "k", "block"),
    [
        ([2, 2, 2, 1.6, 1.5, 1.4], 4, None),
        ([1.3, 1.3, 1.25], 2, None),
        ([2, 2, 1.5, 1.5, 1.2, 1.1], 4, None),
        ([2] * 8 + [1.5, 1.4, 1.3, 1.2, 1.1], 5, 4),
    ],
)
def test_copies_behind_other_outliers(top: list[float], k: int, block: int | None) -> None:
    d = diagonal(top)
    w = eigsh(sp.diags(d).tocsr(), k, which="LA", tol=1e-8, block_size=block, return_eigenvectors=False)
    np.testing.assert_allclose(w, np.sort(d)[-k:], atol=1e-7)


def test_what_a_look_costs_where_nothing_is_repeated() -> None:
    d = np.arange(1, 12289) ** -0.35
    *_, stats = eigsh(sp.diags(d).tocsr(), 8, tol=1e-8, return_stats=True)
    assert stats.block_size == 1
    assert stats.products <= 64  # SciPy takes 53


@pytest.mark.parametrize("block", [1, 2])
def test_the_share_of_a_copy_is_never_above_its_bound(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    d, n = diagonal([2, 2, 2, 2, 1.6, 1.6, 1.6, 1.6, 1.5], 2000), 2000
    plan = plan_arnoldi(n, 5, np.dtype(float), passes_cost=False, block=block, ncv=60)
    v = np.zeros((60 + block, n)).T
    bound, seen = ArnoldiDriver._largest_share, []

    def compared(self: ArnoldiDriver, value: float, j: int, p: int) -> float:
        found = bound(self, value, j, p)
        same = v[np.abs(d - value) < 1e-6]
        u, s, _ = np.linalg.svd(same[:, : self._kept])
        outside = u[:, np.count_nonzero(s > 0.5) :]  # of the eigenspace, what has not been found
        share = np.linalg.norm(outside.T @ same[:, self._kept : self._kept + p], 2)
        assert found >= 0.999 * share
        seen.append((outside.shape[1], share, found))
        return found

    monkeypatch.setattr(ArnoldiDriver, "_largest_share", compared)
    driver = ArnoldiDriver(plan, ArrayBasis(v), "hermitian", "LA", 1e-8, 100)
    np.testing.assert_allclose(drive(driver.run(), lambda x: d[:, None] * x).values[:5], [2, 2, 2, 2, 1.6], atol=1e-7)
    assert any(outside and found < 2 * share for outside, share, found in seen)  # and it comes close


def test_a_block_as_wide_as_there_are_copies_looks_for_none() -> None:
    d = diagonal([1.3, 1.3, 1.25])
    *_, stats = eigsh(sp.diags(d).tocsr(), 2, which="LA", tol=1e-8, block_size=3, return_history=True)
    assert stats.history[-2].converged < 2  # it ended with the first test that was passed


def test_a_look_has_restarts_of_its_own_and_says_when_they_did_not_suffice() -> None:
    d = diagonal([2, 2, 2, 1.6, 1.5, 1.4], 2000, seed=1)
    plan = plan_arnoldi(2000, 4, np.dtype(float), passes_cost=False, block=1, ncv=20)

    def run(maxiter: int) -> tuple[ArnoldiDriver, np.ndarray]:
        driver = ArnoldiDriver(plan, ArrayBasis(np.zeros((21, 2000)).T), "hermitian", "LA", 1e-8, maxiter)
        return driver, drive(driver.run(), lambda x: d[:, None] * x).values[:4]

    whole, values = run(100)
    np.testing.assert_allclose(values, [2, 2, 2, 1.6], atol=1e-7)
    assert whole.converged
    assert not whole.cut_short
    needed = next(entry.restarts for entry in whole.history if entry.converged == 4)
    enough, values = run(5)  # fewer than all looks together took
    assert needed <= 5 < enough.restarts
    assert enough.converged
    np.testing.assert_allclose(values, [2, 2, 2, 1.6], atol=1e-7)


def test_a_search_that_was_cut_short_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ArnoldiDriver, "_passes_to_see", lambda *_: 200)
    monkeypatch.setattr(ArnoldiDriver, "_ruled_out", lambda *_: False)
    a = sp.diags(diagonal([3, 2.5], 2000)).tocsr()
    with pytest.warns(errors.PycausetWarning, match="further copies"):
        w = eigsh(a, 2, which="LA", tol=1e-8, ncv=20, maxiter=4, block_size=1, return_eigenvectors=False)
    np.testing.assert_allclose(w, [2.5, 3], atol=1e-7)


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ncv", [4, 7, 20])
def test_a_basis_is_as_large_as_was_asked(ncv: int) -> None:
    d = diagonal([5, 4, 3], 500)
    w, _, stats = eigsh(np.diag(d), 3, which="LA", ncv=ncv, tol=1e-6, return_stats=True)
    assert stats.ncv == ncv
    np.testing.assert_allclose(w, [3, 4, 5], atol=1e-5)
    with pytest.raises(errors.ConfigError, match=f"at least k \\+ block_size, which is {ncv + 1}"):
        eigsh(np.diag(d), 3, ncv=ncv, block_size=ncv - 2)


def test_all_start_vectors_are_used() -> None:
    d = diagonal([5, 4, 3], 5000)
    a, v0 = sp.diags(d).tocsr(), np.eye(5000)[:, 2::-1]
    *_, stats = eigsh(a, 3, which="LA", v0=v0, return_stats=True)
    assert stats.block_size == 3
    with pytest.raises(errors.ConfigError, match="v0 has 3 columns, block_size is 2"):
        eigsh(a, 3, v0=v0, block_size=2)
    with pytest.raises(errors.ConfigError, match="blocks of 3 it must be at least k \\+ block_size, which is 6"):
        eigsh(a, 3, v0=v0, ncv=5)


@pytest.mark.parametrize("kind", ["hermitian", "skew", "general", "complex"])
def test_every_basis_that_is_taken_is_large_enough(kind: str) -> None:
    n, rng = 66, np.random.default_rng()
    a = rng.standard_normal((n, n))
    if kind == "complex":
        a = a + 1j * rng.standard_normal((n, n))
    elif kind != "general":
        a = a + a.T if kind == "hermitian" else a - a.T
    operand = pycauset.asmatrix(a, is_skew_symmetric=True) if kind == "skew" else a
    call = eigsh if kind == "hermitian" else eigs
    for k, more, block in product((1, 3), (1, 2, 3, 4), (None, 2)):
        least = k + (block or 1) + (kind in ("skew", "general"))
        options = {"k": k, "ncv": k + more, "block_size": block, "tol": 1e-2, "maxiter": 3}
        if k + more < least:
            with pytest.raises(errors.ConfigError, match=f"ncv is {k + more}.* at least .*, which is {least}"):
                call(operand, **options)
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", errors.PycausetWarning)  # the search for copies was cut short
                w, v = call(operand, **options)
        except errors.NotConvergedError as error:
            w, v = error.eigenvalues, error.eigenvectors
        assert np.linalg.norm(a @ v - v * w, axis=0).max(initial=0) <= 1.01e-2 * np.linalg.norm(a, 2)


@pytest.mark.parametrize("kind", ["skew", "general"])
def test_the_smallest_basis_for_a_pair(kind: str) -> None:
    a, _ = turned(1, 70)
    a = (a - a.T) / 2
    operand = pycauset.asmatrix(a, is_skew_symmetric=True) if kind == "skew" else a
    w, v = eigs(operand, 1, ncv=3, tol=1e-6)
    np.testing.assert_allclose(w, [3j], atol=1e-4)
    assert np.linalg.norm(a @ v - v * w) < 1e-5


# ---- conjugate pairs -------------------------------------------------------------------------------------------------


def turned(pairs: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A real skew-symmetric matrix with ±3i so often, the other eigenvalues within ±2i."""
    rng = np.random.default_rng()
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    a = np.zeros((n, n))
    values = np.concatenate([np.full(pairs, 3.0), rng.uniform(0, 2, n // 2 - pairs)])
    a[np.arange(0, n, 2), np.arange(1, n, 2)] = values
    return q @ (a - a.T) @ q.T, values


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_equal_pairs_stay_together(shift: float) -> None:
    a, _ = turned(10, 120)
    a = (a - a.T) / 2 + shift * np.eye(120)
    w, v = eigs(a, 10, tol=1e-8)
    np.testing.assert_allclose(np.sort(w.imag), [-3] * 5 + [3] * 5, atol=1e-6)
    assert np.linalg.norm(a @ v - v * w, axis=0).max() < 1e-6


def test_equal_pairs_have_one_order() -> None:
    values = np.array([3j, 3j, 1.0, -3j, 3j, -3j, -3j])
    assert values[preference(values, "LM", real=True)].tolist() == [3j, -3j, 3j, -3j, 3j, -3j, 1.0]


@pytest.mark.parametrize("keep", [4, 5, 9, 20])
def test_a_restart_keeps_one_column_more_at_most(keep: int) -> None:
    h, _ = turned(10, 30)
    for kind in ("skew", "general"):
        ritz = ritz_pairs(h, np.zeros((1, 30)), kind, "LM")
        z = kept_space(h, ritz, keep, kind)
        assert z.shape[1] == keep + keep % 2
        np.testing.assert_allclose(h @ z, z @ (z.T @ h @ z), atol=1e-12)
