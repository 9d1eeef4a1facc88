"""Products, norms, saving and planning through the public functions, against NumPy in higher precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import pycauset
from pycauset import Matrix, errors, linalg
from pycauset.errors import ShapeError
from pycauset.storage import create_store
from pycauset.tiling import Rect
from tests.tickets import host_bytes_in_use

DTYPES = ["float32", "float64", "complex64", "complex128"]


def draw(shape: tuple[int, ...], dtype: str = "float64", seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        a = a + 1j * rng.standard_normal(shape)
    return a > 0 if dtype == "bool" else a.astype(dtype)


def stored(a: np.ndarray[Any, Any], path: Path) -> Matrix:
    store = create_store(path, a.shape, a.dtype, chunks=(64, 64))
    store.write(Rect(0, a.shape[0], 0, a.shape[1]), a)
    store.commit()
    return pycauset.open(path)


def exact(a: Any, b: Any) -> np.ndarray[Any, Any]:
    """In extended precision, where that takes no time: NumPy multiplies it by plain loops."""
    wide = np.clongdouble if a.shape[0] * a.size < 2_000_000 else np.complex128
    return np.asarray(a).astype(wide) @ np.asarray(b).astype(wide)


def assert_product(c: Any, a: Any, b: Any) -> None:
    """Within the bound of a product: k eps |A||B|."""
    c = np.asarray(c)
    bound = np.abs(a).astype(float) @ np.abs(b).astype(float) * np.finfo(c.dtype).eps * (a.shape[-1] + 4)
    assert (np.abs(c - exact(a, b)) <= bound + np.finfo(c.dtype).tiny).all()


@pytest.mark.parametrize("left", DTYPES)
@pytest.mark.parametrize("right", [*DTYPES, "bool"])
@pytest.mark.parametrize("place", ["ram", "disk", "mixed"])
def test_products_of_all_types(tmp_path: Path, left: str, right: str, place: str) -> None:
    a, b = draw((97, 130), left, 1), draw((130, 61), right, 2)
    A = stored(a, tmp_path / "a.zarr") if place != "ram" else Matrix(a)
    B = stored(b, tmp_path / "b.zarr") if place == "disk" else Matrix(b)
    for C in (A @ B, A @ b, a @ B, pycauset.matmul(a, b), np.matmul(A, B), np.dot(A, b)):
        assert isinstance(C, Matrix)
        assert C.dtype == np.result_type(a, b)
        assert_product(C, a, b)


@pytest.mark.parametrize("place", ["ram", "disk"])
@pytest.mark.parametrize("size", [(70, 90, 50), (410, 700, 333)])
@pytest.mark.parametrize(("op_a", "op_b"), [("N", "T"), ("T", "N"), ("H", "H"), ("C", "N"), ("N", "C")])
def test_products_of_views(tmp_path: Path, place: str, size: tuple[int, int, int], op_a: str, op_b: str) -> None:
    m, k, n = size
    take = {"N": lambda x: x, "T": lambda x: x.T, "H": lambda x: x.conj().T, "C": lambda x: x.conj()}
    view = {**take, "H": lambda x: x.H}
    a = draw((k, m) if op_a in "TH" else (m, k), "complex128", 3)
    b = draw((n, k) if op_b in "TH" else (k, n), "complex128", 4)
    A = stored(a, tmp_path / "a.zarr") if place == "disk" else Matrix(a)
    B = stored(b, tmp_path / "b.zarr") if place == "disk" else Matrix(b)
    C = view[op_a](A) @ view[op_b](B)
    np.testing.assert_allclose(C.to_numpy(), take[op_a](a) @ take[op_b](b), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("place", ["ram", "disk"])
@pytest.mark.parametrize("n", [50, 600])
def test_vectors_follow_numpys_rules(tmp_path: Path, place: str, n: int) -> None:
    a, x, y = draw((n, n + 7), seed=5), draw((n + 7,), seed=6), draw((n,), seed=7)
    A = stored(a, tmp_path / "a.zarr") if place == "disk" else Matrix(a)
    for found, expected in (
        (A @ x, a @ x),
        (y @ A, y @ a),
        (A.T @ y, a.T @ y),
        (pycauset.matmul(a, x), a @ x),
        (A @ list(x), a @ x),
        (A @ x.astype("complex64"), a @ x.astype("complex64")),
    ):
        assert type(found) is np.ndarray
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    assert (A @ x[:, None]).shape == (n, 1)
    assert pycauset.matmul(x, x) == pytest.approx(x @ x)
    out = np.full(n, np.nan)
    assert pycauset.matmul(A, x, out=out) is out
    np.testing.assert_allclose(out, a @ x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("call", ["x @ y", "np.matmul(x, y)", "np.dot(x, y)", "pycauset.matmul(x, y)"])
@pytest.mark.parametrize("kind", ["array", "list", "memmap", "hdf5", "strided"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_vector_on_either_side(tmp_path: Path, call: str, kind: str, dtype: str) -> None:
    a, v, u = draw((31, 17), dtype, 1), draw((17,), dtype, 2), draw((31,), dtype, 3)
    tolerance = {"rtol": 100 * np.finfo(dtype).eps, "atol": 100 * np.finfo(dtype).eps}
    with h5py.File(tmp_path / "v.h5", "w") as file:

        def given(x: np.ndarray[Any, Any], name: str) -> Any:
            if kind == "memmap":
                np.save(tmp_path / f"{name}.npy", x)
                return np.load(tmp_path / f"{name}.npy", mmap_mode="r")
            if kind == "hdf5":
                return file.create_dataset(name, data=x)
            return {"array": x, "list": x.tolist(), "strided": np.repeat(x, 2)[::2]}[kind]

        V, U = given(v, "v"), given(u, "u")
        for A in (Matrix(a), stored(a, tmp_path / "a.zarr")):
            pairs = [(A, V, a @ v), (U, A, u @ a), (A.H, U, a.conj().T @ u), (V, A.T, v @ a.T)]
            if call.startswith("pycauset"):
                pairs += [(V, V, v @ v), (U, a, u @ a), (a, V, a @ v)]
            for x, y, expected in pairs:
                if kind == "hdf5" and x is not A and call.startswith("x @") and not isinstance(x, Matrix):
                    x = Matrix(x).T  # h5py's datasets take @ for themselves
                    expected = expected[None]
                found = eval(call, {"np": np, "pycauset": pycauset, "x": x, "y": y})
                assert np.shape(found) == np.shape(expected)
                np.testing.assert_allclose(found, expected, **tolerance)


def test_a_vector_as_a_matrix_is_a_column(tmp_path: Path) -> None:
    a, u = draw((31, 17)), draw((31,), seed=1)
    np.save(tmp_path / "u.npy", u)
    for column in (pycauset.asmatrix(u), pycauset.open(tmp_path / "u.npy")):
        assert column.shape == (31, 1)
        np.testing.assert_allclose((column.T @ a).to_numpy(), (u @ a)[None], rtol=1e-12)
        np.testing.assert_allclose((column @ column.T).to_numpy(), np.outer(u, u), rtol=1e-12)
        with pytest.raises(ValueError, match=r"\(31, 1\) and \(31, 17\).*is a column: write a\.T @ b"):
            column @ a
    assert pycauset.plan("matmul", u, a).layout == pycauset.plan("matmul", list(u), a).layout
    assert pycauset.plan("matmul", list(u), a).layout.shape == (1, 17)


@pytest.mark.parametrize("place", ["ram", "disk"])
@pytest.mark.parametrize("size", [(40, 70, 30), (300, 900, 410)])
def test_booleans_are_counted(tmp_path: Path, place: str, size: tuple[int, int, int]) -> None:
    m, k, n = size
    a, b = draw((m, k), "bool", 8), draw((k, n), "bool", 9)
    A = stored(a, tmp_path / "a.zarr") if place == "disk" else Matrix(a)
    C = A @ Matrix(b)
    assert C.dtype == np.int64
    np.testing.assert_array_equal(C.to_numpy(), a.astype(np.int64) @ b.astype(np.int64))


@pytest.mark.parametrize("size", [(40, 70, 30), (300, 900, 410)])
def test_outputs(tmp_path: Path, size: tuple[int, int, int]) -> None:
    m, k, n = size
    a, b = draw((m, k), seed=10), draw((k, n), seed=11)
    A, B = stored(a, tmp_path / "a.zarr"), Matrix(b)
    array = np.full((m, n), np.nan)
    assert pycauset.matmul(A, B, out=array) is array
    assert_product(array, a, b)
    narrow = np.full((m, n), np.nan, np.float32)
    pycauset.matmul(a, b, out=narrow)
    np.testing.assert_allclose(narrow, a @ b, rtol=1e-4, atol=1e-4)
    for name in ("c.zarr", "c.npy"):
        C = pycauset.matmul(A, b, out=tmp_path / name)
        assert C.store.path == tmp_path / name
        assert_product(pycauset.open(str(tmp_path / name)), a, b)
    D = stored(np.full((m, n), np.nan), tmp_path / "d.zarr")
    D.properties.is_zero = True
    assert pycauset.matmul(A, B, out=D) is D
    assert_product(pycauset.open(tmp_path / "d.zarr"), a, b)
    assert D.properties.is_zero is None
    E = Matrix(np.full((n, m), np.nan))
    pycauset.matmul(A, B, out=E.T)
    assert_product(E.T, a, b)


def test_a_gram_matrix_on_disk_is_symmetric(tmp_path: Path) -> None:
    a = draw((1100, 40), seed=12)
    A = stored(a, tmp_path / "a.zarr")
    C = pycauset.matmul(A, A.T, out=tmp_path / "c.zarr")
    assert C.store.structure == "symmetric"
    assert C.properties.is_positive_semidefinite is True
    np.testing.assert_allclose(C.to_numpy(), a @ a.T, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("m", [7, 300])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_a_product_with_its_own_transpose_is_known_however_it_is_named(tmp_path: Path, m: int, dtype: str) -> None:
    a = draw((m, 290), dtype, seed=21)
    stored(a, tmp_path / "a.zarr")
    X, Y = pycauset.open(tmp_path / "a.zarr"), pycauset.open(tmp_path / "a.zarr")
    twin, fortran = a.view(), np.asfortranarray(a)
    pairs = [(X, Y), (Matrix(a), Matrix(a)), (Matrix(a), Matrix(twin)), (Matrix(a[:, :100]), Matrix(a[:, :100]))]
    for one, other in [*pairs, (Matrix(fortran), Matrix(fortran)), (Matrix(a), Matrix(a.T).T)]:
        assert pycauset.matmul(one, other.T).properties.is_symmetric is True
        assert pycauset.matmul(other.T, one).properties.is_symmetric is True
    for one, other in pairs:
        assert pycauset.matmul(one, other.H).properties.is_positive_semidefinite is True
        assert pycauset.matmul(one, other.H).properties.is_hermitian is True
    for one in (a, fortran, a[:, 3:50]):
        assert pycauset.matmul(one, one.T).properties.is_symmetric is True
        assert (Matrix(one) @ one.T).properties.is_symmetric is True
        other = one.copy()
        assert pycauset.matmul(one, other.T).properties.is_symmetric is None
    assert pycauset.matmul(a[:, :100], a[:, 100:200].T).properties.is_symmetric is None
    assert pycauset.matmul(X, Y.T, out=tmp_path / "c.zarr", memory="128MB").properties.is_symmetric is True
    assert pycauset.open(tmp_path / "c.zarr").properties.is_symmetric is True
    square = draw((m, m), dtype, seed=22)
    assert (Matrix(square) @ Matrix(square)).properties.is_symmetric is None


@pytest.mark.parametrize(
    ("structure", "name"),
    [
        ("symmetric", "is_symmetric"),
        ("hermitian", "is_hermitian"),
        ("skew", "is_skew_symmetric"),
        ("lower", "is_lower_triangular"),
        ("upper", "is_upper_triangular"),
        ("full", None),
    ],
)
def test_a_structure_of_storage_is_a_property(tmp_path: Path, structure: str, name: str | None) -> None:
    a = draw((20, 20), "complex128", seed=23)
    fits = {
        "symmetric": a + a.T,
        "hermitian": a + a.conj().T,
        "skew": a - a.T,
        "lower": np.tril(a),
        "upper": np.triu(a),
        "full": a,
    }
    store = create_store(tmp_path / "a.zarr", (20, 20), "complex128", structure=structure)
    store.write(Rect(0, 20, 0, 20), fits[structure])
    store.commit()
    opened = pycauset.open(tmp_path / "a.zarr")
    np.testing.assert_array_equal(opened.to_numpy(), fits[structure])
    assert opened.properties.keys() == (() if name is None else opened.properties.keys())
    assert name is None or opened.properties[name] is True


@pytest.mark.parametrize("n", [5, 700])
@pytest.mark.parametrize("name", ["v.zarr", "v.npy"])
def test_products_with_vectors_go_to_paths_as_columns(tmp_path: Path, n: int, name: str) -> None:
    a, v, u = draw((n, n + 3), seed=24), draw((n + 3, 1), seed=25)[:, 0], draw((n, 1), seed=26)[:, 0]
    A = stored(a, tmp_path / "a.zarr")
    found = pycauset.matmul(A, v, out=tmp_path / name)
    assert found.shape == (n, 1)
    np.testing.assert_allclose(pycauset.open(tmp_path / name).to_numpy()[:, 0], a @ v, rtol=0, atol=1e-11)
    found = pycauset.matmul(u, A, out=tmp_path / f"u-{name}", memory="100MB")
    assert found.shape == (n + 3, 1)
    np.testing.assert_allclose(found.to_numpy()[:, 0], u @ a, rtol=0, atol=1e-11)
    with pytest.raises(ShapeError, match="a product with a vector"):
        pycauset.matmul(v, v, out=tmp_path / "scalar.zarr")
    assert not (tmp_path / "scalar.zarr").exists()


def test_products_under_a_memory_limit(tmp_path: Path) -> None:
    a, b = draw((1500, 1400), seed=13), draw((1400, 1300), seed=14)
    A, B = stored(a, tmp_path / "a.zarr"), stored(b, tmp_path / "b.zarr")
    C = pycauset.matmul(A, B, out=tmp_path / "c.zarr", memory="64MB")
    np.testing.assert_allclose(C.to_numpy(), a @ b, rtol=1e-9, atol=1e-9)
    with pytest.raises(MemoryError):
        pycauset.matmul(A, B, out=tmp_path / "d.zarr", memory=1000)
    assert not (tmp_path / "d.zarr").exists()


def test_plans_are_explained(tmp_path: Path) -> None:
    A = pycauset.random((20_000, 10_000), seed=1)
    text = pycauset.plan("matmul", A, A.T, out_on_disk=True).explain()
    assert "matmul" in text
    with pytest.raises(errors.ConfigError, match="'qr'"):
        pycauset.plan("qr", A, A)


def test_norm_and_trace_of_anything() -> None:
    a = draw((30, 20), seed=15)
    assert linalg.norm(a) == pytest.approx(np.linalg.norm(a))
    assert linalg.norm(a.tolist(), 1) == pytest.approx(np.linalg.norm(a, 1))
    assert linalg.trace(a) == pytest.approx(np.trace(a))


@pytest.mark.parametrize(
    ("call", "kind", "built_in", "words"),
    [
        (lambda a, f: pycauset.matmul(a, np.ones((4, 4))), errors.ShapeError, ValueError, r"\(6, 6\) and \(4, 4\)"),
        (lambda a, f: pycauset.matmul(a, np.ones(4)), errors.ShapeError, ValueError, r"\(6, 6\) and \(4,\)"),
        (lambda a, f: pycauset.matmul(a, np.ones((2, 6, 6))), errors.ShapeError, ValueError, r"\(2, 6, 6\)"),
        (lambda a, f: pycauset.matmul(a, 3.0), errors.DtypeError, TypeError, "second operand is a float"),
        (lambda a, f: pycauset.matmul([[1, 2], [3]], a), errors.ShapeError, ValueError, "first operand"),
        (lambda a, f: pycauset.matmul(a.astype(int), a.astype(int)), errors.DtypeError, TypeError, r"astype\('float64'\)"),
        (lambda a, f: pycauset.matmul(a, a, out=np.ones((5, 6))), errors.ShapeError, ValueError, r"\(5, 6\)"),
        (lambda a, f: pycauset.matmul(a, a, out=np.ones((6, 6), int)), errors.DtypeError, TypeError, "int64"),
        (lambda a, f: pycauset.matmul(a, a, out=3), errors.DtypeError, TypeError, "out is a int"),
        (lambda a, f: pycauset.matmul(a, a, out=a), errors.OverlapError, ValueError, "shares storage"),
        (lambda a, f: pycauset.matmul(a, a.T, out=a[:, ::-1]), errors.OverlapError, ValueError, "shares storage"),
        (lambda a, f: pycauset.matmul(a, a, out=np.ones(6)), errors.ShapeError, ValueError, r"\(6,\)"),
        (lambda a, f: pycauset.matmul(a, a, out=f / "no" / "c.zarr"), errors.StoreNotFoundError, FileNotFoundError, "no folder"),
        (lambda a, f: pycauset.matmul(a, a, out=f / "taken.npy"), errors.StoreExistsError, FileExistsError, "taken.npy"),
        (lambda a, f: pycauset.matmul(a, a, out=f / "c.csv"), errors.ConfigError, ValueError, "csv"),
    ],
)
def test_bad_input(tmp_path: Path, call: Any, kind: type[Exception], built_in: type[Exception], words: str) -> None:
    a = draw((6, 6), seed=16)
    before = a.copy()
    np.save(tmp_path / "taken.npy", a)
    with pytest.raises(kind, match=words) as caught:
        call(a, tmp_path)
    assert isinstance(caught.value, built_in)
    np.testing.assert_array_equal(a, before)
    np.testing.assert_array_equal(np.load(tmp_path / "taken.npy"), before)
    assert [p.name for p in tmp_path.iterdir()] == ["taken.npy"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    A = pycauset.random((1500, 1500), seed=17)

    def interrupt(done: float, total: float) -> None:
        assert 0 < done <= total
        raise KeyboardInterrupt

    def interrupted(rows: Any, cols: Any) -> Any:
        if rows[-1] > 1000:
            raise KeyboardInterrupt
        return np.zeros((len(rows), len(cols)))

    with pytest.raises(KeyboardInterrupt):
        pycauset.save(tmp_path / "a.zarr", A, progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        pycauset.matmul(A, pycauset.from_function(interrupted, (1500, 1500)), out=tmp_path / "c.zarr")
    assert list(tmp_path.iterdir()) == []


def test_a_result_in_ram_is_counted_until_its_last_view_goes() -> None:
    A = pycauset.random((500, 700), seed=18)
    before = host_bytes_in_use()
    view = (A + 1).T.to_numpy()[3:]
    assert host_bytes_in_use() - before == 500 * 700 * 8
    del view
    assert host_bytes_in_use() == before
