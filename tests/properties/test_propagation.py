"""Every rule, against explicit matrices: it never claims something false, and it keeps what its table promises."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from pycauset import Matrix
from pycauset import propagation as p
from pycauset.properties import closure, known, mask
from tests.properties.explicit import Array, all_flags, assert_true_of, claimed, matrices

data = st.data()
scalars = st.sampled_from([0, 1, -1, 2, -3, 1j, -1j, 2j, 1 + 1j, 0.5])


@st.composite
def cuts(draw: st.DrawFn, n: int) -> range:
    start, stop = draw(st.integers(-n - 1, n + 1)), draw(st.integers(-n - 1, n + 1))
    step = draw(st.sampled_from([1, 1, 1, 2, 3, -1, -1, -2]))
    bounds = draw(st.sampled_from([slice(start, stop, step), slice(None, None, step), slice(start, None, step)]))
    return range(*bounds.indices(n))


@given(matrices(), data)
def test_transpose(a: Array, data: st.DataObject) -> None:
    flags = data.draw(claimed(a))
    for result in (a.T, a.conj().T):
        assert_true_of(p.transpose(flags), result)
    assert_true_of(flags, a.conj())
    assert p.transpose(all_flags(a)) == all_flags(a.T)
    assert p.transpose(p.transpose(flags)) == flags


@given(matrices(), scalars, data)
def test_scale(a: Array, s: complex, data: st.DataObject) -> None:
    assert_true_of(p.scale(data.draw(claimed(a)), s), s * a)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "float64"])
def test_a_negative_unsigned_identity_is_not_orthogonal(dtype: str) -> None:
    eye = Matrix(np.eye(3, dtype=dtype))
    eye.properties.is_identity = True
    zero = Matrix(np.zeros((3, 3), dtype))
    zero.properties.is_zero = True
    for result in (-eye, zero - eye, np.zeros((), dtype)[()] - eye):
        a = result.to_numpy()
        exactly = np.array_equal(a.T.astype(object) @ a.astype(object), np.eye(3))
        assert exactly == (not dtype.startswith("u"))
        assert result.properties.is_orthogonal is (True if exactly else None)
        assert result.properties.is_diagonal is True
    large = Matrix(np.array([[255]], "uint8"))  # -255 is 1 here
    large.properties.is_orthogonal = False
    assert (-large).properties.is_orthogonal is None


@given(matrices(), st.booleans(), data)
def test_sum_difference_and_elementwise_product(a: Array, real: bool, data: st.DataObject) -> None:
    b = data.draw(matrices(shape=a.shape, real=real))
    fa, fb = data.draw(claimed(a)), data.draw(claimed(b))
    assert_true_of(p.add(fa, fb), a + b)
    assert_true_of(p.subtract(fa, fb), a - b)
    assert_true_of(p.multiply(fa, fb), a * b)


@given(matrices(), st.integers(1, 4), st.booleans(), data)
def test_matmul(a: Array, n: int, real: bool, data: st.DataObject) -> None:
    b = data.draw(matrices(shape=(a.shape[1], a.shape[1] if data.draw(st.booleans()) else n), real=real))
    square = a.shape[0] == a.shape[1] == b.shape[1]
    assert_true_of(p.matmul(data.draw(claimed(a)), data.draw(claimed(b)), square=square), a @ b)


@given(matrices(), data)
def test_matmul_with_itself(a: Array, data: st.DataObject) -> None:
    fa = data.draw(claimed(a))
    square = a.shape[0] == a.shape[1]
    ft = p.transpose(fa)
    assert_true_of(p.matmul(fa, ft, square=square, relation="transpose"), a @ a.T)
    assert_true_of(p.matmul(ft, fa, square=square, relation="transpose"), a.T @ a)
    assert_true_of(p.matmul(fa, ft, square=square, relation="adjoint"), a @ a.conj().T)
    assert_true_of(p.matmul(ft, fa, square=square, relation="adjoint"), a.conj().T @ a)
    if square:
        assert_true_of(p.matmul(fa, fa, square=True, relation="same"), a @ a)


@given(matrices(), st.sampled_from(["?", "i1", "i4", "i8", "f4", "f8", "c8", "c16"]), st.sampled_from([1, 0.4, 1.5]), data)
def test_astype(a: Array, new: str, factor: float, data: st.DataObject) -> None:
    a = a * factor
    target = np.dtype(new)
    result = (a.real if target.kind not in "cb" else a).astype(target)
    exact = result.astype(complex if target.kind == "c" else float)
    assert_true_of(p.astype(data.draw(claimed(a)), a.dtype, target), exact)


def test_astype_keeps_all_only_if_every_value_fits() -> None:
    flags = mask("is_positive_definite") | mask("is_zero") // 3  # definite, and known not to be zero
    d = np.dtype
    for old, new in (("f4", "f8"), ("f8", "c16"), ("i4", "f8"), ("?", "f4"), ("i2", "f4"), ("f8", "f8")):
        assert p.astype(flags, d(old), d(new)) == flags
    for old, new in (("f8", "f4"), ("i8", "f8"), ("i4", "f4"), ("f8", "i8"), ("f8", "?")):
        assert known(p.astype(flags, d(old), d(new)), "is_positive_definite") is None
        assert known(p.astype(flags, d(old), d(new)), "is_zero") is None


@given(matrices(), data)
def test_take(a: Array, data: st.DataObject) -> None:
    rows = data.draw(cuts(a.shape[0]))
    cols = rows if a.shape[0] == a.shape[1] and data.draw(st.booleans()) else data.draw(cuts(a.shape[1]))
    flags = p.take(data.draw(claimed(a)), a.shape, rows, cols)
    if rows and cols:
        assert_true_of(flags, a[np.ix_(rows, cols)])
    else:
        assert flags == 0


@given(st.integers(1, 6), data)
def test_take_keeps_every_triangle_it_can(n: int, data: st.DataObject) -> None:
    """A triangular matrix without further zeros: what the rule leaves unknown is false of it."""
    rows, cols = data.draw(cuts(n)), data.draw(cuts(n))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    full = rng.integers(1, 9, (n, n)).astype(float)
    for name, a in (
        ("is_upper_triangular", np.triu(full)),
        ("is_strictly_upper_triangular", np.triu(full, 1)),
        ("is_lower_triangular", np.tril(full)),
        ("is_strictly_lower_triangular", np.tril(full, -1)),
    ):
        if not rows or not cols or rows == cols == range(n):
            continue
        part = a[np.ix_(rows, cols)]
        closed = closure(p.take(closure(mask(name), a.shape, True), a.shape, rows, cols), part.shape, True)
        for kept in ("is_zero", "is_upper_triangular", "is_lower_triangular"):
            assert (known(closed, kept) is True) == (known(all_flags(part), kept) is True)


@given(matrices(), data)
def test_assign(a: Array, data: st.DataObject) -> None:
    flags = data.draw(claimed(a))
    rows = data.draw(cuts(a.shape[0]))
    cols = data.draw(st.sampled_from([rows, rows[::-1]])) if a.shape[0] == a.shape[1] and data.draw(st.booleans()) else None
    cols = data.draw(cuts(a.shape[1])) if cols is None else cols
    after = a.copy()
    after[np.ix_(rows, cols)] = (
        data.draw(matrices(shape=(len(rows), len(cols)), real=a.dtype.kind != "c")) if rows and cols else 0
    )
    assert_true_of(p.assign(flags, rows, cols), after)
    after[np.ix_(rows, cols)] = 0
    assert_true_of(p.assign(flags, rows, cols, zeros=True), after)


def _closed(*names: str, n: int = 4, real: bool = True) -> int:
    return closure(mask(*names), (n, n), real)


UPPER, LOWER = "is_upper_triangular", "is_lower_triangular"


@pytest.mark.parametrize(
    ("flags", "promised"),
    [
        (p.transpose(_closed(UPPER)), [LOWER]),
        (p.scale(_closed("is_symmetric"), 2), ["is_symmetric"]),
        (p.scale(_closed("is_hermitian", real=False), 2j), ["is_skew_hermitian"]),
        (p.scale(_closed("is_positive_definite"), 0.5), ["is_positive_definite", "is_symmetric"]),
        (p.scale(_closed("is_orthogonal"), -1), ["is_orthogonal", "is_unitary"]),
        (p.add(_closed("is_positive_definite"), _closed("is_positive_semidefinite")), ["is_positive_definite"]),
        (p.add(_closed("is_strictly_lower_triangular"), _closed(LOWER, "has_unit_diagonal")), [LOWER, "has_unit_diagonal"]),
        (p.subtract(_closed("has_unit_diagonal"), _closed("has_unit_diagonal")), ["has_zero_diagonal"]),
        (p.subtract(_closed("is_zero"), _closed("is_skew_symmetric")), ["is_skew_symmetric"]),
        (p.multiply(_closed(UPPER), _closed(LOWER)), ["is_diagonal"]),
        (p.multiply(_closed("is_skew_symmetric"), _closed("is_skew_symmetric")), ["is_symmetric"]),
        (p.multiply(_closed("is_positive_definite"), _closed("is_positive_definite")), ["is_positive_definite"]),
        (p.matmul(_closed(LOWER, "has_unit_diagonal"), _closed(LOWER, "has_unit_diagonal"), square=True), ["has_unit_diagonal"]),
        (p.matmul(_closed(UPPER), _closed("is_strictly_upper_triangular"), square=True), ["is_strictly_upper_triangular"]),
        (p.matmul(_closed("is_diagonal"), _closed("is_diagonal"), square=True), ["is_diagonal", "is_symmetric"]),
        (p.matmul(_closed("is_permutation"), _closed("is_permutation"), square=True), ["is_permutation"]),
        (p.matmul(_closed("is_identity"), _closed("is_symmetric"), square=True), ["is_symmetric"]),
        (p.matmul(0, 0, square=False, relation="adjoint"), ["is_hermitian", "is_positive_semidefinite"]),
        (p.matmul(_closed(LOWER, "has_unit_diagonal"), 0, square=True, relation="adjoint"), ["is_positive_definite"]),
        (p.matmul(_closed("is_skew_symmetric"), 0, square=True, relation="same"), ["is_symmetric"]),
        (p.astype(_closed("is_hermitian", real=False), np.dtype("c16"), np.dtype("f8")), ["is_symmetric"]),
        (p.take(_closed("is_positive_definite"), (4, 4), range(1, 3), range(1, 3)), ["is_positive_definite"]),
        (p.take(_closed(LOWER), (4, 4), range(0, 2), range(2, 4)), ["is_zero"]),
        (p.take(_closed(UPPER), (4, 4), range(3, -1, -1), range(3, -1, -1)), [LOWER]),
        (p.assign(_closed(LOWER), range(2, 3), range(0, 2)), [LOWER]),
        (p.assign(_closed("is_symmetric"), range(1, 2), range(1, 2)), ["is_symmetric"]),
    ],
)
def test_rules_keep_what_the_table_promises(flags: int, promised: list[str]) -> None:
    closed = _closed() | closure(flags, (4, 4), True)
    assert [known(closed, name) for name in promised] == [True] * len(promised)


def test_scalars_that_spoil_everything() -> None:
    everything = _closed("is_identity")
    assert p.scale(everything, float("nan")) == 0
    assert p.scale(everything, float("inf")) == 0
    assert known(p.scale(_closed("is_symmetric"), 0), "is_zero") is None


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        # (3 × 2)(2 × 3): the last diagonal entry of the product is 0
        (p.matmul(mask(UPPER, "has_unit_diagonal"), mask(UPPER, "has_unit_diagonal"), square=False), "has_unit_diagonal"),
        (p.assign(_closed("is_strictly_lower_triangular"), range(1, 2), range(1, 2)), "is_strictly_lower_triangular"),
        (p.astype(_closed("is_skew_symmetric"), np.dtype("i4"), np.dtype("i1")), "is_skew_symmetric"),  # -128
        (p.subtract(_closed("is_positive_definite"), _closed("is_positive_semidefinite")), "is_positive_semidefinite"),
        (p.subtract(_closed("is_zero"), _closed("is_identity")), "has_unit_diagonal"),
        (p.take(_closed("is_permutation", n=6), (6, 6), range(4), range(1, 5)), "is_permutation"),
        (p.take(_closed("is_unitary", n=6), (6, 6), range(4), range(4)), "is_unitary"),
        (p.subtract(_closed("is_zero"), _closed("is_positive_definite")), "is_positive_semidefinite"),
    ],
)
def test_rules_promise_no_more(flags: int, name: str) -> None:
    assert known(closure(flags, (4, 4), True), name) is not True
