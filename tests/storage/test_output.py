"""Outputs: nothing unfinished has the final name, nothing is left behind, what existed stays until the last moment."""

import errno
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from pycauset.errors import (
    ConfigError,
    CorruptTileError,
    StoreError,
    StoreExistsError,
    StoreFullError,
    StoreNotFoundError,
    StorePermissionError,
)
from pycauset.storage import NpyStore, TileStore, ZarrStore, create_store, open_store
from pycauset.storage import output as output_module
from pycauset.tiling import Rect

ALL = Rect(0, 6, 0, 6)
A = np.arange(36.0).reshape(6, 6)
KINDS = ["a.zarr", "a.npy"]


def make(path: Path, a: np.ndarray = A, **options: object) -> TileStore:
    store = create_store(path, a.shape, a.dtype, **options)
    store.write(Rect(0, a.shape[0], 0, a.shape[1]), a)
    return store


def contents(store: TileStore) -> np.ndarray:
    out = np.full(store.shape, np.nan)
    store.read(Rect(0, store.shape[0], 0, store.shape[1]), out)
    return out


@pytest.mark.parametrize("name", KINDS)
def test_the_name_appears_at_commit_and_not_before(tmp_path: Path, name: str) -> None:
    store = make(tmp_path / name)
    assert not (tmp_path / name).exists()
    assert all(p.name.startswith(".a.") for p in tmp_path.iterdir())
    with pytest.raises(StoreNotFoundError, match="no file or folder"):
        open_store(tmp_path / name)
    np.testing.assert_array_equal(contents(store), A)  # the store itself can read back what it wrote
    store.commit()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    np.testing.assert_array_equal(contents(store), A)
    np.testing.assert_array_equal(contents(open_store(tmp_path / name)), A)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("ending", ["discard", "close", "with", "forgotten", "interrupted"])
def test_an_abandoned_output_leaves_nothing(tmp_path: Path, name: str, ending: str) -> None:
    if ending == "with":
        with pytest.raises(KeyboardInterrupt), make(tmp_path / name):
            raise KeyboardInterrupt
    elif ending == "interrupted":
        from pycauset.storage import direct

        with pytest.MonkeyPatch.context() as patch, create_store(tmp_path / name, A.shape, A.dtype) as store:

            def interrupt(*_: object) -> int:
                raise KeyboardInterrupt

            patch.setattr(direct, "_pwritev", interrupt)
            with pytest.raises(KeyboardInterrupt):
                store.write(ALL, A)
            assert not list(tmp_path.rglob("*.tmp"))
    else:
        store = make(tmp_path / name)
        if ending == "forgotten":
            del store
            gc.collect()
        else:
            getattr(store, ending)()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", KINDS)
def test_process_exit_leaves_nothing_and_a_killed_one_is_cleared_away_by_the_next(tmp_path: Path, name: str) -> None:
    code = (
        "import os, sys, numpy as np\n"
        "from pycauset.storage import create_store\n"
        f"s = create_store({str(tmp_path / name)!r}, (6, 6), 'float64')\n"
        "print(len(os.listdir(os.path.dirname(sys.argv[1]))), flush=True)\n"
        "if sys.argv[2] == 'kill': os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for how, left in (("exit", 0), ("kill", 1)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name), how], capture_output=True, text=True, env=environment, check=False
        )
        assert done.stdout == "1\n", done.stderr
        assert len(list(tmp_path.iterdir())) == left
    living = create_store(tmp_path / name, (6, 6), "float64")
    assert len(list(tmp_path.iterdir())) == 1  # the dead one's leftover is gone
    other = create_store(tmp_path / name, (6, 6), "float64")
    assert len(list(tmp_path.iterdir())) == 2  # the living one's is not
    living.discard()
    other.discard()


@pytest.mark.parametrize("name", KINDS)
def test_a_taken_name_is_refused_and_overwrite_keeps_the_old_one_until_commit(tmp_path: Path, name: str) -> None:
    make(tmp_path / name).commit()
    with pytest.raises(StoreExistsError, match="or pass overwrite=True"):
        create_store(tmp_path / name, (6, 6), "float64", overwrite=False)
    with pytest.raises(StoreExistsError, match=r"or remove it first$"):  # for callers who have no such argument themselves
        create_store(tmp_path / name, (6, 6), "float64")
    store = make(tmp_path / name, -A, overwrite=True)
    np.testing.assert_array_equal(contents(open_store(tmp_path / name)), A)
    store.discard()
    np.testing.assert_array_equal(contents(open_store(tmp_path / name)), A)
    make(tmp_path / name, -A, overwrite=True).commit()
    np.testing.assert_array_equal(contents(open_store(tmp_path / name)), -A)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", KINDS)
def test_a_name_taken_in_the_meantime_is_not_replaced(tmp_path: Path, name: str) -> None:
    first, second = make(tmp_path / name), make(tmp_path / name, -A)
    first.commit()
    with pytest.raises(StoreExistsError, match="appeared"):
        second.commit()
    second.discard()
    np.testing.assert_array_equal(contents(open_store(tmp_path / name)), A)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_overwrite_never_removes_what_is_no_matrix(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    (tmp_path / "letter").write_text("dear")
    zarr.create_group(tmp_path / "group")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for name in ("photos", "letter", "group", "link"):
        with pytest.raises(StoreExistsError, match="not overwritten"):
            create_store(tmp_path / name, (6, 6), "float64", overwrite=True)
    (tmp_path / "d.npy").mkdir()
    with pytest.raises(StoreExistsError):
        create_store(tmp_path / "d.npy", (6, 6), "float64", overwrite=True)
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "meow"


@pytest.mark.parametrize("name", KINDS)
def test_commit_refuses_gaps(tmp_path: Path, name: str) -> None:
    options = {} if name.endswith("npy") else {"chunks": (3, 3)}
    store = create_store(tmp_path / name, (6, 6), "float64", **options)
    store.write(Rect(0, 3, 0, 6), A[:3])
    with pytest.raises(StoreError, match="never written"):
        store.commit()
    store.write(Rect(3, 6, 0, 6), A[3:])
    store.commit()
    np.testing.assert_array_equal(contents(open_store(tmp_path / name)), A)


@pytest.mark.parametrize("name", KINDS)
def test_overwriting_in_place_hides_the_matrix_until_it_is_finished(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    make(path).commit()
    store = open_store(path)
    with pytest.raises(StorePermissionError, match="begin_write"):
        store.write(ALL, -A)
    store.begin_write()
    with pytest.raises(StoreError, match="never finished"):
        open_store(path)
    if name.endswith("npy"):
        with pytest.raises(ValueError, match=r"pickle|magic"):
            np.load(path)
    else:
        with pytest.raises(FileNotFoundError):
            zarr.open_array(path, mode="r")
    store.discard()  # nothing was written: the matrix is what it was
    np.testing.assert_array_equal(contents(open_store(path)), A)
    store.begin_write()
    store.write(Rect(0, 1, 0, 6), -A[:1])
    store.discard()
    with pytest.raises(StoreError, match="never finished"):
        open_store(path)
    make(path, overwrite=True).commit()
    store = open_store(path)
    store.begin_write()
    store.write(Rect(2, 4, 1, 3), np.zeros((2, 2)))
    store.commit()
    expected = A.copy()
    expected[2:4, 1:3] = 0
    np.testing.assert_array_equal(contents(open_store(path)), expected)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_attributes_are_kept_beside_other_writers_ones(tmp_path: Path) -> None:
    store = make(tmp_path / "a.zarr", attributes={"properties": {"is_symmetric": True}})
    store.commit(seed=3)
    theirs = zarr.open_array(tmp_path / "a.zarr", mode="r+")
    theirs.attrs["colour"] = "red"
    opened = open_store(tmp_path / "a.zarr")
    assert opened.attributes == {"properties": {"is_symmetric": True}, "seed": 3}
    opened.begin_write()
    opened.commit(seed=4)
    assert open_store(tmp_path / "a.zarr").attributes["seed"] == 4
    document = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    assert document["attributes"]["colour"] == "red"
    assert document["attributes"]["pycauset"]["generation"] == 2
    with pytest.raises(ConfigError, match="generation"):
        opened.commit(generation=1)
    with pytest.raises(ConfigError, match="JSON"):
        create_store(tmp_path / "b.zarr", (2, 2), "float64", attributes={"x": np.float64})


@pytest.mark.parametrize("name", KINDS)
def test_too_large_an_output_is_refused_before_any_work_with_both_numbers(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreFullError, match=r"80\d{11} bytes.*\d+ bytes\) free"):
        create_store(tmp_path / name, (10**6, 10**6), "float64")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", KINDS)
def test_space_that_cannot_be_set_aside_is_a_full_disk(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, nbytes: int) -> bool:
        raise OSError(errno.ENOSPC, "full")

    from pycauset.storage import npy as npy_module

    monkeypatch.setattr(output_module, "preallocate", full)
    monkeypatch.setattr(npy_module, "preallocate", full)
    with pytest.raises(StoreFullError, match="free"):
        create_store(tmp_path / name, (6, 6), "float64")
    assert list(tmp_path.iterdir()) == []


def test_the_reserve_shrinks_as_tiles_land(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_module, "_STEP", 1)
    store = create_store(tmp_path / "a.zarr", (64, 128), "float64", chunks=(64, 64))
    assert isinstance(store, ZarrStore)
    assert store._output is not None
    reserve = store._output.reserve
    if reserve.nbytes == 0:
        pytest.skip("this file system cannot set space aside")
    on_disk = [reserve.nbytes]
    for c in (0, 64):
        store.write(Rect(0, 64, c, c + 64), np.zeros((64, 64)))
        on_disk.append(os.stat(Path(reserve._path)).st_size)
    assert on_disk == [2 * 64 * 64 * 8, 64 * 64 * 8, 0]
    store.write(Rect(0, 64, 0, 64), np.zeros((64, 64)))  # a tile that is rewritten does not count twice
    store.commit()


@pytest.mark.parametrize("name", KINDS)
def test_a_missing_parent_folder_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreNotFoundError, match="there is no folder"):
        create_store(tmp_path / "no" / name, (6, 6), "float64")


def test_options_that_a_file_cannot_have(tmp_path: Path) -> None:
    for options in ({"checksum": True}, {"structure": "lower"}, {"chunks": (2, 2)}):
        with pytest.raises(ConfigError, match=r"\.npy"):
            create_store(tmp_path / "a.npy", (6, 6), "float64", **options)
    with pytest.raises(ConfigError, match=r"\.h5"):
        create_store(tmp_path / "a.h5", (6, 6), "float64")


def test_damaged_metadata_is_reported(tmp_path: Path) -> None:
    make(tmp_path / "a.zarr").commit()
    (tmp_path / "a.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node')
    with pytest.raises(CorruptTileError, match="not JSON"):
        open_store(tmp_path / "a.zarr")


def test_npy_outputs_load_in_numpy(tmp_path: Path) -> None:
    for dtype in ("float32", "complex128", "bool", "int64"):
        a = (A > 7).astype(dtype)
        store = make(tmp_path / f"{dtype}.npy", a)
        assert isinstance(store, NpyStore)
        store.commit()
        loaded = np.load(tmp_path / f"{dtype}.npy")
        assert loaded.dtype == a.dtype
        np.testing.assert_array_equal(loaded, a)
        assert np.load(tmp_path / f"{dtype}.npy", mmap_mode="r").offset == 4096
