"""Journals: what is asked, what is on record, what is refused, and how tiles reach the disk."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pycauset.errors import (
    ConfigError,
    CorruptTileError,
    JournalBusyError,
    JournalError,
    ShapeError,
    StoreError,
    StoreExistsError,
    StoreNotFoundError,
    StorePermissionError,
)
from pycauset.storage import as_store, create_store, open_store
from pycauset.storage import journalfile as journalfile_module
from pycauset.storage.base import TileJournal
from pycauset.storage.journal import Resume, open_journal, operand_identity, read_journal
from pycauset.tiling import Rect
from tests.storage.journalled import CHUNK, REQUEST, TILES, N, begun, contents, fill, names

# ---- the life of a journal ------------------------------------------------------------------------------------------


def test_a_finished_output_leaves_nothing_but_itself(path: Path, rng: np.random.Generator) -> None:
    a = rng.standard_normal((N, N))
    journal, store = begun(path, attributes={"colour": "red"})
    protocol: TileJournal = journal
    assert protocol.generation(TILES[0]) == 0
    assert names(path.parent) == [".a.zarr.resumable", "a.zarr.journal"]
    with pytest.raises(StoreNotFoundError, match=r"yet: a journal of fill is beside it \(a.zarr.journal\); run the same call"):
        open_store(path)
    fill(journal, a)
    np.testing.assert_array_equal(contents(store), a)
    journal.flush()
    assert journal.generations() == dict.fromkeys(TILES, 1)
    np.testing.assert_array_equal(contents(store), a)
    journal.finish(size=N)
    assert names(path.parent) == ["a.zarr"]
    np.testing.assert_array_equal(contents(store), a)
    opened = open_store(path)
    np.testing.assert_array_equal(contents(opened), a)
    assert opened.attributes == {"colour": "red", "size": N}
    assert not list(path.rglob("*.pending"))
    assert not list(path.rglob(".*"))


def test_what_was_suspended_goes_on_by_its_plan(path: Path, rng: np.random.Generator) -> None:
    a = rng.standard_normal((N, N))
    journal, store = begun(path)
    fill(journal, a, tiles=TILES[:2])
    journal.suspend()
    with pytest.raises(StoreError, match="unfinished"):
        contents(store)
    again = open_journal(path, REQUEST)
    assert again.resumed
    assert again.plan == {"b": 32}
    assert again.header["device"] == "cpu"
    store = again.new_output((N, N), "float64")
    assert [again.generation(tile) for tile in TILES] == [1, 1, 0, 0]
    for tile in TILES[:2]:
        np.testing.assert_array_equal(contents(store, tile), a[tile.slices])
    with pytest.raises(StoreNotFoundError, match="not been written yet"):
        contents(store)
    again.begin({"b": 1})
    assert again.plan == {"b": 32}
    fill(again, a, tiles=TILES[2:])
    again.finish()
    statistics = again.statistics()
    assert (statistics.tiles_reused, statistics.records) == (2, 2)
    assert statistics.seconds >= statistics.seconds_checksums > 0
    np.testing.assert_array_equal(contents(open_store(path)), a)
    assert names(path.parent) == ["a.zarr"]


def test_leaving_the_block_suspends_and_what_has_no_record_goes(path: Path, rng: np.random.Generator) -> None:
    with open_journal(path, REQUEST):
        pass
    assert names(path.parent) == []
    with open_journal(path, REQUEST) as journal:
        journal.new_output((N, N), "float64")
    assert names(path.parent) == []
    with pytest.raises(KeyboardInterrupt), begun(path)[0]:
        raise KeyboardInterrupt
    assert names(path.parent) == []
    with pytest.raises(KeyboardInterrupt), begun(path)[0] as journal:
        fill(journal, rng.standard_normal((N, N)), tiles=TILES[:1])
        raise KeyboardInterrupt
    assert names(path.parent) == [".a.zarr.resumable", "a.zarr.journal"]
    begun(path)[0].discard()
    assert names(path.parent) == []


def test_in_place(path: Path, rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((2, N, N))
    with create_store(path, (N, N), "float64", chunks=(CHUNK, CHUNK)) as made:
        made.write(Rect(0, N, 0, N), a)
        made.commit(kept=1)
    given = open_store(path)
    request = {**REQUEST, "operands": {"A": operand_identity(given)}}
    with open_journal(path, request) as journal:
        store = journal.in_place(given)
        np.testing.assert_array_equal(contents(store), a)
        journal.begin({})
        with pytest.raises(StoreError, match=r"never finished: a journal of fill is beside it .*run the same call again"):
            open_store(path)
        fill(journal, b, tiles=TILES[:1])
        np.testing.assert_array_equal(contents(store, TILES[0]), b[TILES[0].slices])
    given = open_store(path, unfinished=True)
    assert {"A": operand_identity(given)} == request["operands"]
    with pytest.raises(StoreError, match="a mixture of old and new"):
        contents(given)
    with pytest.raises(JournalError, match="nothing can start over from it: make the matrix again and delete the journal"):
        open_journal(path, request, resume="restart")
    journal = open_journal(path, request)
    store = journal.in_place(given)
    assert [journal.generation(tile) for tile in TILES] == [1, 0, 0, 0]
    np.testing.assert_array_equal(contents(store, TILES[3]), a[TILES[3].slices])
    fill(journal, b, tiles=TILES[1:])
    journal.finish(done=True)
    assert names(path.parent) == ["a.zarr"]
    np.testing.assert_array_equal(contents(open_store(path)), b)
    assert open_store(path).attributes == {"kept": 1, "done": True}


def test_in_place_without_a_record_the_matrix_is_as_it_was(path: Path, rng: np.random.Generator) -> None:
    a = rng.standard_normal((N, N))
    for ending in ("suspend", "discard", "restart"):
        with create_store(path, (N, N), "float64", overwrite=True) as made:
            made.write(Rect(0, N, 0, N), a)
            made.commit()
        with open_journal(path, REQUEST) as journal:
            store = journal.in_place(open_store(path))
            journal.begin({})
            store.stage(Rect(0, N, 0, N), -a, 1)  # never recorded
            if ending == "restart":
                store.suspend()
                journal._file.close()
                given = open_store(path, unfinished=True)
                for replaceable in (False, True):
                    with open_journal(path, REQUEST, resume="restart", replaceable=replaceable) as fresh:
                        assert not fresh.resumed
                        np.testing.assert_array_equal(contents(fresh.in_place(given)), a)
                        fresh.begin({})
                        assert not (path / "zarr.json").exists()
                    np.testing.assert_array_equal(contents(given), a)
            else:
                getattr(journal, ending)()
        assert names(path.parent) == ["a.zarr"]
        assert not list(path.rglob("*.pending"))
        np.testing.assert_array_equal(contents(open_store(path)), a)


def test_a_failed_operation_in_place_leaves_a_mixture_that_says_so(path: Path, rng: np.random.Generator) -> None:
    a = rng.standard_normal((N, N))
    with create_store(path, (N, N), "float64", chunks=(CHUNK, CHUNK)) as made:
        made.write(Rect(0, N, 0, N), a)
        made.commit()
    journal = open_journal(path, REQUEST)
    journal.in_place(open_store(path))
    journal.begin({})
    fill(journal, -a, tiles=TILES[:1])
    journal.flush()
    assert journal.generations() == {TILES[0]: 1}
    journal.discard()
    assert names(path.parent) == ["a.zarr"]
    with pytest.raises(StoreError, match="never finished, so its contents are a mixture"):
        open_store(path, unfinished=True)
    with create_store(path, (N, N), "float64", overwrite=True) as made:
        made.write(Rect(0, N, 0, N), a)
        made.commit()
    np.testing.assert_array_equal(contents(open_store(path)), a)


# ---- refusals -------------------------------------------------------------------------------------------------------


def suspended(path: Path, rng: np.random.Generator, tiles: list[Rect] = TILES[:3]) -> np.ndarray:
    a = rng.standard_normal((N, N))
    with begun(path)[0] as journal:
        fill(journal, a, tiles=tiles)
        journal.flush()
    return a


def test_other_work_is_refused_with_the_old_and_the_new_value(path: Path, rng: np.random.Generator) -> None:
    suspended(path, rng)
    for changed, text in (
        ({"operation": "other"}, "operation was 'fill' and is 'other'"),
        ({"arguments": {"lower": False}}, "arguments.lower was True and is False"),
        ({"threads": 1}, "threads was 2 and is 1"),
        ({"versions": {"numpy": "1.0"}}, r"versions.numpy was '2\S+' and is '1.0'"),
        ({"operands": {"A": {"shape": [3, 3]}}}, r"operands.A was None and is {'shape': \[3, 3\]}"),
    ):
        with pytest.raises(JournalError, match=text + r'.*resume="restart"'):
            open_journal(path, {**REQUEST, **changed})
    with pytest.raises(JournalError, match="unfinished fill is in the way"):
        open_journal(path, REQUEST, resume=False)
    journal = open_journal(path, REQUEST)
    with journal, pytest.raises(JournalError, match=r"shape was \[40, 40\] and is \[41, 40\]"):
        journal.new_output((41, 40), "float64")
    journal = open_journal(path, {**REQUEST, "threads": 1}, resume="restart")
    assert not journal.resumed
    assert names(path.parent) == ["a.zarr.journal"]
    journal.suspend()
    assert names(path.parent) == []


def test_a_second_process_is_refused_and_told_who_is_at_work(path: Path, rng: np.random.Generator) -> None:
    code = (
        "import sys\nfrom pycauset.storage.journal import open_journal\n"
        f"j = open_journal({str(path)!r}, {REQUEST!r})\nj.new_output((40, 40), 'float64')\nj.begin({{}})\n"
        "print('ready', flush=True)\nsys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(JournalBusyError, match=rf"process {other.pid} on .* is at work"):
            open_journal(path, REQUEST)
    finally:
        other.kill()
        other.communicate()
    with open_journal(path, REQUEST) as journal:  # the lock died with it
        assert journal.resumed
        with pytest.raises(JournalBusyError):
            open_journal(path, REQUEST, resume="restart")


def test_a_cut_journal_loses_records_never_truth(path: Path, rng: np.random.Generator) -> None:
    a = suspended(path, rng)
    journal = path.with_name("a.zarr.journal")
    whole = journal.read_bytes()
    kept = path.parent / "kept"
    shutil.copytree(path.parent / ".a.zarr.resumable", kept)
    for length in sorted({0, 1, len(whole) - 1, *rng.integers(0, len(whole), 25).tolist()}):
        shutil.rmtree(path.parent / ".a.zarr.resumable", ignore_errors=True)
        shutil.copytree(kept, path.parent / ".a.zarr.resumable")
        journal.write_bytes(whole[:length])
        if b"\n" not in whole[:length]:  # not even the header
            with pytest.raises(JournalError, match=r'its header is destroyed.*start over with resume="restart"'):
                begun(path)
            continue
        again, store = begun(path)
        for tile in TILES:
            if again.generation(tile):
                np.testing.assert_array_equal(contents(store, tile), a[tile.slices])
        complete = whole[: whole.rfind(b"\n", 0, length) + 1]
        assert sum(again.generation(tile) for tile in TILES) == complete.count(b'"tile"')
        fill(again, a, tiles=[tile for tile in TILES if not again.generation(tile)])
        np.testing.assert_array_equal(contents(store), a)
        again.discard()


def test_a_tampered_journal_is_refused(path: Path, rng: np.random.Generator) -> None:
    suspended(path, rng)
    journal = path.with_name("a.zarr.journal")
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) >= 4  # header, session, records
    for number, line in enumerate(lines, 1):
        damaged = bytearray(line)
        damaged[int(rng.integers(0, len(line) - 1))] ^= 1
        journal.write_bytes(b"".join([*lines[: number - 1], bytes(damaged), *lines[number:]]))
        with pytest.raises(JournalError, match=rf'line {number} of the journal .* is damaged.*resume="restart"'):
            open_journal(path, REQUEST)
        with pytest.raises(JournalError, match="damaged"):
            read_journal(journal)
    header, records = (journal.write_bytes(whole), read_journal(journal))[1]
    assert [record["generation"] for record in records if "tile" in record] == [1] * 3
    journal.write_bytes(journalfile_module.format_record({**header, "pycauset_journal": 99}) + b"".join(lines[1:]))
    with pytest.raises(JournalError, match="format 99"):
        open_journal(path, REQUEST)
    with open_journal(path, REQUEST, resume="restart") as fresh:
        assert not fresh.resumed
    assert names(path.parent) == []


def test_in_place_a_journal_without_its_last_lines_is_noticed(path: Path, rng: np.random.Generator) -> None:
    a, b, c = rng.standard_normal((3, N, N))
    with create_store(path, (N, N), "float64", chunks=(CHUNK, CHUNK)) as made:
        made.write(Rect(0, N, 0, N), a)
        made.commit()
    os_time = 1_600_000_000  # written long ago
    for file in path.rglob("*"):
        os.utime(file, (os_time, os_time))
    with open_journal(path, REQUEST) as journal:
        journal.in_place(open_store(path))
        journal.begin({})
        fill(journal, b)
        journal.flush()
        fill(journal, c, generation=2, tiles=TILES[2:])
        journal.flush()
    file = path.with_name("a.zarr.journal")
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 8
    for count, error, text in ((6, CorruptTileError, "generation 1"), (5, JournalError, "lines are missing from its end")):
        file.write_bytes(b"".join(lines[:count]))
        with open_journal(path, REQUEST) as journal, pytest.raises(error, match=text):
            journal.in_place(open_store(path, unfinished=True))
    file.write_bytes(b"".join(lines))
    with open_journal(path, REQUEST) as journal:
        store = journal.in_place(open_store(path, unfinished=True))
        for tile, expected in zip(TILES, (b, b, c, c), strict=True):
            np.testing.assert_array_equal(contents(store, tile), expected[tile.slices])
        journal.finish()


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("in_place", [False, True], ids=["new", "in place"])
def test_a_damaged_tile_is_computed_again_or_refused(path: Path, rng: np.random.Generator, damage: str, in_place: bool) -> None:
    a = rng.standard_normal((N, N))
    if in_place:
        with create_store(path, (N, N), "float64", chunks=(CHUNK, CHUNK)) as made:
            made.write(Rect(0, N, 0, N), -a)
            made.commit()
        with open_journal(path, REQUEST) as journal:
            journal.in_place(open_store(path))
            journal.begin({})
            fill(journal, a)
    else:
        with begun(path)[0] as journal:
            fill(journal, a)
    chunk = (path if in_place else path.with_name(".a.zarr.resumable")) / "c" / "2" / "1"
    if damage == "remove":
        chunk.unlink()
    elif damage == "cut":
        os.truncate(chunk, 100)
    else:
        data = bytearray(chunk.read_bytes())
        data[int(rng.integers(0, len(data)))] ^= 8
        chunk.write_bytes(data)
    if in_place:
        with open_journal(path, REQUEST) as journal, pytest.raises(CorruptTileError, match="rows 32:40, columns 0:32"):
            journal.in_place(open_store(path, unfinished=True))
        assert names(path.parent) == ["a.zarr", "a.zarr.journal"]
        return
    journal, store = begun(path)
    assert [journal.generation(tile) for tile in TILES] == [1, 1, 0, 1]
    with pytest.raises(StoreError, match="never written"):
        journal.finish()
    fill(journal, a, tiles=[TILES[2]])
    journal.finish()
    np.testing.assert_array_equal(contents(store), a)


def test_what_a_journal_does_not_take(path: Path, rng: np.random.Generator) -> None:
    a = rng.standard_normal((N, N))
    with pytest.raises(ConfigError, match=r"\.npy"):
        open_journal(path.with_suffix(".npy"), REQUEST)
    with pytest.raises(ConfigError, match="resume='maybe'"):
        open_journal(path, REQUEST, resume="maybe")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"the request\.arguments\.f is"):
        open_journal(path, {**REQUEST, "arguments": {"f": object()}})
    with pytest.raises(StoreNotFoundError, match="no folder"):
        open_journal(path / "b.zarr", REQUEST)
    assert names(path.parent) == []
    journal = open_journal(path, REQUEST)
    with pytest.raises(StoreError, match="no output yet"):
        journal.begin({})
    with pytest.raises(ConfigError, match="cannot have it"):
        journal.in_place(as_store(a))
    store = journal.new_output((N, N), "float64", chunks=(CHUNK, CHUNK), structure="lower")
    with pytest.raises(StoreError, match="not begun"):
        journal.write(TILES[0], 1, TILES[0], a[TILES[0].slices])
    journal.begin({})
    journal.write(TILES[0], 2, TILES[0], a[TILES[0].slices])
    with pytest.raises(StoreError, match=r"generation 2 of tile .* too late: generation 2 is there"):
        journal.write(TILES[0], 2, TILES[0], a[TILES[0].slices])
    with pytest.raises(StoreError, match="belongs to tile"):
        journal.write(Rect(0, 16, 0, 16), 3, Rect(0, 16, 0, 16), a[:16, :16])
    with pytest.raises(ShapeError, match="cut the chunk"):
        journal.write(TILES[0], 3, Rect(0, 17, 0, 32), a[:17, :32])
    with pytest.raises(ShapeError, match="do not lie in the tile"):
        journal.write(TILES[0], 3, TILES[2], a[TILES[2].slices])
    with pytest.raises(ShapeError, match="does not store"):
        journal.write(TILES[1], 1, TILES[1], a[TILES[1].slices])
    with pytest.raises(StorePermissionError, match=r"journal\.write"):
        store.write(TILES[0], a[TILES[0].slices])
    with pytest.raises(StoreError, match=r"journal\.finish"):
        store.commit()
    journal.write(TILES[2], 1, Rect(32, 40, 0, 16), a[32:40, :16])
    with pytest.raises(StoreError, match=r"\(32, 40, 0, 32\) of .* is incomplete: 1 of its chunks"):
        journal.finish()
    journal.discard()
    assert names(path.parent) == []


# ---- stale journals ---------------------------------------------------------------------------------------------------


def test_stale_journals_and_folders_go(path: Path, rng: np.random.Generator) -> None:
    hidden, file = path.with_name(".a.zarr.resumable"), path.with_name("a.zarr.journal")
    suspended(path, rng)
    shutil.rmtree(hidden)
    with open_journal(path, REQUEST) as journal:  # nothing is left that it could tell of
        assert not journal.resumed
    assert names(path.parent) == []
    suspended(path, rng)
    file.unlink()
    with open_journal(path, REQUEST) as journal:
        assert not journal.resumed
    assert names(path.parent) == []
    suspended(path, rng)
    file.unlink()
    os.utime(hidden, (0, 0))
    create_store(path, (4, 4), "float64").discard()
    assert names(path.parent) == []


def test_in_place_a_matrix_made_again_voids_the_journal(path: Path, rng: np.random.Generator) -> None:
    a = rng.standard_normal((N, N))
    for _ in range(2):
        with create_store(path, (N, N), "float64", chunks=(CHUNK, CHUNK), overwrite=True) as made:
            made.write(Rect(0, N, 0, N), a)
            made.commit()
        with open_journal(path, REQUEST) as journal:
            assert not journal.resumed
            journal.in_place(open_store(path))
            journal.begin({})
            fill(journal, -a, tiles=TILES[:2])


@pytest.mark.parametrize("in_place", [False, True], ids=["new", "in place"])
@pytest.mark.parametrize("resume", [True, False, "restart"])
def test_killed_after_the_last_step_it_is_finished(
    path: Path, rng: np.random.Generator, in_place: bool, resume: Resume, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = rng.standard_normal((N, N))
    request = REQUEST
    if in_place:
        with create_store(path, (N, N), "float64", chunks=(CHUNK, CHUNK)) as made:
            made.write(Rect(0, N, 0, N), -a)
            made.commit()
        request = {**REQUEST, "operands": {"A": operand_identity(open_store(path))}}
    journal = open_journal(path, request)
    if in_place:
        journal.in_place(open_store(path))
    else:
        journal.new_output((N, N), "float64", chunks=(CHUNK, CHUNK))
    journal.begin({})
    fill(journal, a)
    with monkeypatch.context() as patch:
        patch.setattr(journalfile_module.JournalFile, "remove", lambda self: self.close())
        journal.finish()
    assert names(path.parent) == ["a.zarr", "a.zarr.journal"]
    now = {**request, "operands": {"A": operand_identity(open_store(path))}} if in_place else request
    with open_journal(path, now, resume=resume) as again:
        assert again.finished == (resume is True)
        assert not again.resumed
    assert names(path.parent) == ["a.zarr"]
    np.testing.assert_array_equal(contents(open_store(path)), a)
    with pytest.raises(StoreExistsError), open_journal(path, request) as another:
        another.new_output((N, N), "float64")
