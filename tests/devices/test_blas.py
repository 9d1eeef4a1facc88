"""BLAS through ctypes: every flag, dtype and leading dimension; nothing outside the tile is touched; the GIL is free."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycauset.devices.blas import adjoint_product, gemm, product, rank_k, trmm, trsm

DTYPES = ("float32", "float64", "complex64", "complex128")
OP = {"N": lambda x: x, "T": lambda x: x.T, "H": lambda x: x.conj().T}


def padded(rng, shape, dtype, pad):
    """A row-major tile within a larger array, and that array."""
    x = rng.standard_normal((shape[0] + 2, shape[1] + pad))
    if np.dtype(dtype).kind == "c":
        x = x + 1j * rng.standard_normal(x.shape)
    x = x.astype(dtype)
    return x[1 : 1 + shape[0], pad // 2 : pad // 2 + shape[1]], x


def close(c, exact, k):
    return np.abs(c - exact).max(initial=0) <= 30 * (k + 1) * np.finfo(c.dtype).eps * max(1.0, np.abs(exact).max(initial=0))


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), st.sampled_from(DTYPES),
    st.sampled_from("NTH"), st.sampled_from("NTH"),
    st.integers(0, 5), st.sampled_from([(1.0, 0.0), (-0.5, 1.0), (2 - 1j, 0.5 + 2j), (0.0, 0.0)]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_gemm(m, n, k, dtype, op_a, op_b, pad, scalars, seed):
    rng = np.random.default_rng(seed)
    alpha, beta = scalars if np.dtype(dtype).kind == "c" else (complex(scalars[0]).real, complex(scalars[1]).real)
    a, _ = padded(rng, (m, k) if op_a == "N" else (k, m), dtype, pad)
    b, _ = padded(rng, (k, n) if op_b == "N" else (n, k), dtype, pad)
    c, around = padded(rng, (m, n), dtype, pad)
    before, outside = c.copy(), around.copy()
    if beta == 0:
        c[...] = np.nan  # must not be read
    gemm(a, b, c, alpha=alpha, beta=beta, op_a=op_a, op_b=op_b)
    assert close(c, alpha * (OP[op_a](a) @ OP[op_b](b)) + beta * before, k)
    c[...] = before
    assert np.array_equal(around, outside), "something outside the tile has changed"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op_a", "hermitian", "pad"), list(itertools.product("NTH", [False, True], [0, 3])))
def test_rank_k_updates_the_lower_triangle_alone(dtype, op_a, hermitian, pad):
    if op_a == "H" and not hermitian and np.dtype(dtype).kind == "c":
        pytest.skip("op(A) op(A)ᵀ of a conjugate transpose is no BLAS routine")
    if op_a == "T" and hermitian and np.dtype(dtype).kind == "c":
        pytest.skip("nor is op(A) op(A)ᴴ of a plain transpose")
    rng = np.random.default_rng(40)
    a, _ = padded(rng, (13, 7) if op_a == "N" else (7, 13), dtype, pad)
    c, around = padded(rng, (13, 13), dtype, pad)
    if hermitian:
        np.fill_diagonal(c, c.diagonal().real)
    before, outside = c.copy(), around.copy()
    rank_k(a, c, alpha=0.5, beta=-2.0, op_a=op_a, hermitian=hermitian)
    x = OP[op_a](a)
    exact = 0.5 * x @ (x.conj().T if hermitian else x.T) - 2.0 * before
    lower, upper = np.tril_indices(13), np.triu_indices(13, 1)
    assert close(c[lower], exact[lower], 7)
    assert np.array_equal(c[upper], before[upper])
    c[...] = before
    assert np.array_equal(around, outside)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_tile_that_is_not_row_major_is_refused(which):
    tiles = [np.ones((4, 4)) for _ in range(3)]
    tiles[which] = np.ones((4, 8))[:, ::2]
    with pytest.raises(ValueError, match="not row-major"):
        gemm(*tiles)


@pytest.mark.parametrize("routine", [trsm, trmm])
@pytest.mark.parametrize("which", [0, 1])
def test_a_triangle_or_a_right_hand_side_that_is_not_row_major_is_refused(routine, which):
    tiles = [np.ones((4, 4)) for _ in range(2)]
    tiles[which] = np.ones((4, 8))[:, ::2]
    with pytest.raises(ValueError, match="not row-major"):
        routine(*tiles)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("flags", list(itertools.product("LR", "LU", "NTH", [False, True])), ids=str)
def test_trsm_undoes_trmm(dtype, flags):
    side, uplo, op, unit = flags
    rng = np.random.default_rng()
    t = np.eye(13, dtype=dtype) * 2 + padded(rng, (13, 13), dtype, 0)[0] / 30
    x, around = padded(rng, (13, 7) if side == "L" else (7, 13), dtype, 3)
    before, outside = x.copy(), around.copy()
    trmm(t, x, side=side, uplo=uplo, op=op, unit=unit, alpha=2.0)
    trsm(t, x, side=side, uplo=uplo, op=op, unit=unit, alpha=0.5)
    assert close(x, before, 13)
    x[...] = before
    assert np.array_equal(around, outside), "something outside the tile has changed"


def test_other_threads_run_during_a_call():
    """A thread ends the wait for BLAS: holding the GIL, the call would finish before the thread has counted at all."""
    a = np.ones((1500, 1500))
    c = np.empty_like(a)
    begun, stop, turns = threading.Event(), threading.Event(), [0]

    def count() -> None:
        begun.set()
        while not stop.is_set():
            turns[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    begun.wait()
    counted = []
    for _ in range(3):
        before = turns[0]
        gemm(a, a, c)
        counted.append(turns[0] - before)
    stop.set()
    thread.join()
    assert max(counted) > 100


LAYOUTS = {
    "rows": lambda x: x,
    "columns": np.asfortranarray,
    "apart": lambda x: np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3],
    "backwards": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "strip": lambda x: np.hstack([x, x])[:, : x.shape[1]],
    "packed": lambda x: packed(x),
    "swapped": lambda x: x.astype(x.dtype.newbyteorder("S")),
}


def packed(x):
    """Rows that are no whole number of elements apart, as in a table of records."""
    record = np.dtype([("tag", "u1"), ("row", x.dtype, x.shape[1:])])
    table = np.zeros(len(x), record)
    table["row"] = x
    return table["row"]


@given(
    st.integers(0, 7), st.integers(0, 7), st.integers(0, 7), st.sampled_from(DTYPES),
    st.sampled_from(list(LAYOUTS)), st.sampled_from(list(LAYOUTS)), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_products_as_new_arrays(m, n, k, dtype, layout_a, layout_b, seed):
    rng = np.random.default_rng(seed)
    x, y, z = (padded(rng, shape, dtype, 0)[0] for shape in ((m, k), (k, n), (k, m)))
    a, b, t = LAYOUTS[layout_a](x), LAYOUTS[layout_b](y), LAYOUTS[layout_a](z)
    copies = a.copy(), b.copy(), t.copy()
    c, d = product(a, b), adjoint_product(t, b)
    assert c.shape == d.shape == (m, n)
    assert c.dtype == d.dtype == np.dtype(dtype)
    assert close(c, x.astype(np.complex128) @ y, k)
    assert close(d, z.astype(np.complex128).conj().T @ y, k)
    for before, after in zip(copies, (a, b, t), strict=True):
        np.testing.assert_array_equal(before, after)
