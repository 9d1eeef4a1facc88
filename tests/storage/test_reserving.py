"""Outputs that exist already: room for them is set aside before anything changes, and unfinished ones do not look finished."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import pycauset
from pycauset.errors import StoreError, StoreFullError
from pycauset.storage import as_store, create_store, open_store, output
from pycauset.tiling import Rect

N = 300
ALL = Rect(0, N, 0, N)


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def sparse_npy(path: Path) -> None:
    """A file of which only the header takes space."""
    with create_store(path, (N, N), "float64") as store:
        store.write(ALL, np.zeros((N, N)))
        store.commit()
    size = path.stat().st_size
    os.truncate(path, 4096)
    os.truncate(path, size)


def full_disk(fd: int, nbytes: int, start: int = 0, *, grow: bool = True) -> bool:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def product() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng()
    return rng.standard_normal((N, N)), rng.standard_normal((N, N))


def test_a_full_disk_is_found_before_a_memory_map_is_written(
    tmp_path: Path, product: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing through the mapping would kill the process by SIGBUS."""
    path = tmp_path / "a.bin"
    out = np.memmap(path, "float64", "w+", shape=(N, N))
    with monkeypatch.context() as patch:
        patch.setattr(output, "preallocate", full_disk)
        with pytest.raises(StoreFullError, match=rf"needs .* but {tmp_path} has .* free"):
            pycauset.matmul(*product, out=out)
        with pytest.raises(StoreFullError):
            pycauset.asmatrix(out)[3:5, 7] = 1.0
        assert not out.any()
    pycauset.matmul(*product, out=out)
    np.testing.assert_allclose(out, product[0] @ product[1])


def test_an_output_in_a_memory_map_takes_its_room_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    out = np.memmap(path, "float64", "w+", offset=8192, shape=(N, N))
    size = path.stat().st_size
    store = as_store(out)
    assert blocks(path) < size // 4
    store.begin_write()
    assert blocks(path) >= N * N * 8
    assert path.stat().st_size == size


def test_assigning_to_a_memory_map_takes_room_for_that_only(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    out = np.memmap(path, "float64", "w+", shape=(N, N))
    pycauset.asmatrix(out)[10, 5:9] = 3.0
    assert blocks(path) < N * N * 8 // 4
    assert out.sum() == 12


def test_a_private_memory_map_takes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    np.memmap(path, "float64", "w+", shape=(N, N)).flush()
    out = np.memmap(path, "float64", "c", shape=(N, N))
    monkeypatch.setattr(output, "preallocate", full_disk)
    as_store(out).begin_write()
    as_store(out).write(ALL, np.ones((N, N)))
    assert (out == 1).all()
    assert not np.fromfile(path).any()


def test_where_nothing_can_be_set_aside_the_free_space_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = np.memmap(tmp_path / "a.bin", "float64", "w+", shape=(N, N))
    monkeypatch.setattr(output, "preallocate", lambda *args, **options: False)
    as_store(out).begin_write()
    monkeypatch.setattr(output, "free_bytes", lambda folder: N * N)
    with pytest.raises(StoreFullError, match=f"needs .* but {tmp_path} has"):
        as_store(out).begin_write()


def test_a_full_disk_is_found_before_a_npy_file_is_unreadable(
    tmp_path: Path, product: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npy"
    sparse_npy(path)
    out = pycauset.open(path)
    monkeypatch.setattr(output, "preallocate", full_disk)
    with pytest.raises(StoreFullError, match=f"but {tmp_path} has"):
        pycauset.matmul(*product, out=out)
    np.testing.assert_array_equal(np.load(path), np.zeros((N, N)))
    out[0, 0] = 1.0  # one element needs no room for all
    monkeypatch.undo()
    assert blocks(path) < N * N * 8 // 4
    open_store(path).begin_write()
    assert blocks(path) >= N * N * 8


def test_messages_name_the_folder_that_the_user_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.zarr", "a.npy"):
        with pytest.raises(StoreFullError, match=rf"but {tmp_path} has .* free"):
            create_store(tmp_path / name, (1 << 30, 1 << 30), "float64")
    monkeypatch.setattr(output, "preallocate", full_disk)
    with pytest.raises(StoreFullError, match=rf"but {tmp_path} has .* free"):
        create_store(tmp_path / "a.zarr", (N, N), "float64")
    assert list(tmp_path.iterdir()) == []


# ---- arrays of the zarr library -----------------------------------------------------------------------------------------


@pytest.fixture(params=[2, 3])
def foreign(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    array = zarr.create_array(tmp_path / "z", shape=(N, N), chunks=(100, 100), dtype="f8", zarr_format=request.param)
    array[...] = 1.0
    array.attrs["mine"] = "kept"
    return array


def test_a_half_written_zarr_array_does_not_open(foreign: Any, tmp_path: Path, product: tuple[np.ndarray, np.ndarray]) -> None:
    store = as_store(foreign)
    store.begin_write()
    with pytest.raises(StoreError, match="never finished"):
        open_store(tmp_path / "z")
    store.write(Rect(0, 100, 0, 100), np.zeros((100, 100)))
    store.discard()
    with pytest.raises(StoreError, match="never finished"):
        pycauset.open(tmp_path / "z")
    with pytest.raises(StoreError, match="never finished"):
        pycauset.asmatrix(zarr.open_array(tmp_path / "z")).sum()
    pycauset.matmul(*product, out=zarr.open_array(tmp_path / "z"))  # it may be made again
    np.testing.assert_allclose(pycauset.open(tmp_path / "z").to_numpy(), product[0] @ product[1])
    assert dict(zarr.open_array(tmp_path / "z", mode="r").attrs) == {"mine": "kept"}


def test_a_zarr_array_that_nothing_was_written_to_is_as_it_was(foreign: Any, tmp_path: Path) -> None:
    store = as_store(foreign)
    store.begin_write()
    store.discard()
    assert pycauset.open(tmp_path / "z").sum() == N * N
    assert dict(zarr.open_array(tmp_path / "z", mode="r").attrs) == {"mine": "kept"}


def test_a_product_that_fails_leaves_a_zarr_array_unfinished(
    foreign: Any, tmp_path: Path, product: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = pycauset.asmatrix(foreign)
    kind, real = type(out.store), type(out.store)._write

    def fail(self: Any, rect: Rect, data: np.ndarray) -> None:
        real(self, rect, data)
        raise StoreError("the disk fell off")

    monkeypatch.setattr(kind, "_write", fail)
    with pytest.raises(StoreError, match="fell off"):
        pycauset.matmul(*product, out=out)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="never finished"):
        pycauset.open(tmp_path / "z")
    with pytest.raises(StoreError, match="never finished"):
        out.sum()
