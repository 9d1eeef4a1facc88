"""Interrupted factorisations, solves and inverses go on to the same bits, and say so; whatever has changed is refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycauset
from pycauset import errors
from pycauset.linalg import cholesky, inv, solve_triangular
from pycauset.solver import last_statistics
from tests.interruptions import leaves_something
from tests.linalg.cases import on_disk, spd, triangular

MEMORY = "700kB"


class StopError(Exception):
    """Not one of ours: what a progress function raises."""


def after(fraction: float, what: Callable[[], None] | type[BaseException] = KeyboardInterrupt) -> Callable[[float, float], None]:
    """A progress function that ends the work from a fraction of it on, when there is something to go on with."""

    def report(done: float, total: float) -> None:
        if done >= fraction * total and leaves_something(done, total):
            if isinstance(what, type):
                raise what
            what()

    return report


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def reused() -> int:
    statistics = last_statistics()
    assert statistics is not None
    return statistics.reused


@pytest.mark.parametrize("in_place", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("variant", ["left", "right", "triangle"])
def test_cholesky_goes_on_to_the_same_bits(tmp_path: Path, variant: str, in_place: bool) -> None:
    rng = np.random.default_rng()
    a = spd(300, "float64", rng)
    options: dict[str, Any] = {"variant": variant, "memory": MEMORY}
    expected = np.asarray(cholesky(on_disk(a, tmp_path / "a.zarr"), out=tmp_path / "whole.zarr", **options))
    here: dict[str, Any] = {"overwrite": True} if in_place else {"out": tmp_path / "l.zarr"}
    path = tmp_path / ("a.zarr" if in_place else "l.zarr")
    for fraction in sorted(rng.uniform(0.05, 0.9, 2)):
        with pytest.raises(KeyboardInterrupt):
            cholesky(pycauset.open(tmp_path / "a.zarr"), progress=after(fraction), **here, **options)
        assert names(tmp_path) == {"a.zarr", "whole.zarr", f"{path.name}.journal", *([] if in_place else [".l.zarr.resumable"])}
        with pytest.raises(errors.StoreError, match=r"run the (same )?call"):
            pycauset.open(path).to_numpy()
    factor = cholesky(pycauset.open(tmp_path / "a.zarr"), **here, **options)
    assert reused() > 0
    assert np.array_equal(factor, expected)
    assert np.array_equal(pycauset.open(path), expected)
    assert names(tmp_path) == {"a.zarr", "whole.zarr", path.name}
    assert not [p for p in path.rglob("*") if p.name.endswith((".pending", ".tmp")) or "unfinished" in p.name]


def test_an_unfinished_matrix_can_be_named_by_its_path(tmp_path: Path) -> None:
    a = spd(300, "float64", np.random.default_rng())
    on_disk(a, tmp_path / "a.zarr", structure="symmetric")
    with pytest.raises(KeyboardInterrupt):
        cholesky(tmp_path / "a.zarr", overwrite=True, memory="26MB", progress=after(0.5))
    factor = cholesky(str(tmp_path / "a.zarr"), overwrite=True, memory="64MB")
    assert factor.properties.is_lower_triangular
    assert np.allclose(factor, np.linalg.cholesky(a))


def test_sigterm_suspends(tmp_path: Path) -> None:
    a = spd(300, "float64", np.random.default_rng())
    matrix = on_disk(a, tmp_path / "a.zarr")
    with pytest.raises(SystemExit):
        cholesky(
            matrix, out=tmp_path / "l.zarr", memory=MEMORY, progress=after(0.4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        )
    assert np.allclose(cholesky(matrix, out=tmp_path / "l.zarr", memory=MEMORY), np.linalg.cholesky(a))
    assert names(tmp_path) == {"a.zarr", "l.zarr"}


def test_a_second_one_at_the_same_output_is_refused(tmp_path: Path) -> None:
    matrix = on_disk(spd(300, "float64", np.random.default_rng()), tmp_path / "a.zarr")
    refused = []

    def meanwhile(done: float, total: float) -> None:
        if not refused:
            with pytest.raises(errors.JournalBusyError) as caught:
                cholesky(matrix, out=tmp_path / "l.zarr", memory=MEMORY)
            refused.append(caught.value)

    factor = cholesky(matrix, out=tmp_path / "l.zarr", memory=MEMORY, progress=meanwhile)
    assert refused
    assert np.allclose(factor, np.linalg.cholesky(matrix.to_numpy()))


def test_what_has_changed_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    a = spd(300, "float64", rng)
    matrix, path = on_disk(a, tmp_path / "a.zarr"), tmp_path / "l.zarr"
    with pytest.raises(StopError):
        cholesky(matrix, out=path, memory=MEMORY, progress=after(0.5, StopError))
    with pytest.raises(errors.JournalError, match="lower was True and is False"):
        cholesky(matrix, False, out=path, memory=MEMORY)
    with pytest.raises(errors.JournalError, match="operation was 'cholesky' and is 'inv'"):
        inv(matrix, assume_a="lower triangular", out=path)
    with pytest.raises(errors.JournalError, match="in the way"):
        cholesky(matrix, out=path, memory=MEMORY, resume=False)
    with pytest.raises(errors.JournalError, match=r"operands\.a"):
        cholesky(a, out=path, memory=MEMORY)
    matrix[5, 5] = 2 * a[5, 5]
    with pytest.raises(errors.JournalError, match=r"operands\.a"):
        cholesky(matrix, out=path, memory=MEMORY)
    factor = cholesky(matrix, out=path, memory=MEMORY, resume="restart")
    assert reused() == 0
    a[5, 5] *= 2
    assert np.allclose(factor, np.linalg.cholesky(a))
    assert names(tmp_path) == {"a.zarr", "l.zarr"}


def test_an_array_that_changed_is_noticed(tmp_path: Path) -> None:
    a = spd(300, "float64", np.random.default_rng())
    with pytest.raises(KeyboardInterrupt):
        cholesky(a, out=tmp_path / "l.zarr", memory=MEMORY, progress=after(0.5))
    a[299, 1] += 1
    with pytest.raises(errors.JournalError, match="checksum"):
        cholesky(a, out=tmp_path / "l.zarr", memory=MEMORY)
    a[299, 1] -= 1
    a[1, 1] = 1e-9  # indefinite now: the mathematics fail, and nothing is kept
    with pytest.raises(errors.NotPositiveDefiniteError):
        cholesky(a, out=tmp_path / "l.zarr", memory=MEMORY, resume="restart")
    assert names(tmp_path) == set()


@pytest.mark.parametrize("call", ["solve", "inverse"])
def test_solves_and_inverses_go_on(tmp_path: Path, call: str) -> None:
    rng = np.random.default_rng()
    t = on_disk(triangular(300, "float64", True, rng), tmp_path / "t.zarr")
    b = on_disk(rng.standard_normal((300, 300)), tmp_path / "b.zarr")

    def work(**options: Any) -> Any:
        if call == "solve":
            return solve_triangular(t, b, lower=True, memory=MEMORY, **options)
        return inv(t, assume_a="lower triangular", memory=MEMORY, **options)

    expected = np.asarray(work(out=tmp_path / "whole.zarr"))
    with pytest.raises(KeyboardInterrupt):
        work(out=tmp_path / "x.zarr", progress=after(0.6))
    assert "x.zarr.journal" in names(tmp_path)
    again = work(out=tmp_path / "x.zarr")
    assert reused() > 0
    assert np.array_equal(again, expected)
    assert names(tmp_path) == {"t.zarr", "b.zarr", "whole.zarr", "x.zarr"}
