"""Arrays in memory and matrices that a function computes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pycauset
from pycauset.errors import DtypeError, ShapeError, StoreError, StorePermissionError
from pycauset.storage import ArrayStore, FunctionStore, as_store, create_store, open_store
from pycauset.tiling import Rect


def test_arrays_and_memory_maps_are_viewed_not_copied(tmp_path: Path) -> None:
    a = np.arange(12.0).reshape(3, 4)
    mapped = np.memmap(tmp_path / "raw", "float64", "w+", shape=(3, 4))
    mapped[...] = a
    for array in (a, a.T, a[::2, 1:], mapped, mapped[1:]):
        store = as_store(array)
        assert isinstance(store, ArrayStore)
        view = store.view(Rect(0, 1, 1, 2))
        assert view is not None
        assert np.shares_memory(view, array)
        assert type(view) is np.ndarray
        np.testing.assert_array_equal(view, np.asarray(array)[0:1, 1:2])
        assert store.writable
        assert store.generation is None


@pytest.mark.parametrize("dtype", [">f8", ">c8", ">i4"])
def test_the_other_byte_order_is_read_right(dtype: str) -> None:
    a = np.arange(12).reshape(3, 4).astype(dtype)
    store = as_store(a)
    assert store.dtype.isnative
    assert store.view(Rect(0, 3, 0, 4)) is None
    out = np.full((3, 4), 99, store.dtype)
    store.read(Rect(0, 3, 0, 4), out)
    np.testing.assert_array_equal(out, a)


def test_vectors_are_columns() -> None:
    v = np.arange(10.0)[::2]
    store = as_store(v)
    assert store.shape == (5, 1)
    store.write(Rect(1, 3, 0, 1), np.full((2, 1), -1.0))
    assert v.tolist() == [0, -1, -1, 6, 8]


def test_what_cannot_be_a_matrix() -> None:
    for bad, error, match in (
        (np.zeros((2, 2, 2)), ShapeError, "two dimensions"),
        (np.float64(1), ShapeError, r"shape \(\)"),
        (np.array([["a"]]), DtypeError, "<U1"),
        (np.array([[object()]]), DtypeError, "object"),
        (np.zeros((2, 2), "datetime64[s]"), DtypeError, "datetime64"),
        (np.ma.masked_array([[1.0]], [[True]]), DtypeError, "mask"),
        ([[1.0]], DtypeError, "builtins.list"),
        ("a.zarr", DtypeError, "open_store"),
        (3.0, DtypeError, "builtins.float"),
    ):
        with pytest.raises(error, match=match):
            as_store(bad)


def test_a_read_only_array_is_not_written() -> None:
    a = np.zeros((2, 2))
    a.flags.writeable = False
    store = as_store(a)
    for act in (lambda: store.write(Rect(0, 2, 0, 2), np.ones((2, 2))), store.begin_write):
        with pytest.raises(StorePermissionError, match="read-only"):
            act()


def test_identity_tells_the_same_data(tmp_path: Path) -> None:
    a = np.zeros((4, 4))
    assert as_store(a).identity == as_store(a).identity == as_store(a[:]).identity
    assert as_store(a).identity != as_store(a[:2]).identity
    assert as_store(a).identity != as_store(a.T[::-1]).identity
    np.save(tmp_path / "a.npy", a)
    (tmp_path / "link.npy").symlink_to(tmp_path / "a.npy")
    assert open_store(tmp_path / "a.npy").identity == open_store(tmp_path / "link.npy").identity


def test_overlap_is_told_by_bytes_and_by_files(tmp_path: Path) -> None:
    a = np.zeros((8, 8))
    store = as_store(a)
    assert store.overlaps(as_store(a.T))
    assert store.overlaps(as_store(a[4:, 4:]))
    assert not as_store(a[:4]).overlaps(as_store(a[4:]))
    assert not as_store(a[:, ::2]).overlaps(as_store(a[:, 1::2]))
    assert not store.overlaps(as_store(a.copy()))
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", a)
    one, two = np.load(tmp_path / "a.npy", mmap_mode="r+"), np.load(tmp_path / "a.npy", mmap_mode="r")
    assert as_store(one).overlaps(as_store(two))
    assert as_store(one[:4]).overlaps(as_store(two[3:]))
    assert not as_store(one[:4]).overlaps(as_store(two[4:]))
    assert as_store(one).overlaps(open_store(tmp_path / "a.npy"))
    assert not as_store(one).overlaps(open_store(tmp_path / "b.npy"))
    assert not open_store(tmp_path / "a.npy").overlaps(open_store(tmp_path / "b.npy"))
    with create_store(tmp_path / "c.zarr", (8, 8), "float64") as output:
        output.write(Rect(0, 8, 0, 8), a)
        output.commit()
    again = create_store(tmp_path / "c.zarr", (8, 8), "float64", overwrite=True)
    assert again.overlaps(open_store(tmp_path / "c.zarr"))
    assert not again.overlaps(store)
    chunk = np.memmap(tmp_path / "c.zarr" / "c" / "0" / "0", "float64", "r", shape=(8, 8))
    assert again.overlaps(as_store(chunk))
    assert as_store(chunk).overlaps(again)
    again.discard()
    assert not store.overlaps(FunctionStore(lambda i, j: 0, (8, 8), "float64"))


@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    h=st.integers(1, 50),
    w=st.integers(1, 50),
    dtype=st.sampled_from(["float32", "float64", "complex128", "int64"]),
)
@settings(max_examples=60, deadline=None)
def test_a_function_is_read_as_the_matrix_it_describes(m: int, n: int, h: int, w: int, dtype: str) -> None:
    asked = []

    def f(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        asked.append((len(rows), len(cols)))
        assert rows.dtype == cols.dtype == np.int64
        assert rows.ndim == cols.ndim == 1
        return rows[:, None] * 1000 + cols[None, :]

    store = FunctionStore(f, (m, n), dtype, chunks=(h, w))
    whole = np.arange(m)[:, None] * 1000 + np.arange(n)
    rect = Rect(m // 3, m, n // 4, n)
    out = np.full(rect.shape, -1, dtype)
    store.read(rect, out)
    np.testing.assert_array_equal(out, whole[rect.slices])
    assert all(r <= h and c <= w for r, c in asked)
    assert store.view(rect) is None
    assert not store.writable


def test_a_function_may_return_what_repeats_to_the_tile() -> None:
    for f, expected in (
        (lambda i, j: 3.0, np.full((4, 5), 3)),
        (lambda i, j: i[:, None], np.repeat(np.arange(4)[:, None], 5, 1)),
        (lambda i, j: j[None, :], np.repeat(np.arange(5)[None], 4, 0)),
    ):
        out = np.full((4, 5), np.nan)
        FunctionStore(f, (4, 5), "float64").read(Rect(0, 4, 0, 5), out)
        np.testing.assert_array_equal(out, expected)


def kernel(rows: np.ndarray, cols: np.ndarray) -> object:
    return kernel.answer  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (
            np.zeros(4),
            ShapeError,
            r"kernel returned shape \(4,\) for 4 rows and 4 columns \(rows 0:4, columns 0:4\); it must return \(4, 4\)",
        ),
        (np.zeros((3, 4)), ShapeError, r"kernel returned shape \(3, 4\)"),
        (np.zeros((4, 4), complex), DtypeError, "kernel returned complex128 for a matrix of float32"),
        (np.full((4, 4), "x"), DtypeError, "kernel returned <U1"),
        (None, DtypeError, r"kernel returned object for a matrix of float32 \(rows 0:4, columns 0:4\)"),
        (np.full((4, 4), np.nan, object), DtypeError, "kernel returned object"),
        ([[1.0], [1.0, 2.0]], ShapeError, r"kernel returned no array for rows 0:4, columns 0:4.*must return \(4, 4\)"),
    ],
)
def test_a_function_that_returns_nonsense_is_named(answer: object, error: type[Exception], match: str) -> None:
    kernel.answer = answer  # type: ignore[attr-defined]
    with pytest.raises(error, match=match):
        FunctionStore(kernel, (4, 4), "float32").read(Rect(0, 4, 0, 4), np.empty((4, 4), "float32"))


@pytest.mark.parametrize("raised", [ZeroDivisionError("oops"), ValueError("oops"), TypeError("oops"), KeyError("oops")])
def test_what_a_function_raises_is_the_cause_of_a_typed_error(raised: Exception) -> None:
    def broken(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        raise raised

    match = rf"broken failed for rows 0:4, columns 2:3 of a matrix: {type(raised).__name__}: .*oops"
    with pytest.raises(StoreError, match=match) as caught:
        FunctionStore(broken, (4, 4), "float64").read(Rect(0, 4, 2, 3), np.empty((4, 1)))
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("raised", [MemoryError("oops"), ShapeError("oops"), KeyboardInterrupt()], ids=repr)
def test_typed_errors_and_interrupts_pass_through_a_function(raised: BaseException) -> None:
    def broken(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        raise raised

    with pytest.raises(type(raised)) as caught:
        FunctionStore(broken, (4, 4), "float64").read(Rect(0, 4, 2, 3), np.empty((4, 1)))
    assert caught.value is raised
    assert isinstance(raised, KeyboardInterrupt) or "rows 0:4, columns 2:3" in raised.__notes__[0]


@pytest.mark.parametrize("late", [False, True])
def test_a_streamed_operation_ends_with_what_its_function_raised(late: bool) -> None:
    """From the reading threads to the caller, whether the first tile fails or a later one."""

    def broken(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        if rows[0] > 0 or not late:
            raise ZeroDivisionError("oops")
        return np.ones((len(rows), len(cols)))

    A = pycauset.Matrix(FunctionStore(broken, (300, 200), "float64", (50, 200)))
    for call in (lambda: A + 1, lambda: A.sum(), lambda: A @ np.ones((200, 70)), lambda: A.to_numpy()):
        with pytest.raises(StoreError, match=r"broken failed for rows \d+:\d+, columns 0:200") as caught:
            call()
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_triangular_function_is_not_asked_for_its_zeros() -> None:
    asked = []

    def f(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        asked.append((rows[0], cols[0]))
        return np.tri(6)[np.ix_(rows, cols)]

    store = FunctionStore(f, (6, 6), "float64", (2, 2), structure="lower")
    out = np.full((6, 6), np.nan)
    store.read(Rect(0, 6, 0, 6), out)
    np.testing.assert_array_equal(out, np.tri(6))
    assert len(asked) == 6


def test_what_is_no_function() -> None:
    with pytest.raises(DtypeError, match="not callable"):
        FunctionStore(3, (2, 2), "float64")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="at least 0"):
        FunctionStore(lambda i, j: 0, (2, -2), "float64")
