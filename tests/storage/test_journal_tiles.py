"""Tiles on their way to a journalled output, and who an operand is."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycauset.errors import (
    DtypeError,
    StoreError,
    StoreExistsError,
    StoreFullError,
)
from pycauset.storage import aligned_empty, as_store, create_store, open_store
from pycauset.storage import commit as commit_module
from pycauset.storage import journalfile as journalfile_module
from pycauset.storage.chunkfile import ChunkFormat, chunk_checksum, stage_chunk
from pycauset.storage.function import FunctionStore
from pycauset.storage.journal import open_journal, operand_identity
from pycauset.tiling import Rect, chunk_grid
from tests.storage.journalled import CHUNK, REQUEST, TILES, N, begun, contents, fill, names

# ---- tiles on their way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128", "bool"])
@pytest.mark.parametrize("checksum", [False, True])
def test_any_array_is_read_back_before_and_after_its_record(
    path: Path, rng: np.random.Generator, dtype: str, checksum: bool
) -> None:
    a = (rng.standard_normal((N, N)) + (1j * rng.standard_normal((N, N)) if dtype[0] == "c" else 0)).astype(dtype)
    journal, store = open_journal(path, REQUEST), None
    store = journal.new_output((N, N), dtype, chunks=(CHUNK, CHUNK), checksum=checksum)
    journal.begin({})
    whole = Rect(0, N, 0, N)
    fast = aligned_empty((N, N), dtype)
    fast[...] = a
    for generation, data in enumerate((fast, a.copy(order="F"), np.repeat(a, 2, axis=1)[:, ::2]), 1):
        journal.write(whole, generation, whole, data)
        np.testing.assert_array_equal(contents(store), a)
    if dtype == "float64":
        journal.write(whole, 4, whole, a.astype("float32"))
        np.testing.assert_array_equal(contents(store), a.astype("float32"))
        with pytest.raises(DtypeError, match="imaginary"):
            journal.write(whole, 5, whole, a.astype(complex))
        journal.write(whole, 6, whole, a)
    journal.suspend()
    journal = open_journal(path, REQUEST)
    store = journal.new_output((N, N), dtype)
    assert journal.generation(whole) == (6 if dtype == "float64" else 3)
    np.testing.assert_array_equal(contents(store), a)
    journal.finish()
    np.testing.assert_array_equal(contents(open_store(path)), a)


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    filled=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    dtype=st.sampled_from(["bool", "float32", "float64", "complex128", "int16"]),
    checksum=st.booleans(),
    layout=st.sampled_from(["aligned", "C", "F"]),
)
def test_the_checksum_is_that_of_what_is_in_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int],
    filled: tuple[float, float],
    dtype: str,
    checksum: bool,
    layout: str,
) -> None:
    form = ChunkFormat(shape, np.dtype(dtype), dtype == "bool", checksum)
    rows, cols = (max(1, int(n * f)) for n, f in zip(shape, filled, strict=True))
    a = (np.random.default_rng().standard_normal((rows, cols)) * 9).astype(dtype)
    data = a.copy(order="F") if layout == "F" else a
    if layout == "aligned":
        data = aligned_empty((rows, cols), dtype)
        data[...] = a
    path = str(tmp_path_factory.mktemp("chunk") / "0")
    staged = stage_chunk(path, form, data)
    file = Path(path).read_bytes()
    assert len(file) == form.file_bytes
    assert staged.checksum == google_crc32c.value(file[: form.payload_bytes]) == chunk_checksum(path, form)
    Path(path).write_bytes(file[:-1] + bytes([file[-1] ^ 1]))
    assert chunk_checksum(path, form) != staged.checksum
    os.unlink(path)
    assert chunk_checksum(path, form) is None


@pytest.mark.parametrize("structure", ["lower", "upper", "symmetric", "hermitian", "skew"])
def test_one_triangle_is_kept_and_goes_on(path: Path, rng: np.random.Generator, structure: str) -> None:
    a = rng.standard_normal((N, N)) + 1j * rng.standard_normal((N, N))
    a = {"lower": np.tril(a), "upper": np.triu(a), "symmetric": a + a.T, "hermitian": a + a.conj().T, "skew": a - a.T}[structure]
    tiles = [tile for tile in TILES if (tile.c0 <= tile.r0 if structure != "upper" else tile.r0 <= tile.c0)]
    for count in (2, 3):
        with open_journal(path, REQUEST) as journal:
            store = journal.new_output((N, N), "complex128", chunks=(CHUNK, CHUNK), structure=structure)
            journal.begin({})
            for tile in tiles[:count]:
                if not journal.generation(tile):
                    journal.write(tile, 1, tile, a[tile.slices])
            if count == 3:
                np.testing.assert_array_equal(contents(store), a)
                journal.finish()
    assert journal.statistics().tiles_reused == 2
    np.testing.assert_array_equal(contents(open_store(path)), a)
    assert sum(p.is_file() for p in path.rglob("*")) == 7


def test_what_is_replaced_stays_until_the_end(path: Path, rng: np.random.Generator) -> None:
    a = rng.standard_normal((N, N))
    with create_store(path, (N, N), "float64") as old:
        old.write(Rect(0, N, 0, N), -a)
        old.commit()
    with pytest.raises(StoreExistsError, match="or remove it first"), open_journal(path, REQUEST) as journal:
        journal.new_output((N, N), "float64")
    assert names(path.parent) == ["a.zarr"]
    for tiles in (TILES[:2], TILES[2:]):
        with open_journal(path, REQUEST) as journal:
            journal.new_output((N, N), "float64", chunks=(CHUNK, CHUNK), overwrite=True)
            journal.begin({})
            fill(journal, a, tiles=tiles)
            np.testing.assert_array_equal(contents(open_store(path)), -a)
            if journal.resumed:
                journal.finish()
    np.testing.assert_array_equal(contents(open_store(path)), a)
    assert names(path.parent) == ["a.zarr"]


def test_each_step_is_durable_before_the_next(path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, str]] = []
    lock = threading.Lock()

    def logged(module: object, name: str, what: str) -> None:
        real = getattr(module, name)

        def call(*args: object) -> object:
            done = real(*args)
            with lock:
                steps.append((what, str(args[0])))
            return done

        monkeypatch.setattr(module, name, call)

    logged(commit_module, "_sync", "sync")
    logged(commit_module, "_rename", "rename")
    logged(journalfile_module, "_append", "record")
    journal, store = begun(path)
    steps.clear()
    fill(journal, rng.standard_normal((N, N)))
    assert steps == []  # far less than a group
    journal.flush()
    kinds = [what for what, _ in steps]
    assert kinds == ["sync"] * kinds.count("sync") + ["record"] + ["rename"] * kinds.count("rename")
    renamed = {where for what, where in steps if what == "rename"}
    assert len(renamed) == 9
    synced = {where for what, where in steps if what == "sync"}
    assert renamed | {os.path.dirname(where) for where in renamed} <= synced
    assert {store.chunk_path("c"), os.path.dirname(store.chunk_path("c"))} <= synced  # folders that are new themselves
    journal.discard()


@pytest.mark.parametrize("group", [1, 3])
def test_groups_of_tiles_share_a_commit(
    path: Path, rng: np.random.Generator, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_module, "COMMIT_BYTES", group * CHUNK * CHUNK * 8)
    monkeypatch.setattr(commit_module, "COMMIT_SECONDS", 1e9)
    journal = open_journal(path, REQUEST)
    journal.new_output((6 * CHUNK, CHUNK), "float64", chunks=(CHUNK, CHUNK))
    journal.begin({})
    a = rng.standard_normal((CHUNK, CHUNK))
    for k in range(6):
        tile = Rect(k * CHUNK, (k + 1) * CHUNK, 0, CHUNK)
        journal.write(tile, 1, tile, a)
    assert (journal.statistics().commits, journal.statistics().records) == (6 // group, 6)
    assert journal.statistics().bytes == 6 * a.nbytes
    journal.finish()


def test_a_generation_that_was_overtaken_needs_no_record(path: Path, rng: np.random.Generator) -> None:
    journal, store = begun(path)
    a = rng.standard_normal((N, N))
    fill(journal, a)
    fill(journal, -a, generation=2)
    assert len(list(path.parent.rglob("*.g2.pending"))) == 9
    assert not list(path.parent.rglob("*.g1.pending"))
    journal.flush()
    assert journal.statistics().records == len(TILES)
    np.testing.assert_array_equal(contents(store), -a)
    journal.discard()


def test_threads_write_and_read_while_others_commit(
    path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_module, "COMMIT_SECONDS", 0.0)
    journal = open_journal(path, REQUEST)
    store = journal.new_output((8 * CHUNK, 8 * CHUNK), "float64", chunks=(CHUNK, CHUNK))
    journal.begin({})
    size = 2 * CHUNK
    tiles = [Rect(r, r + size, c, c + size) for r in range(0, 8 * CHUNK, size) for c in range(0, 8 * CHUNK, size)]

    def work(k: int) -> None:
        tile = tiles[k]
        for generation in range(1, 6):
            data = np.full(tile.shape, 1000.0 * k + generation)
            for r0 in (tile.r0, tile.r0 + CHUNK):
                part = Rect(r0, r0 + CHUNK, tile.c0, tile.c1)
                journal.write(tile, generation, part, data[:CHUNK])
            np.testing.assert_array_equal(contents(store, tile), data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(len(tiles))))
    journal.flush()
    assert journal.generations() == dict.fromkeys(tiles, 5)
    assert not list(path.parent.rglob("*.pending"))
    journal.finish()
    assert names(path.parent) == ["a.zarr"]


def test_a_disk_that_fills_up_stops_the_work_and_loses_nothing(
    path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = rng.standard_normal((N, N))
    journal, _ = begun(path)
    fill(journal, a, tiles=TILES[:2])
    journal.flush()
    fill(journal, a, tiles=TILES[2:3])

    def full(fd: int, data: bytes) -> None:
        os.write(fd, data[:20])
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(journalfile_module, "_append", full)
        with pytest.raises(StoreFullError, match=r"writing the journal .*free some space"):
            journal.flush()
    with pytest.raises(StoreError, match="could not be written"):
        journal.write(TILES[3], 1, TILES[3], a[TILES[3].slices])
    journal.suspend()
    journal, store = begun(path)
    assert [journal.generation(tile) for tile in TILES] == [1, 1, 0, 0]
    fill(journal, a, tiles=TILES[2:])
    journal.finish()
    np.testing.assert_array_equal(contents(store), a)


# ---- who an operand is --------------------------------------------------------------------------------------------------


def test_an_operand_is_known_again_unless_it_changed(tmp_path: Path, rng: np.random.Generator) -> None:
    a = rng.standard_normal((60, 50))
    assert operand_identity(as_store(a)) == operand_identity(as_store(np.asfortranarray(a)))
    assert operand_identity(as_store(a)) != operand_identity(as_store(a + (a == a[59, 49])))
    assert operand_identity(as_store(a), checksum=7)["checksum"] == "00000007"
    for name in ("a.zarr", "a.npy"):
        with create_store(tmp_path / name, a.shape, a.dtype) as store:
            store.write(Rect(0, 60, 0, 50), a)
            store.commit()
        before = operand_identity(open_store(tmp_path / name))
        assert operand_identity(open_store(tmp_path / name)) == before
        store = open_store(tmp_path / name)
        store.begin_write()
        store.write(Rect(0, 60, 0, 50), -a)
        store.commit()
        os.utime(tmp_path / name / "zarr.json" if name == "a.zarr" else tmp_path / name)
        assert operand_identity(open_store(tmp_path / name)) != before
    one, same, other = (FunctionStore(lambda i, j, s=s: np.sin(s * i[:, None] + j), (90, 90), "float64") for s in (1, 1, 2))
    assert operand_identity(one) == operand_identity(same) != operand_identity(other)


def test_chunk_keys_of_other_writers(path: Path, rng: np.random.Generator) -> None:
    import zarr

    a = rng.standard_normal((N, N))
    made = zarr.create_array(
        path, shape=a.shape, chunks=(CHUNK, CHUNK), dtype="float64", compressors=None, chunk_key_encoding={"name": "v2"}
    )
    made[...] = a
    for tiles in (TILES[:2], TILES[2:]):
        with open_journal(path, REQUEST) as journal:
            store = journal.in_place(open_store(path, unfinished=True))
            journal.begin({})
            fill(journal, -a, tiles=tiles)
            if journal.resumed:
                journal.finish()
    np.testing.assert_array_equal(contents(store), -a)
    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[...], -a)
    assert chunk_grid(a.shape, (CHUNK, CHUNK)) == (3, 3)
    assert sum(p.is_file() for p in path.rglob("*")) == 10
