"""`Matrix` against NumPy: arithmetic, slices, assignment, reductions, properties, and bad input."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pycauset
from pycauset import Matrix, errors
from tests.matrices import DTYPES, PLACES, draw, lay

# ---- arithmetic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("dtype", [*DTYPES, "bool", "int32"])
@pytest.mark.parametrize("sign", ["+", "-", "*"])
def test_elementwise_operators_agree_with_numpy_to_the_bit(tmp_path: Path, where: str, dtype: str, sign: str) -> None:
    a, b = draw((53, 37), dtype, 1), draw((53, 37), "float64", 2)
    expression = f"x {sign} y"
    expected = eval(expression, {"x": a, "y": b})
    A = lay(a, where, tmp_path)
    for other in (b, lay(b, "zarr", tmp_path), lay(b, "ram", tmp_path)):
        C = eval(expression, {"x": A, "y": other})
        assert isinstance(C, Matrix)
        assert C.dtype == expected.dtype
        np.testing.assert_array_equal(C.to_numpy(), expected)
        mirrored = eval(expression, {"x": other, "y": A})
        np.testing.assert_array_equal(mirrored.to_numpy(), eval(expression, {"x": b, "y": a}))


@pytest.mark.parametrize("where", ["ram", "zarr"])
@pytest.mark.parametrize("view", ["T", "H", "conj"])
def test_views(tmp_path: Path, where: str, view: str) -> None:
    a, b = draw((53, 37), "complex128", 3), draw((53, 37), "complex128", 4)
    A, B = lay(a, where, tmp_path), lay(b, "zarr", tmp_path)
    take = {"T": lambda x: x.T, "H": lambda x: x.conj().T, "conj": lambda x: x.conj()}[view]
    V = take(A) if view != "H" else A.H
    np.testing.assert_array_equal(V.to_numpy(), take(a))
    np.testing.assert_array_equal((V - (B.T if view in "TH" else B)).to_numpy(), take(a) - (b.T if view in "TH" else b))
    np.testing.assert_array_equal(V[3, ::-2], take(a)[3, ::-2])
    for first in ("T", "H", "conj"):
        for second in ("T", "H", "conj"):
            chain, expected = A, a
            for step in (first, second):
                chain = chain.conj() if step == "conj" else getattr(chain, step)
                expected = expected.conj() if step == "conj" else expected.T if step == "T" else expected.conj().T
            np.testing.assert_array_equal(chain.to_numpy(), expected)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("scalar", [2, 0.3, -1j, np.float32(3), np.array(2.5), True])
def test_scalars(tmp_path: Path, where: str, scalar: Any) -> None:
    a = draw((41, 29), "float32", 5)
    A = lay(a, where, tmp_path)
    for name, C, expected in (
        ("A * s", A * scalar, a * scalar),
        ("s * A", scalar * A, scalar * a),
        ("A + s", A + scalar, a + scalar),
        ("s - A", scalar - A, scalar - a),
        ("A / s", A / scalar, a / scalar),
        ("s / A", scalar / A, scalar / a),
        ("-A", -A, -a),
        ("abs(A)", abs(A), abs(a)),
    ):
        assert C.dtype == expected.dtype, name
        np.testing.assert_array_equal(C.to_numpy(), expected, err_msg=name)


@pytest.mark.parametrize("where", ["ram", "zarr"])
def test_rows_and_columns_are_repeated(tmp_path: Path, where: str) -> None:
    a, row, column = draw((45, 70), seed=6), draw((70,), seed=7), draw((45, 1), seed=8)
    A = lay(a, where, tmp_path)
    np.testing.assert_array_equal((A + row).to_numpy(), a + row)
    np.testing.assert_array_equal((column - A).to_numpy(), column - a)
    np.testing.assert_array_equal((A.T * column[:, 0]).to_numpy(), a.T * column[:, 0])
    np.testing.assert_array_equal((lay(column, where, tmp_path) + row[None]).to_numpy(), column + row[None])


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("dtype", [*DTYPES, "bool", "int32", "uint8"])
def test_reductions(tmp_path: Path, where: str, dtype: str) -> None:
    a = (np.abs(draw((61, 83), "float64", 9)) * 50).astype(dtype) if dtype == "uint8" else draw((61, 83), dtype, 9)
    A = lay(a, where, tmp_path)
    exact = a.astype(np.clongdouble if a.dtype.kind == "c" else np.longdouble)
    close = {"rtol": 4 * (np.finfo(a.dtype).eps if a.dtype.kind in "fc" else 0), "atol": 1e-6 if a.dtype.itemsize == 4 else 1e-12}
    for axis in (None, 0, 1, -1):
        total = A.sum(axis)
        assert np.asarray(total).dtype == a.sum(axis).dtype
        np.testing.assert_allclose(total, exact.sum(axis).astype(np.asarray(total).dtype), **close)
    for axis in (None, 0, 1, -2, (0, 1), (1,), (-1, 0)):
        total, expected = A.sum(axis, keepdims=True), a.sum(axis, keepdims=True)
        assert (type(total), total.shape, total.dtype) == (np.ndarray, expected.shape, expected.dtype)
        np.testing.assert_allclose(total, exact.sum(axis, keepdims=True).astype(total.dtype), **close)
        wide = np.result_type(a.dtype, np.float64)
        found = A.H.sum(axis, wide)
        assert (np.shape(found), np.asarray(found).dtype) == (a.T.sum(axis).shape, wide)
        np.testing.assert_allclose(found, exact.conj().T.sum(axis).astype(wide), rtol=1e-15, atol=1e-13)
        for keepdims in (False, True):
            np.testing.assert_array_equal(A.all(axis, keepdims=keepdims), a.all(axis, keepdims=keepdims))
            np.testing.assert_array_equal((A > 30).any(axis, keepdims=keepdims), (a > 30).any(axis, keepdims=keepdims))
    np.testing.assert_allclose(A.H.sum(0), exact.conj().T.sum(0).astype(A.sum(0).dtype), **close)
    np.testing.assert_allclose(A.trace(), np.trace(exact).astype(np.trace(a).dtype), **close)
    for order in ("fro", 1, -1, np.inf, -np.inf):
        assert A.norm(order) == pytest.approx(float(np.linalg.norm(a.astype(np.complex128), order)), rel=1e-14), order
        assert A.T.norm(order) == pytest.approx(float(np.linalg.norm(a.T.astype(np.complex128), order)), rel=1e-14), order
    assert A.norm("max") == float(np.abs(a.astype(np.complex128)).max())


@pytest.mark.parametrize("where", ["ram", "zarr"])
@pytest.mark.parametrize("scale", [1e200, 1e-200, 5e-324, np.inf, np.nan, 0.0])
def test_norms_at_the_edges(tmp_path: Path, where: str, scale: float) -> None:
    a = np.zeros((40, 40))
    a[3, 5] = a[30, 39] = scale
    A = lay(a, where, tmp_path)
    np.testing.assert_allclose(A.norm(), np.sqrt(2) * scale if scale != 5e-324 else 5e-324, rtol=1e-15)
    for order in (1, np.inf, "max"):
        np.testing.assert_equal(A.norm(order), scale)


def test_empty_matrices(tmp_path: Path) -> None:
    A = Matrix(np.empty((0, 3)))
    assert A.sum(0).tolist() == [0, 0, 0]
    assert (A.sum(), A.norm(), A.norm(1), A.trace()) == (0, 0, 0, 0)
    assert (A + A).shape == (A == A).shape == (0, 3)
    assert (A.all(), A.any(), A.any(0).tolist()) == (True, False, [False] * 3)
    assert A[:, 1].shape == (0,)
    assert list(A) == []


# ---- elements ---------------------------------------------------------------------------------------------------------

SHAPE = (23, 17)


def axis_keys(n: int) -> st.SearchStrategy[Any]:
    bound = st.none() | st.integers(-n - 3, n + 3)
    return (
        st.integers(-n, n - 1)
        | st.builds(slice, bound, bound, st.none() | st.integers(-5, 5).filter(bool))
        | st.lists(st.integers(-n, n - 1), max_size=6)
        | st.lists(st.booleans(), min_size=n, max_size=n)
    )


KEYS = (
    axis_keys(SHAPE[0])
    | st.just(Ellipsis)
    | st.tuples(axis_keys(SHAPE[0]), axis_keys(SHAPE[1])).filter(lambda k: not all(isinstance(part, list) for part in k))
    | st.tuples(axis_keys(SHAPE[0]), st.just(Ellipsis))
    | st.tuples(st.just(Ellipsis), axis_keys(SHAPE[1]))
)


def numpy_key(key: Any) -> Any:
    """NumPy takes an empty list for floats."""
    if isinstance(key, list):
        return np.array(key, dtype=bool if key and isinstance(key[0], bool) else np.int64)
    return tuple(numpy_key(k) for k in key) if isinstance(key, tuple) else key


@given(key=KEYS, where=st.sampled_from(["ram", "zarr", "npy"]), transposed=st.booleans())
def test_getting_elements_is_numpys(tmp_path_factory: pytest.TempPathFactory, key: Any, where: str, transposed: bool) -> None:
    a = draw(SHAPE, "float64", 10)
    folder = tmp_path_factory.mktemp("m")
    A = lay(a.T.copy(), where, folder, (5, 7)).T if transposed else lay(a, where, folder, (5, 7))
    found, expected = A[key], a[numpy_key(key)]
    assert type(found) is type(expected)
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_array_equal(found, expected)


@given(key=KEYS, where=st.sampled_from(["ram", "zarr", "npy"]), transposed=st.booleans(), scalar=st.booleans())
def test_setting_elements_is_numpys(
    tmp_path_factory: pytest.TempPathFactory, key: Any, where: str, transposed: bool, scalar: bool
) -> None:
    a = draw(SHAPE, "float64", 11)
    A = lay(a.T.copy() if transposed else a.copy(), where, tmp_path_factory.mktemp("m"), (5, 7))
    value = 7.0 if scalar else draw(np.shape(a[numpy_key(key)]), seed=12)
    (A.T if transposed else A)[key] = value
    a[numpy_key(key)] = value
    again = A if where == "ram" else pycauset.open(A.store.path)
    np.testing.assert_array_equal((again.T if transposed else again).to_numpy(), a)


def test_blocks_by_ix_and_matrices_as_values(tmp_path: Path) -> None:
    a, b = draw((40, 30), seed=13), draw((10, 30), seed=14)
    A = lay(a, "zarr", tmp_path)
    rows, cols = [30, 2, 2, 17], [5, 29]
    np.testing.assert_array_equal(A[np.ix_(rows, cols)], a[np.ix_(rows, cols)])
    A[20:30] = lay(b, "zarr", tmp_path)
    a[20:30] = b
    np.testing.assert_array_equal(A.to_numpy(), a)


def test_a_big_block_is_a_matrix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pycauset.matrix._SLICE_BYTES", 4096)
    a = draw((100, 90), seed=15)
    A = lay(a, "zarr", tmp_path)
    A.properties.is_upper_triangular = True
    block = A[10:90:2, 80::-1]
    assert isinstance(block, Matrix)
    np.testing.assert_array_equal(block.to_numpy(), a[10:90:2, 80::-1])
    assert A[5:95, 5:].properties.is_upper_triangular is True
    assert isinstance(A[3], np.ndarray)


def test_rows_come_one_by_one(tmp_path: Path) -> None:
    a = draw((37, 11), seed=16)
    rows = list(lay(a, "zarr", tmp_path))
    assert len(rows) == len(lay(a, "npy", tmp_path)) == 37
    np.testing.assert_array_equal(np.array(rows), a)


# ---- conversions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", PLACES)
def test_astype_copy_real_imag(tmp_path: Path, where: str) -> None:
    a = draw((33, 44), "complex128", 17)
    A = lay(a, where, tmp_path)
    np.testing.assert_array_equal(A.astype("complex64").to_numpy(), a.astype("complex64"))
    np.testing.assert_array_equal(A.T.real.to_numpy(), a.T.real)
    np.testing.assert_array_equal(A.H.imag.to_numpy(), a.conj().T.imag)
    B = copy.copy(A)
    B[0, 0] = 99
    assert A[0, 0] == a[0, 0]
    np.testing.assert_array_equal(A.real.astype("int32").to_numpy(), a.real.astype("int32"))


def test_what_is_no_larger_than_the_limit_becomes_an_array(tmp_path: Path) -> None:
    A = pycauset.zeros((2000, 1000))
    with pycauset.settings(to_numpy_limit="10MB"), pytest.raises(MemoryError, match=r"16000000 bytes.*10000000 bytes"):
        A.to_numpy()
    with pycauset.settings(to_numpy_limit="10MB"):
        assert A.to_numpy(force=True).shape == (2000, 1000)
        with pytest.raises(errors.MemoryLimitError):
            np.asarray(A)


def test_results_go_to_scratch_when_memory_is_short(tmp_path: Path, isolated: Path) -> None:
    a = draw((2003, 1009), seed=18)
    with pycauset.settings(memory="30MB"):
        C = lay(a, "npy", tmp_path) + 1.0
        assert C.store.path is not None
        assert isolated in C.store.path.parents
    np.testing.assert_array_equal(C.to_numpy(), a + 1)


def test_truth_and_text_and_closing(tmp_path: Path) -> None:
    assert bool(Matrix([[2.0]])) is True
    with pytest.raises(ValueError, match="ambiguous"):
        bool(Matrix(np.eye(2)))
    with lay(np.eye(3), "zarr", tmp_path) as A:
        assert repr(A).startswith("<Matrix 3 x 3 float64 at '/")
    assert repr(A) == "<Matrix, closed>"
    with pytest.raises(OSError, match="closed"):
        A.sum()
    assert repr(pycauset.zeros((2, 3)).T) == "<Matrix 3 x 2 float64 transposed computed>"


# ---- properties -------------------------------------------------------------------------------------------------------


def test_properties_are_carried(tmp_path: Path) -> None:
    a = np.triu(draw((20, 20), seed=19))
    A = lay(a, "zarr", tmp_path)
    A.properties.is_upper_triangular = True
    assert A.properties_flags == A.properties.flags != 0
    for result in (A @ A, A + A, 2 * A, A / 3, -A, A * draw((20, 20)), A.copy(), A.astype("float32"), abs(A)):
        assert result.properties.is_upper_triangular is True, result
        assert not np.tril(result.to_numpy(), -1).any()
    assert A.T.properties.is_lower_triangular is True
    assert (A @ A.T).properties.is_symmetric is True
    assert (A.T @ A).properties.is_positive_semidefinite is True
    for result in (A + 1, A @ draw((20, 20)), A + draw((20, 20)), A @ A.T):
        assert result.properties.is_upper_triangular is None
    np.testing.assert_array_equal((pycauset.eye(20) @ A).to_numpy(), a)
    assert (pycauset.eye(20) @ A).properties.is_upper_triangular is True


def test_an_assignment_forgets_on_all_views(tmp_path: Path) -> None:
    A = lay(np.triu(draw((20, 20), seed=20)), "zarr", tmp_path)
    A.properties.is_upper_triangular = True
    view = A.T
    A[2, 9] = 1.0
    assert (A.properties.is_upper_triangular, view.properties.is_lower_triangular) == (True, True)
    view[2, 9] = 1.0
    assert (A.properties.is_upper_triangular, view.properties.is_lower_triangular) == (None, None)


@pytest.mark.parametrize(
    ("claim", "make"),
    [
        ("is_upper_triangular", np.triu),
        ("is_lower_triangular", np.tril),
        ("is_symmetric", lambda a: a + a.T),
        ("is_hermitian", lambda a: a + a.conj().T),
        ("is_skew_symmetric", lambda a: a - a.T),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_saving_keeps_claims_and_one_triangle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: str, make: Any, dtype: str
) -> None:
    monkeypatch.setattr("pycauset.storage.native.default_chunks", lambda shape, dtype: (16, 16))
    a = make(draw((70, 70), dtype, 21))
    A = pycauset.asmatrix(a, **{claim: True})
    A.save(tmp_path / "a.zarr", checksum=True)
    B = pycauset.open(tmp_path / "a.zarr")
    assert B.properties[claim] is True
    assert len(list((tmp_path / "a.zarr" / "c").rglob("*"))) == 5 + 15
    np.testing.assert_array_equal(B.to_numpy(), a)
    B.H.save(tmp_path / "b.zarr")
    np.testing.assert_array_equal(pycauset.open(tmp_path / "b.zarr").to_numpy(), a.conj().T)
    with pytest.raises(errors.StorePermissionError, match="copy"):
        B[3, 4] = 1
    A.save(tmp_path / "a.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), a)


# ---- creation ---------------------------------------------------------------------------------------------------------


@given(
    shape=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    dtype=st.sampled_from([*DTYPES, "bool"]),
    seed=st.integers(0, 2**64 - 1),
    data=st.data(),
)
def test_random_does_not_depend_on_the_cut(shape: tuple[int, int], dtype: str, seed: int, data: st.DataObject) -> None:
    A = pycauset.random(shape, dtype, seed=seed)
    a = A.to_numpy()
    r0, c0 = data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1))
    np.testing.assert_array_equal(A[r0 : r0 + 100, c0 : c0 + 300], a[r0 : r0 + 100, c0 : c0 + 300])
    assert (pycauset.random(shape, dtype, seed=seed).to_numpy() == a).all()


def test_random_numbers_look_random() -> None:
    u = pycauset.random((900, 1100), seed=22).to_numpy()
    assert abs(u.mean() - 0.5) < 0.002
    assert abs(u.var() - 1 / 12) < 0.001
    z = pycauset.random((900, 1100), "complex64", seed=22, distribution="normal").to_numpy()
    assert abs(np.vdot(z, z).real / z.size - 2) < 0.02
    assert len(np.unique(u[:2])) == 2200
    assert not (pycauset.random((9, 9)).to_numpy() == pycauset.random((9, 9)).to_numpy()).any()
    assert np.abs(np.corrcoef(u[:, :256].ravel(), u[:, 256:512].ravel())[0, 1]) < 0.01


def test_identity_and_zeros() -> None:
    np.testing.assert_array_equal(pycauset.eye(2100, 2060, "complex64")[2000:, 1990:], np.eye(2100, 2060)[2000:, 1990:])
    assert pycauset.zeros(7).properties.is_zero is True
    assert pycauset.zeros(7).shape == (7, 7)
    assert pycauset.ones((3000, 2)).sum(0).tolist() == [3000, 3000]
    assert pycauset.ones((4, 4)).properties.is_symmetric is True


# ---- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "kind", "built_in", "words"),
    [
        (lambda A: A + np.ones((3, 4)), errors.ShapeError, ValueError, r"\(5, 5\).*\(3, 4\)"),
        (lambda A: A @ np.ones((4, 5)), errors.ShapeError, ValueError, r"\(5, 5\).*\(4, 5\)"),
        (lambda A: A @ 3, errors.ShapeError, ValueError, r"use \*"),
        (lambda A: A[5], errors.OutOfBoundsError, IndexError, "row 5.*5 rows"),
        (lambda A: A[0, -6], errors.OutOfBoundsError, IndexError, "column -6"),
        (lambda A: A[0, 0, 0], errors.OutOfBoundsError, IndexError, "3 parts"),
        (lambda A: A[..., ...], errors.OutOfBoundsError, IndexError, "2 ellipses"),
        (lambda A: A[1.5], errors.OutOfBoundsError, IndexError, "1.5"),
        (lambda A: A[None], errors.OutOfBoundsError, IndexError, "None"),
        (lambda A: A[True], errors.OutOfBoundsError, IndexError, "True"),
        (lambda A: A[[0, 7]], errors.OutOfBoundsError, IndexError, "row 7"),
        (lambda A: A[[True, False]], errors.OutOfBoundsError, IndexError, "2 booleans for 5 rows"),
        (lambda A: A[[0, 1], [1, 2]], errors.OutOfBoundsError, IndexError, "np.ix_"),
        (lambda A: A[::0], errors.OutOfBoundsError, IndexError, "zero"),
        (lambda A: A.__setitem__(0, np.ones(4)), errors.ShapeError, ValueError, r"\(4,\).*\(5,\)"),
        (lambda A: A.__setitem__((0, 0), 1j), errors.DtypeError, TypeError, "complex"),
        (lambda A: A.__setitem__(0, "x"), errors.DtypeError, TypeError, "value"),
        (lambda A: A.astype("complex64").astype("float32"), errors.DtypeError, TypeError, "real"),
        (lambda A: A.astype(object), errors.DtypeError, TypeError, "object"),
        (lambda A: A.norm(3), errors.ConfigError, ValueError, "ord is 3"),
        (lambda A: A.sum(2), errors.ConfigError, ValueError, "axis is 2"),
        (lambda A: A.sum(1.0), errors.ConfigError, ValueError, "axis is 1.0"),
        (lambda A: A.sum((0, 0)), errors.ConfigError, ValueError, r"axis is \(0, 0\)"),
        (lambda A: A.all(()), errors.ConfigError, ValueError, r"axis is \(\)"),
        (lambda A: A.sum(dtype="int64"), errors.DtypeError, TypeError, "float64 cannot be summed as int64"),
        (lambda A: A / np.ones((5, 5)), errors.DtypeError, TypeError, "divides by scalars"),
        (lambda A: A.__setitem__(slice(None), A.T), errors.OverlapError, ValueError, "shares storage"),
        (lambda A: Matrix("a.npy"), errors.DtypeError, TypeError, "pycauset.open"),
        (lambda A: Matrix(np.ones((2, 2, 2))), errors.ShapeError, ValueError, r"\(2, 2, 2\)"),
        (lambda A: Matrix([[1], [2, 3]]), errors.ShapeError, ValueError, "nested"),
        (lambda A: Matrix([["a"]]), errors.DtypeError, TypeError, "element type"),
        (lambda A: Matrix(3.0), errors.DtypeError, TypeError, "float"),
        (lambda A: pycauset.asmatrix(A, is_blue=True), errors.ConfigError, ValueError, "is_blue"),
        (lambda A: pycauset.zeros((2, -1)), errors.ShapeError, ValueError, "negative"),
        (lambda A: pycauset.random((2, 2), "int32"), errors.DtypeError, TypeError, "int32"),
        (lambda A: pycauset.zeros((2, 2)).__setitem__(0, 1), errors.StorePermissionError, PermissionError, "read-only.*copy"),
        (lambda A: pycauset.open("/nowhere/a.zarr"), errors.StoreNotFoundError, FileNotFoundError, "/nowhere/a.zarr"),
        (lambda A: A.save("/nowhere/a.zarr"), errors.StoreNotFoundError, FileNotFoundError, "/nowhere"),
    ],
)
def test_bad_input(tmp_path: Path, call: Any, kind: type[Exception], built_in: type[Exception], words: str) -> None:
    for where in ("ram", "zarr"):
        a = draw((5, 5), seed=23)
        A = lay(a.copy(), where, tmp_path)
        with pytest.raises(kind, match=words) as caught:
            call(A)
        assert isinstance(caught.value, built_in)
        np.testing.assert_array_equal(A.to_numpy(), a)


def test_operators_leave_strangers_to_python() -> None:
    A = Matrix(np.eye(2))
    for call in (lambda: A + None, lambda: object() * A, lambda: A @ None, lambda: A - {}):
        with pytest.raises(TypeError, match="unsupported operand"):
            call()


def test_saving_over_something(tmp_path: Path) -> None:
    A = Matrix(np.eye(3))
    A.save(tmp_path / "a.zarr")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        A.save(tmp_path / "a.zarr")
    (2 * A).save(tmp_path / "a.zarr", overwrite=True)
    assert pycauset.open(tmp_path / "a.zarr").trace() == 6


def test_hdf5_datasets_are_operands(tmp_path: Path) -> None:
    a = draw((60, 50), seed=24)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("a", data=a, chunks=(16, 16), compression="gzip")
        np.testing.assert_array_equal((pycauset.asmatrix(dataset) * 2).to_numpy(), a * 2)
        np.testing.assert_allclose(pycauset.asmatrix(dataset) @ a[0], a @ a[0], rtol=1e-13)
