"""A matrix that another one has taken the place of is an error to whoever still holds it, never a wrong number."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import pycauset
from pycauset.errors import StoreError, StoreNotFoundError
from pycauset.storage import ZarrStore, create_store, held, open_store
from pycauset.storage.base import TileStore
from pycauset.storage.held import HeldFolder
from pycauset.tiling import Rect

OLD, NEW = (120, 120), (250, 250)


def save(path: Path, shape: tuple[int, int], value: float, *, chunk: int = 50, overwrite: bool = False) -> None:
    form: dict[str, Any] = {} if path.suffix == ".npy" else {"chunks": (chunk, chunk)}
    with create_store(path, shape, "float64", overwrite=overwrite, **form) as store:
        store.write(Rect(0, shape[0], 0, shape[1]), np.full(shape, value))
        store.commit()


def whole(store: TileStore) -> np.ndarray:
    out = np.full(store.shape, np.nan)
    store.read(Rect(0, store.shape[0], 0, store.shape[1]), out)
    return out


@pytest.mark.parametrize("name", ["a.zarr", "a.npy"])
@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_matrix_replaced_by_overwriting(tmp_path: Path, name: str, times: int) -> None:
    path = tmp_path / name
    save(path, OLD, 1)
    old = open_store(path)
    assert whole(old).sum() == OLD[0] * OLD[1]
    for _ in range(times):
        save(path, NEW, 2, overwrite=True)
    with pytest.raises(StoreNotFoundError, match="replaced while in use"):
        whole(old)
    with pytest.raises(StoreNotFoundError, match="replaced while in use"):
        old.begin_write()
    assert (whole(open_store(path)) == 2).all()
    assert open_store(path).identity != old.identity or name == "a.npy"


@pytest.mark.parametrize("name", ["a.zarr", "a.npy"])
@pytest.mark.parametrize("shape", [OLD, NEW, (60, 240)])
def test_a_matrix_removed_and_made_again(tmp_path: Path, name: str, shape: tuple[int, int]) -> None:
    """The file system may give the new one the old one's inode."""
    path = tmp_path / name
    save(path, OLD, 1)
    old = open_store(path)
    if name == "a.npy":
        path.unlink()
    else:
        shutil.rmtree(path)
    save(path, shape, 2)
    with pytest.raises(StoreNotFoundError, match="replaced while in use"):
        whole(old)


@pytest.mark.parametrize("shape", [NEW, (60, 240), (50, 50)])
def test_a_npy_file_that_numpy_writes_anew(tmp_path: Path, shape: tuple[int, int]) -> None:
    np.save(tmp_path / "a.npy", np.ones(OLD))
    old = open_store(tmp_path / "a.npy")
    inode = (tmp_path / "a.npy").stat().st_ino
    np.save(tmp_path / "a.npy", np.full(shape, 2.0))
    os.utime(tmp_path / "a.npy", ns=(1, 1))  # another time than before even on a coarse clock
    assert (tmp_path / "a.npy").stat().st_ino == inode
    with pytest.raises(StoreError, match=r"replaced while in use|truncated"):
        whole(old)


@pytest.mark.parametrize("name", ["a.zarr", "a.npy"])
def test_writing_in_place_through_another_handle_is_seen(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, OLD, 1)
    old, other = pycauset.open(tmp_path / name), pycauset.open(tmp_path / name)
    for value in (3.0, 4.0):
        other[5:80, 7] = value
        assert (old[5:80, 7] == value).all()
        assert old[0, 0] == 1
    old[0, 0] = 9
    assert other[0, 0] == 9


@pytest.mark.parametrize("name", ["a.zarr", "a.npy"])
def test_an_operand_replaced_in_the_middle_of_a_product(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    a = np.random.default_rng().standard_normal((600, 600))
    pycauset.save(path, a)
    old = pycauset.open(path)
    out = tmp_path / "out.zarr"
    store, reads = type(old.store), []
    real = store._read

    def read(self: Any, rect: Rect, to: np.ndarray) -> None:
        real(self, rect, to)
        if not reads:
            pycauset.save(path, np.zeros((700, 700)), overwrite=True)
        reads.append(rect)

    monkeypatch.setattr(store, "_read", read)
    half = old.store.shape[0] // 2
    first, second = np.empty((half, 600)), np.empty((half, 600))
    old.store.read(Rect(0, half, 0, 600), first)
    with pytest.raises(StoreNotFoundError, match="replaced while in use"):
        old.store.read(Rect(half, 600, 0, 600), second)
    with pytest.raises(StoreNotFoundError, match="replaced while in use"):
        pycauset.matmul(old, np.random.default_rng().standard_normal((600, 2000)), out=out)
    assert not out.exists()


def test_a_matrix_replaced_between_two_chunks_of_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pycauset.storage import native

    save(tmp_path / "a.zarr", OLD, 1)
    old, real, done = open_store(tmp_path / "a.zarr"), native.read_chunk, []

    def read_chunk(*args: Any, **options: Any) -> bool:
        if len(done) == 2:
            save(tmp_path / "a.zarr", NEW, 2, overwrite=True)
        done.append(args)
        return real(*args, **options)

    monkeypatch.setattr(native, "read_chunk", read_chunk)
    with pytest.raises(StoreNotFoundError, match="replaced while in use"):
        whole(old)
    assert len(done) == 9  # every chunk could be read: the new matrix has chunks of that name and size


def test_an_output_in_place_does_not_spoil_the_matrix_that_replaced_it(tmp_path: Path) -> None:
    save(tmp_path / "a.zarr", OLD, 1)
    old = open_store(tmp_path / "a.zarr")
    old.begin_write()
    save(tmp_path / "a.zarr", NEW, 2, overwrite=True)
    with pytest.raises(StoreNotFoundError, match="replaced while in use"):
        old.write(Rect(0, 50, 0, 50), np.zeros((50, 50)))
    with pytest.raises(StoreNotFoundError, match="replaced while in use"):
        old.commit()
    old.discard()
    assert (whole(open_store(tmp_path / "a.zarr")) == 2).all()


def test_a_matrix_that_has_another_structure_now(tmp_path: Path) -> None:
    """Factored in place: whoever opened it as symmetric would mirror the factor."""
    with create_store(tmp_path / "a.zarr", OLD, "float64", chunks=(50, 50), structure="symmetric") as store:
        store.write(Rect(0, 120, 0, 120), np.eye(120))
        store.commit()
    old, other = open_store(tmp_path / "a.zarr"), open_store(tmp_path / "a.zarr")
    assert isinstance(other, ZarrStore)
    other.begin_write()
    other.write(Rect(0, 120, 0, 120), np.tril(np.full(OLD, 3.0)))
    other.restructure("lower")
    other.commit()
    with pytest.raises(StoreNotFoundError, match="replaced while in use"):
        whole(old)
    np.testing.assert_array_equal(whole(other), np.tril(np.full(OLD, 3.0)))


def test_giving_up_leaves_the_matrix_alone_that_replaced_it(tmp_path: Path) -> None:
    save(tmp_path / "a.zarr", OLD, 1)
    old = open_store(tmp_path / "a.zarr")
    old.begin_write()
    save(tmp_path / "a.zarr", NEW, 2, overwrite=True)
    new = open_store(tmp_path / "a.zarr")
    new.begin_write()
    old.discard()
    with pytest.raises(StoreError, match="never finished"):
        open_store(tmp_path / "a.zarr")
    new.commit()
    assert (whole(open_store(tmp_path / "a.zarr")) == 2).all()


def test_a_foreign_array_replaced(tmp_path: Path) -> None:
    def make(shape: tuple[int, int]) -> None:
        array = zarr.create_array(tmp_path / "a.zarr", shape=shape, chunks=(50, 50), dtype="f8", overwrite=True)
        array[...] = float(shape[0])

    make(OLD)
    old = open_store(tmp_path / "a.zarr")
    assert type(old).__name__ == "ForeignStore"  # compressed
    assert (whole(old) == OLD[0]).all()
    make(NEW)
    with pytest.raises(StoreNotFoundError, match="replaced while in use"):
        whole(old)


def test_a_folder_that_is_not_held_is_still_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = HeldFolder._count
    folders = [HeldFolder(str(tmp_path)) for _ in range(3)]
    assert HeldFolder._count == before + 3
    monkeypatch.setattr(held, "_SHARE", 1 << 40)
    unheld = HeldFolder(str(tmp_path))
    assert HeldFolder._count == before + 3
    assert unheld.is_at(str(tmp_path))
    assert unheld.is_at(str(tmp_path / "none")) is None
    assert unheld.is_at("/") is False
    assert unheld.inode == folders[0].inode
    folders.clear()
    del unheld
    assert HeldFolder._count == before
