"""Who else meets a journal: outputs that have none themselves, calls on a matrix that is half overwritten, destroyed headers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycauset
from pycauset.copying import copy_store
from pycauset.errors import ConfigError, JournalBusyError, JournalError, StoreError
from pycauset.linalg import cho_solve, cholesky, inv, lstsq, slogdet, solve, solve_triangular
from pycauset.storage import create_store, open_store
from pycauset.storage.journal import open_journal
from pycauset.tiling import Rect
from tests.storage.journalled import CHUNK, REQUEST, TILES, N, begun, contents, fill, names

HIDDEN, JOURNAL = ".a.zarr.resumable", "a.zarr.journal"


def interrupted(path: Path, rng: np.random.Generator, *, in_place: bool = False) -> np.ndarray:
    """A journal with three tiles on record."""
    a = rng.standard_normal((N, N))
    if in_place:
        made(path, a)
        with open_journal(path, REQUEST) as journal:
            journal.in_place(open_store(path))
            journal.begin({})
            fill(journal, -a, tiles=TILES[:3])
    else:
        with begun(path)[0] as journal:
            fill(journal, a, tiles=TILES[:3])
    return a


def made(path: Path, a: np.ndarray, **options: Any) -> None:
    with create_store(path, a.shape, a.dtype, chunks=(CHUNK, CHUNK), **options) as store:
        store.write(Rect(0, a.shape[0], 0, a.shape[1]), a)
        store.commit()


def outputs(a: np.ndarray, other: Path) -> dict[str, Callable[[Path], Any]]:
    """Operations that make an output without a journal."""
    return {
        "matmul": lambda path: pycauset.matmul(a, a, out=path),
        "vector": lambda path: pycauset.matmul(a, a[:, 0], out=path),
        "save": lambda path: pycauset.save(path, a),
        "convert": lambda path: copy_store(open_store(other), path),
    }


OUTPUTS = ["matmul", "vector", "save", "convert"]

# ---- other outputs at the same path -------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", OUTPUTS)
def test_interrupted_work_is_in_the_way_of_an_output_without_a_journal(path: Path, rng: np.random.Generator, what: str) -> None:
    a = interrupted(path, rng)
    made(path.with_name("other.zarr"), a)
    with pytest.raises(JournalError, match=r"not finished: a journal of fill .*run the same call again to go on, or delete"):
        outputs(a, path.with_name("other.zarr"))[what](path)
    assert names(path.parent) == [HIDDEN, JOURNAL, "other.zarr"]
    journal, store = begun(path)
    assert journal.resumed
    fill(journal, a, tiles=TILES[3:])
    journal.finish()
    np.testing.assert_array_equal(contents(store), a)


def test_deleting_the_journal_gives_the_work_up(path: Path, rng: np.random.Generator) -> None:
    a = interrupted(path, rng)
    path.with_name(JOURNAL).unlink()
    os.utime(path.with_name(HIDDEN), (0, 0))
    pycauset.save(path, -a)
    assert names(path.parent) == ["a.zarr"]


@pytest.mark.parametrize("in_place", [False, True], ids=["new", "in place"])
@pytest.mark.parametrize("how", ["save", "convert"])
def test_overwriting_discards_interrupted_work_when_it_is_finished_and_not_before(
    path: Path, rng: np.random.Generator, how: str, in_place: bool
) -> None:
    a = interrupted(path, rng, in_place=in_place)
    before = names(path.parent)
    made(path.with_name("other.zarr"), 2 * a)
    with pytest.raises(StoreError, match="overwrite=True"):
        pycauset.save(path, 2 * a)
    create_store(path, a.shape, a.dtype, overwrite=True).discard()
    assert names(path.parent) == sorted([*before, "other.zarr"])
    if how == "save":
        pycauset.save(path, 2 * a, overwrite=True)
    else:
        copy_store(open_store(path.with_name("other.zarr")), path, overwrite=True)
    assert names(path.parent) == ["a.zarr", "other.zarr"]
    np.testing.assert_array_equal(np.asarray(pycauset.open(path)), 2 * a)
    with open_journal(path, REQUEST) as journal:
        assert not journal.resumed


@pytest.mark.parametrize("in_place", [False, True], ids=["new", "in place"])
def test_work_that_is_alive_is_left_alone_by_everybody(path: Path, rng: np.random.Generator, in_place: bool) -> None:
    a = interrupted(path, rng, in_place=in_place)
    place = "j.in_place(open_store(p, unfinished=True))" if in_place else "j.new_output((40, 40), 'float64')"
    code = (
        "import sys\nfrom pycauset.storage import open_store\nfrom pycauset.storage.journal import open_journal\n"
        f"p = {str(path)!r}\nj = open_journal(p, {REQUEST!r})\n{place}\nprint('ready', flush=True)\nsys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    late = create_store(path, a.shape, a.dtype, overwrite=True)  # it was there first, and ends last
    late.write(Rect(0, N, 0, N), a)
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        for overwrite in (False, True):
            with pytest.raises(JournalBusyError, match=rf"process {other.pid} on .* is at work"):
                pycauset.save(path, a, overwrite=overwrite)
        with pytest.raises(JournalBusyError):
            pycauset.matmul(a, a, out=path)
        with pytest.raises(JournalBusyError):
            late.commit()
        late.discard()
    finally:
        other.kill()
        other.communicate()
    with open_journal(path, REQUEST) as journal:
        assert journal.resumed


def test_a_journal_without_tiles_is_in_nobodys_way(path: Path, rng: np.random.Generator) -> None:
    a = rng.standard_normal((N, N))
    path.with_name(JOURNAL).touch()
    path.with_name(HIDDEN).mkdir()
    pycauset.save(path, a)
    path.with_name(HIDDEN).rmdir()
    with open_journal(path, REQUEST) as journal:
        assert not journal.resumed
    assert names(path.parent) == ["a.zarr"]


# ---- destroyed headers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", bytes(300), b"garbage without an end", b'12345678 {"pycauset_jour'])
@pytest.mark.parametrize("in_place", [False, True], ids=["new", "in place"])
def test_a_destroyed_header_beside_tiles_is_refused(path: Path, rng: np.random.Generator, content: bytes, in_place: bool) -> None:
    interrupted(path, rng, in_place=in_place)
    before = names(path.parent)
    path.with_name(JOURNAL).write_bytes(content)
    remedy = "make the matrix again and delete the journal" if in_place else 'start over with resume="restart"'
    for resume in (True, False, True):  # a refusal changes nothing
        with pytest.raises(JournalError, match=rf"a.zarr.journal cannot be followed: its header is destroyed.*{remedy}"):
            open_journal(path, REQUEST, resume=resume)  # type: ignore[arg-type]
    assert names(path.parent) == before
    if in_place:
        with pytest.raises(JournalError, match=remedy):
            open_journal(path, REQUEST, resume="restart")
        return
    with open_journal(path, REQUEST, resume="restart") as journal:
        assert not journal.resumed
    assert names(path.parent) == []


@pytest.mark.parametrize("content", [b"", b'12345678 {"pycauset_jour'])
def test_a_run_killed_in_its_first_moments_starts_afresh(path: Path, rng: np.random.Generator, content: bytes) -> None:
    """With the empty journal only, or with an output in which there is no tile yet."""
    a = rng.standard_normal((N, N))
    for output in (False, True):
        journal = open_journal(path, REQUEST)
        if output:
            journal.new_output((N, N), "float64")
        os.dup2(os.open(os.devnull, os.O_RDONLY), journal._file.fd)  # the lock is gone, as after a kill
        path.with_name(JOURNAL).write_bytes(content)
        again, store = begun(path)
        assert not again.resumed
        fill(again, a)
        again.finish()
        np.testing.assert_array_equal(contents(store), a)
        assert names(path.parent) == ["a.zarr"]
        pycauset.save(path.with_name("b.zarr"), a)
        path.rename(path.with_name("c.zarr"))
        for name in ("b.zarr", "c.zarr"):
            subprocess.run(["rm", "-r", path.with_name(name)], check=True)


# ---- what to do in place ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["other work", "in the way", "restart", "line", "format", "record", "last lines"])
def test_the_advice_fits_work_in_place(path: Path, rng: np.random.Generator, trouble: str) -> None:
    a = interrupted(path, rng, in_place=True)
    file = path.with_name(JOURNAL)
    lines = file.read_bytes().splitlines(keepends=True)
    request, resume = REQUEST, {"in the way": False, "restart": "restart"}.get(trouble, True)
    if trouble == "other work":
        request = {**REQUEST, "threads": 5}
    elif trouble == "line":
        file.write_bytes(b"".join([*lines[:2], b"x" + lines[2], *lines[3:]]))
    elif trouble == "format":
        from pycauset.storage.journalfile import format_record

        file.write_bytes(format_record({"pycauset_journal": 1}) + b"".join(lines[1:]))
    elif trouble == "record":
        from pycauset.storage.journalfile import format_record

        file.write_bytes(b"".join([*lines, format_record({"tile": [0, 7, 0, 7], "generation": 1, "chunks": {}})]))
    elif trouble == "last lines":
        for chunk in (path / "c").rglob("*"):
            os.utime(chunk)
        file.write_bytes(b"".join(lines[:-1]))
    advice = "make the matrix again and delete the journal"
    with (
        pytest.raises(JournalError, match=advice) as caught,
        open_journal(path, request, resume=resume) as journal,  # type: ignore[arg-type]
    ):
        journal.in_place(open_store(path, unfinished=True))
    assert "start over with" not in str(caught.value)
    made(path, a, overwrite=True)  # what the message says
    assert names(path.parent) == ["a.zarr"]
    with open_journal(path, request) as journal:
        assert not journal.resumed
        np.testing.assert_array_equal(contents(journal.in_place(open_store(path))), a)


def killed_at_once(path: Path, a: np.ndarray[Any, Any]) -> None:
    """Leave what a kill leaves that comes before the first tile of work in place."""
    made(path, a)
    journal = open_journal(path, REQUEST)
    journal.in_place(open_store(path))
    journal.begin({})
    journal._file.close()


def test_in_place_without_a_record_starting_over_is_good_advice(path: Path, rng: np.random.Generator) -> None:
    a = rng.standard_normal((N, N))
    killed_at_once(path, a)
    with pytest.raises(JournalError, match='start over with resume="restart"'):
        open_journal(path, {**REQUEST, "threads": 7})
    with open_journal(path, {**REQUEST, "threads": 7}, resume="restart") as again:
        np.testing.assert_array_equal(contents(again.in_place(open_store(path))), a)


def test_what_another_object_has_finished_since_is_not_taken_for_what_it_was(path: Path, rng: np.random.Generator) -> None:
    a = rng.standard_normal((N, N))
    killed_at_once(path, a)
    given, other = (open_store(path, unfinished=True) for _ in range(2))
    with open_journal(path, REQUEST) as journal:
        journal.in_place(other)
        fill(journal, -a)
        journal.finish()
    resumes: list[Any] = [True, "restart"]
    for resume in resumes:
        with open_journal(path, REQUEST, resume=resume) as journal, pytest.raises(JournalError, match="open it again"):
            journal.in_place(given)
    np.testing.assert_array_equal(contents(open_store(path)), -a)


def test_a_mixture_that_starts_over_is_finished_only_with_all_its_chunks(path: Path, rng: np.random.Generator) -> None:
    a = interrupted(path, rng, in_place=True)
    resumes: list[Any] = ["restart", True]
    for resume in resumes:
        journal = open_journal(path, REQUEST, resume=resume, replaceable=True)
        journal.in_place(open_store(path, unfinished=True))
        journal.begin({})
        if resume == "restart":
            fill(journal, 2 * a, tiles=TILES[:3])
        with pytest.raises(StoreError, match=r"1 of its chunks are not on record.*start over with"):
            journal.finish()
        if resume == "restart":
            journal.suspend()
    fill(journal, 2 * a, tiles=TILES[3:])
    journal.finish()
    np.testing.assert_array_equal(contents(open_store(path)), 2 * a)


# ---- names and options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".h5", ".csv", ".HDF5", ".npz", ".mat", ".NPY", ".nc"])
def test_a_name_of_another_kind_of_file_is_refused_by_every_output(path: Path, rng: np.random.Generator, suffix: str) -> None:
    a = rng.standard_normal((N, N))
    made(path, a)
    work = outputs(a, path)
    work["solve"] = lambda path: solve(a @ a.T + N * np.eye(N), a, assume_a="pos", out=path)
    work["cho_solve"] = lambda path: cho_solve((np.eye(N), True), a, out=path)
    work["lstsq"] = lambda path: lstsq(a, a, out=path)
    work["inverse"] = lambda path: inv(a @ a.T + N * np.eye(N), assume_a="pos", out=path)
    work["cholesky"] = lambda where: cholesky(a @ a.T + N * np.eye(N), out=where)
    work["solve_triangular"] = lambda where: solve_triangular(N * np.eye(N), a, lower=True, out=where)
    work["triangular inverse"] = lambda where: inv(N * np.eye(N), assume_a="lower triangular", out=where)
    for name, call in work.items():
        with pytest.raises(ConfigError, match=rf"cannot write \{suffix} files: .*name it \.npy, or \.zarr"):
            call(path.with_name(f"x{suffix}"))
        assert names(path.parent) == ["a.zarr"], name
    pycauset.save(path.with_name("run.3"), a)  # any other name will do
    cholesky(a @ a.T + N * np.eye(N), out=path.with_name("run.4"))


@pytest.mark.parametrize("options", [{"resume": 3}, {"resume": 1}, {"resume": "maybe"}, {"resume": None}, {"progress": 5}])
def test_odd_options_are_refused_before_any_work_however_small(
    path: Path, rng: np.random.Generator, options: dict[str, Any]
) -> None:
    a = rng.standard_normal((5, 5))
    a = a @ a.T + 5 * np.eye(5)
    before = a.copy()
    triangle = np.tril(a)
    calls: dict[str, Callable[..., Any]] = {
        "cholesky": lambda **o: cholesky(a, **o),
        "in place": lambda **o: cholesky(a, overwrite=True, **o),
        "to a path": lambda **o: cholesky(a, out=path, **o),
        "solve_triangular": lambda **o: solve_triangular(triangle, a, lower=True, **o),
        "inv": lambda **o: inv(triangle, assume_a="lower triangular", **o),
        "inv pos": lambda **o: inv(a, assume_a="pos", **o),
    }
    if "progress" in options:
        calls |= {
            "solve": lambda **o: solve(a, a, assume_a="pos", **o),
            "cho_solve": lambda **o: cho_solve((triangle, True), a, **o),
            "lstsq": lambda **o: lstsq(a, a, **o),
            "slogdet": lambda **o: slogdet(triangle, assume_a="lower triangular", **o),
            "matmul": lambda **o: pycauset.matmul(a, a, **o),
            "save": lambda **o: pycauset.save(path, a, **o),
        }
    (name,) = options
    for call in calls.values():
        with pytest.raises(ConfigError, match=f"{name}.*must be True"):
            call(**options)
    np.testing.assert_array_equal(a, before)
    assert names(path.parent) == []
    cholesky(a, resume=np.bool_(False), progress=False)


@pytest.mark.parametrize("resume", [1, 0, np.int64(1)])
def test_a_number_for_resume_never_throws_tiles_away(path: Path, rng: np.random.Generator, resume: Any) -> None:
    interrupted(path, rng)
    with pytest.raises(ConfigError, match="resume="):
        open_journal(path, REQUEST, resume=resume)
    with open_journal(path, REQUEST, resume=np.True_) as journal:  # type: ignore[arg-type]
        assert journal.resumed
