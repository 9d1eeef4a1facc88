"""``.npy`` files against NumPy: both orders, both byte orders, one dimension, any rectangle."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycauset.errors import CorruptTileError, DtypeError, ShapeError, StoreError, StoreNotFoundError
from pycauset.storage import NpyStore, aligned_empty, create_store, open_store
from pycauset.storage import npy as npy_module
from pycauset.tiling import Rect

DTYPES = ["<f8", ">f8", "<f4", ">c16", "<c8", "|b1", "<i4", ">i8", "<u2", "<f2"]


@st.composite
def rectangles(draw: st.DrawFn, m: int, n: int) -> Rect:
    r0, c0 = draw(st.integers(0, m)), draw(st.integers(0, n))
    return Rect(r0, draw(st.integers(r0, m)), c0, draw(st.integers(c0, n)))


@given(
    m=st.integers(1, 50),
    n=st.integers(1, 50),
    dtype=st.sampled_from(DTYPES),
    fortran=st.booleans(),
    wide=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_any_rectangle_reads_and_writes_as_numpy_does(
    m: int, n: int, dtype: str, fortran: bool, wide: bool, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    a = np.array(rng.integers(0, 2 if dtype == "|b1" else 200, (m, n)).astype(dtype), order="F" if fortran else "C")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(npy_module, "BOUNCE_BYTES", 256)  # several steps even for so small a matrix
        np.save(f"{folder}/a.npy", a)
        store = open_store(f"{folder}/a.npy")
        assert isinstance(store, NpyStore)
        assert store.dtype == a.dtype.newbyteorder("=")
        target = np.dtype("complex128") if wide else store.dtype
        for _ in range(3):
            rect = data.draw(rectangles(m, n))
            for order in "CF":
                out = np.full(rect.shape, 99, target, order=order)
                store.read(rect, out)
                np.testing.assert_array_equal(out, a[rect.slices])
        store.begin_write()
        for _ in range(3):
            rect = data.draw(rectangles(m, n))
            part = np.array(rng.integers(0, 2, rect.shape), dtype=data.draw(st.sampled_from(["f8", "i4", store.dtype])))
            store.write(rect, part)
            a[rect.slices] = part
        store.commit()
        np.testing.assert_array_equal(np.load(f"{folder}/a.npy"), a)


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from(["float32", "complex128", "bool"]))
@settings(max_examples=25, deadline=None)
def test_created_files_load_in_numpy_whatever_the_tiles(m: int, n: int, dtype: str) -> None:
    a = (np.random.default_rng(m * n).standard_normal((m, n)) * 3).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        store = create_store(f"{folder}/a.npy", (m, n), dtype)
        for r in range(0, m, 7):
            for c in range(0, n, 11):
                rect = Rect(r, min(r + 7, m), c, min(c + 11, n))
                store.write(rect, a[rect.slices])
        store.commit()
        np.testing.assert_array_equal(np.load(f"{folder}/a.npy"), a)


def test_whole_rows_of_our_own_files_move_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = aligned_empty((64, 512), "float64")
    a[...] = np.random.default_rng().standard_normal(a.shape)
    asked = []
    real = npy_module.DirectFile

    def watch(path: str, flags: int, *, direct: bool) -> npy_module.DirectFile:
        asked.append(direct)
        return real(path, flags, direct=direct)

    monkeypatch.setattr(npy_module, "DirectFile", watch)
    store = create_store(tmp_path / "a.npy", a.shape, a.dtype)
    store.write(Rect(0, 64, 0, 512), a)
    out = aligned_empty((32, 512), "float64")
    store.read(Rect(32, 64, 0, 512), out)
    np.testing.assert_array_equal(out, a[32:])
    store.read(Rect(32, 64, 0, 256), out[:, :256])
    assert asked == [True, True, False]


def test_one_dimension_becomes_a_column(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.arange(5.0))
    store = open_store(tmp_path / "v.npy")
    out = np.full((3, 1), np.nan)
    store.read(Rect(1, 4, 0, 1), out)
    assert store.shape == (5, 1)
    assert out[:, 0].tolist() == [1, 2, 3]


def test_what_cannot_be_a_matrix(tmp_path: Path) -> None:
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    with pytest.raises(ShapeError, match=r"\(2, 2, 2\)"):
        open_store(tmp_path / "cube.npy")
    np.save(tmp_path / "objects.npy", np.array([[None, 1]], object), allow_pickle=True)
    with pytest.raises(DtypeError, match="object"):
        open_store(tmp_path / "objects.npy")
    np.save(tmp_path / "scalar.npy", np.float64(3))
    with pytest.raises(ShapeError, match=r"\(\)"):
        open_store(tmp_path / "scalar.npy")
    np.savez(tmp_path / "a.npz", a=np.eye(2))
    with pytest.raises(StoreError, match="archive"):
        open_store(tmp_path / "a.npz")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(StoreError, match="neither"):
        open_store(tmp_path / "text")
    with pytest.raises(StoreNotFoundError, match="no file or folder"):
        open_store(tmp_path / "nowhere")


def test_truncated_and_damaged_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(10))
    data = (tmp_path / "a.npy").read_bytes()
    for length, match in (
        (len(data) - 1, "promises 10 x 10 float64, so 928 bytes, but it has 927"),
        (60, "header"),
        (7, "header"),
    ):
        (tmp_path / "a.npy").write_bytes(data[:length])
        with pytest.raises(CorruptTileError, match=match):
            open_store(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(data.replace(b"(10, 10)", b"(10, -1)"))
    with pytest.raises(CorruptTileError, match="shape"):
        open_store(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(data.replace(b"'<f8'", b"(((((("))
    with pytest.raises(CorruptTileError, match="header"):
        open_store(tmp_path / "a.npy")
