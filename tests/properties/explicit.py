"""Small matrices of Gaussian integers with interesting properties, and what is true of a matrix, by definition.

Entries are integers (held exactly by float64 and complex128), so that every property but definiteness is decided exactly,
and definiteness safely: the least eigenvalue other than 0 of a small integer matrix is far from 0.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np

from pycauset.properties import PROPERTIES, closure, mask

Array = np.ndarray[Any, np.dtype[Any]]


def facts(a: Array) -> dict[str, bool]:
    """Every property of a matrix, by its definition."""
    m, n = a.shape
    square = m == n
    diagonal = np.diagonal(a)
    eye = np.eye(m, n)
    hermitian = square and np.array_equal(a.conj().T, a)
    least = float(np.linalg.eigvalsh(a.astype(complex)).min()) if hermitian else -1.0
    tolerance = 1e-9 * max(1.0, float(np.abs(a).max()))
    return {
        "is_zero": not a.any(),
        "is_identity": square and np.array_equal(a, eye),
        "is_permutation": square and bool(np.isin(a, (0, 1)).all() and (a.sum(0) == 1).all() and (a.sum(1) == 1).all()),
        "is_diagonal": np.array_equal(a, a * eye),
        "is_upper_triangular": np.array_equal(a, np.triu(a)),
        "is_lower_triangular": np.array_equal(a, np.tril(a)),
        "is_strictly_upper_triangular": np.array_equal(a, np.triu(a, 1)),
        "is_strictly_lower_triangular": np.array_equal(a, np.tril(a, -1)),
        "has_unit_diagonal": bool((diagonal == 1).all()),
        "has_zero_diagonal": bool((diagonal == 0).all()),
        "is_symmetric": square and np.array_equal(a.T, a),
        "is_skew_symmetric": square and np.array_equal(a.T, -a),
        "is_hermitian": hermitian,
        "is_skew_hermitian": square and np.array_equal(a.conj().T, -a),
        "is_unitary": square and np.array_equal(a.conj().T @ a, eye),
        "is_orthogonal": square and np.array_equal(a.T @ a, eye),
        "is_positive_definite": hermitian and least > tolerance,
        "is_positive_semidefinite": hermitian and least > -tolerance,
    }


def bits(values: dict[str, bool]) -> int:
    return sum(mask(name) if value else mask(name) & mask(name) // 3 for name, value in values.items())


def all_flags(a: Array) -> int:
    """Everything there is to know about a matrix."""
    return bits(facts(a))


def assert_true_of(flags: int, a: Array) -> None:
    """No property that the flags know is wrong about the matrix."""
    closed = closure(flags, a.shape, a.dtype.kind != "c")
    truth = all_flags(a)
    lost = mask(*PROPERTIES) // 3 & closed
    wrong = [name for name in PROPERTIES if (closed ^ truth) & lost * 3 & mask(name)]
    assert not wrong, f"{wrong} is wrong about\n{a}"


def _integers(rng: np.random.Generator, shape: tuple[int, int], real: bool) -> Array:
    a = rng.integers(-2, 3, shape).astype(float)
    return a if real else a + 1j * rng.integers(-2, 3, shape)


def _shaped(rng: np.random.Generator, shape: tuple[int, int], real: bool) -> Array:
    """A random matrix after a few random structuring steps."""
    a = _integers(rng, shape, real)
    m, n = shape
    for step in rng.integers(0, 16, rng.integers(0, 3)):
        if step == 0:
            a = np.triu(a)
        elif step == 1:
            a = np.tril(a)
        elif step == 2:
            np.fill_diagonal(a, 1)
        elif step == 3:
            np.fill_diagonal(a, 0)
        elif step == 4:
            a = a * np.eye(m, n)
        elif step == 5:
            a = np.zeros_like(a)
        elif m == n:
            permutation = np.eye(n)[rng.permutation(n)].astype(a.dtype)
            units = np.array([1, -1] if real else [1, -1, 1j, -1j])
            signs = units[rng.integers(0, len(units), n)]
            strict = np.tril(a, -1)
            choices = (
                a + a.T,
                a - a.T,
                a + a.conj().T,
                a - a.conj().T,
                a @ a.conj().T,
                strict @ strict.conj().T + np.eye(n),
                permutation,
                permutation * signs,
                np.eye(n, dtype=a.dtype),
                np.diag(signs).astype(a.dtype),
            )
            a = choices[int(step) - 6]
    return a


@st.composite
def matrices(draw: st.DrawFn, shape: tuple[int, int] | None = None, real: bool | None = None, square: bool = False) -> Array:
    if shape is None:
        m = draw(st.integers(1, 4))
        shape = (m, m if square or draw(st.booleans()) else draw(st.integers(1, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return _shaped(rng, shape, draw(st.booleans()) if real is None else real)


@st.composite
def claimed(draw: st.DrawFn, a: Array) -> int:
    """A random part of the truth about a matrix, closed; often all of it."""
    truth = facts(a)
    if draw(st.booleans()):
        names = set(draw(st.lists(st.sampled_from(list(PROPERTIES)), unique=True)))
        truth = {name: value for name, value in truth.items() if name in names}
    return closure(bits(truth), a.shape, a.dtype.kind != "c")
