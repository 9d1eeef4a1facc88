"""Matrices on disk that the caller gave for a result, or as right-hand sides to overwrite: interrupted work goes on in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycauset
from pycauset import errors
from pycauset.linalg import cho_solve, cholesky, inv, lstsq, solve, solve_triangular
from pycauset.solver import last_statistics
from tests.linalg.cases import DTYPES, on_disk, random, spd
from tests.linalg.test_stages import Stop, names

N, MEMORY = 100, "300kB"
CALLS = ["cholesky", "upper cholesky", "inv", "triangular inv", "solve_triangular", "solve", "cho_solve", "lstsq"]


def call_of(call: str, folder: Path, dtype: str, rng: np.random.Generator, width: int = 60) -> Callable[..., Any]:
    """A function of the place to overwrite and a progress function; the first right-hand side lies in ``b``."""
    a = spd(N, dtype, rng)
    matrix = on_disk(a, folder / "a.zarr")
    factor = on_disk(np.linalg.cholesky(a), folder / "f.zarr")
    tall = on_disk(random((2 * N, N), dtype, rng), folder / "tall.zarr")
    right = on_disk(random((2 * N, width), dtype, rng), folder / "right.zarr")
    b = random((N, width), dtype, rng)
    calls: dict[str, Callable[..., Any]] = {
        "cholesky": lambda **o: cholesky(matrix, **o),
        "upper cholesky": lambda **o: cholesky(matrix, False, **o),
        "inv": lambda **o: inv(matrix, assume_a="pos", **o),
        "triangular inv": lambda **o: inv(factor, assume_a="lower triangular", **o),
        "solve_triangular": lambda **o: solve_triangular(factor, b, lower=True, **o),
        "solve": lambda **o: solve(matrix, b, assume_a="pos", **o),
        "cho_solve": lambda **o: cho_solve((factor, True), b, **o),
        "lstsq": lambda **o: lstsq(tall, right, **o).x,
    }
    return lambda **o: calls[call](memory="24MB" if call == "lstsq" else MEMORY, **o)


@pytest.mark.parametrize("call", CALLS)
def test_a_given_matrix_is_gone_on_with(tmp_path: Path, call: str) -> None:
    rng = np.random.default_rng()
    dtype = str(rng.choice(DTYPES))
    work = call_of(call, tmp_path, dtype, rng)
    shape = (N, N) if "cholesky" in call or "inv" in call else (N, 60)
    on_disk(np.full(shape, np.nan, dtype), tmp_path / "x.zarr")
    whole = Stop()
    work(out=pycauset.open(tmp_path / "x.zarr"), progress=whole)
    expected = np.asarray(pycauset.open(tmp_path / "x.zarr"))
    assert np.isfinite(expected).all()
    on_disk(np.full(shape, np.nan, dtype), tmp_path / "y.zarr")
    given = names(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        work(out=pycauset.open(tmp_path / "y.zarr"), progress=Stop(int(rng.integers(whole.parts + 1)), 0.6))
    assert "y.zarr.journal" in names(tmp_path) or "y.zarr.stages" in names(tmp_path)
    out = pycauset.open(tmp_path / "y.zarr")
    assert work(out=out) is out
    assert np.array_equal(np.asarray(out), expected)
    assert np.array_equal(np.asarray(pycauset.open(tmp_path / "y.zarr")), expected)
    assert names(tmp_path) == given


@pytest.mark.parametrize("chunks", [(32, 32), (N, 5)], ids=["as high as tiles", "higher"])
@pytest.mark.parametrize("call", ["solve_triangular", "cho_solve", "solve"])
def test_a_right_hand_side_is_never_lost(tmp_path: Path, call: str, chunks: tuple[int, int]) -> None:
    rng = np.random.default_rng()
    dtype = str(rng.choice(DTYPES))
    a = spd(N, dtype, rng)
    matrix = on_disk(a, tmp_path / "a.zarr")
    factor = on_disk(np.linalg.cholesky(a), tmp_path / "f.zarr")
    b = random((N, 40), dtype, rng)

    def work(**options: Any) -> Any:
        right = pycauset.open(tmp_path / "b.zarr")
        common: dict[str, Any] = {"overwrite_b": True, "memory": MEMORY, **options}
        if call == "solve":
            found = solve(matrix, right, assume_a="pos", **common)
        elif call == "cho_solve":
            found = cho_solve((factor, True), right, **common)
        else:
            found = solve_triangular(factor, right, lower=True, **common)
        assert found is right
        return np.asarray(found)

    on_disk(b, tmp_path / "b.zarr", chunks=chunks)
    whole = Stop()
    expected = work(progress=whole)
    given = names(tmp_path)
    for step in range(whole.parts + 1):
        for p in sorted((tmp_path / "b.zarr").rglob("*"), reverse=True):
            p.unlink() if p.is_file() else p.rmdir()
        (tmp_path / "b.zarr").rmdir()
        on_disk(b, tmp_path / "b.zarr", chunks=chunks)
        with pytest.raises(KeyboardInterrupt):
            work(progress=Stop(step, rng.uniform(0.3, 0.9)))
        assert np.array_equal(work(), expected)
        statistics = last_statistics()
        assert statistics is not None
        assert statistics.reused > 0
        assert names(tmp_path) == given


def test_a_given_matrix_of_other_work_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    work = call_of("solve_triangular", tmp_path, "float64", rng)
    on_disk(np.zeros((N, 60)), tmp_path / "x.zarr")
    with pytest.raises(KeyboardInterrupt):
        work(out=pycauset.open(tmp_path / "x.zarr"), progress=Stop(0, 0.6))
    with pytest.raises(errors.JournalError, match="is of other work"):
        solve_triangular(np.eye(N), np.ones((N, 60)), out=pycauset.open(tmp_path / "x.zarr"))
