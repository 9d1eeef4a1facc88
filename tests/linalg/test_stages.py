"""Operations of several steps: each goes on after a stop at any step to the same bits, and keeps to its memory in all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycauset
from pycauset import errors
from pycauset.governor.governor import MemoryGovernor
from pycauset.governor.scope import Scope
from pycauset.governor.ticket import Ticket
from pycauset.linalg import cho_solve, cholesky, inv, lstsq, solve, stages
from pycauset.solver import run
from pycauset.storage.journalfile import JournalFile
from pycauset.storage.output import remove_stages
from tests.interruptions import leaves_something
from tests.linalg.cases import DTYPES, on_disk, random, spd

MEMORY = "400kB"
N = 150
CALLS = ["solve", "solve upper", "cho_solve", "inv", "inv upper", "lstsq"]


class Stop:
    """A progress function that interrupts the work from a fraction of its ``step``-th part on, and counts the parts."""

    def __init__(self, step: int = -1, fraction: float = 0.0) -> None:
        self.step, self.fraction = step, fraction
        self.parts = 0
        self.last = np.inf

    def __call__(self, done: float, total: float) -> None:
        if done < self.last and self.last is not np.inf and self.last > done:
            self.parts += 1
        self.last = done
        if self.parts == self.step and done >= self.fraction * total and leaves_something(done, total):
            raise KeyboardInterrupt


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def call_of(call: str, folder: Path, dtype: str, rng: np.random.Generator) -> Callable[..., Any]:
    """A function that does ``call`` with operands on disk."""
    lower = "upper" not in call
    a = spd(N, dtype, rng)
    matrix = on_disk(a, folder / "a.zarr")
    b = on_disk(random((N, N), dtype, rng), folder / "b.zarr")
    if call == "cho_solve":
        factor = on_disk(np.linalg.cholesky(a), folder / "l.zarr")
        return lambda **options: cho_solve((factor, True), b, memory=MEMORY, **options)
    if call.startswith("solve"):
        return lambda **options: solve(matrix, b, lower, assume_a="pos", memory=MEMORY, **options)
    if call == "lstsq":
        tall = on_disk(random((2 * N, N), dtype, rng), folder / "tall.zarr")
        right = on_disk(random((2 * N, 40), dtype, rng), folder / "right.zarr")
        return lambda **options: lstsq(tall, right, memory="24MB", **options).x
    return lambda **options: inv(matrix, assume_a="pos", lower=lower, memory=MEMORY, **options)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_a_stop_at_any_step_ends_in_the_same_bits(tmp_path: Path, call: str, dtype: str) -> None:
    rng = np.random.default_rng()
    work = call_of(call, tmp_path, dtype, rng)
    given, whole = names(tmp_path), Stop()
    expected = np.asarray(work(out=tmp_path / "whole.zarr", progress=whole))
    assert whole.parts >= (call != "lstsq")
    given.add("whole.zarr")
    for step in range(whole.parts + 1):
        stop = Stop(step, rng.uniform(0.2, 0.8))
        with pytest.raises(KeyboardInterrupt):
            work(out=tmp_path / "x.zarr", progress=stop)
        assert "x.zarr.stages" in names(tmp_path)
        assert not (tmp_path / "x.zarr").exists()
        if step % 2:  # and go on with what is there
            again = Stop()
            assert np.array_equal(np.asarray(work(out=tmp_path / "x.zarr", progress=again)), expected)
            assert again.parts <= whole.parts - step
        else:
            with pytest.raises(errors.JournalError, match="in the way"):
                work(out=tmp_path / "x.zarr", resume=False)
            assert np.array_equal(np.asarray(work(out=tmp_path / "x.zarr", resume="restart")), expected)
        assert names(tmp_path) == given | {"x.zarr"}
        assert np.array_equal(pycauset.open(tmp_path / "x.zarr"), expected)
        for p in sorted((tmp_path / "x.zarr").rglob("*"), reverse=True):
            p.unlink() if p.is_file() else p.rmdir()
        (tmp_path / "x.zarr").rmdir()


def test_finished_steps_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng()
    work = call_of("inv", tmp_path, "float64", rng)
    with pytest.raises(KeyboardInterrupt):
        work(out=tmp_path / "x.zarr", progress=Stop(2, 0.5))
    assert names(tmp_path / "x.zarr.stages") == {"request.json", "inverse.zarr"}, "the factor goes when its inverse is there"

    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("the factor was computed again")

    monkeypatch.setattr("pycauset.linalg.inverses.cholesky", never)
    reused: list[int] = []
    kept = run.record_statistics
    monkeypatch.setattr("pycauset.solver.run.record_statistics", lambda s: (kept(s), reused.append(s.reused if s else 0)))
    work(out=tmp_path / "x.zarr")
    assert len(reused) == 1
    assert reused[0] > 0


@pytest.mark.parametrize("moment", ["marked", "emptied", "published"])
def test_a_stop_in_the_last_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """What stays when the process ends after the last tile: nothing is computed again."""
    rng = np.random.default_rng()
    a, b = spd(N, "float64", rng), rng.standard_normal((N, 20))
    matrix = on_disk(a, tmp_path / "a.zarr")

    def work() -> Any:
        return solve(matrix, b, assume_a="pos", out=tmp_path / "x.zarr", memory=MEMORY)

    with monkeypatch.context() as patched:

        def stop(*args: Any, **options: Any) -> Any:
            raise KeyboardInterrupt

        removed, closed = remove_stages, JournalFile.close

        def then_stop(first: Callable[[Any], None]) -> Callable[[Any], None]:
            return lambda self: (first(self), stop())[0]

        if moment == "marked":
            patched.setattr(stages, "remove_stages", stop)
        elif moment == "emptied":
            patched.setattr(stages, "remove_stages", then_stop(removed))
        else:
            whole = JournalFile.remove
            patched.setattr(
                JournalFile, "remove", lambda self: then_stop(closed)(self) if self.path.name == "x.zarr.journal" else whole(self)
            )
        with pytest.raises(KeyboardInterrupt):
            work()
    assert "x.zarr.journal" in names(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("pycauset.linalg.solving.cholesky", stop)
        assert np.allclose(a @ np.asarray(work()), b)
    assert names(tmp_path) == {"a.zarr", "x.zarr"}


@pytest.mark.parametrize("call", ["solve", "inv", "lstsq"])
def test_what_has_changed_is_refused(tmp_path: Path, call: str) -> None:
    rng = np.random.default_rng()
    work = call_of(call, tmp_path, "float64", rng)
    before = names(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        work(out=tmp_path / "x.zarr", progress=Stop(0, 0.3))
    matrix = pycauset.open(tmp_path / ("tall.zarr" if call == "lstsq" else "a.zarr"))
    matrix[7, 7] = 2 * N

    def anew(**options: Any) -> Any:
        if call == "lstsq":
            return lstsq(matrix, tmp_path / "right.zarr", out=tmp_path / "x.zarr", memory="24MB", **options).x
        if call == "inv":
            return inv(matrix, assume_a="pos", out=tmp_path / "x.zarr", memory=MEMORY, **options)
        return solve(matrix, tmp_path / "b.zarr", assume_a="pos", out=tmp_path / "x.zarr", memory=MEMORY, **options)

    with pytest.raises(errors.JournalError, match=r"operands\.a"):
        anew()
    assert "x.zarr.stages" in names(tmp_path)
    expected = np.asarray(anew(resume="restart"))
    assert names(tmp_path) == before | {"x.zarr"}
    if call == "inv":
        assert np.allclose(expected @ matrix.to_numpy(), np.eye(N))


def test_other_arguments_and_other_operations_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    matrix = on_disk(spd(N, "float64", rng), tmp_path / "a.zarr")
    b, path = rng.standard_normal((N, 3)), tmp_path / "x.zarr"
    with pytest.raises(KeyboardInterrupt):
        solve(matrix, b, assume_a="pos", out=path, memory=MEMORY, progress=Stop(0, 0.5))
    with pytest.raises(errors.JournalError, match="lower was True and is False"):
        solve(matrix, b, False, assume_a="pos", out=path, memory=MEMORY)
    with pytest.raises(errors.JournalError, match="operation was 'solve' and is 'inv'"):
        inv(matrix, assume_a="pos", out=path, memory=MEMORY)
    with pytest.raises(errors.JournalError, match=r"operands\.b\.checksum"):
        solve(matrix, b + 1, assume_a="pos", out=path, memory=MEMORY)
    assert np.allclose(matrix @ np.asarray(solve(matrix, b, assume_a="pos", out=path, memory=MEMORY)), b)
    assert names(tmp_path) == {"a.zarr", "x.zarr"}


def test_a_damaged_request_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    matrix, b = on_disk(spd(N, "float64", rng), tmp_path / "a.zarr"), rng.standard_normal((N, 3))

    def work(**options: Any) -> Any:
        return solve(matrix, b, assume_a="pos", out=f"{tmp_path}/x.zarr/", memory=MEMORY, **options)

    with pytest.raises(KeyboardInterrupt):
        work(progress=Stop(0, 0.5))
    request = tmp_path / "x.zarr.stages" / "request.json"
    text = request.read_text()
    for damaged in (text[: len(text) // 2], "", "[]", text.replace('"solve"', '"lstsq"')):
        request.write_text(damaged)
        with pytest.raises(errors.JournalError, match=r"damaged|other work"):
            work()
    assert np.allclose(matrix @ np.asarray(work(resume="restart")), b)
    assert names(tmp_path) == {"a.zarr", "x.zarr"}


def test_a_second_one_at_the_same_result_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    matrix, b = on_disk(spd(N, "float64", rng), tmp_path / "a.zarr"), rng.standard_normal((N, 3))
    refused: list[Exception] = []

    def meanwhile(done: float, total: float) -> None:
        if not refused:
            with pytest.raises(errors.JournalBusyError) as caught:
                solve(matrix, b, assume_a="pos", out=tmp_path / "x.zarr", memory=MEMORY)
            refused.append(caught.value)

    solve(matrix, b, assume_a="pos", out=tmp_path / "x.zarr", memory=MEMORY, progress=meanwhile)
    assert refused
    assert names(tmp_path) == {"a.zarr", "x.zarr"}


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.zarr.stages").mkdir()
    (tmp_path / "x.zarr.stages" / "mine.txt").write_text("keep")
    for resume in (True, "restart"):
        with pytest.raises(errors.StoreExistsError, match="in the way"):
            inv(spd(20, "float64", np.random.default_rng()), assume_a="pos", out=tmp_path / "x.zarr", resume=resume)
    assert (tmp_path / "x.zarr.stages" / "mine.txt").read_text() == "keep"
    assert names(tmp_path) == {"x.zarr.stages"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_that_is_not_positive_definite_leaves_nothing(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng()
    a = spd(90, dtype, rng)
    a[60, 60] = -1
    for work in (
        lambda: solve(a, a, assume_a="pos", out=tmp_path / "x.zarr"),
        lambda: inv(a, assume_a="pos", out=tmp_path / "x.zarr"),
        lambda: lstsq(np.ones((90, 4), dtype), a, out=tmp_path / "x.zarr"),
        lambda: cho_solve((np.zeros((90, 90), dtype), True), a, out=tmp_path / "x.zarr"),
    ):
        with pytest.raises(np.linalg.LinAlgError):
            work()
        assert names(tmp_path) == set()


class Peak:
    """The most bytes that results in RAM and the slots of one operation held together."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes, self.scopes = 0, set[Scope]()
        book, shrink = Scope._book, MemoryGovernor._shrink

        def booked(scope: Scope, serial: int, ticket: Ticket) -> None:
            book(scope, serial, ticket)
            self.look(scope._governor, scope)

        def shrunk(governor: MemoryGovernor, ticket: Ticket, nbytes: int) -> None:
            shrink(governor, ticket, nbytes)
            self.look(governor)

        monkeypatch.setattr(Scope, "_book", booked)
        monkeypatch.setattr(MemoryGovernor, "_shrink", shrunk)

    def look(self, governor: MemoryGovernor, scope: Scope | None = None) -> None:
        results = sum(record.nbytes for record in governor._records.values() if record.owner.startswith("a result of"))
        self.bytes = max(self.bytes, results + (scope._held("host") if scope is not None else 0))


@pytest.mark.parametrize(("call", "share"), [("solve", 2.02), ("solve", 2.6), ("inv", 2.02), ("inv", 3.3), ("lstsq", 14.0)])
def test_intermediate_matrices_count_under_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, share: float
) -> None:
    """What an operation holds from step to step in RAM, with the slots of each step, leaves what Python itself needs."""
    reserve = 1 << 20
    monkeypatch.setattr(run, "_HOST_RESERVE", reserve)
    rng = np.random.default_rng()
    n, chunks = 509 if call == "lstsq" else 1009, (128, 128)
    a = on_disk(spd(n, "float64", rng), tmp_path / "a.zarr", chunks=chunks)
    limit = int(share * a.nbytes)
    peak = Peak(monkeypatch)
    if call == "inv":
        found = inv(a, assume_a="pos", memory=limit)
    elif call == "solve":
        b = on_disk(rng.standard_normal((n, 2003)), tmp_path / "b.zarr", chunks=chunks)
        found = solve(a, b, assume_a="pos", memory=limit)
    else:
        tall = on_disk(rng.standard_normal((1009, n)), tmp_path / "t.zarr", chunks=chunks)
        found = lstsq(tall, on_disk(rng.standard_normal((1009, 499)), tmp_path / "r.zarr", chunks=chunks), memory=limit).x
    assert found.shape[0] == n
    assert a.nbytes < peak.bytes <= limit - reserve


@pytest.mark.parametrize("call", ["solve", "inv", "lstsq", "cho_solve"])
def test_outputs_are_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    rng = np.random.default_rng()
    a: Any = spd(40, "complex128", rng)
    b: Any = random((40, 5), "complex128", rng)
    shape = (40, 40) if call == "inv" else (40, 5)

    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("work began")

    monkeypatch.setattr("pycauset.solver.blocked.run", never)
    for place in ("solving.cholesky", "inverses.cholesky", "least_squares.matmul", "substitution.substitute"):
        monkeypatch.setattr(f"pycauset.linalg.{place}", never)
    work = {
        "solve": lambda out: solve(a, b, assume_a="pos", out=out),
        "inv": lambda out: inv(a, assume_a="pos", out=out),
        "lstsq": lambda out: lstsq(a, b, out=out),
        "cho_solve": lambda out: cho_solve((a, True), b, out=out),
    }[call]
    frozen = np.empty(shape, "complex128")
    frozen.flags.writeable = False
    on_disk(a, tmp_path / "there.zarr")
    for out, error, words in (
        (np.empty((40, 41), complex), errors.ShapeError, r"out has shape \(40, 41\), but the result has shape"),
        (np.empty(shape), errors.DtypeError, "cannot hold"),
        (a[:, : shape[1]], errors.OverlapError, rf"out <Matrix 40 x {shape[1]} complex128 in RAM> shares storage with a \("),
        (frozen, errors.StorePermissionError, "read-only"),
        (5, errors.DtypeError, "must be a Matrix, an array, or a path"),
        (tmp_path / "nowhere" / "x.zarr", errors.StoreNotFoundError, "make it first"),
        (tmp_path / "nowhere" / "x.npy", errors.StoreNotFoundError, "make it first"),
        (tmp_path / "there.zarr", errors.StoreExistsError, "exists"),
        (tmp_path / "x.h5", errors.ConfigError, r"cannot write .h5 files"),
    ):
        with pytest.raises(error, match=words) as caught:
            work(out)
        assert len(str(caught.value)) < 400, "an array was printed"
    assert names(tmp_path) == {"there.zarr"}
    if call != "inv":
        with pytest.raises(errors.OverlapError, match=r"shares storage with b \(<ArrayStore 40 x 5 complex128>\)"):
            work(b)


def test_given_matrices_stay_as_they_were_when_the_work_fails(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    a = -spd(40, "float64", rng)
    kept = rng.standard_normal((40, 40))
    for path in (tmp_path / "out.zarr", tmp_path / "out.npy"):
        pycauset.save(path, kept)
        for work in (
            lambda out: solve(a, np.eye(40), assume_a="pos", out=out),
            lambda out: inv(a, assume_a="pos", out=out),
            lambda out: lstsq(np.ones((50, 40)), np.ones((50, 40)), out=out),
        ):
            with pytest.raises(np.linalg.LinAlgError):
                work(pycauset.open(path))
            assert np.array_equal(pycauset.open(path), kept)


def test_results_of_one_step_keep_no_folder(tmp_path: Path) -> None:
    matrix = on_disk(spd(N, "float64", np.random.default_rng()), tmp_path / "a.zarr")
    with pytest.raises(KeyboardInterrupt):
        cholesky(matrix, out=tmp_path / "l.zarr", memory=MEMORY, progress=Stop(0, 0.8))
    assert names(tmp_path) == {"a.zarr", "l.zarr.journal", ".l.zarr.resumable"}
