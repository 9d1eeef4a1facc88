"""One oracle for the kernels of every device: what each must compute, and what it must neither read nor write.

A case makes tiles inside larger arrays, poisons with NaN whatever a kernel has no business reading, and hands them to
``run(name, reads, writes, params)``, which works on a device and leaves the results in the same arrays.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from pycauset.errors import NonFiniteError, NotPositiveDefiniteError, SingularMatrixError

DTYPES = ("float32", "float64", "complex64", "complex128")
OP = {"N": lambda x: x, "T": lambda x: x.T, "H": lambda x: x.conj().T, "C": lambda x: x.conj()}
TRIANGLE = {"L": np.tril, "U": np.triu, "lower": np.tril, "upper": np.triu, "full": lambda x: x}
FLAGS = list(itertools.product("LR", "LU", "NTH", (False, True)))


class Tile(NamedTuple):
    """A tile inside a larger row-major array."""

    base: np.ndarray[Any, Any]
    row: int
    col: int
    shape: tuple[int, int]

    @property
    def array(self) -> np.ndarray[Any, Any]:
        return self.base[self.row : self.row + self.shape[0], self.col : self.col + self.shape[1]]

    @property
    def outside(self) -> np.ndarray[Any, Any]:
        """Everything around the tile, in a fixed order."""
        mask = np.ones(self.base.shape, bool)
        mask[self.row : self.row + self.shape[0], self.col : self.col + self.shape[1]] = False
        return self.base[mask]


Run = Callable[[str, Sequence[Tile], Sequence[Tile], tuple[Any, ...]], None]


def random(rng: np.random.Generator, shape: tuple[int, int], dtype: str) -> np.ndarray[Any, Any]:
    x = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        x = x + 1j * rng.standard_normal(shape)
    return x.astype(dtype)


def tile(rng: np.random.Generator, array: np.ndarray[Any, Any], pad: int) -> Tile:
    """The array as a tile with ``pad`` elements around its rows."""
    rows, cols = array.shape
    base = random(rng, (rows + (2 if pad else 0), cols + pad), array.dtype.name)
    made = Tile(base, 1 if pad else 0, pad // 2, (rows, cols))
    made.array[...] = array
    return made


def checked(run: Run, name: str, reads: Sequence[Tile], writes: Sequence[Tile], params: tuple[Any, ...]) -> None:
    """Run a kernel; it must leave alone what it only reads and what lies around the tiles."""
    untouched = [(t, t.base.copy()) for t in reads if not any(t is w for w in writes)]
    around = [(w, w.outside.copy()) for w in writes]
    run(name, reads, writes, params)
    for t, before in untouched:
        assert np.array_equal(t.base, before, equal_nan=True), f"{name} has changed an operand"
    for w, outside in around:
        assert np.array_equal(w.outside, outside, equal_nan=True), f"{name} has changed what lies around its tile"


def wide(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (
        x.astype(np.clongdouble if x.dtype.kind == "c" else np.longdouble)
        if x.size < 2_000
        else x.astype(np.result_type(x, "f8"))
    )


def size(x: np.ndarray[Any, Any]) -> float:
    """The largest row sum, never zero."""
    return max(float(np.abs(x).sum(axis=1).max(initial=0)), 1e-30)


def ratio(error: np.ndarray[Any, Any], scale: float, n: int, dtype: str) -> float:
    """LAPACK's residual ratio."""
    assert np.isfinite(error).all()
    return float(np.abs(error).sum(axis=1).max(initial=0)) / (max(n, 1) * scale * float(np.finfo(dtype).eps))


def positive_definite(rng: np.random.Generator, n: int, dtype: str) -> np.ndarray[Any, Any]:
    g = random(rng, (n, n), dtype)
    a = g @ g.conj().T / n + np.eye(n, dtype=dtype)
    return (a + a.conj().T) / 2


def triangle(rng: np.random.Generator, n: int, dtype: str, uplo: str, unit: bool) -> tuple[Any, Any]:
    """A well-conditioned triangle as stored, NaN wherever it must not be read; and the matrix that it stands for."""
    t = random(rng, (n, n), dtype) / (2 * n) + 2 * np.eye(n, dtype=dtype)
    exact = TRIANGLE[uplo](t).astype(dtype)
    stored = np.where(TRIANGLE[uplo](np.ones((n, n), bool)), exact, np.array(np.nan, dtype))
    if unit:
        np.fill_diagonal(exact, 1)
        np.fill_diagonal(stored, np.nan)
    return stored, exact


# ---- what kernels must do ------------------------------------------------------------------------------------------------


def gemm_multiplies_parts(
    run: Run, rng: np.random.Generator, m: int, n: int, k: int, dtype: str, op: str, beta: float, pad: int = 0
) -> None:
    """The first columns of A by rows from the middle of B, added to rows in the middle of C; nothing else is read or written."""
    before, after = int(rng.integers(0, 4)), int(rng.integers(0, 4))
    shape = (m, k) if op == "N" else (k, m)
    values = np.full((shape[0], shape[1] + after), np.nan, dtype)
    values[:, : shape[1]] = random(rng, shape, dtype)
    factor = np.full((before + k + after, n), np.nan, dtype)
    factor[before : before + k] = random(rng, (k, n), dtype)
    sums = random(rng, (after + m + before, n), dtype)
    if beta == 0:
        sums[after : after + m] = np.nan
    a, b, c = (tile(rng, x, pad) for x in (values, factor, sums))
    checked(run, "gemm", [a, b, *([c] if beta else [])], [c], (-0.5, beta, op, "N", shape[1], before, after))
    inside = slice(after, after + m)
    exact = -0.5 * OP[op](wide(values[:, : shape[1]])) @ wide(factor[before : before + k])
    if beta:
        exact = exact + beta * wide(sums[inside])
    scale = size(values[:, : shape[1]]) * size(factor[before : before + k]) + size(exact)
    assert ratio(c.array[inside] - exact, scale, k + 1, dtype) < 30
    assert np.array_equal(np.delete(c.array, np.r_[inside], axis=0), np.delete(sums, np.r_[inside], axis=0))


def rank_k_updates(
    run: Run, rng: np.random.Generator, n: int, k: int, dtype: str, op: str, uplo: str, beta: float, pad: int = 0
) -> None:
    """``op`` "T" or "H" of the second factor; the other triangle of C is neither read nor written, nor C itself if beta is 0."""
    a = tile(rng, random(rng, (n, k), dtype), pad)
    kept = TRIANGLE[uplo](np.ones((n, n), bool))
    before = random(rng, (n, n), dtype)
    if op == "H":
        np.fill_diagonal(before, before.diagonal().real)
    c = tile(rng, np.where(kept & (beta != 0), before, np.array(np.nan, dtype)), pad)
    checked(run, "rank_k", [a, *([c] if beta else [])], [c], (-0.5, beta, "N", op == "H", False, uplo))
    exact = -0.5 * wide(a.array) @ OP[op](wide(a.array)) + beta * wide(before)
    assert np.isnan(c.array[~kept]).all()
    error = np.where(kept, c.array - exact, 0)
    assert ratio(error, size(exact) + size(before), k + 1, dtype) < 30


def potrf_factors(run: Run, rng: np.random.Generator, n: int, dtype: str, lower: bool, pad: int = 0) -> None:
    a = positive_definite(rng, n, dtype)
    keep = TRIANGLE["L" if lower else "U"]
    stored = np.where(keep(np.ones((n, n), bool)), a, np.array(np.nan, dtype))
    if stored.dtype.kind == "c":
        stored[np.diag_indices(n)] += 3j  # a Hermitian diagonal has no imaginary part, whatever is stored there
    c = tile(rng, stored, pad)
    checked(run, "potrf", [c], [c], (0, lower))
    factor = wide(c.array)
    assert np.array_equal(keep(c.array), c.array), "the other triangle is not zero"
    assert (c.array.diagonal().real > 0).all()
    assert (c.array.diagonal().imag == 0).all()
    product = factor @ factor.conj().T if lower else factor.conj().T @ factor
    assert ratio(product - a, size(a), n, dtype) < 30


def potrf_refuses(run: Run, rng: np.random.Generator, n: int, dtype: str, lower: bool, pivot: int, what: str) -> None:
    """``what``: "negative" or "zero" pivots, "nan" or "inf" on the diagonal, "row nan" or "row inf" before it."""
    a = positive_definite(rng, n, dtype)
    value = float("nan")
    if what in ("negative", "zero"):
        schur = 0.0
        if pivot:
            column = np.linalg.solve(a[:pivot, :pivot].astype(np.result_type(dtype, "f8")), a[:pivot, pivot])
            schur = float((a[pivot, :pivot] @ column).real)
        value = -2.5 if what == "negative" else 0.0
        if what == "zero":  # exactly zero only where no rounding comes before it
            a[pivot, :pivot] = a[:pivot, pivot] = schur = 0
        a[pivot, pivot] = value + schur
    elif what.startswith("row"):
        other = int(rng.integers(0, pivot))
        a[pivot, other] = a[other, pivot] = float(what[4:])
    else:
        a[pivot, pivot] = float(what)
    stored = np.where(TRIANGLE["L" if lower else "U"](np.ones((n, n), bool)), a, np.array(np.nan, dtype))
    c = tile(rng, stored, 3)
    with pytest.raises(NotPositiveDefiniteError) as caught:
        checked(run, "potrf", [c], [c], (1000, lower))
    assert caught.value.pivot == 1000 + pivot
    assert caught.value.order == 1001 + pivot
    if np.isnan(value):
        assert np.isnan(caught.value.value)
        assert "NaN or infinity" in str(caught.value)
    else:
        assert caught.value.value == pytest.approx(value, rel=1e4 * float(np.finfo(dtype).eps), abs=1e-30)
        assert f"pivot {1000 + pivot}" in str(caught.value)


def trsm_solves(
    run: Run,
    rng: np.random.Generator,
    m: int,
    n: int,
    dtype: str,
    flags: tuple[str, str, str, bool],
    alpha: complex,
    pad: int = 0,
    key: object = None,
) -> None:
    side, uplo, op, unit = flags
    alpha = alpha if np.dtype(dtype).kind == "c" else complex(alpha).real
    stored, exact = triangle(rng, m if side == "L" else n, dtype, uplo, unit)
    b = random(rng, (m, n), dtype)
    t, x = tile(rng, stored, pad), tile(rng, b, pad and pad + 2)
    checked(run, "trsm", [t, x], [x], (side, uplo, op, unit, alpha, *(() if key is None else (key,))))
    solved, matrix = wide(x.array), wide(OP[op](exact))
    product = matrix @ solved if side == "L" else solved @ matrix
    assert ratio(product - alpha * wide(b), size(matrix) * max(size(solved), size(b)), exact.shape[0], dtype) < 30


def trmm_multiplies(
    run: Run,
    rng: np.random.Generator,
    m: int,
    n: int,
    dtype: str,
    flags: tuple[str, str, str, bool],
    alpha: complex,
    pad: int = 0,
) -> None:
    side, uplo, op, unit = flags
    alpha = alpha if np.dtype(dtype).kind == "c" else complex(alpha).real
    stored, exact = triangle(rng, m if side == "L" else n, dtype, uplo, unit)
    b = random(rng, (m, n), dtype)
    t, factor = tile(rng, stored, pad), tile(rng, b, pad)
    c = tile(rng, np.full((m, n), np.nan, dtype), pad and pad + 2)
    checked(run, "trmm", [t, factor], [c], (side, uplo, op, unit, alpha))
    matrix, other = wide(OP[op](exact)), wide(b)
    product = alpha * (matrix @ other if side == "L" else other @ matrix)
    assert ratio(c.array - product, size(matrix) * size(b) * max(abs(alpha), 1), exact.shape[0], dtype) < 30


def trtri_inverts(run: Run, rng: np.random.Generator, n: int, dtype: str, uplo: str, unit: bool, pad: int = 0) -> None:
    stored, exact = triangle(rng, n, dtype, uplo, unit)
    t = tile(rng, stored, pad)
    checked(run, "trtri", [t], [t], (uplo, unit, 0))
    inverse = wide(t.array)
    assert np.array_equal(TRIANGLE[uplo](t.array), t.array), "the other triangle is not zero"
    assert ratio(inverse @ wide(exact) - np.eye(n), size(exact) * size(inverse), n, dtype) < 30
    if unit:
        assert (t.array.diagonal() == 1).all()


def trtri_refuses_zeros(run: Run, rng: np.random.Generator, n: int, dtype: str, uplo: str) -> None:
    stored, _ = triangle(rng, n, dtype, uplo, False)
    first, second = sorted(int(i) for i in rng.choice(n, 2, replace=False))
    stored[first, first] = stored[second, second] = 0
    t = tile(rng, stored, 3)
    with pytest.raises(SingularMatrixError, match=f"index {700 + first}") as caught:
        checked(run, "trtri", [t], [t], (uplo, False, 700))
    assert caught.value.index == 700 + first


def diagonal_is_checked(run: Run, rng: np.random.Generator, n: int, dtype: str, what: float) -> None:
    stored, _ = triangle(rng, n, dtype, "L", False)
    t = tile(rng, stored, 3)
    checked(run, "check_diagonal", [t], [], (50,))  # nothing is wrong yet
    first, second = sorted(int(i) for i in rng.choice(n, 2, replace=False))
    t.array[first, first] = t.array[second, second] = what
    kind = SingularMatrixError if what == 0 else NonFiniteError
    with pytest.raises(kind, match=f"index {50 + first}") as caught:
        checked(run, "check_diagonal", [t], [], (50,))
    if isinstance(caught.value, SingularMatrixError):
        assert caught.value.index == 50 + first


def copies(
    run: Run, rng: np.random.Generator, m: int, n: int, dtype: str, op: str, part: str, alpha: complex, pad: int = 0
) -> None:
    alpha = alpha if np.dtype(dtype).kind == "c" else complex(alpha).real
    source = random(rng, (n, m) if op in "TH" else (m, n), dtype)
    exact = (alpha * TRIANGLE[part](OP[op](source))).astype(dtype)
    kept = TRIANGLE[part](np.ones((m, n), bool))
    if alpha == 0:
        kept = np.zeros((m, n), bool)
    OP["T" if op in "TH" else "N"](source)[~kept] = np.nan  # not part of the result, so not read
    a = tile(rng, source, pad)
    c = tile(rng, np.full((m, n), np.nan, dtype), pad and pad + 2)
    checked(run, "copy", [a], [c], (alpha, op, part))
    if alpha in (0, 1):
        assert np.array_equal(c.array, exact)
    else:
        assert np.abs(c.array - exact).max(initial=0) <= 4 * np.finfo(dtype).eps * max(1.0, np.abs(exact).max(initial=0))


def fills_identity(run: Run, rng: np.random.Generator, m: int, n: int, dtype: str, value: complex, pad: int = 0) -> None:
    value = value if np.dtype(dtype).kind == "c" else complex(value).real
    c = tile(rng, np.full((m, n), np.nan, dtype), pad)
    checked(run, "fill_identity", [], [c], (value,))
    assert np.array_equal(c.array, (value * np.eye(m, n)).astype(dtype))
