"""The last pass of a transformed problem, which multiplies by A and M for the first time, loses nothing that has converged."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator

from pycauset.errors import MemoryLimitError, NotConvergedError
from pycauset.linalg import eigs, eigsh, spectral
from tests.linalg.cases import on_disk, spd

N, K = 499, 4
Array = np.ndarray[Any, Any]


def spectrum(rng: np.random.Generator) -> Array:
    """Eigenvalues of which those near 0 are far from each other."""
    values = np.concatenate([1.5 ** np.arange(K + 1), rng.uniform(90, 100, N - K - 1)])
    return rng.permutation(values)


def inverse(diagonal: Array, widths: list[int]) -> LinearOperator:
    """Of a diagonal matrix; tells how many vectors each call has multiplied."""

    def multiply(x: Array) -> Array:
        x = x.reshape(len(diagonal), -1)
        widths.append(x.shape[1])
        return np.asarray(x / diagonal[:, None])

    return LinearOperator((N, N), lambda x: multiply(x).ravel(), matmat=multiply, dtype=float)


@pytest.mark.parametrize("function", [eigsh, eigs])
def test_memory_for_the_last_pass_is_found_before_the_iteration(tmp_path: Path, function: Any) -> None:
    rng = np.random.default_rng()
    values = spectrum(rng)
    a = on_disk(np.diag(values), tmp_path / "a.zarr")
    refused, limit = 0, 100_000
    while True:
        widths: list[int] = []
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            w, v, stats = function(a, K, sigma=0.0, OPinv=inverse(values, widths), memory=limit, return_stats=True)
            used = tracemalloc.get_traced_memory()[1] - before
            break
        except MemoryLimitError:
            assert not widths, f"memory={limit}: the iteration had begun"
            refused += 1
            limit = int(limit * 1.3)
        finally:
            tracemalloc.stop()
    assert refused
    assert limit < 4_000_000
    assert used < limit + 200_000  # small things
    np.testing.assert_allclose(np.sort(w.real), np.sort(values)[:K], rtol=1e-9)
    np.testing.assert_allclose(values[:, None] * v, v * w, atol=1e-8)
    assert stats.residuals.max() < 1e-8


@pytest.mark.parametrize("function", [eigsh, eigs])
def test_pairs_survive_a_last_pass_that_fails(function: Any) -> None:
    rng = np.random.default_rng()
    values = spectrum(rng)

    def refuse(x: Array) -> Array:
        if x.reshape(N, -1).shape[1] > 1:
            raise MemoryLimitError("gone in the meantime")
        return np.asarray(x * values.reshape((N,) + (1,) * (x.ndim - 1)))

    a = LinearOperator((N, N), refuse, matmat=refuse, dtype=float)
    with pytest.raises(NotConvergedError, match="gone in the meantime") as caught:
        function(a, K, sigma=0.0, OPinv=inverse(values, []))
    assert isinstance(caught.value.__cause__, MemoryLimitError)
    w, v = caught.value.eigenvalues, caught.value.eigenvectors
    np.testing.assert_allclose(np.sort(w.real), np.sort(values)[:K], rtol=1e-9)
    np.testing.assert_allclose(values[:, None] * v, v * w, atol=1e-8)
    assert caught.value.statistics.residuals.shape == (K,)


@pytest.mark.parametrize("function", [eigsh, eigs])
def test_an_operator_that_cannot_multiply_is_found_at_once(function: Any) -> None:
    widths: list[int] = []

    def refuse(x: Array) -> Array:
        raise RuntimeError("it knows its inverse only")

    a = LinearOperator((N, N), refuse, matmat=refuse, dtype=float)
    with pytest.raises(RuntimeError, match="inverse only"):
        function(a, K, sigma=0.0, OPinv=inverse(spectrum(np.random.default_rng()), widths))
    assert not widths


@pytest.mark.parametrize("most", [0, 1, 2])
def test_eigenvectors_go_back_in_parts_where_memory_is_short(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Values alone are left if not even one vector can."""
    rng = np.random.default_rng()
    n, k = 90, 5
    a, m = spd(n, "float64", rng), spd(n, "float64", rng) / n
    solve = spectral.solve_triangular

    def refuse(factor: Any, x: Array, *rest: Any, **options: Any) -> Any:
        if x.shape[1] > most:
            raise MemoryLimitError("too many columns")
        return solve(factor, x, *rest, **options)

    expected = eigsh(a, k, m, -1.0)
    monkeypatch.setattr(spectral, "solve_triangular", refuse)
    if most == 0:
        with pytest.raises(NotConvergedError, match="back to the original problem") as caught:
            eigsh(a, k, m, -1.0)
        assert caught.value.eigenvectors is None
        np.testing.assert_allclose(np.sort(caught.value.eigenvalues), expected[0], rtol=1e-9)
        return
    w, v = eigsh(a, k, m, -1.0)
    np.testing.assert_array_equal(w, expected[0])
    np.testing.assert_allclose(v, expected[1], atol=1e-12)
