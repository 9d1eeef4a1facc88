"""The native store: what is written is read back, by us and by the zarr library, whichever path the bytes take."""

import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pycauset.errors import DtypeError, ShapeError, StorePermissionError
from pycauset.storage import TileStore, ZarrStore, aligned_empty, create_store, default_chunks, open_store
from pycauset.storage import chunkfile as chunkfile_module
from pycauset.storage.base import stored_chunk
from pycauset.storage.native import count_stored, stored_bytes
from pycauset.tiling import Rect, chunk_grid

DTYPES = ["float32", "float64", "complex64", "complex128", "bool", "int32", "int64"]
FEW = settings(max_examples=40, deadline=None)


def random_matrix(shape: tuple[int, int], dtype: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype.startswith("int"):
        return rng.integers(-1000, 1000, shape).astype(dtype)
    values = rng.standard_normal(shape)
    return (values + 1j * rng.standard_normal(shape) if dtype.startswith("c") else values).astype(dtype)


def poisoned(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    kind = np.dtype(dtype)
    return np.full(shape, np.nan if kind.kind in "fc" else 77 if kind.kind != "b" else True, kind)


def everything(store: TileStore) -> Rect:
    return Rect(0, store.shape[0], 0, store.shape[1])


def read_all(store: TileStore) -> np.ndarray:
    out = poisoned(store.shape, store.dtype)
    store.read(everything(store), out)
    return out


def by_chunks(store: TileStore, a: np.ndarray) -> None:
    h, w = store.chunks
    for r0 in range(0, a.shape[0], h):
        for c0 in range(0, a.shape[1], w):
            rect = Rect(r0, min(r0 + h, a.shape[0]), c0, min(c0 + w, a.shape[1]))
            if store.structure == "full" or stored_chunk(store.structure, r0 // h, c0 // w, store.chunks):
                store.write(rect, a[rect.slices])


sizes = st.integers(1, 40)
cases = st.tuples(sizes, sizes, sizes, sizes, st.sampled_from(DTYPES), st.booleans(), st.integers(0, 2**32 - 1))


@st.composite
def rectangles(draw: st.DrawFn, m: int, n: int) -> Rect:
    r0, c0 = draw(st.integers(0, m)), draw(st.integers(0, n))
    return Rect(r0, draw(st.integers(r0, m)), c0, draw(st.integers(c0, n)))


@given(case=cases, data=st.data())
@FEW
def test_any_rectangle_reads_as_numpy_slices_it(case: tuple, data: st.DataObject) -> None:
    m, n, h, w, dtype, checksum, seed = case
    a = random_matrix((m, n), dtype, seed)
    with tempfile.TemporaryDirectory() as folder:
        with create_store(f"{folder}/a.zarr", (m, n), dtype, chunks=(h, w), checksum=checksum) as store:
            by_chunks(store, a)
            store.commit()
        opened = open_store(f"{folder}/a.zarr")
        assert isinstance(opened, ZarrStore)
        assert (opened.shape, opened.dtype, opened.chunks, opened.checksum) == ((m, n), np.dtype(dtype), (h, w), checksum)
        for _ in range(4):
            rect = data.draw(rectangles(m, n))
            out = poisoned(rect.shape, a.dtype)
            opened.read(rect, out)
            np.testing.assert_array_equal(out, a[rect.slices])
            column_major = np.asfortranarray(poisoned(rect.shape, a.dtype))
            opened.read(rect, column_major)
            np.testing.assert_array_equal(column_major, a[rect.slices])


@given(case=cases, data=st.data())
@FEW
def test_any_rectangles_written_in_any_order_are_read_back(case: tuple, data: st.DataObject) -> None:
    m, n, h, w, dtype, checksum, seed = case
    a = random_matrix((m, n), dtype, seed)
    with tempfile.TemporaryDirectory() as folder:
        store = create_store(f"{folder}/a.zarr", (m, n), dtype, chunks=(h, w), checksum=checksum)
        by_chunks(store, a)
        for k in range(4):
            rect = data.draw(rectangles(m, n))
            part = random_matrix(rect.shape, dtype, seed + k + 1)
            store.write(rect, part)
            a[rect.slices] = part
        np.testing.assert_array_equal(read_all(store), a)
        store.commit()
        np.testing.assert_array_equal(read_all(open_store(f"{folder}/a.zarr")), a)


@given(case=cases)
@FEW
def test_the_zarr_library_reads_what_we_write(case: tuple) -> None:
    m, n, h, w, dtype, checksum, seed = case
    a = random_matrix((m, n), dtype, seed)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)  # packbits is outside the specification
        with create_store(f"{folder}/a.zarr", (m, n), dtype, chunks=(h, w), checksum=checksum) as store:
            by_chunks(store, a)
            store.commit()
        theirs = zarr.open_array(f"{folder}/a.zarr", mode="r")
        assert theirs.dtype == a.dtype
        np.testing.assert_array_equal(theirs[:], a)


@given(case=cases, plain_bool=st.booleans())
@FEW
def test_we_read_what_the_zarr_library_writes_uncompressed(case: tuple, plain_bool: bool) -> None:
    m, n, h, w, dtype, checksum, seed = case
    a = random_matrix((m, n), dtype, seed)
    a[: m // 2] = 0  # the library leaves out chunks that hold only the fill value
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        theirs = zarr.create_array(
            f"{folder}/a.zarr",
            shape=(m, n),
            chunks=(h, w),
            dtype=dtype,
            filters=[zarr.codecs.numcodecs.PackBits()] if dtype == "bool" and not plain_bool else None,
            compressors=[zarr.codecs.Crc32cCodec()] if checksum else None,
        )
        theirs[:] = a
        store = open_store(f"{folder}/a.zarr")
        assert isinstance(store, ZarrStore)
        assert store.attributes == {}
        np.testing.assert_array_equal(read_all(store), a)


@given(case=cases, offset=st.integers(0, 3))
@FEW
def test_straight_and_stepwise_paths_write_the_same_bytes(case: tuple, offset: int) -> None:
    """The straight path is skipped work: an aligned array and one a few elements off give equal files and equal data."""
    m, _, h, w, dtype, checksum, seed = case
    h, w = 16 * h, 8 * w  # some of these chunks are whole blocks, some are not
    a = random_matrix((min(m, h), w), dtype, seed)
    aligned = aligned_empty(a.shape, a.dtype)
    aligned[...] = a
    raw = aligned_empty(a.size + 3, a.dtype)
    shifted = raw[offset : offset + a.size].reshape(a.shape)
    shifted[...] = a
    form = chunkfile_module.ChunkFormat((h, w), a.dtype, packed=dtype == "bool", checksum=checksum)
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{k}" for k in range(3)]
        chunkfile_module.write_chunk(paths[0], form, aligned)
        chunkfile_module.write_chunk(paths[1], form, shifted)
        chunkfile_module.write_chunk(paths[2], form, np.asfortranarray(a), direct=False)
        assert len({Path(p).read_bytes() for p in paths}) == 1
        assert os.path.getsize(paths[0]) == form.file_bytes
        part = Rect(0, a.shape[0], 0, w)
        for path, dest in ((paths[0], aligned), (paths[0], shifted), (paths[1], np.asfortranarray(a))):
            for direct in (True, False):
                dest[...] = poisoned(dest.shape, dest.dtype)
                chunkfile_module.read_chunk(path, form, part, dest, direct=direct)
                np.testing.assert_array_equal(dest, a)


def test_a_whole_aligned_chunk_takes_no_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = random_matrix((64, 192), "float64", 1)  # three chunks side by side: rows apart in memory, one vector each
    buffer = aligned_empty((64, 1024), "float64")
    wide = buffer[:, 512:704]
    wide[...] = a

    def refuse(nbytes: int = 0) -> None:
        raise AssertionError("the bounce buffer was used")

    store = create_store(tmp_path / "a.zarr", (64, 192), "float64", chunks=(64, 64))
    assert store.temporary_bytes((64, 64), "float64") == 0
    assert store.temporary_bytes((64, 64), "float32") > 0
    assert store.temporary_bytes((64, 64), "float32") <= 2 * 64 * 64 * 8  # a small chunk needs no large buffer
    wide64 = aligned_empty((64, 512 * 3), "float64")
    monkeypatch.setattr(chunkfile_module, "bounce_buffer", refuse)
    for k in range(3):
        tile = aligned_empty((64, 64), "float64")
        tile[...] = a[:, 64 * k : 64 * k + 64]
        store.write(Rect(0, 64, 64 * k, 64 * k + 64), tile)
        tile[...] = np.nan
        store.read(Rect(0, 64, 64 * k, 64 * k + 64), tile)
        np.testing.assert_array_equal(tile, a[:, 64 * k : 64 * k + 64])
    store.discard()
    rows = create_store(tmp_path / "b.zarr", (64, 1536), "float64", chunks=(64, 512))
    expected = random_matrix((64, 1536), "float64", 2)
    wide64[...] = expected
    rows.write(Rect(0, 64, 0, 1536), wide64)
    wide64[...] = np.nan
    rows.read(Rect(0, 64, 0, 1536), wide64)
    np.testing.assert_array_equal(wide64, expected)


@pytest.mark.parametrize("dtype", ["float64", "complex128", "int64", "bool"])
@pytest.mark.parametrize("structure", ["lower", "upper", "symmetric", "hermitian", "skew"])
@pytest.mark.parametrize("checksum", [False, True])
def test_one_triangle_is_stored_and_the_whole_is_read(tmp_path: Path, structure: str, dtype: str, checksum: bool) -> None:
    if structure == "skew" and dtype == "bool":
        with pytest.raises(DtypeError, match="negative"):
            create_store(tmp_path / "a.zarr", (10, 10), dtype, structure=structure)
        return
    n, h = 37, 8
    seed = int(np.random.default_rng().integers(2**32))
    print("seed", seed)
    g = random_matrix((n, n), dtype, seed)
    a = {
        "lower": lambda: np.tril(g),
        "upper": lambda: np.triu(g),
        "symmetric": lambda: np.where(np.tri(n, dtype=bool), g, g.T),
        "hermitian": lambda: np.where(
            np.tri(n, k=-1, dtype=bool), g, np.where(np.eye(n, dtype=bool), g.real.astype(g.dtype), g.conj().T)
        ),
        "skew": lambda: np.where(np.tri(n, k=-1, dtype=bool), g, np.where(np.eye(n, dtype=bool), g.dtype.type(0), -g.T)),
    }[structure]()
    store = create_store(tmp_path / "a.zarr", (n, n), dtype, chunks=(h, h), structure=structure, checksum=checksum)
    by_chunks(store, a)
    store.commit()
    opened = open_store(tmp_path / "a.zarr")
    assert opened.structure == structure
    files = list((tmp_path / "a.zarr" / "c").glob("*/*"))
    assert len(files) == 5 * 6 // 2
    np.testing.assert_array_equal(read_all(opened), a)
    rng = np.random.default_rng(seed)
    for _ in range(30):
        r0, r1, c0, c1 = *sorted(rng.integers(0, n + 1, 2)), *sorted(rng.integers(0, n + 1, 2))
        rect = Rect(int(r0), int(r1), int(c0), int(c1))
        out = poisoned(rect.shape, a.dtype)
        opened.read(rect, out)
        np.testing.assert_array_equal(out, a[rect.slices])
        if opened.is_zero(rect):
            assert not a[rect.slices].any()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        theirs = zarr.open_array(tmp_path / "a.zarr", mode="r")[:]
    outside = theirs[:h, 2 * h :]
    if structure in ("lower", "upper"):
        np.testing.assert_array_equal(theirs, a)
    elif dtype in ("float64", "complex128"):
        assert np.isnan(outside).all()
    elif dtype == "int64":
        assert (outside == np.iinfo(np.int64).min).all()


def test_is_zero_knows_the_other_triangle(tmp_path: Path) -> None:
    lower = create_store(tmp_path / "a.zarr", (8, 8), "float64", chunks=(4, 4), structure="lower")
    assert lower.is_zero(Rect(0, 4, 4, 8))
    assert lower.is_zero(Rect(0, 2, 2, 4))
    assert not lower.is_zero(Rect(0, 4, 3, 8))
    upper = create_store(tmp_path / "b.zarr", (8, 8), "float64", chunks=(4, 4), structure="upper")
    assert upper.is_zero(Rect(4, 8, 0, 4))
    assert not upper.is_zero(Rect(3, 8, 0, 4))


def test_writing_only_the_missing_triangle_is_refused(tmp_path: Path) -> None:
    store = create_store(tmp_path / "a.zarr", (8, 8), "float64", chunks=(4, 4), structure="symmetric")
    with pytest.raises(ShapeError, match="does not store"):
        store.write(Rect(0, 4, 4, 8), np.zeros((4, 4)))


@given(
    st.integers(1, 300), st.integers(1, 300), st.integers(1, 50), st.integers(1, 50), st.sampled_from(["full", "lower", "upper"])
)
@FEW
def test_stored_chunks_are_counted_in_closed_form(m: int, n: int, h: int, w: int, structure: str) -> None:
    rows, cols = chunk_grid((m, n), (h, w))
    one_by_one = sum(stored_chunk(structure, i, j, (h, w)) for i in range(rows) for j in range(cols))
    assert count_stored(structure, rows, cols, (h, w)) == one_by_one


def test_reserved_bytes_are_what_the_chunks_take(tmp_path: Path) -> None:
    store = create_store(tmp_path / "a.zarr", (100, 100), "float64", chunks=(64, 64), checksum=True)
    assert isinstance(store, ZarrStore)
    assert stored_bytes(store._meta) == 4 * (64 * 64 * 8 + 4096)


def test_casts(tmp_path: Path) -> None:
    store = create_store(tmp_path / "a.zarr", (3, 3), "int64")
    store.write(Rect(0, 3, 0, 3), np.full((3, 3), 2.0))
    store.commit()
    out = poisoned((3, 3), np.dtype("float32"))
    store.read(Rect(0, 3, 0, 3), out)
    assert (out == 2).all()
    with pytest.raises(DtypeError, match="imaginary part or its fractions"):
        store.read(Rect(0, 3, 0, 3), np.empty((3, 3), "bool"))
    store.begin_write()
    with pytest.raises(DtypeError, match="imaginary"):
        store.write(Rect(0, 3, 0, 3), np.ones((3, 3), complex))
    bits = create_store(tmp_path / "b.zarr", (3, 5), "bool", chunks=(2, 3))
    bits.write(Rect(0, 3, 0, 5), np.arange(15.0).reshape(3, 5) % 2)
    out = poisoned((3, 5), np.dtype("complex64"))
    bits.read(Rect(0, 3, 0, 5), out)
    np.testing.assert_array_equal(out, np.arange(15).reshape(3, 5) % 2)


def test_rectangles_and_shapes_are_checked(tmp_path: Path) -> None:
    store = create_store(tmp_path / "a.zarr", (3, 4), "float64")
    with pytest.raises(ShapeError, match="outside"):
        store.read(Rect(0, 4, 0, 4), np.empty((4, 4)))
    with pytest.raises(ShapeError, match=r"\(2, 2\)"):
        store.write(Rect(0, 3, 0, 4), np.empty((2, 2)))
    frozen = np.empty((3, 4))
    frozen.flags.writeable = False
    with pytest.raises(StorePermissionError, match="read-only"):
        store.read(Rect(0, 3, 0, 4), frozen)


@pytest.mark.parametrize("dtype", DTYPES)
def test_default_chunks_are_whole_blocks_of_a_few_mebibytes(dtype: str) -> None:
    h, w = default_chunks((100_000, 100_000), dtype)
    nbytes = h * w // 8 if dtype == "bool" else h * w * np.dtype(dtype).itemsize
    assert nbytes % 4096 == 0
    assert 8 << 20 <= nbytes <= 16 << 20


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.sampled_from(DTYPES))
def test_default_chunks_fit_any_shape(m: int, n: int, dtype: str) -> None:
    h, w = default_chunks((m, n), dtype)
    assert 1 <= h <= max(1, m)
    assert 1 <= w <= max(1, n)
    assert h * w * (1 / 8 if dtype == "bool" else np.dtype(dtype).itemsize) <= 16 << 20


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1)])
def test_empty_and_tiny_matrices(tmp_path: Path, shape: tuple[int, int]) -> None:
    a = np.ones(shape)
    with create_store(tmp_path / "a.zarr", shape, "float64") as store:
        store.write(Rect(0, shape[0], 0, shape[1]), a)
        store.commit()
    np.testing.assert_array_equal(read_all(open_store(tmp_path / "a.zarr")), a)


def test_one_dimension_of_the_zarr_library_becomes_a_column(tmp_path: Path) -> None:
    theirs = zarr.create_array(tmp_path / "a.zarr", shape=(10,), chunks=(4,), dtype="float64", compressors=None)
    theirs[:] = np.arange(10.0)
    store = open_store(tmp_path / "a.zarr")
    assert isinstance(store, ZarrStore)
    np.testing.assert_array_equal(read_all(store), np.arange(10.0)[:, None])


def test_generation_changes_with_every_write_and_is_shared_by_path(tmp_path: Path) -> None:
    store = create_store(tmp_path / "a.zarr", (4, 4), "float64", chunks=(2, 4))
    seen = {store.generation}
    for r in (0, 2):
        store.write(Rect(r, r + 2, 0, 4), np.zeros((2, 4)))
        seen.add(store.generation)
    assert len(seen) == 3
    store.commit()
    other = open_store(tmp_path / "a.zarr")
    assert other.identity == store.identity
    assert other.generation == store.generation
    store.begin_write()
    store.write(Rect(0, 2, 0, 4), np.ones((2, 4)))
    assert other.generation == store.generation
    assert other.generation not in seen
    store.commit()


def test_fortran_and_strided_data_are_written_right(tmp_path: Path) -> None:
    a = random_matrix((50, 60), "complex64", 3)
    store = create_store(tmp_path / "a.zarr", (50, 60), "complex64", chunks=(16, 16))
    store.write(Rect(0, 50, 0, 60), np.asfortranarray(a))
    np.testing.assert_array_equal(read_all(store), a)
    store.write(Rect(0, 50, 0, 60), np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3])
    np.testing.assert_array_equal(read_all(store), a)
    store.write(Rect(0, 50, 0, 60), np.broadcast_to(a[:1], a.shape))
    np.testing.assert_array_equal(read_all(store), np.broadcast_to(a[:1], a.shape))
    store.write(Rect(0, 50, 0, 60), a[::-1, ::-1])
    np.testing.assert_array_equal(read_all(store), a[::-1, ::-1])
    store.write(Rect(0, 50, 0, 60), a.astype(">c8"))
    np.testing.assert_array_equal(read_all(store), a)


@pytest.mark.parametrize(("dtype", "stride"), [("float64", 8), ("float32", 4), ("int64", 8), ("int32", 4), ("complex128", 8)])
def test_a_skew_column_read_into_any_stride(tmp_path: Path, dtype: str, stride: int) -> None:
    """NumPy 2.4's negative() returns wrong numbers for just these strides."""
    g = random_matrix((40, 40), dtype, 5)
    a = np.tril(g, -1) - np.tril(g, -1).T
    store = create_store(tmp_path / "a.zarr", (40, 40), dtype, chunks=(20, 20), structure="skew")
    by_chunks(store, a)
    for c in range(20, 40):
        out = poisoned((20, stride), np.dtype(dtype))[:, 1:2]
        store.read(Rect(0, 20, c, c + 1), out)
        np.testing.assert_array_equal(out, a[:20, c : c + 1])
