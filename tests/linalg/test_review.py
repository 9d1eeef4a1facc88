"""Cases that once went wrong: shared memory, NaN in triangles on disk, operands changed by other programs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import pycauset
from pycauset.errors import ConfigError, NonFiniteError
from pycauset.linalg import cholesky, inv, solve, solve_triangular
from pycauset.linalg.results import request_of
from pycauset.storage import open_store


def spd(n: int) -> np.ndarray:
    x = np.random.default_rng().standard_normal((n, n))
    return x @ x.T + n * np.eye(n)


@pytest.mark.parametrize("column", [True, False])
def test_a_right_hand_side_in_the_matrix_itself_keeps_it_from_being_overwritten(column: bool) -> None:
    a = spd(7)
    b = a[:, 0] if column else a
    wanted = np.eye(7)[:, 0] if column else np.eye(7)
    np.testing.assert_allclose(np.asarray(solve(a, b, assume_a="pos", overwrite_a=True)), wanted, atol=1e-12)


@pytest.mark.parametrize("out", [None, "w.zarr"])
def test_nan_in_a_triangle_on_disk_is_found_by_inv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str | None) -> None:
    monkeypatch.chdir(tmp_path)
    t = np.tril(np.random.default_rng().standard_normal((60, 60))) + 9 * np.eye(60)
    t[38, 3] = np.nan
    pycauset.save("t.zarr", t)
    with pytest.raises(NonFiniteError, match="row 38, column 3"):
        inv(pycauset.open("t.zarr"), assume_a="lower triangular", out=out)
    assert sorted(os.listdir()) == ["t.zarr"]


def test_a_right_hand_side_on_disk_outlives_a_solution_that_cannot_be_had(tmp_path: Path) -> None:
    t = 3 * np.eye(40)
    t[20, 3] = np.nan
    b = np.random.default_rng().standard_normal((40, 6))
    pycauset.save(tmp_path / "b.zarr", b)
    with pytest.raises(NonFiniteError):
        solve_triangular(t, pycauset.open(tmp_path / "b.zarr"), lower=True, overwrite_b=True)
    np.testing.assert_array_equal(pycauset.open(tmp_path / "b.zarr").to_numpy(), b)


def test_a_change_by_another_program_changes_what_a_journal_compares(tmp_path: Path) -> None:
    pycauset.save(tmp_path / "a.zarr", spd(30))
    operands = {"a": (open_store(tmp_path / "a.zarr"), "N")}
    before = request_of("cholesky", {}, operands)
    assert request_of("cholesky", {}, operands) == before
    chunk = next(path for path in (tmp_path / "a.zarr" / "c").rglob("*") if path.is_file())
    status = chunk.stat()
    os.utime(chunk, ns=(status.st_atime_ns, status.st_mtime_ns + 10**10))
    assert request_of("cholesky", {}, operands) != before
    in_place = request_of("cholesky", {}, operands, in_place=True)
    assert "chunks" not in in_place["operands"]["a"]


def test_empty_and_odd_arguments(tmp_path: Path) -> None:
    assert cholesky(np.zeros((0, 0)), out=tmp_path / "z.npy").shape == (0, 0)
    with pytest.raises(ConfigError, match="assume_a"):
        solve(spd(3), np.ones(3), assume_a=["pos"])
