"""Interrupted work of which a part is lost, or which is to start over: never a wrong result, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycauset
from pycauset import Matrix, errors
from pycauset.linalg import cho_solve, cholesky, inv, solve, solve_triangular
from pycauset.solver import blocked, last_statistics
from pycauset.storage import FunctionStore
from pycauset.storage.journal import Journal, read_journal
from pycauset.storage.output import UNFINISHED
from tests.linalg.cases import DTYPES, on_disk, random, spd
from tests.linalg.test_stages import Stop, names

N, MEMORY = 100, "300kB"
Array = np.ndarray[Any, Any]


class System:
    """``A X = B`` on disk, and calls that put the solution into ``x.zarr`` in one way or the other."""

    def __init__(self, folder: Path, dtype: str = "float64") -> None:
        rng = np.random.default_rng()
        self.folder, self.path = folder, folder / "x.zarr"
        self.a, self.b = spd(N, dtype, rng), random((N, 60), dtype, rng)
        self.matrix = on_disk(self.a, folder / "a.zarr")
        self.factor = on_disk(np.linalg.cholesky(self.a), folder / "f.zarr")
        self.expected: Array = np.linalg.solve(self.a, self.b)

    def lay(self, how: str) -> None:
        if how != "path":
            on_disk(self.b if "in place" in how else np.full(self.b.shape, np.nan, self.b.dtype), self.path)

    def call(self, how: str, **options: Any) -> Array:
        operation, _, place = how.rpartition(" ") if how in ("path", "matrix") else (how, "", how)
        options |= {"memory": MEMORY}
        if "in place" in how:
            b: Any = pycauset.open(self.path)
            options["overwrite_b"] = True
        else:
            b = self.b
            options["out"] = self.path if place == "path" else pycauset.open(self.path)
        if operation.startswith("cho_solve"):
            return np.asarray(cho_solve((self.factor, True), b, **options))
        return np.asarray(solve(self.matrix, b, assume_a="pos", **options))

    def interrupt(self, how: str, step: int) -> None:
        self.lay(how)
        with pytest.raises(KeyboardInterrupt):
            self.call(how, progress=Stop(step, 0.5))

    def check(self, found: Array) -> None:
        assert np.abs(found - self.expected).max() <= 1e-3 * np.abs(self.expected).max()


# ---- a part is lost -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "last"), [("solve in place", 2), ("cho_solve in place", 1), ("matrix", 2), ("path", 2)])
def test_without_its_stages_an_interrupted_result_is_not_taken_for_complete(tmp_path: Path, how: str, last: int) -> None:
    system = System(tmp_path)
    system.interrupt(how, last)
    (tmp_path / "x.zarr.stages").rename(tmp_path / "away")
    before = (tmp_path / "x.zarr.journal").read_bytes()
    remedy = "make the matrix again" if "in place" in how else 'start over with resume="restart"'
    with pytest.raises(errors.JournalError, match=rf"request\.json is gone.*put the folder x\.zarr\.stages back, or .*{remedy}"):
        system.call(how)
    assert (tmp_path / "x.zarr.journal").read_bytes().startswith(before)
    if "in place" not in how:
        system.check(system.call(how, resume="restart"))
        shutil.rmtree(tmp_path / "away")
    else:
        (tmp_path / "away").rename(tmp_path / "x.zarr.stages")
        system.check(system.call(how))
    assert names(tmp_path) == {"a.zarr", "f.zarr", "x.zarr"}


def test_a_step_that_was_computed_from_what_is_overwritten_now_is_not_computed_again(tmp_path: Path) -> None:
    system = System(tmp_path)
    system.interrupt("solve in place", 2)
    half = tmp_path / "x.zarr.stages" / "half.zarr"
    half.rename(tmp_path / "away")
    with pytest.raises(errors.JournalError, match=r"half\.zarr is gone, which solve needs to go on; put it back, or"):
        system.call("solve in place")
    (tmp_path / "away").rename(half)
    system.check(system.call("solve in place"))


def test_a_request_without_numbers_of_tiles_is_followed(tmp_path: Path) -> None:
    system = System(tmp_path)
    system.interrupt("path", 1)
    request = tmp_path / "x.zarr.stages" / "request.json"
    found = json.loads(request.read_text())
    assert found.pop("tiles")
    request.write_text(json.dumps(found))
    system.check(system.call("path"))
    assert names(tmp_path) == {"a.zarr", "f.zarr", "x.zarr"}


# ---- outputs of another type ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["cholesky", "inv", "solve", "solve_triangular"])
def test_a_matrix_of_a_narrower_type_has_no_journal(tmp_path: Path, call: str) -> None:
    """Taken up, the work would go on with rounded tiles where it used exact ones before."""
    system = System(tmp_path)
    shape = (N, 60) if "solve" in call else (N, N)
    out = on_disk(np.zeros(shape, "float32"), system.path)
    seen: set[str] = set()

    def look(done: float, total: float) -> None:
        seen.update(names(tmp_path))

    options: dict[str, Any] = {"out": out, "memory": MEMORY, "progress": look}
    if call == "cholesky":
        cholesky(system.matrix, **options)
    elif call == "inv":
        inv(system.matrix, assume_a="pos", **options)
    elif call == "solve":
        solve(system.matrix, system.b, assume_a="pos", **options)
    else:
        solve_triangular(system.factor, system.b, lower=True, **options)
    assert seen == names(tmp_path) == {"a.zarr", "f.zarr", "x.zarr"}
    low = np.linalg.cholesky(system.a)
    expected = {"cholesky": low, "inv": np.linalg.inv(system.a), "solve": system.expected}.get(
        call, np.linalg.solve(low, system.b)
    )
    assert np.abs(np.asarray(out) - expected).max() <= 1e-4 * np.abs(expected).max()


# ---- other outputs at the same place -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 2])
def test_what_an_interrupted_operation_left_goes_with_an_overwrite_and_not_before(tmp_path: Path, step: int) -> None:
    system = System(tmp_path)
    system.interrupt("path", step)
    before = names(tmp_path)
    assert "x.zarr.stages" in before
    with pytest.raises(errors.JournalError, match=r"x\.zarr is being made and not finished.*overwrite=True"):
        pycauset.save(system.path, system.a)
    with pytest.raises(errors.JournalError, match=r'of other work.*resume="restart"'):
        cholesky(system.matrix, out=system.path, memory=MEMORY)
    assert names(tmp_path) == before
    pycauset.save(system.path, system.a, overwrite=True)
    assert names(tmp_path) == {"a.zarr", "f.zarr", "x.zarr"}
    assert np.array_equal(pycauset.open(system.path), system.a)


def test_stages_go_when_another_operation_starts_over(tmp_path: Path) -> None:
    system = System(tmp_path)
    system.interrupt("path", 0)
    cholesky(system.matrix, out=system.path, memory=MEMORY, resume="restart")
    assert names(tmp_path) == {"a.zarr", "f.zarr", "x.zarr"}


def test_an_overwrite_leaves_a_folder_of_somebody_else_alone(tmp_path: Path) -> None:
    (tmp_path / "x.zarr.stages").mkdir()
    (tmp_path / "x.zarr.stages" / "mine.txt").write_text("keep")
    for overwrite in (False, True):
        pycauset.save(tmp_path / "x.zarr", np.eye(3), overwrite=overwrite)
    assert (tmp_path / "x.zarr.stages" / "mine.txt").read_text() == "keep"


# ---- starting over --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stopped_before_a_tile(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The journal of the next step is begun, and nothing is in it yet."""

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("pycauset.solver.blocked._stream", stop)
        yield


@pytest.mark.parametrize("damaged", [False, True], ids=["of other work", "damaged"])
def test_a_matrix_that_is_no_operand_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool) -> None:
    system = System(tmp_path)
    system.interrupt("matrix", 2)
    system.b *= 2
    if damaged:
        journal = tmp_path / "x.zarr.journal"
        journal.write_bytes(journal.read_bytes().replace(b'"tile"', b'"tail"'))
    with pytest.raises(errors.JournalError, match='start over with resume="restart"'):
        system.call("matrix")
    with pytest.raises(errors.JournalError, match='start over with resume="restart"'):
        system.call("matrix", resume=False)
    with stopped_before_a_tile(monkeypatch):
        system.call("matrix", resume="restart")
    with pytest.raises(errors.StoreError, match="a mixture of old and new tiles"):
        np.asarray(pycauset.open(system.path))
    with pytest.raises(errors.JournalError, match="make the matrix again"):  # as an operand it is lost
        solve_triangular(system.factor, pycauset.open(system.path), lower=True, overwrite_b=True, resume="restart")
    with pytest.raises(KeyboardInterrupt):
        system.call("matrix", progress=Stop(0, 0.5))
    assert np.abs(system.call("matrix") - 2 * system.expected).max() <= 1e-10 * np.abs(system.expected).max()
    assert names(tmp_path) == {"a.zarr", "f.zarr", "x.zarr"}


def test_a_started_over_matrix_is_never_taken_for_a_finished_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the new journal's beginning and its first tile."""
    system = System(tmp_path)
    on_disk(np.zeros((N, 60)), system.path)

    def work(**options: Any) -> Any:
        out = pycauset.open(system.path)
        return solve_triangular(system.factor, system.b, lower=True, out=out, memory=MEMORY, **options)

    with pytest.raises(KeyboardInterrupt):
        work(progress=Stop(0, 0.5))
    with stopped_before_a_tile(monkeypatch):
        work(resume="restart")
    header, records = read_journal(tmp_path / "x.zarr.journal")
    assert header["mixture"]
    assert not any("tile" in record for record in records)
    for resume in (True, "restart"):
        with pytest.raises(errors.JournalError, match="make the matrix again"):
            solve_triangular(system.factor, pycauset.open(system.path), lower=True, overwrite_b=True, resume=resume)
        assert not (system.path / "zarr.json").exists()
    system.check(np.linalg.solve(np.asarray(system.factor).conj().T, np.asarray(work())))


@contextlib.contextmanager
def killed_before_a_tile(monkeypatch: pytest.MonkeyPatch, path: Path) -> Iterator[None]:
    """The header for ``path`` is on disk, no tile is, and nobody tidies up."""
    go_on = blocked._stream

    def stop(*args: Any) -> Any:
        if (path / UNFINISHED).exists():
            raise KeyboardInterrupt
        return go_on(*args)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(blocked, "_stream", stop)
        patched.setattr(Journal, "suspend", lambda journal: journal._file.close())
        yield
    assert not tiles(path.with_name(f"{path.name}.journal"))
    assert not (path / "zarr.json").exists()


@pytest.mark.parametrize("how", ["cholesky", "cholesky restore", "solve_triangular", "matrix", "solve in place"])
def test_what_was_killed_before_its_first_tile_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Nothing was overwritten yet: the matrix is taken back as it was."""
    system = System(tmp_path)
    lower = np.asarray(system.factor)
    if "cholesky" in how:
        on_disk(system.a, system.path)
        expected: Array = lower
    else:
        system.lay("matrix" if how == "matrix" else "in place")
        expected = system.expected if "place" in how else np.linalg.solve(lower, system.b)

    def work(**options: Any) -> Array:
        x = pycauset.open(system.path)
        if "cholesky" in how:
            restore = source(system.a) if "restore" in how else None
            return np.asarray(cholesky(x, overwrite=True, memory="700kB", restore=restore, **options))
        if "place" in how:
            return system.call(how, **options)
        options |= {"out": x} if how == "matrix" else {"overwrite_b": True}
        b = system.b if how == "matrix" else x
        return np.asarray(solve_triangular(system.factor, b, lower=True, memory=MEMORY, **options))

    with killed_before_a_tile(monkeypatch, system.path):
        work()
    with stopped_before_a_tile(monkeypatch):  # interrupted, it leaves the matrix as it was
        work(resume="restart")
    assert (system.path / "zarr.json").exists()
    for resume in (True, "restart"):  # the work that starts over may be killed there as well
        with killed_before_a_tile(monkeypatch, system.path):
            work(resume=resume)
    found = work(resume="restart")
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
    assert names(tmp_path) == {"a.zarr", "f.zarr", "x.zarr"}


def source(a: Array, fail_after: float = np.inf) -> Matrix:
    """The elements once more, by a function that fails after some calls."""
    calls = 0

    def elements(rows: Array, cols: Array) -> Array:
        nonlocal calls
        calls += 1
        if calls > fail_after:
            raise KeyboardInterrupt
        return a[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]

    return Matrix(FunctionStore(elements, a.shape, a.dtype, (24, 40)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_factorisation_in_place_starts_over_from_restore(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng()
    a = spd(N, dtype, rng)

    def work(**options: Any) -> Any:
        return cholesky(pycauset.open(tmp_path / "l.zarr"), overwrite=True, memory="700kB", **options)

    on_disk(a, tmp_path / "l.zarr")
    expected = np.asarray(work(variant="left"))
    shutil.rmtree(tmp_path / "l.zarr")
    on_disk(a, tmp_path / "l.zarr")
    with pytest.raises(KeyboardInterrupt):
        work(variant="right", progress=Stop(0, 0.5))
    with pytest.raises(errors.JournalError, match="make the matrix again"):
        work(variant="left", resume="restart")
    with pytest.raises(KeyboardInterrupt):  # while it is being restored
        work(variant="left", resume="restart", restore=source(a, 5))
    with pytest.raises(errors.ConfigError, match="was to start over and was being restored"):
        work(variant="left")
    found = work(variant="left", restore=source(a))
    assert np.array_equal(np.asarray(found), expected)
    assert names(tmp_path) == {"l.zarr"}


# ---- statistics -----------------------------------------------------------------------------------------------------------


def tiles(journal: Path) -> int:
    return len({tuple(record["tile"]) for record in read_journal(journal)[1] if "tile" in record})


def cholesky_of(system: System, **options: Any) -> Any:
    return cholesky(system.matrix, out=system.path, memory=MEMORY, **options)


def inverse_of(system: System, **options: Any) -> Any:
    return inv(system.matrix, assume_a="pos", out=system.path, memory=MEMORY, **options)


@pytest.mark.parametrize(("work", "step"), [(cholesky_of, 0), (inverse_of, 2)])
def test_statistics_tell_how_many_tiles_were_reused(tmp_path: Path, work: Callable[..., Any], step: int) -> None:
    system = System(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        work(system, progress=Stop(step, 0.8))
    on_record = tiles(tmp_path / "x.zarr.journal")
    assert on_record
    work(system)
    again = last_statistics()
    assert again is not None
    system.path.rename(tmp_path / "first.zarr")
    work(system)
    whole = last_statistics()
    assert whole is not None
    assert (whole.tiles_reused, whole.tiles) == (0, again.tiles)
    earlier = 0 if step == 0 else 2 * 10  # the factor and its inverse, in tiles of 32: all of both
    assert earlier + on_record == again.tiles_reused <= again.tiles
