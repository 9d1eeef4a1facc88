"""Interrupted iterations go on from their last restart, to the same bits; what does not fit is never used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycauset import Matrix, errors
from pycauset.linalg import checkpoint, eigs, eigsh, svds
from pycauset.solver.products import Product
from pycauset.tiling import Rect
from tests.linalg.cases import on_disk, random

ROOT = Path(__file__).resolve().parents[2]
N, K = 300, 4
OPTIONS: dict[str, Any] = {"block_size": 3, "ncv": 24, "return_stats": True}
FUNCTIONS: dict[str, Callable[..., Any]] = {"eigsh": eigsh, "eigs": eigs, "svds": svds}


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are for long work; here each restart has one."""
    monkeypatch.setattr(checkpoint, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "_SHARE", 0.0)


def matrix(what: str, dtype: str, folder: Path) -> Matrix:
    x = random((N, N), dtype, np.random.default_rng())
    if what == "eigs":
        x = 0.3 * x / N**0.5 + np.diag(np.linspace(0, 2, N) ** 4)
    return on_disk((x + x.conj().T if what == "eigsh" else x).astype(dtype), folder / "a.zarr")


def files(scratch: Path) -> list[Path]:
    return sorted(p for p in scratch.rglob("*") if p.is_file() and p.name != "lock")


def interrupt(call: Callable[..., Any], passes: int) -> None:
    """Stop a call in the midst of a pass."""
    multiply = Product.__call__

    def product(self: Product, x: np.ndarray) -> np.ndarray:
        if self.passes >= passes:
            raise KeyboardInterrupt
        return multiply(self, x)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Product, "__call__", product)
        call()


@pytest.mark.parametrize("memory", [None, "900kB"])
@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("what", list(FUNCTIONS))
def test_it_goes_on_to_the_same_bits(tmp_path: Path, isolated: Path, what: str, dtype: str, memory: str | None) -> None:
    m = matrix(what, dtype, tmp_path)
    tol = 1e-8 if dtype == "float64" else 1e-3

    def call(**more: Any) -> Any:
        return FUNCTIONS[what](m, K, tol=tol, memory=memory, **OPTIONS, **more)

    *whole, stats = call()
    assert stats.reused == 0
    assert stats.restarts > 2
    assert not files(isolated)
    for passes in sorted(np.random.default_rng().integers(10, stats.passes, 2)):
        interrupt(call, int(passes))
        assert len(files(isolated)) == 1
    *again, more = call()
    assert 0 < more.reused < more.passes == stats.passes
    assert more.products == stats.products
    assert len(whole) == len(again)
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not files(isolated)


@pytest.mark.parametrize("memory", [None, "900kB"])
def test_work_without_a_restart_is_taken_up(tmp_path: Path, isolated: Path, memory: str | None) -> None:
    """A pass over a large matrix on disk takes minutes: what was done before the first restart counts, too."""
    m = matrix("eigsh", "float64", tmp_path)
    options = {"which": "LA", "block_size": 3, "ncv": 150, "tol": 1e-3, "memory": memory, "return_stats": True}
    whole = eigsh(m, K, **options)
    assert whole[-1].restarts == 0
    passes = whole[-1].passes // 2
    interrupt(lambda: eigsh(m, K, **options), passes)
    again = eigsh(m, K, **options)
    assert again[-1].reused == passes
    np.testing.assert_array_equal(whole[0], again[0])
    np.testing.assert_array_equal(whole[1], again[1])
    assert not files(isolated)


def test_other_work_never_uses_it(tmp_path: Path, isolated: Path) -> None:
    m = matrix("eigsh", "float64", tmp_path)
    interrupt(lambda: eigsh(m, K, **OPTIONS), 20)
    (left,) = files(isolated)
    for other in ({"which": "SA"}, {"tol": 1e-6}, {"v0": np.ones(N)}, {"resume": False}):
        assert eigsh(m, K, **OPTIONS, **other)[-1].reused == 0
        assert files(isolated) == [left]
    store = m.store
    store.begin_write()
    x = np.eye(N) + np.ones((N, N)) / N
    store.write(Rect(0, N, 0, N), x)
    store.commit()
    assert eigsh(m, K, **OPTIONS)[-1].reused == 0
    left.unlink()


def test_restart_starts_over(tmp_path: Path, isolated: Path) -> None:
    m = matrix("eigsh", "float64", tmp_path)
    interrupt(lambda: eigsh(m, K, **OPTIONS), 20)
    assert eigsh(m, K, **OPTIONS, resume="restart")[-1].reused == 0
    assert not files(isolated)
    with pytest.raises(errors.ConfigError, match="resume"):
        eigsh(m, K, resume="yes")


def test_work_that_ran_out_of_restarts_goes_on_with_more(tmp_path: Path, isolated: Path) -> None:
    m = matrix("eigsh", "float64", tmp_path)
    whole = eigsh(m, K, **OPTIONS)
    with pytest.raises(errors.NotConvergedError):
        eigsh(m, K, **OPTIONS, maxiter=2)
    again = eigsh(m, K, **OPTIONS)
    assert again[-1].reused > 0
    np.testing.assert_array_equal(whole[1], again[1])
    assert not files(isolated)


@pytest.mark.parametrize("damage", ["data", "record", "cut", "empty"])
def test_a_damaged_one_is_ignored_with_one_warning(tmp_path: Path, isolated: Path, damage: str) -> None:
    m = matrix("eigsh", "float64", tmp_path)
    whole = eigsh(m, K, **OPTIONS)
    interrupt(lambda: eigsh(m, K, **OPTIONS), 20)
    (path,) = files(isolated)
    data = bytearray(path.read_bytes())
    if damage == "data":
        data[int(np.random.default_rng().integers(N * 8))] ^= 1
    elif damage == "record":
        data[-40] ^= 1
    path.write_bytes({"cut": data[:-100], "empty": b""}.get(damage, bytes(data)))
    with pytest.warns(errors.PycausetWarning, match="not used") as warned:
        again = eigsh(m, K, **OPTIONS)
    assert len(warned) == 1
    assert again[-1].reused == 0
    np.testing.assert_array_equal(whole[1], again[1])
    assert not files(isolated)


def test_a_folder_that_cannot_be_written_costs_only_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = matrix("eigsh", "float64", tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.warns(errors.PycausetWarning, match="goes on without") as warned:
        stats = eigsh(m, K, **OPTIONS)[-1]
    assert len(warned) == 1
    assert stats.restarts > 2


def test_short_work_and_arrays_leave_none(tmp_path: Path, isolated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = matrix("eigsh", "float64", tmp_path)
    interrupt(lambda: eigsh(m.to_numpy(), K, **OPTIONS), 20)
    monkeypatch.setattr(checkpoint, "_LEAST_SECONDS", 3600.0)
    interrupt(lambda: eigsh(m, K, **OPTIONS), 20)
    assert not files(isolated)


def test_old_ones_are_swept(tmp_path: Path, isolated: Path) -> None:
    m = matrix("eigsh", "float64", tmp_path)
    folder = isolated / "checkpoints"
    folder.mkdir()
    for name, days in (("old.krylov", 31), ("new.krylov", 29), (".x.krylov.1.tmp", 2)):
        (folder / name).touch()
        then = os.stat(folder / name).st_mtime - days * 86400
        os.utime(folder / name, (then, then))
    assert eigsh(m, K, **OPTIONS)[-1].restarts > 0
    assert [p.name for p in files(isolated)] == ["new.krylov"]
    (folder / "new.krylov").unlink()


_CHILD = """
import os, signal, sys
import pycauset
from pycauset.linalg import checkpoint, eigsh
from pycauset.solver.products import Product
checkpoint._LEAST_SECONDS = checkpoint._SHARE = 0.0
multiply = Product.__call__
def product(self, x):
    if self.passes >= 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return multiply(self, x)
Product.__call__ = product
eigsh(pycauset.open(sys.argv[1]), 4, block_size=3, ncv=24)
"""


def test_kill_9(tmp_path: Path, isolated: Path) -> None:
    m = matrix("eigsh", "float64", tmp_path)
    whole = eigsh(m, K, **OPTIONS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", _CHILD, str(m.store.path)], env=environment, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    again = eigsh(m, K, **OPTIONS)
    assert again[-1].reused > 0
    np.testing.assert_array_equal(whole[1], again[1])
    assert not files(isolated)
