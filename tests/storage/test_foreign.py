"""Other libraries' arrays against NumPy's slicing of the same numbers."""

import threading
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import pycauset
from pycauset.errors import CorruptTileError, DtypeError, ShapeError, StoreError, StoreNotFoundError, StorePermissionError
from pycauset.operations import copy_into
from pycauset.storage import ForeignStore, TileStore, ZarrStore, as_store, create_store, open_store
from pycauset.storage import foreign as foreign_module
from pycauset.storage.identity import operand_identity
from pycauset.tiling import Rect

A = np.random.default_rng(7).standard_normal((37, 53))


def contents(store: TileStore, rect: Rect | None = None, dtype: str = "float64") -> np.ndarray:
    rect = rect or Rect(0, store.shape[0], 0, store.shape[1])
    out = np.full(rect.shape, np.nan, dtype)
    store.read(rect, out)
    return out


def zarr_array(path: Path, **options: Any) -> zarr.Array:
    array = zarr.create_array(path, shape=A.shape, dtype=A.dtype, chunks=options.pop("chunks", (8, 16)), **options)
    array[:] = A
    return array


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"zarr_format": 2},
        {"zarr_format": 2, "compressors": None},
        {"shards": (16, 32)},
        {"chunks": (37, 53), "filters": [zarr.codecs.TransposeCodec(order=(1, 0))], "compressors": None},
        {"compressors": [zarr.codecs.GzipCodec(), zarr.codecs.Crc32cCodec()]},
        {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    ],
    ids=["zstd", "v2", "v2 plain", "sharded", "transposed", "gzip+crc32c", "v2 keys"],
)
@pytest.mark.parametrize("how", ["open", "array"])
def test_zarr_of_any_make(tmp_path: Path, options: dict[str, Any], how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_module, "_UNIT_BYTES", 4096)
    array = zarr_array(tmp_path / "a.zarr", **options)
    store = open_store(tmp_path / "a.zarr") if how == "open" else as_store(array)
    assert isinstance(store, ForeignStore)
    assert store.path == tmp_path / "a.zarr"
    np.testing.assert_array_equal(contents(store), A)
    np.testing.assert_array_equal(contents(store, Rect(5, 29, 13, 40), "complex128"), A[5:29, 13:40])
    assert store.overlaps(open_store(tmp_path / "a.zarr"))
    assert store.identity == open_store(tmp_path / "a.zarr").identity
    assert store.writable == (how == "array")


def test_an_uncompressed_zarr_array_takes_the_fast_path(tmp_path: Path) -> None:
    array = zarr_array(tmp_path / "a.zarr", compressors=None)
    store = as_store(array)
    assert isinstance(store, ZarrStore)
    np.testing.assert_array_equal(contents(store), A)
    for separator in "/.":
        for name in ("default", "v2"):
            path = tmp_path / f"{name}{ord(separator)}"
            zarr_array(path, compressors=None, chunk_key_encoding={"name": name, "separator": separator})
            store = open_store(path)
            assert isinstance(store, ZarrStore)
            np.testing.assert_array_equal(contents(store), A)


def test_zarr_in_memory_and_in_an_archive(tmp_path: Path) -> None:
    memory = zarr.create_array(zarr.storage.MemoryStore(), shape=A.shape, dtype=A.dtype, chunks=(10, 10))
    memory[:] = A
    store = as_store(memory)
    np.testing.assert_array_equal(contents(store), A)
    assert store.overlaps(as_store(memory))
    other = zarr.create_array(zarr.storage.MemoryStore(), shape=A.shape, dtype=A.dtype, chunks=(10, 10))
    assert not store.overlaps(as_store(other))
    zarr_array(tmp_path / "a.zarr")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in (tmp_path / "a.zarr").rglob("*"):
            archive.write(path, path.relative_to(tmp_path / "a.zarr"))
    np.testing.assert_array_equal(contents(open_store(tmp_path / "a.zip")), A)


def test_a_remote_zarr_array() -> None:
    pytest.importorskip("fsspec")
    array = zarr.create_array("memory://bucket/a.zarr", shape=A.shape, dtype=A.dtype, chunks=(10, 10))
    array[:] = A
    np.testing.assert_array_equal(contents(open_store("memory://bucket/a.zarr")), A)
    with pytest.raises(StoreError, match="memory://bucket/none"):
        open_store("memory://bucket/none")


@pytest.mark.parametrize("options", [{}, {"shards": (16, 32)}, {"zarr_format": 2}, {"compressors": None}], ids=str)
def test_a_zarr_chunk_that_vanishes_is_not_the_fill_value(tmp_path: Path, options: dict[str, Any]) -> None:
    array = zarr_array(tmp_path / "a.zarr", **options)
    array[24:37, 32:53] = 0  # chunks that hold only the fill value are left out, and that is fine
    expected = A.copy()
    expected[24:37, 32:53] = 0
    store = open_store(tmp_path / "a.zarr")
    np.testing.assert_array_equal(contents(store), expected)
    chunk = next(p for p in sorted((tmp_path / "a.zarr").rglob("*")) if p.is_file() and p.name in ("0", "0.0"))
    chunk.unlink()
    with pytest.raises(StoreNotFoundError, match=r"vanished|missing"):
        contents(store)


def test_a_damaged_compressed_chunk(tmp_path: Path) -> None:
    zarr_array(tmp_path / "a.zarr")
    path = tmp_path / "a.zarr" / "c" / "0" / "0"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CorruptTileError, match=r"rows 0:37, columns 0:53 of .*a\.zarr"):
        contents(open_store(tmp_path / "a.zarr"))


def test_groups_and_other_folders(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "g")
    group.create_array("inner", shape=(3, 3), dtype="float64")
    with pytest.raises(StoreNotFoundError, match=r"group.*inner"):
        open_store(tmp_path / "g")
    (tmp_path / "plain").mkdir()
    with pytest.raises(StoreNotFoundError, match="no Zarr array"):
        open_store(tmp_path / "plain")
    zarr.create_array(tmp_path / "cube", shape=(3, 3, 3), dtype="float64")
    with pytest.raises(ShapeError, match=r"\(3, 3, 3\)"):
        open_store(tmp_path / "cube")
    zarr.create_array(tmp_path / "text", shape=(3, 3), dtype="U4", zarr_format=2)
    with pytest.raises(DtypeError, match="<U4"):
        open_store(tmp_path / "text")


@pytest.mark.parametrize("options", [{}, {"chunks": (8, 16)}, {"chunks": (8, 16), "compression": "gzip"}], ids=str)
@pytest.mark.parametrize("dtype", ["<f8", ">f4"])
def test_hdf5_datasets(tmp_path: Path, options: dict[str, Any], dtype: str) -> None:
    a = A.astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", data=a, **options)
        store = as_store(dataset)
        assert isinstance(store, ForeignStore)
        np.testing.assert_array_equal(contents(store), a)
        np.testing.assert_array_equal(contents(store, Rect(3, 30, 0, 53), str(store.dtype)), a[3:30])
        np.testing.assert_array_equal(contents(store, Rect(3, 30, 10, 11)), a[3:30, 10:11])
        store.write(Rect(0, 2, 0, 53), np.ones((2, 53)))
        assert (dataset[:2] == 1).all()
        assert not store.overlaps(as_store(file.create_dataset("y", data=a)))
        assert store.overlaps(as_store(file["x"]))
    with pytest.raises(StoreError, match="closed"):
        contents(store)
    with pytest.raises(StoreError, match="h5py"):
        open_store(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r") as file, pytest.raises(StorePermissionError, match="read-only"):
        as_store(file["x"]).write(Rect(0, 1, 0, 1), np.ones((1, 1)))


def test_hdf5_is_read_by_many_threads(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        store = as_store(file.create_dataset("x", data=A, chunks=(4, 4), compression="gzip"))
        results: list[np.ndarray] = []
        threads = [threading.Thread(target=lambda: results.extend(contents(store) for _ in range(5))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 20
        for result in results:
            np.testing.assert_array_equal(result, A)


class Plain:
    """The least that can be an operand; notes whether two calls ever run at once."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.busy, self.clashes = array, 0, 0
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, index: Any) -> Any:
        self.busy += 1
        self.clashes += self.busy > 1
        result = self.array[index]
        self.busy -= 1
        return result


@given(
    m=st.integers(1, 30),
    n=st.integers(1, 30),
    dtype=st.sampled_from(["f8", "c8", "?", "i2", ">f4"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_anything_with_shape_dtype_and_brackets(m: int, n: int, dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 5, (m, n)).astype(dtype)
    store = as_store(Plain(a))
    r0, r1, c0, c1 = *sorted(rng.integers(0, m + 1, 2).tolist()), *sorted(rng.integers(0, n + 1, 2).tolist())
    np.testing.assert_array_equal(contents(store, Rect(r0, r1, c0, c1), "complex128"), a[r0:r1, c0:c1])
    assert not store.writable
    assert store.view(Rect(r0, r1, c0, c1)) is None


def test_objects_of_unknown_make_are_called_one_at_a_time() -> None:
    plain = Plain(A)
    store = as_store(plain)
    threads = [threading.Thread(target=lambda: [contents(store) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert plain.clashes == 0


def test_vectors_sparse_and_wrong_shapes() -> None:
    np.testing.assert_array_equal(contents(as_store(Plain(A[0]))), A[0][:, None])
    sparse = scipy.sparse.random_array((20, 30), density=0.2, format="csr", rng=np.random.default_rng(1))
    np.testing.assert_array_equal(contents(as_store(sparse)), sparse.toarray())
    liar = Plain(A)
    liar.shape = (40, 53)
    with pytest.raises(ShapeError, match=r"returned shape \(37, 53\) for rows 0:40"):
        contents(as_store(liar))

    class Broken(Plain):
        def __getitem__(self, index: Any) -> Any:
            raise RuntimeError("network is down")

    with pytest.raises(StoreError, match="RuntimeError: network is down"):
        contents(as_store(Broken(A)))


def test_writing_unaligned_parts_of_compressed_chunks_from_many_threads(tmp_path: Path) -> None:
    array = zarr_array(tmp_path / "a.zarr", chunks=(37, 53))
    store = as_store(array)
    new = -A
    threads = [threading.Thread(target=lambda k=k: store.write(Rect(k, k + 1, 0, 53), new[k : k + 1])) for k in range(37)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(array[:], new)


def test_a_closed_hdf5_dataset_is_named_at_once(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", data=A)
    with pytest.raises(StoreError, match="closed"):
        as_store(dataset)


class Chunked:
    """An array that decodes whole chunks, whatever part is asked for; counts the elements that it decodes."""

    def __init__(self, array: np.ndarray, chunks: tuple[int, int]) -> None:
        self.array, self.chunks, self.decoded = array, chunks, 0
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        spans = [range(k.start // c, -(-k.stop // c)) for k, c in zip(index, self.chunks, strict=True)]
        for i in spans[0]:
            for j in spans[1]:
                self.decoded += self.array[i * self.chunks[0] : (i + 1) * self.chunks[0], j * self.chunks[1] :][
                    :, : self.chunks[1]
                ].size
        return self.array[index]


N = 1103
ONE_CHUNK_ALONG_AN_AXIS = [(1, N), (N, 1), (N, N), (7, N), (N, 7), (N, 400)]


@pytest.mark.parametrize("chunks", ONE_CHUNK_ALONG_AN_AXIS, ids=str)
@pytest.mark.parametrize("call", ["A @ b", "b @ A", "A.T @ b", "A + 1", "A.sum()", "A.to_numpy()", "save"])
def test_a_streamed_operation_decodes_each_chunk_about_once(tmp_path: Path, chunks: tuple[int, int], call: str) -> None:
    a, b = np.random.default_rng().standard_normal((2, N, N))
    source = Chunked(a, chunks)
    A = pycauset.asmatrix(source)
    if call == "save":
        store = create_store(tmp_path / "a.zarr", a.shape, a.dtype, chunks=(256, 256))
        copy_into(A, store, owner="save")
        np.testing.assert_array_equal(pycauset.open(tmp_path / "a.zarr").to_numpy(), a)
    else:
        found, expected = (eval(call, {"A": x, "b": b}) for x in (A, pycauset.asmatrix(a)))
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-9, atol=1e-9)
    assert 0 < source.decoded <= 2 * a.size
    assert not A.store._kept


@pytest.mark.parametrize("chunks", [(1, N), (N, 1), (7, N), (N, 7)], ids=str)
@pytest.mark.parametrize("call", ["A @ b", "A.T @ b"])
def test_a_product_under_a_limit_decodes_what_it_reads_and_no_more(chunks: tuple[int, int], call: str) -> None:
    a, b = np.random.default_rng().standard_normal((2, N, N))
    source = Chunked(a, chunks)
    read = 0

    class Counted(ForeignStore):
        def _read(self, rect: Rect, out: np.ndarray) -> None:
            nonlocal read
            read += rect.size
            super()._read(rect, out)

    with pycauset.settings(memory="30MB"):
        found = eval(call, {"A": pycauset.Matrix(Counted(source)), "b": b})
    np.testing.assert_allclose(found.to_numpy(), eval(call, {"A": a, "b": b}), rtol=1e-9, atol=1e-9)
    assert 0 < source.decoded <= 1.1 * read


@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    h=st.integers(1, 45),
    w=st.integers(1, 45),
    grant=st.integers(0, 4000),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_kept_chunks_hold_the_same_numbers_within_their_bytes(m: int, n: int, h: int, w: int, grant: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((m, n))
    store = ForeignStore(Chunked(a, (h, w)))
    with store.keeping(grant):
        for _ in range(8):
            r0, r1, c0, c1 = *sorted(rng.integers(0, m + 1, 2).tolist()), *sorted(rng.integers(0, n + 1, 2).tolist())
            np.testing.assert_array_equal(contents(store, Rect(r0, r1, c0, c1)), a[r0:r1, c0:c1])
            assert sum(block.nbytes for block in store._kept.values()) <= grant
    assert not store._kept


def test_nothing_is_kept_between_operations_or_over_a_write(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", data=A, chunks=(37, 53), compression="gzip")
        store = as_store(dataset)
        assert contents(store, Rect(0, 1, 0, 1)) == A[0, 0]
        dataset[0, 0] = 5.0
        assert contents(store, Rect(0, 1, 0, 1)) == 5.0
        with store.keeping(1 << 20):
            assert contents(store, Rect(1, 2, 0, 1)) == A[1, 0]
            store.write(Rect(1, 2, 0, 1), np.full((1, 1), 7.0))
            assert contents(store, Rect(1, 2, 0, 1)) == 7.0


def test_a_change_anywhere_in_an_hdf5_file_shows(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = np.random.default_rng().standard_normal((1000, 1000))

    def identity() -> dict[str, object]:
        with h5py.File(tmp_path / "a.h5", "r") as file:
            return operand_identity(as_store(file["a"]))

    before = identity()
    assert identity() == before
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["a"][301, 299] += 1.0  # none of the samples
    after = identity()
    assert after["sample"] == before["sample"]
    assert after["file"] != before["file"]
