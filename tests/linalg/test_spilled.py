"""Eigenpairs and singular values under limits that do not hold the basis: it goes to disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pycauset.errors import MemoryLimitError, NonFiniteError, StoreFullError
from pycauset.linalg import eigs, eigsh, placing, svds
from tests.linalg.cases import on_disk, random

N, K = 1600, 4
MEMORY = 2_000_000


def files(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.is_file() and p.name != "lock"]


def graded(dtype: str, rng: np.random.Generator) -> np.ndarray:
    x = 0.05 * random((N, N), dtype, rng) / N**0.5
    return (x + np.diag(9 * np.linspace(0, 1, N) ** 99)).astype(dtype)


@pytest.mark.parametrize(
    ("what", "dtype"), [("eigsh", "float64"), ("eigsh", "complex128"), ("eigs", "float64"), ("svds", "complex128")]
)
def test_the_basis_goes_to_disk(tmp_path: Path, isolated: Path, what: str, dtype: str) -> None:
    rng = np.random.default_rng()
    x = graded(dtype, rng)
    a = x + x.conj().T if what == "eigsh" else x
    eps = float(np.finfo(dtype).eps)
    m = on_disk(a, tmp_path / "a.zarr", chunks=(64, 64))
    limit = MEMORY * np.dtype(dtype).itemsize // 8
    options = {"block_size": 4, "tol": 100 * eps, "memory": limit, "return_stats": True}
    if what == "svds":
        u, s, vh, stats = svds(m, K, **options)
        assert np.linalg.norm(a.conj().T @ u - vh.conj().T * s) < 4000 * eps * s.max()
    else:
        w, v, stats = eigsh(m, K, **options) if what == "eigsh" else eigs(m, 2, **options)  # two, each of two real vectors
        assert np.linalg.norm(a @ v - v * w) < 4000 * eps * np.abs(w).max()
    assert stats.sweeps > 4 * (stats.passes - 2)
    assert not files(isolated)


def test_half_the_basis_in_ram_is_better_than_all_on_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    x = graded("float64", rng)
    m = on_disk(x + x.T, tmp_path / "a.zarr", chunks=(64, 64))
    whole, some, none = (
        eigsh(m, K, block_size=4, return_eigenvectors=False, memory=limit, return_stats=True)[1]
        for limit in (20_000_000, 2_500_000, MEMORY)
    )
    assert (whole.sweeps, some.sweeps) == (0, 0)
    assert whole.ncv == none.ncv > some.ncv >= whole.ncv // 2
    assert none.sweeps > 0


def test_a_basis_that_is_asked_for_keeps_its_size(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    x = graded("float64", rng)
    m = on_disk(x + x.T, tmp_path / "a.zarr", chunks=(64, 64))
    stats = eigsh(m, K, block_size=2, ncv=90, return_eigenvectors=False, memory=2_300_000, return_stats=True)[1]
    assert stats.ncv == 90
    assert stats.sweeps > 0


def test_a_full_disk_leaves_a_smaller_basis_in_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng()
    x = graded("float64", rng)
    a = x + x.T
    m = on_disk(a, tmp_path / "a.zarr", chunks=(64, 64))

    class Full(placing.SpilledBasis):
        def _new_store(self) -> None:
            raise StoreFullError("no space left")

    monkeypatch.setattr(placing, "SpilledBasis", Full)
    w, v, stats = eigsh(m, K, block_size=4, memory=MEMORY, return_stats=True)
    assert stats.sweeps == 0
    assert stats.ncv < 40
    np.testing.assert_allclose(a @ v, v * w, atol=1e-11)


def test_nothing_is_left_after_an_error(tmp_path: Path, isolated: Path) -> None:
    a = np.eye(N)
    a[700, 300] = np.nan
    with pytest.raises(NonFiniteError, match="row 700, column 300"):
        eigsh(on_disk(a, tmp_path / "a.zarr", chunks=(64, 64)), K, block_size=4, memory=MEMORY)
    assert not files(isolated)


def test_far_too_little_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MemoryLimitError, match="eigsh"):
        eigsh(on_disk(np.eye(N), tmp_path / "a.zarr", chunks=(64, 64)), K, block_size=4, memory=60_000)
