"""Damage, refusal and disappearance: each ends in a typed error that names the file, never in a wrong number."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pycauset.errors import CorruptTileError, StoreError, StoreFullError, StoreNotFoundError, StorePermissionError
from pycauset.storage import TileStore, ZarrStore, aligned_empty, create_store, direct, open_store
from pycauset.tiling import Rect

N, CHUNK = 256, 128  # four chunks of 128 KiB
ALL = Rect(0, N, 0, N)


@pytest.fixture(params=[False, True], ids=["plain", "crc32c"])
def checksum(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def matrix() -> np.ndarray:
    a = aligned_empty((N, N), "float64")
    a[...] = np.random.default_rng().standard_normal((N, N))
    return a


@pytest.fixture
def finished(tmp_path: Path, matrix: np.ndarray, checksum: bool) -> TileStore:
    with create_store(tmp_path / "a.zarr", (N, N), "float64", chunks=(CHUNK, CHUNK), checksum=checksum) as store:
        store.write(ALL, matrix)
        store.commit()
    return open_store(tmp_path / "a.zarr")


def chunk(store: TileStore) -> Path:
    assert store.path is not None
    return store.path / "c" / "1" / "0"


READS: dict[str, Callable[[], np.ndarray]] = {
    "aligned": lambda: aligned_empty((N, N), "float64"),
    "unaligned": lambda: np.empty(N * N + 1)[1:].reshape(N, N),
    "transposed": lambda: np.empty((N, N)).T,
    "cast": lambda: np.empty((N, N), "complex128"),
}


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("damage", [-1, 1, -4096, -CHUNK * CHUNK * 8])
def test_a_chunk_of_the_wrong_length(finished: TileStore, how: str, damage: int) -> None:
    size = chunk(finished).stat().st_size
    os.truncate(chunk(finished), max(0, size + damage))
    with pytest.raises(CorruptTileError, match=rf"c/1/0 has {max(0, size + damage)} bytes instead of {size}"):
        finished.read(ALL, READS[how]())
    out = np.full((CHUNK, N), np.nan)
    finished.read(Rect(0, CHUNK, 0, N), out)  # the other chunks can still be read
    assert np.isfinite(out).all()


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("where", [0, 4095, 4096, 70_001, CHUNK * CHUNK * 8 - 1, CHUNK * CHUNK * 8 + 3])
def test_a_flipped_bit_is_found_by_the_checksum(tmp_path: Path, matrix: np.ndarray, how: str, where: int) -> None:
    with create_store(tmp_path / "a.zarr", (N, N), "float64", chunks=(CHUNK, CHUNK), checksum=True) as store:
        store.write(ALL, matrix)
        store.commit()
    data = bytearray(chunk(store).read_bytes())
    data[where] ^= 1
    chunk(store).write_bytes(data)
    with pytest.raises(CorruptTileError, match=r"c/1/0 is damaged: its crc32c checksum says 0x[0-9a-f]{8}, its data give"):
        store.read(ALL, READS[how]())
    with pytest.raises(CorruptTileError, match="damaged"):  # a few rows, too, take the whole chunk's checksum
        store.read(Rect(CHUNK + 5, CHUNK + 6, 0, 3), np.empty((1, 3)))


def test_a_flipped_bit_in_packed_booleans(tmp_path: Path) -> None:
    a = np.random.default_rng().random((50, 30)) < 0.5
    with create_store(tmp_path / "a.zarr", (50, 30), "bool", checksum=True) as store:
        store.write(Rect(0, 50, 0, 30), a)
        store.commit()
    path = tmp_path / "a.zarr" / "c" / "0" / "0"
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptTileError, match="damaged"):
        store.read(Rect(0, 50, 0, 30), np.empty((50, 30), bool))


def test_a_chunk_missing_from_a_finished_matrix_is_not_zeros(finished: TileStore) -> None:
    chunk(finished).unlink()
    with pytest.raises(StoreNotFoundError, match=r"c/1/0 is missing from the finished matrix"):
        finished.read(ALL, np.empty((N, N)))
    with pytest.raises(FileNotFoundError):  # also what plain Python would raise
        finished.read(ALL, np.empty((N, N)))


def test_a_chunk_not_yet_written_is_not_zeros(tmp_path: Path) -> None:
    store = create_store(tmp_path / "a.zarr", (N, N), "float64", chunks=(CHUNK, CHUNK))
    with pytest.raises(StoreNotFoundError, match="not been written yet"):
        store.read(ALL, np.empty((N, N)))


@pytest.mark.parametrize("name", ["a.zarr", "a.npy"])
def test_an_operand_deleted_in_mid_read(tmp_path: Path, matrix: np.ndarray, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with create_store(tmp_path / name, (N, N), "float64") as store:
        store.write(ALL, matrix)
        store.commit()
    store = open_store(tmp_path / name)
    store.read(Rect(0, 8, 0, N), np.empty((8, N)))
    if name == "a.zarr":
        shutil.rmtree(tmp_path / name)
    else:
        (tmp_path / name).unlink()
    with pytest.raises(StoreNotFoundError, match=r"vanished|moved or deleted"):
        store.read(Rect(8, 16, 0, N), np.empty((8, N)))


def test_an_npy_file_replaced_or_cut_while_in_use(tmp_path: Path, matrix: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", matrix)
    store = open_store(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", matrix * 2)
    (tmp_path / "b.npy").replace(tmp_path / "a.npy")
    with pytest.raises(StoreNotFoundError, match="replaced while in use"):
        store.read(ALL, np.empty((N, N)))
    store = open_store(tmp_path / "a.npy")
    os.truncate(tmp_path / "a.npy", 5000)
    with pytest.raises(CorruptTileError, match=r"truncated: .* \d+ bytes, but it has 5000"):
        store.read(ALL, np.empty((N, N)))


def test_a_file_that_shrinks_between_the_check_and_the_read(finished: TileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = direct._preadv

    def ends_early(fd: int, buffers: list, offset: int) -> int:
        return 0 if offset >= 65536 else real(fd, [b[: 65536 - offset] for b in buffers], offset)

    monkeypatch.setattr(direct, "_preadv", ends_early)
    for out in (aligned_empty((CHUNK, CHUNK), "float64"), np.empty((CHUNK, CHUNK)).T):
        with pytest.raises(CorruptTileError, match="early"):
            finished.read(Rect(0, CHUNK, 0, CHUNK), out)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("name", ["a.zarr", "a.npy"])
def test_a_disk_that_fills_up_while_writing(
    tmp_path: Path, matrix: np.ndarray, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create_store(tmp_path / name, (N, N), "float64")

    def full(fd: int, buffers: list, offset: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(direct, "_pwritev", full)
    with pytest.raises(StoreFullError, match=r"writing .*free some space") as caught:
        store.write(ALL, matrix)
    assert caught.value.errno == number
    assert isinstance(caught.value, OSError)
    store.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_takes_from_the_reserve_before_it_gives_up(
    tmp_path: Path, matrix: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create_store(tmp_path / "a.zarr", (N, N), "float64", chunks=(CHUNK, CHUNK))
    assert isinstance(store, ZarrStore)
    assert store._output is not None
    reserve = store._output.reserve
    before = reserve.nbytes
    if before == 0:
        pytest.skip("this file system cannot set space aside")
    real, refusals = direct._pwritev, [errno.ENOSPC]

    def full_once(fd: int, buffers: list, offset: int) -> int:
        if refusals:
            raise OSError(refusals.pop(), "full")
        return real(fd, buffers, offset)

    monkeypatch.setattr(direct, "_pwritev", full_once)
    store.write(ALL, matrix)
    assert reserve.nbytes < before
    store.commit()
    out = np.full((N, N), np.nan)
    store.read(ALL, out)
    np.testing.assert_array_equal(out, matrix)


def test_short_reads_and_writes_are_continued(
    tmp_path: Path, matrix: np.ndarray, checksum: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = direct._preadv, direct._pwritev
    rng = np.random.default_rng()
    calls = []

    def short(call: Callable[..., int]) -> Callable[..., int]:
        def some(fd: int, buffers: list, offset: int) -> int:
            calls.append(offset)
            most = int(rng.choice([4096, 8192, 1000, 50_000]))
            return call(fd, [buffers[0][:most]], offset)

        return some

    def no_vectors(fd: int, vector: np.ndarray, offset: int, *, reading: bool) -> int:
        return -1

    monkeypatch.setattr(direct, "_preadv", short(read))
    monkeypatch.setattr(direct, "_pwritev", short(write))
    monkeypatch.setattr(direct, "_vector_call", no_vectors)
    for name, options in (("a.zarr", {"chunks": (CHUNK, CHUNK), "checksum": checksum}), ("a.npy", {})):
        store = create_store(tmp_path / name, (N, N), "float64", **options)
        store.write(ALL, matrix)
        store.commit()
        out = aligned_empty((N, N), "float64")
        for dest in (out, out.T, np.empty(N * N + 1)[1:].reshape(N, N)):
            dest[...] = np.nan
            store.read(ALL, dest)
            np.testing.assert_array_equal(dest, matrix)
    assert len(calls) > 100


@pytest.mark.parametrize("at", ["open", "transfer"])
def test_a_file_system_without_direct_io(
    tmp_path: Path, matrix: np.ndarray, checksum: bool, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    flag = getattr(os, "O_DIRECT", 0)
    refused = []

    def deny(fd: int) -> None:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & flag:
            refused.append(fd)
            raise OSError(errno.EINVAL, "no direct I/O here")

    if at == "open":
        real = direct._open

        def no_direct(path: str, flags: int, mode: int) -> int:
            if flags & flag:
                refused.append(path)
                raise OSError(errno.EINVAL, "no direct I/O here")
            return real(path, flags, mode)

        monkeypatch.setattr(direct, "_open", no_direct)
    else:
        read, write, vector = direct._preadv, direct._pwritev, direct._vector_call
        monkeypatch.setattr(direct, "_preadv", lambda fd, b, o: deny(fd) or read(fd, b, o))
        monkeypatch.setattr(direct, "_pwritev", lambda fd, b, o: deny(fd) or write(fd, b, o))
        monkeypatch.setattr(
            direct,
            "_vector_call",
            lambda fd, v, o, reading: -1 if fcntl.fcntl(fd, fcntl.F_GETFL) & flag else vector(fd, v, o, reading=reading),
        )
    store = create_store(tmp_path / "a.zarr", (N, N), "float64", chunks=(CHUNK, CHUNK), checksum=checksum)
    store.write(ALL, matrix)
    store.commit()
    for out in (aligned_empty((N, N), "float64"), np.empty((N, N)).T):
        out[...] = np.nan
        store.read(ALL, out)
        np.testing.assert_array_equal(out, matrix)
    assert len(refused) <= 2  # asked (again after making the folder), then left alone


def test_a_read_only_file_system(tmp_path: Path, matrix: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    store = create_store(tmp_path / "a.zarr", (N, N), "float64")
    with monkeypatch.context() as patch:
        patch.setattr(direct, "_open", refuse)
        with pytest.raises(StorePermissionError, match="Read-only file system"):
            store.write(ALL, matrix)
    store.discard()
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorePermissionError, match="Read-only file system"):
        create_store(tmp_path / "b.zarr", (N, N), "float64")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorePermissionError, match="Read-only file system"):
        create_store(tmp_path / "b.npy", (N, N), "float64")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.zarr", "a.npy"])
def test_a_folder_without_write_permission(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write anywhere")
        with pytest.raises(StorePermissionError, match="Permission denied"):
            create_store(folder / name, (N, N), "float64")
    finally:
        folder.chmod(0o700)
    assert list(folder.iterdir()) == []


def test_an_unreadable_disk(finished: TileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(direct, "_preadv", broken)
    with pytest.raises(StoreError, match=r"reading .*c/0/0 failed: Input/output error"):
        finished.read(Rect(0, CHUNK, 0, CHUNK), aligned_empty((CHUNK, CHUNK), "float64"))


def test_a_failed_tile_leaves_the_old_one(tmp_path: Path, matrix: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create_store(tmp_path / "a.zarr", (N, N), "float64", chunks=(N, N))
    store.write(ALL, matrix)
    real, done = direct._pwritev, []

    def break_in_the_middle(fd: int, buffers: list, offset: int) -> int:
        if done:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done.append(offset)
        return real(fd, [buffers[0][:65536]], offset)

    with monkeypatch.context() as patch:
        patch.setattr(direct, "_pwritev", break_in_the_middle)
        with pytest.raises(StoreError, match="Input/output error"):
            store.write(ALL, -matrix)
    out = np.full((N, N), np.nan)
    store.read(ALL, out)
    np.testing.assert_array_equal(out, matrix)
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_output_folder_deleted_while_it_is_written(tmp_path: Path, matrix: np.ndarray) -> None:
    store = create_store(tmp_path / "a.zarr", (N, N), "float64")
    for entry in tmp_path.iterdir():
        shutil.rmtree(entry)
    with pytest.raises(StoreNotFoundError, match="moved or deleted"):
        store.write(ALL, matrix)
    assert list(tmp_path.iterdir()) == []


def test_threads_may_write_parts_of_one_chunk(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    store = create_store(tmp_path / "a.zarr", (60, 60), "float64", chunks=(60, 60))
    a = np.random.default_rng().standard_normal((60, 60))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: store.write(Rect(k, k + 1, 0, 60), a[k : k + 1]), range(60)))
    out = np.full((60, 60), np.nan)
    store.read(Rect(0, 60, 0, 60), out)
    np.testing.assert_array_equal(out, a)
